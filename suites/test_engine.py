"""The offline engine: it serves quantized layers, and a batch takes no longer than it should."""

import pytest

pytestmark = pytest.mark.stage("engine")


def test_agreement(cell, measure, judge):
    """The engine predicts what Transformers does with the same recipe; first, since it asks Transformers as well."""
    judge(cell, measure.agreement(cell).values())


def test_engine(cell, measure, judge):
    """The engine starts, its linear layers are quantized, and its figures keep their limits."""
    judge(cell, measure.engine(cell).values())


def test_latency(cell, batch_size, measure, judge, timed):
    """One batch takes no longer than it should."""
    judge(cell, measure.latency(cell, batch_size, timed))


def test_speed_of_light(cell, batch_size, measure, judge):
    """Prefill and decode come as close to the device's limits as they should."""
    judge(cell, measure.speed_of_light(cell, batch_size).values())


def test_kernels(cell, measure):
    """The recipe's own kernels do the linear layers' work, not a fallback; last, since a profiler leaves traces."""
    measure.kernels(cell)
