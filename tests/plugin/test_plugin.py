"""The plugin under a real pytest: what is collected, in which order, what is skipped and why, and what is an error."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.expressions import asked_for, selects
from harness.devices import Host
from harness.machine import probe
from harness.plugin import session
from harness.servers.vllm import VLLM
from tests.matrices import HARDWARE

MEASUREMENTS = """
memory = { max_new_tokens = 8 }
generate = { max_new_tokens = 8, rounds = 1 }
latency = { batch_sizes = [1, 8], input_len = 8, output_len = 8, rounds = 1 }
serving = { num_prompts = [1, 16], rounds = 1 }
text = { windows = 2, window_tokens = 16 }
engine = { max_model_len = 64 }
time_limits = { prepare = 9, start = 9, measure = 9, evaluate = 9 }
"""
MATRIX = f"""
schema = 1
{HARDWARE}
[models.small]
folder = "small"
[models.large]
hub = "owner/large"
[recipes.int8wo]
config = "Int8WeightOnlyConfig"
servers = ["transformers", "vllm"]
[recipes.bf16]
baseline = true
servers = ["transformers", "vllm"]
[recipes.float8dq]
config = "Float8DynamicActivationFloat8WeightConfig"
needs = {{ vendor = ["nvidia"] }}
servers = ["transformers", "vllm"]
reason = "float8 needs a GPU"
[recipes.int8emb]
config = "FqnToConfig"
needs = {{ vendor = ["none"] }}
servers = ["transformers"]
reason = "vLLM cannot load a quantized embedding"
[[cells]]
hardware = "cpu"
models = ["small", "large"]
recipes = ["int8wo", "float8dq", "bf16", "int8emb"]
servers = ["transformers", "vllm"]
[[cells]]
hardware = "h100"
models = ["small"]
recipes = ["float8dq"]
servers = ["vllm"]
[[cells]]
hardware = "arm-mobile"
models = ["small"]
recipes = ["bf16"]
servers = []
[measurements.cpu]
{MEASUREMENTS}
[measurements.h100]
{MEASUREMENTS}
[measurements.arm-mobile]
{MEASUREMENTS}
"""
# Two files, stages out of order, so that the order of the run is the plugin's and not the files'.
SUITES = {
    "test_first": """
        import pytest

        @pytest.mark.stage("server")
        def test_serving(cell, num_prompts): pass

        @pytest.mark.stage("quantize")
        def test_checkpoint(cell): pass
    """,
    "test_second": """
        import pytest

        @pytest.mark.stage("engine")
        def test_latency(cell, batch_size): pass

        @pytest.mark.stage("transformers")
        def test_generate(cell): pass

        @pytest.mark.stage("transformers")
        def test_task(cell, task): pass
    """,
}
STAGE_OF = {"test_checkpoint": 0, "test_generate": 1, "test_task": 1, "test_latency": 2, "test_serving": 3}

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def folder(pytester: pytest.Pytester) -> Path:
    """A folder with suites and a matrix of its own."""
    (pytester.path / "suites").mkdir()
    (pytester.path / "suites" / "matrix.toml").write_text(MATRIX, encoding="utf-8")
    pytester.makepyfile(**SUITES)
    return pytester.path


@pytest.fixture
def run(pytester: pytest.Pytester, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run pytest with the plugin in that folder, on a machine that has a processor and nothing else."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    only_a_processor(monkeypatch)
    return lambda *arguments: pytester.runpytest_inprocess(
        "-p", "harness.plugin.plugin", "--strict-markers", "--wide", *arguments
    )


def only_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "missing", lambda it: "" if it.name == "cpu" else f"there is no {it} in this test")


def collected(result: pytest.RunResult) -> list[str]:
    """Return test and parameters, e.g. ``test_generate[small-bf16-cpu]``, of ``--collect-only -q`` or ``-v``."""
    return [line.split("::")[1].split(" ")[0] for line in result.outlines if "::" in line and ".py" in line]


def of(names: list[str], test: str) -> list[str]:
    return [name for name in names if name.startswith(f"{test}[")]


# --------------------------------------------------------------------------------------------------- collecting


@pytest.mark.programs
def test_collecting_the_suites_imports_no_backend(repository: Path) -> None:
    code = """
