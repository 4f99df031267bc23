"""Too little memory for OpenBLAS is told before it is loaded: that waits for ever."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import resource
from harness.base import room

with open("/proc/self/statm") as file:
    has = int(file.read().split()[0]) * resource.getpagesize()
more = {more} << 20
with room.kept():
    if more:
        resource.setrlimit(resource.RLIMIT_AS, (has + more, has + more))
    try:
        import {library}
    except MemoryError as error:
        print(error)
    else:
        print("loaded")
"""


@pytest.mark.programs
@pytest.mark.parametrize("library", ["numpy", "scipy.linalg"])
@pytest.mark.parametrize(
    ("more", "told"), [(1, "was not loaded"), (20, "was not loaded"), (2000, "loaded"), (0, "loaded")]
)
def test_a_library_is_loaded_where_there_is_room_and_else_said_to_be_wanting(
    library: str, more: int, told: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(more=more, library=library)],
        capture_output=True, text=True, check=False, timeout=60, env={"OPENBLAS_NUM_THREADS": "2"},
    )  # fmt: skip
    assert done.stdout.strip().endswith(told), done.stderr


LATE = """
import resource, sys
from harness.base import room

room._LONGEST = 0.5
while_loading = room.ExtensionFileLoader.create_module

def create_module(self, spec):
    with open("/proc/self/statm") as file:
        has = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + {more}, has + {more}))
    return while_loading(self, spec)

room.ExtensionFileLoader.create_module = create_module
with room.kept():
    import numpy
print("loaded")
"""


@pytest.mark.programs
@pytest.mark.parametrize("more", [50, 55, 60, 65])
def test_one_that_gets_no_memory_while_it_is_loaded_ends(more: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LATE.format(more=more << 20)],
        capture_output=True, text=True, check=False, timeout=60, env={"OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode, "it was loaded: the limit is too high for this test"
    assert done.returncode in (-signal.SIGPROF, 1), done.stderr
