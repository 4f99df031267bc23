"""Records as the PyTorch benchmark database takes them: schema v3, one JSON record a metric.

The schema is that of the table benchmark.oss_ci_benchmark_v3 (pytorch/test-infra, clickhouse_db_schema/
oss_ci_benchmark_v3/schema.sql); metric names and units are those that its dashboard knows (torchci/lib/benchmark/llms/
common.ts there). ``_meta`` is left out: the database fills it in.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from harness import __version__
from harness.base.errors import RecordError
from harness.records.published import Documented
from harness.records.schema import Device, Measurement, Scalar
from harness.servers.registry import distributions

UInt32 = Annotated[int, Field(ge=0, lt=2**32)]
UInt64 = Annotated[int, Field(ge=0, lt=2**64)]
_LARGEST = 3.4028234e38
Float32 = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST, allow_inf_nan=False)]
Extra = dict[str, str]


class _Tuple(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Runner(_Tuple):
    """A device that the benchmark ran on."""

    name: str = Field(description="cpu or cuda: what the dashboard calls the device.")
    type: str = Field(description="The processor or GPU.")
    cpu_info: str
    cpu_count: UInt32
    mem_info: str = ""
    avail_mem_in_gb: UInt32 = Field(description="GiB, rounded down, as the dashboard's own scripts fill it in.")
    gpu_info: str = ""
    gpu_count: UInt32 = 0
    gpu_mem_info: str = ""
    avail_gpu_mem_in_gb: UInt32 = 0
    extra_info: Extra = {}


class Benchmark(_Tuple):
    name: str
    mode: Literal["inference"] = "inference"
    dtype: str = Field(description="The recipe, as torchao's own records have it.")
    extra_info: Extra = {}


class Model(_Tuple):
    name: str
    type: str = "model"
    backend: str
    origins: list[str]
    extra_info: Extra = {}


class Input(_Tuple):
    dtype: str
    extra_info: Extra


class Dependency(_Tuple):
    repo: str
    branch: str = ""
    sha: str = ""
    version: str
    extra_info: Extra = {}


class Metric(_Tuple):
    name: str
    benchmark_values: list[Float32]
    target_value: Float32 = Field(description="The published figure; 0 where there is none.")
    extra_info: Extra = {}


class Record(_Tuple):
    """One row of the database's table."""

    timestamp: UInt64 = Field(description="Seconds since the epoch.")
    schema_version: Literal["v3"] = "v3"
    name: str = Field(description="The job's name.")
    repo: str
    head_branch: str
    head_sha: str
    workflow_id: UInt64
    run_attempt: UInt32
    job_id: UInt64
    servicelab_experiment_id: UInt64 = 0
    servicelab_trial_id: UInt64 = 0
    runners: list[Runner]
    benchmark: Benchmark
    model: Model
    inputs: dict[str, Input]
    dependencies: dict[str, Dependency]
    metric: Metric


# (metric, statistic) -> the dashboard's name and what a value is multiplied with for the unit in it.
_DASHBOARD: dict[tuple[str, str], tuple[str, float]] = {
    ("latency", ""): ("latency", 1.0),
    ("request_throughput", ""): ("requests_per_second", 1.0),
    ("output_throughput", ""): ("tokens_per_second", 1.0),
    ("generate_throughput", ""): ("token_per_sec", 1.0),
    ("ttft", ""): ("median_ttft_ms", 1.0),
    ("ttft", "p99"): ("p99_ttft_ms", 1.0),
    ("tpot", ""): ("median_tpot_ms", 1.0),
    ("tpot", "p99"): ("p99_tpot_ms", 1.0),
    ("itl", ""): ("median_itl_ms", 1.0),
    ("itl", "p99"): ("p99_itl_ms", 1.0),
    ("compile_time", ""): ("compilation_time(s)", 1.0),
    ("peak_memory", ""): ("peak_inference_mem_usage(mb)", 1000.0),
}

_REPOSITORIES = {
    "torch": "pytorch/pytorch",
    "torchao": "pytorch/ao",
    "transformers": "huggingface/transformers",
    "tokenizers": "huggingface/tokenizers",
    "accelerate": "huggingface/accelerate",
    "executorch": "pytorch/executorch",
    "lm_eval": "EleutherAI/lm-evaluation-harness",
    "triton": "triton-lang/triton",
    "numpy": "numpy/numpy",
}


def records(
    measurements: Iterable[Measurement], documented: Documented, environ: Mapping[str, str] = os.environ
) -> list[Record]:
    """Return the database's records of all measurements of a run's own that were not discarded.

    Where the job runs on GitHub its own variables say which commit and workflow it was; else those fields are empty.
    GitHub sets none for a job's number and for the commit of a pull request, where its own is that of the merge: a
    workflow gives them as ``JOB_ID`` and ``HEAD_SHA``. Raises RecordError for a variable that is no number.
    """
    found = []
    for row in measurements:
        if not row.own:
            continue
        figure = documented.find(
            row.cell.model.name, row.cell.recipe.name, row.cell.hardware, row.metric, row.parameters
        )
        found.append(_record(row, "", row.value, figure.value if figure else 0.0, environ))
        if (row.metric, "p99") in _DASHBOARD and "p99" in row.statistics:
            found.append(_record(row, "p99", row.statistics["p99"], 0.0, environ))
    return found


