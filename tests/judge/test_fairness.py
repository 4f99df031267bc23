"""A shared engine's figures against those of an engine and a server of their own: the ratio, and what is said of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.errors import SampleError, TooFewSamples
from harness.judge.fairness import MARGIN, Block, Comparison, Study
from tests.laws import examples

SAMPLES = st.lists(st.floats(0.01, 100), min_size=2, max_size=4)
BLOCKS = st.lists(SAMPLES.map(lambda it: Block(apart=it, shared=it[::-1])), min_size=2, max_size=5)


def compared(*ratios: float) -> Comparison:
    blocks = [Block(apart=[1.0, 2.0], shared=[ratio, 2 * ratio]) for ratio in ratios]
    return Comparison.of("latency", {"batch_size": 1}, blocks)


@pytest.mark.parametrize(
    ("ratios", "state"),
    [
        ((1.004, 1.004), "alike"),
        ((0.997, 1.003, 1.0, 1.001), "alike"),
        ((1 + 1.01 * MARGIN, 1 + 1.01 * MARGIN), "differs"),
        ((0.95, 0.951, 0.949), "differs"),
        ((0.99, 1.02), "open"),
        # As in every block, but of two alone nobody knows.
        ((1.004, 1.006), "open"),
    ],
)
def test_what_is_said_follows_from_the_interval_over_blocks(ratios: tuple[float, ...], state: str) -> None:
    found = compared(*ratios)
    assert found.state == state
    assert found.low <= found.ratio <= found.high


@examples(40)
@given(BLOCKS)
def test_the_sides_of_a_ratio_can_be_changed(blocks: list[Block]) -> None:
    one = Comparison.of("latency", {}, blocks)
    other = Comparison.of("latency", {}, [Block(apart=it.shared, shared=it.apart) for it in blocks])
    assert one.ratio == pytest.approx(1 / other.ratio)
    assert one.low == pytest.approx(1 / other.high)


def test_one_block_and_what_has_no_ratio_are_refused() -> None:
    with pytest.raises(TooFewSamples):
        compared(1.0)
    with pytest.raises(SampleError, match="above zero"):
        Comparison.of("latency", {}, [Block(apart=[1.0], shared=[0.0])] * 2)


def test_a_study_is_fair_where_every_figure_is() -> None:
    common = {"model": "m", "recipe": "r", "hardware": "h200", "server": "vllm", "device": "H200", "created": 0.0}
    fair = Study(**common, packages={}, settings=[], figures=[compared(1.0, 1.0)])
    assert fair.fair
    assert not fair.model_copy(update={"figures": [*fair.figures, compared(0.98, 1.02)]}).fair
