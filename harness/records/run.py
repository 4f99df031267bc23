"""A run's folder: records appended line by line, logs, attachments, and how they are read again."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.base.errors import RecordError
from harness.base.files import is_file
from harness.base.reading import is_plain, json_file, json_value
from harness.base.secrets import cleaned
from harness.base.text import file_name
from harness.records.metrics import METRICS
from harness.records.migrations import SCHEMA_VERSION, migrate
from harness.records.schema import LINE, Line, Measurement
from harness.records.shared import Parts
from harness.records.stored import disagreement

_CACHES = "caches.txt"


class Run:
    """A run's folder: ``records.jsonl``, the workers' logs and attachments.

    Lines are only ever appended, each flushed and fsynced before :meth:`append` returns, so that what was
    measured stays whatever happens next. Threads may append to one run, as the two sides of a gate do: a line follows
    the other whole, and is told of before the next.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "records.jsonl"
        self.logs = folder / "logs"
        self.attachments = folder / "attachments"
        # Told of every line once it is on the disk.
        self.written: Callable[[Line], object] = lambda line: None
        self._lock = threading.RLock()

    @property
    def name(self) -> str:
        """That of its folder; what of it is no Unicode by its number, since records and pages hold nothing else."""
        return self.folder.name.encode(errors="backslashreplace").decode()

    @classmethod
    def create(cls, root: Path) -> Run:
        """Make a new run folder under ``root``, named by the time in UTC; RecordError says why there can be none."""
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        for attempt in range(100):
            folder = root / (stamp if not attempt else f"{stamp}-{attempt}")
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise RecordError(
                    f"{root}: no run can be kept there ({error.strerror}); name another folder: --results"
                ) from error
            return cls(folder)
        raise RecordError(f"no free run folder under {root} for {stamp}")

    def become_latest(self) -> None:
        """Have ``latest`` beside the folder of the runs point to this one; nothing where links cannot be made."""
        pointer = self.folder.parent.parent / "latest"
        made = pointer.with_name(f".latest.{os.getpid()}")
        with contextlib.suppress(OSError):
            made.unlink(missing_ok=True)
            made.symlink_to(Path(self.folder.parent.name, self.folder.name), target_is_directory=True)
            if pointer.is_symlink() or not pointer.exists():
                made.replace(pointer)
            made.unlink(missing_ok=True)

    @property
    def caches(self) -> list[Path]:
        """The folders of artifacts that its sessions on this machine used, the latest first."""
        try:
            told = os.fsdecode((self.folder / _CACHES).read_bytes()).splitlines()
        except OSError:
            return []
        return [Path(line) for line in dict.fromkeys(reversed(told)) if line]

    def note_cache(self, folder: Path) -> None:
        """Note where a session keeps its artifacts; beside the records, since it means nothing elsewhere."""
        with _kept(self.folder / _CACHES, "where the cache lies"), (self.folder / _CACHES).open("ab") as file:
            file.write(os.fsencode(f"{folder}\n"))

    @classmethod
    def open(cls, root: Path, name: str) -> Run:
        """Return the run called ``name`` (or ``last``, or a path to a run folder or its records file)."""
        path = Path(name)
        if is_file(path):
            path = path.parent
        if is_file(path / "records.jsonl"):
            return cls(path)
        runs = cls.below(root)
        if name == "last" and runs:
            return runs[-1]
        if is_file(root / name / "records.jsonl"):
            return cls(root / name)
        names = ", ".join(run.name for run in runs[-5:])
        here = names or "none yet: a session makes them, or name a run's folder, or another place of runs"
        bare = [it for it in sorted(root.glob("*/*.json")) if not is_file(it.with_name("records.jsonl"))]
        lost = f"; {bare[-1].parent.name} there has {bare[-1].name} and no records.jsonl" if bare else ""
        raise RecordError(f"no run {name!r} under {root}; the latest are: {here}{lost}")

    @classmethod
    def below(cls, root: Path) -> list[Run]:
        """Return the runs of a folder, by their names; what is no file, such as a pipe that nobody writes, is none."""
        return [cls(path.parent) for path in sorted(root.glob("*/records.jsonl")) if is_file(path)]

    @classmethod
    def open_all(cls, root: Path, names: Iterable[str]) -> list[Run]:
        """Return the runs of these names, as :meth:`open` finds them; one that is named twice once."""
        return list({run.folder.resolve(): run for run in (cls.open(root, name) for name in names)}.values())

    def append(self, line: Line) -> None:
        """Append one line and wait until it is on the disk.

        Raises RecordError when the disk refuses it; a half-written line is cut off again, so that the file
        keeps whole lines only. Credentials in its texts are taken out of it.
        """
        told = line.model_dump()
        if (kept := cleaned(told)) is not told:
            line = LINE.validate_python(kept)
        data = (line.model_dump_json(exclude_defaults=False) + "\n").encode()
        with self._lock:
            self._append(data)
            self.written(line)

    def _append(self, data: bytes) -> None:
        with _kept(self.path, "a record"):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                start = file.seek(0, os.SEEK_END)
                if start and not _ends_whole(self.path):
                    data = b"\n" + data
                try:
                    while data:
                        data = data[file.write(data) :]
                    os.fsync(file.fileno())
                except OSError:
                    with contextlib.suppress(OSError):
                        os.truncate(self.path, start)
                    raise

    def read(self) -> tuple[list[Line], list[str]]:
        """Return every whole line of the run and a message for each line that could not be read."""
        return read(self.path)

    def lines(self, problems: list[str] | None = None) -> Iterator[Line]:
        """Yield every whole line as it is read; a message for each broken one is put into ``problems``."""
        return each(self.path, [] if problems is None else problems)

    def attach(self, name: str, data: Mapping[str, Any] | list[Any]) -> str:
        """Write bulky detail beside the records and return its path relative to the run folder.

        What an earlier record of another model or session has under that name stays as it is: a number is added.
        Raises RecordError when the disk refuses it; nothing half-written is left behind.
        """
        text = json.dumps(cleaned(data))
        target = self._free(file_name(name), text)
        temporary = target.with_suffix(".tmp")
        with _kept(target, "an attachment"):
            self.attachments.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_text(text, encoding="utf-8")
                os.replace(temporary, target)
            except OSError:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise
        return str(target.relative_to(self.folder))

    def _free(self, name: str, text: str) -> Path:
        """Return the first path of that name that is not there, or that holds this text or nothing whole."""
        for number in itertools.count(1):
            target = self.attachments / f"{name}{f'-{number}' if number > 1 else ''}.json"
            try:
                if target.read_text(encoding="utf-8") == text:
                    return target
            except (OSError, UnicodeDecodeError):
                return target
        raise AssertionError

    def attached(self, name: str) -> Any:
        """Return what :meth:`attach` has written; RecordError names the file where it is gone or damaged."""
        path = self.folder / name
        try:
            return json_file(path)
        except (OSError, ValueError) as error:
            raise RecordError(f"{path}: this detail of a record cannot be read ({error})") from error

    def adopt(self, line: str, attached: Mapping[str, str], dated: Callable[[float], float]) -> Line:
        """Return a line that a session on another machine wrote, by this machine's clock, with its attachment here.

        ``attached`` has the attachment's ``name`` and ``text``, or is empty; ``dated`` translates times. Nothing is
        appended yet.
        """
        found = LINE.validate_json(line)
        changes: dict[str, Any] = {"time": dated(found.time)}
        if attached:
            changes["attachment"] = self.attach(Path(attached["name"]).stem, json_value(attached["text"]))
        return found.model_copy(update=changes)

    def keep_logs(self, of: str, logs: Mapping[str, str]) -> None:
        """Write the logs that such a session brought, by name, beside this run's own."""
        for name, text in logs.items():
            path = self.logs / f"{file_name(of)}-{name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _kept(path: Path, what: str) -> Iterator[None]:
    """Turn what the disk says while ``what`` is written into an error that says how to go on."""
    try:
        yield
    except OSError as error:
        raise RecordError(
            f"{path}: cannot write {what} ({error.strerror}); what was recorded before is kept. "
            "Free some space and go on with --resume."
        ) from error


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def read(path: Path) -> tuple[list[Line], list[str]]:
    """Read a record file: every whole line, and a message naming each line that is broken.

    A line of a newer schema raises RecordError by name, since leaving it out in silence would change a table.
    """
    problems: list[str] = []
    parts = Parts()
    return [parts.shared(line) for line in each(path, problems)], problems


