"""Other work beside a block on a processor: seen, told in words and figures, and told from the session's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.contract.warden import descendants
from harness.machine import processor
from harness.machine.processor import ProcessorWatch, Times

SPIN = (
    "import os, time\nprint(os.getpid(), flush=True)\nend = time.monotonic() + 30\nwhile time.monotonic() < end: pass"
)


def watched(*readings: Times) -> ProcessorWatch:
    """Watch a block that starts at the first reading and ends at the last."""
    left = iter(readings)
    with ProcessorWatch(lambda: next(left), lambda: 0.0) as watch:
        pass
    return watch


SECONDS = st.floats(0.5, 1e4)


@given(SECONDS, st.floats(0, 64), st.floats(0, 1))
def test_what_is_busy_and_not_our_own_is_others(seconds: float, used: float, share: float) -> None:
    own = used * share
    watch = watched(Times(5, 100, 40), Times(5 + seconds, 100 + used * seconds, 40 + own * seconds))
    others = watch.state["other_cpus_in_use"]
    assert others == pytest.approx(used - own, abs=0.011)
    assert bool(watch.problems) == (used - own > processor.OTHERS * processor.processors()) or used - own == (
        pytest.approx(processor.OTHERS * processor.processors(), rel=1e-6)
    )


def test_clocks_that_are_counted_apart_give_no_negative_work() -> None:
    watch = watched(Times(0, 0, 0), Times(10, 9.9, 10))
    assert (watch.problems, watch.state) == ([], {"other_cpus_in_use": 0.0})


def test_of_a_block_that_is_over_at_once_nothing_is_said() -> None:
    watch = watched(Times(0, 0, 0), Times(0.1, 5, 0))
    assert (watch.problems, watch.state) == ([], {})


def test_where_nothing_can_be_read_nothing_is_said() -> None:
    def unreadable() -> Times:
        raise PermissionError

    with ProcessorWatch(unreadable, lambda: 0.0) as watch:
        pass
    assert (watch.problems, watch.state) == ([], {})


@pytest.mark.parametrize(
    ("busy", "problems"),
    [(1.0, ["throttled: the processors' clock fell to 1,200 of 3,000 MHz"]), (0.0, [])],
)
def test_a_clock_that_falls_under_load_is_told_and_an_idle_ones_is_not(
    monkeypatch: pytest.MonkeyPatch, busy: float, problems: list[str]
) -> None:
    monkeypatch.setattr(ProcessorWatch, "INTERVAL", 0.001)
    clocks = iter([3000.0, 2900.0, 1200.0])
    ticks = iter(range(10**6))

    def read() -> Times:
        now = next(ticks)
        return Times(now, busy * now, busy * now)

    with ProcessorWatch(read, lambda: next(clocks, 3000.0)) as watch:
        end = time.monotonic() + 10
        while busy and len(watch._clocks) < 4 and time.monotonic() < end:
            time.sleep(0.001)
        if not busy:
            time.sleep(0.05)
    assert watch.problems == problems
    assert watch.state.get("cpu_mhz_lowest") == (1200 if busy else None)


def test_a_containers_quota_that_ran_out_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = tmp_path / "cpu.stat"
    monkeypatch.setattr(processor, "_CGROUP", told)
    monkeypatch.setattr(processor, "_THERMAL", tmp_path)
    counter = tmp_path / "cpu0" / "thermal_throttle" / "core_throttle_count"
    counter.parent.mkdir(parents=True)
    for quota, heat, wanted in (
        (9, 2, []),
        (12, 3, ["the processor time that this container may", "thermal slowdown"]),
    ):
        told.write_text("usage_usec 1\nnr_throttled 9\n")
        counter.write_text("2\n")
        with ProcessorWatch(lambda: Times(0, 0, 0), lambda: 0.0) as watch:
            told.write_text(f"usage_usec 1\nnr_throttled {quota}\n")
            counter.write_text(f"{heat}\n")
        assert len(watch.problems) == len(wanted)
        for problem, words in zip(watch.problems, wanted, strict=True):
            assert problem.startswith(f"throttled: {words}")


@pytest.fixture
def stranger() -> Iterator[int]:
    """A busy process that is no descendant of this one: its parent has ended."""
    reader, writer = os.pipe()
    command = ["bash", "-c", f"{sys.executable} -c '{SPIN}' >&{writer} </dev/null &"]
    subprocess.run(command, pass_fds=[writer], start_new_session=True, check=True, timeout=20)
    os.close(writer)
    with os.fdopen(reader) as file:
        pid = int(file.readline())
    yield pid
    os.kill(pid, signal.SIGKILL)


@pytest.mark.programs
def test_real_work_of_others_is_seen(stranger: int) -> None:
    assert stranger not in descendants(os.getpid())
    with ProcessorWatch() as watch:
        time.sleep(1.0)
    assert watch.problems
    assert watch.problems[-1].startswith("shared: other processes used ")
    assert float(watch.state["other_cpus_in_use"]) > 0.2


def test_a_childs_work_is_our_own_and_stays_it_when_it_has_ended() -> None:
    before = processor.times()
    with subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.DEVNULL) as child:
        between, end = before, time.monotonic() + 20
        while between.own - before.own < 0.2 and time.monotonic() < end:
            time.sleep(0.1)
            between = processor.times()
        child.kill()
    after = processor.times()
    assert between.own - before.own >= 0.2
    assert after.own >= between.own - 0.05
