"""A thread that gets no memory for its first step: whoever starts it is told, in place of waiting for ever."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.base import threads

# Of a process with no memory but for a thread's stack, and so many bytes beside it.
STARVED = """
import mmap, os, resource, sys, threading
import psutil
from harness.base import threads
threads._LONGEST = 1.0
reserved = mmap.mmap(-1, (8 << 20) + int(sys.argv[1]))
size = psutil.Process().memory_info().vms + (1 << 20)
resource.setrlimit(resource.RLIMIT_AS, (size, size))
held = []
takes = [(lambda size: mmap.mmap(-1, size), (1 << 16, 1 << 12)), (bytearray, (100000, 8000, 1000, 400, 200, 100, 50))]
for take, sizes in takes:
    for fill in sizes:
        try:
            while True:
                held.append(take(fill))
        except (MemoryError, OSError):
            pass
with threads.begun():
    reserved.close()
    try:
        threading.Thread(target=print, daemon=True).start()
    except (MemoryError, RuntimeError) as error:
        held.clear()
        os.write(1, type(error).__name__.encode())
os._exit(0)
"""


@pytest.mark.programs
@pytest.mark.skipif(sys.platform != "linux", reason="limits address space")
def test_a_thread_that_gets_no_memory_ends_whoever_starts_it(tmp_path: Path) -> None:
    script = tmp_path / "starved.py"
    script.write_text(STARVED, encoding="utf-8")
    said = []
    for more in range(0, 1 << 16, 1 << 12):
        command = [sys.executable, str(script), str(more)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        said.append(done.stdout.strip())
    # RuntimeError is Python's own word where not even the stack was to be had.
    assert {"MemoryError"} <= set(said) <= {"MemoryError", "RuntimeError", ""}


class Starved(threading.Thread):
    def _bootstrap(self) -> None:
        raise SystemExit


def test_one_of_an_executor_ends_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_LONGEST", 0.2)
    former = threading.Thread.start
    with threads.begun(), ThreadPoolExecutor() as pool:
        assert pool.submit(int, "7").result(60) == 7
        monkeypatch.setattr(threading, "Thread", Starved)
        with pytest.raises(MemoryError), ThreadPoolExecutor() as starved:
            starved.submit(int, "7")
    assert threading.Thread.start is former
