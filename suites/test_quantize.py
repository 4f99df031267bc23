"""Quantizing: every layer that the recipe means is quantized, and the checkpoint is as small as it should be."""

import pytest

pytestmark = pytest.mark.stage("quantize")


def test_checkpoint(cell, measure, judge):
    """The checkpoint is made, every layer that was meant is a quantized tensor, and its bytes keep their limits."""
    judge(cell, measure.checkpoint(cell).values())
