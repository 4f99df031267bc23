"""The plugin's command line options."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.servers.registry import names as server_names


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("torchao harness")
    group.addoption(
        "--model",
        action="append",
        metavar="NAME|FOLDER|HUB_ID",
        help="run the suites on this model instead of the matrix's; repeatable",
    )
    group.addoption(
        "--recipe",
        action="append",
        metavar="NAME|CONFIG",
        help="run this recipe of the matrix, or a torchao config such as "
        "'Int8WeightOnlyConfig(granularity=PerGroup(32))'; repeatable; the baseline always runs beside it",
    )
    group.addoption(
        "--server",
        action="append",
        metavar="NAME",
        help=f"only this server ({', '.join(sorted(server_names()))}); repeatable",
    )
    group.addoption(
        "--task",
        action="append",
        default=[],
        metavar="NAME",
        help="evaluate this lm-evaluation-harness task; repeatable; with --data all of that folder's by default",
    )
    group.addoption("--limit", type=int, metavar="N", help="evaluate only the first N documents of each task")
    group.addoption(
        "--data",
        type=Path,
        metavar="DIR",
        help="read tasks' documents from DIR/TASK.jsonl, and ShareGPT from there if it is there, instead of the hub",
    )
    group.addoption(
        "--swap",
        metavar="REQUIREMENT",
        help="run the workers with one package swapped, e.g. torchao==0.17.0, installed alone into a cached folder",
    )
    group.addoption(
        "--python", metavar="FILE", help="run the workers with this interpreter, e.g. of a virtual environment"
    )
    group.addoption(
        "--environment",
        action="append",
        default=[],
        metavar="SERVER=PATH",
        help="run this server in an environment of its own: PATH is the interpreter of a virtual environment, or a "
        "folder of packages to stand before the workers'; repeatable",
    )
    group.addoption(
        "--device",
        action="append",
        metavar="NAME",
        help="run ExecuTorch programs there: host, qemu, ssh:HOST, adb:SERIAL or ios:[RECIPE=]FILE; repeatable "
        "(default: host, qemu)",
    )
    group.addoption(
        "--phone-runner", type=Path, metavar="FILE", help="the runner that adb puts on a phone; see the README"
    )
    group.addoption("--matrix", type=Path, metavar="FILE", help="another matrix.toml than suites/matrix.toml")
    group.addoption("--cache", type=Path, metavar="DIR", help="where checkpoints and other artifacts are kept")
    group.addoption("--results", type=Path, metavar="DIR", help="where runs and tables are written (default: results)")
    group.addoption(
        "--resume",
        nargs="?",
        const="last",
        metavar="RUN",
        help="go on with a run (default: the last): what it measured stands and is not measured again",
    )
    group.addoption(
        "--against",
        metavar="BASELINE",
        help="hold every figure against a stored baseline: its hardware's name (results/baselines/NAME.json) or a file",
    )
    group.addoption(
        "--allow-missing-hardware",
        action="store_true",
        help="skip, rather than fail, when -m asks for hardware that is not here",
    )
