"""Which kernels ran on the device, and when, as torch's profiler saw them."""

from __future__ import annotations

from typing import Any

import torch

MOST = 60_000
"""Calls of which the order is told; of a longer profile only the sums are."""


def start() -> torch.profiler.profile:
    """Start recording what runs on the GPU; on a CPU, which operators run."""
    activity = torch.profiler.ProfilerActivity
    profiler = torch.profiler.profile(activities=[activity.CUDA if torch.cuda.is_available() else activity.CPU])
    profiler.start()
    return profiler


def stop(profiler: torch.profiler.profile) -> dict[str, Any]:
    """Return ``kernels``, see :func:`sums`, and how they ran.

    ``ran`` has their names, and of each call in its order the place of its name there, its start and end in
    microseconds since the first one's, and how many of them were its own, not of what it called; without ``calls``
    where they are more than MOST.
    """
    return {"kernels": sums(profiler), "ran": _in_order(profiler, torch.cuda.is_available())}


def sums(profiler: torch.profiler.profile) -> list[tuple[str, float, int]]:
    """Stop, and return name, seconds and number of calls of every kernel (on a CPU: operator), longest first."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.synchronize()
    profiler.stop()
    found = []
    for event in profiler.key_averages():
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if microseconds > 0:
            found.append((str(event.key), microseconds / 1e6, int(event.count)))
    return sorted(found, key=lambda row: -row[1])


def _in_order(profiler: torch.profiler.profile, on_gpu: bool) -> dict[str, Any]:
    wanted = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    events = [it for it in profiler.events() or [] if it.device_type == wanted]
    if not on_gpu:
        # Threads that wait beside are no part of the model.
        threads = [it.thread for it in events]
        busiest = max(set(threads), key=threads.count, default=None)
        events = [it for it in events if it.thread == busiest]
    if len(events) > MOST:
        return {"names": [], "calls": []}
    events.sort(key=lambda it: (it.time_range.start, -it.time_range.end))
    names: dict[str, int] = {}
    begin = events[0].time_range.start if events else 0.0
    calls = []
    for it in events:
        own = it.self_device_time_total if on_gpu else it.self_cpu_time_total
        start, end = it.time_range.start - begin, it.time_range.end - begin
        place = names.setdefault(str(it.name), len(names))
        calls.append((place, round(start, 3), round(end, 3), round(own, 3)))
    return {"names": list(names), "calls": calls}
