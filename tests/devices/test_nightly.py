"""The published model at full size, with random weights: run by name, `pytest tests -m slow`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import needs

pytestmark = needs.package("executorch")

GIB = 2**30
TIMEOUT = 7200


@pytest.mark.slow
@pytest.mark.parametrize("route", ["transformers", "llama"])
def test_phi_4_mini_is_exported_within_16_gib(
    route: str,
    start_worker: Any,
    suites_matrix: Any,
    tiny_model: Any,
    kept_store: Any,
    repository: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """Its program holds all that the published 3.2 GB hold, and its export fits a machine of 16 GiB."""
    model = suites_matrix.models["Phi-4-mini-instruct"]
    recipe = suites_matrix.recipe("8da4w-int8emb").identity
    plain = tmp_path / "plain"

    def build(folder: Path) -> dict[str, Any]:
        shape = repository / "suites" / model.random.shape
        worker = start_worker("quantize", whole=True, device="cpu")
        worker.ask(
            "plain_from_shape", TIMEOUT, shape=str(shape), seed=0, tokenizer=str(tiny_model.folder), output=str(plain)
        )
        arguments = {"checkpoint": str(plain), "trust_remote_code": False, **recipe.config}
        facts: dict[str, Any] = worker.ask("quantize", TIMEOUT, output=str(folder), **arguments)
        worker.close()
        return facts

    quantized = kept_store.get("test-checkpoint", {"phi": recipe.hash}, build, label="Phi-4-mini quantized").folder
    program = tmp_path / "program"
    program.mkdir()
    arguments: dict[str, Any] = {"checkpoint": str(quantized), "context": 128, "trust_remote_code": False}
    if route == "llama":
        arguments["model"] = model.executorch
    facts = start_worker("export", whole=True).ask(f"{route}_route", TIMEOUT, output=str(program), **arguments)
    for name in ("export_seconds", "export_cpu_seconds", "export_peak_bytes", "program_bytes", "arithmetic_share"):
        record_property(name, facts[name])  # JUnit XML keeps them
        print(f"{route}: {name} {facts[name]}")
    assert facts["export_peak_bytes"] < 16 * GIB
    assert 2.4e9 < facts["program_bytes"] < 3.2e9
    assert facts["arithmetic_share"] > 0.9
