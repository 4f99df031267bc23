"""Speed of light: the bytes and operations that a step must move and do, and the time that takes at best.

Source: Williams, Waterman and Patterson, Roofline: An Insightful Visual Performance Model, CACM 52(4), 2009.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.base.errors import HarnessError


@dataclass(frozen=True)
class Shape:
    """What of a model decides the cost of a step.

    ``weight_bytes`` are the bytes of all linear weights as they lie in memory, output head and scales included;
    ``weights`` their number, of which ``head_weights`` are the output head's. The input embedding is only looked up, so
    it does not count, unless it is tied to the head: then it is the head that counts.
    """

    layers: int
    query_heads: int
    kv_heads: int
    head_size: int
    weight_bytes: float
    weights: float
    head_weights: float
    kv_bytes: int = 2

    @classmethod
    def of(cls, config: dict[str, Any], weight_bytes: float, weights: float) -> Shape:
        """Return the shape for a Hugging Face config.json and the linear weights' bytes and number."""
        text = config.get("text_config", config)

        def value(*names: str) -> int:
            found = next((text[name] for name in names if text.get(name)), None)
            if found is None:
                raise HarnessError(f"the model's config.json has none of {', '.join(names)}, so its cost is not known")
            return int(found)

        heads = value("num_attention_heads", "n_head")
        return cls(
            layers=value("num_hidden_layers", "n_layer"),
            query_heads=heads,
            kv_heads=int(text.get("num_key_value_heads") or heads),
            head_size=int(text.get("head_dim") or value("hidden_size", "n_embd") // heads),
            weight_bytes=weight_bytes,
            weights=weights,
            head_weights=float(value("hidden_size", "n_embd") * value("vocab_size")),
        )

    @property
    def kv_bytes_per_token(self) -> float:
        return 2.0 * self.layers * self.kv_heads * self.head_size * self.kv_bytes


@dataclass(frozen=True)
class Ceiling:
    """A device's measured copy bandwidth (bytes a second) and matrix rate (operations a second)."""

    bandwidth: float
    rate: float


@dataclass(frozen=True)
class Cost:
    """Bytes moved and operations done."""

    bytes: float
    operations: float

    def seconds(self, ceiling: Ceiling) -> tuple[float, float]:
        """Return the least seconds that memory and that arithmetic take."""
        return self.bytes / ceiling.bandwidth, self.operations / ceiling.rate


def decode_step(shape: Shape, batch: int, context: float) -> Cost:
    """Return the cost of one new token for each of ``batch`` sequences whose context is ``context`` tokens long."""
    attention = 4.0 * batch * context * shape.layers * shape.query_heads * shape.head_size
    moved = shape.weight_bytes + batch * (context + 1) * shape.kv_bytes_per_token
    return Cost(bytes=moved, operations=2.0 * batch * shape.weights + attention)


def prefill(shape: Shape, batch: int, length: int) -> Cost:
    """Return the cost of reading ``batch`` prompts of ``length`` tokens (causal attention: half the square).

    Engines take the logits of each prompt's last token alone, so the output head is read once and multiplies
    ``batch`` rows, not ``batch * length``.
    """
    tokens = batch * length
    attention = 2.0 * batch * length * length * shape.layers * shape.query_heads * shape.head_size
    return Cost(
        bytes=shape.weight_bytes + tokens * shape.kv_bytes_per_token,
        operations=2.0 * tokens * (shape.weights - shape.head_weights) + 2.0 * batch * shape.head_weights + attention,
    )
