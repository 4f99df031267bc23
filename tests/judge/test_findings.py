"""Verdicts of one cause are one finding, whatever verdicts there are; and what a gate says of them in words."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.terminal import width
from harness.judge import gatefile
from harness.judge.findings import Finding, findings, outcome
from harness.judge.gatefile import Difference, GateFile
from harness.judge.meaning import topic, worse
from harness.judge.rules import EVENTS, LAYERS, RULES, Margins
from harness.judge.series import Series
from harness.judge.verdict import Verdict, event, judge
from harness.records.place import Place
from harness.report import gate_report, gate_words, junit

GATES = Path(__file__).resolve().parents[2] / "results" / "gates"
RECIPES = ("bf16", "int8wo", "int8dq", "8da4w")
NOISE = (1.0, 1.01, 0.99, 1.005, 0.995, 1.008, 0.992, 1.0)


def place(metric: str, recipe: str = "int8wo", server: str = "vllm", **parameters: Any) -> Place:
    return Place(model="m", recipe=recipe, hardware="cpu", server=server).at(metric, parameters)


def slower(recipe: str = "int8wo", size: int = 1, factor: float = 1.3) -> Verdict:
    values = {"old": list(NOISE), "new": [factor * noise for noise in NOISE[::-1]]}
    return judge(Series(place("latency", recipe, batch_size=size), values, True), Margins())


def failed(recipe: str, words: str = "ValueError: no kernel for it") -> Verdict:
    about = Series(place("works: serve", recipe))
    return event(about, "regressed", "stopped-working", f"new: serve m-{recipe}-cpu-vllm: {words}")


def gate(*verdicts: Verdict, **more: Any) -> GateFile:
    given: dict[str, Any] = {
        "finished": True,
        "package": "torchao",
        "old": "torchao==0.17.0",
        "new": "torchao==0.18.0",
        "hardware": "cpu",
        "created": "2026-01-01",
        "seconds": 1.0,
        "verdicts": sorted(verdicts, key=lambda it: it.severity),
        "exit_status": gatefile.exit_status(verdicts),
        **more,
    }
    return GateFile(**given)


def changed(recipe: str, new: str = "gemm_b") -> Difference:
    return Difference(Place(model="m", recipe=recipe, hardware="cpu"), "kernels", "gemm_a", new)


@st.composite
def any_verdict(draw: st.DrawFn) -> Verdict:
    metric = draw(st.sampled_from([*RULES, *EVENTS]))
    sizes = {"batch_size": draw(st.sampled_from([1, 8]))} if metric == "latency" else {}
    about = place(metric, draw(st.sampled_from(RECIPES)), draw(st.sampled_from(["vllm", "transformers", ""])), **sizes)
    made = event(
        Series(about),
        draw(st.sampled_from(["pass", "regressed", "error", "inconclusive"])),
        draw(st.sampled_from(["stopped-working", "too-noisy", "fails-both"])),
        draw(st.sampled_from(["", "new: ValueError: a", "old: x: TypeError: 7", "8da4w: y"])),
    )
    accepted, ratio = draw(st.sampled_from(["", "", "known"])), draw(st.sampled_from([None, 0.5, 1.3]))
    return replace(made, primary=draw(st.booleans()), accepted=accepted, ratio=ratio)


VERDICTS = st.lists(any_verdict(), max_size=25)
CHANGES = st.lists(st.builds(changed, st.sampled_from(RECIPES), st.sampled_from(["gemm_b", "gemm_c"])), max_size=4)


def shared(found: Finding, changes: list[Difference], every: list[Verdict]) -> set[object]:
    """Return what the members are said to have in common, looked up anew: one value if they do."""
    of = [it.place for it in found.members]
    kind = found.cause.kind
    if kind == "figure":
        return {(it.metric, it.parameters, it.server) for it in of}
    if kind == "size":
        return {it.parameters[found.cause.words.partition("=")[0]] for it in of}
    if kind == "stage":
        return {(it.server, it.stage, topic(it.metric)) for it in of}
    if kind == "recipe":
        return {(it.model, it.recipe, topic(it.metric)) for it in of}
    if kind == "layers":
        assert any(it.metric == LAYERS and it.place.recipe == of[0].recipe for it in every)
        return {(it.model, it.recipe) for it in of}
    if kind == "kernels":
        last = {it.place.recipe: (it.old, it.new) for it in changes}
        return {last[it.recipe] for it in of}
    return {found.cause.key} if kind == "error" else {len(of)}


@given(verdicts=VERDICTS, changes=CHANGES)
def test_each_verdict_that_is_no_pass_is_in_exactly_one_finding_whose_cause_it_has(
    verdicts: list[Verdict], changes: list[Difference]
) -> None:
    found = findings(verdicts, changes)
    members = Counter(id(it) for one in found for it in one.members)
    assert set(members) == {id(it) for it in verdicts if outcome(it) != "pass"}
    assert set(members.values()) <= {1}
    for one in found:
        assert len(shared(one, changes, verdicts)) == 1
        assert len({(outcome(it), it.accepted, it.primary) for it in one.members}) == 1
        assert (one.cause.kind == "alone") == (len(one.members) == 1)
        assert one.members[0].severity == min(it.severity for it in one.members)
        assert one.cause.words
    assert findings(verdicts, changes) == found, "the same every time"


@given(verdicts=VERDICTS, changes=CHANGES)
@pytest.mark.programs
def test_terminal_junit_and_summary_tell_the_same_findings(verdicts: list[Verdict], changes: list[Difference]) -> None:
    file = gate(*verdicts, kernels=changes)
    told = gate_words.told(file)
    screen = gate_report.brief(file, "results/gates/one", 100)
    assert len(screen.splitlines()) <= 40
    assert max(map(width, screen.splitlines())) <= 100
    suite = ElementTree.parse(io.BytesIO(junit.junit([file]))).getroot()[0]
    bad = [case for case in suite if any(part.tag in ("failure", "error", "skipped") for part in case)]
    assert sum(case.get("classname") != "gate" for case in bad) == sum(it.outcome != "accepted" for it in told)
    markdown = junit.markdown([file]).decode()
    for it in told:
        assert it.lines
        assert f"**{it.outcome}: " in markdown
    assert markdown.count("<summary>its figures</summary>") == sum(len(it.members) > 1 for it in told)


def test_one_batch_size_of_all_recipes_is_one_finding() -> None:
    (found,) = findings([slower(recipe, 128) for recipe in RECIPES])
    assert found.cause.words == "latency (batch_size=128) through vllm"
    assert len(found.members) == 4


def test_one_stage_is_one_finding() -> None:
    (found,) = findings([slower("int8wo", 1), slower("int8dq", 8), slower("8da4w", 128)])
    assert found.cause.words == "speed at the stage vllm engine"


def test_all_recipes_of_one_kernel_are_one_finding_and_the_rest_another() -> None:
    found = findings([slower(recipe, size) for recipe in RECIPES for size in (1, 8)], [*map(changed, RECIPES[:2])])
    assert [(it.cause.kind, len(it.members)) for it in found] == [("kernels", 4), ("stage", 4)]
    assert found[0].cause.words == "other kernels: gemm_a before, gemm_b now"


def test_an_error_that_lists_in_any_order_is_one_error() -> None:
    lists = ("torchao.dtypes, torchao.quantization, torchao.core", "torchao.core, torchao.dtypes, torchao.quant")
    told = [failed(one, f"ValueError: no class Q in: {of}") for one, of in zip(("bf16", "int8wo"), lists, strict=True)]
    (found,) = findings(told)
    assert found.cause.words == "serve: the same error: no class Q in: ..."


def test_one_error_of_several_recipes_is_one_finding_with_its_words() -> None:
    found = findings([*map(failed, ("bf16", "int8wo")), failed("8da4w", "TypeError: something else")])
    assert [len(it.members) for it in found] == [2, 1]
    assert found[0].cause.words == "serve: the same error: ValueError: no kernel for it"


def test_what_a_finding_says() -> None:
    text = gate_report.brief(gate(slower("int8wo"), slower("int8dq", factor=1.5)), "results/gates/one", 100)
    flat = " ".join(text.split())
    for words in (
        "regressed; 1 finding: 1 regressed (2 figures), 0 figures pass",
        "regressed: latency (batch_size=1) through vllm (2 figures)",
        "longer to 50.",
        "new / old of int8dq vllm batch_size=1 1.50",
        "means: a batch of prompts is answered later",
        "since: torchao==0.18.0, held against torchao==0.17.0 find it: python -m harness bisect torchao 0.17.0..0.18.0",
        "accept it: python -m harness gate torchao==0.17.0 torchao==0.18.0 -m cpu",
        "--accept latency:REASON",
        "of it: int8dq vllm batch_size=1, int8wo vllm batch_size=1",
        "| regressed ",
        "gate: results/gates/one",
    ):
        assert words in flat


@pytest.mark.parametrize("metric", [*RULES, *EVENTS])
def test_of_every_metric_that_is_judged_it_is_said_what_worse_means(metric: str) -> None:
    assert len(worse(metric).split()) > 3
    assert topic(metric) in ("speed", "memory", "quality", "works")


@pytest.mark.parametrize("name", sorted(path.parent.name for path in GATES.glob("*/gate.json")))
def test_a_stored_gate_in_words_fits_a_screen(name: str) -> None:
    file = gatefile.load(GATES / name)
    screen = gate_report.brief(file, f"results/gates/{name}", 100).splitlines()
    assert len(screen) <= 40
    assert max(map(width, screen)) <= 100
    assert "old checkpoint" in "".join(screen[:4])
