"""A columnar copy of record files, for work over many runs; the JSON lines stay the source of truth.

Each run's lines lie once more as a Parquet file in the cache folder, under a name made of the run's path and of its
record file's size and time of change. So a copy is either of the file as it is, or not found; all of them can be thrown
away, and are written again when next asked for.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.errors import RecordError
from harness.base.files import default_root
from harness.base.text import digest
from harness.records import failures
from harness.records.arrow import pa, pc, pq
from harness.records.place import figure_of, subject_of
from harness.records.run import BrokenLine, Run, parse, raw_lines
from harness.records.schema import Cell, Failure, Header, Judgement, Line, Measurement, Outcome, Timing

_TEXT = pa.string()
_NUMBER = pa.float64()
_LIST = pa.list_(pa.float64())

SCHEMA = pa.schema(
    {
        "source": _TEXT,  # digest of the run folder's path
        "line": pa.int64(),
        "offset": pa.int64(),
        "kind": _TEXT,
        "time": _NUMBER,
        "model": _TEXT,
        "model_source": _TEXT,
        "revision": _TEXT,
        "weights": _TEXT,
        "note": _TEXT,
        "recipe": _TEXT,
        "recipe_hash": _TEXT,
        "config": _TEXT,
        "baseline": pa.bool_(),
        "hardware": _TEXT,
        "server": _TEXT,
        "gpus": pa.int64(),
        "device": _TEXT,
        "device_detail": _TEXT,
        "metric": _TEXT,
        "unit": _TEXT,
        "direction": _TEXT,
        "definition": pa.int64(),
        "parameters": _TEXT,
        "value": _NUMBER,
        "samples": _LIST,
        "warmup": _LIST,
        "statistics": _TEXT,
        "packages": _TEXT,
        "flags": _TEXT,
        "state_before": _TEXT,
        "state_after": _TEXT,
        "attachment": _TEXT,
        "from_cache": pa.bool_(),
        "kept_from": _TEXT,
        "kept_time": _NUMBER,
        "discarded": _TEXT,
        "disturbed": _TEXT,
        "stage": _TEXT,
        "worker": _TEXT,
        "test": _TEXT,
        "outcome": _TEXT,
        "seconds": _NUMBER,
        "message": _TEXT,
        "passed": pa.bool_(),
        "noisy": pa.bool_(),
        "measured": _NUMBER,
        "low": _NUMBER,
        "high": _NUMBER,
        "limit": _NUMBER,
        "comparison": _TEXT,
        "origin": _TEXT,
        "published": _NUMBER,
        "harness": _TEXT,
        "command": _TEXT,
        "subject": _TEXT,  # digest of model and device: what one set of tables is about
        "place": _TEXT,  # digest of the figure's place, with its unit and direction
    }
)
"""One row a line of a record file; what is a mapping or a list of texts there is JSON text here."""

_LAYOUT = 7
"""Of the copies, beside what their columns are: raised when a column of the same name and type means otherwise."""
_PROBLEM = "problem"
_LARGEST = 2**63 - 1
_AT_ONCE = 4000
# What tables and trends need; the rest is read for exports.
SLIM = ("source", "line", "offset", "kind", "time", "subject", "place", "discarded", "message")


@dataclass(frozen=True)
class Columns:
    """The lines of several runs as one table, in the order of the runs given and of their lines."""

    table: pa.Table
    runs: Mapping[str, Run]
    problems: tuple[str, ...]
    cache: Path | None = None

    def kind(self, *kinds: str) -> pa.Table:
        """Return the rows of these kinds of line."""
        return self.table.filter(pc.is_in(self.table["kind"], pa.array(kinds)))

    def lines(self, rows: pa.Table) -> Iterator[Line]:
        """Read the records behind some rows from their JSON lines, in the rows' order.

        Raises RecordError if a record file does not hold any more what it held when it was listed.
        """
        files: dict[str, Any] = {}
        try:
            wanted = rows.select(["source", "offset", "line"]).to_pydict()
            for source, offset, number in zip(wanted["source"], wanted["offset"], wanted["line"], strict=True):
                path = self.runs[source].path
                if source not in files:
                    if len(files) > 200:
                        files.pop(next(iter(files))).close()
                    files[source] = path.open("rb")
                files[source].seek(offset)
                yield parse(files[source].readline(), f"{path}, line {number}")
        except (BrokenLine, OSError) as error:
            raise RecordError(f"{error}; it was changed while it was read: try again") from error
        finally:
            for file in files.values():
                file.close()

    def standing(self) -> list[Measurement]:
        """Return the measurements that tables are made of: the latest of each place, and every discarded one.

        They come in an order that gives the same tables as all measurements would.
        """
        rows = self.kind("measurement").select(["source", "line", "offset", "time", "subject", "place", "discarded"])
        rows = rows.append_column("row", pa.array(range(rows.num_rows), pa.int64()))
        first = rows.group_by("subject", use_threads=False).aggregate([("row", "min")])
        kept = rows.filter(pc.equal(rows["discarded"], ""))
        kept = kept.sort_by([("time", "ascending"), ("row", "ascending")])
        latest = kept.group_by(["subject", "place"], use_threads=False).aggregate([("row", "last")])["row_last"]
        discarded = rows.filter(pc.not_equal(rows["discarded"], ""))["row"]
        chosen = pa.concat_arrays([*latest.chunks, *discarded.chunks]) if rows.num_rows else pa.array([], pa.int64())
        picked = rows.take(chosen).join(first, "subject").sort_by([("row_min", "ascending"), ("row", "ascending")])
        return [line for line in self.lines(picked) if isinstance(line, Measurement)]

    def failures(self) -> list[Failure]:
        """Return every failure whose work nothing in these runs has measured since."""
        rows = self.kind("failure")
        failed = set(rows["source"].to_pylist())
        if not failed:
            return []
        # What overcame a failure may be in another run; the columns that tell are read only where there is one.
        whole = load(self.runs.values(), columns=failures.COLUMNS, cache=self.cache)
        told = whole.kind("header", "failure", "outcome", "judgement", "measurement").select(list(failures.COLUMNS))
        standing = failures.standing(told.to_pylist())
        places = zip(rows["source"].to_pylist(), rows["line"].to_pylist(), strict=True)
        rows = rows.filter(pa.array([place in standing for place in places]))
        return [line for line in self.lines(rows) if isinstance(line, Failure)]


def load(runs: Iterable[Run], *, columns: Sequence[str] = SLIM, cache: Path | None = None) -> Columns:
    """Return the lines of ``runs``, each run once, with the given columns of SCHEMA.

    ``cache`` is the folder of the columnar copies; where it cannot be written the copies are made in memory. Raises
    RecordError for a run of a newer schema and for one that cannot be read.
    """
    folder = (cache or default_root()) / "columns"
    names = list(dict.fromkeys([*columns, *SLIM]))
    opened = {digest(str(run.folder.resolve())): run for run in runs}
    found: dict[Path, tuple[str, Run]] = {}
    parts: list[pa.Table] = []
    for source, run in opened.items():
        path = _copy(folder, source, run)
        if path.is_file():
            found[path] = (source, run)
        else:
            parts.append(_make(source, run, path, names))
    if found:
        whole = _read_all(list(found), names)
        if whole is None:
            parts += [_read_one(path, source, run, names) for path, (source, run) in found.items()]
        else:
            parts.append(whole)
    table = pa.concat_tables(parts) if parts else SCHEMA.empty_table().select(names)
    if len(parts) > 1:
        place = pc.index_in(table["source"], pa.array(list(opened)))
        table = table.append_column("run", place).sort_by([("run", "ascending"), ("line", "ascending")]).select(names)
    return _columns(table, opened, cache)


def _columns(table: pa.Table, runs: Mapping[str, Run], cache: Path | None) -> Columns:
    problems = table.filter(pc.equal(table["kind"], _PROBLEM))["message"].to_pylist()
    return Columns(table, runs, tuple(problems), cache)


def _copy(folder: Path, source: str, run: Run) -> Path:
    try:
        state = run.path.stat()
    except OSError as error:
        raise RecordError(f"{run.path}: cannot be read ({error.strerror})") from error
    version = digest([_LAYOUT, str(SCHEMA), str(run.path.resolve()), state.st_size, state.st_mtime_ns, state.st_ino])
    return folder / f"{source}-{version}.parquet"


def _read_all(paths: Sequence[Path], names: Sequence[str]) -> pa.Table | None:
    """Return all copies as one table; None if one of them is damaged, or was replaced meanwhile.

    In this thread alone: Arrow's datasets wait for ever for a thread of theirs that memory did not suffice for.
    """
    try:
        return pa.concat_tables([_read(path, names) for path in paths])
    except (pa.ArrowException, OSError, KeyError):
        return None


def _read(path: Path, names: Sequence[str]) -> pa.Table:
    with pq.ParquetFile(path, pre_buffer=False) as file:
        table = file.read(columns=list(names), use_threads=False).select(list(names))
    # A file numbers its columns, and a table made of it would be written with these numbers.
    return table.cast(pa.schema([SCHEMA.field(name) for name in names]))


def _read_one(path: Path, source: str, run: Run, names: Sequence[str]) -> pa.Table:
    table = _read_all([path], names)
    return _make(source, run, path, names) if table is None else table


def _make(source: str, run: Run, path: Path, names: Sequence[str]) -> pa.Table:
    """Return the named columns of a run's lines, and keep all of them as ``path`` in place of the run's former copies.

    Some thousand lines are held whole at once, however many there are.
    """
    parts: list[pa.Table] = []
    copy = _Kept(path)
    try:
        rows = _rows(source, run)
        while some := list(itertools.islice(rows, _AT_ONCE)):
            part = pa.Table.from_pylist(some, schema=SCHEMA)
            copy.write(part)
            parts.append(part.select(names))
    except OSError as error:
        copy.drop()
        raise RecordError(f"{run.path}: cannot be read ({error.strerror})") from error
    except BaseException:
        copy.drop()
        raise
    copy.replace(f"{source}-*.parquet")
    return pa.concat_tables(parts) if parts else SCHEMA.empty_table().select(names)


def _rows(source: str, run: Run) -> Iterator[dict[str, Any]]:
    for number, offset, raw in raw_lines(run.path):
        try:
            row = _row(parse(raw, f"{run.path}, line {number}"))
        except BrokenLine as error:
            row = {"kind": _PROBLEM, "message": str(error)}
        yield {"source": source, "line": number, "offset": offset, **row}


class _Kept:
    """A copy as it is written beside its place; a cache that cannot be written costs time, nothing else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self.writer: pq.ParquetWriter | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.writer = pq.ParquetWriter(self.temporary, SCHEMA, compression="zstd")
        except OSError:
            self.drop()

    def write(self, rows: pa.Table) -> None:
        if self.writer is not None:
            try:
                self.writer.write_table(rows)
            except OSError:
                self.drop()

    def replace(self, former: str) -> None:
        """Put it in its place, and remove other files of that pattern beside it."""
        if self.writer is not None:
            try:
                self.writer.close()
                os.replace(self.temporary, self.path)
                for it in self.path.parent.glob(former):
                    if it != self.path:
                        it.unlink(missing_ok=True)
            except OSError:
                self.drop()

    def drop(self) -> None:
        writer, self.writer = self.writer, None
        with contextlib.suppress(OSError):
            if writer is not None:
                writer.close()
        with contextlib.suppress(OSError):
            self.temporary.unlink(missing_ok=True)


