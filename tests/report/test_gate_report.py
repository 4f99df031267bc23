"""What is told of a gate: the table by severity, the walk through a decision, JUnit, and margins refused."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as xml
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import __main__
from harness.base import files
from harness.base.errors import HarnessError
from harness.commands import gate
from harness.gate import margins
from harness.gate.noise import summarise
from harness.gate.plan import units
from harness.judge import calibration, gatefile, stats
from harness.judge.calibration import Calibration
from harness.judge.gatefile import Difference, GateFile, Options, UnitState, Works, exit_status
from harness.judge.looks import MINIMUM_BLOCKS
from harness.judge.rules import Margins
from harness.judge.series import Series
from harness.judge.verdict import Verdict, event, judge
from harness.machine import probe
from harness.matrix.plan import Matrix
from harness.records.place import Place
from harness.report import gate_report, junit
from harness.report import noise as report_noise

NOISE = (1.0, 1.01, 0.99, 1.005, 0.995, 1.008, 0.992, 1.0)
MODEL = "SmolLM2-135M-Instruct"
DEVICE = probe.host().name


def place(metric: str, recipe: str = "int8wo", server: str = "transformers", **parameters: Any) -> Place:
    return Place(model=MODEL, recipe=recipe, hardware="cpu", server=server).at(metric, parameters)


def speed(factor: float, recipe: str = "int8wo") -> Verdict:
    values = {"old": [10 * noise for noise in NOISE], "new": [10 * factor * noise for noise in NOISE[::-1]]}
    return judge(Series(place("generate_throughput", recipe, max_new_tokens=16), values, True), Margins())


def unit(server: str = "transformers", stage: str = "transformers", seconds: float = 10.0) -> dict[str, UnitState]:
    cell = Place(model=MODEL, recipe="int8wo", hardware="cpu", server=server, stage=stage)
    return {f"{server} {stage}": UnitState(cell, done=8, seconds=seconds, measuring=90.0)}


def gate_file(verdicts: list[Verdict], **more: Any) -> GateFile:
    """Return a gate.json as harness.gate writes it."""
    ordered = sorted(verdicts, key=lambda verdict: verdict.severity)
    given: dict[str, Any] = {
        "finished": True,
        "package": "torchao",
        "old": "torchao==0.17.0",
        "new": "torchao==0.18.0",
        "hardware": "cpu",
        "device": probe.host().name,
        "created": "2026-01-01T00:00:00+00:00",
        "budget_seconds": 1800.0,
        "seconds": 100.0,
        "measuring_seconds": 90.0,
        "differences": ["torchao 0.17.0 -> 0.18.0"],
        "verdicts": ordered,
        "exit_status": exit_status(ordered),
        "units": unit(),
        **more,
    }
    return gatefile.parse(json.loads(GateFile(**given).text()), "here")


def test_the_table_has_the_worst_first_with_interval_margin_blocks_and_reason() -> None:
    text = gate_report.text(gate_file([speed(1.0), speed(0.7, "int8dq")]))
    rows = [line for line in text.splitlines() if line.startswith(("| regressed", "| pass"))]
    assert [row.split("|")[1].strip() for row in rows] == ["regressed", "pass"]
    for part in ("int8dq transformers", "generate_throughput", "0.700 (0.6", "5.0%", "8", "beyond-margin"):
        assert part in rows[0]
    assert "exit status 1: regressed" in text
    assert "taken in turns" in text


def test_a_decision_is_walked_through() -> None:
    text = gate_report.text(gate_file([speed(0.7)]), ["generate_throughput"])
    assert "  1. old 10, new 7 tok/s: 0.7000" in text
    assert "the whole interval lies beyond the margin on the worse side" in text
    assert "p of 'not worse than the margin' (one-sided): " in text
    assert "held under Benjamini-Hochberg at 5 %" in text
    assert "no ratio to bf16 is needed or taken" in text
    answers = {"old": [1.0] * 80 + [0.0] * 20, "new": [1.0] * 60 + [0.0] * 40}
    told = judge(Series(place("accuracy", task="t"), answers), Margins())
    walk = gate_report.text(gate_file([told]), ["accuracy"])
    assert "of 100 documents 20 lost, 0 won: exact McNemar p 1.91e-06" in walk
    apart = {"old": answers["old"], "new": answers["new"][1:]}
    fewer = judge(Series(place("accuracy", task="t"), apart), Margins())
    assert "bad-samples" in gate_report.text(gate_file([fewer]), ["accuracy"]), "other documents are no pairs"
    text = gate_report.text(gate_file([speed(0.7)]), ["latency"])
    assert "latency: this gate has no verdict on it; there are verdicts on generate_throughput" in text


def test_a_metric_that_no_gate_knows_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    gate_report.check_explained(
        ["latency", "quantized_layers", "request_throughput", "works: load and run", "works: serve"]
    )
    given = ["gate", "a==1", "a==2", "-m", "cpu", "--explain", "latencies", "--results", str(tmp_path)]
    with pytest.raises(HarnessError, match=r"--explain 'latencies': gates have no verdict on it; did you mean latency"):
        gate.run(__main__.parser().parse_args(given))
    assert list(tmp_path.iterdir()) == []


def quality(metric: str, old: list[float], new: list[float], task: str | None = None) -> Verdict:
    about = place(metric, task=task) if task else place(metric)
    return judge(Series(about, {"old": old, "new": new}), Margins())


def cells(text: str, start: str) -> list[list[str]]:
    """Return the cells of the table rows that begin so."""
    lines = [line for line in text.splitlines() if line.startswith(start)]
    return [[part.strip() for part in line.split("|")[1:-1]] for line in lines]


def test_flips_are_shown_whatever_the_verdict() -> None:
    answers = [1.0] * 300 + [0.0] * 100
    turned = [0.0, *answers[1:-2], 1.0, 1.0]
    windows = [5.0 + 0.01 * index for index in range(16)]
    verdicts = [
        quality("accuracy", answers, turned, "piqa"),
        quality("accuracy", answers, answers, "arc_easy"),
        quality("perplexity", windows, windows),
        quality("token_flips", [0.02] * 16, [0.025] * 16),
    ]
    assert {verdict.verdict for verdict in verdicts} == {"pass"}
    text = gate_report.text(gate_file(verdicts))
    rows = [
        [part.strip() for part in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| int8wo")
    ]
    assert {row[1]: row[3] for row in rows} == {
        "accuracy (task=piqa)": "1 lost, 2 won (0.75% of 400 documents)",
        "accuracy (task=arc_easy)": "0 lost, 0 won (0.00% of 400 documents)",
        "perplexity": "old 2.00%, new 2.50% of tokens",
        "token_flips": "old 2.00%, new 2.50% of tokens",
    }


def test_what_a_verdict_rests_on_is_named() -> None:
    windows = [5.0 + 0.01 * index for index in range(16)]
    verdicts = [
        speed(1.0),
        quality("perplexity", windows, windows),
        quality("accuracy", [1.0] * 400, [1.0] * 400, "piqa"),
        quality("peak_memory", [1.0], [1.0]),
    ]
    assert [verdict.blocks for verdict in verdicts] == [8, 1, 1, 1], "quality takes one block"
    text = gate_report.text(gate_file(verdicts), ["perplexity"])
    rows = cells(text, "| pass")
    assert {row[2]: row[5] for row in rows} == {
        "generate_throughput": "8 blocks",
        "perplexity": "16 windows",
        "accuracy (task=piqa)": "400 documents",
        "peak_memory": "1 block",
    }
    assert "over 16 windows; better is lower" in text


def test_what_works_and_what_changed_is_shown() -> None:
    cell = place("").cell
    told = gate_file(
        [speed(1.0)],
        compatibility=[Works(cell, "quantize and save", "fails", "works", "old: Unsupported tensor type")],
        kernels=[Difference(cell, "tensor class of 210 linear layers", "A", "B")],
    )
    text = gate_report.text(told)
    assert "Unsupported tensor type" in text
    assert "tensor class of 210 linear layers" in text


def test_junit_fails_on_regressions_errs_on_errors_skips_the_uncertain_and_only_tells_the_advisory() -> None:
    about = Series(place("works: load and run", "int8dq", "vllm"))
    verdicts = [
        speed(1.0),
        speed(0.7, "int8dq"),
        event(about, "error", "fails-both", "a <word> \x00 & hf_abcdefghijklmnopqrstuvwxyz"),
        replace(speed(1.0, "8da4w"), verdict="inconclusive", reason="too-noisy"),
        replace(speed(0.7, "float8wo"), primary=False),
    ]
    made = junit.junit([gate_file(verdicts)])
    suite = xml.fromstring(made).find("testsuite")
    assert suite is not None
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "5",
        "failures": "1",
        "errors": "1",
        "skipped": "1",
    }
    failed = [case for case in suite.iter("testcase") if case.find("failure") is not None]
    assert [case.get("classname") for case in failed] == [f"{MODEL}.int8dq.transformers"]
    assert b"hf_abc" not in made
    told = {case.get("classname"): case.findtext("system-out") for case in suite.iter("testcase")}
    assert str(told[f"{MODEL}.float8wo.transformers"]).startswith("advisory, regressed: beyond-margin: new / old 0.7")


@pytest.mark.parametrize("verdict", ["pass", "regressed", "error", "inconclusive"])
@pytest.mark.parametrize("primary", [True, False])
def test_junit_fails_where_the_exit_status_does(verdict: Any, primary: bool) -> None:
    """A failure is exit status 1, an error 2 and a skip 3, of the same gate, whichever command writes it."""
    data = gate_file([replace(speed(1.0), verdict=verdict, primary=primary)])
    suite = xml.fromstring(junit.junit([data]))[0]
    bad = {"failures": 1, "errors": 2, "skipped": 3}
    status = next((status for name, status in bad.items() if suite.get(name) != "0"), 0)
    assert status == data.exit_status


def test_junit_tells_the_batch_sizes_of_one_metric_apart() -> None:
    of = [place("latency", server="vllm", batch_size=size) for size in (1, 8)]
    data = gate_file([replace(speed(1.0), place=it, unit="s", direction="lower") for it in of])
    cases = xml.fromstring(junit.junit([data])).iter("testcase")
    assert {case.get("name") for case in cases} == {"latency (batch_size=1)", "latency (batch_size=8)"}


def test_a_gate_that_is_not_finished_is_said_to_be_so_and_has_not_passed() -> None:
    data = gate_file([speed(1.0)], finished=False)
    assert (data.exit_status, data.title) == (3, "torchao==0.17.0 to torchao==0.18.0 on cpu, not finished")
    for said in (gate_report.text(data), gate_report.brief(data, "x", 100), junit.markdown([data]).decode()):
        assert f"{data.title}: " in said
        assert "no verdict, it did not come to its end" in said
        assert "exit status" not in said
        assert ": pass" not in said
    suite = xml.fromstring(junit.junit([data]))[0]
    assert (suite.get("errors"), suite.get("name")) == ("1", f"gate {data.title}")
    assert "did not come to its end" in str(suite.findtext("testcase[@name='finished']/system-out"))


def test_numbers_that_json_does_not_have_become_null() -> None:
    assert files.json_finite({"a": [math.nan, 1.0, (math.inf,)], "b": "x"}) == {"a": [None, 1.0, [None]], "b": "x"}


# -------------------------------------------------------------------------------------------------------- calibration

ONE = {"old": [1.0], "new": [1.0]}


def test_a_gate_keeps_to_what_the_matrix_sends_through_a_server(suites_matrix: Matrix) -> None:
    first, *rest = [entry for entry in suites_matrix.entries if entry.hardware == "cpu"]

    def stages(*servers: tuple[str, dict[str, Any]]) -> set[tuple[str, str]]:
        entries = [first.model_copy(update={"servers": [name], **more}) for name, more in servers]
        matrix = replace(suites_matrix, entries=[*entries, *rest])
        return {(unit.cell.server, unit.stage) for unit in units(matrix, Options("a", "b", "cpu", recipes=("int8wo",)))}

    transformers: tuple[str, dict[str, Any]] = ("transformers", {})
    plain = ("transformers", "transformers")
    assert stages(transformers, ("vllm", {"stages": ["engine"]})) == {plain, ("vllm", "engine")}
    assert stages(transformers, ("vllm", {"stages": ["quantize", "server"]})) == {plain, ("vllm", "server")}
    assert stages(transformers, ("vllm", {"skip": "too slow to serve"})) == {plain}
    only_quantized = ("transformers", {"stages": ["quantize"]})
    assert stages(only_quantized, ("vllm", {})) == {("vllm", "engine"), ("vllm", "server")}


def calibrated(spread: float, seconds: float = 10.0) -> Calibration:
    """Return the calibration of two gates of old against old whose blocks' log ratios are all ``spread`` from 0."""
    signs = [1, -1] * 4
    gates = []
    for _ in range(2):
        old = [10 + 1e-6 * index for index in range(len(signs))]
        values = {"old": old, "new": [it * math.exp(sign * spread) for it, sign in zip(old, signs, strict=True)]}
        found = judge(Series(place("generate_throughput", max_new_tokens=16), values), Margins())
        gates.append(gate_file([found], units=unit(seconds=seconds)))
    return summarise(gates, "cpu", 1800.0)


