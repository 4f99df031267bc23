"""Stored baselines: what makes one, what is refused, and real sessions that are held against one."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import __main__ as command_line
from harness.base.errors import HarnessError, ThresholdFailure, TooFewSamples
from harness.judge import baseline
from harness.judge.baseline import Baseline, BaselineEntry, BaselineError, Coverage
from harness.measure.recorder import Recorder
from harness.plugin.baseline_hooks import BaselineHooks
from harness.plugin.comparison import Comparison, Regression, judge
from harness.records.metrics import METRICS
from harness.records.place import Place
from harness.records.run import Run, read
from harness.records.schema import Cell, Device, Measurement, ModelIdentity, RecipeIdentity

MODEL = ModelIdentity(name="small", source="hub:owner/small", revision="abc", weights="pretrained")
DEVICE = Device(name="a processor")
CELL = Place(model="small", recipe="int8wo", hardware="cpu", server="vllm")


def measurement(metric: str, value: float, **changes: Any) -> Measurement:
    """A record of int8wo on vLLM; ``changes`` to the record, ``recipe`` and ``revision`` included."""
    recipe = changes.pop("recipe", "int8wo")
    model = MODEL.model_copy(update={"revision": changes.pop("revision", "abc")})
    identity = RecipeIdentity(name=recipe, hash=changes.pop("hash", "01"), config={})
    known = METRICS[metric]
    given: dict[str, Any] = {
        "metric": metric,
        "unit": known.unit,
        "direction": known.direction,
        "definition": known.version,
        "value": value,
        "cell": Cell(model=model, recipe=identity, hardware="cpu", server="vllm"),
        "packages": {"torchao": "0.18.0"},
        "device": DEVICE,
    }
    return Measurement(**given | changes)


def runs(root: Path, *rows: list[Measurement]) -> list[Run]:
    """A stored run for each list of records."""
    found = []
    for number, measurements in enumerate(rows):
        run = Run(root / f"run-{number}")
        for row in measurements:
            run.append(row)
        found.append(run)
    return found


def latencies(root: Path, values: list[float], **changes: Any) -> Baseline:
    (made,) = baseline.collect(runs(root, *([measurement("latency", value, **changes)] for value in values)))
    return made


# -------------------------------------------------------------------------------------------------------------- making


def test_a_baseline_has_every_value_and_their_spread(tmp_path: Path) -> None:
    made = latencies(tmp_path, [1.0, 1.1, 0.9])
    (entry,) = made.entries
    assert (entry.values, entry.place.metric, made.runs) == ([1.0, 1.1, 0.9], "latency", ["run-0", "run-1", "run-2"])
    assert entry.spread == pytest.approx(0.1005, abs=1e-3)
    assert baseline.load(made.write(tmp_path)) == made


def test_discarded_records_and_rare_figures_stay_out(tmp_path: Path) -> None:
    rows = [[measurement("latency", 9.0, discarded="throttled"), measurement("latency", 1.0)] for _ in range(3)]
    rows[0].append(measurement("ttft", 5.0))
    (made,) = baseline.collect(runs(tmp_path, *rows))
    assert [(entry.place.metric, entry.values) for entry in made.entries] == [("latency", [1.0] * 3)]


def test_too_few_runs_make_no_baseline(tmp_path: Path) -> None:
    with pytest.raises(TooFewSamples, match="a baseline needs at least 3 runs and got 2: measure 1 more"):
        latencies(tmp_path, [1.0, 1.0])
    one = runs(tmp_path / "one", [measurement("latency", 1.0)])[0]
    with pytest.raises(TooFewSamples, match="got 1"):
        baseline.collect([one, one, one])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"device": Device(name="another")}, "device differs: 'a processor' in run-0, 'another' in run-2"),
        ({"packages": {"torchao": "0.17.0"}}, "torchao differs: '0.18.0' in run-0, '0.17.0' in run-2"),
        ({"revision": "def"}, r"weights revision of latency of small/int8wo/vllm differs: 'abc' in run-0"),
        ({"hash": "02"}, "recipe digest of latency"),
        ({"definition": 2}, "definition version of latency"),
        ({"flags": {"enforce_eager": True}}, "flags of latency"),
    ],
)
def test_runs_that_differ_make_no_baseline(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    rows = [[measurement("latency", 1.0)] for _ in range(2)]
    with pytest.raises(BaselineError, match=f"do not make one baseline: the {named}"):
        baseline.collect(runs(tmp_path, *rows, [measurement("latency", 1.0, **changes)]))


def test_the_command_writes_the_file_and_says_what_it_can_tell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = runs(tmp_path / "runs", *([measurement("latency", value)] for value in (1.0, 1.02, 0.98, 1.01, 0.99)))
    names = [run.name for run in made]
    assert command_line.main(["baseline", *names, "--results", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert f"{tmp_path / 'baselines' / 'cpu.json'}: 1 metrics of 5 runs on a processor" in output
    assert "1.58%     6.4%   latency of small/int8wo/vllm" in output
    assert command_line.main(["baseline", *names[:2], "--results", str(tmp_path)]) == 2
    assert "needs at least 3 runs" in capsys.readouterr().err


def test_a_baseline_of_the_first_schema_is_read_as_the_same(tmp_path: Path) -> None:
    starts = [measurement("engine_start", 3.0, parameters={"kind": "server"}) for _ in range(3)]
    (made,) = baseline.collect(runs(tmp_path / "runs", *([measurement("latency", 1.0), start] for start in starts)))
    path = made.write(tmp_path)

    def first(data: dict[str, Any]) -> None:
        data["schema_version"] = 1
        for entry in data["entries"]:
            assert (entry.pop("hardware"), entry.pop("stage")) in (("cpu", "engine"), ("cpu", "server"))

    edit(path, first)
    assert baseline.load(path) == made


# ------------------------------------------------------------------------------------------------------------- refusing


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("not json", "not a baseline"),
        ("[]", "not a baseline"),
        ('{"schema_version": 99}', "schema version 99 is newer"),
        ('{"schema_version": 1}', "hardware: Field required; make the baseline anew"),
    ],
)
def test_a_file_that_is_no_baseline_is_named(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "cpu.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BaselineError, match=named) as caught:
        baseline.load(path)
    assert str(path) in str(caught.value)
    with pytest.raises(BaselineError, match="python -m harness baseline RUN RUN RUN"):
        baseline.load(tmp_path / "none.json")


def test_other_hardware_and_other_definitions_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    made = latencies(tmp_path, [1.0] * 3)
    baseline.refuse_other(made, path, DEVICE)
    with pytest.raises(BaselineError, match="was measured on a processor, and this is another"):
        baseline.refuse_other(made, path, Device(name="another"))
    (entry,) = made.entries
    older = made.model_copy(
        update={"entries": [entry.model_copy(update={"place": replace(entry.place, definition=0)})]}
    )
    with pytest.raises(BaselineError, match="latency was measured by version 0 of its definition, and today's is ver"):
        baseline.refuse_other(older, path, DEVICE)
    gone = made.model_copy(
        update={"entries": [entry.model_copy(update={"place": replace(entry.place, metric="speed")})]}
    )
    with pytest.raises(BaselineError, match="speed is not measured any more"):
        baseline.refuse_other(gone, path, DEVICE)


# ------------------------------------------------------------------------------------------------------------ verdicts


def entry_of(metric: str, values: list[float], **changes: Any) -> BaselineEntry:
    made = baseline._entry([(str(number), measurement(metric, value)) for number, value in enumerate(values)])
    return made.model_copy(update=changes)


@given(st.floats(0.5, 2), st.lists(st.floats(0.97, 1.03), min_size=5, max_size=9))
def test_a_figure_is_judged_by_ratio_whatever_its_direction(factor: float, noise: list[float]) -> None:
    slow = judge(entry_of("latency", noise), measurement("latency", factor))
    rates = [1 / value for value in noise]
    rate = judge(entry_of("output_throughput", rates), measurement("output_throughput", 1 / factor))
    assert slow.ratio == pytest.approx(1 / (rate.ratio or 1))
    assert slow.margin >= 0.05
    if slow.margin == rate.margin:
        assert slow.verdict == rate.verdict


@pytest.mark.parametrize(
    ("metric", "values", "today", "expected"),
    [
        ("latency", [1.0, 1.01, 0.99, 1.0, 1.0], 1.0, ("pass", "equivalent")),
        ("latency", [1.0, 1.01, 0.99, 1.0, 1.0], 1.5, ("regressed", "beyond-margin")),
        ("latency", [1.0, 1.01, 0.99, 1.0, 1.0], 0.5, ("pass", "improved")),
        ("latency", [1.0, 1.5, 0.7], 5.0, ("inconclusive", "too-noisy")),
        ("generate_throughput", [9.0, 9.1, 8.9, 9.0], 5.0, ("regressed", "beyond-margin")),
        ("peak_memory", [1.0, 1.0, 1.001], 1.005, ("pass", "within-range")),
        ("peak_memory", [1.0, 1.0, 1.001], 1.1, ("regressed", "beyond-range")),
        ("latency", [1.0, 1.0, 1.0], 0.0, ("error", "bad-samples")),
    ],
)
def test_verdicts(metric: str, values: list[float], today: float, expected: tuple[str, str]) -> None:
    found = judge(entry_of(metric, values), measurement(metric, today))
    assert (found.verdict, found.reason) == expected


def test_quality_is_paired_document_by_document() -> None:
    before = [1.0, 0.0] * 100
    after = [0.0, 0.0] * 20 + before[40:]
    entry = entry_of("accuracy", [0.5] * 3, samples=before)
    found = judge(entry, measurement("accuracy", 0.4, samples=after))
    assert found.verdict == "regressed"
    assert "20 lost, 0 won" in found.detail
    same = judge(entry, measurement("accuracy", 0.5, samples=before))
    assert (same.verdict, same.reason) == ("pass", "identical")
    other = judge(entry, measurement("accuracy", 0.5, samples=before[:10]))
    assert other.verdict == "error"


def test_figures_of_other_weights_are_not_compared() -> None:
    found = judge(entry_of("latency", [1.0] * 3), measurement("latency", 1.0, revision="def"))
    assert (found.verdict, found.reason) == ("error", "other-identity")
    assert "weights revision abc in the baseline and def today" in found.detail


class Night:
    """A session's measurements against a baseline of latencies near 1, without workers behind them."""

    def __init__(self, folder: Path, spread: float = 0.01) -> None:
        self.recorder = Recorder(_NoFlow(), Run(folder))  # type: ignore[arg-type]
        made = latencies(folder, [1.0, 1 + spread, 1 - spread, 1.0, 1.0])
        self.coverage = Coverage(whole={CELL}, seen=(), narrowed=False)
        self.against = Comparison(made, folder / "cpu.json", self.coverage, self.recorder)

    def take(self, value: float) -> None:
        self.recorder.measurements.append(measurement("latency", value))


