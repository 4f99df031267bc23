"""``bundle``: collect what a runner without a network needs into parts that can be carried."""

from __future__ import annotations

import argparse
import errno
import sys
from pathlib import Path

from harness.base.errors import HarnessError
from harness.bundle.asked import PROJECT, Target, parse_size, read_runner
from harness.bundle.make import make


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
        "--pyproject", type=Path, default=PROJECT, help="the project file that has the extra (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; return 0, or 2 with one message on standard error."""
    try:
        make(
            args.out,
            target=Target(args.python, args.platform),
            extra=args.extra,
            part_size=parse_size(args.part_size),
            runner=read_runner(args.runner) if args.runner else {},
            pyproject=args.pyproject,
        )
    except HarnessError as error:
        print(f"bundle: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        hint = ": free some space or name another folder" if error.errno == errno.ENOSPC else ""
        print(f"bundle: {error}{hint}", file=sys.stderr)
        return 2
    return 0