def test_a_calibration_is_the_pooled_noise_and_comes_back_from_the_disk(tmp_path: Path) -> None:
    made = calibrated(0.02)
    (noise,) = made.noise
    assert noise.sd == pytest.approx(0.02)
    assert (noise.blocks, noise.block_seconds, made.gates, made.alarms) == (16, 10.0, 2, 0)
    path = made.write(tmp_path)
    assert path == tmp_path / "calibration" / "cpu.json"
    assert Calibration.find(tmp_path, "cpu", DEVICE) == made
    assert made.device == DEVICE
    made.model_copy(update={"device": "another processor"}).write(tmp_path)
    assert Calibration.find(tmp_path, "cpu", DEVICE) is None, "another machine's calibration says nothing here"
    path.write_text("{}")
    with pytest.raises(HarnessError, match="calibrate anew"):
        Calibration.find(tmp_path, "cpu", DEVICE)


def test_engine_and_server_of_a_cell_are_calibrated_each_by_its_own_blocks(suites_matrix: Matrix) -> None:
    noisy, quiet = [10 * noise for noise in NOISE], [10 + 1e-6 * index for index in range(8)]
    values = {"old": noisy, "new": noisy[::-1]}
    rounds = {
        side: [[value, value, value + 1e-6 * index] for index, value in enumerate(blocks)]
        for side, blocks in values.items()
    }
    found = [
        Series(place("request_throughput", server="vllm", num_prompts=4), values, rounds=rounds),
        Series(place("latency", server="vllm", batch_size=1), {"old": quiet, "new": quiet[::-1]}),
        *(Series(place("engine_start", server="vllm", kind=kind), values) for kind in ("engine", "server")),
    ]
    seconds = unit("vllm", "engine", 40.0) | unit("vllm", "server", 70.0)
    made = summarise([gate_file([judge(one, Margins()) for one in found], units=seconds)], "cpu", 1800.0)
    taken = {(it.metric, it.label): it.block_seconds for it in made.noise}
    assert taken == {
        ("latency", "batch_size=1"): 40.0,
        ("engine_start", "kind=engine"): 40.0,
        ("engine_start", "kind=server"): 70.0,
        ("request_throughput", "num_prompts=4"): 70.0,
    }
    wanted = units(suites_matrix, Options("a", "b", "cpu", recipes=("int8wo",), servers=("vllm",)))
    engine, server = wanted
    assert [it.label for unit in (engine, server) for it in margins.noise_of(made, unit, "engine_start")] == [
        "kind=engine",
        "kind=server",
    ]
    # A gate stops at no fewer than four blocks of its cells, 110 seconds each.
    margins.check(made, Margins(["0.5"]), wanted, budget=900)
    with pytest.raises(
        HarnessError, match=r"(?s)all metrics together: unchanged, .* in 0% of gates; 90% do in \d+ min"
    ):
        margins.check(made, Margins(["0.5"]), wanted, budget=100)
    with pytest.raises(HarnessError, match=r"request_throughput of \S+-vllm-server: margin 0.5%, detectable \d"):
        margins.check(made, Margins(["request_throughput=0.005"]), wanted, budget=900)


