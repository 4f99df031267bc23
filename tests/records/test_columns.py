"""The columnar copy: it says what the JSON lines say, whatever they hold, and can be thrown away at any time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.errors import RecordError
from harness.records import columns
from harness.records.published import Documented
from harness.records.run import Run
from harness.records.schema import Failure, Line, Measurement
from harness.report import tables
from tests.laws import examples
from tests.records.test_records import CELLS, FINITE, LATENCY, LINES, STEPS
from tests.report.test_tables import measured

FEW = examples(15)
DOCUMENTED = Documented()
# Few names and times, so that records meet in one place of a table and one of them must stand.
MEASURED = st.builds(
    measured,
    st.sampled_from(["latency", "ttft", "perplexity", "own"]),
    st.floats(0.1, 9),
    st.sampled_from(["bf16", "int8wo"]),
    server=st.sampled_from(["vllm", ""]),
    hardware=st.sampled_from(["cpu", "h100"]),
    parameters=st.sampled_from([{}, {"batch_size": 1}, {"batch_size": True}, {"batch_size": 1.0}]),
    time=st.sampled_from([1.0, 2.0, 3.0]),
    discarded=st.sampled_from(["", "", "", "throttled"]),
    device=st.sampled_from(["one", "two"]),
)


@pytest.fixture
def cache() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def written(folder: Path, lines: list[Line], name: str = "run") -> Run:
    run = Run(folder / name)
    run.folder.mkdir(parents=True, exist_ok=True)
    run.path.write_bytes(b"".join(line.model_dump_json().encode() + b"\n" for line in lines))
    return run


def copies(cache: Path) -> list[Path]:
    return sorted((cache / "columns").glob("*"))


@FEW
@given(st.lists(st.lists(MEASURED, max_size=8), min_size=1, max_size=3))
@pytest.mark.programs
def test_tables_of_the_columnar_copy_are_those_of_all_records(runs: list[list[Measurement]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        opened = [written(Path(folder), list(lines), f"run-{number}") for number, lines in enumerate(runs)]
        everything = [line for lines in runs for line in lines]
        for _ in ("written", "read again"):
            standing = columns.load(opened, cache=Path(folder)).standing()
            assert tables.tables_of("all", standing, DOCUMENTED) == tables.tables_of("all", everything, DOCUMENTED)


@FEW
@given(st.lists(LINES, max_size=4))
@pytest.mark.programs
def test_every_line_is_found_again_behind_its_row(lines: list[Line]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = written(Path(folder), lines)
        for _ in ("written", "read again"):
            found = columns.load([run], columns=columns.SCHEMA.names, cache=Path(folder))
            assert found.problems == ()
            assert list(found.lines(found.table)) == lines
            assert found.table.schema.equals(columns.SCHEMA)


@FEW
@given(st.lists(CELLS, min_size=1, max_size=3), FINITE)
@pytest.mark.programs
def test_a_row_says_what_its_record_says(cells: list[object], value: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lines = [LATENCY.model_copy(update={"cell": cell, "value": value}) for cell in cells]
        run = written(Path(folder), list(lines))
        rows = columns.load([run], columns=columns.SCHEMA.names, cache=Path(folder)).table.to_pylist()
    for line, row in zip(lines, rows, strict=True):
        assert (row["model"], row["recipe"], row["server"]) == (
            line.cell.model.name,
            line.cell.recipe.name,
            line.cell.server,
        )
        assert json.loads(row["config"]) == line.cell.recipe.config
        assert (row["value"], row["samples"]) == (value, line.samples)
        assert json.loads(row["parameters"]) == line.parameters


def test_a_run_is_given_once_and_runs_keep_their_order(tmp_path: Path, cache: Path) -> None:
    first, second = written(tmp_path, [STEPS[0]], "b"), written(tmp_path, [STEPS[1]], "a")
    columns.load([second], cache=cache)
    found = columns.load([first, second, Run(first.folder)], columns=["seconds"], cache=cache)
    assert found.table["seconds"].to_pylist() == [STEPS[0].seconds, STEPS[1].seconds]


def test_the_copy_follows_its_run_and_the_former_one_goes(tmp_path: Path, cache: Path) -> None:
    run = written(tmp_path, [STEPS[0]])
    assert columns.load([run], cache=cache).table.num_rows == 1
    (before,) = copies(cache)
    run.append(STEPS[1])
    assert columns.load([run], cache=cache).table.num_rows == 2
    (after,) = copies(cache)
    assert after != before


def test_a_damaged_copy_is_made_again(tmp_path: Path, cache: Path) -> None:
    runs = [written(tmp_path, [STEPS[number]], str(number)) for number in range(2)]
    whole = columns.load(runs, cache=cache).table
    copies(cache)[0].write_bytes(b"PAR1 cut off")
    assert columns.load(runs, cache=cache).table.equals(whole)
    assert columns.load(runs, cache=cache).table.equals(whole)
    for copy in copies(cache):
        copy.unlink()
    assert columns.load(runs, cache=cache).table.equals(whole)


def test_without_a_writable_cache_the_lines_are_read_all_the_same(tmp_path: Path) -> None:
    run = written(tmp_path, [STEPS[0]])
    blocked = tmp_path / "a file"
    blocked.write_text("")
    assert columns.load([run], cache=blocked).table.num_rows == 1


def test_a_run_of_more_lines_than_are_held_at_once_is_whole(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "_AT_ONCE", 3)
    run = written(tmp_path, [LATENCY.model_copy(update={"value": float(it)}) for it in range(10)])
    for where in (cache, cache, run.path):
        found = columns.load([run], columns=["value"], cache=where)
        assert found.table["value"].to_pylist() == [float(it) for it in range(10)]
    assert [path.suffix for path in copies(cache)] == [".parquet"]


def test_broken_lines_are_named_and_remembered(tmp_path: Path, cache: Path) -> None:
    run = written(tmp_path, [STEPS[0]])
    with run.path.open("ab") as file:
        file.write(b"{broken\n")
    for _ in ("written", "read again"):
        found = columns.load([run], cache=cache)
        assert [f"{run.path}, line 2: left out" in problem for problem in found.problems] == [True]


def test_a_newer_schema_is_refused_and_not_kept(tmp_path: Path, cache: Path) -> None:
    run = written(tmp_path, [STEPS[0]])
    run.path.write_bytes(run.path.read_bytes().replace(b'"schema_version":', b'"schema_version":9'))
    with pytest.raises(RecordError, match="newer than this harness reads"):
        columns.load([run], cache=cache)
    assert copies(cache) == []


def test_a_file_replaced_meanwhile_is_no_silent_mistake(tmp_path: Path, cache: Path) -> None:
    run = written(tmp_path, [LATENCY, LATENCY])
    found = columns.load([run], cache=cache)
    run.path.write_bytes(b"{}\n")
    with pytest.raises(RecordError, match="changed while it was read"):
        found.standing()


_WRITER = """
import sys
from pathlib import Path
from harness.records.run import Run, parse
from harness.records.schema import Line
line = parse(Path(sys.argv[2]).read_bytes(), "line")
run = Run(Path(sys.argv[1]))
for number in range(400):
    run.append(line.model_copy(update={"value": float(number), "parameters": {"n": number}}))
