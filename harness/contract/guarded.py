"""Runs a command to its end, of which nothing outlives the call or its process: what it started in turn ends too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.contract import warden

_WARDEN = str(Path(warden.__file__))


def run(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command under a warden and return its status and what it printed, as ``subprocess.run`` does.

    ``subprocess.run`` kills no more than its child when the time is over, and then waits for whatever that had started:
    pip, asked to install for another interpreter, hands all the work to a process of its own. ``timeout`` is in
    seconds. Raises subprocess.TimeoutExpired, and OSError for a command that is not there.
    """
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(2, os.strerror(2), command[0])
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        theirs, mine = os.pipe()
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", _WARDEN, str(theirs), "", *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=env,
                pass_fds=(theirs,),
                start_new_session=True,
            )
        except BaseException:
            os.close(mine)
            raise
        finally:
            os.close(theirs)
        try:
            status = process.wait(timeout)
        finally:
            os.close(mine)
            process.wait()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return subprocess.CompletedProcess(list(command), status, *texts)