def test_a_margin_that_the_machine_cannot_hold_is_refused(suites_matrix: Matrix) -> None:
    wanted = units(suites_matrix, Options("a", "b", "cpu", recipes=("int8wo",), servers=("transformers",)))
    noisy = calibrated(0.10)
    with pytest.raises(HarnessError, match=r"(?s)generate_throughput of .*int8wo.*margin 3.0%, detectable \d+\.\d%"):
        margins.check(noisy, Margins(["0.03"]), wanted, budget=100)
    margins.check(noisy, Margins(["0.5"]), wanted, budget=100)
    margins.check(noisy, Margins(["0.03"]), wanted, budget=100_000)
    margins.check(calibrated(0.001), Margins(["0.03"]), wanted, budget=100)


def test_a_calibration_is_of_the_device_that_its_gates_ran_on() -> None:
    verdicts = [judge(Series(place("peak_memory"), ONE), Margins())]
    there, here = (gate_file(verdicts, device=name) for name in ("another processor", "this one"))
    assert summarise([there, there], "cpu", 1800.0).device == "another processor"
    with pytest.raises(HarnessError, match=r"several devices \(another processor; this one\)"):
        summarise([there, here], "cpu", 1800.0)


def test_the_table_divides_the_budget_as_the_check_does_and_asks_for_no_fewer_blocks_than_a_verdict() -> None:
    made = calibrated(0.02, seconds=100.0)
    (one,) = made.noise
    other = one.model_copy(update={"place": replace(one.place, recipe="int8dq")})
    both = made.model_copy(update={"noise": [one, other]})
    alone, shared = report_noise.table(made), report_noise.table(both)
    column = next(index for index, name in enumerate(alone.header) if name.startswith("smallest effect"))
    assert alone.rows[0][column] == f"{stats.smallest_effect(0.02, 18):.1%}"
    assert [row[column] for row in shared.rows] == [f"{stats.smallest_effect(0.02, 9):.1%}"] * 2
    blocks = [int(cell.split()[0]) for cell in alone.rows[0][column + 1 :]]
    assert blocks == [max(MINIMUM_BLOCKS, stats.samples_needed(0.02, margin) or 0) for margin in (0.03, 0.05, 0.10)]
    assert "in a gate of all these cells together (2, 9 blocks each)" in " ".join(shared.notes)
    short = report_noise.table(made.model_copy(update={"budget_seconds": 150.0}))
    assert short.rows[0][column] == "-", "one block is no verdict"


