"""What is measured once while a machine runs: the next run that asks finds it, tables say so, and it is never stale."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.judge.baseline import BaselineError, collect
from harness.judge.trend import series
from harness.machine import probe
from harness.matrix.plan import Cell, Matrix
from harness.measure import kept as kept_module
from harness.measure import undisturbed as undisturbed_module
from harness.measure.kept import Kept
from harness.measure.limits import Limits
from harness.measure.measure import Measure
from harness.measure.recorder import Recorder
from harness.records.published import Documented
from harness.records.run import Run
from harness.records.schema import Measurement
from harness.report import pytorch_v3, tables
from harness.runtime.environment import Environment
from harness.runtime.store import MANIFEST, Store
from tests.measure.test_measure import StubFlow

NOW = 1.8e9


@pytest.fixture
def quantized(suites_matrix: Matrix) -> Cell:
    """A quantized model through Transformers on a processor."""
    (found,) = (it for it in suites_matrix.cells() if (it.recipe.name, it.hardware.name) == ("int8wo", "cpu"))
    return replace(found, server="transformers")


Peak = Callable[..., Measurement]


class Session:
    """Sessions over one store: each measures peak memory, of which its machine would give ``peak_bytes``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / "cache")
        self.environment = Environment()
        self.asked = 0

    def flow(self, name: str, peak_bytes: float = 6e9) -> tuple[StubFlow, Run]:
        flow, run = StubFlow(1.0, peak_bytes=peak_bytes), Run(self.folder / name)
        flow.kept = Kept(self.store, run, self.environment)
        return flow, run

    def peak(self, name: str, cell: Cell, peak_bytes: float = 6e9, **tags: Any) -> tuple[Measurement, Run]:
        flow, run = self.flow(name, peak_bytes)
        return Measure(Recorder(flow, run, tags)).peak_memory(cell), run  # type: ignore[arg-type]


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setattr(probe, "boot", lambda: "this start")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    return Session(tmp_path)


def test_the_next_run_has_what_the_first_measured_and_says_which_that_was(session: Session, quantized: Cell) -> None:
    first, before = session.peak("first", quantized)
    assert (first.value, first.kept_from, first.kept_time, first.own) == (6.0, "", None, True)
    found, run = session.peak("second", quantized, peak_bytes=7e9)
    assert (found.value, found.samples, found.statistics) == (6.0, first.samples, first.statistics)
    assert (found.kept_from, found.kept_time, found.own) == ("first", first.time, False)
    assert found.time > first.time, "when it was written down here"
    of = {it.metric: it for it in run.lines() if isinstance(it, Measurement)}
    assert of["peak_memory"] == found
    start = of["engine_start"]
    assert (start.value, start.kept_from, start.kept_time) == (1.0, "first", first.time)
    assert {it.metric for it in before.lines() if isinstance(it, Measurement)} == of.keys()