_texts: dict[str, str] = {}


def _json(value: Any) -> str:
    # Of the lines of a run most have the same few packages, devices and options.
    key = repr(value)
    if key not in _texts:
        if len(_texts) > _AT_ONCE:
            _texts.clear()
        _texts[key] = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return _texts[key]


def _row(line: Line) -> dict[str, Any]:
    row: dict[str, Any] = {"kind": line.kind, "time": line.time}
    if isinstance(line, Header):
        return row | {
            "device": line.device.name,
            "device_detail": _json(line.device.detail),
            "packages": _json(line.packages),
            "command": _json(line.command),
            "harness": line.harness,
        }
    if line.cell is not None:
        row |= _cell(line.cell)
    if isinstance(line, Timing):
        return row | {"stage": line.stage, "seconds": line.seconds}
    if isinstance(line, Outcome):
        return row | {"test": line.test, "outcome": line.outcome, "seconds": line.seconds, "message": line.reason}
    if isinstance(line, Failure):
        told = {"stage": line.stage, "worker": line.worker, "outcome": line.failure, "message": line.message}
        return row | told
    if isinstance(line, Judgement):
        kept = ("metric", "passed", "noisy", "measured", "low", "high", "limit", "comparison", "origin", "published")
        return row | {name: getattr(line, name) for name in kept} | {"parameters": _json(line.parameters)}
    return row | _measurement(line)


