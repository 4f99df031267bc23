"""Transformers: peak memory and throughput of generate, and the quality of what the model predicts."""

import pytest

pytestmark = pytest.mark.stage("transformers")


def test_peak_memory(cell, measure, judge):
    """Generating from the tutorial's prompt in a fresh process stays within its memory limit."""
    judge(cell, measure.peak_memory(cell))


def test_generate(cell, measure, judge, timed):
    """Generate gives tokens at the rate it should."""
    judge(cell, measure.generate(cell, timed))


@pytest.mark.usefixtures("pretrained")
def test_text_quality(cell, measure, judge):
    """Real text is as likely as it should be, and the recipe agrees with the baseline over it."""
    judge(cell, measure.text_quality(cell).values())


@pytest.mark.usefixtures("pretrained")
def test_task(cell, task, measure, judge):
    """A task of lm-evaluation-harness is solved as well as it should be."""
    judge(cell, measure.task(cell, task).values())


def test_kernels(cell, measure):
    """The recipe's own kernels do the linear layers' work, not a fallback; last, since a profiler leaves traces."""
    measure.kernels(cell)