import json, sys, pytest
status = pytest.main(["suites", "--collect-only", "-q", "-p", "no:cacheprovider"])
loaded = [name for name in ("torch", "torchao", "transformers", "vllm", "lm_eval", "executorch") if name in sys.modules]
print(json.dumps([int(status), loaded]))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert json.loads(lines[-1]) == [0, []]
    assert sum("suites/test_" in line for line in lines) > 20


def test_a_cell_is_tested_through_each_server_and_parameter(run: Run) -> None:
    names = collected(run("--collect-only", "-q", "-m", "cpu", "--model", "small", "--recipe", "int8wo"))
    assert sorted(of(names, "test_checkpoint")) == [
        "test_checkpoint[small-bf16-cpu]",
        "test_checkpoint[small-int8wo-cpu]",
    ]
    assert of(names, "test_generate") == [
        "test_generate[small-bf16-cpu-transformers]",
        "test_generate[small-int8wo-cpu-transformers]",
    ]
    assert of(names, "test_latency") == [
        "test_latency[small-bf16-cpu-vllm-1]",
        "test_latency[small-bf16-cpu-vllm-8]",
        "test_latency[small-int8wo-cpu-vllm-1]",
        "test_latency[small-int8wo-cpu-vllm-8]",
    ]
    assert of(names, "test_serving") == [
        "test_serving[small-bf16-cpu-vllm-1]",
        "test_serving[small-bf16-cpu-vllm-16]",
        "test_serving[small-int8wo-cpu-vllm-1]",
        "test_serving[small-int8wo-cpu-vllm-16]",
    ]


def test_stages_of_a_cell_follow_each_other_and_the_baseline_comes_first(run: Run) -> None:
    names = collected(run("-v", "-m", "cpu", "--task", "hellaswag"))
    order = []
    for name in names:
        test, parameters = name.rstrip("]").split("[")
        order.append((tuple(parameters.split("-")[:2]), STAGE_OF[test]))
    cells = [cell for cell, _ in groupby(order, key=lambda entry: entry[0])]
    assert len(cells) == len(set(cells)) == 8, "each cell's tests stand together"
    assert [model for model, _ in groupby(model for model, _ in cells)] == ["small", "large"]
    assert [next(group) for _, group in groupby(cells, key=lambda cell: cell[0])] == [
        ("small", "bf16"),
        ("large", "bf16"),
    ]
    for cell, entries in groupby(order, key=lambda entry: entry[0]):
        stages = [stage for _, stage in entries]
        assert stages == sorted(stages), cell


def test_a_recipe_selected_by_name_brings_the_same_tests_of_its_baseline(run: Run) -> None:
    assert collected(run("-v", "-m", "cpu", "-k", "generate and int8wo and small")) == [
        "test_generate[small-bf16-cpu-transformers]",
        "test_generate[small-int8wo-cpu-transformers]",
    ]
    assert collected(run("-v", "-m", "cpu", "-k", "latency and int8wo and large and vllm-8")) == [
        "test_latency[large-bf16-cpu-vllm-8]",
        "test_latency[large-int8wo-cpu-vllm-8]",
    ]
    assert collected(run("-v", "-m", "cpu", "-k", "checkpoint and bf16 and small")) == [
        "test_checkpoint[small-bf16-cpu]"
    ], "the baseline alone brings nothing"


def test_a_server_without_its_hardware_is_skipped_with_the_reason(run: Run) -> None:
    result = run("-rs", "-m", "cpu", "--model", "small", "--recipe", "int8wo", "--server", "sglang")
    assert result.parseoutcomes()["skipped"] == 8
    result.stdout.fnmatch_lines(["*SGLang is served on an NVIDIA GPU of capability >=8.0, not on cpu*"])


def test_a_server_that_is_asked_for_but_not_installed_fails_the_session(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VLLM, "distributions", ("no-such-server",))
    result = run("-m", "cpu", "--model", "small", "--recipe", "int8wo", "--server", "vllm")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*no-such-server is not installed in *name its environment with --environment vllm=PATH"]
    )
    result = run("-rs", "-m", "cpu", "--model", "small", "--recipe", "int8wo")
    assert result.parseoutcomes()["skipped"] == 8
    result.stdout.fnmatch_lines(["*no-such-server is not installed in *"])


@pytest.mark.parametrize("given", ["sglang", "sglang=", "transformers=/x"])
def test_an_environment_is_given_by_server(run: Run, given: str) -> None:
    result = run("-m", "cpu", "--environment", given)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--environment {given}: give SERVER=PATH, where SERVER is one of vllm, sglang"])


