"""Tables to text: markdown as GitHub reads it, reStructuredText grids as the tutorial writes them, and CSV."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Literal

from harness.base.secrets import without_secrets
from harness.base.text import one_line
from harness.report.spreadsheet import quoted

Format = Literal["md", "rst", "csv"]


FIRST_COLUMN_WIDTH = 17
"""Least width, in characters, of a reST grid's first column: the tutorial's memory table is wider than its texts."""


@dataclass(frozen=True)
class Entry:
    """One measured number and what it is held against: one line of the CSV.

    ``value``, ``baseline`` and ``published`` are in ``unit``. ``ratio`` and ``published_ratio`` say how many times
    better than the baseline, above 1 whatever the metric's direction. ``parameters`` is JSON. ``samples`` counts the
    raw samples behind the value; ``time`` is when its record was written, in seconds since the epoch. ``spread`` is the
    standard deviation of its rounds, in ``unit``; ``ratio_low`` and ``ratio_high`` are what the ratio may be by them.
    ``disturbed`` says what the machine was doing besides, ``kept_from`` which earlier run has measured it.
    """

    model: str
    weights: str
    recipe: str
    hardware: str
    device: str
    server: str
    metric: str
    statistic: str
    parameters: str
    value: float
    unit: str
    baseline: float | None
    ratio: float | None
    published: float | None
    published_ratio: float | None
    samples: int
    time: float
    spread: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    disturbed: str = ""
    kept_from: str = ""


@dataclass(frozen=True)
class Table:
    """A table of plain texts, nothing escaped yet.

    Tables of one heading that follow each other share it; an empty one is for tables inside a text of other headings.
    """

    heading: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    entries: tuple[Entry, ...] = ()


def render(tables: Sequence[Table], format: Format, *, title: str = "", facts: Mapping[str, str] | None = None) -> str:
    """Return the tables as text that ends in a newline, whatever their texts hold; credentials are left out.

    ``title`` and a list of named ``facts`` stand above them in md and rst. CSV is every entry once, under one header,
    its texts as :func:`harness.report.spreadsheet.unquoted` reads them.
    """
    if format == "csv":
        return _csv(tables)
    escape, head, grid = (escape_md, _md_head, _pipes) if format == "md" else (_rst, _rst_head, _grid)
    blocks = [head(escape(title), 0)] if title else []
    blocks += ["\n".join(f"- {escape(f'{name}: {text}')}" for name, text in (facts or {}).items())]
    heading = None
    for table in tables:
        if table.heading != heading:
            heading = table.heading
            blocks += [head(escape(heading), 1)] if heading else []
        if table.title:
            blocks.append(head(escape(table.title), 2))
        blocks.append(grid([[escape(text) for text in row] for row in (table.header, *table.rows)]))
        blocks += [escape(f"Note: {note}") for note in table.notes]
    return without_secrets("\n\n".join(block for block in blocks if block) + "\n")


def width(text: str) -> int:
    """Return the columns that ``text`` takes, by docutils' rule for grids: two for wide characters, else one."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _escape(text: str, escaped: Callable[[str], str]) -> str:
    """Put ``escaped(character)`` for each, an underscore inside a word (batch_size) excepted: it marks nothing up."""
    inside = [text[n - 1 : n].isalnum() and text[n + 1 : n + 2].isalnum() for n in range(len(text))]
    return "".join(it if it == "_" and safe else escaped(it) for it, safe in zip(text, inside, strict=True))


def escape_md(text: str) -> str:
    """Return ``text`` as one line of markdown that shows it as it is and marks nothing up."""
    entities = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
    return _escape(one_line(text), lambda it: f"\\{it}" if it in "\\`*_|[]~$" else entities.get(it, it))


def _rst(text: str) -> str:
    """Escape inline markup, and a beginning that would make a list, comment or the like of a cell.

    A combining character that has no composed form becomes U+FFFD: docutils cannot place it in a grid.
    """
    composed = unicodedata.normalize("NFC", one_line(text))
    plain = "".join("\ufffd" if unicodedata.combining(it) else it for it in composed)
    line = _escape(plain, lambda it: f"\\{it}" if it in "\\`*_|" else it).replace("::", ":\\:")
    if line and not line.strip("\\"):
        return f"\\ {line}"  # nothing but backslashes would be a section's rule
    first = line.split(" ")[0]
    marks = first and not first.startswith("\\") and (not first[0].isalnum() or first.endswith((".", ")")))
    return f"\\{line}" if marks else line


def _md_head(text: str, level: int) -> str:
    return f"{'#' * (level + 1)} {text}"


def _rst_head(text: str, level: int) -> str:
    return f"{text}\n{'#=-'[level] * max(width(text), 4)}"


def _padded(rows: Sequence[Sequence[str]], least: int) -> tuple[list[int], list[str]]:
    widths = [max(width(text) for text in column) for column in zip(*rows, strict=True)]
    widths[0] = max(widths[0], least)
    padded = [[text + " " * (to - width(text)) for text, to in zip(row, widths, strict=True)] for row in rows]
    return widths, [f"| {' | '.join(row)} |" for row in padded]


def _pipes(rows: Sequence[Sequence[str]]) -> str:
    widths, lines = _padded(rows, 3)
    rule = "|".join("-" * (to + 2) for to in widths)
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def _grid(rows: Sequence[Sequence[str]]) -> str:
    """Lay a grid out to the tutorial's character.

    tabulate's grid is not used: it pads every header by two, has no least width for a column, and counts a wide
    character as one where wcwidth is not installed, which docutils refuses as malformed.
    """
    widths, lines = _padded(rows, FIRST_COLUMN_WIDTH)
    rule = "+".join("-" * (to + 2) for to in widths)
    body = [part for line in lines[1:] for part in (line, f"+{rule}+")]
    return "\n".join([f"+{rule}+", lines[0], f"+{rule.replace('-', '=')}+", *body])


def _csv(tables: Iterable[Table]) -> str:
    text = io.StringIO()
    # Texts are quoted always: a lone carriage return would break the line otherwise.
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow([column.name for column in fields(Entry)])
    for entry in dict.fromkeys(entry for table in tables for entry in table.entries):
        writer.writerow([quoted(without_secrets(it)) if isinstance(it, str) else it for it in astuple(entry)])
    return text.getvalue()