class _NoFlow:
    """Has nothing to end, and no evaluation to answer from."""

    def close(self) -> None:
        pass

    @property
    def checkpoints(self) -> _NoFlow:
        return self

    anew = contextlib.nullcontext


def test_a_regression_fails_once_it_has_recurred(tmp_path: Path) -> None:
    night = Night(tmp_path)
    night.take(1.5)
    with pytest.raises(Regression, match=r"regressed: latency of small/int8wo/vllm: 1\.600 of the baseline"):
        night.against.check(lambda: night.take(1.6))
    (found,) = night.against.verdicts.values()
    assert (found.blocks, found.samples["new"]) == (2, [1.5, 1.6])
    assert night.against.missing() == []


def test_a_regression_that_does_not_recur_is_inconclusive(tmp_path: Path) -> None:
    night = Night(tmp_path)
    night.take(1.5)
    night.against.check(lambda: night.take(1.0))
    (found,) = night.against.verdicts.values()
    assert (found.verdict, found.reason) == ("inconclusive", "did-not-recur")
    assert "1.500 of the baseline" in found.detail


def test_a_second_block_that_fails_is_no_pass(tmp_path: Path) -> None:
    night = Night(tmp_path)
    night.take(1.5)

    def fail() -> None:
        raise HarnessError("the worker crashed")

    with pytest.raises(Regression, match="the second block could not be measured: the worker crashed"):
        night.against.check(fail)


