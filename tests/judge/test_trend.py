"""The trend over stored runs: levels and drifts are found where they are, noise is not, and packages are named."""

from __future__ import annotations

import itertools
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import __main__ as command_line
from harness.base.errors import SampleError, TooFewSamples
from harness.judge import stats, trend
from harness.records.run import Run
from harness.records.schema import Cell, Device, Measurement, ModelIdentity, RecipeIdentity

VALUES = st.lists(st.floats(0.1, 10), min_size=trend.MINIMUM_RUNS, max_size=30)


def noise(count: int, seed: int = 0, sd: float = 0.03) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).normal(0, sd, count))


@given(VALUES, st.floats(0.1, 10))
def test_a_series_has_no_unit(values: list[float], unit: float) -> None:
    found = trend.change_points(values)
    scaled = trend.change_points([value * unit for value in values])
    assert [change.index for change in scaled] == [change.index for change in found]


@given(VALUES)
def test_levels_lie_apart_and_hold_enough_runs(values: list[float]) -> None:
    edges = [0, *(change.index for change in trend.change_points(values)), len(values)]
    assert all(after - before >= trend.LEVEL for before, after in itertools.pairwise(edges))
    assert all(abs(math.log(found.after / found.before)) > 0.0099 for found in trend.change_points(values))


@pytest.mark.parametrize("at", [6, 15, 25])
@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_a_step_is_found_where_it_is(at: int, factor: float) -> None:
    values = noise(30) * np.where(np.arange(30) >= at, factor, 1.0)
    times = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day) for day in range(30)]
    (found,) = trend.change_points(values.tolist(), times)
    assert abs(found.index - at) <= 1
    assert found.after / found.before == pytest.approx(factor, abs=0.05)
    assert found.time == times[found.index]
    assert trend.slow_drift(values.tolist(), times) is None


def test_two_steps_are_two_change_points() -> None:
    values = noise(36) * np.repeat([1.0, 1.2, 0.9], 12)
    assert [found.index for found in trend.change_points(values.tolist())] == [12, 24]


def test_a_figure_that_always_repeats_may_step_and_never_drifts() -> None:
    assert trend.change_points([5.0] * 12) == []
    (found,) = trend.change_points([5.0] * 6 + [6.0] * 6)
    assert (found.index, found.before, found.after) == (6, 5.0, 6.0)
    assert trend.slow_drift([5.0] * 12) is None


def test_values_that_may_be_zero_are_looked_at_as_they_are() -> None:
    (found,) = trend.change_points([0.0] * 8 + [0.1] * 8)
    assert found.index == 8


def test_a_slow_drift_is_told_from_a_step() -> None:
    values = noise(40, sd=0.01) * np.exp(np.linspace(0, 0.05, 40))
    found = trend.slow_drift(values.tolist())
    assert found is not None
    assert found.last / found.first == pytest.approx(1.05, abs=0.02)


@pytest.mark.programs
def test_noise_alone_is_rarely_called_a_change() -> None:
    called = sum(
        bool(trend.change_points(noise(30, seed).tolist()) or trend.slow_drift(noise(30, seed).tolist()))
        for seed in range(400)
    )
    assert stats.proportion(called, 400).high < 0.05


def kept(count: int, share: float, seed: int, sd: float = 0.03) -> np.ndarray:
    """Noise of which each night keeps a share of the last one's."""
    fresh = np.random.default_rng(seed).normal(0, sd, count) * math.sqrt(1 - share**2)
    fresh[0] /= math.sqrt(1 - share**2)
    return np.exp(np.array(list(itertools.accumulate(fresh, lambda last, new: share * last + new))))


@pytest.mark.parametrize("share", [0.3, 0.6])
@pytest.mark.programs
def test_noise_that_lasts_for_nights_is_no_level_in_a_year_of_fifty_metrics(share: float) -> None:
    years = [trend.change_points(kept(365, share, seed).tolist()) for seed in range(50)]
    assert sum(len(found) for found in years) <= 1
    step = np.where(np.arange(365) >= 180, 1.1, 1.0)
    found = [trend.change_points((kept(365, share, seed) * step).tolist()) for seed in range(20)]
    assert sum(any(abs(change.index - 180) <= 5 for change in one) for one in found) >= 18


def test_too_few_runs_and_what_is_not_a_number_are_refused() -> None:
    with pytest.raises(TooFewSamples, match="needs at least 10 runs and got 9"):
        trend.change_points([1.0] * 9)
    with pytest.raises(SampleError, match="value 3 of the series is nan"):
        trend.change_points([1.0] * 3 + [math.nan] + [1.0] * 8)


# ----------------------------------------------------------------------------------------------------- stored runs


def store(root: Path, values: list[float], versions: list[str], metric: str = "latency") -> None:
    """A stored run for each value."""
    model = ModelIdentity(name="small", source="hub:owner/small", revision="abc", weights="pretrained")
    cell = Cell(model=model, recipe=RecipeIdentity(name="int8wo", hash="01", config={}), hardware="cpu", server="vllm")
    for number, (value, version) in enumerate(zip(values, versions, strict=True)):
        run = Run(root / "runs" / f"2026-{number:02d}")
        for figure, discarded in ((100 * value, "throttled"), (value, "")):
            run.append(
                Measurement(
                    time=1.8e9 + 86400 * number,
                    metric=metric,
                    unit="s",
                    direction="lower",
                    definition=1,
                    parameters={"batch_size": 1},
                    value=figure,
                    cell=cell,
                    packages={"torch": "2.13.0", "torchao": version},
                    device=Device(name="a processor"),
                    discarded=discarded,
                )
            )


def test_the_command_names_the_run_and_the_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path, (noise(20) * np.repeat([1.0, 1.2], 10)).tolist(), ["0.17.0"] * 10 + ["0.18.0"] * 10)
    assert command_line.main(["trend", "--results", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "latency (batch_size=1) of small/int8wo/vllm on cpu"
    assert lines[1].startswith("  change at 2026-10: worse, +")
    assert lines[1].endswith("; at the same time torchao 0.17.0 -> 0.18.0")
    assert lines[2] == "0 of 1 figures show no change point and no drift over 20 runs"


def test_the_command_says_what_it_could_not_look_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path, [1.0] * 3, ["0.18.0"] * 3)
    assert command_line.main(["trend", "--results", str(tmp_path)]) == 0
    assert "1 were not looked at: a trend needs 10 runs, they have 3 at most" in capsys.readouterr().out
    assert command_line.main(["trend", "--results", str(tmp_path), "--metric", "ttft"]) == 2
    assert "3 runs under" in capsys.readouterr().err
    assert command_line.main(["trend", "--results", str(tmp_path / "none")]) == 2