def test_server_leaves_out_the_others(run: Run) -> None:
    names = collected(run("--collect-only", "-q", "-m", "cpu", "--server", "vllm"))
    assert of(names, "test_latency")
    assert of(names, "test_checkpoint"), "a stage without a server stays"
    assert not [name for name in of(names, "test_generate") if "transformers" in name]


def test_several_servers_are_asked_for_at_once(run: Run) -> None:
    asked = ("--server", "vllm", "--server", "transformers", "--recipe", "int8wo", "--model", "small")
    names = collected(run("-v", "-m", "cpu", *asked))
    assert of(names, "test_generate") == [f"test_generate[small-{it}-cpu-transformers]" for it in ("bf16", "int8wo")]
    assert of(names, "test_serving") == [
        f"test_serving[small-{recipe}-cpu-vllm-{prompts}]" for recipe in ("bf16", "int8wo") for prompts in (1, 16)
    ]
    result = run(
        "-v", "-rs", "-m", "cpu", "--model", "small", "--recipe", "int8wo", "--server", "vllm", "--server", "sglang"
    )
    counts = result.parseoutcomes()
    assert (counts["passed"], counts["skipped"]) == (2 + 8, 8), "two checkpoints, vLLM's tests; SGLang's, each skipped"
    through = [name for name in collected(result) if name.startswith(("test_latency", "test_serving"))]
    cells = [name.partition("[")[2].rsplit("-", 1)[0] for name in through]
    assert [key for key, _ in groupby(cells)] == [
        f"small-{recipe}-cpu-{server}" for recipe in ("bf16", "int8wo") for server in ("sglang", "vllm")
    ], "a cell's engine and server are started once, through one server after the other"


def test_stages_and_tasks_belong_to_the_servers_of_their_table(run: Run, folder: Path) -> None:
    matrix = folder / "suites" / "matrix.toml"
    listed = 'hardware = "cpu"\nmodels = ["small", "large"]\nrecipes = ["int8wo", "float8dq", "bf16", "int8emb"]\n'
    text = matrix.read_text(encoding="utf-8")
    assert f'{listed}servers = ["transformers", "vllm"]\n' in text
    tables = (
        f'{listed}servers = ["transformers"]\ntasks = ["piqa"]\n',
        '[[cells]]\nhardware = "cpu"\nmodels = ["small"]\nrecipes = ["int8wo"]\n',
        'servers = ["vllm"]\nstages = ["engine"]\n',
    )
    matrix.write_text(text.replace(f'{listed}servers = ["transformers", "vllm"]\n', "".join(tables)), encoding="utf-8")
    names = collected(run("--collect-only", "-q", "-m", "cpu", "--model", "small", "--recipe", "int8wo"))
    assert of(names, "test_task") == [f"test_task[small-{it}-cpu-transformers-piqa]" for it in ("bf16", "int8wo")]
    assert of(names, "test_latency") == [
        f"test_latency[small-{it}-cpu-vllm-{n}]" for it in ("bf16", "int8wo") for n in (1, 8)
    ]
    assert of(names, "test_serving") == [], "the table sends its cells through vLLM's engine alone"
    skipping = matrix.read_text(encoding="utf-8").replace('["engine"]', '["engine"]\nskip = "no kernel of its own"')
    matrix.write_text(skipping, encoding="utf-8")
    result = run("-rs", "-m", "cpu", "--model", "small", "--recipe", "int8wo", "-k", "latency and int8wo")
    assert result.parseoutcomes()["skipped"] == 4, "the recipe's two, and the baseline's two that come along"
    result.stdout.fnmatch_lines(["*no kernel of its own*"])
    matrix.write_text(matrix.read_text(encoding="utf-8").replace('["engine"]', '["engines"]'), encoding="utf-8")
    result = run("--collect-only", "-q", "-m", "cpu")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*matrix.toml, line *: cells.1.stages.0: *'engines'*"])


def test_tasks_come_from_the_command_line_or_the_data_folder(run: Run, folder: Path) -> None:
    (folder / "data").mkdir()
    for file in ("hellaswag.jsonl", "arc_easy.jsonl", "ShareGPT_V3_unfiltered_cleaned_split.json"):
        (folder / "data" / file).write_text("", encoding="utf-8")
    common = ("--collect-only", "-q", "-m", "cpu", "-k", "task and small and bf16")
    assert of(collected(run(*common, "--data=data")), "test_task") == [
        "test_task[small-bf16-cpu-transformers-arc_easy]",
        "test_task[small-bf16-cpu-transformers-hellaswag]",
    ]
    chosen = run(*common, "--data=data", "--task", "hellaswag")
    assert of(collected(chosen), "test_task") == ["test_task[small-bf16-cpu-transformers-hellaswag]"]
    assert not [name for name in collected(run(*common)) if "bf16" in name], "no task is run that nobody asked for"


