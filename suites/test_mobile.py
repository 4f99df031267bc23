"""From checkpoint to phone: a program is whole, runs on ARM, agrees with the model it was made of, and solves tasks."""

import pytest

pytestmark = pytest.mark.stage("export")


def test_program(cell, route, mobile, judge):
    """The program is exported, as much as should be is left to XNNPACK, and its bytes keep their limit."""
    judge(cell, mobile.program(cell, route).values())


def test_llm_runner(cell, route, mobile, judge):
    """ExecuTorch's own LLM runner generates on this machine as fast as it should."""
    judge(cell, mobile.llm_runner(cell, route).values())


def test_device(cell, route, runs_on, mobile, judge):
    """The program runs on the device within its memory limit and, on a real one, as fast as it should."""
    if lacking := runs_on.lacks(route):
        pytest.skip(lacking)
    judge(cell, mobile.on_device(cell, route, runs_on).values(), alone=runs_on.alone)


@pytest.mark.usefixtures("pretrained")
def test_agreement(cell, route, runs_on, mobile, judge):
    """What the device computes agrees with the eager model over real text."""
    if lacking := runs_on.lacks(route) or ("" if runs_on.logits else f"{runs_on.name} gives no logits"):
        pytest.skip(lacking)
    judge(cell, mobile.agreement(cell, route, runs_on).values())


@pytest.mark.usefixtures("pretrained")
def test_program_task(cell, task, through, mobile, judge):
    """A task of lm-evaluation-harness is solved by the program, and by its eager model, as well as it should be."""
    judge(cell, mobile.task(cell, task, through).values())


def test_operators(cell, mobile, judge):
    """Operators outside of XNNPACK take no more of the time than they should; last, since a profiler slows all down."""
    judge(cell, mobile.operators(cell).values())
