"""Which kernels ran on the device, and when, as torch's profiler saw them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

MOST = 60_000
"""Calls of which the order is told; of a longer profile only the sums are."""

# What a profile has of itself and of memory, and what torch leaves out beside (torch.autograd.profiler_util).
_NO_OPERATORS = frozenset(
    {
        "[memory]",
        "[OutOfMemory]",
        "profiler::_record_function_enter",
        "profiler::_record_function_enter_new",
        "profiler::_record_function_exit",
        "aten::is_leaf",
        "aten::output_nr",
        "aten::_version",
    }
)


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
    if on_gpu:
        found = [(str(it.key), it.self_device_time_total, int(it.count)) for it in profiler.key_averages()]
    else:
        of: dict[str, tuple[float, int]] = {}
        for call in _operators(profiler):
            microseconds, count = of.get(call.name, (0.0, 0))
            of[call.name] = (microseconds + call.own, count + 1)
        found = [(name, *sums) for name, sums in of.items()]
    rows = [(name, microseconds / 1e6, count) for name, microseconds, count in found if microseconds > 0]
    return sorted(rows, key=lambda row: -row[1])


@dataclass(slots=True)
class _Call:
    """One call, its times in microseconds: ``own`` is what it took less what it called."""

    name: str
    thread: int
    start: float
    end: float
    own: float
    parent: _Call | None = None
    children: int = 0


def _operators(profiler: torch.profiler.profile) -> list[_Call]:
    """Return the calls of operators on a CPU as ``profiler.events()`` does, in a tenth of its time.

    That makes an object of fifty fields of each, which takes longer than what is profiled.
    """
    results = profiler.profiler.kineto_results
    cpu, origin = torch.autograd.DeviceType.CPU, results.trace_start_ns()
    found = []
    for it in results.events():
        name = it.name()
        if name in _NO_OPERATORS or it.device_type() != cpu or it.is_hidden_event():
            continue
        thread = it.start_thread_id()
        if not it.is_async() and thread == it.end_thread_id():
            start, end = (it.start_ns() - origin) / 1000, (it.end_ns() - origin) / 1000
            found.append(_Call(name, thread, start, end, end - start))
    found.sort(key=lambda it: (it.thread, it.start, -it.end))
    within: list[_Call] = []
    for call in found:
        while within and (
            within[-1].thread != call.thread or call.start >= within[-1].end or call.end > within[-1].end
        ):
            within.pop()
        if within:
            call.parent = within[-1]
            call.parent.own -= call.end - call.start
            call.parent.children += 1
        within.append(call)
    return _without_doubled(found)


def _without_doubled(calls: list[_Call]) -> list[_Call]:
    """Return calls, parents before what they call, less those that are all that one of their own name calls."""
    kept = []
    for call in calls:
        parent = call.parent
        while parent is not None and parent.children < 0:
            parent = call.parent = parent.parent
        if parent is not None and parent.name == call.name and parent.children == 1:
            parent.own += call.own
            # What it calls is its parent's now.
            parent.children, call.children = call.children, -1
        else:
            kept.append(call)
    return kept


def _in_order(profiler: torch.profiler.profile, on_gpu: bool) -> dict[str, Any]:
    calls = _on_gpu(profiler) if on_gpu else _operators(profiler)
    if not on_gpu:
        # Threads that wait beside are no part of the model.
        threads = Counter(it.thread for it in calls)
        busiest = max(threads, key=threads.__getitem__, default=None)
        calls = [it for it in calls if it.thread == busiest]
    if len(calls) > MOST:
        return {"names": [], "calls": []}
    calls.sort(key=lambda it: (it.start, -it.end))
    names: dict[str, int] = {}
    begin = calls[0].start if calls else 0.0
    rows = []
    for it in calls:
        place = names.setdefault(it.name, len(names))
        rows.append((place, round(it.start - begin, 3), round(it.end - begin, 3), round(it.own, 3)))
    return {"names": list(names), "calls": rows}


def _on_gpu(profiler: torch.profiler.profile) -> list[_Call]:
    return [
        _Call(str(it.name), it.thread, it.time_range.start, it.time_range.end, it.self_device_time_total)
        for it in profiler.events() or []
        if it.device_type == torch.autograd.DeviceType.CUDA
    ]