@given(st.floats(1, 1e5), st.lists(st.floats(0.1, 1e3), min_size=1, max_size=8))
def test_blocks_of_all_cells_fit_the_budget_and_one_more_of_each_would_not(budget: float, cells: list[float]) -> None:
    blocks = calibration.blocks_within(budget, cells)
    assert blocks * math.fsum(cells) <= budget * (1 + 1e-9) < (blocks + 1) * math.fsum(cells) * (1 + 2e-9)
    assert calibration.blocks_within(budget, cells[::-1]) == blocks
    assert calibration.blocks_within(budget, [*cells, 1.0]) <= blocks


def drifted(metric: str, shift: float) -> Calibration:
    """Return the calibration of one gate whose new side's windows are ``shift`` from the old side's."""
    windows = [5.0 + 0.01 * index for index in range(16)]
    found = quality(metric, windows, [value + shift for value in windows])
    return summarise([gate_file([found])], "cpu", 1800.0)


@pytest.mark.parametrize("metric", ["perplexity", "kl_divergence"])
def test_quality_that_is_further_from_itself_than_its_margin_is_refused(suites_matrix: Matrix, metric: str) -> None:
    wanted = units(suites_matrix, Options("a", "b", "cpu", recipes=("int8wo",), servers=("transformers",)))
    with pytest.raises(HarnessError, match=rf"{metric} of int8wo: margin .*the same measured twice differs by 1"):
        margins.check(drifted(metric, 1.0), Margins(), wanted, budget=100)
    margins.check(drifted(metric, 1.0), Margins([f"{metric}=0.9"]), wanted, budget=100)
    margins.check(drifted(metric, 0.001), Margins(), wanted, budget=100)
    elsewhere = units(suites_matrix, Options("a", "b", "cpu", recipes=("int8dq",), servers=("transformers",)))
    margins.check(drifted(metric, 1.0), Margins(), elsewhere, budget=100)


