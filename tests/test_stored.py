"""Stored files that others wrote: what they say of a metric must be what the metric table says, and all are data."""

from __future__ import annotations

import ast
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.__main__ import main
from harness.base.errors import HarnessError, MatrixError
from harness.base.files import write_text
from harness.base.reading import MOST_DEPTH, json_value, toml_value
from harness.judge import baseline, gatefile
from harness.judge.calibration import Calibration, Noise, Steady
from harness.judge.rules import Margins
from harness.judge.series import Series
from harness.judge.verdict import judge
from harness.matrix.load import load
from harness.plugin.summary import Summary
from harness.records.metrics import METRICS
from harness.records.place import Place
from harness.records.published import Documented
from harness.records.run import Run, read
from harness.records.schema import Cell, Device, Header, Measurement, ModelIdentity, RecipeIdentity
from harness.report.limited import limited_by
from harness.report.tables import tables_of
from harness.runtime.store import problem

CELL = Cell(
    model=ModelIdentity(name="m", source="hub:o/m", revision="1", weights="pretrained"),
    recipe=RecipeIdentity(name="r", hash="2", config={}),
    hardware="cpu",
    server="vllm",
)
DEEP = "[" * 100_000
DEEP_OBJECT = '{"a":' * 50_000
NESTED = "[" * (MOST_DEPTH + 10) + "]" * (MOST_DEPTH + 10)
# Nothing else to say at a session's end.
_SAID = ("failures", "known", "unjudged", "shown", "skipped", "comparison", "problems")
NOTHING: dict[str, Any] = {name: [] for name in _SAID}
Change = Callable[[dict[str, Any]], object]


def latency(value: float, **more: Any) -> Measurement:
    given: dict[str, Any] = {
        "metric": "latency",
        "unit": "s",
        "direction": "lower",
        "definition": 1,
        "value": value,
        "cell": CELL,
        "packages": {},
        "device": Device(name="d"),
    }
    return Measurement(**given | more)


def runs(root: Path, **more: Any) -> list[Run]:
    found = []
    for number, value in enumerate((1.0, 1.1, 0.9)):
        found.append(Run(root / f"run-{number}"))
        found[-1].append(latency(value, **more))
    return found


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    (made,) = baseline.collect(runs(tmp_path))
    return made.write(tmp_path)


def edit(path: Path, change: Change) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def entry(**changes: Any) -> Change:
    return lambda data: data["entries"][0].update(changes)


# ---------------------------------------------------------------------------------------------------------- baselines


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (entry(direction="higher"), "direction 'higher' of latency must be 'lower'"),
        (entry(direction="none"), "direction 'none' of latency must be 'lower'"),
        (entry(unit="h"), "unit 'h' of latency must be 's'"),
        (entry(metric="speed"), "speed is not measured any more"),
        (entry(stage="quantize"), "the stage 'engine' gives it"),
        (entry(hardware="h100"), "it is of h100, and the baseline of cpu"),
        (entry(values=[]), "entries.0.values"),
        (entry(values=[1.0]), "3 are the fewest"),
        (entry(values=[1.0] * 4), "values: 4 of 3 runs"),
        (entry(values=[1e308, 1.0, 1.0]), r"values: 1e\+308 is larger than anything that is measured"),
        (entry(samples=[-1e308]), r"values: -1e\+308 is larger"),
        (entry(values=[float("nan"), 1.0, 1.0]), "entries.0.values.0"),
        (entry(values=[float("inf"), 1.0, 1.0]), "entries.0.values.0"),
        (entry(spread=float("nan")), "entries.0.spread"),
        (entry(spread=-1.0), "entries.0.spread"),
        (entry(spread=0.9), "spread: 0.9 there, and by its values it is 0.10"),
        (entry(spread=None), "spread: None there"),
        (lambda data: data.update(entries=[]), "it holds no figure"),
        (
            lambda data: data["entries"].append(data["entries"][0]),
            r"entries.1 \(latency of m/r/vllm\): it stands there",
        ),
        (lambda data: data.update(runs=["a", "a", "b"]), "2 runs stand behind it"),
        (lambda data: data.update(schema_version=0), "schema version 0 does not exist"),
    ],
)
def test_a_baseline_that_disagrees_is_refused_by_name(stored: Path, change: Change, named: str) -> None:
    baseline.load(stored)
    edit(stored, change)
    with pytest.raises(baseline.BaselineError, match=named) as caught:
        baseline.load(stored)
    assert str(stored) in str(caught.value)


