"""Cells of CSV files that a spreadsheet shows as text, whatever they begin with."""

from __future__ import annotations

import re

# What Excel, LibreOffice and Google Sheets take for a formula, or skip before one (OWASP, CSV injection).
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_QUOTED = re.compile("'+[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def quoted(text: str) -> str:
    """Return a text for a cell: an apostrophe before what would be taken for a formula. Numbers are no texts."""
    return f"'{text}" if _FORMULA.match(text) else text


def unquoted(cell: str) -> str:
    """Return the text of a cell that :func:`quoted` has written."""
    return cell[1:] if _QUOTED.match(cell) else cell
