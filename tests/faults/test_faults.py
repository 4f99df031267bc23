"""A part of the campaign, and the campaign itself: seeded, gone on with, counted, and able to find what is wrong."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.base.interruption import Interruption
from tests import marking, needs
from tests.faults import __main__ as of_faults
from tests.faults import campaign, damage, devices, disks, names, peers, sessions, surroundings
from tests.faults.campaign import Fault, Scenario

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


# The other kinds of sessions, as most of the campaign, are tried by `tox run -e faults-part`.
OF_SESSIONS = [
    it for it in sessions.SCENARIOS if it.run in (sessions.killed, sessions.signalled, sessions.clock, sessions.full)
]
Tried = Callable[[Scenario, int], list[dict[str, Any]]]


@pytest.fixture
def tried(record_property: Callable[[str, object], None]) -> Tried:
    """Run so many faults of a kind, none of which breaks a promise; the tests' summary tells how many there were."""

    def run(scenario: Scenario, count: int) -> list[dict[str, Any]]:
        found = [campaign.one(scenario, random.Random(f"tests/{scenario.name}/{number}")) for number in range(count)]
        record_property(marking.FAULTS, [(bool(it["hit"]), it["seconds"]) for it in found])
        assert [(it["what"], it["problems"]) for it in found if it["problems"]] == []
        return found

    return run


@pytest.mark.parametrize("scenario", damage.SCENARIOS, ids=lambda it: it.name)
def test_damaged_files_are_found_or_refused(scenario: Scenario, tried: Tried) -> None:
    found = tried(scenario, 12)
    assert sum(bool(it["hit"]) for it in found) >= 8


@pytest.mark.programs
@pytest.mark.parametrize("scenario", [devices.SCENARIOS[0], *names.SCENARIOS[:3]], ids=lambda it: it.name)
def test_vanishing_devices_hostile_names_and_useless_homes_are_told_of(scenario: Scenario, tried: Tried) -> None:
    assert all(it["hit"] for it in tried(scenario, 5))


@pytest.mark.models
@needs.program("adb")
def test_a_phone_that_vanishes_is_told_of(tried: Tried) -> None:
    assert sum(bool(it["hit"]) for it in tried(devices.SCENARIOS[1], 3)) >= 2


@pytest.mark.models
@pytest.mark.parametrize(
    ("scenario", "count"),
    [(peers.SCENARIOS[0], 5), (peers.SCENARIOS[1], 4), (names.SCENARIOS[3], 1)],
    ids=["server", "worker", "environment"],
)
def test_servers_and_workers_that_go_wrong_are_told_of(scenario: Scenario, count: int, tried: Tried) -> None:
    assert all(it["hit"] for it in tried(scenario, count))


@pytest.mark.models
@pytest.mark.parametrize("scenario", OF_SESSIONS, ids=lambda it: it.name)
def test_a_session_loses_nothing(scenario: Scenario, tried: Tried) -> None:
    tried(scenario, 1)


@pytest.mark.programs
def test_a_failing_disk_is_its_folder_and_not_what_only_begins_like_it(tmp_path: Path) -> None:
    if not disks.library():
        pytest.skip(disks.NO_COMPILER)
    (tmp_path / "out").mkdir()
    variables = {"LD_PRELOAD": disks.library(), "SLOW_DISK": str(tmp_path / "out"), "SLOW_COUNT": "1000"}
    variables["SLOW_ERRNO"] = str(errno.EIO)
    for name, status in (("output", 0), ("out/file", 1)):
        words = [sys.executable, "-c", f"open({str(tmp_path / name)!r}, 'w').write('x')"]
        done = subprocess.run(words, env=os.environ | variables, capture_output=True, text=True, check=False)
        assert (done.returncode, "Input/output error" in done.stderr) == (status, bool(status))


def test_libraries_that_stand_in_for_disks_and_clocks_go_with_the_campaign(tmp_path: Path) -> None:
    code = "from tests.faults import disks; print(disks.library())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=of_faults.REPOSITORY,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    if not done.stdout.strip():
        pytest.skip(disks.NO_COMPILER)
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)
    assert [*tmp_path.iterdir()] == []


_FROZEN = """Traceback (most recent call last):
  File "<frozen site>", line 196, in addpackage
  File "<frozen importlib._bootstrap>", line 1176, in _find_and_load
MemoryError
"""
_FATAL = "Fatal Python error: init_import_site: Failed to import the site module\nPython runtime state: initialized\n"
_BODY = """Traceback (most recent call last):
  File "<frozen runpy>", line 198, in _run_module_as_main
  File "harness/__main__.py", line 5, in <module>
SystemError: <function _find_and_load at 0x7ff76e76fce0> returned NULL without setting an exception
"""
_OURS = '  File "harness/records/run.py", line 70, in read\n'