def test_a_name_that_stands_twice_is_refused_in_whatever_decides(stored: Path, tmp_path: Path) -> None:
    text = stored.read_text(encoding="utf-8")
    stored.write_text(text.replace('"values"', '"values": [1, 2, 3], "values"', 1), encoding="utf-8")
    with pytest.raises(baseline.BaselineError, match="'values' stands twice"):
        baseline.load(stored)
    gate = tmp_path / "gate.json"
    gate.write_text(json.dumps(gate_data()).replace('"exit_status"', '"exit_status": 1, "exit_status"', 1))
    with pytest.raises(HarnessError, match="'exit_status' stands twice"):
        gatefile.load(gate)


@pytest.mark.parametrize("more", [{"direction": "higher"}, {"unit": "h"}])
def test_a_record_that_disagrees_with_its_metric_is_left_out_by_name(tmp_path: Path, more: dict[str, Any]) -> None:
    """A table, a page or a trend would call worse what is better, or hours what was seconds."""
    (good, *_), (bad, *_) = runs(tmp_path / "good"), runs(tmp_path / "bad", **more)
    assert not good.read()[1]
    assert sum(1 for _ in good.lines())
    lines, problems = bad.read()
    assert not [it for it in lines if isinstance(it, Measurement)]
    (name,) = more
    assert all(f"left out, {name} {more[name]!r} of " in it and "which the metric table has" in it for it in problems)
    assert problems


def test_what_is_no_file_is_no_run(tmp_path: Path) -> None:
    """Who reads a pipe that nobody writes waits for ever."""
    (run, *_) = runs(tmp_path)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "records.jsonl")
    (tmp_path / "folder" / "records.jsonl").mkdir(parents=True)
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    below = [it.name for it in Run.below(tmp_path)]
    assert run.name in below
    assert not {"pipe", "folder", "nowhere"} & set(below)
    with pytest.raises(HarnessError, match="no run 'pipe'"):
        Run.open(tmp_path, "pipe")


def test_a_device_that_is_written_to_stays_one(tmp_path: Path) -> None:
    """Else ``-o /dev/null`` of root, as in a container, had every other program write into a file of that name."""
    pipe, got = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_text(pipe, "whole")
    reader.join(10)
    assert got == [b"whole"]
    assert pipe.is_fifo()
    with pytest.raises(HarnessError, match="/dev/full: cannot be written"):
        write_text(Path("/dev/full"), "no room")
    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize("more", [{"direction": "higher"}, {"unit": "h"}, {"metric": "speed"}])
def test_no_baseline_is_made_of_records_that_disagree(tmp_path: Path, more: dict[str, Any]) -> None:
    with pytest.raises(baseline.BaselineError, match=r"must be|not measured any more"):
        baseline.collect(runs(tmp_path, **more))


# ------------------------------------------------------------------------------ gates, calibrations, publications