def test_what_an_earlier_session_of_the_run_measured_is_not_missing(tmp_path: Path) -> None:
    night = Night(tmp_path)
    night.recorder.run.append(measurement("latency", 1.0))
    night.recorder.resume()
    assert night.against.missing() == []
    assert [found.verdict for found in night.against.verdicts.values()] == ["pass"]


def test_a_regression_beside_a_limit_that_is_known_not_to_hold_is_no_expected_failure() -> None:
    def check(_: object) -> None:
        raise HarnessError("latency is worse than the baseline")

    nightly = SimpleNamespace(comparison=SimpleNamespace(check=check), cells=[test := SimpleNamespace(runtest=None)])
    call = BaselineHooks.pytest_runtest_call(nightly, test)  # type: ignore[arg-type]
    next(call)
    with pytest.raises(ThresholdFailure, match="perplexity\nlatency is worse") as raised:
        call.throw(ThresholdFailure("perplexity", known="a small model"))
    assert not raised.value.known


def test_the_file_of_verdicts_is_json_where_the_baseline_was_zero(tmp_path: Path) -> None:
    night = Night(tmp_path)
    entry = entry_of("token_flips", [0.0] * 3, samples=[0.0] * 16)
    found = judge(entry, measurement("token_flips", 0.1, samples=[0.1] * 16))
    assert found.ratio is not None
    assert math.isnan(found.ratio)
    night.against.verdicts[entry.place.named] = found
    text = night.against.write(tmp_path).read_text()
    (verdict,) = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["verdicts"]
    assert (verdict["verdict"], verdict["ratio"]) == ("regressed", None)


