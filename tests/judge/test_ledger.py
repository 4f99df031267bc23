"""The ledger: after any lines, in any order, it says what judging them all from scratch says, and judges no more."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.judge import ledger as ledgers
from harness.judge.family import control
from harness.judge.gatefile import VERDICT, exit_status
from harness.judge.ledger import Ledger
from harness.judge.rules import RULES, Margins
from harness.judge.series import SIDES, Series, series
from harness.judge.verdict import Verdict, combined, judge
from harness.records.metrics import METRICS
from harness.records.schema import Cell, Device, Line, Measurement, ModelIdentity, RecipeIdentity
from tests.laws import examples
from tests.records.test_records import STEPS

MARGINS = Margins()
MODEL = ModelIdentity(name="m", source="folder:m", revision="1", weights="pretrained")
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("latency", {"batch_size": 1}),
    ("latency", {"batch_size": 8}),
    ("engine_start", {"kind": "engine"}),
    ("engine_start", {"kind": "client"}),
    ("compile_time", {"kind": "engine"}),
    ("peak_memory", {}),
    ("perplexity", {}),
    ("chat_tokens", {}),
    ("accuracy", {"task": "a", "task_metric": "acc", "documents": 3}),
    ("accuracy", {"task": "a", "task_metric": "acc_norm", "documents": 3}),
    ("accuracy", {"task": "b", "task_metric": "acc", "documents": 4}),
]


def record(kind: tuple[str, dict[str, Any]], value: float, recipe: str = "r", **flags: Any) -> Measurement:
    metric, parameters = kind
    known = METRICS[metric]
    return Measurement(
        metric=metric,
        unit=known.unit,
        direction=known.direction,
        definition=known.version,
        parameters=parameters,
        value=value,
        samples=[value] if metric == "peak_memory" else [value, value + 0.5, 1.0],
        discarded="throttled" if flags.pop("void", False) else "",
        cell=Cell(model=MODEL, recipe=RecipeIdentity(name=recipe, hash="0", config={}), hardware="cpu", server="vllm"),
        packages={},
        device=Device(name="d"),
        flags=flags,
    )


RECORDS = st.builds(
    record,
    st.sampled_from(KINDS),
    st.sampled_from([0.0, 0.5, 1.0, 1.01, 2.0]),
    recipe=st.sampled_from(["r", "s"]),
    side=st.sampled_from([*SIDES, "neither"]),
    block=st.integers(0, 3),
    attempt=st.integers(0, 1),
    void=st.sampled_from([False, False, False, True]),
)
LINES = st.lists(st.one_of(RECORDS, RECORDS, RECORDS, st.sampled_from(STEPS)), max_size=24)


def scratch(lines: list[Line], metrics: frozenset[str]) -> tuple[list[Series], list[Verdict], list[Verdict]]:
    """Return what the whole of the lines say, read at once: series, verdicts, and these with their family held."""
    found = series(lines, interleaved=True)
    told = [
        judge(one, MARGINS)
        for one in found
        if one.metric in metrics and one.old and (one.metric != "compile_time" or any(one.old + one.new))
    ]
    together = [judge(one, MARGINS) for one in combined(found)] if "accuracy" in metrics else []
    return found, told, control(told + together)


def text(verdicts: list[Verdict]) -> list[str]:
    return [json.dumps(VERDICT.dump_python(verdict)) for verdict in verdicts]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@examples(60)
@given(LINES, st.sets(st.integers(0, 24)), st.sampled_from([frozenset(RULES), frozenset({"latency", "compile_time"})]))
def test_after_every_line_it_says_what_judging_all_of_them_says(
    lines: list[Line], asked_after: set[int], metrics: frozenset[str]
) -> None:
    ledger = Ledger(MARGINS, metrics, interleaved=True)
    for number, line in enumerate(lines, 1):
        ledger.add(line)
        if number in asked_after or number == len(lines):
            found, told, controlled = scratch(lines[:number], metrics)
            assert ledger.series() == found
            assert text(ledger.judged()) == text(told)
            assert text(ledger.controlled()) == text(controlled)


def test_only_what_a_line_changed_is_judged_again(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[Series] = []

    def counting(one: Series, margins: Margins) -> Verdict:
        judged.append(one)
        return judge(one, margins)

    monkeypatch.setattr(ledgers, "judge", counting)
    ledger = Ledger(MARGINS, RULES, interleaved=True)
    for block in range(40):
        for recipe in ("r", "s"):
            for kind in (KINDS[0], KINDS[5], KINDS[8], KINDS[10]):
                for side in SIDES:
                    ledger.add(record(kind, 1.0, recipe, side=side, block=block, attempt=0))
            judged.clear()
            for _ in range(3):
                ledger.judged()
                ledger.controlled()
            changed = {(one.place.recipe, one.metric, str(one.place.parameters)) for one in judged}
            assert {recipe for recipe, _, _ in changed} == {recipe}
            assert len(judged) == len(changed) == 5, "two metrics, two tasks, and the mean over those"


def served(slow: float, kept: float = 0.0, blocks: int = 8, seed: int = 1) -> list[Verdict]:
    """Return what a gate says of a server whose slowest 3 % of requests wait ``slow`` times longer for their start."""
    rng = np.random.default_rng(seed)
    ledger = Ledger(MARGINS, frozenset(RULES), interleaved=True, kept=kept)
    about = {"num_prompts": 100, "dataset": "ShareGPT"}
    for block in range(blocks):
        for side in SIDES:
            late = slow if side == "new" else 1.0
            times = np.exp(rng.normal(3, 0.05, 500))
            times[rng.random(500) < 0.03] *= 2 * late
            for metric, samples in (("ttft", times), ("tpot", np.exp(rng.normal(1, 0.02, 500)))):
                line = record((metric, about), float(np.median(samples)), side=side, block=block, attempt=0)
                ledger.add(line.model_copy(update={"samples": samples.tolist()}))
            rates = [10 * float(it) for it in np.exp(rng.normal(0, 0.01, 3))]
            line = record(("request_throughput", about), rates[1], side=side, block=block, attempt=0)
            ledger.add(line.model_copy(update={"samples": rates}))
    return ledger.controlled()


@pytest.mark.parametrize("kept", [0.0, 0.3])
def test_a_tail_of_time_to_first_token_fails_a_gate_whose_throughput_is_as_it_was(kept: float) -> None:
    found = {it.metric: it for it in served(1.55, kept)}
    assert (found["request_throughput"].verdict, found["tpot"].verdict) == ("pass", "pass")
    first = found["ttft"]
    assert (first.verdict, first.primary, first.reason) == ("regressed", True, "tail-beyond-margin")
    assert "p99" in first.detail
    assert exit_status(found.values()) == 1


@pytest.mark.parametrize(("slow", "blocks"), [(1.0, 8), (1.55, 3)])
def test_a_tail_as_it_was_and_one_of_few_blocks_fail_none(slow: float, blocks: int) -> None:
    found = {it.metric: it for it in served(slow, blocks=blocks)}
    assert not found["ttft"].primary
    assert not found["tpot"].primary
    assert "regressed" not in {it.verdict for it in found.values() if it.primary}
