"""Phones through the real adb binary: a run, and everything that happens to phones. The phone itself is a stand-in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.devices import Adb, DeviceError, Host, Request
from harness.devices.adb import FOLDER, observed, observer
from tests import needs
from tests.devices.adb_server import AdbServer

pytestmark = [needs.package("executorch"), needs.program("adb")]

# As TrustManagerService of Android 14 and later dumps it.
TRUST = """Trust manager state:
 User "Owner" (id=0, flags=0x4c13) (current): trustState=UNTRUSTED, trustManaged=0, deviceLocked={owner}
   Enabled agents:
 User "Work" (id=10, flags=0x1030): trustState=UNTRUSTED, trustManaged=0, deviceLocked={profile}
"""
REQUEST = Request([10, 11, 12, 13], 3, 1, 2, [[10, 11, 12], [14, 15, 16]])


@pytest.fixture
def adb(phone: AdbServer, phone_runner: Path) -> Adb:
    return Adb(phone.serials[0], phone_runner)


def test_run(adb: Adb, phone: AdbServer, host: Host, pte: Path, tmp_path: Path) -> None:
    """The program is pushed once, run, and its logits pulled; they are those of this machine's runner."""
    assert adb.missing() == ""
    assert adb.device().name == "Stand-in Phone (emulated-1)"
    assert adb.device().detail == {"serial": "emulated-1", "soc": "SoC", "system": "Android 16"}
    there, here = tmp_path / "there", tmp_path / "here"
    reading = adb.run(pte, REQUEST, there, 120)
    assert reading.tokens == host.run(pte, REQUEST, here, 120).tokens
    assert len(reading.decode_rates) == 3
    assert there.read_bytes() == here.read_bytes()
    programs = [path for path in phone.pushed if path.endswith(".pte")]
    adb.run(pte, REQUEST, there, 120)
    assert [path for path in phone.pushed if path.endswith(".pte")] == programs
    assert len(programs) == 1


def test_a_program_of_the_published_route(adb: Adb, host: Host, custom: Path) -> None:
    """A phone takes it whose runner has the custom SDPA."""
    request = Request([7, 7, 7], 3, 0, 1)
    assert adb.lacks("llama") == ""
    assert adb.run(custom, request, None, 60).tokens == host.run(custom, request, None, 60).tokens == [0, 3, 4]


def test_state(adb: Adb, phone: AdbServer) -> None:
    told = {"thermal_status": 0, "battery_percent": 77, "battery_c": 31.2, "locked": False, "awake": True}
    assert adb.state() == told
    assert adb.throttled(adb.state(), adb.state()) == ""
    cool = adb.state()
    phone.answers["dumpsys thermalservice"] = "Thermal Status: 3\n"
    assert adb.throttled(cool, adb.state()) == "throttled: thermal status 3 of the phone"


def test_two_phones(phone: AdbServer, phone_runner: Path, pte: Path) -> None:
    """Each is asked by its serial, whichever others are attached."""
    phone.serials.append("emulated-2")
    for serial in phone.serials:
        assert Adb(serial, phone_runner).missing() == ""
        assert Adb(serial, phone_runner).device().detail["serial"] == serial
        assert Adb(serial, phone_runner).device().name == f"Stand-in Phone ({serial})"


def test_locked(adb: Adb, phone: AdbServer, pte: Path) -> None:
    phone.answers["dumpsys trust"] = TRUST.format(owner=1, profile=0)
    with pytest.raises(DeviceError, match=r"adb:emulated-1 is locked: .* unlock it"):
        adb.run(pte, REQUEST, None, 60)
    assert phone.pushed == []


@pytest.mark.parametrize("state", ["Asleep", "Dozing", "Dreaming"])
def test_asleep(adb: Adb, phone: AdbServer, pte: Path, state: str) -> None:
    """A phone without a lock sleeps too."""
    phone.answers["dumpsys power"] = f"  mWakefulness={state}\n"
    with pytest.raises(DeviceError, match=r"adb:emulated-1 is asleep: .* keep it awake"):
        adb.run(pte, REQUEST, None, 60)
    assert phone.pushed == []


def test_a_locked_work_profile_locks_no_phone(adb: Adb, phone: AdbServer) -> None:
    phone.answers["dumpsys trust"] = TRUST.format(owner=0, profile=1)
    assert adb.state()["locked"] is False


def test_out_of_storage(adb: Adb, phone: AdbServer, pte: Path) -> None:
    phone.full = True
    with pytest.raises(DeviceError, match=f"(?s)out of storage .*No space left on device.*remove {FOLDER}"):
        adb.run(pte, REQUEST, None, 60)


