"""How a recipe's data names what JSON and TOML have no value for: torch dtypes, torchao's granularities and enums.

They are texts, as Python writes them: ``torch.int4``, ``PerGroup(32)``, ``PerRow(dim=-1)``, ``MappingType.SYMMETRIC``.
A table's key that is an integer, which JSON and TOML have none of, is ``int(3)``.
Nothing here runs such a text; planner and workers read it as data.
"""

from __future__ import annotations

import ast
import keyword
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_DTYPE = re.compile(r"torch\.[a-z][a-z0-9_]*\Z")
_MEMBER = re.compile(r"([A-Z][A-Za-z0-9_]*)\.([A-Z][A-Z0-9_]*)\Z")
_INTEGER = re.compile(r"int\((-?(?:0|[1-9][0-9]{0,18}))\)\Z")
_GRANULARITY = re.compile(r"Per[A-Z]\w*\(.*\)\Z", re.ASCII | re.DOTALL)

MODULES = (
    "torchao.quantization",
    "torchao.prototype.quantization",
    "torchao.quantization.quantize_.common",
    "torchao.quantization.quantize_.workflows",
)
"""Where torchao has its configs, granularities and enums; the first module that has a name is meant."""

_ELSEWHERE = {
    "AWQConfig": "torchao.prototype.awq",
    "BlockSparseWeightConfig": "torchao.sparsity.sparse_api",
    "CodebookWeightOnlyConfig": "torchao.prototype.quantization.codebook.codebook_quantized_tensor",
    "Float8DynamicActivationFloat8WeightOpaqueTensorConfig": "torchao.prototype.float8_opaque_tensor",
    "Float8StaticActivationFloat8WeightConfig": "torchao.prototype.quantization.quant_api",
    "GPTQConfig": "torchao.prototype.gptq",
    "GroupwiseLutWeightConfig": "torchao.prototype.quantization.codebook_groupwise.api",
    "Int8DynamicActivationInt4WeightConfig": "torchao.prototype.quantization.int4.inference_workflow",
    "IntNWeightOnlyConfig": "torchao.prototype.quantization.mixed_precision.scripts.naive_intNwo",
    "MXDynamicActivationMXWeightConfig": "torchao.prototype.mx_formats.inference_workflow",
    "NF4WeightOnlyConfig": "torchao.prototype._nf4tensor_api",
    "NVFP4DynamicActivationNVFP4WeightConfig": "torchao.prototype.mx_formats.inference_workflow",
    "NVFP4WeightOnlyConfig": "torchao.prototype.mx_formats.inference_workflow",
    "QATConfig": "torchao.quantization.qat",
    "PrototypeInt4WeightOnlyConfig": "torchao.prototype.quantization.int4.inference_workflow",
    "ScaleCalculationMode": "torchao.prototype.mx_formats.config",
    "SemiSparseWeightConfig": "torchao.sparsity.sparse_api",
    "SmoothQuantConfig": "torchao.prototype.smoothquant",
    "StretchedIntxWeightConfig": "torchao.prototype.parq.quant.config_torchao",
    "GGUFWeightOnlyConfig": MODULES[1],
    "Int8DynamicActivationUIntxWeightConfig": MODULES[1],
    "UIntxWeightOnlyConfig": MODULES[1],
    "KernelPreference": MODULES[2],
    "PackingFormat": MODULES[2],
    "Float8PackingFormat": MODULES[3],
    "Int4ChooseQParamsAlgorithm": MODULES[3],
    "Int4PackingFormat": MODULES[3],
    "IntxChooseQParamsAlgorithm": MODULES[3],
    "IntxPackingFormat": MODULES[3],
}


@dataclass(frozen=True)
class Granularity:
    """A call such as ``PerGroup(32)`` or ``PerGroup(group_size=32)``, taken apart; its arguments are literals."""

    name: str
    values: tuple[Any, ...]
    named: dict[str, Any]


def is_dtype(text: str) -> bool:
    """Return whether a text has the form of a torch dtype."""
    return bool(_DTYPE.match(text))


def expression(text: str) -> ast.expr:
    """Return a text's syntax tree, without a word on the terminal of what Python would warn of in code of one's own.

    Raises SyntaxError and ValueError where it is no expression, MemoryError and RecursionError where it is too deep.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        return ast.parse(text, mode="eval").body


def looks_like_granularity(text: str) -> bool:
    """Return whether a text is meant as a granularity, be it a sound one or not."""
    return bool(_GRANULARITY.match(text))


def granularity(text: str) -> Granularity | None:
    """Return the granularity that a text names, or None if it is none whose arguments are all literals."""
    if not looks_like_granularity(text):
        return None
    try:
        node = expression(text)
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            return None
        named = {given.arg: ast.literal_eval(given.value) for given in node.keywords if given.arg}
        if len(named) < len(node.keywords):
            return None
        return Granularity(node.func.id, tuple(ast.literal_eval(value) for value in node.args), named)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return None


def member(text: str) -> tuple[str, str] | None:
    """Return the class and the member that a text such as ``MappingType.SYMMETRIC`` names, or None."""
    found = _MEMBER.match(text)
    return None if found is None or keyword.iskeyword(found[1]) else (found[1], found[2])


def key_text(key: str | int) -> str:
    """Return a table's key as JSON and TOML hold it."""
    return key if isinstance(key, str) else f"int({key})"


def key_of(text: str) -> str | int:
    """Return the key that :func:`key_text` has written."""
    found = _INTEGER.match(text)
    return int(found[1]) if found else text


def is_config(value: Mapping[str, Any]) -> bool:
    """Return whether a table is a nested config: its class under ``config``, its arguments under ``arguments``."""
    return isinstance(value.get("config"), str) and set(value) <= {"config", "arguments"}


def is_prototype_module(module: str) -> bool:
    """Return whether a module of torchao is one that its releases may change or take away."""
    return module.startswith(("torchao.prototype", "torchao.experimental"))


def is_prototype(name: str) -> bool:
    """Return whether a class is one of torchao's prototypes, by its name alone."""
    return is_prototype_module(module_of(name))


def module_of(name: str) -> str:
    """Return the module that torchao has a class in, by its name alone."""
    return _ELSEWHERE.get(name, MODULES[0])