def test_what_is_fine_is_measured_once(tmp_path: Path) -> None:
    night = Night(tmp_path)
    night.take(1.0)
    night.against.check(lambda: pytest.fail("measured again"))
    assert night.against.lines()[-1].startswith("0 regressed, 0 error, 0 inconclusive, 1 pass; 5 runs stand behind")


def test_a_pass_at_a_wider_margin_than_was_asked_for_is_not_silent(tmp_path: Path) -> None:
    quiet, noisy = Night(tmp_path / "quiet"), Night(tmp_path / "noisy", 0.04)
    for night in (quiet, noisy):
        night.take(1.0)
        night.against.check(lambda: None)
    assert len(quiet.against.lines()) == 1
    said, _ = noisy.against.lines()
    (found,) = noisy.against.verdicts.values()
    assert (found.verdict, found.margin > 0.1) == ("pass", True)
    assert said.startswith(
        f"1 passed at a margin of up to {found.margin:.1%}, which is more than is asked for: the 5 runs"
    )


@pytest.mark.parametrize(
    ("whole", "seen", "narrowed", "expected"),
    [(True, True, False, True), (False, True, False, False), (False, False, False, True), (False, False, True, False)],
)
def test_what_a_session_left_out_on_purpose_is_not_missing(
    tmp_path: Path, whole: bool, seen: bool, narrowed: bool, expected: bool
) -> None:
    cell = {CELL}
    night = Night(tmp_path)
    night.against.coverage = Coverage(cell if whole else set(), cell if seen else set(), narrowed)
    assert night.against.missing() == (["latency of small/int8wo/vllm"] if expected else [])


# ------------------------------------------------------------------------------------------------------- real sessions

SELECTED = "bf16 and (checkpoint or generate)"