print("done")
"""


@pytest.mark.programs
def test_a_run_is_read_while_another_process_writes_it(tmp_path: Path, cache: Path) -> None:
    run = written(tmp_path, [LATENCY])
    (tmp_path / "line.json").write_text(LATENCY.model_dump_json())
    command = [sys.executable, "-c", _WRITER, str(run.folder), str(tmp_path / "line.json")]
    environment = {**os.environ, "PYTHONPATH": str(Path(columns.__file__).parents[2])}
    counts = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as writer:
        while writer.poll() is None:
            found = columns.load([run], cache=cache)
            assert len(found.standing()) + len(found.problems) == found.table.num_rows
            counts.append(found.table.num_rows)
        assert writer.stdout is not None
        assert writer.stdout.read() == b"done\n"
    assert counts == sorted(counts)
    assert len(set(counts)) > 2
    last = columns.load([run], cache=cache)
    assert (last.table.num_rows, last.problems) == (401, ())


def test_failures_come_back_whole(tmp_path: Path, cache: Path) -> None:
    failure = Failure(cell=LATENCY.cell, stage="start", failure="crash", message="|<script>\n", log_tail="end")
    assert columns.load([written(tmp_path, [failure, STEPS[0]])], cache=cache).failures() == [failure]


@pytest.mark.programs
def test_the_first_session_of_a_folder_loads_no_pyarrow_and_pandas_is_left_alone_until_somebody_uses_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "records.jsonl").write_text("what only a session that is older than another reads\n")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from harness.plugin import session\n"
        "from harness.plugin.estimate import Estimate\n"
        "assert Estimate.load(Path(sys.argv[1]), 'here').left(['test']) == (0, 1)\n"
        "assert 'pyarrow' not in sys.modules\n"
        "from harness.records.columns import SCHEMA\n"
        "import pyarrow as pa\n"
        "rows = pa.Table.from_pylist([{'kind': 'header'}], schema=SCHEMA)\n"
        "assert not {'pandas', 'numba', 'scipy'} & sys.modules.keys()\n"
        "import pandas\n"
        "assert rows.to_pandas()['kind'].tolist() == ['header']\n"
        "assert pa.array(pandas.Series([1.0, None])).null_count == 1\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
