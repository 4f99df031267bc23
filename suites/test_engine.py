"""The offline engine: it serves quantized layers, and a batch takes no longer than it should."""

import pytest

pytestmark = pytest.mark.stage("engine")


def test_engine(cell, measure, judge):
    """The engine starts, its linear layers are quantized, and its figures keep their limits."""
    judge(cell, measure.engine(cell).values())


def test_latency(cell, batch_size, measure, judge, timed):
    """One batch takes no longer than it should."""
    judge(cell, measure.latency(cell, batch_size, timed))