def test_advisory_quality_is_held_against_the_calibration_only_where_its_margin_is_asked_for(
    suites_matrix: Matrix,
) -> None:
    wanted = units(suites_matrix, Options("a", "b", "cpu", recipes=("int8wo",), servers=("transformers",)))
    unsteady = drifted("token_flips", 0.5)
    margins.check(unsteady, Margins(), wanted, budget=100)
    with pytest.raises(HarnessError, match=r"token_flips of int8wo: margin 0\.01 "):
        margins.check(unsteady, Margins(["token_flips=0.01"]), wanted, budget=100)


def test_a_margin_of_a_metric_that_is_not_calibrated_is_told(suites_matrix: Matrix) -> None:
    wanted = units(suites_matrix, Options("a", "b", "cpu", recipes=("int8wo",), servers=("transformers",)))
    (cell,) = [unit.id for unit in wanted if "perplexity" in unit.metrics]
    assert margins.unknown(drifted("perplexity", 0.0), Margins(["perplexity=0.01"]), wanted) == []
    assert margins.unknown(calibrated(0.02), Margins(["generate_throughput=0.03"]), wanted) == []
    assert margins.unknown(calibrated(0.02), Margins(["kl_divergence=0.03"]), wanted) == [f"kl_divergence of {cell}"]


