"""Which layers a profile's time went to: by the order of what ran, whatever the kernels are called."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.judge import layers
from harness.judge.layers import ATTENTION, BEFORE, GAPS, HEAD, MLP, NORMS, Call, Step, steps
from harness.judge.profile import DECODE, PREFILL, kept
from tests.laws import examples

# As the profiles of an H200 have them, each with the layer that it is of; a step is start, layers, end.
START = [
    ("_compute_slot_mappings_kernel", BEFORE),
    ("void flash::prepare_varlen_num_blocks_kernel<8, true>", BEFORE),
    ("Memcpy HtoD (Pinned -> Device)", BEFORE),
    ("triton_red_fused__to_copy_embedding_rms_norm_0", NORMS),
]
BF16 = [
    ("nvjet_sm90_tst_64x8_64x16_4x1_v_bz_splitK_TNT", ATTENTION),
    ("void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>", ATTENTION),
    ("triton_poi_fused_3", ATTENTION),
    ("void vllm::reshape_and_cache_flash_kernel<__nv_bfloat16>", ATTENTION),
    ("void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<", ATTENTION),
    ("void cutlass::device_kernel<flash::FlashAttnFwdCombine<", ATTENTION),
    ("nvjet_sm90_tst_64x8_64x16_4x1_v_bz_TNT", ATTENTION),
    ("triton_red_fused_fused_add_rms_norm_0", NORMS),
    ("nvjet_sm90_tst_128x8_64x12_2x1_v_bz_TNT", MLP),
    ("triton_poi_fused_mul_silu_slice_1", MLP),
    ("nvjet_sm90_tst_64x8_64x16_4x1_v_bz_splitK_TNT", MLP),
    ("void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>", MLP),
    ("triton_red_fused_fused_add_rms_norm_2", NORMS),
]
FLOAT8 = [
    ("_kernel_quantize_fp8_row", ATTENTION),
    ("_ZN12cutlass_mslk13device_kernelINS_4gemm6kernel13GemmUniversalI", ATTENTION),
    ("triton_poi_fused_3", ATTENTION),
    ("void vllm::reshape_and_cache_flash_kernel<__nv_bfloat16>", ATTENTION),
    ("void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<", ATTENTION),
    ("_kernel_quantize_fp8_row", ATTENTION),
    ("_ZN12cutlass_mslk13device_kernelINS_4gemm6kernel13GemmUniversalI", ATTENTION),
    ("triton_red_fused_fused_add_rms_norm_quantize_fp8_row_0", NORMS),
    ("_kernel_quantize_fp8_row", MLP),
    ("_ZN12cutlass_mslk13device_kernelINS_4gemm6kernel13GemmUniversalI", MLP),
    ("triton_poi_fused_mul_quantize_fp8_row_silu_slice_1", MLP),
    ("_kernel_quantize_fp8_row", MLP),
    ("_ZN12cutlass_mslk13device_kernelINS_4gemm6kernel13GemmUniversalI", MLP),
    ("triton_red_fused_fused_add_rms_norm_quantize_fp8_row_2", NORMS),
]
APART = [
    *[("aten::mm", ATTENTION)] * 3,
    ("aten::neg", ATTENTION),
    ("aten::scaled_dot_product_attention", ATTENTION),
    ("aten::mm", ATTENTION),
    ("aten::rsqrt", NORMS),
    *[("aten::mm", MLP)] * 2,
    ("aten::silu", MLP),
    ("aten::mm", MLP),
    ("aten::add", NORMS),
]
END = [
    ("nvjet_sm90_tst_512x8_64x3_2x1_v_bz_TNT", HEAD),
    ("_gumbel_sample_kernel", HEAD),
    ("Memcpy DtoH (Device -> Pinned)", HEAD),
]
KINDS = {"bf16": BF16, "float8dq": FLOAT8, "apart": APART}


def ran(layer: list[tuple[str, str]], depth: int, count: int, wait: float = 500.0) -> tuple[list[Call], list[Step]]:
    """Return what ran in a number of steps, the first one ten times as long, and what each took by layer."""
    calls, due, now = [], [], 0.0
    for step in range(count):
        spent: dict[str, float] = defaultdict(float)
        for number, (name, of) in enumerate([*START, *layer * depth, *END]):
            own = (1.0 + number % 7) * (1 if step else 10)
            calls.append(Call(name, now, now + own, own))
            spent[of] += own
            now += own + 0.25
            spent[GAPS] += 0.25
        if step < count - 1:
            now += wait
            spent[GAPS] += wait
        else:
            spent[GAPS] -= 0.25
        due.append(Step(spent))
    return calls, due


@pytest.mark.parametrize("kind", KINDS)
@given(depth=st.integers(2, 40), count=st.integers(1, 5))
@examples(15)
def test_each_call_is_of_its_layer_and_step_and_all_of_the_time_is_told(kind: str, depth: int, count: int) -> None:
    calls, due = ran(KINDS[kind], depth, count)
    found = steps(calls, depth)
    assert len(found) == count
    for one, other in zip(found, due, strict=True):
        assert one.layers == pytest.approx(dict(other.layers))
    assert sum(it.total for it in found) == pytest.approx(calls[-1].end)


def test_a_model_of_one_layer_is_told_too() -> None:
    calls, due = ran(BF16, 1, 3)
    assert [it.layers for it in steps(calls, 1)] == [pytest.approx(dict(it.layers)) for it in due]


def test_what_an_operator_calls_is_its_own_and_what_begins_early_is_not() -> None:
    """On a CPU operators call others; on a GPU a kernel may begin before the one before it has ended."""
    calls, due = ran(APART, 2, 2)
    nested = []
    for it in calls:
        nested.append(Call(it.name, it.start, it.end, it.own / 2))
        inside = Call("aten::mm" if it.name == "aten::mm" else "aten::empty", it.start, it.end, it.own / 2)
        nested.append(inside)
    assert [it.layers for it in steps(nested, 2)] == [pytest.approx(dict(it.layers)) for it in due]
    early = [Call(it.name, max(0.0, it.start - 0.5), it.end, it.end - max(0.0, it.start - 0.5)) for it in calls]
    assert [it.layers.keys() - {GAPS} for it in steps(early, 2)] == [it.layers.keys() - {GAPS} for it in due]


@pytest.mark.parametrize(
    "damage",
    [
        lambda calls: [it for it in calls if "Flash" not in it.name],
        lambda calls: calls[: len(calls) // 2],
        # As of experts that are chosen: not each layer has as many products.
        lambda calls: [it for number, it in enumerate(calls) if number % 40 or "nvjet" not in it.name],
        lambda calls: [],
    ],
)
def test_of_what_is_no_decoder_nothing_is_told(damage: object) -> None:
    calls, _ = ran(BF16, 4, 3)
    assert steps(damage(calls), 4) == []  # type: ignore[operator]
    assert steps(calls, 0) == []
    assert steps(calls, 5) == []


def written(calls: list[Call], depth: int) -> dict[str, object]:
    names = list(dict.fromkeys(it.name for it in calls))
    told = [(names.index(it.name), 1000 * it.start, 1000 * it.end, 1000 * it.own) for it in calls]
    return {"kernels": [["x", 1.0, 1]], "ran": {"names": names, "calls": told}, "layers": depth}


def test_the_prompt_and_a_further_step_are_told_apart_and_compared() -> None:
    calls, due = ran(BF16, 3, 4, wait=1.0)
    found = layers.phases(kept(written(calls, 3)))
    assert found[PREFILL].layers == pytest.approx(dict(due[0].layers))
    assert found[DECODE].layers == pytest.approx(dict(due[1].layers)), "the last one has no end"
    other = layers.phases(kept(written(ran(FLOAT8, 3, 4, wait=1.0)[0], 3)))
    words = layers.told(other[DECODE], found[DECODE], "bf16")
    assert words.startswith(
        f"by layer, {other[DECODE].total:.2f} ms with gaps for {found[DECODE].total:.2f} ms of bf16:"
    )
    changes = {it: other[DECODE].layers.get(it, 0.0) - found[DECODE].layers.get(it, 0.0) for it in layers.LAYERS}
    assert any(abs(it) > 5 for it in changes.values())
    for layer, change in changes.items():
        assert (f"{layer} {change:+.2f} ms" in words) == (abs(change) > 5), "a fiftieth of all is 4 ms"
    assert layers.told(found[DECODE], found[DECODE], "bf16").endswith("every kind as before")
    assert layers.phases(kept({"kernels": [["x", 1.0, 1]]})) == {}
    assert layers.phases(kept({"kernels": [["x", 1.0, 1]], "ran": {"names": [], "calls": []}, "layers": 3})) == {}
