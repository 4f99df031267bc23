"""``--on`` over Ray itself: several raylets of this machine as nodes, one of which is killed in the middle."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.cluster.offer import kind, label, resource
from harness.records.run import Run
from harness.records.schema import Line, Measurement, Outcome
from tests import needs
from tests.cluster import suite

pytestmark = [pytest.mark.programs, needs.package("ray")]
PATIENCE = 150.0
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def token() -> Iterator[None]:
    """A token that Ray asks for, here and in all that is started; and nothing of a user's own Ray."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            patch.delenv(name)
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # A socket's path may have 107 bytes.
        patch.setenv("RAY_TMPDIR", "/tmp")
        yield


@pytest.fixture
def cluster(token: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that has no device; nodes' sessions have the variables of their raylets."""
    monkeypatch.setenv("FAR_HOLD", str(tmp_path / "hold"))
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield found
    found.shutdown()


def join(cluster: Any, **devices: int) -> Any:
    """Add a node with some devices."""
    return cluster.add_node(
        wait=False,
        num_cpus=1,
        resources={resource(name): count for name, count in devices.items()},
        labels={label(name): kind("a wooden one") for name in devices},
    )


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a session of the small suite; the file ``hold`` beside it lets it wait where it names a model."""
    suite.write(tmp_path)
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", f"--cache={tmp_path / 'cache'}"]
        environ = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
        output = (tmp_path / f"output-{len(started)}.txt").open("w")
        started.append(
            subprocess.Popen([*command, *words, "test_far.py"], cwd=tmp_path, env=environ, stdout=output, stderr=output)
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()
        print((tmp_path / f"output-{started.index(process)}.txt").read_text())


def eventually(what: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    end = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < end
        assert process is None or process.poll() is None, "the session has ended"
        time.sleep(0.1)
    return found


def lines(folder: Path) -> list[Line]:
    return Run.open(folder / "results" / "runs", "last").read()[0]


def measurements(folder: Path) -> list[Measurement]:
    return [it for it in lines(folder) if isinstance(it, Measurement)]


def held(folder: Path) -> int:
    """Return the process of the node's session that waits, or 0."""
    for path in folder.glob("hold.*"):
        if path.read_text():
            return int(path.read_text())
    return 0


def gone(process: int, *nodes: Any) -> bool:
    """Return whether a process is no more; a killed raylet, a child of this process, is reaped as init would."""
    for node in nodes:
        node.all_processes["raylet"][0].process.poll()
    return not psutil.pid_exists(process) or psutil.Process(process).status() == psutil.STATUS_ZOMBIE


def raylet_of(process: int) -> psutil.Process:
    return next(it for it in psutil.Process(process).parents() if it.name() == "raylet")


def test_a_cluster_of_one_machine_is_on_its_loopback_and_cells_are_side_by_side() -> None:
    command = [sys.executable, "-m", "tests.cluster", "--cells", "4", "--devices", "2", "--seconds", "0.5"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    done = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, timeout=PATIENCE)
    told = dict(line.partition(":")[::2] for line in done.stdout.splitlines())
    assert {it.removeprefix("::ffff:") for it in told["listens on"].split()} == {"127.0.0.1"}, done.stderr
    assert told["4 cells on 2 devices"] == " 8 tests ended, 0 missing"
    assert "token authentication on" in done.stdout


def test_a_raylet_that_is_killed_and_one_that_comes_late(
    cluster: Any, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    first, second = join(cluster, abacus=1), join(cluster, abacus=1)
    (tmp_path / "hold").write_text("small")
    session = start("-m", "abacus or rule", "--recipe", "bf16", "--on", cluster.address)
    process = eventually(lambda: held(tmp_path), session)
    (measured,) = eventually(lambda: measurements(tmp_path), session)
    os.kill(raylet_of(process).pid, signal.SIGKILL)
    # Its session measures for nobody.
    eventually(lambda: gone(process, first, second))
    (tmp_path / "hold").unlink()
    late = join(cluster, rule=1)
    assert session.wait(PATIENCE) == 0
    assert (first, second, late) is not None
    figures = measurements(tmp_path)
    assert [it.cell.hardware for it in figures] == ["abacus", "rule"]
    assert figures[0] == measured
    ended = [it.test for it in lines(tmp_path) if isinstance(it, Outcome)]
    assert len(ended) == len(set(ended)) == 2 * suite.TESTS
    said = " ".join((tmp_path / "output-0.txt").read_text().split())
    assert "it is run again, 3 of 4 tests are left" in said
    assert "token authentication on" in said


def test_who_has_another_token_gets_no_cluster_and_is_told_so(
    cluster: Any, start: Callable[..., subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", other := secrets.token_hex(32))
    session = start("-m", "abacus", "--recipe", "bf16", "--on", cluster.address)
    assert session.wait(PATIENCE) == pytest.ExitCode.USAGE_ERROR
    said = " ".join((tmp_path / "output-0.txt").read_text().split())
    assert "is its head up, and RAY_AUTH_TOKEN its own?" in said
    assert "passed" not in said
    assert other not in said


@pytest.mark.slow
def test_a_head_that_dies_leaves_the_rest_missing_and_a_run_to_go_on_with(
    cluster: Any, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    join(cluster, abacus=1)
    (tmp_path / "hold").write_text("small")
    session = start("-m", "abacus", "--recipe", "bf16", "--on", cluster.address)
    eventually(lambda: held(tmp_path), session)
    before = eventually(lambda: measurements(tmp_path), session)
    for found in cluster.head_node.all_processes.values():
        for info in found:
            os.kill(info.process.pid, signal.SIGKILL)
    assert session.wait(PATIENCE) == pytest.ExitCode.TESTS_FAILED
    (tmp_path / "hold").unlink()
    again = start("-m", "abacus", "--recipe", "bf16", "--resume=last")
    assert again.wait(PATIENCE) == 0
    assert measurements(tmp_path) == before
    missing = [it for it in lines(tmp_path) if isinstance(it, Outcome) and it.outcome == "error"]
    assert missing
    assert all("the cluster is gone" in it.reason for it in missing)
