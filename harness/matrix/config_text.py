"""A torchao config, rules and a limit, written as on a command line; configs are read without torchao."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from harness.base.errors import MatrixError, nearest
from harness.base.reading import check_pattern
from harness.contract import notation
from harness.matrix.schema import COMPARISONS, Recipe, Target, Threshold
from harness.records.metrics import METRICS


def parse_config(text: str) -> dict[str, Any]:
    """Parse ``Class(argument=value, ...)`` into the ``config`` and ``arguments`` of a recipe, without evaluating it.

    Values are literals, torch dtypes (``torch.int4``), granularities (``PerGroup(32)``), members of torchao's enums
    (``MappingType.SYMMETRIC``), nested configs, and lists and dictionaries of all these.
    """
    try:
        return _config(notation.expression(text), text)
    except SyntaxError as error:
        raise MatrixError(f"--recipe {text!r}: {error.msg} at column {error.offset}") from error
    except (ValueError, MemoryError, RecursionError) as error:
        raise MatrixError(
            f"--recipe {text[:200]!r}: cannot be parsed ({error or 'it is nested too deeply'})"
        ) from error


def parse_limit(text: str) -> Threshold:
    """Parse ``METRIC COMPARISON=NUMBER``, such as ``perplexity max_ratio=1.05``, into a limit for every model.

    An absolute limit is in the metric's own unit. Raises MatrixError naming what is wrong.
    """
    found = re.fullmatch(r"\s*(\w+)\s+(\w+)\s*=\s*(\S+)\s*", text)
    metric, comparison, number = found.groups() if found else ("", "", "")
    if comparison not in COMPARISONS:
        raise MatrixError(
            f"--require {text!r}: not of the form 'METRIC COMPARISON=NUMBER', as in 'perplexity max_ratio=1.05'; "
            f"comparisons are {', '.join(COMPARISONS)}"
        )
    if metric not in METRICS:
        raise MatrixError(f"--require {text!r}: metric {metric!r} does not exist; {nearest(metric, METRICS)}")
    unit = METRICS[metric].unit if comparison in ("max", "min") else None
    try:
        limit: dict[str, Any] = {comparison: float(number), "unit": unit}
        return Threshold(metric=metric, every_model=True, origin="asked for by --require", **limit)
    except ValueError as error:
        raise MatrixError(f"--require {text!r}: {number!r} is no limit that {comparison} can have") from error


def with_rules(recipe: Recipe, quantize: Sequence[str], plain: Sequence[str]) -> Recipe:
    """Return a recipe for further kinds or parts, and with further rules; another one, by name and digest.

    One for the embedding or the output head unties them, since tied weights cannot be quantized.
    Raises MatrixError for a kind that there is none of, and for an expression that is none.
    """
    for kind in quantize:
        if kind not in get_args(Target):
            raise MatrixError(f"--quantize {kind!r} is no kind of weights; {nearest(kind, get_args(Target))}")
    for rule in plain:
        try:
            check_pattern(rule.removeprefix("re:"))
        except ValueError as error:
            raise MatrixError(f"--leave-plain {error}") from error
    if recipe.baseline or not (quantize or plain):
        return recipe
    words = [recipe.name, *quantize, *(["without", *plain] if plain else [])]
    return recipe.model_copy(
        update={
            "name": re.sub(r"[^\w.]+", "-", "-".join(words)).strip("-"),
            "quantizes": list(dict.fromkeys([*recipe.quantizes, *quantize])),
            "untie_embeddings": recipe.untie_embeddings or not {"embedding", "head"}.isdisjoint(quantize),
            "plain": [*recipe.plain, *plain],
        }
    )


def with_calibration(recipe: Recipe, asked: Mapping[str, Any]) -> Recipe:
    """Return a recipe that observes a model on what is asked; another one by its digest. Any other stays as it is."""
    if recipe.calibration is None or not asked:
        return recipe
    return recipe.model_copy(update={"calibration": recipe.calibration.model_copy(update=dict(asked))})


def prototypes(config: Any) -> list[str]:
    """Return those of the classes of a recipe's configuration that torchao has as prototypes."""
    if isinstance(config, Mapping):
        own = config.get("config")
        found = [own] if isinstance(own, str) and notation.is_prototype(own) else []
        return list(dict.fromkeys([*found, *(name for inner in config.values() for name in prototypes(inner))]))
    return [name for inner in config for name in prototypes(inner)] if isinstance(config, list) else []


def _config(node: ast.expr, text: str) -> dict[str, Any]:
    if isinstance(node, ast.Name):
        return {"config": node.id, "arguments": {}}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.args or any(keyword.arg is None for keyword in node.keywords):
            raise MatrixError(f"--recipe {text!r}: arguments need names, e.g. Int4WeightOnlyConfig(group_size=32)")
        arguments = {str(keyword.arg): _value(keyword.value, text) for keyword in node.keywords}
        return {"config": node.func.id, "arguments": arguments}
    raise MatrixError(f"--recipe {text!r}: not of the form Class(argument=value, ...)")


def _value(node: ast.expr, text: str) -> Any:
    named = node.func if isinstance(node, ast.Call) else node
    if isinstance(named, ast.Name) and named.id.endswith("Config"):
        return _config(node, text)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(part, text) for part in node.elts]
    if isinstance(node, ast.Dict):
        keys = [_key(key, text) for key in node.keys]
        if len(set(keys)) < len(keys):
            raise MatrixError(f"--recipe {text!r}: {ast.unparse(node)} names a key twice")
        return dict(zip(keys, (_value(part, text) for part in node.values), strict=True))
    source = ast.unparse(node)
    if notation.granularity(source) or notation.is_dtype(source) or notation.member(source):
        return source
    try:
        value = ast.literal_eval(node)
        if isinstance(value, int) and value.bit_length() > 1000:
            raise ValueError("no number of a config")
        json.dumps(value, allow_nan=False)
        return value
    except (ValueError, TypeError, RecursionError) as error:
        raise MatrixError(
            f"--recipe {text!r}: {source} is not a literal, a torch dtype, a granularity such as PerGroup(32), "
            "a member of an enum such as MappingType.SYMMETRIC, or a config"
        ) from error


def _key(node: ast.expr | None, text: str) -> str:
    try:
        key = ast.literal_eval(node) if node is not None else None
    except (ValueError, TypeError, RecursionError):
        key = None
    if type(key) is int or (isinstance(key, str) and notation.key_of(key) == key):
        found = notation.key_text(key)
        if notation.key_of(found) == key:
            return found
    shown = ast.unparse(node) if node is not None else "**"
    raise MatrixError(f"--recipe {text!r}: {shown} is no key: those of dictionaries are texts or whole numbers")