def test_a_config_expression_is_a_recipe(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_second="""
        import pytest

        @pytest.mark.stage("quantize")
        def test_config(cell):
            if not cell.recipe.baseline:
                assert (cell.recipe.config, cell.recipe.arguments) == ("Int8WeightOnlyConfig", {"group_size": 32})
        """
    )
    names = "test_config and small"
    result = run("-v", "-m", "cpu", "-k", names, "--recipe", "Int8WeightOnlyConfig(group_size=32)")
    result.assert_outcomes(passed=2)
    assert collected(result) == [
        "test_config[small-bf16-cpu]",
        "test_config[small-Int8WeightOnlyConfig_group_size_32-cpu]",
    ]
    wrong = run("-m", "cpu", "-k", names, "--recipe", "Int8WeightOnlyConfig(group_size=16)")
    wrong.assert_outcomes(passed=1, failed=1)


def test_a_folder_is_a_model(run: Run, folder: Path) -> None:
    (folder / "elsewhere" / "my-model").mkdir(parents=True)
    names = collected(run("--collect-only", "-q", "-m", "cpu", "--model=elsewhere/my-model", "--recipe", "int8wo"))
    assert of(names, "test_checkpoint") == [
        "test_checkpoint[my-model-bf16-cpu]",
        "test_checkpoint[my-model-int8wo-cpu]",
    ]


# ----------------------------------------------------------------------------------------- skipping and hardware


def test_a_recipe_that_the_hardware_cannot_take_is_skipped_with_its_reason(run: Run) -> None:
    result = run("-rs", "-m", "cpu", "-k", "checkpoint and small")
    result.assert_outcomes(passed=3, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*recipe float8dq does not run on cpu: float8 needs a GPU"])


def test_a_recipe_that_the_server_cannot_take_is_skipped_with_its_reason(run: Run) -> None:
    result = run("-rs", "-m", "cpu", "-k", "latency and int8emb and small and vllm-8")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*recipe int8emb does not run through vllm: vLLM cannot load a quantized*"])


def test_every_hardware_is_a_marker(run: Run) -> None:
    listed = run("--markers").stdout
    listed.fnmatch_lines([f"@pytest.mark.{name}: *" for name in ("cpu", "h100", "arm-mobile")])
    names = collected(run("--collect-only", "-q", "-m", "arm-mobile"))
    assert names == ["test_checkpoint[small-bf16-arm-mobile]"]


@pytest.mark.parametrize("name", ["h100", "arm-mobile"])
def test_hardware_that_is_asked_for_and_not_here_fails_the_session(run: Run, name: str) -> None:
    result = run("-m", name)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*-m selects * for {name}, which is not here: there is no {name} in this test*"])
    assert "--allow-missing-hardware" in result.stderr.str()


def test_missing_hardware_may_be_allowed(run: Run) -> None:
    result = run("-rs", "-m", "h100 or (cpu and not h100)", "-k", "checkpoint and small", "--allow-missing-hardware")
    result.assert_outcomes(passed=3, skipped=3)
    result.stdout.fnmatch_lines(["SKIPPED*h100 is not here: there is no h100 in this test"])


@pytest.mark.parametrize("markers", ["", "not xfail", "not xfail or not (h100 or arm-mobile)", "not (xfail and h100)"])
def test_missing_hardware_that_nobody_asked_for_is_skipped(run: Run, markers: str) -> None:
    result = run("-rs", "-m", markers, "-k", "checkpoint and small")
    result.assert_outcomes(passed=3, skipped=4)
    skipped = [line for line in result.outlines if line.startswith("SKIPPED")]
    assert any("h100 is not here" in line for line in skipped)
    assert any("arm-mobile is not here" in line for line in skipped)


@pytest.mark.parametrize("markers", ["not h100", "cpu or (arm-mobile and not arm-mobile)"])
def test_hardware_that_an_expression_rules_out_is_not_asked_for(run: Run, markers: str) -> None:
    result = run("-rs", "-m", markers, "-k", "checkpoint and small")
    assert result.ret == pytest.ExitCode.OK
    assert "h100 is not here" not in result.stdout.str()
    assert result.parseoutcomes()["passed"] == 3


@given(
    st.recursive(
        st.sampled_from(["cpu", "h100", "arm-mobile", "slow"]),
        lambda inner: st.one_of(
            inner.map(lambda it: f"not ({it})"),
            st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda it: f"({it[0]}) {it[1]} {it[2]}"),
        ),
        max_leaves=5,
    )
)
def test_who_rules_out_what_was_asked_for_asks_for_nothing(expression: str) -> None:
    names = {"cpu", "h100", "arm-mobile"}
    asked = asked_for(expression, names)
    assert asked_for(f"not (not ({expression}))", names) == asked
    assert {name for name in names if selects(expression, {name}) and not selects(expression, set())} <= asked
    if "not" not in expression:
        assert asked_for(f"not ({expression})", names) == set()
        assert {name for name in names if not selects(expression, {*names, "slow"} - {name})} <= asked


