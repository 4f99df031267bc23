"""What in each kind of fault stands in for the thing itself, as its row of the table says."""

from __future__ import annotations

import re

_SMALL = "a backend without torch that pretends to measure; planner, store, lock, workers and wardens are real"
_FAKE = "what a gate quantizes, runs and measures is a function; commands, files, locks and verdicts are real"
_HUB = "the hub is a server on the loopback with the endpoints that publishing asks"
_OF = {
    r"device: a GPU": "NVML is a module that answers and then refuses; the worker's CUDA error is raised by hand",
    r"device: a phone": "adb asks a server of the tests, whose phone is a folder",
    r"worker: SGLang": "SGLang's engine is a module of that name; adapter, worker and processes are real",
    r"worker: ExecuTorch": "",
    r"server: ": "an HTTP server of one behaviour, no engine",
    r"session: a slow": f"{_SMALL}; the disk is a library that delays and refuses the planner's calls",
    r"session: the clock": f"{_SMALL}; the clock is the planner's alone",
    r"session: |resume of 100 MB|worker: dead": _SMALL,
    r"(gate|bisect) of a tiny model: ": "the releases are torchao's own wheel, from an index of ours; two are worse",
    r"publish of a tiny model: ": _HUB,
    r"publish: killed": f"{_HUB}; its weights are no model's",
    r"publish: ": f"{_HUB}; its weights are no model's",
    r"signals: a gate": "devices are wooden ones of this machine; what a node measures is a function; all else is real",
    r"signals: bundle": "its packages are two wheels of ours",
    r"(gate|bisect): |calibrate, bisect: ": _FAKE,
}


def of(kind: str) -> str:
    """Return what stands in, or an empty text where all is real."""
    return next((words for pattern, words in _OF.items() if re.match(pattern, kind)), "")