@pytest.mark.parametrize(
    ("said", "is_python"),
    [
        (_FATAL + _FROZEN, True),
        (f"Error processing line 1 of it.pth:\n\n{_FATAL}{_FROZEN}", True),
        (f"Python path configuration:\n  PYTHONHOME = (not set)\n{_FATAL}{_FROZEN}", True),
        (_FROZEN, True),
        (_FROZEN.replace("MemoryError", "SystemError: error return without exception set"), True),
        (_BODY, True),
        (_BODY.replace("System", "    import signal\nSystem"), True),
        (_BODY.replace("System", "    sys.exit(main())\nSystem"), False),
        (_BODY.replace("System", '  File "harness/__main__.py", line 137, in main\nSystem'), False),
        (_FROZEN.replace("MemoryError", _OURS + "MemoryError"), False),
        (_FROZEN.replace("MemoryError", "ValueError"), False),
        (f"a word of the command\n{_FATAL}{_FROZEN}", False),
        (f"a word of the command\n{_FROZEN}", False),
    ],
)
def test_memory_that_ends_before_a_command_begins_is_no_traceback_of_it(said: str, is_python: bool) -> None:
    assert bool(surroundings.AT_IMPORT.search(said)) == is_python


@pytest.mark.parametrize("always", [False, True])
def test_what_breaks_a_promise_again_fails_and_what_holds_is_told(
    always: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tries: list[float] = []

    def breaks(fault: Fault) -> None:
        fault.what, fault.hit = "a wooden fault", True
        tries.append(fault.draw.random())
        if always or len(tries) == 1:
            fault.broken("record lost", "one")

    monkeypatch.setattr(of_faults, "LOGS", tmp_path)
    monkeypatch.setattr(of_faults, "SCENARIOS", [Scenario("wooden", breaks, 1)])
    monkeypatch.setattr(sys, "argv", ["faults", "--quick", "--seed", "7", "--count", "1", "--again", "2"])
    assert of_faults.main() == always
    # The same fault each time.
    assert len(set(tries)) == 1
    assert len(tries) == (2 if always else 3)
    said = capsys.readouterr().out
    assert ("fault 0 held in 2 further tries: ['record lost: one']" in said) != always
    assert ("once more: python -m tests.faults --seed 7 --number 0 --quick" in said) == always


def test_a_campaign_ends_where_a_command_of_its_process_takes_the_signal(tmp_path: Path) -> None:
    def interrupted(fault: Fault) -> None:
        with contextlib.suppress(KeyboardInterrupt), Interruption():
            os.kill(os.getpid(), signal.SIGTERM)

    former = {it: signal.getsignal(it) for it in campaign.SIGNALS}
    try:
        for number in campaign.SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        campaign.own_signals()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        assert campaign.run(1, 5, 60, tmp_path / "log", [Scenario("interrupted", interrupted, 1)]) == []
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def test_a_campaign_is_gone_on_with_and_its_faults_are_always_the_same(tmp_path: Path) -> None:
    drawn: list[float] = []

    def misses(fault: Fault) -> None:
        drawn.append(fault.draw.random())

    def hits(fault: Fault) -> None:
        drawn.append(fault.draw.random())
        fault.what, fault.hit = "planted", True

    scenarios = [Scenario("misses", misses, 1), Scenario("hits", hits, 3)]
    first = campaign.run(5, 10, 60, tmp_path / "log", scenarios)
    assert len(first) == len(drawn) == 10
    with (tmp_path / "log").open("a") as log:
        log.write('{"seed": 5, "num')
    with (tmp_path / "log").open("a") as log:
        log.write("\n")
    assert campaign.run(5, 12, 60, tmp_path / "log", scenarios)[:10] == first
    assert len(drawn) == 12, "what has run is not run again"
    campaign.run(5, 12, 60, tmp_path / "other", scenarios)
    assert drawn[12:] == drawn[:12]
    assert campaign.run(5, 12, 60, tmp_path / "half", scenarios, (1, 2))[0]["number"] == 1
    text = campaign.table(first, {"a reader": 1000}, [], "abc")
    hit = sum(it["kind"] == "hits" for it in first)
    assert f"| hits | {hit} | {hit} | 0 | 0 |" in text
    assert f"| **all** | 10 | {hit} | {10 - hit} |" in text
    assert "All promises held." in text
    assert "| a reader | 1,000 |" in text


def test_what_a_machine_cannot_try_is_no_fault_and_is_told(tmp_path: Path) -> None:
    def mounts(fault: Fault) -> None:
        fault.lacks = "this user may mount nothing here"

    found = campaign.run(1, 2, 60, tmp_path / "log", [Scenario("a small disk", mounts, 1)])
    told = "not tried: a small disk, 2 times: this user may mount nothing here"
    assert campaign.summary(found) == f"2 faults of 1 kinds, 0 hit, 0 with problems\n{told}"
    assert f"- {told}\n" in campaign.table(found, {}, [], "abc")


def test_a_commit_has_a_seed_of_its_own_and_each_of_its_faults_can_be_had_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def odd(fault: Fault) -> None:
        fault.what, fault.hit = f"{fault.draw.random()}", True
        if float(fault.what) > 0.7:
            fault.broken("orphan", "planted")

    kinds = [Scenario("odd", odd, 1), Scenario("slow", odd, 1, quick=False)]
    monkeypatch.setattr(of_faults, "SCENARIOS", kinds)
    monkeypatch.setattr(of_faults, "LOGS", tmp_path)
    monkeypatch.setattr(of_faults, "_commit", lambda: "0a1b2c3d4e5f")

    def called(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["faults", "--quick", *words])
        return of_faults.main(), capsys.readouterr().out

    status, told = called("--seed", "commit", "--count", "20")
    seed = int("0a1b2c3d4e5f", 16) % 10**9
    assert (status, told.splitlines()[0]) == (1, f"seed {seed}, of 1 kinds")
    (log,) = tmp_path.iterdir()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {it["kind"] for it in lines} == {"odd"}
    bad = next(it for it in lines if it["problems"])
    assert f"once more: python -m tests.faults --seed {seed} --number {bad['number']} --quick\n" in told
    status, told = called("--seed", str(seed), "--number", str(bad["number"]))
    assert (status, bad["what"] in told) == (1, True)
    assert len(log.read_text().splitlines()) == 20, "one alone is not kept"


def test_a_table_stands_above_those_whose_logs_are_gone_and_replaces_only_itself() -> None:
    def made(commit: str, *seeds: int) -> str:
        found = [{"kind": "k", "hit": True, "problems": [], "seed": it, "number": 1, "seconds": 1.0} for it in seeds]
        return campaign.table(found, {}, [], commit)

    first, second, third = made("one", 1), made("two", 2), made("three", 3)
    assert campaign.above(first, made("one more", 1, 11)) == made("one more", 1, 11)
    both = campaign.above(first, second)
    assert both.startswith(second.rstrip())
    assert campaign.above(both, second) == both
    assert campaign.above(both, made("two more", 2, 21)).startswith(made("two more", 2, 21).rstrip())
    all_three = campaign.above(both, third)
    told = [all_three.index(f"the table at commit {it}") for it in ("three", "two", "one")]
    assert told == sorted(told)
    assert (all_three.count(campaign.EARLIER), all_three.count("the table at commit")) == (1, 3)
    assert campaign.above(all_three, third) == all_three


def test_what_was_mended_and_tried_again_holds_and_is_told(tmp_path: Path) -> None:
    def breaks(fault: Fault) -> None:
        fault.broken("traceback", "Traceback\n  File x\nValueError: planted by /home/me/bin/python in ../x\n")

    kinds = [Scenario("kind", breaks, 1)]
    campaign.run(1, 1, 60, tmp_path / "log", kinds, commit="before")
    (line,) = campaign.read([tmp_path / "log"])
    with (tmp_path / "log").open("a") as log:
        log.write(json.dumps({**line, "problems": [], "commit": "after"}) + "\n")
    found = campaign.read([tmp_path / "log"])
    text = campaign.table(found, {}, [], "abc")
    assert "| kind | 1 | 0 | 1 | 0 | 0 | 0 | 0 | 0 | 0 | after |" in text
    assert "All promises held.\n\nOf those some did not at first; they were mended" in text
    assert "- kind, seed 1, fault 0 (), at commit before: traceback: ValueError: planted by .../python in ../x" in text


def test_what_does_not_hold_is_told(tmp_path: Path) -> None:
    def loses(fault: Fault) -> None:
        fault.what, fault.hit = "planted", True
        fault.broken("record lost", "unit 3")

    def breaks(fault: Fault) -> None:
        raise ZeroDivisionError("planted")

    found = campaign.run(1, 6, 60, tmp_path / "log", [Scenario("loses", loses, 1), Scenario("breaks", breaks, 1)])
    text = campaign.table(found, {}, [], "abc")
    assert "record lost: unit 3" in text
    assert "other: ZeroDivisionError: planted" in text
    assert "All promises held." not in text


@pytest.mark.models
def test_the_campaign_finds_an_orphan_and_a_lost_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A promise that cannot fail would be none."""
    fault = Fault(random.Random(1), tmp_path)
    session = sessions.Session(tmp_path, "--seconds", "5")
    assert session.wait_kept(0)
    while not session.victim("worker"):
        assert session.process.poll() is None
    session.process.send_signal(signal.SIGSTOP)
    session.output.write_text("kept 5\n", encoding="utf-8")
    monkeypatch.setattr(sessions, "kept", lambda _: {0: 99.0})
    sessions.orphans(fault, session)
    session.process.kill()
    session.process.wait()
    assert [it.split(":")[0] for it in fault.problems] == ["orphan"]
    sessions.values(fault, sessions.kept(tmp_path))
    assert fault.problems[-1] == "silent pass: wrong values were recorded: {0: 99.0}"
