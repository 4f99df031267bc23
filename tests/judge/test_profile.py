"""Profiles by kind of kernel: every kernel is of one kind, phases and differences add up, damaged ones are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.judge.profile import BATCH, DECODE, KINDS, OTHER, PREFILL, difference, kind_of, read, short

KERNELS = st.dictionaries(
    st.sampled_from(["nvjet_a", "_kernel_quantize_fp8_row", "flash_fwd", "triton_poi_fused_mul", "Memcpy HtoD", "odd"]),
    st.tuples(st.floats(1e-6, 1), st.integers(1, 100)),
    min_size=1,
)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_sm90_qqtst_128x128_128x6_2x1_v_bz_ovscale_TNT", "matrix products"),
        ("Cijk_Alik_Bljk_F8BS_BH_Bias_HA_S_SAB_SAV_UserArgs_MT256x256x128", "matrix products"),
        ("void at::native::tinygemm_m16n8k16_chunk_kernel<at::native::ALayout_RM>", "matrix products"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>", "matrix products"),
        ("aten::mm", "matrix products"),
        ("aten::_weight_int8pack_mm", "matrix products"),
        ("_kernel_quantize_fp8_row", "quantizing activations"),
        ("triton_red_fused__scaled_mm__to_copy_abs_amax_clamp_div_t_unsqueeze_view_0", "quantizing activations"),
        ("triton_red_fused_fused_add_rms_norm_quantize_fp8_row_0", "norms fused with quantizing"),
        ("triton_red_fused__scaled_mm__to_copy_abs_amax_clamp_div_mul_silu_slice_t", "norms fused with quantizing"),
        ("triton_red_fused__to_copy_embedding_rms_norm_0", "norms and elementwise"),
        ("void flashinfer::norm::FusedAddRMSNormKernel<8u, __nv_bfloat16>", "norms and elementwise"),
        ("void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<", "attention"),
        ("_fwd_grouped_kernel_stage1", "attention"),
        ("void vllm::reshape_and_cache_flash_kernel<__nv_bfloat16>", "KV cache"),
        ("Memcpy DtoH (Device -> Pinned)", "copies"),
        ("aten::copy_", "copies"),
        ("_gumbel_sample_kernel", OTHER),
        ("who_knows", OTHER),
    ],
)
def test_a_kernel_is_of_the_kind_that_its_name_tells(name: str, kind: str) -> None:
    assert kind_of(name) == kind


@given(st.text())
def test_every_name_has_a_kind_and_a_short_form(name: str) -> None:
    assert kind_of(name) in KINDS
    assert len(short(name)) <= max(60, len(name))


def kept(kernels: dict[str, tuple[float, int]], times: int = 1) -> list[list[Any]]:
    return [[name, seconds * times, calls * times] for name, (seconds, calls) in kernels.items()]


@given(KERNELS, st.integers(1, 6))
def test_what_steps_take_is_what_the_batch_takes_beyond_the_prompt(
    kernels: dict[str, tuple[float, int]], further: int
) -> None:
    """Where every step runs the same kernels, prompt and further step take the same, whatever their number."""
    found = read({"kernels": kept(kernels, 1 + further), "prefill": kept(kernels)})
    assert found.keys() == {PREFILL, DECODE}
    total = 1000 * sum(seconds for seconds, _ in kernels.values())
    for phase in found.values():
        assert phase.total == pytest.approx(total, rel=1e-6)
        assert sum(phase.kinds().values()) == pytest.approx(phase.total)


@given(st.integers(1, 40), st.integers(1, 6))
def test_a_step_that_the_engine_had_begun_is_told_from_the_prompt(layers: int, further: int) -> None:
    """As SGLang does: its scheduler has begun the next step when the prompt's token is out."""
    shared, prompt, step = ["nvjet_a", "fused_norm", "Memcpy"], ["flash_fwd"], ["flash_decode", "nvjet_b"]

    def taken(steps: int) -> list[list[Any]]:
        rows = [[name, layers * (2.0 + 0.5 * steps), layers * (1 + steps)] for name in shared]
        rows += [[name, 8.0 * layers, layers] for name in prompt]
        return rows + [[name, 0.25 * layers * steps, layers * steps] for name in step]

    found = read({"kernels": taken(1 + further), "prefill": taken(1)})
    assert found[PREFILL].total == pytest.approx(1000 * layers * (3 * 2.0 + 8.0))
    assert found[DECODE].total == pytest.approx(1000 * layers * (3 * 0.5 + 2 * 0.25))


@given(KERNELS, KERNELS)
def test_the_changes_add_up_to_the_difference(
    one: dict[str, tuple[float, int]], other: dict[str, tuple[float, int]]
) -> None:
    ours, theirs = (read({"kernels": kept(it)})[BATCH] for it in (one, other))
    changes = difference(ours, theirs)
    assert sum(it.milliseconds for it in changes) == pytest.approx(ours.total - theirs.total, abs=1e-6)
    assert [abs(it.milliseconds) for it in changes] == sorted((abs(it.milliseconds) for it in changes), reverse=True)


@pytest.mark.parametrize(
    "damaged",
    [None, [], {}, {"kernels": [["a", -1.0, 1]]}, {"kernels": [["a", math.inf, 1]]}, {"kernels": [["a", 1.0]]}],
)
def test_what_is_no_profile_is_refused(damaged: Any) -> None:
    with pytest.raises(ValueError, match=r"kernels|it: "):
        read(damaged)


def test_little_of_the_committed_profiles_is_of_no_known_kind(repository: Path) -> None:
    """Of an engine's kernels on a GPU; sampling counts as known."""
    for path in (repository / "results/reference").glob("h?00-*/attachments/*-kernels.json"):
        for phase, profile in read(json.loads(path.read_text(encoding="utf-8"))).items():
            assert profile.kinds().get(OTHER, 0.0) < 0.06 * profile.total, (path.name, phase)


def test_a_mangled_product_is_told_with_its_tile() -> None:
    name = (
        "_ZN12cutlass_mslk13device_kernelINS_4gemm6kernel13GemmUniversalIN4cute5tupleIJiiiEEENS1_10collective"
        "IJNSA_ILi64EEENSA_ILi16EEENSA_ILi128EEEEEENS_12float_e4m3_tE"
    )
    assert short(name) == "cutlass_mslk::device_kernel e4m3 64x16x128"