def gate_data(**verdict: Any) -> dict[str, Any]:
    values = {"old": [1.0, 1.1, 0.9, 1.0], "new": [1.0, 1.1, 0.9, 0.99]}
    found = judge(Series(Place.of(CELL).at("latency", {"batch_size": 1}, 1), values), Margins())
    told = {"package": "torchao", "old": "a", "new": "b", "hardware": "cpu", "created": "", "seconds": 1.0}
    made = gatefile.GateFile.model_validate({**told, "verdicts": [found], "exit_status": 0})
    data: dict[str, Any] = json.loads(made.text())
    data["verdicts"][0].update(verdict)
    return data


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"direction": "down"}, "verdicts.0.direction"),
        ({"ratio": float("nan")}, "verdicts.0.ratio is nan"),
        ({"samples": {"old": [1e308], "new": [1.0]}}, r"verdicts.0.samples.old.0: 1e\+308 is larger"),
        ({"verdict": "regressed"}, "exit_status: 0, a pass, and its verdicts come to 1"),
        ({"primary": False}, "exit_status: 0, a pass, and its verdicts come to 2"),
    ],
)
def test_a_gate_that_disagrees_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    gatefile.parse(gate_data(), "gate.json")
    with pytest.raises(gatefile.GateError, match=named):
        gatefile.parse(gate_data(**changes), "gate.json")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda data: data["noise"][0].update(sd=float("nan")), "sd"),
        (lambda data: data["noise"][0].update(sd=1e308), "sd"),
        (lambda data: data["noise"][0].update(metric="speed"), "speed is not measured any more"),
        (lambda data: data["steady"][0].update(unit="h"), "unit 'h' of peak_memory must be 'GB'"),
        (lambda data: data.update(alarms=9), "9 alarms of 1 gates"),
        (lambda data: data.update(budget_seconds=float("inf")), "budget_seconds"),
    ],
)
def test_a_calibration_that_disagrees_is_refused_by_name(tmp_path: Path, change: Change, named: str) -> None:
    noise = Noise(place=Place.of(CELL).at("latency"), sd=0.1, blocks=3, block_seconds=2.0)
    memory = Place.of(CELL).at("peak_memory")
    steady = Steady(place=memory, unit="GB", pairs=3, value=1.0, differs=0.0, smallest=0.1)
    made = Calibration(
        hardware="cpu",
        device="d",
        created="",
        gates=1,
        judged=2,
        alarms=0,
        verdicts_regressed=0,
        verdicts_inconclusive=0,
        budget_seconds=1.0,
        threads="1",
        noise=[noise],
        steady=[steady],
    )
    path = made.write(tmp_path)
    assert Calibration.find(tmp_path, "cpu", "d") == made
    edit(path, change)
    with pytest.raises(HarnessError, match=named) as caught:
        Calibration.find(tmp_path, "cpu", "d")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda data: data["figures"][0].update(metric="speed"), "speed is not measured any more"),
        (lambda data: data["figures"][0].update(unit="h"), "unit 'h' of"),
        (lambda data: data["figures"][0].update(value=1e308, text="1e308"), "figures.0.value"),
        (lambda data: data["figures"][0].update(value=float("nan")), "figures.0.value"),
        (lambda data: data["figures"][0]["parameters"].update(size=1), "no parameter size"),
        (lambda data: data["bounds"][0].update(metric="speed"), "speed is not measured any more"),
        (lambda data: data["bounds"][0].update(largest_loss_percent=[10, 5]), "no range of per cent"),
        (lambda data: data["remarks"][0].update(metrics=["speed"]), "speed is not measured any more"),
    ],
)
def test_published_figures_that_disagree_are_refused_by_name(
    repository: Path, tmp_path: Path, change: Change, named: str
) -> None:
    sources = [json.loads(path.read_text()) for path in (repository / "results" / "documented").glob("*.json")]
    data = sources[0] | {"bounds": next(it["bounds"] for it in sources if it.get("bounds"))}
    data |= {"remarks": [{"metrics": ["latency"], "text": "as published"}]}
    path = tmp_path / "one.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    Documented.load(tmp_path)
    edit(path, change)
    with pytest.raises(HarnessError, match=named) as caught:
        Documented.load(tmp_path)
    assert str(path) in str(caught.value)


# ------------------------------------------------------------------------------------------------- deep, long, broken


