"""Hardware under a real pytest: markers from the matrix, ``-m gpu`` on whichever GPU is here, a GPU that is added."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.__main__ import main
from harness.commands import doctor
from harness.machine import probe, watch
from harness.matrix.plan import Matrix
from tests.machine.drivers import Driver, Smi
from tests.plugin.test_plugin import collected

SUITE = """
import pytest

@pytest.mark.stage("quantize")
def test_checkpoint(cell): pass

@pytest.mark.stage("engine")
def test_latency(cell, batch_size): pass
"""
ADDED = """
[hardware.l40s]
meaning = "needs an NVIDIA L40S GPU"
vendor = "nvidia"
match = '\\bL40S\\b'
capability = "8.9"
arithmetic = ["bfloat16", "int8", "float8"]
install = "pip install -e '.[gpu]'"

[measurements.l40s]
like = "gpu"
latency = { batch_sizes = [3], input_len = 8, output_len = 8, rounds = 1 }

[[cells]]
hardware = "l40s"
models = ["SmolLM2-135M-Instruct"]
recipes = ["int4wo"]
servers = ["transformers"]
"""
Run = Callable[..., pytest.RunResult]
Here = Callable[..., None]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    """``here(nvidia, amd)`` puts GPUs of these product names into this machine; without it there are none."""
    cached = [value for module in (probe, watch) for value in vars(module).values()]
    cached = [value for value in cached if hasattr(value, "cache_clear")]
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)

    def put(nvidia: str = "", amd: str = "", capability: tuple[int, int] = (9, 0)) -> None:
        driver = Driver(nvidia)
        driver.capability = capability
        monkeypatch.setitem(sys.modules, "pynvml", driver if nvidia else None)  # type: ignore[arg-type]
        monkeypatch.setitem(sys.modules, "amdsmi", Smi(amd) if amd else None)  # type: ignore[arg-type]
        for value in cached:
            value.cache_clear()

    monkeypatch.setattr(probe, "unfit", lambda vendor: "")
    put()
    yield put
    for value in cached:
        value.cache_clear()


@pytest.fixture
def text(repository: Path) -> str:
    return (repository / "suites" / "matrix.toml").read_text(encoding="utf-8")


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, text: str, here: Here) -> Run:
    """Run pytest in a folder with a copy of the suites' matrix and a suite that measures nothing."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    (pytester.path / "suites").mkdir()
    (pytester.path / "suites" / "matrix.toml").write_text(text, encoding="utf-8")
    pytester.makepyfile(test_suite=SUITE)
    return lambda *given: pytester.runpytest_inprocess(
        "-p", "harness.plugin.plugin", "--strict-markers", "--wide", *given
    )


def on(names: list[str], matrix: Matrix) -> Counter[str]:
    """Return of how many tests each hardware is."""
    return Counter(next(it for it in matrix.hardware if f"-{it}" in name) for name in names)


@pytest.mark.programs
def test_every_hardware_and_group_is_a_marker(run: Run, suites_matrix: Matrix) -> None:
    told = run("--markers").stdout
    told.fnmatch_lines_random([f"@pytest.mark.{name}: *" for name in (*suites_matrix.hardware, *suites_matrix.groups)])
    counts = {}
    for name in suites_matrix.hardware:
        found = on(collected(run("--collect-only", "-q", "-m", name)), suites_matrix)
        assert set(found) == {name}
        counts[name] = found[name]
    assert len({counts[name] for name in ("h100", "h200", "a100", "l4", "rtx4090", "b200", "mi300")}) == 1


@pytest.mark.parametrize("asked", ["a100", "gpu", "nvidia", "mi300"])
def test_a_gpu_that_is_asked_for_and_not_here_fails_the_session(run: Run, asked: str) -> None:
    failed = run("-m", asked)
    assert failed.ret == pytest.ExitCode.USAGE_ERROR
    failed.stderr.fnmatch_lines([f"*-m selects * tests for {asked}, which is not here: *cannot be seen*"])
    allowed = run("-rs", "-m", asked, "--allow-missing-hardware")
    assert set(allowed.parseoutcomes()) <= {"skipped", "deselected"}


def test_of_a_group_that_is_not_here_the_first_stands_for_all(run: Run, suites_matrix: Matrix) -> None:
    """What nobody named is not collected once for each GPU that there might be."""
    assert set(on(collected(run("--collect-only", "-q")), suites_matrix)) == {"cpu", "h100", "arm-mobile"}
    named = collected(run("--collect-only", "-q", "-k", "l4 or h200"))
    assert {"-l4" in name or "-h200" in name for name in named} == {True}


