"""Exports: the PyTorch database's schema field by field, CSV and Parquet that can be read back, JUnit of a gate."""

from __future__ import annotations

import csv
import json
import math
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.__main__ import main
from harness.base.errors import RecordError
from harness.judge import gatefile
from harness.records.published import Documented
from harness.records.schema import Measurement
from harness.report import junit, pytorch_v3
from harness.report.spreadsheet import unquoted
from tests.laws import examples
from tests.records.test_columns import written
from tests.records.test_records import LATENCY, LINES, MEASUREMENTS, NAMES
from tests.report.test_tables import measured

FEW = examples(15)
TEXTS = {"Map(String, String)": lambda value: all(isinstance(it, str) for it in (*value, *value.values()))}
CHECKS = {
    "String": lambda value: isinstance(value, str),
    "UInt32": lambda value: type(value) is int and 0 <= value < 2**32,
    "UInt64": lambda value: type(value) is int and 0 <= value < 2**64,
    "Float32": lambda value: type(value) is float and math.isfinite(value) and abs(value) < 3.41e38,
    "Array(Float32)": lambda value: all(CHECKS["Float32"](it) for it in value),
    "Array(String)": lambda value: all(isinstance(it, str) for it in value),
    **TEXTS,
}
# Every column of benchmark.oss_ci_benchmark_v3 with its type, but for _meta, which the database's replicator fills in.
COLUMNS: dict[str, Any] = {
    "timestamp": "UInt64",
    "schema_version": "String",
    "name": "String",
    "repo": "String",
    "head_branch": "String",
    "head_sha": "String",
    "workflow_id": "UInt64",
    "run_attempt": "UInt32",
    "job_id": "UInt64",
    "servicelab_experiment_id": "UInt64",
    "servicelab_trial_id": "UInt64",
    "runners": [
        {
            "name": "String",
            "type": "String",
            "cpu_info": "String",
            "cpu_count": "UInt32",
            "mem_info": "String",
            "avail_mem_in_gb": "UInt32",
            "gpu_info": "String",
            "gpu_count": "UInt32",
            "gpu_mem_info": "String",
            "avail_gpu_mem_in_gb": "UInt32",
            "extra_info": "Map(String, String)",
        }
    ],
    "benchmark": {"name": "String", "mode": "String", "dtype": "String", "extra_info": "Map(String, String)"},
    "model": {
        "name": "String",
        "type": "String",
        "backend": "String",
        "origins": "Array(String)",
        "extra_info": "Map(String, String)",
    },
    "inputs": ("map", {"dtype": "String", "extra_info": "Map(String, String)"}),
    "dependencies": (
        "map",
        {
            "repo": "String",
            "branch": "String",
            "sha": "String",
            "version": "String",
            "extra_info": "Map(String, String)",
        },
    ),
    "metric": {
        "name": "String",
        "benchmark_values": "Array(Float32)",
        "target_value": "Float32",
        "extra_info": "Map(String, String)",
    },
}


def check(value: Any, expected: Any, where: str = "record") -> None:
    if isinstance(expected, str):
        assert CHECKS[expected](value), f"{where} is {value!r}, not {expected}"
    elif isinstance(expected, list):
        assert isinstance(value, list)
        for item in value:
            check(item, expected[0], where)
    elif isinstance(expected, tuple):
        for name, item in value.items():
            check(item, expected[1], f"{where}.{name}")
    else:
        assert list(value) == list(expected), where
        for name, of in expected.items():
            check(value[name], of, f"{where}.{name}")


def exported(run: Path, format: str, file: str = "out") -> Path:
    target = run.parent / file
    assert main(["export", str(run), "--format", format, "-o", str(target)]) == 0
    return target