# ------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "smal"], ["--model 'smal'", "did you mean small"]),
        (["--recipe", "int8w0"], ["--recipe 'int8w0'", "did you mean int8wo"]),
        (["--recipe", "Int8WeightOnlyConfig(32)"], ["Int8WeightOnlyConfig(32)", "arguments need names"]),
        (["--server", "vlm"], ["--server 'vlm'", "did you mean vllm"]),
        (["--matrix", "suites/matrx.toml"], ["suites/matrx.toml", "cannot be read"]),
        (["--data", "nowhere"], ["--data nowhere", "no such folder"]),
        (["--python", "/no/such"], ["--python /no/such", "not an interpreter that can be started"]),
        (["--resume=nope"], ["--resume nope", "no run 'nope' under", "the latest are: none yet"]),
    ],
)
def test_a_misspelt_option_is_a_usage_error_that_offers_what_there_is(
    run: Run, arguments: list[str], words: list[str]
) -> None:
    result = run("-m", "cpu", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    said = result.stderr.str()
    assert all(word in said for word in words), said
    assert said.count("ERROR: ") == 1 or "error: " in said
    assert "Traceback" not in said + result.stdout.str()
    assert "INTERNALERROR" not in said + result.stdout.str()


def test_a_broken_matrix_is_a_usage_error_with_file_line_and_key(run: Run, folder: Path) -> None:
    broken = MATRIX.replace("hub = ", "hubb = ")
    path = folder / "suites" / "matrix.toml"
    path.write_text(broken, encoding="utf-8")
    result = run("-m", "cpu")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    line = 1 + broken.splitlines().index('hubb = "owner/large"')
    result.stderr.fnmatch_lines([f"*{path}, line {line}: models.large.hubb: *did you mean hub?*"])


@pytest.mark.parametrize("marker", ["", '@pytest.mark.stage("quantise")'])
def test_a_suite_without_a_known_stage_is_a_usage_error(run: Run, pytester: pytest.Pytester, marker: str) -> None:
    pytester.makepyfile(test_second=f"import pytest\n\n{marker}\ndef test_new(cell): pass\n")
    result = run("-m", "cpu")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "test_new" in result.stderr.str()
    assert "'quantize', 'transformers'" in result.stderr.str()


def test_an_error_of_the_harness_is_reported_in_its_own_words_with_the_end_of_the_log(
    run: Run, pytester: pytest.Pytester
) -> None:
    pytester.makepyfile(
        test_error="""
        from harness.base.errors import ArtifactError, WorkerError

        def test_plain():
            raise ArtifactError("the disk is full; name another with --cache")

        def test_worker():
            raise WorkerError("engine: start: crashed", stage="start", kind="crash", log_tail="last words of the log")
        """
    )
    result = run("test_error.py")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["the disk is full; name another with --cache"])
    result.stdout.fnmatch_lines(["engine: start: crashed", "*", "the end of its log:", "last words of the log"])
    assert "raise ArtifactError" not in result.stdout.str()


def test_a_cell_that_the_model_does_not_suit_is_skipped_with_the_reason(run: Run, pytester: pytest.Pytester) -> None:
    """A test that is about no cell has no other one to ask, nor has one where no cell suits."""
    pytester.makepyfile(
        test_second="""
        import pytest
        from harness.base.errors import Unsuitable

        @pytest.mark.stage("quantize")
        def test_config(cell):
            if cell.recipe.baseline:
                raise Unsuitable("the model came quantized")
            raise Unsuitable("with what no recipe is", nowhere=True)

        def test_itself():
            raise Unsuitable("nothing suits")
        """
    )
    result = run("test_second.py", "-rs", "-m", "not h100 and not arm-mobile", "--model", "small", "--recipe", "int8wo")
    result.assert_outcomes(skipped=1, failed=2)
    result.stdout.fnmatch_lines(["with what no recipe is", "SKIPPED [[]1] test_second.py:4: the model came quantized"])


