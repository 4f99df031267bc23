"""Which model a plain checkpoint is: the same one whatever made its files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.contract import versions
from harness.matrix.load import load
from harness.matrix.schema import Model
from harness.measure.plain import Checkpoint, Keys, PlainModels
from harness.runtime import sources
from harness.runtime.store import Store

SHIPPED = Path(__file__).parents[2] / "suites" / "matrix.toml"
MODEL = "Phi-4-mini-instruct"


@pytest.fixture
def lender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    folder = tmp_path / "lender"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(sources, "check", lambda *_: None)
    return Model(name="lender", folder=str(folder))


def made(tmp_path: Path, lender: Model, transformers: str, seed: int = 0) -> Checkpoint:
    """Return a model of random weights as a session finds it where this version of Transformers writes its files."""

    def once(*_: Any, output: str, **__: Any) -> dict[str, Any]:
        (Path(output) / "config.json").write_text(json.dumps({"transformers_version": transformers}))
        return dict.fromkeys(versions.CHECKPOINT_FACTS, 0)

    matrix = load(SHIPPED)
    model = matrix.models[MODEL]
    assert model.random
    asked = model.model_copy(
        update={"hub": None, "random": model.random.model_copy(update={"tokenizer": lender.name, "seed": seed})}
    )
    matrix = replace(matrix, models=matrix.models | {lender.name: lender})
    environment = SimpleNamespace(decisive=lambda: {"torch": "2", "transformers": transformers})
    workers = SimpleNamespace(store=Store(tmp_path / "cache"), once=once)
    found = PlainModels(workers, matrix, Keys(environment, {}))  # type: ignore[arg-type]
    return found.of(asked, matrix.hardware["cpu"])


def test_random_weights_stay_one_model_when_the_library_that_writes_them_is_upgraded(
    tmp_path: Path, lender: Model
) -> None:
    old, new = made(tmp_path, lender, "5.8.1"), made(tmp_path, lender, "5.17.0")
    assert old.model == new.model
    assert old.key != new.key, "each library's files are artifacts of their own"
    assert made(tmp_path, lender, "5.8.1", seed=1).model.revision != old.model.revision
