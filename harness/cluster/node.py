"""A node's part: pytest, as it is on one machine, over the tests of a unit, and all that it says on a pipe."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from harness.cluster.share import Share

STREAM = "HARNESS_STREAM"
"""The descriptor that a node's session writes its events to, one JSON object a line."""
GPUS = "HARNESS_NODE_GPUS"
"""How many GPUs a node offers, so that each of its sessions keeps to its own share of the processors."""
WHOLE = (0, 1, 5, 8)
"""pytest's exit statuses of a session that ran: passed, failed, nothing collected, and the harness's own for noise."""
_TAIL = 4000
_FOLDER, _LOCK = "harness-node-", "lock"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None)
_BATCH_SECONDS = 0.2
_QUIET_SECONDS = 2.0
_CHOICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


def last_words(event: Mapping[str, Any]) -> str:
    """Return the last line of what a session printed, of its event of kind ``end``."""
    return next((line for line in reversed(str(event["printed"]).splitlines()) if line.strip()), "")


class Events:
    """Tells a node's planner what happens as it does: events on the descriptor of ``STREAM``, an object a line."""

    def __init__(self) -> None:
        self._file = os.fdopen(int(os.environ.pop(STREAM)), "w", encoding="utf-8")

    def say(self, kind: str, **what: Any) -> None:
        """Tell of one event. A planner that is gone is told nothing: what is measured is on this node's own disk."""
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._file.write(json.dumps({"kind": kind, **what}) + "\n")
            self._file.flush()

    def record(self, line: str, folder: Path, attachment: str) -> None:
        """Tell of a line of a run's records, with what is attached to it in the run's folder."""
        attached = {}
        if attachment:
            attached = {"name": attachment, "text": (folder / attachment).read_text(encoding="utf-8")}
        self.say("line", line=line, attachment=attached)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def session(payload: Mapping[str, Any], say: Callable[[list[str]], object], gpus: list[int] | None = None) -> int:
    """Run the tests of ``payload`` in a pytest of their own, or another ``program``; returns its exit status.

    ``payload`` has the ``tests``, the ``words`` of pytest's command line beside them, the ``folder`` it is run in, and
    as ``files`` what its run has already: records, and what belongs to them, by path. Unless it is run ``here``, on the
    planner's own machine, that is the present folder, a copy, or where nodes and planner share files that folder
    itself: ``run`` is then the file of the planner's records, which ``begins`` so. ``say`` gets what the session says
    as whole lines, in batches, then one of kind ``end`` with the exit status and the end of what pytest printed.
    ``gpus`` are the numbers of those that it may use. A ``program`` (the words after ``python -m``) keeps its run in
    the folder of results named ``kept``, and finds there the files of ``beside``.
    """
    folder = payload["folder"] if payload["here"] or _is_shared(payload) else os.getcwd()
    with _folder() as own:
        run = Path(own, payload.get("kept", "runs"), "unit")
        given = {run / name: text for name, text in payload["files"].items()}
        given |= {Path(own, name): text for name, text in payload.get("beside", {}).items()}
        for path, text in given.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        program = payload.get("program") or ["pytest", *payload["tests"]]
        command = [sys.executable, "-m", *program, *payload["words"], f"--results={own}"]
        command += [f"--resume={run}"] if payload["files"] else []
        reader, writer = os.pipe()
        printed, over = Path(own, "printed.txt"), ""
        share = Share.of(gpus or [], int(os.environ.get(GPUS, "0")))
        with printed.open("wb") as out:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env={**_environ(gpus), **share.variables(), **payload.get("variables", {}), STREAM: str(writer)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                pass_fds=(writer,),
                preexec_fn=lambda: _pin(share),
            )
        os.close(writer)
        try:
            for lines in _batches(reader):
                if lines:
                    say(lines)
                elif over := share.exceeded(process.pid):
                    break
            if over:
                _end(process)
            status = process.wait()
        finally:
            os.close(reader)
            _end(process)
        tail = printed.read_bytes()[-_TAIL:].decode(errors="replace")
        tail += f"\n{over}\n" if over else ""
        say([json.dumps({"kind": "end", "status": status, "printed": tail, "logs": _logs(run.parent)})])
        shutil.rmtree(run.parent, ignore_errors=True)
        return status


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    """Give a folder of this session's own, whose lock it holds, and remove those of sessions that were killed."""
    here = Path(tempfile.gettempdir())
    for path in here.glob(f"{_FOLDER}*"):
        with contextlib.suppress(OSError), (path / _LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_FOLDER) as own, Path(own, f"{_LOCK}.new").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # It is there once it is held.
        Path(own, f"{_LOCK}.new").rename(Path(own, _LOCK))
        yield own


def _is_shared(payload: Mapping[str, Any]) -> bool:
    """Return whether the planner's files are there, and not only others at the same place."""
    try:
        with Path(payload["run"]).open(encoding="utf-8") as file:
            return file.readline() == payload["begins"] and Path(payload["folder"]).is_dir()
    except (OSError, UnicodeDecodeError):
        return False


def _batches(reader: int) -> Iterator[list[str]]:
    """Yield whole lines as they come, those of a moment together; none, where nothing came for some seconds."""
    rest = b""
    while True:
        if not select.select([reader], [], [], _QUIET_SECONDS)[0]:
            yield []
            continue
        if not (chunk := os.read(reader, 1 << 16)):
            return
        rest += chunk
        while select.select([reader], [], [], _BATCH_SECONDS)[0] and len(rest) < 1 << 20:
            more = os.read(reader, 1 << 16)
            if not more:
                break
            rest += more
        *lines, rest = rest.split(b"\n")
        if lines:
            yield [line.decode(errors="replace") for line in lines]


def _logs(runs: Path) -> dict[str, str]:
    """Return the end of each worker's log."""
    found = {}
    for path in sorted(runs.glob("*/logs/*.log")):
        with contextlib.suppress(OSError):
            found[path.name] = path.read_bytes()[-_TAIL:].decode(errors="replace")
    return found


def _environ(gpus: list[int] | None) -> dict[str, str]:
    """Return the variables of the node itself: Ray gives its workers some, as OMP_NUM_THREADS, that change figures."""
    environ = dict(os.environ)
    with contextlib.suppress(psutil.Error, OSError):
        raylet = psutil.Process().parent()
        if raylet is not None and raylet.name() == "raylet":
            environ = raylet.environ()
    for name in [name for name in environ if name.startswith(("RAY_", "PYTEST_"))]:
        del environ[name]
    for name in _CHOICES:
        if gpus and name in os.environ:
            environ[name] = os.environ[name]
    return environ


def _pin(share: Share) -> None:
    """Keep to this session's share of the node: the processors and memory of its GPUs, which no other has."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpgid(0, 0)
        # Ray's own process dies with its raylet, and this session, which would measure for nobody, with that.
        end_with_parent()
        share.take()


def end_with_parent() -> None:
    """Have this process terminated when the one that started it ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a session that still runs, and what it started: its wardens end the workers."""
    if process.poll() is not None:
        return
    for number, seconds in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return
