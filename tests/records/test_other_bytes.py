"""Names on disks of other bytes than UTF-8, which Python reads as halves of characters: kept, told, and found again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness import __main__
from harness.judge import accepted
from harness.records.run import Run
from harness.records.schema import Failure, Header, Measurement
from tests.faults.small_session import CELL, DEVICE, measurement

OTHER = os.fsdecode(b"m\xff")
TOLD = "m\\udcff"


def _run(folder: Path, name: str = OTHER) -> Run:
    run = Run(folder)
    run.append(Header(run=run.name, command=["pytest", name], packages={}, device=DEVICE))
    cell = CELL.model_copy(update={"model": CELL.model.model_copy(update={"name": name})})
    for value in (1.0, 1.01):
        run.append(measurement(0, value).model_copy(update={"cell": cell}))
    run.append(Failure(cell=cell, stage="load", failure="exception", message=f"no file {name}"))
    return run


def test_a_record_of_such_a_name_is_kept_and_says_it(tmp_path: Path) -> None:
    run = _run(tmp_path / "run")
    found, problems = run.read()
    assert problems == []
    assert {it.cell.model.name for it in found if isinstance(it, Measurement)} == {TOLD}
    assert [it.message for it in found if isinstance(it, Failure)] == [f"no file {TOLD}"]
    assert [it.command for it in found if isinstance(it, Header)] == [["pytest", TOLD]]


def test_a_run_of_such_a_folder_is_told_of_and_pointed_to(tmp_path: Path) -> None:
    run = _run(tmp_path / "runs" / OTHER)
    run.note_cache(tmp_path / OTHER)
    assert run.name == TOLD
    assert Run(run.folder).caches == [tmp_path / OTHER]
    run.become_latest()
    assert Run(tmp_path / "latest").path.samefile(run.path)


@pytest.mark.parametrize("command", ["export", "baseline", "report"])
def test_commands_take_such_runs(tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    runs = [_run(tmp_path / "runs" / f"{OTHER}{number}", "Llama") for number in range(3)]
    words = {
        "export": ["export", str(runs[0].folder), "--format", "csv", "-o", str(tmp_path / "out")],
        "baseline": ["baseline", *(str(it.folder) for it in runs), "--results", str(tmp_path)],
        "report": ["report", str(runs[0].folder), "-o", str(tmp_path / "out")],
    }[command]
    assert __main__.main(words) == 0
    (path,) = (tmp_path / "baselines").glob("*.json") if command == "baseline" else [tmp_path / "out"]
    text = path.read_text(encoding="utf-8")
    assert "m\\\\udcff0" in text if command == "baseline" else f"{TOLD}0" in text


def test_a_reason_of_such_bytes_is_kept() -> None:
    assert accepted.parse([f"latency:of {OTHER}"]) == [("latency", f"of {TOLD}")]
