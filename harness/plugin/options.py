"""The plugin's command line options; light, since every pytest run where the harness is installed may ask for them.

It is imported before pytest registers it, and has no assertions: PYTEST_DONT_REWRITE.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

OPTIONS: dict[str, dict[str, Any]] = {
    "--model": {
        "action": "append",
        "metavar": "NAME|FOLDER|HUB_ID",
        "help": "run the suites on this model instead of the matrix's; repeatable",
    },
    "--recipe": {
        "action": "append",
        "metavar": "NAME|CONFIG",
        "help": "run this recipe of the matrix, or a torchao config such as "
        "'Int8WeightOnlyConfig(granularity=PerGroup(32))'; repeatable; the baseline always runs beside it",
    },
    "--quantize": {
        "action": "append",
        "default": [],
        "metavar": "KIND",
        "help": "quantize these weights as well as those that the recipes are for: embedding or head, which are untied "
        "for it, or linear layers of another part of the model (vision, audio, projector, tower); repeatable",
    },
    "--leave-plain": {
        "action": "append",
        "default": [],
        "metavar": "RULE",
        "help": "leave weights plain that the recipes are for: a kind (experts, linear, ...), a module's name, or an "
        "expression for the whole of it ('re:.*down_proj'); repeatable",
    },
    "--calibration": {
        "type": Path,
        "metavar": "FILE",
        "help": "observe models on this text where a recipe needs one: paragraphs, or JSON lines with a `text` "
        "(default: answers of ShareGPT that no evaluation reads)",
    },
    "--calibration-sequences": {"type": int, "metavar": "N", "help": "on how many sequences of that text"},
    "--calibration-tokens": {"type": int, "metavar": "N", "help": "how many tokens each of them has"},
    "--text-windows": {
        "type": int,
        "metavar": "N",
        "help": "take the quality of text over N windows, in place of as many as the matrix says",
    },
    "--require": {
        "action": "append",
        "default": [],
        "metavar": "LIMIT",
        "help": "a limit of your own, such as 'perplexity max_ratio=1.05' or 'peak_memory max=2.5'; repeatable",
    },
    "--server": {
        "action": "append",
        "metavar": "NAME",
        "help": "only this server: vllm, sglang, transformers, executorch, or one of another plugin; repeatable",
    },
    "--gpus": {
        "action": "append",
        "default": [],
        "metavar": "N|RECIPE=N",
        "help": "let N GPUs share the model (tensor parallel, through vllm or sglang), in place of what the matrix "
        "says; repeatable, each number a cell of its own: --gpus bf16=2 --gpus int4wo=1 --gpus int4wo=2",
    },
    "--workload": {
        "action": "append",
        "default": [],
        "metavar": "NAME",
        "help": "put this workload of the matrix on the servers (chat, summarize, code, batch, ...): latencies over "
        "rates, and the capacity within its limits; repeatable. Load is measured on request: by this, or where -k or "
        "the tests named speak of load or capacity",
    },
    "--set": {
        "action": "append",
        "default": [],
        "metavar": "PATH=VALUE",
        "help": "measure otherwise than the matrix says: latency.input_len=4096, load.seconds=30, "
        "workloads.chat.slo.ttft_p99_ms=300 (repeatable); tables say what was set",
    },
    "--price": {
        "type": float,
        "metavar": "AMOUNT",
        "help": "what an hour of one device costs (load.price of the matrix), which gives a million tokens their cost; "
        "of several GPUs that share a model it counts for each",
    },
    "--task": {
        "action": "append",
        "default": [],
        "metavar": "NAME",
        "help": "evaluate this lm-evaluation-harness task; repeatable; with --data all of that folder's by default",
    },
    "--num-fewshot": {
        "type": int,
        "metavar": "N",
        "help": "show N solved examples in each prompt of a task, where the task allows it",
    },
    "--apply-chat-template": {
        "action": "store_true",
        "help": "write the prompts of tasks as chats, by the model's own template",
    },
    "--system-instruction": {"metavar": "TEXT", "help": "what stands at the head of each prompt of a task"},
    "--gen-kwargs": {
        "action": "append",
        "default": [],
        "metavar": "NAME=VALUE[,...]",
        "help": "options of generative tasks, such as max_gen_toks=128; repeatable",
    },
    "--trust-remote-code": {
        "action": "store_true",
        "help": "run the code that models named by folder or hub id bring along: read it first",
    },
    "--merge-adapter": {
        "action": "store_true",
        "help": "merge the adapter beside a model that is named by folder or hub id into its weights, with PEFT",
    },
    "--limit": {"type": int, "metavar": "N", "help": "evaluate only the first N documents of each task"},
    "--data": {
        "type": Path,
        "metavar": "DIR",
        "help": "read tasks' documents from DIR/TASK.jsonl or DIR/TASK.SPLIT.jsonl, and ShareGPT from there if it is "
        "there, instead of the hub",
    },
    "--swap": {
        "metavar": "REQUIREMENT",
        "help": "run the workers with one package swapped, e.g. torchao==0.17.0, installed alone into a cached folder",
    },
    "--python": {
        "metavar": "FILE",
        "help": "run the workers with this interpreter, e.g. of a virtual environment",
    },
    "--environment": {
        "action": "append",
        "default": [],
        "metavar": "SERVER=PATH",
        "help": "run this server in an environment of its own: PATH is the interpreter of a virtual environment, or a "
        "folder of packages to stand before the workers'; repeatable",
    },
    "--device": {
        "action": "append",
        "metavar": "NAME",
        "help": "run ExecuTorch programs there: host, qemu, ssh:HOST, adb:SERIAL or ios:[RECIPE=]FILE; repeatable "
        "(default: host, qemu)",
    },
    "--phone-runner": {
        "type": Path,
        "metavar": "FILE",
        "help": "the runner that adb puts on a phone; see docs/guides/phone.md",
    },
    "--matrix": {
        "type": Path,
        "metavar": "FILE",
        "help": "another matrix.toml than that of the suites",
    },
    "--cache": {
        "type": Path,
        "metavar": "DIR",
        "help": "where checkpoints and other artifacts are kept",
    },
    "--share": {
        "metavar": "URL",
        "help": "also ask this store for artifacts, and put there what is made: a folder that all nodes see, s3://..., "
        "gs://..., whatever fsspec takes",
    },
    "--pass-env": {
        "action": "append",
        "default": [],
        "metavar": "NAME",
        "help": "hand this environment variable on to workers (MY_* for several); repeatable; without it they get "
        "those that libraries, servers and GPUs read, and no credential",
    },
    "--results": {
        "type": Path,
        "metavar": "DIR",
        "help": "where runs are written, with their tables (default: results)",
    },
    "--resume": {
        "nargs": "?",
        "const": "last",
        "metavar": "RUN",
        "help": "go on with a run (default: the last): what it measured stands and is not measured again",
    },
    "--reuse": {
        "action": "store_true",
        "help": "on a processor: take from an earlier run with --reuse what stays as it is while the machine runs "
        "(peak memory, kernels, agreement with Transformers, the device's limits), of the same code, packages and "
        "files; tables say so",
    },
    "--on": {
        "metavar": "local|ADDRESS",
        "help": "measure on a Ray cluster, a cell a device: ray://HEAD:10001, HEAD:6379, auto for the one that this "
        "machine is of, or local for the GPUs of this machine side by side; needs the extra `ray`",
    },
    "--wait-for-nodes": {
        "type": float,
        "default": 120.0,
        "metavar": "SECONDS",
        "help": "with --on: how long hardware is waited for that no node offers (default: 120); then its tests are "
        "missing, which is an error",
    },
    "--against": {
        "metavar": "BASELINE",
        "help": "hold every figure against a stored baseline: its hardware's name (results/baselines/NAME.json) or a "
        "file",
    },
    "--wide": {
        "action": "store_true",
        "help": "let what is printed be as wide as it is; otherwise nothing is wider than the terminal, or 100 columns",
    },
    "--allow-missing-hardware": {
        "action": "store_true",
        "help": "skip, rather than fail, when -m asks for hardware that is not here",
    },
    "--allow-noisy": {
        "action": "store_true",
        "help": "exit with 0, rather than 8, where nothing failed and of some limit it is too noisy to say",
    },
}
_WITH_VALUE = {name for name, how in OPTIONS.items() if how.get("action") != "store_true"}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("torchao harness")
    for name, how in OPTIONS.items():
        group.addoption(name, **how)


def named(words: Sequence[str]) -> list[str]:
    """Return those of the options that a command line has."""
    return [name for word in words if (name := word.partition("=")[0]) in OPTIONS]


def close_to(words: Sequence[str]) -> list[str]:
    """Return those of the options that mistyped ones may have meant."""
    # Not at the top: most command lines have none.
    import difflib

    mistyped = [word.partition("=")[0] for word in words if word.startswith("--") and word != "--"]
    return [name for word in mistyped for name in difflib.get_close_matches(word, OPTIONS, n=1, cutoff=0.7)]


def joined(words: Sequence[str]) -> list[str]:
    """Return a command line with the value of each of these options in one word with it: ``--model=FOLDER``.

    pytest looks for its configuration before it knows the options of plugins, from whatever looks like a path: a
    FOLDER in a word of its own would move its root there.
    """
    found: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "--":
            return [*found, word, *left]
        if word in _WITH_VALUE and left and not left[0].startswith("-"):
            word += f"={left.pop(0)}"
        found.append(word)
    return found
