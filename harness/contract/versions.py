"""Versions of what workers make, and the facts that go with it; read by the planner too, so it imports nothing.

A version is part of an artifact's key from 2 on: raise it with a change of code that makes other weights or programs of
the same input, and what older code made is not taken for it.
"""

from __future__ import annotations

from collections.abc import Mapping

LOWERING: Mapping[str, int] = {"transformers": 2, "llama": 3}
"""By route of the export: harness/worker/export.py, lowering.py, llama_export.py and llama_parameters.py."""

MAKERS = ("torch", "torchao", "transformers")
"""Packages whose versions are part of the key of every checkpoint, plain or quantized, and so of all made from it."""

CHECKPOINT = 1
"""Plain and quantized checkpoints: harness/worker/quantize.py."""

NAMED = 2
"""Checkpoints of which a rule leaves weights plain: harness/contract/flattened.py."""

CHECKPOINT_FACTS = (
    "checkpoint_bytes",
    "weight_bytes",
    "predicted_checkpoint_bytes",
    "predicted_weight_bytes",
    "unpredicted",
    "parameters",
    "weights",
    "linear",
    "quantization_config",
    "architecture",
    "finite",
)
"""What is said of every checkpoint; one of which an older version said less is made again."""


TASKS = 3
"""Results of tasks: harness/worker/tasks.py and local_tasks.py."""

PROGRAM_TASKS = 2
"""Results of tasks over programs and their eager models: harness/worker/program.py."""


def in_key(name: str, version: int) -> dict[str, int]:
    """Return what a version adds to an artifact's key: nothing for the first, which keys of before had not."""
    return {} if version == 1 else {name: version}
