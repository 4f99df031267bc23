"""Tables for a terminal: none wider than it, in blocks of columns below each other, one model's name told once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from harness.base.terminal import fold
from harness.report.rendering import Table, escape_md, render, width

_LEADS = ("Server",)
_NARROWEST = 6


def text(
    tables: Iterable[Table], wide: int | None, *, blocks: bool = True, facts: Mapping[str, str] | None = None
) -> str:
    """Return tables as markdown, of at most ``wide`` columns if that is given.

    One that is wider goes on below in blocks of columns, each with the first column again; with ``blocks`` off, and
    where one column alone is too wide, its texts go on in further rows instead.
    """
    if wide is None:
        return render(list(tables), "md", facts=facts)
    parts = [part for table in tables for part in (in_blocks(table, wide) if blocks else [wrapped(table, wide)])]
    lines = render(parts, "md", facts=facts).splitlines()
    return "\n".join(part for line in lines for part in ([line] if line.startswith("|") else fold(line, wide))) + "\n"


def in_blocks(table: Table, wide: int) -> list[Table]:
    """Return a table as several of its columns each, none wider than ``wide``; notes stand below the last."""
    table = told_once(table)
    lead = 2 if table.header[1:2] and table.header[1] in _LEADS else 1
    sizes = _sizes(table)
    blocks: list[list[int]] = []
    for column in range(lead, len(table.header)):
        if blocks and _total([*sizes[:lead], *(sizes[it] for it in blocks[-1]), sizes[column]]) <= wide:
            blocks[-1].append(column)
        else:
            blocks.append([column])
    found = []
    for number, chosen in enumerate(blocks or [[]]):
        columns = [*range(lead), *chosen]
        part = replace(
            table,
            title=table.title if number == 0 else "",
            header=tuple(table.header[it] for it in columns),
            rows=tuple(tuple(row[it] for it in columns) for row in table.rows),
            notes=table.notes if number >= len(blocks) - 1 else (),
        )
        found.append(wrapped(part, wide))
    return found


def told_once(table: Table) -> Table:
    """Return a table whose columns are not each called after the same model: the heading has its name."""
    first = next((it for it in range(1, len(table.header)) if table.header[it] not in _LEADS), 1)
    names = list(table.header[first:])
    whole = next((it for it in names if sum(other.startswith(f"{it}-") for other in names) == len(names) - 1), "")
    if whole:
        shared, others = f"{whole}-", [it for it in names if it != whole]
    else:
        # The baseline's column may be called otherwise than the model, as it was published, or there is none.
        shared, others = next(
            ((it, part) for part in (names, names[1:]) if (it := _of_the_heading(part, table.heading))), ("", [])
        )
    if not others:
        return table
    short = [it.removeprefix(shared) if it in others else it for it in names]
    return replace(table, header=(*table.header[:first], *short))


def _of_the_heading(names: Sequence[str], heading: str) -> str:
    """Return the model's name with its dash where some names all begin with it; empty where they do not."""
    first, *others = names or [""]
    parts = first.split("-")
    shared = [f"{'-'.join(parts[:count])}-" for count in range(len(parts) - 1, 0, -1)] if others else []
    return next(
        (it for it in shared if heading.startswith(it[:-1]) and all(other.startswith(it) for other in others)), ""
    )


def wrapped(table: Table, wide: int) -> Table:
    """Return a table whose widest columns are made narrower, down to what fits; long texts go on in further rows."""
    sizes = _sizes(table)
    words = _sizes(replace(table, header=_words(table.header), rows=tuple(map(_words, table.rows))))
    # First no word is broken, as long as that is enough.
    for least in ([min(it, wide // 3) for it in words], [_NARROWEST] * len(sizes)):
        while _total(sizes) > wide and any(size > low for size, low in zip(sizes, least, strict=True)):
            widest = max(range(len(sizes)), key=lambda at: (sizes[at] > least[at], sizes[at]))
            sizes[widest] -= 1
    if sizes == _sizes(table):
        return table
    head = _rows(table.header, sizes)
    rows = [row for it in table.rows for row in _rows(it, sizes)]
    return replace(table, header=head[0], rows=(*head[1:], *rows))


def _words(row: Sequence[str]) -> tuple[str, ...]:
    return tuple(max(text.split(), key=lambda word: width(escape_md(word)), default="") for text in row)


def _sizes(table: Table) -> list[int]:
    rows = (table.header, *table.rows)
    return [max(3, *(width(escape_md(row[it])) for row in rows)) for it in range(len(table.header))]


def _total(sizes: Sequence[int]) -> int:
    return sum(sizes) + 3 * len(sizes) + 1


def _rows(row: Sequence[str], sizes: Sequence[int]) -> list[tuple[str, ...]]:
    cells = [_lines(text, size) for text, size in zip(row, sizes, strict=True)]
    return [tuple(cell[at] if at < len(cell) else "" for cell in cells) for at in range(max(map(len, cells)))]


def _lines(text: str, size: int) -> list[str]:
    """Break a text into pieces that take at most ``size`` columns once they are escaped."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if width(escape_md(joined)) <= size:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        while width(escape_md(word)) > size:
            cut = max(1, next(at for at in range(len(word), -1, -1) if width(escape_md(word[:at])) <= size))
            lines[-1] = word[:cut]
            lines.append("")
            word = word[cut:]
            if not word:
                break
        lines[-1] = word
    return lines
