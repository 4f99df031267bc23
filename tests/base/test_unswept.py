"""Nobody looks for garbage while a command is imported, nor later among what it brought."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import contextlib, gc
from harness.base import unswept

def told():
    return gc.isenabled(), gc.get_freeze_count() > 0

with unswept.imports("decimal"):
    print(*told())
    import decimal
print(*told())
gc.unfreeze()
with unswept.imports("decimal"):
    print(*told())
with contextlib.suppress(ImportError), unswept.imports("no_such_module"):
    import no_such_module
print(*told())
gc.disable()
with unswept.imports("fractions"):
    import fractions
print(*told())
"""


def test_it_is_looked_for_again_afterwards_as_before_and_all_the_time_where_nothing_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False False", "True True", "True False", "True False", "False True"]
