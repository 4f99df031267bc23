"""A night is held against those before it: the machine's part is taken out, and alarms are rare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import __main__ as command_line
from harness.judge.nights import FEWEST, WINDOW, Figure, level, look, machine
from harness.records.run import Run
from harness.records.schema import Cell, Device, Measurement, ModelIdentity, RecipeIdentity
from tests.laws import examples
from tests.simulation.nights import METRICS, figures, noisy, year

NIGHTS = 40


def drawn(seed: int = 0, nights: int = NIGHTS, **noise: float) -> np.ndarray:
    return noisy(**({"own": 0.01} | noise))(np.random.default_rng(seed), nights)


def alarmed(logs: np.ndarray) -> set[str]:
    return {it.figure.label for it in look(figures(logs)) if it.alarm}


def test_a_step_of_one_metric_is_found_and_named_with_its_first_night() -> None:
    logs = drawn()
    logs[20, -3:] += np.log1p(0.05)
    (found,) = (it for it in look(figures(logs)) if it.alarm)
    assert found.figure.label == "m20"
    assert found.nights == 3
    assert np.expm1(found.shift) == pytest.approx(0.05, abs=0.02)
    assert found.adjusted


def test_what_the_whole_machine_does_is_no_alarm_and_is_told() -> None:
    logs = drawn()
    logs[:, -1] += np.log1p(0.2)
    assert alarmed(logs) == set()
    assert machine(figures(logs)) == pytest.approx(np.log1p(0.2), abs=0.02)
    logs[30, -1] += np.log1p(0.1)
    assert alarmed(logs) == {"m30"}


def test_rates_are_worse_where_they_fall() -> None:
    logs = drawn()
    logs[20, -4:] -= np.log1p(0.1)
    falling = [Figure(it.label, "higher", it.margin, it.control, it.logs) for it in figures(logs)]
    assert {it.figure.label for it in look(falling) if it.alarm} == {"m20"}
    assert alarmed(logs) == set(), "as times they got better"


@given(st.integers(0, 50), st.floats(-3, 3), st.integers(0, METRICS - 1))
@examples(25)
def test_findings_do_not_hang_on_the_unit(seed: int, unit: float, metric: int) -> None:
    logs = drawn(seed)
    scaled = logs.copy()
    scaled[metric] += unit
    for one, other in zip(look(figures(logs)), look(figures(scaled)), strict=True):
        assert one.shift == pytest.approx(other.shift, abs=1e-9)
        assert one.p == pytest.approx(other.p, rel=1e-5, abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, METRICS - 1), st.integers(0, NIGHTS - 2)), max_size=400))
@examples(25)
def test_nights_that_were_missed_make_no_alarm(missed: list[tuple[int, int]]) -> None:
    logs = drawn()
    for metric, night in missed:
        logs[metric, night] = np.nan
    assert alarmed(logs) == set()


def test_too_few_nights_are_not_judged() -> None:
    assert look(figures(drawn(nights=FEWEST + WINDOW - 1))) == []
    assert len(look(figures(drawn(nights=FEWEST + WINDOW)))) == METRICS


def test_without_controls_nothing_is_taken_out() -> None:
    alone = [Figure(it.label, "lower", 0.05, False, it.logs) for it in figures(drawn())]
    assert machine(alone) is None
    assert not any(it.adjusted for it in look(alone))


def test_more_figures_are_judged_more_strictly() -> None:
    assert level(1.0, 100) == pytest.approx(level(1.0, 50) / 2)
    assert level(4.0, 50) == pytest.approx(4 * level(1.0, 50))


def test_a_short_year_on_a_shared_machine_has_no_alarm_and_its_steps_are_found() -> None:
    found = year(noisy(0.0134, 0.0268), np.random.default_rng(0), nights=60, steps=4)
    assert found.alarms == 0
    assert found.found >= found.steps - 1


# ----------------------------------------------------------------------------------------------------- stored runs


def store(root: Path, nights: int, slower: float = 1.0, runs: int = 1) -> None:
    """Nights of stored runs of bf16, the control, and a recipe that is ``slower`` on the last three."""
    model = ModelIdentity(name="small", source="hub:owner/small", revision="abc", weights="pretrained")
    bf16 = RecipeIdentity(name="bf16", hash="00", config={}, baseline=True)
    int8wo = RecipeIdentity(name="int8wo", hash="01", config={})
    logs = np.random.default_rng(1).normal(0, 0.01, (nights, runs, 3)) + np.random.default_rng(2).normal(
        0, 0.03, (nights, 1, 1)
    )
    for night in range(nights):
        for number in range(runs):
            run = Run(root / "runs" / f"2026-{night:03d}-{number}")
            factor = slower if night >= nights - 3 else 1.0
            told = (("latency", bf16, 1.0, 1), ("latency", bf16, 1.0, 16), ("latency", int8wo, factor, 1))
            for (metric, recipe, by, batch), log in zip(told, logs[night, number], strict=True):
                run.append(
                    Measurement(
                        time=1.8e9 + 86400 * night + 60 * number,
                        metric=metric,
                        unit="s",
                        direction="lower",
                        definition=1,
                        parameters={"batch_size": batch},
                        value=float(by * np.exp(log)),
                        cell=Cell(model=model, recipe=recipe, hardware="cpu", server="vllm"),
                        packages={"torch": "2.13.0"},
                        device=Device(name="a processor"),
                    )
                )


def test_the_command_names_what_got_worse_since_when(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path, 40, slower=1.1, runs=2)
    assert command_line.main(["nights", "--results", str(tmp_path)]) == 1
    first, device, step = capsys.readouterr().out.splitlines()[:3]
    assert first.startswith("worse: latency (batch_size=1) of small/int8wo/vllm on cpu: ")
    assert " since 2027-02-21, beyond what the controls did; p " in first
    assert device.startswith("cpu (a processor), night of 2027-02-23: 1 of 3 figures got worse; the controls")
    assert step.startswith("  a step is found within 5 nights (9 of 10) from ")


def test_an_unchanged_machine_and_too_few_nights_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path / "quiet", 30)
    assert command_line.main(["nights", "--results", str(tmp_path / "quiet")]) == 0
    assert "0 of 3 figures got worse" in capsys.readouterr().out
    store(tmp_path / "short", 8)
    assert command_line.main(["nights", "--results", str(tmp_path / "short")]) == 3
    assert "8 nights were measured, and 10 before the last 5 are needed" in capsys.readouterr().out
    assert command_line.main(["nights", "--results", str(tmp_path / "none")]) == 2
    assert command_line.main(["nights", "--results", str(tmp_path / "quiet"), "--alarms", "-1"]) == 2
    assert "--alarms -1.0" in capsys.readouterr().err
