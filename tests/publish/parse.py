"""Gives each command of a card to the parser that would read it, and nothing runs.

Run in a worker's environment, with a list of commands as JSON on the standard input: each a list of words, without
variables. It writes as JSON what each was read as: the options' values, or why the parser refused it.
"""

import argparse
import contextlib
import io
import json
import runpy
import sys
from unittest import mock


class Read(Exception):
    """What a program would have gone on with."""


def vllm(words):
    """Vllm's console script, without asking for the version of a distribution that the CPU build is not."""
    from vllm.entrypoints.cli import serve
    from vllm.entrypoints.cli.benchmark import main as benchmark
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="vllm")
    subparsers = parser.add_subparsers(required=True, dest="subparser")
    # Those of the benchmarks are made where they are asked for on the command line alone.
    with mock.patch.object(sys, "argv", ["vllm", *words]):
        for module in (serve, benchmark):
            for command in module.cmd_init():
                command.subparser_init(subparsers)
        return parser.parse_args(words)


def lm_eval(words):
    from lm_eval._cli import HarnessCLI

    with mock.patch.object(sys, "argv", ["lm_eval", *words]):
        return HarnessCLI().parse_args()


def python(words):
    """Python itself: what the module or the program would have begun with once its options are read."""

    def stop(args, *_, **__):
        raise Read(args)

    places = ("vllm.benchmarks.latency.main", "vllm.benchmarks.serve.main")
    with contextlib.ExitStack() as patched:
        for place in places:
            patched.enter_context(mock.patch(place, stop))
        patched.enter_context(
            mock.patch("vllm.entrypoints.launchers.api_server.entry.run_server", stop),
        )
        if words[0] == "-c":
            patched.enter_context(mock.patch.object(sys, "argv", ["-c", *words[2:]]))
            exec(compile(words[1], "-c", "exec"), {"__name__": "__main__"})
        else:
            assert words[0] == "-m"
            patched.enter_context(mock.patch.object(sys, "argv", [words[1], *words[2:]]))
            runpy.run_module(words[1], run_name="__main__")
    raise AssertionError("nothing was begun")


PARSERS = {"vllm": vllm, "lm_eval": lm_eval, "python": python}


def parsed(words):
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            args = PARSERS[words[0]](words[1:])
    except Read as read:
        args = read.args[0]
    except SystemExit as refusal:
        return {"refused": f"{refusal} {said.getvalue()[-600:]}"}
    assert isinstance(args, argparse.Namespace)
    return {
        name: value if isinstance(value, (str, int, float, bool)) else str(value) for name, value in vars(args).items()
    }


if __name__ == "__main__":
    commands = json.load(sys.stdin)
    out = sys.stdout
    sys.stdout = sys.stderr
    json.dump([parsed(words) for words in commands], out)
    out.flush()
