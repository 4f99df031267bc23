"""What a profile on a CPU says is what torch's own reading of it says."""

from __future__ import annotations

import time
from typing import Any

import pytest


def nested(torch: Any) -> None:
    with torch.profiler.record_function("outer"), torch.profiler.record_function("inner"):
        torch.relu(torch.ones(8, 8) @ torch.ones(8, 8))


def doubled(torch: Any) -> None:
    for inside in (1, 2):
        with torch.profiler.record_function("same"), torch.profiler.record_function("same"):
            for _ in range(inside):
                with torch.profiler.record_function("same"):
                    torch.softmax(torch.ones(4, 4), dim=-1)


def attending(torch: Any) -> None:
    layer = torch.nn.MultiheadAttention(16, 2, batch_first=True)
    with torch.inference_mode():
        layer(*[torch.randn(2, 5, 16)] * 3)


def nothing(torch: Any) -> None:
    time.sleep(0.001)


@pytest.mark.models
@pytest.mark.parametrize("work", [nested, doubled, attending, nothing], ids=lambda it: it.__name__)
def test_operators_are_those_of_torch_s_own_reading(work: Any) -> None:
    import torch

    from harness.worker import profiling

    if torch.cuda.is_available():
        pytest.skip("of a GPU its kernels are told, by torch's reading")
    work(torch)
    profiler = profiling.start()
    for _ in range(3):
        work(torch)
    found = profiling.stop(profiler)
    whole = {it.key: (it.self_cpu_time_total / 1e6, it.count) for it in profiler.key_averages()}
    told = {name: (pytest.approx(seconds, abs=1e-9), count) for name, seconds, count in found["kernels"]}
    assert told == {name: row for name, row in whole.items() if row[0] > 0}
    assert found["kernels"] == sorted(found["kernels"], key=lambda row: -row[1])
    events = sorted(profiler.events(), key=lambda it: (it.time_range.start, -it.time_range.end))
    threads = [it.thread for it in events]
    calls = [it for it in events if it.thread == max(set(threads), key=threads.count)]
    ran = found["ran"]
    assert [ran["names"][call[0]] for call in ran["calls"]] == [it.name for it in calls]
    own = [it.self_cpu_time_total for it in calls]
    assert [call[3] for call in ran["calls"]] == pytest.approx(own, abs=0.01)
