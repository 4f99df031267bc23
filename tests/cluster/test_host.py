"""``--on local`` without Ray: two GPUs side by side, a session of pytest a GPU, over a driver that tells of two."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.cluster.host import Host
from harness.cluster.offer import Device, Offer
from harness.cluster.units import Unit
from harness.judge.neighbours import Check, Pair
from harness.machine import probe, watch
from harness.plugin import far
from harness.records.run import Run
from harness.records.schema import Judgement, Line, Measurement, Outcome
from tests.cluster import suite

# The driver's library as sessions import it: two GPUs.
PYNVML = """
class NVMLError(Exception): pass
NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
def nvmlInit(): pass
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetHandleByUUID(uuid): return int(uuid[4])
def nvmlDeviceGetUUID(handle): return f"GPU-{handle}a5c-77"
def nvmlDeviceGetName(handle): return "NVIDIA Abacus"
def nvmlDeviceGetCudaComputeCapability(handle): return (9, 0)
def nvmlSystemGetCudaDriverVersion(): return 13000
def nvmlSystemGetDriverVersion(): return "570.1"
def nvmlDeviceGetClockInfo(handle, clock): return 1980
def nvmlDeviceGetTemperature(handle, sensor): return 40
def nvmlDeviceGetPowerUsage(handle): return 100000
def nvmlDeviceGetCurrentClocksThrottleReasons(handle): return 0
def nvmlDeviceGetComputeRunningProcesses(handle): return []
class nvmlDeviceGetMemoryInfo:
    def __init__(self, handle): self.total, self.used = 80e9, 1e9
"""
GPU = 'vendor = "nvidia"\nmatch = "Abacus"\ncapability = "9.0"\n'
# Beside what the suite has: a test that says where it runs, and waits until others do too.
WHERE = """

@pytest.mark.stage("engine")
def test_where(cell, harness_session):
    from harness.machine import probe
    folder = Path(os.environ["HOST_WHERE"])
    told = {
        "gpus": os.environ["CUDA_VISIBLE_DEVICES"],
        "cores": sorted(os.sched_getaffinity(0)),
        "state": probe.state(cell.hardware, cell.gpus)["gpu"],
        "neighbours": os.environ.get("HARNESS_NEIGHBOURS"),
        "nvls": os.environ.get("NCCL_NVLS_ENABLE"),
    }
    import json
    (folder / cell.id).write_text(json.dumps(told))
    until = time.monotonic() + 60
    while len(list(folder.iterdir())) < int(os.environ["HOST_MANY"]) and time.monotonic() < until:
        time.sleep(0.05)
    assert len(list(folder.iterdir())) >= int(os.environ["HOST_MANY"])
