"""Checkpoints that hold one layer of many: a model too large for a disk, whose engine reads that layer for each.

Their config.json is of the one layer that their files have; how many the model has stands beside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

LAYERS = "repeated_layers"
"""The key of config.json that says for how many layers the only one is read."""
LAYER = r"(^|\.)layers\.0\."
"""What the names of the only layer's parameters have."""


def layers(config: Mapping[str, Any]) -> int:
    """Return for how many layers the only one of a checkpoint is read; 0 of one that has all of its own."""
    return int(config.get(LAYERS) or 0)


def whole(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of the model that an engine makes of a checkpoint."""
    count = layers(config)
    return {**config, "num_hidden_layers": count} if count else dict(config)


def overrides(config: Mapping[str, Any]) -> str:
    """Return what of a checkpoint's config.json an engine is to take otherwise, as JSON; empty where nothing is."""
    count = layers(config)
    return json.dumps({"num_hidden_layers": count}) if count else ""
