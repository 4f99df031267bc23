"""Where a command's tables go: to a file, to a terminal in blocks that fit it, or as wide as they are."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.base import terminal
from harness.base.files import write_text
from harness.report import blocks
from harness.report.rendering import Format, Table, render


def tell(
    tables: Sequence[Table], form: Format, facts: Mapping[str, str], *, output: Path | None = None, wide: bool = False
) -> None:
    """Write tables to ``output``, or print them: markdown no wider than the terminal, unless it may be ``wide``."""
    if output:
        write_text(output, render(tables, form, facts=facts))
    elif form == "md" and not wide:
        sys.stdout.write(blocks.text(tables, terminal.columns(), facts=facts))
    else:
        terminal.unfolded(sys.stdout).write(render(tables, form, facts=facts))
