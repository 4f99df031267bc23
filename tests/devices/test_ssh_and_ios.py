"""An ARM host over ssh, with a real sshd on loopback; and what XCTest wrote on an iPhone."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import MatrixError
from harness.devices import DeviceError, Host, Ios, Request, Ssh, linux, open_device
from harness.runtime.environment import Environment
from harness.runtime.job import free_port
from harness.runtime.store import Store
from tests import needs
from tests.contract.test_warden import until

REQUEST = Request([10, 11, 12, 13], 5, 0, 2, [[10, 11, 12]])


@pytest.fixture
def sshd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A host that ssh reaches on loopback; what is put there goes to a folder of the test."""
    server = shutil.which("sshd") or "/usr/sbin/sshd"
    if not Path(server).exists() or not shutil.which("ssh-keygen"):
        pytest.skip("no sshd; on Debian: apt-get install openssh-server openssh-client")
    folder = tmp_path / "sshd"
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(Ssh, "FOLDER", str(tmp_path / "there"))
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "user.pub", folder / "allowed")
    port = free_port()
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "allowed",
        "PidFile": folder / "pid",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "Subsystem": "sftp internal-sftp",
    }
    (folder / "config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()), encoding="utf-8")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    process = subprocess.Popen([server, "-D", "-e", "-f", str(folder / "config")], stderr=subprocess.DEVNULL)
    options = f"-o Port={port} -i {folder}/user -o StrictHostKeyChecking=no -o UserKnownHostsFile={folder}/known"
    monkeypatch.setenv("HARNESS_SSH_OPTIONS", options)
    host = f"{getpass.getuser()}@127.0.0.1"
    for _ in range(50):
        if not subprocess.run(["ssh", *options.split(), host, "true"], capture_output=True, check=False).returncode:
            break
        time.sleep(0.1)
    yield host
    process.terminate()
    process.wait()


@needs.package("executorch")
def test_ssh(sshd: str, kept_store: Store, host: Host, pte: Path, tmp_path: Path) -> None:
    """Runner, libraries and program are copied once and run there; what comes back is what runs here."""
    device = Ssh(kept_store, Environment(), sshd)
    assert device.missing() == ""
    assert device.device().name.endswith("cores, 127.0.0.1)"), "two hosts of one model are two devices"
    assert {"load_1min", "memory_available_gb"} <= device.state().keys()
    assert 0 < float(device.state()["memory_available_gb"]) < 1e5
    assert device.runner_key() == host.runner_key()
    there, here = tmp_path / "logits there", tmp_path / "logits here"
    reading = device.run(pte, REQUEST, there, 120)
    assert reading.tokens == host.run(pte, REQUEST, here, 120).tokens
    assert there.read_bytes() == here.read_bytes()
    copied = list(Path(Ssh.FOLDER).rglob("*.pte"))
    before = copied[0].stat().st_mtime_ns
    device.run(pte, REQUEST, None, 120)
    assert [file.stat().st_mtime_ns for file in copied] == [before]


@pytest.fixture
def through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``through(name, pattern, script)`` has a command do something else where its last argument matches a pattern."""

    def wrap(name: str, pattern: str, script: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        real = shutil.which(name)
        text = f'#!/bin/sh\nfor last; do :; done\ncase "$last" in {pattern}) {script};; esac\nexec {real} "$@"\n'
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return wrap


def test_ssh_a_connection_that_is_lost(sshd: str, kept_store: Store, pte: Path, through: Any) -> None:
    """What runs there then ends by its own time, at the latest."""
    device = Ssh(kept_store, Environment(), sshd)
    with pytest.raises(DeviceError, match="did not finish within 2 s") as failed:
        device.run(pte, Request([1, 2, 3], 8, 0, 10**9), None, 2)
    assert failed.value.kind == "timeout"
    assert until(lambda: not running_there(10**9), 20)
    through("ssh", "*--program*", "echo Connection closed by remote host. >&2; exit 255")
    with pytest.raises(DeviceError, match=r"the connection was lost \(Connection closed .*--resume; what was measured"):
        device.run(pte, REQUEST, None, 60)


def test_ssh_a_runner_that_crashes(sshd: str, kept_store: Store, pte: Path) -> None:
    """Its signal is told: ssh by itself would end with status 255, as it does without a connection."""
    device = Ssh(kept_store, Environment(), sshd)
    device.run(pte, REQUEST, None, 60)
    (runner,) = Path(Ssh.FOLDER).glob("*/runner")
    runner.write_text("#!/bin/sh\nkill -SEGV $$\n", encoding="utf-8")
    with pytest.raises(DeviceError, match=r"ended with status 139 \(signal 11\)"):
        device.run(pte, REQUEST, None, 60)


def test_ssh_a_copy_that_is_cut_off(sshd: str, kept_store: Store, pte: Path, through: Any) -> None:
    """Half a runner is never taken for the runner."""
    device = Ssh(kept_store, Environment(), sshd)
    folder = Path(Ssh.FOLDER) / device.runner_key().split("/")[1]
    through("scp", "*runner*", f"echo half > {folder}/runner${{last##*/runner}}; echo Connection closed >&2; exit 1")
    with pytest.raises(DeviceError, match="Connection closed"):
        device.run(pte, REQUEST, None, 60)
    through("scp", "never", "true")
    assert device.run(pte, REQUEST, None, 60).tokens


@pytest.mark.programs
def test_ssh_a_full_disk(
    sshd: str, kept_store: Store, through: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told by the free space there: all that scp says is "Failure"."""
    huge = tmp_path / "huge.pte"
    huge.touch()
    os.truncate(huge, 2**43)
    assert shutil.disk_usage(tmp_path).free < 2**43
    monkeypatch.setattr(linux, "file_digest", lambda _: "0" * 64)
    through("scp", "*.pte.part", "echo scp: write remote: Failure >&2; exit 1")
    with pytest.raises(DeviceError, match=r"is out of storage: \d+ MB are free, 8796093 MB are to be copied"):
        Ssh(kept_store, Environment(), sshd).run(huge, REQUEST, None, 60)


def running_there(rounds: int) -> bool:
    """Return whether a runner still has so many rounds to do."""
    wanted = f"--rounds\0{rounds}\0".encode()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if wanted in file.read_bytes():
                return True
    return False


def test_ssh_nobody_there(kept_store: Store) -> None:
    port = free_port()
    device = Ssh(kept_store, Environment(), "127.0.0.1")
    device.options += ["-o", f"Port={port}"]
    assert "`ssh 127.0.0.1 true` must work" in device.missing()


def benchmark(**changes: Any) -> list[dict[str, Any]]:
    metrics = [
        {"displayName": "Tokens per second", "unitOfMeasurement": "tokens/s", "measurements": [16.0, 17.0, 18.0]},
        {"displayName": "Memory Peak Physical", "unitOfMeasurement": "kB", "measurements": [3100000.0, 3200000.0]},
    ]
    device = {"deviceName": "Ann's phone", "modelName": "iPhone 15 Pro", "osVersion": "18.1"}
    run = {"device": device, "metrics": metrics, **changes}
    return [{"testIdentifier": "MetricsTests/test_generate_tokens()", "testRuns": [run]}]


def test_ios(tmp_path: Path) -> None:
    """Rates are as they are, the highest peak is the memory, whatever unit XCTest gave it in; nothing can be run."""
    file = tmp_path / "metrics.json"
    file.write_text(json.dumps(benchmark()), encoding="utf-8")
    device = Ios(file)
    assert device.missing() == ""
    assert device.device().name == "iPhone 15 Pro"
    assert device.device().detail == {"system": "iOS 18.1"}
    assert device.told().rates == [16.0, 17.0, 18.0]
    assert device.told().peak_bytes == 3_200_000_000
    with pytest.raises(DeviceError, match="nothing can be run there"):
        device.run(Path("any.pte"), REQUEST, None, 1)


def test_ios_the_name_that_its_owner_gave_it_is_no_label(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    file.write_text(json.dumps(benchmark(device={"deviceName": "Ann's phone", "osVersion": "18.1"})), encoding="utf-8")
    assert Ios(file).device().name == "iPhone"


def metric(name: str, unit: str, measurements: object) -> dict[str, Any]:
    return {"displayName": name, "unitOfMeasurement": unit, "measurements": measurements}


RATE = metric("Tokens per second", "tokens/s", [17.0])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not JSON", "is not the JSON of `xcrun xcresulttool"),
        ('{"tests": 1}', "is not the JSON of `xcrun xcresulttool"),
        (json.dumps(benchmark(metrics=[])), "has no metric 'tokens per second'; it has: none"),
        (json.dumps(benchmark() * 2), "holds 2 runs that measured tokens per second .*counts for one program"),
        (json.dumps({"testRuns": ["none"]}), "metrics.json: testRuns hold 'none', which is no run"),
        (json.dumps(benchmark(metrics={"a": 1})), "metrics.json: metrics of a run are no list of metrics: {'a': 1}"),
        (json.dumps(benchmark(metrics=["a"])), "metrics.json: metrics of a run are no list of metrics"),
        *(
            (json.dumps(benchmark(metrics=[RATE, metric("Memory Peak Physical", unit, [3.2e6])])), words)
            for unit, words in (
                ("KiB", "metrics.json: unitOfMeasurement has memory in 'KiB'; known: B, kB, KB, MB, GB"),
                ("bytes", "metrics.json: unitOfMeasurement has memory in 'bytes'"),
                ("", "metrics.json: unitOfMeasurement has memory in ''"),
            )
        ),
        *(
            (json.dumps(benchmark(metrics=[metric("Tokens per second", "t/s", values)])), f"measurements of .*{words}")
            for values, words in (
                (["17.0"], "are not numbers: .'17.0'"),
                ("17", "are not numbers: '17'"),
                ({"value": 17}, "are not numbers"),
                ([17.0, None], "are not numbers"),
                ([float("nan")], "are not numbers"),
                ([], "have no positive one"),
                ([0.0], "have no positive one"),
            )
        ),
    ],
)
def test_ios_other_files(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "metrics.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DeviceError, match=words):
        Ios(file).told()


def test_unknown_device(kept_store: Store) -> None:
    with pytest.raises(MatrixError, match=r"--device 'phone' is not one of: host .*adb:SERIAL"):
        open_device("phone", kept_store, Environment())
