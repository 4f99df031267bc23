"""What a profile says: time by kind of kernel, for each step of prefill and of decode, and how two recipes differ.

A profile is what the stage engine keeps beside a record of ``kernel_time``: name, seconds and calls of every kernel
(on a CPU: operator, its own time) of one batch that reads a prompt and takes a few further steps, and the same of the
prompt alone. The difference of the two is the further steps; where the engine had begun a step when the prompt's token
was out, that step is told from the prompt.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

PREFILL, DECODE, BATCH = "prefill", "decode step", "profiled batch"

_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Kernels = list[tuple[str, _Seconds, Annotated[int, Field(ge=0)]]]

OTHER = "sampling and other"
_FUSED = "norm|silu|gelu|relu|embedding"
_QUANTIZING = (
    "quantiz|fp8_quant|int8_quant|choose_qparams|per_token_quant|float8_copy|clamp_scalar|absfunctor|maxnan|minnan"
)
_TRITON = "^triton_(?:poi|red|per)_fused"
# Compiled by Inductor, whose names tell all that is fused into one, what is made for a product too (_scaled_mm).
_COMPILED_QUANTIZING = f"{_TRITON}.*(?:quantiz|amax|scaled_mm|int_mm)"
# The first that matches a kernel's name is its kind.
_KINDS = {
    "norms fused with quantizing": f"(?={_COMPILED_QUANTIZING}).*(?:{_FUSED})|(?:{_FUSED}).*_quant",
    "quantizing activations": f"{_COMPILED_QUANTIZING}|{_QUANTIZING}",
    "norms and elementwise": f"{_TRITON}|norm::|rms_?norm|layer_?norm|act_and_mul|silu|gelu",
    "KV cache": "reshape_and_cache|concat_and_cache|kv_?cache|slot_mapping|block_table|kv_pool|set_kv",
    "attention": "flash|attn|attention|fmha|paged_kv|merge_state|^_fwd_(?:grouped_)?kernel",
    "matrix products": (
        "gemm|gemv|nvjet|cutlass|cublas|splitk|matmul|tinygemm|int8pack_mm|int4pack_mm|int_mm|scaled_mm|da8w4|cijk_"
        "|fused_moe|^triton_tem_fused|^aten::(?:mm|addmm|bmm|linear|matmul)$|mkldnn|onednn|_linear_pointwise"
    ),
    OTHER: "sampl|argmax|topk|softmax|gumbel|multinomial|logit|sort|random|exponential|rejected",
    "copies": "^memcpy|^memset|^aten::(?:copy_|clone|contiguous|cat|fill_|zero_)$|catarray|direct_copy",
}
_ELEMENTWISE = (
    f"{_FUSED}|elementwise|rotary|rope|reduce|index|scatter|gather"
    "|^aten::(?:add|sub|mul|div|rsqrt|pow|mean|neg|round|clamp|sum|where|select|arange)_?$|cpp_fused"
)
KINDS = (
    "matrix products",
    "quantizing activations",
    "norms fused with quantizing",
    "norms and elementwise",
    "attention",
    "KV cache",
    "copies",
    OTHER,
)
_COMPILED = [
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (*_KINDS.items(), ("norms and elementwise", _ELEMENTWISE))
]


@functools.lru_cache(maxsize=4096)
def kind_of(kernel: str) -> str:
    """Return which of KINDS a kernel or operator is of, by its name."""
    return next((kind for kind, pattern in _COMPILED if pattern.search(kernel)), OTHER)


class Ran(BaseModel):
    """What ran in its order: place of the name, start, end and own time in microseconds."""

    names: list[str]
    calls: list[tuple[Annotated[int, Field(ge=0)], _Seconds, _Seconds, _Seconds]]


class Kept(BaseModel):
    """What is kept of a profile; ``prefill`` is missing in those of before it was profiled by itself.

    ``ran`` and the number of the model's ``layers`` are in those whose order was kept.
    """

    kernels: _Kernels
    prefill: _Kernels | None = None
    ran: Ran | None = None
    layers: int = 0


@dataclass(frozen=True)
class Kernel:
    """One kernel, or operator, of a step: milliseconds, and calls."""

    name: str
    milliseconds: float
    calls: float

    @property
    def kind(self) -> str:
        return kind_of(self.name)


@dataclass(frozen=True)
class Profile:
    """The kernels of one phase, the longest first."""

    phase: str
    kernels: Sequence[Kernel]

    @property
    def total(self) -> float:
        """Milliseconds in which a kernel ran; where several run at once, of each."""
        return sum(it.milliseconds for it in self.kernels)

    def kinds(self) -> dict[str, float]:
        """Return milliseconds by kind, in the order of KINDS, without those that took none."""
        found = dict.fromkeys(KINDS, 0.0)
        for it in self.kernels:
            found[it.kind] += it.milliseconds
        return {kind: value for kind, value in found.items() if value > 0}

    def longest(self, kind: str) -> Kernel | None:
        """Return the kernel of a kind that took longest."""
        return next((it for it in self.kernels if it.kind == kind), None)


def kept(value: Any) -> Kept:
    """Return what a file holds as a profile. Raises ValueError where it is none."""
    try:
        return Kept.model_validate(value)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "it"
        raise ValueError(f"{where}: {problem['msg']}") from None


def read(value: Any) -> dict[str, Profile]:
    """Return what a file holds by phase, see :func:`phases`. Raises ValueError where it is no profile."""
    return phases(kept(value))


def phases(found: Kept) -> dict[str, Profile]:
    """Return a profile by phase: the prompt and one further step, or the batch where these were not told apart."""
    whole = {name: (seconds, calls) for name, seconds, calls in found.kernels}
    if found.prefill is None:
        return {BATCH: _profile(BATCH, whole, 1)}
    first = {name: (seconds, calls) for name, seconds, calls in found.prefill}
    ahead, further = _steps(whole, first)
    if not further:
        return {BATCH: _profile(BATCH, whole, 1)}
    beyond = {name: _less(it, first.get(name, (0.0, 0.0)), 1) for name, it in whole.items()}
    prompt = {name: _less(it, beyond.get(name, (0.0, 0.0)), ahead / further) for name, it in first.items()}
    return {PREFILL: _profile(PREFILL, prompt, 1), DECODE: _profile(DECODE, beyond, further)}


def _less(one: tuple[float, float], other: tuple[float, float], times: float) -> tuple[float, float]:
    """Return seconds and calls of a kernel without those of ``other``; noise may make them negative, which is none."""
    return max(0.0, one[0] - times * other[0]), max(0.0, one[1] - times * other[1])


# An engine may go further than it was asked to: a scheduler that prepares the next step while one runs has begun it
# when the last token is out. So the profile of a prompt alone may hold a step already.
_MOST_AHEAD, _MOST_FURTHER = 1, 8


def _steps(whole: Mapping[str, tuple[float, int]], first: Mapping[str, tuple[float, int]]) -> tuple[int, int]:
    """Return how many steps the profile of the prompt holds, and how many more that of the batch; 0 where none is.

    A kernel that prompt and step run alike is called 1 + ahead times as often in the first, and 1 + ahead + further
    times in the second; one of steps alone ahead and ahead + further times. The numbers are those that most kernels
    agree with.
    """
    ratios = [whole[name][1] / calls for name, (_, calls) in first.items() if name in whole and calls]

    def agree(ahead: int, further: int) -> int:
        due = {(1 + ahead + further) / (1 + ahead)} | ({(ahead + further) / ahead} if ahead else set())
        return sum(any(math.isclose(ratio, it, rel_tol=0.01) for it in due) for ratio in ratios)

    candidates = [(ahead, further) for ahead in range(_MOST_AHEAD + 1) for further in range(1, _MOST_FURTHER + 1)]
    most = max(candidates, key=lambda it: agree(*it))
    return most if agree(*most) else (0, 0)


def _profile(phase: str, kernels: Mapping[str, tuple[float, float]], steps: int) -> Profile:
    found = [Kernel(name, 1000 * seconds / steps, calls / steps) for name, (seconds, calls) in kernels.items()]
    return Profile(phase, sorted((it for it in found if it.milliseconds > 0), key=lambda it: -it.milliseconds))


@dataclass(frozen=True)
class Change:
    """How much longer a kind of kernel takes than the baseline's, in milliseconds, and the longest one of each side."""

    kind: str
    milliseconds: float
    kernel: Kernel | None
    baseline: Kernel | None


