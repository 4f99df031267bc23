"""What is told of windows of a text is told position by position, whatever is compared at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest


@pytest.mark.models
@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("given", [0, 1])
def test_positions_that_are_compared_in_parts_give_the_same_bits(
    rows: int, given: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from harness.worker import evaluate
    from harness.worker.texts import Windows

    class Model(torch.nn.Module):
        device = torch.device("cpu")

        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.table = torch.randn(50, 200).bfloat16() * 3

        def forward(self, ids: torch.Tensor) -> Any:
            return SimpleNamespace(logits=self.table[ids])

    torch.manual_seed(0)
    windows = Windows(torch.randint(0, 50, (6, 33)).tolist(), given)
    told: list[int] = []
    found = evaluate.text_quality(Model(1), Model(2), windows, told.append, at_once=4)
    monkeypatch.setattr(evaluate, "_ROWS", rows)
    assert evaluate.text_quality(Model(1), Model(2), windows, lambda _: None) == found
    assert told == [1, 2, 3, 4, 5, 6]
    # By hand, over a whole window.
    window = torch.tensor(windows.ids[2])
    ours, theirs = (torch.log_softmax(Model(seed)(window).logits[:-1].float(), -1)[given:] for seed in (1, 2))
    right = window[given + 1 :]
    by_hand = {
        "nll": -ours[range(len(right)), right].mean().item(),
        "kl": (theirs.exp() * (theirs - ours)).sum(-1).mean().item(),
        "top1": (ours.argmax(-1) == theirs.argmax(-1)).float().mean().item(),
        "flips": ((ours.argmax(-1) == right) != (theirs.argmax(-1) == right)).float().mean().item(),
    }
    assert {name: values[2] for name, values in found["windows"].items()} == pytest.approx(by_hand, abs=1e-6)
    assert found["tokens"] == 6 * (33 - given)
