"""What a command line asks of the suites, typed; read from pytest's options once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from harness.base import shipped
from harness.base.errors import HarnessError, nearest
from harness.base.files import is_folder
from harness.base.reading import json_value
from harness.base.secrets import without_secrets
from harness.cluster.node import STREAM
from harness.matrix.schema import TaskOptions
from harness.plugin.options import OPTIONS
from harness.runtime import calibration, sources
from harness.servers.registry import SERVERS
from harness.servers.registry import names as server_names

_key = pytest.StashKey["CommandLine"]()


@dataclass(frozen=True)
class CommandLine:
    """The options of ``--help``'s group, with pytest's own that decide what is measured.

    ``results`` is where runs are written, ``matrix`` the file that they are planned from.
    """

    matrix: Path
    results: Path
    models: tuple[str, ...] | None = None
    recipes: tuple[str, ...] | None = None
    quantize: tuple[str, ...] = ()
    leave_plain: tuple[str, ...] = ()
    calibration: Path | None = None
    calibration_sizes: tuple[tuple[str, int], ...] = ()
    text_windows: int | None = None
    require: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    workloads: tuple[str, ...] = ()
    gpus: tuple[tuple[str, int], ...] = ()
    """Numbers of GPUs that share a model, each after the recipe's name that it is for; empty for every other."""
    settings: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    environments: tuple[str, ...] = ()
    limit: int | None = None
    task_options: TaskOptions = field(default_factory=TaskOptions)
    trust_remote_code: bool = False
    merge_adapter: bool = False
    data: Path | None = None
    cache: Path | None = None
    share: str = ""
    swap: str | None = None
    python: str | None = None
    pass_env: tuple[str, ...] = ()
    phone_runner: Path | None = None
    resume: str | None = None
    on: str = ""
    wait_for_nodes: float = 120.0
    of_a_node: bool = False
    """Whether this session runs what a cluster's planner chose, so that nothing of it may be left out."""
    against: str | None = None
    reuse: bool = False
    allow_missing_hardware: bool = False
    allow_noisy: bool = False
    markers: str = ""
    only_collect: bool = False
    wide: bool = False
    words: tuple[str, ...] = ()
    _chosen: tuple[str, ...] = ()
    """What chooses tests by their names: -k, and the files and ids that are to be collected."""

    @classmethod
    def of(cls, config: pytest.Config) -> CommandLine:
        """Return what this session was asked. Raises UsageError for a server that there is none of."""
        if _key not in config.stash:
            config.stash[_key] = cls._read(config)
        return config.stash[_key]

    @classmethod
    def _read(cls, config: pytest.Config) -> CommandLine:
        def several(name: str) -> tuple[str, ...]:
            return tuple(config.getoption(name) or ())

        option: Any = config.getoption
        _check_values(config)
        for name in several("--server"):
            if name not in server_names():
                raise pytest.UsageError(
                    without_secrets(f"--server {name!r} is no server; {nearest(name, server_names())}")
                )
        judging = next((name for name in ("--against", "--on") if option(name)), "")
        if judging and option("--reuse"):
            raise pytest.UsageError(f"--reuse is not for {judging}, which is about what is measured now: leave it out")
        return cls(
            matrix=option("--matrix") or shipped.matrix(*_places(config)),
            results=option("--results") or config.rootpath / "results",
            models=several("--model") or None,
            recipes=several("--recipe") or None,
            quantize=several("--quantize"),
            leave_plain=several("--leave-plain"),
            calibration=option("--calibration"),
            calibration_sizes=_sizes(config),
            text_windows=_count(config, "--text-windows"),
            require=several("--require"),
            servers=several("--server"),
            tasks=several("--task"),
            workloads=several("--workload"),
            gpus=tuple(map(_gpus, several("--gpus"))),
            settings=(*several("--set"), *_price(option("--price"))),
            devices=several("--device"),
            environments=several("--environment"),
            limit=option("--limit"),
            task_options=_task_options(config),
            trust_remote_code=option("--trust-remote-code"),
            merge_adapter=option("--merge-adapter"),
            data=option("--data"),
            cache=option("--cache"),
            share=option("--share") or "",
            swap=option("--swap"),
            python=option("--python"),
            pass_env=several("--pass-env"),
            phone_runner=option("--phone-runner"),
            resume=option("--resume"),
            on=option("--on") or "",
            wait_for_nodes=option("--wait-for-nodes"),
            of_a_node=STREAM in os.environ,
            against=option("--against"),
            reuse=option("--reuse"),
            allow_missing_hardware=option("--allow-missing-hardware"),
            allow_noisy=option("--allow-noisy"),
            markers=option("markexpr", ""),
            only_collect=option("collectonly", False),
            wide=option("--wide"),
            words=tuple(map(str, config.invocation_params.args)),
            _chosen=(option("keyword", ""), *(_below(word) for word in config.args)),
        )

    def named(self, names: Iterable[str]) -> set[str]:
        """Return those of some names that stand anywhere in what was asked: in -m, in -k, in a test's id."""
        asked = " ".join((self.markers, *self.words))
        return {name for name in names if re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", asked)}

    @property
    def asks_for_load(self) -> bool:
        """Whether tests of load are meant: a workload, or -k, a file or a test's id that speaks of them."""
        return bool(self.workloads) or any(re.search(r"load|capacity", word) for word in self._chosen)

    def own_environments(self) -> dict[str, Path]:
        """Return the environment of each server that was given one."""
        found = {}
        for given in self.environments:
            name, equals, path = given.partition("=")
            if not equals or not path or name not in SERVERS:
                raise HarnessError(
                    f"--environment {given}: give SERVER=PATH, where SERVER is one of {', '.join(SERVERS)}"
                )
            found[name] = Path(path)
        return found

    def calibrated_on(self) -> dict[str, Any]:
        """Return what recipes that observe a model observe it on beyond what they say; reads the text's file."""
        asked: dict[str, Any] = dict(self.calibration_sizes)
        own = self.data / sources.SHAREGPT_FILE if self.data else None
        if self.calibration is not None:
            file = self.calibration.resolve()
            asked |= {"text": file.name, "sha256": calibration.digest(file), "file": str(file)}
        elif own is not None and own.is_file():
            asked["sha256"] = calibration.digest(own.resolve(), sharegpt=True)
        return asked

    def chosen_tasks(self) -> list[str]:
        """Return the tasks to evaluate: those named, or all that the data folder has; none leaves it to the matrix."""
        if self.data is not None and not is_folder(self.data):
            raise HarnessError(f"--data {self.data}: there is no such folder")
        if not self.tasks and self.data is not None:
            # A file of one split says so in its name: TASK.SPLIT.jsonl.
            return sorted({_task_of(path.stem) for path in self.data.glob("*.jsonl")})
        return list(self.tasks)


def _check_values(config: pytest.Config) -> None:
    """Raise UsageError for an option whose value is empty, as that of a variable that is not set: it would be none."""
    for name in OPTIONS:
        value = config.getoption(name)
        # A task may be asked with no instruction at all.
        if name != "--system-instruction" and (value == "" or (isinstance(value, list) and "" in value)):
            raise pytest.UsageError(f"{name} is given, and empty: give it a value, or leave it out")


def _price(amount: float | None) -> list[str]:
    if amount is None:
        return []
    if not amount > 0:
        raise pytest.UsageError(f"--price {amount:g}: an hour costs more than nothing; leave it out for no cost")
    return [f"load.price={amount!r}"]


def _gpus(given: str) -> tuple[str, int]:
    """Return the recipe, if one is named, and the number of what --gpus asks. Raises UsageError for no number."""
    recipe, _, number = given.rpartition("=")
    if not re.fullmatch(r"[1-9]\d{0,3}", number) or (not recipe and "=" in given):
        raise pytest.UsageError(f"--gpus {given!r}: give a number of GPUs from 1 on, or RECIPE=NUMBER")
    return recipe, int(number)


def _below(word: str) -> str:
    """Return the file and the test of what is collected, without the folders that the file lies in."""
    path, _, test = word.partition("::")
    return f"{Path(path).name}::{test}" if path.endswith(".py") else ""


def _task_of(stem: str) -> str:
    """Return the task that a file of documents is of: what stands before the split, if it is of one."""
    task, dot, split = stem.rpartition(".")
    return task if dot and not split[:1].isdigit() else stem


def _count(config: pytest.Config, name: str) -> int | None:
    """Return a number of things that an option asks for. Raises UsageError for one below 1."""
    given: int | None = config.getoption(name)
    if given is not None and given < 1:
        raise pytest.UsageError(f"{name} {given}: at least 1")
    return given


def _sizes(config: pytest.Config) -> tuple[tuple[str, int], ...]:
    """Return what is asked of a calibration's sequences and tokens."""
    found = ((name, _count(config, f"--calibration-{name}")) for name in ("sequences", "tokens"))
    return tuple((name, count) for name, count in found if count is not None)


def _task_options(config: pytest.Config) -> TaskOptions:
    """Return how tasks are to be asked. Raises UsageError for an option of generation that has no value."""
    option: Any = config.getoption
    given: dict[str, Any] = {}
    if option("--num-fewshot") is not None:
        given["num_fewshot"] = option("--num-fewshot")
    if option("--apply-chat-template"):
        given["chat_template"] = True
    if option("--system-instruction"):
        given["system_instruction"] = option("--system-instruction")
    for part in (it for words in option("--gen-kwargs") for it in words.split(",")):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            raise pytest.UsageError(f"--gen-kwargs {part!r}: give NAME=VALUE, such as max_gen_toks=128")
        given.setdefault("generation", {})[name.strip()] = option_value(value.strip())
    try:
        return TaskOptions.model_validate(given)
    except ValidationError as error:
        raise pytest.UsageError(f"--num-fewshot {given.get('num_fewshot')}: {error.errors()[0]['msg']}") from error


def option_value(text: str) -> str | int | float | bool:
    try:
        found = json_value(text.lower() if text in ("True", "False") else text)
    except ValueError:
        return text
    return found if isinstance(found, (int, float, bool)) else text


def _places(config: pytest.Config) -> list[Path]:
    """Return where the session's matrix may lie, first what it was told to collect."""
    here = config.invocation_params.dir
    return [*((here / word.partition("::")[0]).resolve() for word in config.args), config.rootpath, here]