def difference(profile: Profile, baseline: Profile) -> list[Change]:
    """Return what changes by kind, the largest change first; together they are the difference of the totals."""
    ours, theirs = profile.kinds(), baseline.kinds()
    found = [
        Change(kind, ours.get(kind, 0.0) - theirs.get(kind, 0.0), profile.longest(kind), baseline.longest(kind))
        for kind in KINDS
        if kind in ours or kind in theirs
    ]
    return sorted(found, key=lambda it: -abs(it.milliseconds))


_TOLD = 0.02
"""A change of less than this share of the whole time is not put into words."""
_MOST_TOLD = 4


def told(profile: Profile, baseline: Profile, name: str) -> str:
    """Return in words how much longer or shorter a profile's kernels run than those of ``name``, and which."""
    change = profile.total - baseline.total
    way = "less" if change < 0 else "more"
    parts = []
    for it in difference(profile, baseline)[:_MOST_TOLD]:
        if abs(it.milliseconds) < _TOLD * baseline.total:
            break
        ours, theirs = (short(kernel.name) if kernel else "" for kernel in (it.kernel, it.baseline))
        names = f"{ours}, for {theirs}" if ours and theirs and ours != theirs else ours or f"no more {theirs}"
        parts.append(f"{it.kind} {it.milliseconds:+.2f} ms ({names})")
    which = "; ".join(parts) or "every kind as before"
    return f"{profile.total:.2f} ms of kernels, {abs(change):.2f} ms {way} than {name}: {which}"


_TILE = re.compile(r"IJNS\w*?_ILi(\d+)E+NS\w*?_ILi(\d+)E+NS\w*?_ILi(\d+)E+")


def short(name: str) -> str:
    """Return a kernel's name as a sentence can hold it: without types and arguments, with a product's tile."""
    if name.startswith("_Z"):
        words, rest = [], re.sub(r"^_Z+N?", "", name)
        while match := re.match(r"(\d+)", rest):
            size = int(match[1])
            words.append(rest[len(match[1]) : len(match[1]) + size])
            rest = rest[len(match[1]) + size :]
            if rest.startswith("I"):
                break
        tile = "x".join(found.groups()) if (found := _TILE.search(name)) else ""
        kinds = "e4m3" if "e4m3" in name else ""
        return " ".join(filter(None, ("::".join(words) or name[:40], kinds, tile)))
    plain = re.sub(r"^(?:void|int) ", "", name).replace("(anonymous namespace)::", "")
    inner = re.search(r"(Flash\w+|GemmUniversal|\w+Gemm\w*)", plain)
    cut = plain.partition("<")[0].partition("(")[0]
    if cut.endswith("device_kernel") and inner:
        cut = inner[1]
    return cut if len(cut) <= 60 else f"{cut[:57]}..."
