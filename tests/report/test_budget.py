"""What the table cost: both sides of the ratio cover the same rows, and nothing is made to cost more than it would."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from harness.__main__ import main
from harness.measure.recorder import record_of
from harness.records.by_hand import ByHand, Ran
from harness.records.run import Run
from harness.records.schema import (
    Cell,
    Device,
    Line,
    Measurement,
    ModelIdentity,
    Outcome,
    RecipeIdentity,
    Scalar,
    Timing,
)
from harness.report.budget import TUTORIAL_ITERATIONS, cost

MODEL = ModelIdentity(name="Phi-4-mini-instruct", source="random:phi", revision="r", weights="random")


def cell(recipe: str = "bf16", server: str = "vllm") -> Cell:
    identity = RecipeIdentity(name=recipe, hash=recipe, config={}, baseline=recipe == "bf16")
    return Cell(model=MODEL, recipe=identity, hardware="h100", server=server)


def measured(
    metric: str, value: float, of: Cell, *, discarded: str = "", seconds: float = 0.0, **parameters: Scalar
) -> Measurement:
    return record_of(
        metric,
        value,
        cell=of,
        parameters=parameters,
        statistics={"seconds": seconds} if seconds else {},
        packages={},
        device=Device(name="H100"),
        discarded=discarded,
    )


def spent(stage: str, seconds: float, of: Cell | None) -> Timing:
    return Timing(stage=stage, seconds=seconds, cell=of)


def ended(test: str) -> Outcome:
    return Outcome(test=test, outcome="passed", seconds=1)


def memory(recipe: str = "bf16") -> list[Line]:
    of = cell(recipe, "transformers")
    return [
        spent("setup", 20, of),
        spent("measure", 15, of),
        measured("engine_start", 20, of, kind="transformers"),
        measured("peak_memory", 8.9, of, seconds=14.0),
        ended("test_peak_memory"),
    ]


def latency(recipe: str = "bf16", server: str = "vllm") -> list[Line]:
    of = cell(recipe, server)
    return [
        spent("compile", 30, of),
        spent("engine start", 140, of),
        measured("engine_start", 170, of, kind="engine"),
        measured("compile_time", 30, of, kind="engine"),
        ended("test_engine"),
        spent("measure", 13, of),
        measured("latency", 1.0, of, batch_size=1),
        ended("test_latency"),
        spent("measure", 26, of),
        measured("latency", 2.0, of, batch_size=128),
        ended("test_latency"),
    ]


def serving(recipe: str = "bf16", server: str = "vllm", client: float = 20) -> list[Line]:
    of = cell(recipe, server)
    return [
        spent("engine start", 97, of),
        measured("engine_start", client, of, kind="client"),
        measured("engine_start", 97, of, kind="server"),
        ended("test_server"),
        spent("measure", 3, of),
        measured("request_throughput", 1.0, of, num_prompts=1),
        ended("test_serving"),
        spent("measure", 60, of),
        measured("request_throughput", 50.0, of, num_prompts=1000),
        ended("test_serving"),
    ]


ROUNDS = TUTORIAL_ITERATIONS * (1 + 2)


def test_the_memory_script_is_a_process_of_its_own() -> None:
    found = cost(memory())
    assert found is not None
    assert (found.spent, found.tutorial, found.missing) == (35, 34, ())
    assert found.ratio == pytest.approx(35 / 34)


def test_the_baselines_second_latency_command_finds_what_the_first_compiled() -> None:
    found = cost(latency())
    assert found is not None
    assert found.tutorial == 170 + 140 + ROUNDS
    assert found.spent == 170 + 13 + 26


def test_a_quantized_recipes_commands_compile_each_time() -> None:
    found = cost(latency("float8dq"))
    assert found is not None
    assert found.tutorial == 2 * 170 + ROUNDS


def test_a_warm_start_is_no_longer_than_the_servers() -> None:
    """The server of the session finds what its engine compiled, as the second command does."""
    found = cost([*latency(), *serving()])
    assert found is not None
    engines, servers = 170 + 97 + ROUNDS, 97 + 20 + 1 + 20
    assert found.tutorial == engines + servers
    assert found.spent == 170 + 13 + 26 + 97 + 3 + 60
    quantized = cost([*latency("float8dq"), *serving("float8dq")])
    assert quantized is not None
    assert quantized.tutorial == 170 + (97 + 30) + ROUNDS + servers


def sharing(line: Line) -> Line:
    return line.model_copy(update={"flags": {"shared_engine": True}}) if isinstance(line, Measurement) else line


def test_one_start_for_engine_and_server_is_spent_once() -> None:
    """Both kinds of start tell the one there was; by itself the server would have found what it compiled."""
    server = [measured("engine_start", 171, cell(), kind="server"), *serving()[4:]]
    found = cost(sharing(it) for it in [*latency(), *server])
    assert found is not None
    assert found.spent == 170 + 13 + 26 + 3 + 60
    alone = 171 - 30
    assert found.tutorial == 170 + (170 - 30) + ROUNDS + alone + 1 + 20
    assert found.missing == ("the client of Phi-4-mini-instruct bf16 on h100",)


def test_what_an_earlier_session_had_compiled_makes_the_commands_no_cheaper() -> None:
    """They begin with empty caches, so they start as the start did that found nothing; the session spends its own."""
    cold = cost([*latency("float8dq"), *serving("float8dq")])
    told = {"engine_start": {"cold_start": 170.0}, "compile_time": {"cold_compile": 30.0}}
    warm: list[Line] = [spent("engine start", 80, cell("float8dq"))]
    for line in latency("float8dq")[2:]:
        if isinstance(line, Measurement) and line.metric in told:
            statistics = {"kept_compilation": 1.0, **told[line.metric]}
            value = 80.0 if line.metric == "engine_start" else 2.0
            line = line.model_copy(update={"value": value, "statistics": statistics})
        warm.append(line)
    found = cost([*warm, *serving("float8dq")])
    assert found is not None
    assert cold is not None
    assert found.tutorial == cold.tutorial
    assert found.spent == cold.spent - 170 + 80


def test_commands_that_were_run_are_told_in_place_of_an_estimate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of a run that selected neither test_engine nor test_server, of which nothing can be estimated."""
    run = Run(tmp_path)
    for line in latency()[5:]:
        run.append(line)
    common = {"model": MODEL.name, "recipe": "bf16", "command": "vllm bench latency"}
    ran = [
        Ran(metric="latency", parameters={"batch_size": size}, seconds=130, value=value, **common)
        for size, value in ((1, 1.0), (128, 1.99))
    ]
    ByHand(device="NVIDIA H200", created=0.0, ran=ran).write(tmp_path)
    assert main(["cost", str(tmp_path), "--wide"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert "select test_engine and test_server too" in told[1]
    assert told[2:] == [
        "the tutorial's commands for them one after another, run on NVIDIA H200: 4.3 minutes (measured ratio 0.15)",
        "  Phi-4-mini-instruct bf16: latency (batch_size 1): 1, by hand 1 (ratio 1.0000)",
        "  Phi-4-mini-instruct bf16: latency (batch_size 128): 2, by hand 1.99 (ratio 1.0050)",
    ]


def test_runs_of_one_table_are_told_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [Run(tmp_path / name) for name in ("monday", "tuesday")]
    for run, lines in zip(runs, (latency(), serving()), strict=True):
        for line in lines:
            run.append(line)
    folders = [str(run.folder) for run in runs]
    assert main(["cost", *folders, folders[0]]) == 0
    whole = cost([*latency(), *serving()])
    assert whole is not None
    assert capsys.readouterr().out.splitlines() == whole.lines()
    empty = Run(tmp_path / "empty")
    empty.append(ended("test_chat"))
    assert main(["cost", str(empty.folder)]) == 1
    assert "empty: none of the tutorial's rows" in capsys.readouterr().err


def test_the_committed_table_of_the_h100_cost_less_than_six_tenths(repository: Path) -> None:
    runs = [repository / "results" / "reference" / f"h100-20261125-013623-gpu{index}" for index in range(2)]
    found = cost([line for run in runs for line in Run(run).lines()])
    assert found is not None
    assert found.ratio is not None
    assert found.ratio <= 0.6


def test_a_client_is_cold_once_and_a_later_one_as_quick_as_one_was() -> None:
    alone = cost([*serving(), *serving("float8dq")])
    assert alone is not None
    assert alone.tutorial == 2 * (97 + 1 + 20) + 20, "one client asked both servers: no warm start was measured"
    both = cost([*serving(client=43), *serving("float8dq", client=22)])
    assert both is not None
    assert both.tutorial == 2 * (97 + 1 + 20) + 43 + 3 * 22


@pytest.mark.parametrize("order", list(itertools.permutations(("vllm", "sglang"))))
def test_another_server_is_none_of_the_tutorials(order: tuple[str, ...]) -> None:
    """SGLang's rows and starts neither count nor stand in for vLLM's, whichever came first."""
    alone = cost([*latency(), *serving()])
    both = cost([line for server in order for line in [*latency(server=server), *serving(server=server)]])
    assert alone is not None
    assert both is not None
    assert (both.spent, both.tutorial) == (alone.spent, alone.tutorial)
    assert both.besides == {"compile": 30, "engine start": 140 + 97, "measure": 13 + 26 + 3 + 60}


def test_what_the_commands_do_not_give_stands_beside() -> None:
    of = cell("bf16", "transformers")
    others: list[Line] = [
        spent("setup", 100, None),
        spent("quantize", 40, cell("float8dq", "")),
        spent("measure", 9, of),
        measured("generate_throughput", 30, of, max_new_tokens=128, batch_size=1),
        ended("test_generate"),
        spent("evaluate", 600, of),
        measured("accuracy", 0.5, of, task="piqa", task_metric="acc"),
        ended("test_task"),
        spent("measure", 2, cell()),
        measured("served_kl", 0.001, cell()),
        ended("test_agreement"),
    ]
    alone, found = cost([*memory(), *latency()]), cost([*memory(), *others, *latency()])
    assert alone is not None
    assert found is not None
    assert (found.spent, found.tutorial) == (alone.spent, alone.tutorial)
    assert found.besides == {"setup": 100, "quantize": 40, "measure": 11, "evaluate": 600}
    assert found.lines()[-1].endswith("in minutes: setup 1.7, quantize 0.7, measure 0.2, evaluate 10.0")


def test_a_block_that_was_measured_again_costs_the_session_and_not_the_commands() -> None:
    again: list[Line] = [
        spent("measure", 13, cell()),
        measured("latency", 5.0, cell(), discarded="throttled", batch_size=1),
    ]
    alone, found = cost(latency()), cost([*again, *latency()])
    assert alone is not None
    assert found is not None
    assert found.spent == alone.spent + 13
    assert found.tutorial == alone.tutorial


def test_a_start_beside_other_work_counts_as_if_it_had_been_waited_for() -> None:
    found = cost([line for line in latency() if not (isinstance(line, Timing) and line.stage == "engine start")])
    assert found is not None
    assert found.spent == 170 + 13 + 26


def test_a_selection_without_starts_gives_no_ratio() -> None:
    rows = [line for line in latency() if not (isinstance(line, Measurement) and line.metric == "engine_start")]
    found = cost(rows)
    assert found is not None
    assert found.ratio is None
    assert found.missing == ("the engine of Phi-4-mini-instruct bf16 on h100",)
    told = "\n".join(found.lines())
    assert "cannot be told: no start was recorded of the engine of Phi-4-mini-instruct bf16 on h100" in told
    assert "ratio" not in told


@pytest.mark.parametrize(
    "lines",
    [
        [],
        latency(server="sglang"),
        [spent("evaluate", 600, cell())],
        [measured("latency", 1.0, cell(), discarded="throttled", batch_size=1)],
        [measured("request_throughput", 0.0, cell(), num_prompts=1)],
        [measured("peak_memory", 0.7, cell("bf16", "executorch"), runner="host")],
    ],
)
def test_nothing_of_the_tutorials_says_nothing(lines: list[Line]) -> None:
    assert cost(lines) is None


@pytest.mark.programs
def test_the_committed_runs_can_be_told(repository: Path) -> None:
    for run in sorted((repository / "results" / "reference").glob("*-20*")):
        lines = list(Run(run).lines())
        found = cost(lines)
        timed = [
            line for line in lines if isinstance(line, Measurement) and line.metric in ("latency", "request_throughput")
        ]
        if "vllm" not in {line.cell.server for line in timed}:
            assert found is None
        else:
            assert found is not None
            assert found.ratio is not None
