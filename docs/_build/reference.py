"""The reference, as Markdown that is made from the code: what the code takes and gives, and nothing else."""

from __future__ import annotations

import argparse
import html
import inspect
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any

import pydantic
from pydantic.fields import FieldInfo

from harness.__main__ import parser
from harness.judge.rules import REASONS, RULES
from harness.matrix import measurements, workload
from harness.matrix import schema as matrix
from harness.plugin import hooks
from harness.plugin.options import OPTIONS
from harness.records import schema as records
from harness.records.metrics import METRICS
from harness.report.table_rows import ROWS


def cell(text: object) -> str:
    """Return a text as one cell of a table, marking nothing up."""
    plain = " ".join(str(text).split())
    return plain.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def code(text: object) -> str:
    """Return a text as code in a cell of a table, where a pipe would end the cell."""
    if "|" not in str(text):
        return f"`{text}`" if str(text) else ""
    return f"<code>{html.escape(str(text)).replace('|', '&#124;')}</code>"


def rows(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    head = list(header)
    found = [f"| {' | '.join(head)} |", f"|{'|'.join('---' for _ in head)}|"]
    return "\n".join([*found, *(f"| {' | '.join(line)} |" for line in lines)])


def page(title: str, *parts: str) -> str:
    return "\n\n".join([f"# {title}", *parts]) + "\n"


def options() -> str:
    """Return the options that the plugin gives pytest."""
    lines = []
    for name, how in OPTIONS.items():
        metavar = how.get("metavar", "" if how.get("action") == "store_true" else "VALUE")
        value = f"[={metavar}]" if how.get("nargs") == "?" else f" {metavar}" if metavar else ""
        lines.append((code(name + value), cell(how["help"])))
    return page(
        "Options of pytest",
        "What the plugin adds to `pytest`. Options of pytest itself (`-k`, `-m`, `-x`, `--co`) and of pytest-benchmark "
        "(`--benchmark-autosave`) work as ever.",
        rows(("option", "what it does"), lines),
    )


def commands() -> str:
    """Return every command of ``python -m harness`` with its arguments, from the parser itself."""
    whole = parser()
    (choices,) = (it for it in whole._actions if isinstance(it, argparse._SubParsersAction))
    parts = ["`python -m harness COMMAND`; the console script `harness COMMAND` is the same."]
    for name, command in choices.choices.items():
        lines = []
        for action in command._actions:
            if isinstance(action, argparse._HelpAction):
                continue
            shown = ", ".join(action.option_strings) or str(action.metavar or action.dest)
            if action.option_strings and action.nargs != 0:
                choice = "|".join(map(str, action.choices)) if action.choices else ""
                shown += f" {choice or action.metavar or action.dest.upper()}"
            default = action.default not in (None, [], False, argparse.SUPPRESS, "", ()) and action.option_strings
            told = f" (default: {action.default})" if default and "default" not in (action.help or "") else ""
            words = (action.help or "") % vars(action) if "%(" in (action.help or "") else action.help or ""
            lines.append((code(shown), cell(words + told)))
        about = (command.description or "").strip()
        parts += [f"## {name}", f"{about[:1].upper()}{about[1:]}.", rows(("argument", "what it is"), lines)]
    return page("Commands", *parts)


def metrics() -> str:
    """Return every metric with its definition and where it stands in tables."""
    labels = {row.metric: row.label or "the task's own name" for row in reversed(ROWS)}
    parts = [
        "What a record may be of. `direction` says which way is better. Values of different versions of a definition are "
        "never compared. A limit may ask for the parameters named here."
    ]
    for it in METRICS.values():
        facts = [
            f"unit `{it.unit}`",
            f"{it.direction} is better" if it.direction != "none" else "neither way is better",
            f"version {it.version} of the definition",
            f"given by the stage `{it.stage}`",
        ]
        if it.name in labels:
            facts.append(f"in tables: {cell(labels[it.name])}")
        if it.parameters:
            facts.append(f"parameters {', '.join(map(code, it.parameters))}")
        parts += [f"## {it.name} {{#{it.name}}}", cell(it.definition), "; ".join(facts) + "."]
    return page("Metrics", *parts)


def verdicts() -> str:
    """Return every reason that a verdict may give, and how each metric is judged."""
    judged = [
        (code(name), it.kind, f"{it.margin:g}" + (f" of old {it.of_old:g}" if it.of_old else ""),
         f"{it.absolute:g}" if it.absolute else "",
         "decides" if it.primary else "decides where it is certainly worse" if it.alarm else "is told")
        for name, it in RULES.items()
    ]  # fmt: skip
    return page(
        "Verdicts",
        "A verdict of the [upgrade gate](../guides/upgrade.md) or of a night [against its baseline](../guides/nightly.md) "
        "is `pass`, `regressed`, `inconclusive` or `error`, with one of these reasons.",
        "## Reasons",
        rows(("reason", "what it says"), ((code(name), cell(words)) for name, words in REASONS.items())),
        "## How each metric is judged",
        "The margin is a share for blocks, sizes and ratios, and in the metric's unit for differences; the absolute part "
        "is always allowed. What decides sets the exit status, the rest is told beside it.",
        rows(("metric", "rule", "margin", "absolute", "its verdict"), judged),
    )


def _type(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _type(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        return " or ".join(repr(it) for it in typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(it) for it in typing.get_args(annotation) if it is not type(None))
    if origin is not None:
        inside = ", ".join(_type(it) for it in typing.get_args(annotation))
        return f"{origin.__name__} of {inside}" if inside else origin.__name__
    return getattr(annotation, "__name__", str(annotation))


def _fields(model: type[pydantic.BaseModel]) -> str:
    def shown(name: str, field: FieldInfo) -> tuple[str, ...]:
        default = field.get_default(call_default_factory=True)
        needed = "needed" if field.is_required() else code(repr(default)) if default not in (None, "") else ""
        return code(field.alias or name), cell(_type(field.annotation)), needed, cell(field.description or "")

    return rows(("key", "type", "default", "what it is"), (shown(*it) for it in model.model_fields.items()))


def _models(module: types.ModuleType, wanted: Callable[[type[pydantic.BaseModel]], bool]) -> list[str]:
    parts = []
    for name, found in vars(module).items():
        if inspect.isclass(found) and issubclass(found, pydantic.BaseModel) and found.__module__ == module.__name__:
            if not wanted(found):
                continue
            own = found.__doc__ and found.__doc__ != found.__mro__[1].__doc__
            about = cell(inspect.cleandoc(found.__doc__).replace("``", "`")) if own and found.__doc__ else ""
            parts += [f"## {name.lstrip('_')}", *([about] if about else []), _fields(found)]
    return parts


def matrix_keys() -> str:
    """Return every table and key of matrix.toml."""
    return page(
        "matrix.toml",
        "The tables of [suites/matrix.toml](../../suites/matrix.toml) by the class that reads them. An unknown key is an "
        "error that names the file, the line and the key. [Extend](../guides/extend.md) says which to write for what.",
        *(part for module in (matrix, measurements, workload) for part in _models(module, lambda _: True)),
    )


def record_lines() -> str:
    """Return every kind of line of records.jsonl."""
    return page(
        "Records",
        "A run is a folder with `records.jsonl`: one JSON object a line, of one of these kinds (`kind`), flushed to the "
        f"disk before the next is measured. This is schema version {records_version()}; lines of older versions are "
        "migrated as they are read, and newer ones are refused by name.",
        *_models(records, lambda it: not it.__name__.startswith("_")),
    )


def records_version() -> int:
    from harness.records.migrations import SCHEMA_VERSION

    return SCHEMA_VERSION


def hook_page() -> str:
    """Return the hooks for packages of one's own."""
    parts = []
    for name, found in vars(hooks).items():
        if name.startswith("pytest_harness_") and callable(found):
            about = inspect.cleandoc(found.__doc__ or "").replace("``", "`")
            parts += [f"## {name}", f"```python\ndef {name}{inspect.signature(found)}: ...\n```", about]
    return page(
        "Hooks",
        "A `conftest.py` or a pytest plugin implements these; [Extend](../guides/extend.md#from-a-package-of-your-own) "
        "has an example.",
        *parts,
    )


PAGES: dict[str, Callable[[], str]] = {
    "reference/options.md": options,
    "reference/commands.md": commands,
    "reference/matrix.md": matrix_keys,
    "reference/metrics.md": metrics,
    "reference/verdicts.md": verdicts,
    "reference/records.md": record_lines,
    "reference/hooks.md": hook_page,
}
