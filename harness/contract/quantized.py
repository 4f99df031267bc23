"""What a checkpoint's config.json says of the quantization that it holds already; read by planner and workers alike.

Every function raises ValueError, naming the file, for one that is not JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TORCHAO = "torchao"
AT_LOAD = "quantized_at_load.json"
"""The recipe in a checkpoint that torchao cannot save: it is applied to the plain model in PLAIN as that is loaded."""
PLAIN = "plain"
OBSERVED = "observed.safetensors"
"""What a calibrated recipe saw of each layer, beside a checkpoint that is quantized as it is loaded."""
BY_NAME = "FqnToConfig"
# Files beside config.json that say so where config.json itself does not: ModelOpt, AutoGPTQ, AutoAWQ, Quanto.
_BESIDE = {
    "hf_quant_config.json": "modelopt",
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "quanto_qmap.json": "quanto",
    "quantization_map.json": "quanto",
}
_NAMES = {
    "modelopt": "ModelOpt",
    "gptq": "GPTQ",
    "awq": "AWQ",
    "mlx": "MLX",
    "aqlm": "AQLM",
    "hqq": "HQQ",
    "quanto": "Quanto",
    "quark": "Quark",
    "vptq": "VPTQ",
    "spqr": "SpQR",
    "fp8": "Transformers' fp8",
    "fbgemm_fp8": "Transformers' fbgemm_fp8",
    "mxfp4": "Transformers' mxfp4",
}
_WIDENED = {
    "fp8": "FineGrainedFP8Config(dequantize=True)",
    "mxfp4": "Mxfp4Config(dequantize=True)",
    "compressed-tensors": "CompressedTensorsConfig(dequantize=True)",
}
# Classes that torchao has under another name now.
_RENAMED = {"ModuleFqnToConfig": "FqnToConfig", "AOPerModuleConfig": "FqnToConfig"}


def method(folder: Path) -> str:
    """Return what quantized a checkpoint (``torchao``, or another's name), or an empty string if it is plain."""
    found = _config(folder)
    return str(found.get("quant_method") or _by_keys(found)) if found else ""


def refusal(folder: Path) -> str:
    """Return why a checkpoint that something else than torchao quantized is not measured, or an empty string."""
    found = method(folder)
    if found in ("", TORCHAO):
        return ""
    name = _NAMES.get(found, found)
    wider = _WIDENED.get(found, "")
    widened = f"; Transformers widens it: load it with quantization_config={wider} and save that" if wider else ""
    return (
        f"{folder} is quantized with {name}, which is not torchao: give the plain model that it was made of, or one "
        f"that torchao quantized{widened}"
    )


def quant_type(folder: Path) -> Any:
    """Return the torchao config that a checkpoint was made by, as Transformers wrote it down: ``_type``, ``_data``.

    Old versions of Transformers wrote a name such as ``int8_weight_only`` alone; one of several, by the names of
    modules, comes as a mapping of them.
    """
    found = _config(folder).get("quant_type")
    return found["default"] if isinstance(found, dict) and set(found) == {"default"} else found


def config_class(folder: Path) -> str:
    """Return the torchao config class that a checkpoint was made by, or an empty string.

    It is the outermost one, but of an FqnToConfig that is one config for all, whatever it leaves out, that of the one:
    so a recipe is applied to models whose experts can be reached by name alone.

    Where no class is written down, what is there instead is said: the name alone, or ``several configs``.
    """
    if method(folder) != TORCHAO:
        return ""
    found = quant_type(folder)
    name = str(found.get("_type", "several configs")) if isinstance(found, dict) else str(found or "")
    name = _RENAMED.get(name, name)
    named = named_configs(found) if name == BY_NAME else {}
    inner = [config for config in named.values() if config is not None]
    if named.get("_default") is not None and all(config == inner[0] for config in inner):
        return str(inner[0].get("_type", name)) if isinstance(inner[0], dict) else name
    return name


def named_configs(config: Any) -> dict[str, Any]:
    """Return the configs by name of a serialized FqnToConfig."""
    data = config.get("_data") if isinstance(config, dict) else None
    found = (data.get("fqn_to_config") or data.get("module_fqn_to_config")) if isinstance(data, dict) else None
    return found if isinstance(found, dict) else {}


def inner_classes(config: Any) -> frozenset[str]:
    """Return the classes of the configs that an FqnToConfig has, be it serialized or a recipe's ``arguments``."""
    found: set[str] = set()
    if isinstance(config, dict):
        for key in ("_type", "config"):
            if isinstance(config.get(key), str) and _RENAMED.get(config[key], config[key]) != BY_NAME:
                return frozenset({config[key]} if config[key].endswith("Config") else ())
        for inner in config.values():
            found |= inner_classes(inner)
    return frozenset(found)


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
    """Return the ``quantization_config`` of a checkpoint, or what stands in its place, with its ``quant_method``."""
    path = folder / "config.json"
    found = _table(path)
    table = _under(path, found, "quantization_config")
    if "quant_method" not in table and isinstance(found.get("quantization"), dict) and "bits" in found["quantization"]:
        return {"quant_method": "mlx"}
    if table:
        return table
    for name, table in found.items():
        # A model of several parts may have it in the one that is quantized.
        if name.endswith("_config") and isinstance(table, dict) and table.get("quantization_config"):
            return _under(path, table, "quantization_config")
    # As llm-compressor wrote it before 0.2.
    if _under(path, found, "compression_config"):
        return {"quant_method": "compressed-tensors"}
    for name, method in _BESIDE.items():
        if (folder / name).is_file():
            return {"quant_method": method}
    return {}


def _under(path: Path, table: dict[str, Any], name: str) -> dict[str, Any]:
    found = table.get(name) or {}
    if not isinstance(found, dict):
        raise ValueError(f"{path}: its {name} is not a table: it is damaged; save the model again")
    return found


def _table(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error}): it is damaged; save the model again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: it is not a table: it is damaged; save the model again")
    return found


def _by_keys(table: dict[str, Any]) -> str:
    """Return what quantized a checkpoint whose config does not name it, by the keys that it has."""
    if table.get("load_in_8bit") or table.get("load_in_4bit") or any(name.startswith("bnb_") for name in table):
        return "bitsandbytes"
    if "quant_algo" in table:
        return "modelopt"
    if "config_groups" in table or "sparsity_config" in table:
        return "compressed-tensors"
    return "an unnamed method"
