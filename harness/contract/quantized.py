"""What a checkpoint's config.json says of the quantization that it holds already; read by planner and workers alike.

Every function raises ValueError, naming the file, for one that is not JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TORCHAO = "torchao"
# Classes that torchao has under another name now.
_RENAMED = {"ModuleFqnToConfig": "FqnToConfig", "AOPerModuleConfig": "FqnToConfig"}


def method(folder: Path) -> str:
    """Return what quantized a checkpoint (``torchao``, or another's name), or an empty string if it is plain."""
    found = _config(folder)
    return str(found.get("quant_method", "an unnamed method")) if found else ""


def quant_type(folder: Path) -> Any:
    """Return the torchao config that a checkpoint was made by, as Transformers wrote it down: ``_type``, ``_data``.

    Old versions of Transformers wrote a name such as ``int8_weight_only`` alone; one of several, by the names of
    modules, comes as a mapping of them.
    """
    found = _config(folder).get("quant_type")
    return found["default"] if isinstance(found, dict) and set(found) == {"default"} else found


def config_class(folder: Path) -> str:
    """Return the torchao config class that a checkpoint was made by, the outermost one, or an empty string.

    Where no class is written down, what is there instead is said: the name alone, or ``several configs``.
    """
    if method(folder) != TORCHAO:
        return ""
    found = quant_type(folder)
    name = str(found.get("_type", "several configs")) if isinstance(found, dict) else str(found or "")
    return _RENAMED.get(name, name)


def classes(config: Any) -> Iterator[str]:
    """Yield the names of the torchao config classes in a part of config.json, nested ones too."""
    if isinstance(config, dict):
        if isinstance(config.get("_type"), str):
            yield config["_type"]
        for inner in config.values():
            yield from classes(inner)
    elif isinstance(config, list):
        for inner in config:
            yield from classes(inner)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): it is damaged; save the model again") from error
    table = (found.get("quantization_config") or {}) if isinstance(found, dict) else None
    if not isinstance(table, dict):
        raise ValueError(f"{path}: it, or its quantization_config, is not a table: it is damaged; save the model again")
    return table