def test_storage_runs_out_while_logits_are_written(adb: Adb, phone: AdbServer, pte: Path) -> None:
    (phone.folder / "torchao-harness").mkdir()
    (phone.folder / "torchao-harness" / "logits.bin").symlink_to("/dev/full")
    with pytest.raises(DeviceError, match=f"out of storage .*the logits could not be written.*remove {FOLDER}"):
        adb.run(pte, REQUEST, None, 60)


@pytest.mark.parametrize("at", ["--program", "SEND /data", "RECV /data"])
def test_unplugged(adb: Adb, phone: AdbServer, pte: Path, tmp_path: Path, at: str) -> None:
    """While the program runs, is pushed, or its logits are pulled."""
    phone.unplug_at = at
    with pytest.raises(DeviceError, match=r"adb:emulated-1 is not connected .*--resume; what was measured stands"):
        adb.run(pte, REQUEST, tmp_path / "logits", 60)


def test_the_runner_is_what_the_phones_shell_becomes(adb: Adb, phone: AdbServer, pte: Path) -> None:
    """So that it ends with its connection, and no shell in between stays."""
    adb.run(pte, REQUEST, None, 60)
    assert [command for command in phone.commands if " && exec /data/" in command and "--program" in command]


def test_not_attached(phone: AdbServer, phone_runner: Path) -> None:
    assert "adb:other is not connected" in Adb("other", phone_runner).missing()


def test_not_allowed(adb: Adb, phone: AdbServer) -> None:
    phone.refusal = "device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set"
    assert "has not allowed this computer: unlock the phone and accept" in adb.missing()


def test_no_runner(phone: AdbServer, tmp_path: Path) -> None:
    assert "--phone-runner FILE" in Adb(phone.serials[0], None).missing()
    assert "is not there" in Adb(phone.serials[0], tmp_path / "none").missing()


def test_no_adb(monkeypatch: pytest.MonkeyPatch, phone_runner: Path) -> None:
    monkeypatch.setenv("PATH", "")
    assert Adb("any", phone_runner).missing() == "no adb; on Debian: apt-get install adb"


ROUNDS = [
    {
        "prompt_tokens": 20,
        "generated_tokens": generated,
        "model_load_start_ms": 1000,
        "model_load_end_ms": 1400,
        "inference_start_ms": 1400,
        "prompt_eval_end_ms": 1500,
        "inference_end_ms": 2000,
        "SCALING_FACTOR_UNITS_PER_SECOND": 1000,
    }
    for generated in (9, 9, 4)
]


@pytest.fixture
def llama_main(phone: AdbServer, tmp_path: Path) -> Adb:
    """A phone whose llama_main prints one of the rounds after the other, and notes what it was asked."""
    lines = tmp_path / "lines"
    lines.write_text("".join(f"PyTorchObserver {json.dumps(line)}\n" for line in ROUNDS), encoding="utf-8")
    runner = tmp_path / "llama_main"
    asked = tmp_path / "asked"
    runner.write_text(f'#!/bin/sh\necho "$@" >> {asked}\nsed -n "$(wc -l < {asked})p" {lines}\n', encoding="utf-8")
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}", encoding="utf-8")
    adb = Adb(phone.serials[0], runner)
    adb.tokenizer, adb.prompt_text = tokenizer, "What's a model?"
    return adb


def test_llama_main(llama_main: Adb, pte: Path, tmp_path: Path) -> None:
    """ExecuTorch's own runner is told a text; each round has its own counts: an answer may end early."""
    reading = llama_main.run(pte, Request([1], 10, 1, 2), None, 60)
    assert (reading.load_seconds, reading.prefill_rates) == (0.4, [200.0] * 3)
    assert (reading.prompt_counts, reading.new_counts) == ([20] * 3, [10, 10, 5])
    assert reading.decode_rates == [18.0, 18.0, 8.0]
    assert reading.whole_rates == pytest.approx([10 / 0.6, 10 / 0.6, 5 / 0.6])
    asked = (tmp_path / "asked").read_text(encoding="utf-8").splitlines()
    assert len(asked) == 3
    assert "--prompt=What's a model? --temperature=0 --max_new_tokens=10" in asked[0]


def test_an_answer_that_ends_at_once() -> None:
    with pytest.raises(DeviceError, match="the answer of round 2 ended with its first token"):
        observed([ROUNDS[0], ROUNDS[1] | {"generated_tokens": 0}], 0)


@pytest.mark.parametrize(
    "line", ["", "{}", "[1]", '{"generated_tokens": "9"}', "[" * 9000, '{"generated_tokens": true}']
)
def test_a_line_of_times_that_cannot_be_read_is_told_of(line: str) -> None:
    with pytest.raises(DeviceError, match="what it printed of its times cannot be read"):
        observer([line])
    assert observer([json.dumps(it) for it in ROUNDS]) == observed(ROUNDS, 0)