def each(path: Path, problems: list[str]) -> Iterator[Line]:
    """Yield every whole line of a record file as it is read, so that no more than one is held; else as :func:`read`."""
    lines = raw_lines(path)
    while True:
        try:
            number, _, raw = next(lines)
        except StopIteration:
            return
        except OSError as error:
            raise RecordError(f"{path}: cannot be read ({error.strerror})") from error
        try:
            yield parse(raw, f"{path}, line {number}")
        except BrokenLine as error:
            problems.append(str(error))


def raw_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield the number (from 1), the offset in bytes and the bytes of each line that is not blank."""
    offset = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if raw.strip():
                yield number, offset, raw
            offset += len(raw)


# How a line of today's schema begins, as it is written here.
_TODAYS = f'{{"schema_version":{SCHEMA_VERSION},'.encode()


class BrokenLine(RecordError):
    """A line of a record file is not a record; the message says where and why."""


def parse(raw: bytes, where: str) -> Line:
    """Return one line of a record file, brought to today's schema.

    Raises BrokenLine, which names ``where``, for what is no record, and RecordError for a line of a newer schema,
    since leaving it out in silence would change a table.
    """
    line = None
    if raw.startswith(_TODAYS) and is_plain(raw):
        # Faster than by way of Python's own objects; what is not right there is told of below.
        with contextlib.suppress(ValidationError):
            line = LINE.validate_json(raw)
            # What is as it would be written now has no name twice, of which validation takes the last in silence.
            if line.schema_version == SCHEMA_VERSION and line.model_dump_json().encode() == raw.rstrip():
                return _agreeing(line, where)
    try:
        value = json_value(raw, once=True)
        if line is None or line.schema_version != SCHEMA_VERSION:
            line = LINE.validate_python(migrate(value, where))
        return _agreeing(line, where)
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenLine(f"{where}: left out, {_reason(error)}") from error


def _agreeing(line: Line, where: str) -> Line:
    """Return a line whose unit and direction are those of its metric; what is no metric of ours decides nothing."""
    if not isinstance(line, Measurement) or line.metric not in METRICS:
        return line
    if problem := disagreement(line.metric, unit=line.unit, direction=line.direction):
        raise BrokenLine(f"{where}: left out, {problem}")
    return line


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    if isinstance(error, KeyError):
        return f"key {error} is missing"
    return f"not a whole JSON record ({error})"
