"""``--gpus`` and cells of several GPUs under a real pytest, on a machine with one GPU and with two."""

from __future__ import annotations

import sys

import pytest

from tests.machine.drivers import Driver
from tests.plugin.test_hardware import Here, Run, here, run, text  # noqa: F401
from tests.plugin.test_plugin import collected

MODEL = ("--model", "Phi-4-mini-instruct", "-m", "h200")


@pytest.fixture
def gpus(here: Here, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]  # noqa: F811
    """``gpus(n)`` puts that many H200s into this machine."""

    def put(count: int) -> None:
        here("NVIDIA H200")
        monkeypatch.setitem(sys.modules, "pynvml", Driver(*["NVIDIA H200"] * count))  # type: ignore[arg-type]

    return put


def test_each_number_is_a_cell_of_its_own(run: Run, gpus) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    gpus(2)
    asked = ("--gpus", "bf16=2", "--gpus", "float8dq=1", "--gpus", "float8dq=2", "--server", "vllm")
    recipes = ("--recipe", "bf16", "--recipe", "float8dq")
    names = collected(run("--collect-only", "-q", *MODEL, *recipes, *asked, "-k", "latency and 1]"))
    assert sorted(name.split("[")[1] for name in names if name.endswith("-1]")) == [
        "Phi-4-mini-instruct-bf16-h200-2gpus-vllm-1]",
        "Phi-4-mini-instruct-float8dq-h200-2gpus-vllm-1]",
        "Phi-4-mini-instruct-float8dq-h200-vllm-1]",
    ]


def test_too_few_gpus_skip_the_cell_and_say_so(run: Run, gpus) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    gpus(1)
    ran = run("-rs", *MODEL, "--gpus", "2", "--server", "vllm", "-k", "checkpoint or latency")
    assert set(ran.parseoutcomes()) <= {"skipped", "deselected"}
    ran.stdout.fnmatch_lines(["*it takes 2 GPUs, and 1 is here*"])


def test_transformers_holds_a_model_on_one_gpu(run: Run, gpus) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    gpus(2)
    ran = run("-rs", *MODEL, "--gpus", "2", "-k", "latency")
    ran.stdout.no_fnmatch_line("*it takes 2 GPUs*")


@pytest.mark.parametrize("value", ["0", "two", "=2", "bf16=", "bf16=0", "-1", "1.5"])
def test_what_is_no_number_is_named(run: Run, value: str) -> None:  # noqa: F811
    ran = run("--collect-only", f"--gpus={value}")
    assert ran.ret == pytest.ExitCode.USAGE_ERROR
    ran.stderr.fnmatch_lines([f"*--gpus '{value}': give a number of GPUs from 1 on, or RECIPE=NUMBER*"])


def test_a_recipe_that_there_is_none_of_is_named_with_the_nearest(run: Run) -> None:  # noqa: F811
    ran = run("--collect-only", "--gpus", "flaot8dq=2")
    assert ran.ret == pytest.ExitCode.USAGE_ERROR
    assert "--gpus flaot8dq=2: there is no such recipe" in ran.stderr.str() + ran.stdout.str()
    assert "float8dq" in ran.stderr.str() + ran.stdout.str()