@pytest.mark.programs
def test_every_real_record_meets_the_schema_field_by_field(repository: Path, tmp_path: Path) -> None:
    for run in sorted(path.parent for path in (repository / "results" / "reference").glob("*/records.jsonl")):
        target = tmp_path / run.name
        assert main(["export", str(run), "--format", "pytorch-v3", "-o", str(target)]) == 0
        records = json.loads(target.read_text())
        assert len(records) > 40
        for record in records:
            check(record, COLUMNS)
            (runner,) = record["runners"]
            assert runner["cpu_count"] > 0
            assert runner["avail_mem_in_gb"] > 0
            assert record["dependencies"]["torchao"]["version"]
            assert record["dependencies"]["torchao"]["repo"] == "pytorch/ao"


@FEW
@given(st.lists(MEASUREMENTS, max_size=3))
@pytest.mark.programs
def test_hostile_records_meet_the_schema_too(lines: list[Measurement]) -> None:
    kept = [line.model_copy(update={"value": 1.5, "samples": [1.5], "statistics": {}}) for line in lines]
    for record in pytorch_v3.records(kept, Documented(), {}):
        check(json.loads(record.model_dump_json()), COLUMNS)


@pytest.mark.parametrize(
    ("metric", "name", "value", "shown"),
    [
        ("latency", "latency", 1.2, 1.2),
        ("request_throughput", "requests_per_second", 3.0, 3.0),
        ("output_throughput", "tokens_per_second", 3.0, 3.0),
        ("generate_throughput", "token_per_sec", 14.0, 14.0),
        ("ttft", "median_ttft_ms", 20.0, 20.0),
        ("compile_time", "compilation_time(s)", 30.0, 30.0),
        ("peak_memory", "peak_inference_mem_usage(mb)", 0.5, 500.0),
        ("weight_size", "weight_size(B)", 1e6, 1e6),
        ("perplexity", "perplexity", 10.0, 10.0),
    ],
)
def test_metrics_have_the_dashboards_names_and_units(metric: str, name: str, value: float, shown: float) -> None:
    (record,) = pytorch_v3.records([measured(metric, value)], Documented(), {})
    assert (record.metric.name, record.metric.benchmark_values) == (name, [pytest.approx(shown)])


def test_percentiles_are_metrics_of_their_own_and_the_mean_shown_is_the_value() -> None:
    row = measured("ttft", 20.0, statistics={"p99": 55.0}).model_copy(update={"samples": [10.0, 20.0, 60.0]})
    median, last = pytorch_v3.records([row], Documented(), {})
    assert (median.metric.name, median.metric.benchmark_values) == ("median_ttft_ms", [20.0])
    assert (last.metric.name, last.metric.benchmark_values) == ("p99_ttft_ms", [55.0])
    mean = measured("latency", 2.0).model_copy(update={"samples": [1.0, 3.0]})
    assert pytorch_v3.records([mean], Documented(), {})[0].metric.benchmark_values == [1.0, 3.0]


def test_github_says_what_was_run_and_published_figures_are_targets() -> None:
    variables = {
        "GITHUB_REPOSITORY": "owner/name",
        "GITHUB_REF_NAME": "main",
        "GITHUB_SHA": "abc",
        "GITHUB_RUN_ID": "12345678901",
        "GITHUB_RUN_ATTEMPT": "2",
    }
    model = measured("peak_memory", 9.0).cell.model.model_copy(update={"name": "Phi-4-mini-instruct"})
    row = measured("peak_memory", 9.0, model=model, server="transformers", parameters={"max_new_tokens": 128})
    discarded = row.model_copy(update={"discarded": "throttled"})
    (record,) = pytorch_v3.records([row, discarded], Documented.load(), variables)
    assert (record.repo, record.head_branch, record.head_sha) == ("owner/name", "main", "abc")
    assert (record.workflow_id, record.run_attempt) == (12345678901, 2)
    figure = Documented.load().find("Phi-4-mini-instruct", "bf16", "h100", "peak_memory", row.parameters)
    assert figure is not None
    assert record.metric.target_value == pytest.approx(figure.value * 1000)