def test_what_a_gate_measures_is_selected_as_pytest_selects(suites_matrix: Matrix) -> None:
    every = units(suites_matrix, Options("a", "b", "cpu"))
    assert {"bf16", "int8wo", "8da4w-int8emb", "float8wo"} <= {unit.cell.recipe.name for unit in every}
    assert {unit.cell.server for unit in every} == {"transformers", "vllm"}
    assert not [unit for unit in every if unit.cell.recipe.name == "float8wo" and unit.cell.server == "vllm"]
    assert len({unit.id for unit in every}) == len(every)
    engine, server = units(suites_matrix, Options("a", "b", "cpu", recipes=("int8wo",), servers=("vllm",)))
    assert (engine.stage, server.stage, server.id) == ("engine", "server", f"{engine.id}-server")
    assert (engine.cell.measurements.latency.rounds, engine.cell.measurements.serving.rounds) == (15, 8)
    (alone,) = units(suites_matrix, Options("a", "b", "cpu", recipes=("int8wo",), keyword="request_throughput"))
    assert (alone.id, alone.metrics) == (server.id, {"request_throughput"})
    without = units(suites_matrix, Options("a", "b", "cpu", keyword="not server"))
    assert {unit.stage for unit in without} == {"transformers", "engine"}
    (one,) = units(suites_matrix, Options("a", "b", "cpu", recipes=("int8wo",), keyword="memory and not vllm"))
    assert one.metrics == {"peak_memory"}
    with pytest.raises(HarnessError, match="nothing to gate"):
        units(suites_matrix, Options("a", "b", "cpu", keyword="no_such_thing"))
    with pytest.raises(HarnessError, match="-k 'and and'"):
        units(suites_matrix, Options("a", "b", "cpu", keyword="and and"))


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("too-noisy", "measure on: the same command with --resume last"),
        ("mean-undecided", "measure on: the same command with --resume last"),
        ("near-margin", "decide by the interval; or have it measured until it is decided: --resume last"),
    ],
)
def test_what_to_do_next_of_what_is_undecided_is_what_settles_it(reason: str, words: str) -> None:
    found = replace(speed(1.0), verdict="inconclusive", reason=reason, detail="")
    assert words in gate_report.text(gate_file([found]))
