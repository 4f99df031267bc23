"""``bundle``: collect what a runner without a network needs into parts that can be carried."""

from __future__ import annotations

import argparse
import errno
import sys
from pathlib import Path

from harness.base import shipped
from harness.base.errors import HarnessError
from harness.base.files import default_root
from harness.bundle.asked import PROJECT, Target, parse_size, read_runner
from harness.bundle.make import make
from harness.matrix.load import load
from harness.measure import carried
from harness.runtime.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="a folder that is not there yet, is empty or holds a bundle"
    )
    parser.add_argument("--python", required=True, metavar="3.N", help="the runner's Python")
    parser.add_argument("--extra", required=True, help="which of the project's extras the runner needs")
    parser.add_argument("--part-size", default="60MiB", metavar="SIZE", help="largest part, such as 60MiB (default)")
    parser.add_argument(
        "--runner", type=Path, metavar="FREEZE.txt", help="`pip freeze` of the runner; without it: all is carried"
    )
    parser.add_argument(
        "--platform", default="manylinux_2_39_x86_64", help="newest platform tag that the runner takes (%(default)s)"
    )
    parser.add_argument(
        "--models",
        action="append",
        default=[],
        metavar="NAMES",
        help="models to carry, with ShareGPT's prompts: names of the matrix, folders or hub ids, with commas between; "
        "repeatable",
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="evaluation data to carry, as pytest's --data takes it"
    )
    parser.add_argument("--matrix", type=Path, metavar="FILE", help="another matrix.toml than that of the suites")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where what is downloaded is kept")
    parser.add_argument(
        "--pyproject", type=Path, default=PROJECT, help="the project file that has the extra (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; return 0, or 2 with one message on standard error."""
    try:
        files = _files(args)
        make(
            args.out,
            target=Target(args.python, args.platform),
            extra=args.extra,
            part_size=parse_size(args.part_size),
            runner=read_runner(args.runner) if args.runner else {},
            pyproject=args.pyproject,
            files=files,
        )
    except HarnessError as error:
        print(f"bundle: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        hint = ": free some space or name another folder" if error.errno == errno.ENOSPC else ""
        print(f"bundle: {error}{hint}", file=sys.stderr)
        return 2
    return 0


def _files(args: argparse.Namespace) -> carried.Files:
    """Return what is carried besides packages; it is looked for first, since it may not be there."""
    files: carried.Files = {}
    if args.data:
        files |= carried.data_files(args.data)
    names = [name for given in args.models for name in given.split(",") if name]
    if names:
        store = Store((args.cache or default_root()).resolve(), say=print)
        files |= carried.models(load(args.matrix or shipped.matrix(Path.cwd())), store, names, print)
        files |= carried.prompts(store, args.data)
    return files