class Story:
    """A real run of the suites on the tiny model, and sessions that resume copies of it against a baseline."""

    def __init__(self, repository: Path, folder: Path, model: Path, cache: Path) -> None:
        self.repository = repository
        self.folder = folder
        self.options = ["--model", str(model), "--recipe", "bf16", "--cache", str(cache)]
        status, output = self.run(folder, SELECTED)
        assert status == 0, output

    def run(self, folder: Path, selected: str, *arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "pytest", "suites", "-m", "cpu", "-p", "no:cacheprovider", "-k", selected]
        command += ["-p", "tests.steady", "--results", str(folder / "results"), *self.options, *arguments]
        environ = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
        done = subprocess.run(command, cwd=self.repository, env=environ, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    def copy(self, folder: Path) -> Path:
        """Copy the run, make a baseline of it under three names, and return the baseline's file."""
        shutil.copytree(self.folder / "results", folder / "results")
        (run,) = (folder / "results" / "runs").iterdir()
        for name in ("a", "b", "c"):
            shutil.copytree(run, folder / "results" / "before" / "runs" / name)
        before = str(folder / "results" / "before")
        output = str(folder / "results" / "baselines")
        assert command_line.main(["baseline", "a", "b", "c", "--results", before, "-o", output]) == 0
        return folder / "results" / "baselines" / "cpu.json"


@pytest.fixture(scope="module")
def story(
    repository: Path, tiny_model: Any, kept_store: Any, imports_stand: None, tmp_path_factory: pytest.TempPathFactory
) -> Story:
    return Story(repository, tmp_path_factory.mktemp("story"), tiny_model.folder, kept_store.root)


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def test_a_session_that_is_as_before_passes_and_one_that_misses_a_figure_does_not(story: Story, tmp_path: Path) -> None:
    path = story.copy(tmp_path)
    status, output = story.run(tmp_path, SELECTED, "--resume", "--against", "cpu")
    assert status == 0, output
    assert "0 regressed, 0 error, 0 inconclusive, 3 pass; 3 runs stand behind" in output
    (written,) = tmp_path.glob("results/runs/*/against.json")
    assert {found["verdict"] for found in json.loads(written.read_text())["verdicts"]} == {"pass"}

    def add(data: dict[str, Any]) -> None:
        for entry in list(data["entries"]):
            data["entries"].append(entry | {"parameters": {"part": 2}})

    edit(path, add)
    status, output = story.run(tmp_path, SELECTED, "--resume", "--against", str(path))
    assert status == 1
    told = " ".join(output.split())
    # Transformers' other tests were left out by -k, so what they might have measured is not missing.
    assert re.findall(
        r"error: (\w+ \(part=2\)) of model/bf16: missing: it stands in the baseline and was not", told
    ) == [
        "checkpoint_size (part=2)",
        "weight_size (part=2)",
    ]


def test_a_regression_is_measured_again_in_a_fresh_worker_before_it_fails(story: Story, tmp_path: Path) -> None:
    path = story.copy(tmp_path)

    def faster(data: dict[str, Any]) -> None:
        for entry in data["entries"]:
            if entry["metric"] == "generate_throughput":
                entry["values"] = [10 * value for value in entry["values"]]

    edit(path, faster)
    (records,) = tmp_path.glob("results/runs/*/records.jsonl")
    before = len([line for line in read(records)[0] if line.kind == "measurement"])
    status, output = story.run(tmp_path, SELECTED, "--resume", "--against", "cpu")
    assert status == 1
    assert "1 regressed, 0 error" in output
    assert "1 failed, 1 passed" in output
    rows = [line for line in read(records)[0] if isinstance(line, Measurement)]
    assert [row.metric for row in rows[before:]] == ["generate_throughput"]
    (written,) = tmp_path.glob("results/runs/*/against.json")
    (found,) = [row for row in json.loads(written.read_text())["verdicts"] if row["verdict"] == "regressed"]
    assert (found["blocks"], len(found["samples"]["new"])) == (2, 2)


def test_a_baseline_of_other_hardware_is_refused_before_anything_is_measured(story: Story, tmp_path: Path) -> None:
    path = story.copy(tmp_path)
    edit(path, lambda data: data["device"].update(name="another processor"))
    status, output = story.run(tmp_path, SELECTED, "--against", "cpu")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "was measured on another processor, and this is" in " ".join(output.split())
    assert len(list(tmp_path.glob("results/runs/*"))) == 1
