"""A torchao config written as on a command line, read without torchao."""

from __future__ import annotations

import ast
import json
from typing import Any

from harness.base.errors import MatrixError
from harness.contract import notation


def parse_config(text: str) -> dict[str, Any]:
    """Parse ``Class(argument=value, ...)`` into the ``config`` and ``arguments`` of a recipe, without evaluating it.

    Values are literals, torch dtypes (``torch.int4``), granularities (``PerGroup(32)``), members of torchao's enums
    (``MappingType.SYMMETRIC``), nested configs, and lists and dictionaries of all these.
    """
    try:
        node = ast.parse(text, mode="eval").body
        return _config(node, text)
    except SyntaxError as error:
        raise MatrixError(f"--recipe {text!r}: {error.msg} at column {error.offset}") from error
    except (ValueError, MemoryError, RecursionError) as error:
        raise MatrixError(
            f"--recipe {text[:200]!r}: cannot be parsed ({error or 'it is nested too deeply'})"
        ) from error


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
    except ValueError:
        key = None
    if type(key) is int or (isinstance(key, str) and notation.key_of(key) == key):
        found = notation.key_text(key)
        if notation.key_of(found) == key:
            return found
    shown = ast.unparse(node) if node is not None else "**"
    raise MatrixError(f"--recipe {text!r}: {shown} is no key: those of dictionaries are texts or whole numbers")
