"""The command line: what the suites' records can be turned into, outside of pytest."""

from __future__ import annotations

import signal
import sys

if (__name__ == "__main__" or sys.argv[0].endswith(("/harness", "\\harness.exe"))) and signal.getsignal(
    signal.SIGINT
) is signal.default_int_handler:
    # Until it can say something else Ctrl-C ends it without a word, rather than with a traceback of what is loaded.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import contextlib
import difflib
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from harness import __version__
from harness.base import compiled, room, threads, unswept
from harness.base.errors import HarnessError
from harness.base.interruption import Interruption
from harness.base.interruption import status as interruption_status
from harness.base.interruption import told as interruption_told
from harness.base.memory import check_limits, wanting
from harness.base.output import OUTPUT, own_output, undelivered
from harness.base.secrets import without_secrets
from harness.base.terminal import columns
from harness.base.text import visible

COMMANDS = {
    "table": "write the tables of one or several runs",
    "cost": "tell what the rows of runs cost, against the tutorial's commands one after another",
    "tutorial": "run the tutorial's own commands for the rows of a run, and tell what they take and give",
    "choose": "measure all recipes that run here on a model, and tell which are worth having",
    "why": "tell by their profiles why recipes are faster or slower than their baseline",
    "baseline": "store what several runs measured, with their spread, as this hardware's baseline",
    "gate": "compare two versions of a package: one verdict a metric",
    "compatibility": "tell by gates which recipe works under which version, and which reads whose checkpoints",
    "bisect": "find the first release of a package that makes a metric worse",
    "calibrate": "hold this environment against itself: what can this machine tell?",
    "report": "write one self-contained HTML page about runs and gates",
    "site": "write a static site over all stored runs: index, trends, two runs compared",
    "export": "write runs for other programs: the PyTorch benchmark database, CSV, Parquet, JUnit",
    "doctor": "say what this machine can run, why not the rest, and what would mend it",
    "neighbours": "hold the same figures alone and with a neighbour on another GPU of the host against each other",
    "fairness": "hold one engine for batches and HTTP against an offline engine and a server, in turns",
    "offer": "say what this machine offers to a Ray cluster, and join one with it",
    "init": "write the suites, a matrix and a CI workflow into a folder of one's own",
    "reference": "make the committed tables from the committed records, or check that they agree",
    "bundle": "collect what a runner without a network needs into parts that can be carried",
    "trend": "look over the stored runs for change points and slow drift",
    "nights": "hold the last night against those before it, less what the whole machine did",
    "publish": "upload a quantized checkpoint to the Hugging Face hub, with a card made from records",
}
"""Every command, each a module of harness.commands, in the order of the help."""