@pytest.mark.parametrize(
    ("nvidia", "amd", "name"),
    [("NVIDIA A100-SXM4-40GB", "", "a100"), ("NVIDIA H200", "", "h200"), ("", "AMD Instinct MI300X", "mi300")],
)
@pytest.mark.programs
def test_gpu_takes_whichever_is_here(
    run: Run, here: Here, suites_matrix: Matrix, nvidia: str, amd: str, name: str
) -> None:
    here(nvidia, amd)
    assert set(on(collected(run("--collect-only", "-q", "-m", "gpu")), suites_matrix)) == {name}
    ran = run("-v", "-rs", "-m", "gpu", "-k", "checkpoint")
    assert ran.ret == 0
    passed = [line.split("[")[1].split("]")[0] for line in ran.outlines if "PASSED" in line]
    cells = [cell for cell in suites_matrix.cells() if cell.hardware.name == name and not cell.skip]
    assert set(passed) == {
        cell.id for cell in cells if any("quantize" in through.stages for through in cell.servers.values())
    }
    assert any("float8dq" in test for test in passed) == (name != "a100")
    if name == "a100":
        ran.stdout.fnmatch_lines(["SKIPPED*recipe float8dq does not run on a100: float8 matrix products need*"])


@pytest.mark.programs
def test_a_gpu_that_no_entry_is_for_runs_under_gpu(run: Run, here: Here) -> None:
    here("NVIDIA L40S", capability=(8, 9))
    ran = run("-v", "-m", "gpu", "-k", "checkpoint")
    assert ran.ret == 0
    assert any("-float8dq-l40s] PASSED" in line for line in ran.outlines)
    run("--markers").stdout.fnmatch_lines(["@pytest.mark.l40s: the GPU that is here, NVIDIA L40S, which no entry of *"])
    assert collected(run("--collect-only", "-q", "-m", "l40s")) == collected(run("--collect-only", "-q", "-m", "gpu"))
    failed = run("-m", "l4")
    failed.stderr.fnmatch_lines(["*for l4, which is not here: the GPU here is NVIDIA L40S, not l4; *"])


@pytest.mark.programs
def test_a_gpu_is_added_by_the_matrix_alone(run: Run, here: Here, pytester: pytest.Pytester, text: str) -> None:
    (pytester.path / "suites" / "matrix.toml").write_text(text + ADDED, encoding="utf-8")
    failed = run("-m", "l40s")
    assert failed.ret == pytest.ExitCode.USAGE_ERROR
    here("NVIDIA L40S", capability=(8, 9))
    names = collected(run("--collect-only", "-q", "-m", "l40s"))
    assert "test_checkpoint[SmolLM2-135M-Instruct-int4wo-l40s]" in names, "a cell of its own"
    assert "test_latency[Phi-4-mini-instruct-float8dq-l40s-vllm-3]" in names, "the group's cells, its own batch"
    assert not [name for name in names if name.endswith("vllm-128]")]
    assert collected(run("--collect-only", "-q", "-m", "gpu")) == names
    run("-rs", "-m", "l40s", "-k", "checkpoint").stdout.fnmatch_lines(
        ["SKIPPED*recipe float8dq-int4 does not run on l40s: *"]
    )


@pytest.mark.programs
def test_a_copy_of_the_matrix_with_a_gpu_renamed_works(
    run: Run,
    here: Here,
    pytester: pytest.Pytester,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No code knows the name of a GPU: sessions, doctor and gates go by the matrix."""
    monkeypatch.chdir(pytester.path)
    monkeypatch.setattr(doctor, "hub_answers", lambda *_: False)
    before = collected(run("--collect-only", "-q"))
    (pytester.path / "suites" / "matrix.toml").write_text(text.replace("h100", "zed"), encoding="utf-8")
    assert collected(run("--collect-only", "-q")) == [name.replace("h100", "zed") for name in before]
    assert run("-m", "h100").ret == pytest.ExitCode.USAGE_ERROR
    run("-m", "zed").stderr.fnmatch_lines(["*for zed, which is not here: *"])
    assert main(["doctor", "--quick", "--all"]) in (0, 1)
    assert "no  zed through vllm" in capsys.readouterr().out
    here("NVIDIA H100 80GB HBM3")
    ran = run("-v", "-m", "zed", "-k", "checkpoint")
    assert ran.ret == 0
    assert any("-float8dq-zed] PASSED" in line for line in ran.outlines)
    assert main(["doctor", "--quick"]) in (0, 1)
    assert "ok  zed " in capsys.readouterr().out
    assert main(["gate", "torchao==1", "torchao==2", "-m", "h100"]) == 2
    assert "'h100' is no hardware of matrix.toml" in capsys.readouterr().err
    for asked in ("zed", "gpu"):
        assert main(["gate", "torchao==1", "torchao==2", "-m", asked, "--recipe", "8da4w", "-k", "perplexity"]) == 2
        assert "nothing to gate: no cell of matrix.toml on zed" in capsys.readouterr().err