def _cell(cell: Cell) -> dict[str, Any]:
    return {
        "model": cell.model.name,
        "model_source": cell.model.source,
        "revision": cell.model.revision,
        "weights": cell.model.weights,
        "note": cell.model.note,
        "recipe": cell.recipe.name,
        "recipe_hash": cell.recipe.hash,
        "config": _json(cell.recipe.config),
        "baseline": cell.recipe.baseline,
        "hardware": cell.hardware,
        "server": cell.server,
        "gpus": cell.gpus,
    }


def _measurement(line: Measurement) -> dict[str, Any]:
    if abs(line.definition) > _LARGEST:
        raise BrokenLine(f"left out, definition {line.definition} is no version")
    (subject, *weights_and_device), (place, *told) = subject_of(line), figure_of(line)
    return {
        "device": line.device.name,
        "device_detail": _json(line.device.detail),
        "metric": line.metric,
        "unit": line.unit,
        "direction": line.direction,
        "definition": line.definition,
        "parameters": _json(line.parameters),
        "value": line.value,
        "samples": line.samples,
        "warmup": line.warmup,
        "statistics": _json(line.statistics),
        "packages": _json(line.packages),
        "flags": _json(line.flags),
        "state_before": _json(line.state_before),
        "state_after": _json(line.state_after),
        "attachment": line.attachment,
        "from_cache": line.from_cache,
        "kept_from": line.kept_from,
        "kept_time": line.kept_time,
        "discarded": line.discarded,
        "disturbed": line.disturbed,
        "subject": digest([subject.digest, *weights_and_device]),
        "place": digest([place.digest, *told]),
    }
