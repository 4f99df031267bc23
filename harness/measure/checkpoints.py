"""TODO"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.base.errors import ArtifactError
from harness.contract import quantized
from harness.records.schema import ModelIdentity

# Packages whose versions are part of a key beside those of versions.MAKERS: of programs, and of evaluations.
_EXPORTERS = ("executorch",)
_EVALUATORS = ("lm_eval",)


# What an export may come to hold: SmolLM2-135M's take 3.5 to 5.1 GB, most of it for the graph of 30 layers.
_EXPORT_BYTES = 5e9


_EXPORT_BYTES_A_PARAMETER = 4


@dataclass(frozen=True)
class Checkpoint:
    """A folder with weights, configuration and tokenizer, and which model it is."""

    folder: Path
    key: str
    model: ModelIdentity
    facts: dict[str, Any]

    @functools.cached_property
    def quantized(self) -> str:
        """The torchao config class that it came quantized with, or an empty string if it is plain.

        Raises ArtifactError if something else than torchao quantized it, or if its config.json is damaged or does not
        say how.
        """
        try:
            method, refusal = quantized.method(self.folder), quantized.refusal(self.folder)
        except ValueError as error:
            raise ArtifactError(f"model {self.model.name}: {error}") from error
        if refusal:
            raise ArtifactError(f"model {self.model.name}: {refusal}")
        found = quantized.config_class(self.folder)
        if method and not found.endswith("Config"):
            raise ArtifactError(
                f"model {self.model.name} came quantized with torchao, and its config.json has {found or 'nothing'} in "
                "place of torchao's config with its arguments, so no recipe can be told from it: give the plain model"
            )
        return found

    @property
    def chats(self) -> bool:
        """Whether its tokenizer says how a chat is written; servers refuse a chat without."""
        if any((self.folder / name).exists() for name in ("chat_template.jinja", "chat_template.json")):
            return True
        config = self.folder / "tokenizer_config.json"
        return config.exists() and bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))


def _noted(found: Checkpoint) -> Checkpoint:
    """Have the records say of a model that it came quantized."""
    if not found.quantized:
        return found
    note = f"came quantized, with {found.quantized}, and was measured as it is"
    return replace(found, model=found.model.model_copy(update={"note": note, "came_quantized": True}))
