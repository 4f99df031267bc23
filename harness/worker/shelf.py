"""torchao's own classes by name, whichever of its modules has one; found in its sources, none imported in vain."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from harness.contract import notation
from harness.contract.weights import Unusable

_CLASS = re.compile(r"^class (\w+)\b", re.MULTILINE)
_DERIVED = re.compile(r"^class ([A-Za-z]\w*)\(\s*AOBaseConfig\b", re.MULTILINE)
_APART = ("testing", "_models", "benchmarks")
_TRAINING_MODULE = re.compile(r"\.qat\b|training|^torchao\.float8\b|\.parq\.api$|\.float8nocompile\b")
_TRAINING_NAME = re.compile(r"Training|FakeQuantize")


def find(name: str, arguments: Collection[str] = ()) -> Any:
    """Return what torchao has under a name, of several the first that takes these arguments, or None.

    Raises Unusable for one whose module needs what is not installed.
    """
    found = list(_found(name))
    fitting = [one for one in found if not arguments or set(arguments) <= _parameters(one)]
    return next(iter([*fitting, *found]), None)


def refusal(kind: type) -> str:
    """Return why a class of torchao is no config that quantizes a model by itself, or an empty string if it is one."""
    from torchao.core.config import AOBaseConfig

    name, module = kind.__name__, kind.__module__
    if is_training(name, module):
        return _for_training(name, module)
    if not issubclass(kind, AOBaseConfig) or name == AOBaseConfig.__name__:
        return f"{name} is a class of torchao ({module}) and no config that `quantize_` takes"
    return ""


def is_training(name: str, module: str) -> bool:
    """Return whether a class of torchao is of what trains a model, by its name and module."""
    return bool(_TRAINING_MODULE.search(module) or _TRAINING_NAME.search(name))


def _for_training(name: str, module: str) -> str:
    return (
        f"{name} is a config for training ({module}): it makes a model ready to be trained, and none of its weights "
        "smaller. Give the config by which the trained model is converted"
    )


def calibration(kind: type, arguments: Collection[str]) -> str:
    """Return why a config needs observed data before it quantizes anything, or an empty string if it does not."""
    taken = inspect.signature(kind).parameters
    step = taken.get("step")
    staged = step is not None and (step.default is inspect.Parameter.empty or isinstance(step.default, str))
    scaled = "act_quant_scale" in taken and "act_quant_scale" not in arguments
    if not (staged or scaled):
        return ""
    what = "its steps are prepare, observe and convert" if staged else "the scale of activations is seen on a text"
    return (
        f"{kind.__name__} needs calibration: {what}, and its steps are not known here. It was not run; give "
        "a config that needs none"
    )


def configs() -> dict[str, str]:
    """Return torchao's config classes that quantize a model by themselves, and their modules, stable ones first."""
    found = {
        name: modules[0]
        for name, modules in _sources().items()
        if name in _configs() and not any(is_training(name, one) for one in modules)
    }
    return dict(sorted(found.items(), key=lambda one: (notation.is_prototype_module(one[1]), one[0])))


def known() -> str:
    """Return the names of torchao's config classes in words, with its prototypes apart."""
    stable = [name for name, module in configs().items() if not notation.is_prototype_module(module)]
    others = [name for name, module in configs().items() if notation.is_prototype_module(module)]
    return f"{', '.join(stable)}; as prototypes {', '.join(others)}"


def _parameters(found: Any) -> set[str]:
    return set(inspect.signature(found).parameters) if isinstance(found, type) else set()


def _found(name: str) -> Iterator[Any]:
    seen: set[int] = set()
    for module in notation.MODULES:
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ImportError:  # not in every release
            continue
        if found is not None and id(found) not in seen:
            seen.add(id(found))
            yield found
    missing: Exception | None = None
    for module in _sources().get(name, ()):
        try:
            found = getattr(importlib.import_module(module), name)
        except Exception as error:  # whatever a prototype does as it is imported
            missing = missing or error
            continue
        if id(found) not in seen:
            seen.add(id(found))
            yield found
    if missing and not seen:
        words = " ".join(str(missing).split()) or type(missing).__name__
        module = _sources()[name][0]
        if is_training(name, module):
            raise Unusable(_for_training(name, module)) from missing
        raise Unusable(f"{name} is in {module}, which cannot be imported here: {words}") from missing


@functools.cache
def _sources() -> dict[str, tuple[str, ...]]:
    """Return the modules that define each class of torchao, stable ones before prototypes."""
    found: dict[str, list[str]] = {}
    for module, text in _texts():
        for name in _CLASS.findall(text):
            found.setdefault(name, []).append(module)
    order = {
        name: sorted(modules, key=lambda one: (notation.is_prototype_module(one), one))
        for name, modules in found.items()
    }
    return {name: tuple(modules) for name, modules in order.items()}


@functools.cache
def _configs() -> frozenset[str]:
    """Return the names of the classes that `quantize_` takes: those derived from torchao's base of all configs."""
    return frozenset(name for _, text in _texts() for name in _DERIVED.findall(text))


@functools.cache
def _texts() -> tuple[tuple[str, str], ...]:
    """Return the dotted name and the source of each of torchao's modules."""
    import torchao

    root = Path(torchao.__file__).parent
    found = []
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        if not any(part in _APART for part in parts):
            module = ".".join(("torchao", *(part for part in parts if part != "__init__")))
            found.append((module, file.read_text(encoding="utf-8", errors="ignore")))
    return tuple(found)
