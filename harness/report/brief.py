"""The end of a run on one screen: paragraphs that are cut to a number of lines, and the main table among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from harness.base.terminal import fold
from harness.records.published import Documented
from harness.records.schema import Measurement
from harness.report import headline
from harness.report.blocks import in_blocks
from harness.report.layout import Layout
from harness.report.lines import labels
from harness.report.rendering import Table, render
from harness.report.tables import collect

_FIRST = 3
LINES = 37
"""Of the 40 that a run's end may have; pytest's own last lines are the others."""


@dataclass(frozen=True)
class Paragraph:
    """Something to say: a title, and items that may each take several lines.

    ``tone`` is a colour of pytest's terminal, or empty. ``least`` lines are given to it before others get more; those
    that come first in a list of paragraphs are filled up first, or by ``rank`` where that is lower.
    """

    title: str
    items: tuple[str, ...]
    tone: str = ""
    least: int = 3
    rank: int = 5


def lines_at_least(paragraphs: Sequence[Paragraph], wide: int) -> int:
    """Return how many lines paragraphs take where each is as short as it may be."""
    return sum(_least(it, sum(len(fold(item, wide)) for item in it.items), wide) for it in paragraphs if it.items)


def _least(paragraph: Paragraph, body: int, wide: int) -> int:
    return min(body, paragraph.least) + len(_head(paragraph, wide))


def _head(paragraph: Paragraph, wide: int) -> list[str]:
    return fold(paragraph.title, wide) if paragraph.title else []


def cut(paragraphs: Sequence[Paragraph], wide: int, lines: int, more: str) -> list[tuple[str, str]]:
    """Return paragraphs as (line, tone), ``lines`` at most; of what is left out the number is told, and ``more``.

    An item is shown whole or not at all, but for the first of a paragraph.
    """
    shown = [it for it in paragraphs if it.items]
    folded = [[fold(item, wide) for item in it.items] for it in shown]
    heads = [_head(it, wide) for it in shown]
    whole = [sum(map(len, items)) + len(head) for head, items in zip(heads, folded, strict=True)]
    given = [_least(it, sum(map(len, items)), wide) for it, items in zip(shown, folded, strict=True)]
    for at in sorted(range(len(shown)), key=lambda at: (shown[at].rank, at)):
        given[at] += max(0, min(whole[at] - given[at], lines - sum(given)))
    found: list[tuple[str, str]] = []
    for it, head, items, room in zip(shown, heads, folded, given, strict=True):
        body = _fitting(items, room - len(head), more, wide)
        found += [(line, it.tone) for line in head + body]
    return found[:lines]


def _fitting(items: Sequence[Sequence[str]], room: int, more: str, wide: int) -> list[str]:
    if sum(map(len, items)) <= room:
        return [line for item in items for line in item]
    kept: list[str] = []
    count = 0
    while len(kept) + len(items[count]) < room:
        kept += items[count]
        count += 1
    if not kept and room > 1:
        kept, count = list(items[0][: room - 1]), 1
    if not kept:
        # Where there is room for one line, it says something.
        return [f"{items[0][0][: wide - 4].rstrip()} ..."][:room]
    left = len(items) - count
    return [*kept, fold(f"... and {left} more: {more}" if left else f"... all of it: {more}", wide)[0]]


def main_table(measurements: Iterable[Measurement], documented: Documented, wide: int, lines: int) -> list[str]:
    """Return the main tables in at most so many lines: a column a recipe, in blocks, or a row a recipe for many."""
    tables = _main_tables(measurements, documented)
    found: list[str] = []
    for left, table in zip(range(len(tables), 0, -1), tables, strict=True):
        found += _within(table, wide, max(0, (lines - len(found)) // left))
    return found[:lines]


def lines_of_speed_too(measurements: Iterable[Measurement], documented: Documented, wide: int) -> int:
    """Return the lines of the main tables with their first two blocks, a row a recipe: the first has memory alone."""
    blocks = [in_blocks(it, wide) for it in _main_tables(measurements, documented)]
    return sum(len(_lines(it[:2], wide)) + (len(it) > 2) for it in blocks)


def _main_tables(measurements: Iterable[Measurement], documented: Documented) -> list[Table]:
    layouts = [Layout(subject, documented) for subject in collect(measurements)]
    return [_important_first(layout, table) for layout in layouts for table in headline.table(layout)]


def _important_first(layout: Layout, table: Table) -> Table:
    """Return a main table without notes, and with some quality among its first columns: the last may be left out."""
    quality = {*labels(layout.lines("quality"))}
    at = range(1, len(table.header))
    good = [it for it in at if table.header[it] in quality]
    other = [it for it in at if it not in good]
    columns = [0, *other[:_FIRST], *good, *other[_FIRST:]]
    rows = tuple(tuple(row[it] for it in columns) for row in table.rows)
    return replace(table, header=tuple(table.header[it] for it in columns), rows=rows, notes=())


def _within(table: Table, wide: int, room: int) -> list[str]:
    """Return one model's main table: a column a recipe or a row a recipe, in blocks, whichever there is room for.

    Of what there is no room for, the first columns and recipes stand there, and how many recipes are left out.
    """
    figures = zip(table.header[1:], *(row[1:] for row in table.rows), strict=True)
    turned = replace(table, header=("", *(row[0] for row in table.rows)), rows=tuple(figures))
    blocks = in_blocks(table, wide)
    if len(found := _lines(in_blocks(turned, wide), wide)) <= room:
        return found
    for count in range(len(blocks), 0, -1):
        found = [*_lines(blocks[:count], wide), *_left_out(blocks[count:], wide)]
        if len(found) <= room:
            return found
    found = _lines(blocks[:1], wide)
    kept = max(1, len(table.rows) - (len(found) - room) - 1)
    found = _lines(in_blocks(replace(table, rows=table.rows[:kept]), wide)[:1], wide)
    more = len(table.rows) - kept
    left = f"... and {more} more recipe{'s' if more > 1 else ''}: see the tables" if more else "... see the tables"
    return [*found[: max(0, room - 1)], left]


def _left_out(blocks: Sequence[Table], wide: int) -> list[str]:
    """Name the columns of the blocks of a table that are not shown, in one line."""
    names = [name for it in blocks for name in it.header[1:]]
    words = f"... and {len(names)} more column{'s' if len(names) > 1 else ''}: {', '.join(names)}"
    return fold(words, wide)[:1] if names else []


def _lines(tables: Sequence[Table], wide: int) -> list[str]:
    lines = [line.removeprefix("## ") for line in render(list(tables), "md").splitlines() if line.strip()]
    return [part for line in lines for part in ([line] if line.startswith("|") else fold(line, wide))]