@pytest.mark.programs
def test_a_session_that_cannot_start_says_so_once(
    run: Run, pytester: pytest.Pytester, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(
        test_second="""
        import pytest

        @pytest.mark.stage("quantize")
        def test_checkpoint(cell, measure): pass
        """
    )
    (folder / "file").write_text("")
    # Whoever measures on this machine need not be waited for.
    monkeypatch.setattr(session, "machine_lock", lambda: folder / "lock")
    result = run("-m", "cpu", "--cache", "file/cache")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert (
        " ".join(result.stdout.str().split()).count("cannot be made (Not a directory); name another with --cache") == 1
    )
    assert "errors" not in result.parseoutcomes()


@pytest.mark.parametrize(
    ("arguments", "routes"),
    [
        ([], ["transformers", "llama"]),
        (["-k", "test_program and llama"], ["llama"]),
        (["-k", "test_operators"], ["transformers"]),
        (["-k", "test_device", "--device", "adb:one"], ["transformers", "llama"]),
        (["-k", "test_device", "--device", "qemu"], ["transformers"]),
        (["-k", "test_device", "--device", "ios:bf16=results.json"], []),
        (["-k", "test_device", "--device", "unknown"], []),
    ],
)
def test_a_session_knows_the_programs_that_its_tests_run(
    run: Run,
    pytester: pytest.Pytester,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    routes: list[str],
) -> None:
    """Of an emulator none with operators that it lacks, of an iPhone's results none at all."""
    lengths = "context = 64, prompt_tokens = 8, new_tokens = 8, rounds = 1"
    mobile = f"mobile = {{ {lengths}, windows = 2, window_tokens = 16, emulated_windows = 1 }}"
    matrix = MATRIX.replace('folder = "small"', 'folder = "small"\nexecutorch = "smollm2"')
    matrix = matrix.replace('baseline = true\nservers = ["transformers"', 'baseline = true\nservers = ["executorch"')
    matrix = matrix.replace("servers = []", 'servers = ["executorch"]') + mobile
    (folder / "suites" / "matrix.toml").write_text(matrix, encoding="utf-8")
    pytester.makepyfile(
        test_second="""
        import pytest

        pytestmark = pytest.mark.stage("export")

        @pytest.fixture(autouse=True)
        def programs(harness_session):
            coming = harness_session.flow.checkpoints._programs()
            print("PROGRAMS", *(f"{cell.recipe.name}-{route}" for cell, route in coming))

        def test_program(cell, route): pass
        def test_device(cell, route, device): pass
        def test_operators(cell): pass
        """
    )
    monkeypatch.setattr(session, "machine_lock", lambda: folder / "lock")
    monkeypatch.setattr(probe, "missing", lambda _: "")
    monkeypatch.setattr(Host, "lacks", lambda *_: "")
    result = run("test_second.py", "-s", "-m", "arm-mobile", "--cache", "cache", *arguments)
    assert result.ret == 0 or not routes, result.stdout.str()
    said = [line.partition("PROGRAMS")[2].split() for line in result.outlines if "PROGRAMS" in line]
    assert said[0] == [f"bf16-{route}" for route in routes]


def test_a_limit_that_is_known_not_to_hold_is_an_expected_failure_and_shows_its_figures(
    run: Run, pytester: pytest.Pytester
) -> None:
    pytester.makepyfile(
        test_limits="""
        from harness.base.errors import ThresholdFailure

        def test_known():
            raise ThresholdFailure("perplexity: measured 17, limit 16", known="a small model")

        def test_new():
            raise ThresholdFailure("perplexity: measured 18, limit 16")
        """
    )
    result = run("test_limits.py", "-rx", "--xfail-tb")
    result.assert_outcomes(failed=1, xfailed=1)
    result.stdout.fnmatch_lines(
        ["perplexity: measured 17, limit 16", "XFAIL test_limits.py::test_known - a small model"]
    )
    assert run("test_limits.py", "-k", "known").ret == pytest.ExitCode.OK
