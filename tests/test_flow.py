"""What artifacts are known by: whatever makes them otherwise is part of their keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.artifacts import Artifact
from harness.environment import Environment
from harness.flow import Checkpoint, Flow
from harness.matrix import Matrix
from harness.records import ModelIdentity, Run
from harness.worker import versions


class Keys:
    """A store that notes what it is asked for, and has it all."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any], tuple[str, ...]]] = []

    def get(self, kind: str, key: dict[str, Any], _: Any, *, label: str, facts: tuple[str, ...] = ()) -> Artifact:
        self.asked.append((kind, key, facts))
        return Artifact(Path(kind), f"{kind}/0", made=False)


@pytest.fixture
def keys(tmp_path: Path, suites_matrix: Matrix, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``keys(route)`` returns the keys of the quantized checkpoint and of the program of a phone's cell."""
    cell = next(one for one in suites_matrix.cells() if one.hardware == "arm-mobile" and not one.recipe.baseline)
    identity = ModelIdentity(name=cell.model.name, source="folder", revision="1", weights="pretrained")

    def ask(route: str) -> dict[str, dict[str, Any]]:
        store = Keys()
        flow = Flow(store, Run(tmp_path), suites_matrix, environment=Environment())  # type: ignore[arg-type]
        monkeypatch.setattr(flow, "plain", lambda *_: Checkpoint(tmp_path, "plain/0", identity, {}))
        flow.program(cell, route)
        assert store.asked[0][2] == versions.CHECKPOINT_FACTS
        return {kind: key for kind, key, _ in store.asked}

    return ask


def test_a_program_is_made_again_by_newer_lowering_code(keys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rise of one route's version changes the keys of its programs alone; the first version stands in none."""
    before = {route: keys(route)["program"] for route in versions.LOWERING}
    assert before["transformers"].keys() == {"checkpoint", "route", "context", "packages"}
    monkeypatch.setattr(versions, "LOWERING", {**versions.LOWERING, "transformers": 2})
    assert keys("transformers")["program"] == before["transformers"] | {"lowering": 2}
    assert keys("llama")["program"] == before["llama"]


def test_a_checkpoint_is_made_again_by_newer_code(keys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys("transformers")["checkpoint"]
    assert before.keys() == {"plain", "recipe", "device", "packages"}
    monkeypatch.setattr(versions, "CHECKPOINT", 2)
    assert keys("transformers")["checkpoint"] == before | {"checkpoint": 2}


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