def test_a_pull_requests_records_name_its_branch_its_commit_and_the_job() -> None:
    variables = {
        "GITHUB_REF_NAME": "7/merge",
        "GITHUB_HEAD_REF": "faster",
        "GITHUB_SHA": "merged",
        "HEAD_SHA": "abc",
        "JOB_ID": "51725241954",
    }
    (record,) = pytorch_v3.records([measured("latency", 1.0)], Documented(), variables)
    assert (record.head_branch, record.head_sha, record.job_id) == ("faster", "abc", 51725241954)


def test_variables_that_are_empty_are_as_if_not_set() -> None:
    names = ("GITHUB_RUN_ID", "GITHUB_RUN_ATTEMPT", "JOB_ID", "GITHUB_JOB", "GITHUB_HEAD_REF", "HEAD_SHA")
    row = measured("latency", 1.0)
    empty, unset = (pytorch_v3.records([row], Documented(), them) for them in (dict.fromkeys(names, ""), {}))
    assert empty == unset


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "\u0661", str(2**64), "9" * 5000])
@pytest.mark.parametrize("name", ["GITHUB_RUN_ID", "GITHUB_RUN_ATTEMPT", "JOB_ID"])
def test_a_variable_that_is_no_number_is_named(
    tmp_path: Path, name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    run = written(tmp_path, [measured("latency", 1.0)])
    assert main(["export", str(run.folder), "--format", "pytorch-v3"]) == 2
    assert f"{name} is '{value[:5]}" in capsys.readouterr().err


@FEW
@given(st.lists(LINES, min_size=1, max_size=3))
@pytest.mark.programs
def test_csv_and_parquet_hold_every_line_whatever_it_holds(lines: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = written(Path(folder), lines)
        with exported(run.folder, "csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        table = pq.read_table(exported(run.folder, "parquet")).to_pylist()
    assert [row["kind"] for row in rows] == [row["kind"] for row in table] == [line.kind for line in lines]
    for line, row, cells in zip(lines, rows, table, strict=True):
        assert (row["run"], cells["run"]) == ("run", "run")
        if isinstance(line, Measurement):
            assert tuple(map(unquoted, (row["model"], row["recipe"], row["unit"]))) == (
                line.cell.model.name,
                line.cell.recipe.name,
                line.unit,
            )
            assert json.loads(row["parameters"]) == json.loads(cells["parameters"]) == line.parameters
            assert cells["samples"] == line.samples
            assert [float(it) for it in row["samples"].split()] == line.samples


@pytest.mark.parametrize("form", ["csv", "parquet", "pytorch-v3"])
def test_what_is_exported_is_the_same_whether_its_columns_were_kept(
    form: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = max((repository / "results" / "reference").glob("cpu-*"))
    first, second = tmp_path / "first", tmp_path / "second"
    for file in (first, second):
        assert main(["export", str(run), "--format", form, "-o", str(file)]) == 0
    assert list((tmp_path / "cache").rglob("*.parquet"))
    assert first.read_bytes() == second.read_bytes()


def test_a_figure_too_large_for_the_database_is_named() -> None:
    with pytest.raises(RecordError, match=r"latency of .* is 1e\+300 s"):
        pytorch_v3.records([measured("latency", 1e300)], Documented(), {})


def test_standard_output_takes_an_export_and_broken_lines_are_named(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    run = written(tmp_path, [LATENCY])
    with run.path.open("ab") as file:
        file.write(b"{half")
    assert main(["export", str(run.folder), "--format", "pytorch-v3"]) == 0
    out, error = capfdbinary.readouterr()
    assert len(json.loads(out)) == 1
    assert b"line 2: left out" in error


# -------------------------------------------------------------------------------------------------------------- gates

OF = {
    "peak_memory": {"metric": "peak_memory", "unit": "GB", "direction": "lower"},
    "ttft": {"metric": "ttft", "unit": "ms", "direction": "lower"},
}
VERDICT = {
    "model": "small",
    "recipe": "int8wo",
    "server": "vllm",
    "metric": "latency",
    "task": None,
    "unit": "s",
    "direction": "lower",
    "primary": True,
    "verdict": "pass",
    "ratio": 1.01,
    "low": 0.99,
    "high": 1.03,
    "confidence": 0.95,
    "margin": 0.05,
    "blocks": 8,
    "reason": "within-margin",
    "detail": "The interval lies within the margin.",
    "drift_cancelled": True,
    "samples": {"old": [1.0], "new": [1.01]},
}
GATE = {
    "schema": 1,
    "package": "torchao",
    "old": "torchao==0.17.0",
    "new": "torchao==0.18.0",
    "hardware": "cpu",
    "created": "2026-11-23T18:00:00+00:00",
    "budget_seconds": 1800,
    "seconds": 1234.5,
    "measuring_seconds": 900.0,
    "seed": 0,
    "environments": {"old": {"torchao": "0.17.0"}, "new": {"torchao": "0.18.0"}},
    "differences": ["torchao 0.17.0 -> 0.18.0"],
    "verdicts": [
        VERDICT,
        VERDICT | {"verdict": "regressed", **OF["peak_memory"], "low": 1.08, "ratio": 1.1, "high": 1.12},
        VERDICT | {"verdict": "inconclusive", **OF["ttft"], "low": 0.9, "high": 1.2},
        VERDICT | {"verdict": "error", "server": None, "ratio": None, "low": None, "high": None},
    ],
    "compatibility": [
        {"model": "small", "recipe": "int8wo", "server": None, "stage": "load", "old": "works", "new": "fails",
         "error": "ValueError: no"}
    ],
    "kernels": [],
    "exit_status": 1,
}  # fmt: skip


def gate_folder(folder: Path, data: Any = GATE) -> Path:
    (folder / "gate").mkdir(parents=True, exist_ok=True)
    (folder / "gate" / "gate.json").write_text(json.dumps(data), encoding="utf-8")
    return folder / "gate"


def test_a_gates_verdicts_are_junit(tmp_path: Path) -> None:
    suite = ElementTree.parse(exported(gate_folder(tmp_path), "junit")).getroot()[0]
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "4",
        "failures": "1",
        "errors": "1",
        "skipped": "1",
    }
    found = [[told.tag for told in case if told.tag != "system-out"] for case in suite]
    assert found == [[], ["failure"], ["skipped"], ["error"]]


def test_a_gates_verdicts_are_markdown(tmp_path: Path) -> None:
    text = exported(gate_folder(tmp_path), "markdown").read_text()
    assert "torchao==0.17.0 to torchao==0.18.0 on cpu: exit status 1" in text
    assert "peak_memory" in text
    assert "| 1.1000    | 1.0800 to 1.1200 |" in text
    assert "ValueError: no" in text


@FEW
@given(NAMES)
def test_junit_stays_sound_whatever_names_hold(name: str) -> None:
    verdict = VERDICT | {"model": name, "reason": name, "detail": name, "verdict": "regressed"}
    data = junit.junit([gatefile.parse(GATE | {"verdicts": [verdict], "old": name}, "here")])
    assert len(ElementTree.fromstring(data)[0]) == 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (GATE | {"schema": 3}, "schema 3 is newer"),
        ({"schema": 1}, "package"),
        (GATE | {"verdicts": [VERDICT | {"verdict": "maybe"}]}, "verdicts.0.verdict"),
        (GATE | {"verdicts": [VERDICT | {"direction": "higher"}]}, "verdicts.0: direction 'higher' of latency must be"),
        (GATE | {"verdicts": [VERDICT | {"unit": "h"}]}, "verdicts.0: unit 'h' of latency must be 's'"),
        (GATE | {"verdicts": [VERDICT | {"metric": "latencies"}]}, "verdicts.0: latencies is not measured any more"),
        (GATE | {"verdicts": [VERDICT | {"metric": "works: load and run"}]}, "has neither unit nor direction"),
    ],
)
def test_a_gate_that_does_not_hold_is_named(
    tmp_path: Path, data: Any, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = gate_folder(tmp_path, data)
    assert main(["export", str(folder), "--format", "junit"]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert str(folder / "gate.json") in told