@pytest.mark.parametrize(
    "text",
    [DEEP, DEEP_OBJECT, NESTED, "9" * 5000, f"[{'9' * 400}]", "{", "\x00", '"\ud800"', r'["\uD800"]', r'{"\udfff": 1}'],
)
def test_what_cannot_be_walked_is_no_json(text: str) -> None:
    with pytest.raises(ValueError, match=r"deep|bits|digits|Expecting|property|half of a character|surrogates"):
        json_value(text)


def test_what_is_nested_a_little_is_read() -> None:
    assert json_value("[" * 50 + "]" * 50) != []
    assert json_value('{"a": "' + "[" * 500 + '"}') == {"a": "[" * 500}
    assert json_value(b"\xef\xbb\xbf[]") == []
    with pytest.raises(ValueError, match="utf-8"):
        json_value(b'"\xed\xa0\x80"')
    assert json_value(r'"\ud83d\ude00"') == "\U0001f600"
    assert json_value("1" * 200) == int("1" * 200)
    with pytest.raises(ValueError, match=r"a\.1 is inf: not a finite number"):
        json_value('{"a": [1, 1e999]}', finite=True)


@pytest.mark.parametrize("line", [DEEP, DEEP_OBJECT, NESTED, '{"time": ' + "9" * 5000 + "}"])
def test_a_line_that_cannot_be_walked_is_a_broken_line_like_any_other(tmp_path: Path, line: str) -> None:
    run = Run(tmp_path / "run")
    run.append(latency(1.0))
    with run.path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    run.append(latency(2.0))
    lines, problems = read(run.path)
    assert [it.value for it in lines if isinstance(it, Measurement)] == [1.0, 2.0]
    assert [it for it in problems if "line 2: left out" in it] == problems != []


@pytest.mark.parametrize("text", [DEEP, NESTED])
def test_every_other_reader_names_its_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cpu.json"
    path.write_text(text, encoding="utf-8")
    for reader in (baseline.load, gatefile.load, lambda it: Documented.load(it.parent)):
        with pytest.raises(HarnessError, match=r"cpu\.json: .*deep"):
            reader(path)
    (tmp_path / "artifact.json").write_text(text, encoding="utf-8")
    assert "its manifest cannot be read" in str(problem(tmp_path))