"""

SERVED = '@pytest.mark.stage("server")\ndef test_where'


@pytest.fixture
def folder(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    suite.write(pytester.path)
    matrix = pytester.path / "suites" / "matrix.toml"
    text = matrix.read_text().replace('meaning = "beads on wires"\n', f'meaning = "beads on wires"\n{GPU}')
    text = text.replace('servers = ["transformers"]', 'servers = ["transformers", "vllm"]')
    matrix.write_text(text)
    tests = pytester.path / "test_far.py"
    tests.write_text(tests.read_text() + WHERE)
    (pytester.path / "driver").mkdir()
    (pytester.path / "driver" / "pynvml.py").write_text(PYNVML)
    (pytester.path / "where").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(pytester.path / "driver"), prepend=os.pathsep)
    monkeypatch.setenv("HOST_WHERE", str(pytester.path / "where"))
    monkeypatch.setenv("HOST_MANY", "2")
    monkeypatch.setenv("NCCL_NVLS_ENABLE", "0")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.syspath_prepend(pytester.path / "driver")
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    cached = [it for module in (probe, watch) for it in vars(module).values() if hasattr(it, "cache_clear")]
    for it in cached:
        it.cache_clear()
    offered = Offer((Device("abacus", "NVIDIA Abacus", 2, gpu=True),))
    monkeypatch.setattr(far, "on_ray", lambda _: Host(offered))
    yield pytester.path
    monkeypatch.undo()
    for it in cached:
        it.cache_clear()


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    cache = f"--cache={pytester.path / 'cache'}"
    given = ("-p", "no:cacheprovider", "-p", "no:randomly", "-v", cache, "--on", "local", *arguments, "test_far.py")
    return pytester.runpytest_inprocess(*given)


def lines(folder: Path) -> list[Line]:
    found, problems = Run.open(folder / "results" / "runs", "last").read()
    assert problems == []
    return found


def told(folder: Path) -> dict[str, dict[str, object]]:
    return {path.name: json.loads(path.read_text()) for path in (folder / "where").iterdir()}


@pytest.mark.programs
def test_a_recipe_measures_beside_its_baseline_and_is_judged_after_it(pytester: pytest.Pytester, folder: Path) -> None:
    result = run(pytester, "-m", "abacus", "-k", "generate or where")
    result.assert_outcomes(passed=4)
    where = told(folder)
    assert {it["gpus"] for it in where.values()} == {"0", "1"}
    assert {it["state"] for it in where.values()} == {"0 (GPU-0a5c-77)", "1 (GPU-1a5c-77)"}
    assert {it["nvls"] for it in where.values()} == {"0"}
    cores = [set(it["cores"]) for it in where.values()]  # type: ignore[call-overload]
    if len(os.sched_getaffinity(0)) > 1:
        assert not cores[0] & cores[1]
    found = lines(folder)
    # Measured once, though two sessions had a part in it.
    assert sorted(it.cell.recipe.name for it in found if isinstance(it, Measurement)) == ["bf16", "int8wo"]
    (judged,) = [it for it in found if isinstance(it, Judgement)]
    assert (judged.cell.recipe.name, judged.passed) == ("int8wo", True)
    assert {it.outcome for it in found if isinstance(it, Outcome)} == {"passed"}


@pytest.mark.slow
def test_a_cell_of_two_gpus_has_both_to_itself(
    pytester: pytest.Pytester, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOST_MANY", "1")
    result = run(pytester, "-m", "abacus", "--gpus", "2", "--recipe", "bf16", "-k", "where")
    result.assert_outcomes(passed=1)
    (where,) = told(folder).values()
    assert where["gpus"] == "0,1"
    assert where["state"] == "0 (GPU-0a5c-77), 1 (GPU-1a5c-77)"
    assert where["cores"] == sorted(os.sched_getaffinity(0))[: 2 * (len(os.sched_getaffinity(0)) // 2)]


@pytest.mark.slow
def test_gpus_that_a_user_leaves_are_those_that_are_used(
    pytester: pytest.Pytester, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOST_MANY", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setattr(far, "on_ray", lambda _: Host(Offer((Device("abacus", "NVIDIA Abacus", 1, gpu=True),))))
    run(pytester, "-m", "abacus", "--recipe", "bf16", "-k", "where").assert_outcomes(passed=1)
    (where,) = told(folder).values()
    assert (where["gpus"], where["state"]) == ("1", "1 (GPU-1a5c-77)")


@pytest.mark.programs
def test_serving_that_neighbours_disturb_has_the_host_to_itself(
    pytester: pytest.Pytester, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a unit of its own that takes every GPU; of what nobody has checked the records of serving say so."""
    monkeypatch.setenv("HOST_MANY", "1")
    tests = folder / "test_far.py"
    tests.write_text(tests.read_text().replace('@pytest.mark.stage("engine")\ndef test_where', SERVED))
    asked = ("-m", "abacus", "--recipe", "bf16", "-k", "where")
    unchecked = run(pytester, *asked)
    unchecked.assert_outcomes(passed=1)
    unchecked.stdout.fnmatch_lines(["*nobody has checked what neighbours do to serving on abacus*"])
    (where,) = told(folder).values()
    assert (where["gpus"], "no check says" in str(where["neighbours"])) == ("0", True)
    pair = {"what": "serving", "metric": "request_throughput", "stage": "server", "parameters": {}, "unit": "req/s"}
    pair |= {"alone": 2.0, "beside": 1.0, "direction": "higher", "ratio": 0.5, "low": 0.4, "high": 0.6, "processes": 3}
    check = Check(hardware="abacus", device="NVIDIA Abacus", created=0.0, runs=[], pairs=[Pair.model_validate(pair)])
    check.write(folder / "results")
    checked = run(pytester, *asked)
    checked.stdout.fnmatch_lines(["*serving on abacus is measured one cell at a time: neighbours disturb*"])
    (where,) = told(folder).values()
    assert (where["gpus"], where["neighbours"]) == ("0,1", None)


def test_a_session_that_is_killed_is_named_and_its_device_is_free_again(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Host(Offer((Device("abacus", "wood", 1),)))
    payload = {"tests": [], "words": ["--version"], "folder": "/", "here": True, "files": {}}
    engine.submit(Unit("one", "abacus", ()), 1, payload, "", ())
    engine.submit(Unit("two", "abacus", ()), 1, payload, "", ())
    (begin,), over = engine.poll(0)
    assert (begin[0], begin[2]["kind"], over) == ("one", "begin", [])
    engine._running[0].process.kill()
    seen, events, end = [], [], time.monotonic() + 60
    while len(seen) < 2 and time.monotonic() < end:
        came, over = engine.poll(1.0)
        events += [event for event in came if event[2]["kind"] == "begin"]
        seen += over
    assert [(it.unit, it.problem) for it in seen] == [("one", "its session was killed by signal 9"), ("two", "")]
    assert [event[0] for event in events] == ["two"]
    engine.close()


def test_closing_ends_what_runs() -> None:
    engine = Host(Offer((Device("abacus", "wood", 1),)))
    engine.submit(Unit("one", "abacus", ()), 1, {"tests": [], "words": [], "here": True, "files": {}}, "", ())
    engine.poll(0)
    process = engine._running[0].process
    engine.close()
    assert process.poll() is not None
