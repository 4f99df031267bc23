"""The least a step must move and do: counted out for a model small enough to count by hand, and held to laws."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.errors import HarnessError
from harness.measure.roofline import Ceiling, Cost, Shape, decode_step, prefill
from harness.report.limited import bound

CONFIG = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "vocab_size": 1000,
}
LAYERS = 2 * 50_000.0
HEAD = 64 * 1000.0
SHAPE = Shape.of(CONFIG, 2 * (LAYERS + HEAD), LAYERS + HEAD)
ATTENTION = 2 * 64  # layers times the width of all query heads

SIZES = st.integers(1, 512)


def test_prefill_multiplies_the_output_head_for_the_last_token_of_each_prompt_alone() -> None:
    cost = prefill(SHAPE, 3, 10)
    assert cost.operations == 2 * 30 * LAYERS + 2 * 3 * HEAD + 2 * 3 * 10 * 10 * ATTENTION


def test_prefill_reads_every_weight_once_and_writes_the_keys_and_values() -> None:
    assert prefill(SHAPE, 3, 10).bytes == 2 * (LAYERS + HEAD) + 30 * SHAPE.kv_bytes_per_token
    assert SHAPE.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2


def test_a_decoding_step_takes_the_logits_of_every_sequence() -> None:
    cost = decode_step(SHAPE, 3, 10)
    assert cost.operations == 2 * 3 * (LAYERS + HEAD) + 4 * 3 * 10 * ATTENTION
    assert cost.bytes == 2 * (LAYERS + HEAD) + 3 * 11 * SHAPE.kv_bytes_per_token


@given(SIZES)
def test_a_prompt_of_one_token_multiplies_what_a_decoding_step_does(batch: int) -> None:
    """But for attention to the context, which a first token has not."""
    one, step = prefill(SHAPE, batch, 1), decode_step(SHAPE, batch, 0)
    assert one.operations - 2 * batch * ATTENTION == step.operations
    assert one.bytes == step.bytes


@given(SIZES, st.integers(2, 512))
def test_the_head_costs_prefill_the_same_whatever_the_length(batch: int, length: int) -> None:
    without = Shape.of({**CONFIG, "vocab_size": 1}, 2 * LAYERS, LAYERS + 64)
    by_head = prefill(SHAPE, batch, length).operations - prefill(without, batch, length).operations
    assert by_head == pytest.approx(2 * batch * (HEAD - 64))


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_counts_as_one_of_its_own(tied: bool) -> None:
    assert Shape.of({**CONFIG, "tie_word_embeddings": tied}, 1.0, LAYERS + HEAD).head_weights == HEAD


def test_the_names_of_gpt_2_and_a_nested_text_config_are_known() -> None:
    gpt2 = {"n_layer": 2, "n_head": 4, "n_embd": 64, "vocab_size": 1000}
    found = Shape.of({"text_config": gpt2}, 1.0, LAYERS + HEAD)
    assert (found.layers, found.kv_heads, found.head_size, found.head_weights) == (2, 4, 16, HEAD)


def test_a_config_that_does_not_tell_is_refused_by_name() -> None:
    with pytest.raises(HarnessError, match="none of vocab_size"):
        Shape.of({name: value for name, value in CONFIG.items() if name != "vocab_size"}, 1.0, 1.0)


def test_what_limits_a_step() -> None:
    assert Cost(100.0, 1000.0).seconds(Ceiling(10.0, 1000.0)) == (10.0, 1.0)
    assert bound(10.0, 1.0, 12.0) == "memory"
    assert bound(1.0, 10.0, 12.0) == "arithmetic"
    assert bound(1.0, 10.0, 21.0) == "overhead"
