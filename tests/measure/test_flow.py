"""What artifacts are known by: whatever makes them otherwise is part of their keys; and when programs are made.

And what a model that came quantized is taken for.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.base.errors import ArtifactError, HarnessError, Unsuitable, WorkerError
from harness.contract import versions
from harness.matrix.plan import Cell, Matrix
from harness.measure.checkpoints import Program
from harness.measure.flow import Flow
from harness.measure.plain import Checkpoint
from harness.records.run import Run
from harness.records.schema import ModelIdentity
from harness.runtime import parallel
from harness.runtime.environment import Environment
from harness.runtime.store import Artifact, Store


class Keys:
    """A store that notes what it is asked for, and has it all."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any], tuple[str, ...]]] = []

    def get(self, kind: str, key: dict[str, Any], _: Any, *, label: str, facts: tuple[str, ...] = ()) -> Artifact:
        self.asked.append((kind, key, facts))
        return Artifact(Path(kind), f"{kind}/0", made=True)


@pytest.fixture
def keys(tmp_path: Path, suites_matrix: Matrix, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``keys(route)`` returns the keys of the quantized checkpoint and of the program of a phone's cell."""
    cell = next(one for one in suites_matrix.cells() if one.hardware.name == "arm-mobile" and not one.recipe.baseline)
    identity = ModelIdentity(name=cell.model.name, source="folder", revision="1", weights="pretrained")

    def ask(route: str) -> dict[str, dict[str, Any]]:
        store = Keys()
        flow = Flow.open(store, Run(tmp_path), suites_matrix, environment=Environment())  # type: ignore[arg-type]
        monkeypatch.setattr(flow.checkpoints, "plain", lambda *_: Checkpoint(tmp_path, "plain/0", identity, {}))
        flow.checkpoints.program(cell, route)
        assert store.asked[0][2] == versions.CHECKPOINT_FACTS
        return {kind: key for kind, key, _ in store.asked}

    return ask


def test_a_program_is_made_again_by_newer_lowering_code(keys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rise of one route's version changes the keys of its programs alone; the first version stands in none."""
    before = {route: keys(route)["program"] for route in versions.LOWERING}
    assert before["transformers"].keys() == {"checkpoint", "route", "context", "packages", "lowering"}
    monkeypatch.setattr(versions, "LOWERING", {**versions.LOWERING, "transformers": 99})
    assert keys("transformers")["program"] == before["transformers"] | {"lowering": 99}
    assert keys("llama")["program"] == before["llama"]
    monkeypatch.setattr(versions, "LOWERING", {**versions.LOWERING, "transformers": 1})
    assert "lowering" not in keys("transformers")["program"]


def test_a_checkpoint_is_made_again_by_newer_code(keys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys("transformers")["checkpoint"]
    assert before.keys() == {"plain", "recipe", "device", "packages"}
    monkeypatch.setattr(versions, "CHECKPOINT", 2)
    assert keys("transformers")["checkpoint"] == before | {"checkpoint": 2}


def test_another_lm_eval_evaluates_anew_and_quantizes_nothing_again(
    tmp_path: Path, suites_matrix: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a gate on it, whose two sides differ by it alone."""
    (cell,) = [one for one in suites_matrix.cells() if one.id == "SmolLM2-135M-Instruct-int8wo-cpu"]
    identity = ModelIdentity(name=cell.model.name, source="folder", revision="1", weights="pretrained")

    def asked(version: str, **more: Any) -> dict[str, dict[str, Any]]:
        store, packages = Keys(), dict.fromkeys(versions.MAKERS, "1") | {"lm_eval": version}
        monkeypatch.setattr(Environment, "packages", lambda _: packages)
        given: dict[str, Any] = {"environment": Environment(), **more}
        flow = Flow.open(store, Run(tmp_path), suites_matrix, **given)  # type: ignore[arg-type]
        monkeypatch.setattr(flow.checkpoints, "plain", lambda *_: Checkpoint(tmp_path, "plain/0", identity, {}))
        flow.checkpoints.facts(cell)
        flow.checkpoints.evaluated(cell, "task", {}, dict)
        return {kind: key for kind, key, _ in store.asked}

    old, new = asked("0.4.12"), asked("0.4.13")
    assert {kind for kind in old if old[kind] != new[kind]} == {"evaluation"}
    assert asked("0.4.13", apart={"lm-eval": "0.4.13"}) == new
    assert asked("0.4.13", apart={"accelerate": "1.0"})["checkpoint"] != new["checkpoint"]


@pytest.mark.parametrize(
    ("file", "content", "chats"),
    [
        ("chat_template.jinja", "{{ messages }}", True),
        ("tokenizer_config.json", '{"chat_template": "{{ messages }}"}', True),
        ("tokenizer_config.json", '{"chat_template": null}', False),
        ("tokenizer_config.json", "{}", False),
        ("config.json", "{}", False),
    ],
)
def test_a_tokenizer_with_a_template_chats(tmp_path: Path, file: str, content: str, chats: bool) -> None:
    (tmp_path / file).write_text(content)
    identity = ModelIdentity(name="m", source="folder", revision="1", weights="pretrained")
    assert Checkpoint(tmp_path, "plain/0", identity, {}).chats is chats


class Exports:
    """A flow's checkpoints and programs made of nothing; notes what was made beside what. ``coming`` are the programs
    of the coming tests."""

    def __init__(self, folder: Path, matrix: Matrix, coming: list[Program]) -> None:
        self.folder = folder
        self.matrix = matrix
        run = Run.create(folder / "runs")
        flow = Flow.open(Store(folder / "cache"), run, matrix, environment=Environment(), programs=lambda: self.coming)
        flow.workers.once = self.once  # type: ignore[method-assign]
        flow.checkpoints.of = self.checkpoint  # type: ignore[method-assign]
        self.program = flow.checkpoints.program
        self.coming = coming
        self.both_run = threading.Barrier(2, timeout=10)
        self.made: list[str] = []
        self.fails = ""
        self.uncheckpointed = ""

    def checkpoint(self, cell: Cell) -> Checkpoint:
        if cell.recipe.name == self.uncheckpointed:
            raise WorkerError("quantize: it broke", stage="quantize", kind="exception")
        identity = ModelIdentity(name=cell.model.name, source="folder", revision="1", weights="pretrained")
        return Checkpoint(self.folder, f"plain/{cell.recipe.name}", identity, {"parameters": 1})

    def once(self, backend: str, specification: Any, command: str, cell: Cell | None, **arguments: Any) -> Any:
        assert cell
        self.both_run.wait()
        self.made.append(f"{cell.recipe.name} {command}")
        if self.made[-1] == self.fails:
            raise WorkerError(f"{command}: it broke", stage=command, kind="exception")
        return {}


@pytest.fixture
def exports(tmp_path: Path, suites_matrix: Matrix, monkeypatch: pytest.MonkeyPatch) -> Exports:
    """A flow whose exports end only in pairs, on a machine of two processors and memory for both."""
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(parallel.psutil, "virtual_memory", lambda: SimpleNamespace(available=11e9))
    return Exports(tmp_path, suites_matrix, [(cell, it) for cell in phones(suites_matrix) for it in versions.LOWERING])


def phones(matrix: Matrix) -> list[Cell]:
    return [one for one in matrix.cells() if one.hardware.name == "arm-mobile"]


def test_all_programs_are_exported_before_the_first_is_measured(exports: Exports) -> None:
    """In pairs, and each once: what is asked for later is there."""
    plain, quantized = phones(exports.matrix)
    assert exports.program(plain, "transformers").made
    expected = [f"{cell.recipe.name} {route}_route" for cell in (plain, quantized) for route in versions.LOWERING]
    assert sorted(exports.made) == sorted(expected)
    for cell in (plain, quantized):
        for route in versions.LOWERING:
            assert exports.program(cell, route).made, "in this session"
    assert len(exports.made) == 4


def test_what_is_there_is_not_exported_again(exports: Exports) -> None:
    plain, _ = phones(exports.matrix)
    every = exports.coming
    exports.coming = [(plain, route) for route in versions.LOWERING]
    exports.program(plain, "llama")
    later = Exports(exports.folder, exports.matrix, every)
    assert not later.program(plain, "transformers").made
    assert sorted(later.made) == ["8da4w-int8emb llama_route", "8da4w-int8emb transformers_route"]


def test_an_export_that_fails_ahead_fails_its_own_test_alone(exports: Exports) -> None:
    plain, quantized = phones(exports.matrix)
    exports.fails = f"{quantized.recipe.name} llama_route"
    exports.program(plain, "transformers")
    exports.program(quantized, "transformers")
    with pytest.raises(WorkerError, match=r"llama_route: it broke$"):
        exports.program(quantized, "llama")
    with pytest.raises(WorkerError, match="failed before in this session"):
        exports.program(quantized, "llama")
    assert exports.made.count(exports.fails) == 1


def test_a_checkpoint_that_fails_ahead_fails_its_own_test_alone(exports: Exports) -> None:
    plain, quantized = phones(exports.matrix)
    exports.uncheckpointed = quantized.recipe.name
    exports.program(plain, "transformers")
    assert sorted(exports.made) == ["bf16 llama_route", "bf16 transformers_route"]
    with pytest.raises(HarnessError, match="quantize: it broke"):
        exports.program(quantized, "llama")


# ------------------------------------------------------------------------------------- a model that came quantized

INT8 = {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {}}
# A whole safetensors file: the length of its header, and a header without tensors.
NO_TENSORS = struct.pack("<Q", 2) + b"{}"
STATIC = {"_type": "StretchedIntxWeightConfig", "_version": 1, "_data": {}}


class Came:
    """A flow of one model's folder that notes what workers are asked for, and answers for them."""

    def __init__(self, folder: Path, matrix: Matrix, quantized: Any) -> None:
        self.flow = Flow.open(Store(folder / "cache"), Run(folder / "run"), matrix, environment=Environment())
        self.flow.workers.once = self.once  # type: ignore[method-assign]
        self.checkpoints = self.flow.checkpoints
        self.matrix = matrix
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.model = folder / "came"
        self.model.mkdir()
        (self.model / "model.safetensors").write_bytes(NO_TENSORS)
        config = {"max_position_embeddings": 64} | ({"quantization_config": quantized} if quantized else {})
        (self.model / "config.json").write_text(json.dumps(config), encoding="utf-8")

    def cell(self, recipe: str, on: str = "cpu", server: str = "") -> Cell:
        cells = self.matrix.cells([str(self.model)], [recipe])
        (found,) = [one for one in cells if one.hardware.name == on and one.recipe == self.matrix.recipe(recipe)]
        return replace(found, server=server)

    def once(self, backend: str, specification: Any, command: str, cell: Cell | None, **arguments: Any) -> Any:
        self.asked.append((command, arguments))
        return dict.fromkeys(versions.CHECKPOINT_FACTS, 1)


@pytest.fixture
def came(tmp_path: Path, suites_matrix: Matrix) -> Any:
    """``came(quant_type)`` returns the flow of a model that torchao quantized so; without it, of a plain one."""
    return lambda it=None, method="torchao": Came(
        tmp_path, suites_matrix, it and {"quant_method": method, "quant_type": {"default": it}}
    )


def test_a_model_that_came_quantized_is_its_own_recipes_checkpoint(came: Any) -> None:
    """A worker looks once whether it is; what the records say of the model, says so."""
    flow = came(INT8)
    cell = flow.cell("int8wo")
    assert flow.checkpoints.of(cell).folder == flow.model
    assert flow.checkpoints.facts(cell) == dict.fromkeys(versions.CHECKPOINT_FACTS, 1)
    assert flow.checkpoints.of(replace(cell, server="vllm")).folder == flow.model
    recipe = {"config": "Int8WeightOnlyConfig", "arguments": {}, "quantizes": ["linear"], "transformers_options": {}}
    assert flow.asked == [("facts", {"checkpoint": str(flow.model), "trust_remote_code": False, **recipe})]
    assert (
        flow.checkpoints.cell_identity(cell).model.note
        == "came quantized, with Int8WeightOnlyConfig, and was measured as it is"
    )
    assert flow.checkpoints.alone(cell) == "came came quantized, so there is no baseline"


def test_another_recipe_of_the_same_class_looks_for_itself(came: Any) -> None:
    flow = came(INT8)
    flow.checkpoints.of(flow.cell("int8wo"))
    flow.checkpoints.of(flow.cell("Int8WeightOnlyConfig(granularity=PerGroup(32))"))
    assert [arguments["arguments"] for _, arguments in flow.asked] == [{}, {"granularity": "PerGroup(32)"}]


@pytest.mark.parametrize("recipe", ["bf16", "int8dq", "8da4w-int8emb"])
def test_the_baseline_and_other_recipes_do_not_suit_it_and_name_the_one_that_does(came: Any, recipe: str) -> None:
    flow = came(INT8)
    words = (
        r"model came came quantized, with Int8WeightOnlyConfig: it is measured as it is, "
        r"by --recipe int8wo or int8wo-g32 or int8wo-tensor or int8wo-kv8 or 'Int8WeightOnlyConfig\(\.\.\.\)' alone"
    )
    for ask in (flow.checkpoints.of, flow.checkpoints.facts, flow.flow.fleet.transformers):
        with pytest.raises(Unsuitable, match=words):
            ask(flow.cell(recipe))
    assert not flow.asked


def test_a_class_that_is_no_recipe_is_an_error_of_every_recipe_and_says_how_to_name_it(came: Any) -> None:
    flow = came(STATIC)
    named = f"--recipe '{STATIC['_type']}(...)'"
    with pytest.raises(Unsuitable, match=r"which is no recipe of matrix\.toml: to measure it as it is, add") as caught:
        flow.checkpoints.of(flow.cell("int8wo"))
    assert str(caught.value).endswith(f"name it, as {named}")
    assert caught.value.nowhere
    with pytest.raises(Unsuitable) as skipped:
        flow.checkpoints.of(flow.cell("bf16"))
    assert str(skipped.value).endswith(f"by {named} alone")
    assert not skipped.value.nowhere
    assert flow.checkpoints.of(flow.cell(f"{STATIC['_type']}(scale=1.0)")).folder == flow.model


@pytest.mark.parametrize("recipe", ["bf16", "int8wo"])
def test_what_torchao_did_not_quantize_is_an_error(came: Any, recipe: str) -> None:
    flow = came(INT8, method="gptq")
    with pytest.raises(ArtifactError, match=r"model came: .* is quantized with GPTQ, .*: give the plain model that"):
        flow.checkpoints.of(flow.cell(recipe))


@pytest.mark.parametrize("recipe", ["bf16", "int8wo"])
def test_a_config_that_is_a_name_alone_is_an_error_whatever_is_asked(came: Any, recipe: str) -> None:
    """No recipe can be named for it, and Transformers does not read it either."""
    flow = came("int8_weight_only")
    with pytest.raises(ArtifactError, match=r"has int8_weight_only in place of torchao's config.*give the plain model"):
        flow.checkpoints.of(flow.cell(recipe))


def test_a_damaged_configuration_is_an_error_that_names_model_and_file(came: Any) -> None:
    flow = came()
    (flow.model / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"model came: .*config\.json cannot be read"):
        flow.checkpoints.of(flow.cell("bf16"))


def test_a_plain_model_is_not_alone(came: Any) -> None:
    flow = came()
    assert flow.checkpoints.of(flow.cell("bf16")).folder == flow.model
    assert flow.checkpoints.alone(flow.cell("int8wo")) == ""
    assert not flow.checkpoints.cell_identity(flow.cell("bf16")).model.note
    told = {"checkpoint": str(flow.model), "trust_remote_code": False}
    assert flow.asked == [("facts", told)], "it was loaded once, to know that all of its weights are there"


@pytest.mark.parametrize("recipe", ["bf16", "float8dq"])
def test_a_server_that_quantizes_as_it_loads_takes_it_for_no_other_recipe(came: Any, recipe: str) -> None:
    """It would serve the same tensors under that recipe's name."""
    flow = came(INT8)
    with pytest.raises(Unsuitable):
        flow.checkpoints.served(flow.cell(recipe, "h100", "sglang"))
    assert flow.checkpoints.served(flow.cell("int8wo", "h100", "sglang")).folder == flow.model
    assert [command for command, _ in flow.asked] == ["facts"]


def test_a_server_that_quantizes_as_it_loads_is_given_a_plain_model(came: Any) -> None:
    flow = came()
    assert flow.checkpoints.served(flow.cell("float8dq", "h100", "sglang")).folder == flow.model
    assert [command for command, _ in flow.asked] == ["facts"], "SGLang would not tell what is missing"


# ------------------------------------------------------------------------------------------------- shared predictions


@pytest.fixture
def reference(tmp_path: Path, suites_matrix: Matrix, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``reference(tokens, recipe)`` asks for a reference over one window of a model with 1,000 tokens."""
    cells = {one.recipe.name: one for one in suites_matrix.cells() if one.hardware.name == "cpu"}
    (tmp_path / "config.json").write_text('{"vocab_size": 1000}', encoding="utf-8")
    identity = ModelIdentity(name="SmolLM2-135M-Instruct", source="folder", revision="1", weights="pretrained")
    written: list[Path] = []

    def predict(checkpoint: Path, output: Path) -> dict[str, Any]:
        assert checkpoint == tmp_path
        output.write_bytes(b"logits")
        written.append(output)
        return {}

    def ask(tokens: int, recipe: str = "int8wo", block: int = 0, **how: Any) -> Path | None:
        store = Store(tmp_path / "cache")
        store.root.mkdir(exist_ok=True)
        run = Run(tmp_path)
        flow = Flow.open(store, run, suites_matrix, environment=Environment(), block=block)
        monkeypatch.setattr(flow.checkpoints, "plain", lambda *_: Checkpoint(tmp_path, "plain/0", identity, {}))
        question = {"text": "text/0", "windows": 1, "tokens": tokens, **how}
        return flow.checkpoints.reference(cells[recipe], question, predict)

    ask.written = written  # type: ignore[attr-defined]
    return ask


def test_what_the_baseline_predicts_is_kept_for_all_recipes(reference: Any) -> None:
    found = reference(256)
    assert found.read_bytes() == b"logits"
    assert reference(256, "int8dq") == found
    assert len(reference.written) == 1
    assert reference(128) != found, "other windows are another reference"
    assert len(reference.written) == 2
    assert reference(256, at_once=4) != found, "so are those of several windows in a pass"


def test_predictions_that_are_too_large_or_of_a_block_are_not_kept(
    reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reference(600_000) is None
    assert reference(256, block=1) is None
    usage = shutil.disk_usage("/")._replace(free=1_500_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert reference(256) is None
    assert reference.written == []


def test_an_evaluation_that_is_kept_says_since_when(
    tmp_path: Path, suites_matrix: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = next(one for one in suites_matrix.cells() if one.hardware.name == "cpu" and not one.recipe.baseline)
    identity = ModelIdentity(name=cell.model.name, source="folder", revision="1", weights="pretrained")
    for session, made in enumerate((True, False)):
        said: list[str] = []
        run = Run(tmp_path / str(session))
        store = Store(tmp_path / "cache")
        flow = Flow.open(store, run, suites_matrix, environment=Environment(), progress=said.append)
        monkeypatch.setattr(flow.checkpoints, "of", lambda _: Checkpoint(tmp_path, "checkpoint/0", identity, {}))
        found = flow.checkpoints.evaluated(cell, "text quality", {"text": 1}, lambda: {"windows": []})
        assert found.made is made
        (found.folder / "artifact.json").touch()
        kept = [
            words
            for words in said
            if re.fullmatch(rf"text quality of {cell.id}: kept from \d{{4}}-\d\d-\d\d .*", words)
        ]
        assert len(kept) == (not made)
