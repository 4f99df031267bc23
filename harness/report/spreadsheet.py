"""Cells of CSV files that a spreadsheet shows as text, whatever they begin with."""

from __future__ import annotations

import re

# What Excel, LibreOffice and Google Sheets take for a formula, or skip before one (OWASP, CSV injection): blanks, marks
# of no width and controls are skipped when a file is opened or a cell is pasted.
_SKIPPED = "[\\s\x00-\x1f\x7f\xad\u200b-\u200f\u2060\ufeff]*"
_FIRST = f"(?:[\t\r\n]|{_SKIPPED}[=+\\-@\u2212\uff1d\uff0b\uff0d\uff20\ufe62\ufe63\ufe66\ufe6b])"
_FORMULA = re.compile(f"'*{_FIRST}")
_QUOTED = re.compile(f"'+{_FIRST}")


def quoted(text: str) -> str:
    """Return a text for a cell: an apostrophe before what would be taken for a formula. Numbers are no texts."""
    return f"'{text}" if _FORMULA.match(text) else text


def unquoted(cell: str) -> str:
    """Return the text of a cell that :func:`quoted` has written."""
    return cell[1:] if _QUOTED.match(cell) else cell