@pytest.mark.parametrize(
    "change", ["start", "packages", "code", "variables", "recipe", "tokens", "model", "damage", "another harness"]
)
def test_whatever_may_change_it_has_it_measured_anew(
    session: Session, quantized: Cell, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.peak("first", quantized)
    if change == "start":
        monkeypatch.setattr(probe, "boot", lambda: "the next start")
    if change == "packages":
        monkeypatch.setattr(Environment, "decisive", lambda *_: {"torch": "9.9"})
    if change == "code":
        monkeypatch.setattr(kept_module, "_code", lambda: "other code")
    if change == "variables":
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if change == "recipe":
        quantized = replace(quantized, recipe=quantized.recipe.model_copy(update={"arguments": {"group_size": 32}}))
    if change == "tokens":
        memory = quantized.measurements.memory.model_copy(update={"max_new_tokens": 3})
        quantized = replace(quantized, measurements=quantized.measurements.model_copy(update={"memory": memory}))
    if change == "model":
        quantized = replace(quantized, model=quantized.model.model_copy(update={"name": "another"}))
    if change in ("damage", "another harness"):
        for path in (session.folder / "cache" / "figures").glob(f"*/{MANIFEST}"):
            manifest = json.loads(path.read_text(encoding="utf-8"))
            manifest["facts"] = {"run": "first"}
            if change == "another harness":
                del manifest["digest"]
            path.write_text(json.dumps(manifest), encoding="utf-8")
    found, _ = session.peak("second", quantized, peak_bytes=7e9)
    assert (found.value, found.kept_from) == (7.0, "")


def test_where_files_lie_and_how_a_terminal_looks_changes_nothing(
    session: Session, quantized: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.peak("first", quantized)
    monkeypatch.setenv("TMPDIR", "/elsewhere")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    assert session.peak("second", quantized, peak_bytes=7e9)[0].kept_from == "first"


def test_nothing_is_kept_of_a_gate_nor_on_a_gpu_nor_of_what_a_text_calibrated(
    session: Session, quantized: Cell, suites_matrix: Matrix
) -> None:
    session.peak("first", quantized)
    assert session.peak("second", quantized, peak_bytes=7e9, side="new", block=1)[0].value == 7.0
    kept = Kept(session.store, Run(session.folder / "third"), session.environment)
    assert kept.place(quantized, {}) is not None
    gpu = next(it for it in suites_matrix.cells() if it.hardware.is_gpu)
    assert kept.place(gpu, {}) is None
    calibrated = suites_matrix.cells(["SmolLM2-135M-Instruct"], ["awq-int4wo-opaque-g32"], {"cpu": ["transformers"]})
    assert [kept.place(it, {}) for it in calibrated if it.recipe.calibration] != []
    assert all(kept.place(it, {}) is None for it in calibrated if it.recipe.calibration)


def test_nothing_is_kept_where_a_system_does_not_name_its_start(
    session: Session, quantized: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "boot", lambda: "")
    session.peak("first", quantized)
    assert session.peak("second", quantized, peak_bytes=7e9)[0].value == 7.0
    assert not (session.folder / "cache" / "figures").exists()


class LimitedFlow(StubFlow):
    """Stands in for a flow whose device copies and multiplies as fast as it is told."""

    bandwidth = 2e9

    def once(self, backend: str, *_: Any, **__: Any) -> dict[str, Any]:
        assert backend == "limits"
        self.asked += 1
        return {"bandwidth": self.bandwidth, "rates": {"bfloat16": 4e12, "int8": 5e12}}


@pytest.mark.parametrize("quiet", [True, False])
def test_the_devices_limits_are_kept_of_a_quiet_machine_alone(
    session: Session, quantized: Cell, quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watch(undisturbed_module.ProcessorWatch):
        @property
        def problems(self) -> list[str]:
            return [] if quiet else ["shared: other processes used half of the processors' time"]

    monkeypatch.setattr(undisturbed_module, "ProcessorWatch", Watch)
    found = []
    for name in ("first", "second"):
        flow, run = LimitedFlow(1.0), Run(session.folder / name)
        flow.kept = Kept(session.store, run, session.environment)
        ceiling = Limits(Recorder(flow, run))._ceiling(quantized)  # type: ignore[arg-type]
        assert (ceiling.bandwidth, ceiling.rate) == (2e9, 4e12)
        rows = {it.metric: it.kept_from for it in run.lines() if isinstance(it, Measurement)}
        found.append((flow.asked, rows))
    assert found[0] == (1, {"copy_bandwidth": "", "matrix_rate": ""})
    assert found[1] == ((0, dict.fromkeys(rows, "first")) if quiet else (1, dict.fromkeys(rows, "")))


def test_what_a_run_took_from_another_is_no_night_no_part_of_a_baseline_and_no_line_of_the_benchmark_database(
    session: Session, quantized: Cell
) -> None:
    found = [session.peak(name, quantized) for name in ("1", "2", "3")]
    runs = [run for _, run in found]
    (trend,) = series(runs, ["peak_memory"])
    assert [name for name, _ in trend.rows] == ["1"]
    with pytest.raises(BaselineError, match="no hardware was measured in 3 of the runs"):
        collect(runs)
    assert [bool(pytorch_v3.records([it], Documented.load(), {})) for it, _ in found] == [True, False, False]


@pytest.mark.programs
@pytest.mark.parametrize("judging", ["--against=cpu", "--on=local"])
def test_what_is_about_now_refuses_to_reuse(repository: Path, judging: str) -> None:
    command = [sys.executable, "-m", "pytest", "suites", "-m", "cpu", "--reuse", judging, "--co", "-q"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 4
    assert f"--reuse is not for {judging.partition('=')[0]}, which is about what is measured now" in done.stderr


def test_tables_mark_what_an_earlier_run_measured_and_say_how_long_ago(session: Session, quantized: Cell) -> None:
    session.peak("first", quantized)
    found, _ = session.peak("second", quantized)
    later = found.model_copy(update={"time": NOW + 7500, "kept_time": NOW})
    (table, *_) = tables.published_tables([later], Documented.load())
    assert any("6.00 ‡" in value for row in table.rows for value in row), table.rows
    (note,) = (it for it in table.notes if it.startswith("‡"))
    assert note.endswith("in run first (2027-01-15 08:00 UTC, 2 h 05 min before)")
    assert {entry.kept_from for entry in table.entries} == {"first"}
