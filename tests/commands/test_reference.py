"""The committed tables are those of the committed records, and nothing that runs changes what is committed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from harness.__main__ import main
from harness.records.run import Run


@pytest.mark.programs
def test_the_committed_tables_are_those_of_the_committed_records(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["reference", str(repository / "results" / "reference"), "--check"])
    assert status == 0, capsys.readouterr().err


@pytest.mark.programs
def test_what_differs_is_named_and_made_anew(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "reference"
    kept = repository / "results" / "reference"
    shutil.copytree(kept / "arm-mobile-20261125-024616", folder / "arm-mobile-20261125-024616")
    shutil.copytree(kept / "tables", folder / "tables")
    table = folder / "tables" / "arm-mobile.csv"
    table.write_text(table.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert main(["reference", str(folder), "--check"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert f"{table} differs" in said
    assert f"{folder / 'tables' / 'cpu.md'} is of no run" in said
    assert main(["reference", str(folder)]) == 0
    assert table.read_bytes() == (kept / "tables" / "arm-mobile.csv").read_bytes()


@pytest.mark.programs
def test_runs_of_the_shelf_are_in_the_table_of_recipes_alone(repository: Path, tmp_path: Path) -> None:
    kept = repository / "results"
    phone, shelf = "arm-mobile-20261125-024616", next(iter(sorted((kept / "shelf").iterdir()))).name
    shutil.copytree(kept / "reference" / phone, tmp_path / "reference" / phone)
    shutil.copytree(kept / "shelf" / shelf, tmp_path / "shelf" / shelf)
    assert main(["reference", str(tmp_path / "reference")]) == 0
    tables = tmp_path / "reference" / "tables"
    support = (tables / "support.md").read_text(encoding="utf-8")
    assert f"runs: {phone}, {shelf}" in support
    assert "cpu transformers" in support
    assert not (tables / "cpu.md").exists()


def test_a_folder_without_runs_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reference", str(tmp_path)]) == 2
    assert "no run in it" in capsys.readouterr().err


def test_the_latest_run_is_pointed_to(tmp_path: Path) -> None:
    for _ in range(2):
        run = Run.create(tmp_path / "runs")
        run.become_latest()
        assert (tmp_path / "latest").resolve() == run.folder
        assert [path.name for path in tmp_path.iterdir() if path.name not in ("runs", "latest")] == []
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").mkdir()
    run.become_latest()
    assert not (tmp_path / "latest").is_symlink(), "what somebody keeps there stays"


@pytest.mark.parametrize(
    "path", ["results/runs/20260101-000000/records.jsonl", "results/latest", "results/gates/20260101-000000/gate.json"]
)
def test_what_runs_write_is_ignored(repository: Path, path: str) -> None:
    if not (repository / ".git").exists():
        pytest.skip("this is no checkout")
    assert subprocess.run(["git", "check-ignore", "--quiet", path], cwd=repository, check=False).returncode == 0