def _record(row: Measurement, statistic: str, value: float, target: float, environ: Mapping[str, str]) -> Record:
    plain = f"{row.metric}({row.unit})" if row.unit not in ("1", "fraction") else row.metric
    name, factor = _DASHBOARD.get((row.metric, statistic), (plain, 1.0))
    values = [value]
    # The dashboard shows the mean of the values: samples of which the figure is not the mean would show another.
    if not statistic and row.samples and math.isclose(math.fsum(row.samples) / len(row.samples), value, rel_tol=1e-9):
        values = list(row.samples)
    if max(abs(it * factor) for it in values) > _LARGEST:
        raise RecordError(
            f"{row.metric} of {row.cell.model.name} {row.cell.recipe.name} is {value:g} {row.unit}: the benchmark "
            "database holds 32-bit floats; leave that run out"
        )
    return Record(
        timestamp=int(row.time),
        name=environ.get("GITHUB_JOB") or "torchao-harness",
        repo=environ.get("GITHUB_REPOSITORY", ""),
        head_branch=environ.get("GITHUB_HEAD_REF") or environ.get("GITHUB_REF_NAME", ""),
        head_sha=environ.get("HEAD_SHA") or environ.get("GITHUB_SHA", ""),
        workflow_id=_number(environ, "GITHUB_RUN_ID", 0, 2**64),
        run_attempt=_number(environ, "GITHUB_RUN_ATTEMPT", 1, 2**32),
        job_id=_number(environ, "JOB_ID", 0, 2**64),
        runners=[_runner(row.device, row.cell.hardware)],
        benchmark=Benchmark(name="TorchAO benchmark", dtype=row.cell.recipe.name, extra_info=_benchmark(row)),
        model=Model(
            name=row.cell.model.name,
            backend=row.cell.server,
            origins=["torchao"],
            extra_info={
                "source": row.cell.model.source,
                "revision": row.cell.model.revision,
                "weights": row.cell.model.weights,
            },
        ),
        inputs={"prompts": Input(dtype="int64", extra_info=_texts(row.parameters))} if row.parameters else {},
        dependencies={
            package: Dependency(repo=(_REPOSITORIES | distributions()).get(package, ""), version=version)
            for package, version in row.packages.items()
        },
        metric=Metric(
            name=name,
            benchmark_values=[it * factor for it in values],
            target_value=target * factor,
            extra_info={"unit": row.unit, "direction": row.direction, "definition": str(row.definition)},
        ),
    )


def _number(environ: Mapping[str, str], name: str, without: int, limit: int) -> int:
    given = environ.get(name) or str(without)
    if not (given.isascii() and given.isdecimal() and len(given) <= 20 and int(given) < limit):
        raise RecordError(f"{name} is {given!r}: not a number that the benchmark database holds; unset it")
    return int(given)


def _benchmark(row: Measurement) -> Extra:
    eager = row.flags.get("enforce_eager")
    return {
        "device": _kind(row.cell.hardware, row.device),
        "arch": row.device.name,
        "hardware": row.cell.hardware,
        "recipe_hash": row.cell.recipe.hash,
        **({"gpus": str(row.cell.gpus)} if row.cell.gpus > 1 else {}),
        "harness": __version__,
        **({} if eager is None else {"compile": str(not eager).lower()}),
        **{f"flag {name}": text for name, text in _texts(row.flags).items()},
    }


def _kind(hardware: str, device: Device) -> str:
    return device.torch_device or hardware


def _runner(device: Device, hardware: str) -> Runner:
    detail = device.detail
    gpu = device.vendor != "none"
    return Runner(
        name=_kind(hardware, device),
        type=device.name,
        cpu_info=str(detail.get("processor", "")),
        cpu_count=_whole(detail.get("cores")),
        avail_mem_in_gb=_gibibytes(detail.get("memory_gb")),
        gpu_info=device.name if gpu else "",
        gpu_count=1 if gpu else 0,
        avail_gpu_mem_in_gb=_gibibytes(detail.get("gpu_memory_gb")),
        extra_info=_texts(detail),
    )


def _whole(value: Scalar | None) -> int:
    number = float(value) if isinstance(value, (int, float)) else 0.0
    return int(number) if 0 <= number < 2**32 else 0


def _gibibytes(gigabytes: Scalar | None) -> int:
    return _whole(float(gigabytes) * 1e9 / 2**30) if isinstance(gigabytes, (int, float)) else 0


def _texts(values: Mapping[str, Scalar]) -> Extra:
    return {name: str(value) for name, value in values.items()}
