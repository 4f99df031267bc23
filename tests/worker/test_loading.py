"""What is said where Transformers could not make a model's tensors: the cause itself, and by whom it can be mended."""

from __future__ import annotations

import pytest

from harness.contract.weights import Unusable

pytestmark = pytest.mark.models

TRACE = 'Traceback (most recent call last):\n  File "a.py", line 1, in convert\n    quantize()\n'
MERGED = (
    f"{TRACE}RuntimeError: stack expects a non-empty list\nstack expects a non-empty list\n"
    "Error: MergeModulelist on tensors destined for a.weight. Ckpt contains: 1"
)


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        ("torch.OutOfMemoryError", "CUDA out of memory. Tried to allocate 20.00 MiB"),
        ("AssertionError", ""),
        ("ImportError", "Requires mslk >= 1.0.0"),
    ],
)
def test_whatever_stopped_a_recipe_is_named_and_is_no_refusal(cause: str, message: str) -> None:
    from harness.worker.loading import conversion_error

    line = f"{cause}: {message}" if message else cause
    words = f"{TRACE}{line}\n{message}\nError: TorchAoQuantize on tensors destined for a.weight. Ckpt contains: 1"
    found = conversion_error("model", {"a.weight": words, "b.weight": words})
    assert type(found) is RuntimeError
    assert str(found) == f"model: tensors that could not be quantized (2): a.weight, b.weight (a.weight: {line})"


def test_tensors_that_the_files_do_not_make_up_are_a_refusal() -> None:
    from harness.worker.loading import conversion_error

    found = conversion_error("model", {"a.weight": MERGED})
    assert isinstance(found, Unusable)
    assert "(a.weight: RuntimeError: stack expects a non-empty list)" in str(found)
