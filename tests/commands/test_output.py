"""What a command prints and nobody takes: a full disk, a reader that has gone, a stream that was closed."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import __main__
from harness.base.text import visible
from harness.records.run import Run
from harness.records.schema import Device, Header

pytestmark = pytest.mark.programs

REPOSITORY = Path(__file__).resolve().parents[2]
WELL = ["table", str(max((REPOSITORY / "results" / "reference").glob("cpu-*")))]
DATA = ["export", WELL[1], "--format", "parquet"]
ILL = ["report", "nothing-like-this"]

full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
# Each buffers differently: what one is told as it prints, the other is as it ends.
buffered = pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])


def run(
    words: list[str], unbuffered: str, *, encoding: str = "utf-8", **streams: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness", *words],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered, "PYTHONIOENCODING": encoding},
        encoding=encoding,
        timeout=120,
        check=False,
    )


@full
@buffered
def test_an_error_that_nobody_can_be_told_keeps_its_status(unbuffered: str) -> None:
    with Path("/dev/full").open("w") as device:
        assert run(ILL, unbuffered, stderr=device).returncode == 2


@full
@buffered
@pytest.mark.parametrize("words", [WELL, ["--help"], DATA], ids=" ".join)
def test_a_full_disk_of_standard_output_is_named(words: list[str], unbuffered: str) -> None:
    with Path("/dev/full").open("w") as device:
        done = run(words, unbuffered, stdout=device)
    assert (done.returncode, done.stderr) == (2, "error: standard output: No space left on device\n")


@full
@buffered
@pytest.mark.parametrize("words", [WELL, ["--help"], DATA, ILL], ids=" ".join)
def test_a_full_disk_of_both_streams_is_an_error_of_ours(words: list[str], unbuffered: str) -> None:
    with Path("/dev/full").open("w") as device:
        assert run(words, unbuffered, stdout=device, stderr=device).returncode == 2


@buffered
@pytest.mark.parametrize("words", [WELL, DATA], ids=" ".join)
def test_a_disk_that_takes_a_part_is_named(words: list[str], unbuffered: str, tmp_path: Path) -> None:
    out, before, room = tmp_path / "out", 1 << 30, 1000
    with out.open("wb") as file:
        file.truncate(before)
    with out.open("a") as file:
        done = run(
            words,
            unbuffered,
            stdout=file,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (before + room, before + room)),
        )
    assert out.stat().st_size == before + room
    assert (done.returncode, done.stderr) == (2, "error: standard output: File too large\n")


@buffered
@pytest.mark.parametrize("words", [WELL, [*WELL, "--wide"], ["--help"], DATA], ids=" ".join)
def test_a_reader_that_has_gone_ends_it_without_a_word(words: list[str], unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        done = run(words, unbuffered, stdout=pipe)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize(("closed", "words", "status"), [(1, WELL, 0), (2, WELL, 0), (2, ILL, 2)])
def test_a_stream_that_was_closed_goes_nowhere(closed: int, words: list[str], status: int) -> None:
    done = run(words, "", preexec_fn=lambda: os.close(closed))
    assert done.returncode == status
    assert done.stdout if words is WELL and closed != 1 else not done.stdout


@pytest.mark.parametrize("words", [WELL, [*WELL, "--wide"]], ids=" ".join)
def test_what_an_encoding_lacks_is_written_in_ascii(words: list[str]) -> None:
    plain = run(words, "", encoding="ascii")
    whole = run(words, "")
    assert plain.returncode == whole.returncode == 0, plain.stderr
    assert plain.stdout.isascii()
    assert "\\xb1" in plain.stdout
    assert "±" in whole.stdout


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    # By a shell: whoever starts a process in a folder needs the folder.
    script = f'cd "{gone}" && rmdir "{gone}" && exec "{sys.executable}" -m harness table RUN'
    done = subprocess.run(
        ["/bin/sh", "-c", script],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: the folder in which this was started is gone: change to one that is there\n"


@pytest.mark.parametrize("command", ["cost", "table", "why"])
def test_a_run_of_a_hostile_name_without_what_is_asked_is_named_visibly(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path / "a\u061c\x1b[31mb")
    run.append(Header(run="r", command=["pytest"], packages={}, device=Device(name="d")))
    assert __main__.main([command, str(run.folder)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("a")
    assert visible(said) == said


def test_a_python_without_the_harness_is_named_with_what_is_missing() -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-m", "harness", *WELL],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert re.fullmatch(
        rf"error: [\w.]+ is not installed for {re.escape(sys.executable)}: .*pip install -e \.\)",
        " ".join(done.stderr.split()),
    )
