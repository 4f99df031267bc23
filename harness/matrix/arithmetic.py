"""Limits that follow from arithmetic, so that they are asked of every model and every recipe."""

from __future__ import annotations

from harness.matrix.schema import Threshold

OF_ARITHMETIC = (
    Threshold(
        metric="size_deviation",
        max=0.03,
        unit="fraction",
        every_model=True,
        origin="arithmetic: the bits of each weight, and the scales and zero points of its blocks",
    ),
)
