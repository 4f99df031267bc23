"""Imports that stand: what the tests' fork servers are forked from, so that torch and vLLM are imported once a session.

Where STANDING names a folder, ``python -m harness.worker.forkserver FAMILY`` asks there for a fork server of the same
interpreter, packages and variables that has its imports already, and has it fork another, which takes its place: it
has its environment, its folder, its log and its jobs, and ends with it. The process that asked stays as the one that
its warden watches. Where none can be had it goes on by itself, so that what is broken says so in its own words.

Those that stand are started by a process of this module, ``python standing.py FOLDER``; all end with the test session
that made the folder, however it ends. Standard library only, since any environment's Python runs this.
"""

from __future__ import annotations

import array
import contextlib
import hashlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

STANDING = "HARNESS_TEST_STANDING"
SERVER = "harness.worker.forkserver"
_FORKS_FD = "HARNESS_FORKS_FD"
_KEEPER = "keeper"
_LONGEST_JOB = 60_000
# Variables of a process's own, which no import looks at, but for whether vLLM's server logs where an error came from.
_OWN = ("HARNESS_", "PYTEST_", "TMPDIR", "PWD", "OLDPWD")
# What torch and vLLM set as they are imported, and leave behind in a process of tests that does so.
_OWN += ("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "TORCHINDUCTOR_CACHE_DIR")
_OWN += ("VLLM_SERVER_DEV_MODE", "VLLM_CPU_KVCACHE_SPACE", "VLLM_ENABLE_V1_MULTIPROCESSING")
_REPOSITORY = str(Path(__file__).resolve().parents[2])


def asked_for() -> bool:
    """Say whether this process is a fork server that another may take the place of."""
    return STANDING in os.environ and _FORKS_FD in os.environ and sys.orig_argv[1:3] == ["-m", SERVER]


def join(joined: Callable[[], None]) -> None:
    """Have a fork server take this process's place, and end when it does; return where none can be had."""
    given = dict(os.environ)
    folder, jobs, family = Path(given.pop(STANDING)), int(given.pop(_FORKS_FD)), sys.orig_argv[3]
    job = {"module": "standing", "arguments": [family, os.getcwd(), json.dumps(given)]}
    message = json.dumps(job | {"names": [_FORKS_FD], "environ": {}}).encode()
    if len(message) > _LONGEST_JOB:
        return
    # It ends when this process does, which holds the other end.
    control_read, _ = os.pipe()
    status, status_write = os.pipe()
    with os.fdopen(status) as told:
        try:
            where = _ask(folder, {"python": sys.executable, "family": family, "environ": _decisive(given, folder)})
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as standing:
                standing.connect(where)
                descriptors = array.array("i", [control_read, status_write, 1, jobs])
                standing.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
        except OSError:
            return
        finally:
            os.close(control_read)
            os.close(status_write)
        if not told.readline():
            return
        joined()
        os.close(jobs)
        code = int(json.loads(told.readline() or '{"exit": 137}')["exit"])
    if code > 128:
        with contextlib.suppress(OSError):
            signal.signal(code - 128, signal.SIG_DFL)
        os.kill(os.getpid(), code - 128)
    os._exit(code)


def _ask(folder: Path, asked: dict[str, Any]) -> str:
    """Return where the jobs of the fork server go that has these imports; it may still be at them."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as keeper:
        keeper.connect(str(folder / _KEEPER))
        keeper.send(json.dumps(asked, sort_keys=True).encode())
        return keeper.recv(4096).decode()


def _decisive(given: dict[str, str], folder: Path) -> dict[str, str]:
    """Return the variables that imports may look at.

    The harness's code is the same through whichever store, and no import of a family is of the tests.
    """
    found = {name: value for name, value in given.items() if not name.startswith(_OWN)}
    paths = []
    for path in _paths(found):
        if path == _REPOSITORY:
            continue
        code = Path(path, "harness")
        if code.is_symlink():
            target = os.path.realpath(code)
            path = str(folder / hashlib.sha256(target.encode()).hexdigest()[:8])
            os.makedirs(path, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.symlink(target, Path(path, "harness"))
        paths.append(path)
    return found | {"PYTHONPATH": os.pathsep.join(paths)}


def _paths(environ: dict[str, str]) -> list[str]:
    return [path for path in environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def take_place(family: str, folder: str, given: str) -> None:
    """Be the fork server that was asked for, in a process that was forked with its imports."""
    kept = {name: os.environ[name] for name in (_FORKS_FD, "LD_PRELOAD") if name in os.environ}
    os.environ.clear()
    os.environ.update(json.loads(given) | kept)
    os.chdir(folder)
    sys.path[0] = folder
    sys.path[1:1] = [path for path in _paths(dict(os.environ)) if path not in sys.path]
    tempfile.tempdir = None
    sys.argv = [SERVER, family]
    runpy.run_module(SERVER, run_name="__main__", alter_sys=True)


def keep(folder: Path) -> None:
    """Start the fork servers that are asked for, each once, and tell where their jobs go."""
    kept: dict[bytes, subprocess.Popen[bytes]] = {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
        asking.bind(str(folder / _KEEPER))
        asking.listen(64)
        while True:
            who, _ = asking.accept()
            with who, contextlib.suppress(OSError):
                asked = who.recv(1 << 20)
                path = folder / hashlib.sha256(asked).hexdigest()[:16]
                if asked not in kept or kept[asked].poll() is not None:
                    kept[asked] = _start(json.loads(asked), path)
                who.send(str(path).encode())


def _start(asked: dict[str, Any], path: Path) -> subprocess.Popen[bytes]:
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as jobs, path.with_suffix(".log").open("ab") as log:
        jobs.bind(str(path))
        return subprocess.Popen(
            [asked["python"], "-m", SERVER, asked["family"]],
            env=asked["environ"] | {_FORKS_FD: str(jobs.fileno())},
            cwd=path.parent,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(jobs.fileno(),),
        )


if __name__ == "__main__":
    if len(sys.argv) == 2:
        keep(Path(sys.argv[1]))
    else:
        take_place(*sys.argv[1:])