@pytest.mark.parametrize("files", [{"a\0": {"size": 1, "sha256": "x"}}, {"a": 3}, {"a": {}}, {"a": None}])
def test_a_manifest_that_names_no_file_is_a_damaged_one(tmp_path: Path, files: Any) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "artifact.json").write_text(json.dumps({"key": {}, "facts": {}, "files": files}), encoding="utf-8")
    assert "its manifest cannot be read" in str(problem(tmp_path))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (f"[measurements.latency]\nrounds = {'9' * 5000}\n", "digits"),
        (
            f"[measurements.latency]\nrounds = 0x{'f' * 5000}\n",
            "measurements.latency.rounds is an integer of 20000 bits",
        ),
        (f"a = {'[' * 20_000}", "deep"),
        (f"a = {'[' * 200}{']' * 200}", "deep"),
    ],
)
def test_a_matrix_that_cannot_be_walked_is_named(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "matrix.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(MatrixError, match=named) as caught:
        load(path)
    assert str(path) in str(caught.value)
    with pytest.raises(ValueError, match=named):
        toml_value(text)


@pytest.mark.parametrize("pattern", ["(" * 2000 + ")" * 2000, "(", "a{99999999999}"])
@pytest.mark.parametrize(
    ("after", "line"),
    [("[recipes.int8wo]", "kernels = {{ nvidia = '{}' }}"), ("[hardware.h100]", "match = '{}'")],
)
def test_a_pattern_that_python_cannot_compile_is_named(tmp_path: Path, pattern: str, after: str, line: str) -> None:
    shipped = (Path(__file__).parents[1] / "suites" / "matrix.toml").read_text(encoding="utf-8")
    name = line.split(" ")[0]
    head, _, rest = shipped.partition(after)
    lines = [one for one in rest.split("\n[", 1)[0].splitlines() if not one.startswith(f"{name} ")]
    beyond = rest.split("\n[", 1)[1]
    path = tmp_path / "matrix.toml"
    path.write_text(f"{head}{after}\n{line.format(pattern)}\n" + "\n".join(lines) + f"\n[{beyond}", encoding="utf-8")
    with pytest.raises(MatrixError, match="is not a regular expression") as caught:
        load(path)
    assert name in str(caught.value)


@pytest.mark.programs
def test_everything_that_is_read_goes_through_the_one_reader(repository: Path) -> None:
    """Workers and what runs by itself have their own; their errors reach the planner as replies and exit statuses."""
    alone = {"harness/base/reading.py", "harness/bundle/install.py"}
    found = set()
    for path in (repository / "harness").rglob("*.py"):
        name = path.relative_to(repository).as_posix()
        if name in alone or name.startswith(("harness/worker/", "harness/contract/")):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.loads", "json.load", "tomllib.loads"):
                (argument, *_) = node.args
                if not (isinstance(argument, ast.Call) and ast.unparse(argument.func) == "json.dumps"):
                    found.add(f"{name}:{node.lineno}")
    assert found == set()


def test_a_limit_without_its_statistics_is_shown_without_what_limits_it() -> None:
    assert limited_by({"measured_seconds": 1.0}) == limited_by({}) == ""
    assert limited_by({"memory_seconds": 1.0, "arithmetic_seconds": 0.5, "measured_seconds": 1.1}) == "memory"
    lone = latency(0.5, metric="limit_fraction", unit="fraction", direction="higher", definition=2)
    made = tables_of("all", [lone.model_copy(update={"statistics": {"measured_seconds": 1.0}})], Documented())
    assert "0.5" in str(made)


@pytest.mark.programs
def test_a_figure_that_nothing_can_have_measured_breaks_no_page(tmp_path: Path) -> None:
    """Records of others may hold any number, for any metric, without parameters and statistics."""
    run = Run(tmp_path / "runs" / "20260101-000000")
    run.append(Header(run=run.name, command=[], packages={}, device=Device(name="d")))
    base = CELL.model_copy(update={"recipe": RecipeIdentity(name="bf16", hash="3", config={}, baseline=True)})
    for name, known in METRICS.items():
        for cell, value in ((base, 1e-300), (CELL, 1e300)):
            more = {"metric": name, "unit": known.unit, "direction": known.direction, "definition": known.version}
            run.append(latency(value, cell=cell, **more))
    run.append(latency(1.0, metric="speed"))
    page = str(tmp_path / "page.html")
    assert main(["report", str(run.folder), "-o", page]) == 0
    assert main(["site", str(tmp_path / "site"), "--runs", str(run.folder.parent)]) == 0
    for layout in ("all", "main"):
        assert main(["table", str(run.folder), "--layout", layout, "-o", str(tmp_path / "table")]) == 0
    assert main(["cost", str(run.folder)]) in (0, 1)
    assert Summary.of(run, Documented(), seconds=1, planner=1).sections(tmp_path / "tables", **NOTHING)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kernels": 1}', '{"kernels": [[1]], "weights": {"a": 1}}', DEEP])
def test_a_damaged_attachment_costs_its_line_of_the_summary_alone(tmp_path: Path, text: str) -> None:
    run = Run(tmp_path / "run")
    for name in ("kernel_time", "quantized_parameters"):
        known = METRICS[name]
        more = {"metric": name, "unit": known.unit, "direction": known.direction, "definition": known.version}
        run.append(latency(1.0, attachment=run.attach(name, {}), **more))
        (run.attachments / f"{name}.json").write_text(text, encoding="utf-8")
    sections = dict(Summary.of(run, Documented(), seconds=1, planner=1).sections(tmp_path / "tables", **NOTHING))
    assert "kernels that took longest" not in sections
    with pytest.raises(HarnessError, match="cannot be read"):
        run.attached("no such file")