class _Parser(argparse.ArgumentParser):
    """Says what it does not understand, a token in the wrong place left out; guesses no option by its beginning."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        super().error(without_secrets(message + self._meant(message)))

    def _meant(self, message: str) -> str:
        """Return what a mistyped command, choice or option is likely to have meant, as the end of a message."""
        if choice := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            word, known = choice[1], [it.strip("'") for it in choice[2].split(", ")]
        elif option := re.search(r"unrecognized arguments: (?:.* )?(--[\w-]+)", message):
            word, known = option[1], list(self._options())
        else:
            return ""
        close = difflib.get_close_matches(word, known, n=2, cutoff=0.6)
        return f"; did you mean {' or '.join(close)}?" if close else ""

    def _options(self) -> Iterator[str]:
        yield from self._option_string_actions
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    yield from command._option_string_actions


_WIDE = "--wide"
_NO_MEMORY = (
    "error: out of memory: this command got no more of it; what was written before is kept. Give it more (ulimit -v, "
    "the container's limit), or end what else runs, and start it again"
)


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=columns())


def parser(only: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of every command; with ``only`` no other command's module is imported."""
    parser = _Parser(
        prog="harness" if Path(sys.argv[0]).name == "harness" else "python -m harness",
        description="torchao benchmarking and regression harness",
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, words in COMMANDS.items():
        command = commands.add_parser(name, help=words, description=words, formatter_class=_Help)
        command.add_argument(_WIDE, action="store_true", help="let what is printed be as wide as it is")
        if only in (None, name):
            place = f"harness.commands.{name}"
            with unswept.imports(place):
                module = _imported(place)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


def _imported(name: str) -> ModuleType:
    try:
        return compiled.imported(name)
    except ModuleNotFoundError as error:
        missing = (error.name or "harness").partition(".")[0]
        if missing == "harness":
            raise
        raise HarnessError(
            f"{missing} is not installed for {sys.executable}: use the Python of the environment that has the harness, "
            "or install it there (in a checkout: pip install -e .)"
        ) from error


def main(argv: list[str] | None = None) -> int:
    """Run the command that ``argv`` names and return its exit status.

    1 is left to the commands, to a gate's "regressed" above all: whatever goes wrong unexpectedly is a 2 with its
    traceback, and an interruption 128 and its signal's number: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP. Of a
    process of its own no line is wider than the terminal, or than 100 columns, unless ``--wide`` is among the words;
    it is a 2 if what it prints cannot be written, and 141 if nobody reads it any more.
    """
    if argv is not None:
        return _run(argv)
    words = sys.argv[1:]
    with own_output(None if _WIDE in words else columns()):
        try:
            status = _run(words)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0
        if error := undelivered():
            status = status or _not_printed(error)
        return status


def _run(words: list[str]) -> int:
    try:
        return _called(words)
    except MemoryError:
        # Of words that would tell what happened: credentials are looked for in them, which takes memory too.
        _tell(_NO_MEMORY)
        return 2


def _tell(words: str) -> None:
    # A standard error on a disk that is full or far may take none, or not at once; the exit status tells all the same.
    for _ in range(3):
        with contextlib.suppress(OSError):
            print(words, file=sys.stderr, flush=True)
            return


def _check_folder() -> None:
    """Raise HarnessError where the working folder was removed, which every relative path would be told of instead."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise HarnessError("the folder in which this was started is gone: change to one that is there") from None


def _check_values(words: list[str]) -> None:
    """Raise HarnessError for an option whose value is empty, as a variable that is not set: it would be none."""
    for before, word in zip(("", *words), words, strict=False):
        name, equals, value = (before, "=", word) if not word else word.partition("=")
        if equals and not value and re.fullmatch(r"--[a-z][\w-]*", name):
            raise HarnessError(f"{name} is given, and empty: give it a value, or leave it out")


def _not_printed(error: OSError) -> int:
    # Whoever reads as much as it wants, as `head` does, needs no word about it.
    if not isinstance(error, BrokenPipeError):
        _tell(f"error: {error.filename}: {error.strerror}")
        return 2
    return 128 + signal.SIGPIPE


def _called(words: list[str]) -> int:
    try:
        with Interruption(), threads.begun(), room.kept():
            check_limits()
            _check_folder()
            _check_values(words)
            if not words:
                parser("").print_help(sys.stderr)
                return 2
            # A command need not wait for what the others import, nor fail with them.
            named = next((word for word in words if not word.startswith("-")), "")
            arguments = parser(named).parse_args(words)
            status: int = arguments.run(arguments)
        return status
    except HarnessError as error:
        _tell(visible(f"error: {error}"))
        return 2
    except KeyboardInterrupt as interruption:
        _tell(visible(without_secrets(interruption_told(interruption))))
        return interruption_status(str(interruption))
    except OSError as error:
        if wanting(error):
            _tell(_NO_MEMORY)
        elif error.filename == OUTPUT:
            return _not_printed(error)
        elif not error.filename:
            _tell(without_secrets(traceback.format_exc()).rstrip())
        else:
            _tell(visible(without_secrets(f"error: {error.filename}: {error.strerror}")))
        return 2
    except Exception as error:
        if wanting(error):
            _tell(_NO_MEMORY)
        else:
            _tell(without_secrets(traceback.format_exc()).rstrip())
        return 2


if __name__ == "__main__":
    sys.exit(main())
