"""``choose``: measure all recipes that run on a device, and tell which of them are worth having for a model."""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from harness.base import shipped, terminal
from harness.base.errors import HarnessError
from harness.base.files import write_text
from harness.base.interruption import Interrupted, Interruption
from harness.base.text import one_line, quoted, redact
from harness.matrix.load import load
from harness.matrix.plan import Matrix
from harness.records.published import Documented
from harness.records.run import Run
from harness.report import blocks, choice, html
from harness.report.choice import Choices
from harness.report.rendering import Table
from harness.report.tables import collect
from harness.runtime import task_names
from harness.runtime.environment import Environment

_FIRST, _THEN = "checkpoint or text_quality", "peak_memory or generate"
_HANDED_ON = ("cache", "data", "python", "matrix")
_LITTLE = 4
"""Windows of text over which many recipes are held against each other first."""
_MANY = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``python -m harness choose``."""
    parser.add_argument("model", help="a model of the matrix, a folder, or a hub id")
    parser.add_argument("-m", dest="hardware", default="cpu", metavar="HARDWARE", help="on which (default: cpu)")
    parser.add_argument(
        "--recipe", action="append", metavar="RECIPE", help="only these; repeatable (default: all that run there)"
    )
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="where runs are written")
    parser.add_argument("--resume", metavar="RUN", help="go on with a run: what it measured is not measured again")
    parser.add_argument(
        "--task", action="append", default=[], metavar="NAME", help="evaluate this task of those that stand; repeatable"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="evaluate only the first N documents of each task")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code of the model's own")
    for name in _HANDED_ON:
        parser.add_argument(f"--{name}", metavar="PATH", help="as pytest's option of that name")


def run(arguments: argparse.Namespace) -> int:
    """Measure size and quality of every recipe, speed and memory of those that none beats by then, and print a table.

    Many are held against each other over little text first, and those that are beaten there are not measured further.
    Returns 0, or 1 where a limit did not hold. Raises HarnessError where nothing could be measured.
    """
    matrix = load(Path(arguments.matrix) if arguments.matrix else shipped.matrix(Path.cwd()))
    recipes, absent = candidates(matrix, arguments.hardware, arguments.recipe)
    matrix.model(arguments.model)
    if arguments.task:
        # They are measured last, of what is left by then.
        task_names.check(arguments.task, Environment(python=arguments.python) if arguments.python else Environment())
    suites = matrix.path.parent
    resume, status, kept = arguments.resume, 0, recipes
    steps: list[tuple[str, tuple[str, ...]]] = [(_FIRST, ())]
    if len(recipes) > _MANY and matrix.measured_on(matrix.members(arguments.hardware)[0]).text.windows > _LITTLE:
        steps.insert(0, (_FIRST, ("--text-windows", str(_LITTLE))))
    for what, more in steps:
        status = max(status, _measure(arguments, suites, kept, what, resume, more))
        made = Run.open(arguments.results / "runs", resume or "last")
        resume = made.name
        told, failed = _choices(made, absent)
        absent |= {name: why for name, why in failed.items() if name not in {it.recipe for it in told.choices}}
        beaten = {it.recipe: it.beaten_by for it in told.choices if it.beaten_by}
        for name in [name for name in kept if matrix.recipe(name).name in beaten]:
            by = beaten[matrix.recipe(name).name]
            print(f"{name}: {by} is no larger and surely nearer to the baseline; no more of it is measured", flush=True)
        kept = [name for name in kept if matrix.recipe(name).name not in {*beaten, *absent}]
    then = f"{_THEN} or test_task" if arguments.task else _THEN
    asked = [word for name in arguments.task for word in ("--task", name)]
    asked += ["--limit", str(arguments.limit)] if arguments.limit else []
    status = max(status, _measure(arguments, suites, kept, then, resume, asked))
    found, _ = _choices(made, absent)
    print(blocks.text([found.table()], None if arguments.wide else terminal.columns()))
    files = [made.folder / "choices.md", made.folder / "choices.html"]
    write_text(files[0], blocks.text([found.table()], None))
    worth = f"worth having: {', '.join(found.standing)}"
    answer = (f"{worth[:1].upper()}{worth[1:]}", _verdict_first(found.table()))
    title = f"Which recipe: {found.heading}"
    page, _ = html.render([made], [], Documented.load(shipped.documented()), title, answer=answer)
    write_text(files[1], page)
    ill = [f"what failed stands in {made.folder / 'summary.txt'}"] if status else []
    print("\n".join([worth, *ill, *map(str, files)]))
    return status


def _verdict_first(table: Table) -> Table:
    """Return a table as a narrow screen needs it: what is left of it is what is seen."""
    header, *rows = ((row[0], row[-1], *row[1:-1]) for row in (table.header, *table.rows))
    return replace(table, header=header, rows=tuple(rows))


def candidates(matrix: Matrix, hardware: str, given: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """Return the recipes that run on a hardware through Transformers, the baseline first, and why others do not."""
    on = matrix.members(hardware)[0]
    names = [*matrix.recipes] if given is None else [matrix.baseline.name, *given]
    found, absent = [], {}
    for name in dict.fromkeys(names):
        recipe = matrix.recipe(name)
        if why := recipe.refusal(on, "transformers"):
            absent[recipe.name] = why
        else:
            found.append(name)
    return sorted(found, key=lambda name: not matrix.recipe(name).baseline), absent


def _measure(
    arguments: argparse.Namespace,
    suites: Path,
    recipes: Sequence[str],
    what: str,
    resume: str | None,
    more: Sequence[str] = (),
) -> int:
    """Run the suites for some recipes and tests; returns 0, or 1 where a test failed. HarnessError for all else."""
    words = [sys.executable, "-m", "pytest", str(suites), "-m", arguments.hardware, "--model", arguments.model]
    words += ["--server", "transformers", "-k", what, "--results", str(arguments.results), "-p", "no:cacheprovider"]
    words += [word for name in recipes for word in ("--recipe", name)]
    options: Mapping[str, str | None] = {name: getattr(arguments, name) for name in _HANDED_ON} | {"resume": resume}
    words += [word for name, value in options.items() if value for word in (f"--{name}", value)]
    words += more
    words += ["--trust-remote-code"] if arguments.trust_remote_code else []
    try:
        status = _session(words, lambda: _goes_on(arguments, resume))
    except KeyboardInterrupt as interruption:
        raise Interrupted(interruption, _goes_on(arguments, resume)) from None
    if status not in (0, 1):
        raise HarnessError(f"the suites ended with status {status}, and nothing is chosen by what they told above")
    return status


def _session(words: Sequence[str], goes_on: Callable[[], str]) -> int:
    """Return how a session ended, which is let end in order where this process is interrupted.

    Interrupted once more both end at once, with ``goes_on()`` as the last words.
    """

    def at_once() -> str:
        for process in psutil.Process().children():
            # Its wardens end what it has started.
            with contextlib.suppress(psutil.Error):
                process.kill()
        return f"ended at once, as asked a second time; {goes_on()}"

    with Interruption(at_once):
        try:
            return subprocess.Popen(words).wait()
        except KeyboardInterrupt as interruption:
            # By the system's list: it may have been started, and not been told of yet. Ctrl-C reaches both, anything
            # else this process alone; told twice at once it ends no otherwise.
            for process in psutil.Process().children():
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.Signals.__members__.get(str(interruption), signal.SIGINT))
                    process.wait()
            raise


def _goes_on(arguments: argparse.Namespace, resume: str | None) -> str:
    """Return in words how to go on with what was interrupted."""
    runs = arguments.results / "runs"
    names = [resume] if resume else sorted(path.parent.name for path in runs.glob("*/records.jsonl"))
    words = ["python", "-m", "harness", "choose", arguments.model, "-m", arguments.hardware]
    words += [word for name in arguments.recipe or () for word in ("--recipe", name)]
    words += [word for name in arguments.task for word in ("--task", name)]
    options = {name: getattr(arguments, name) for name in (*_HANDED_ON, "limit", "results")}
    words += [word for name, value in options.items() if value for word in (f"--{name}", str(value))]
    words += ["--trust-remote-code"] if arguments.trust_remote_code else []
    words += ["--resume", names[-1]] if names else []
    return f"what was measured is kept; go on with: {' '.join(quoted(redact(word)) for word in words)}"


def _choices(made: Run, absent: Mapping[str, str]) -> tuple[Choices, dict[str, str]]:
    """Return what a run holds as choices, and by recipe in a line why something of it gave no result."""
    from harness.records import columns

    loaded = columns.load([made])
    failed = {it.cell.recipe.name: one_line(it.message) for it in loaded.failures()}
    subjects = collect(loaded.standing())
    if not subjects:
        why = next(iter(failed.values()), "the suites tell why above")
        raise HarnessError(f"{made.folder}: nothing was measured, so nothing can be chosen: {why}")
    return choice.choices(subjects[0], absent), failed
