"""What this machine offers to a cluster, as resources and labels of Ray; joins one, or begins one."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from harness.base import shipped
from harness.base.errors import HarnessError
from harness.base.text import quoted
from harness.cluster import address
from harness.cluster.found import of
from harness.cluster.node import GPUS
from harness.cluster.share import Share
from harness.machine import here
from harness.matrix.load import load
from harness.servers.registry import names as server_names

NODE = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Variables of Ray's own that each node needs: a cell without a GPU sees the machine as it is."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``python -m harness offer``."""
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--join", metavar="HEAD:PORT", help="join the cluster of that head, with what is here")
    how.add_argument("--head", action="store_true", help="begin a cluster with this machine as its head")
    parser.add_argument("--block", action="store_true", help="stay in the foreground; the node ends with this process")
    parser.add_argument("--matrix", type=Path, metavar="FILE", help="whose hardware to look for")


def run(args: argparse.Namespace) -> int:
    """Print what is here and the command that offers it; with --join or --head become that command."""
    found = of(here.whole(load(args.matrix or shipped.matrix(Path.cwd()), server_names())))
    for device in found.devices:
        each = f"; each side by side with {Share.of([0], device.count).told}" if device.gpu and device.count > 1 else ""
        print(f"{device.count} {device.hardware}: {device.product}{each}")
    command = found.command(args.join or "", block=args.block)
    print(" ".join(map(quoted, command)), flush=True)
    if not (args.join or args.head):
        return 0
    program = shutil.which("ray", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if program is None:
        raise HarnessError("Ray is not installed here; pip install 'torchao-harness[ray]'")
    if args.join:
        address.check_head(args.join)
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        print("whoever reaches this cluster's ports can run code there: set RAY_AUTH_MODE=token on every node")
    # Sessions give each GPU its share of the processors. Ray's reports of who uses it are for its user to switch on.
    environ = {"RAY_USAGE_STATS_ENABLED": "0", **os.environ, **NODE, GPUS: str(found.gpus)}
    os.execve(program, command, environ)  # noqa: S606 - a list of words, as everywhere
