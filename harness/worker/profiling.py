"""Which kernels ran on the device, as torch's profiler saw them."""

from __future__ import annotations

import torch


def start() -> torch.profiler.profile:
    """Start recording what runs on the GPU; on a CPU, which operators run."""
    activity = torch.profiler.ProfilerActivity
    profiler = torch.profiler.profile(activities=[activity.CUDA if torch.cuda.is_available() else activity.CPU])
    profiler.start()
    return profiler


def stop(profiler: torch.profiler.profile) -> list[tuple[str, float, int]]:
    """Return name, seconds and number of calls of every kernel (on a CPU: operator) since, longest first."""
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
