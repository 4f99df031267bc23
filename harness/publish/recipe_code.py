"""A recipe as records hold it -> the Python that applies it to any model, for people to run by hand."""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.base.text import one_line
from harness.contract import calibrated, notation, quantized

_STEPLESS = ("Int8StaticActivationInt8WeightConfig",)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

_UNTIE = """\
# Give the output head a weight of its own, since tied weights cannot be quantized apart.
untied = AutoModelForCausalLM.from_pretrained(model_to_quantize, dtype=torch.bfloat16)
untied.config.get_text_config(decoder=True).tie_word_embeddings = False
untied.config.tie_word_embeddings = False
untied._tied_weights_keys = None
untied.all_tied_weights_keys = {}
head = untied.get_output_embeddings()
head.weight = torch.nn.Parameter(head.weight.detach().clone())
untied.save_pretrained("untied")
model_to_quantize = "untied"
"""

_KEEP = """
# Whoever loads it computes the experts one by one, which is what takes quantized ones.
import json
from pathlib import Path

file = Path({output}, "config.json")
file.write_text(json.dumps({{**json.loads(file.read_text()), "experts_implementation": "eager"}}, indent=2))
"""


@dataclass
class _Expression:
    """Python source of a value, and the names of torchao in it."""

    names: set[str] = field(default_factory=set)
    steps: bool = False

    def of(self, value: Any) -> str:
        if isinstance(value, Mapping):
            if notation.is_config(value):
                return self.config(value)
            return "{" + ", ".join(f"{self.key(str(key))}: {self.of(inner)}" for key, inner in value.items()) + "}"
        if isinstance(value, (list, tuple)):
            return "[" + ", ".join(self.of(inner) for inner in value) + "]"
        if isinstance(value, str):
            return self.text(value)
        return repr(value)

    def key(self, text: str) -> str:
        key = notation.key_of(text)
        return str(key) if isinstance(key, int) else self.text(key)

    def config(self, value: Mapping[str, Any]) -> str:
        name, arguments = str(value["config"]), value.get("arguments") or {}
        if not isinstance(arguments, Mapping):
            raise ValueError(f"the arguments of {name!r} have no names")
        _check(name, *map(str, arguments))
        self.names.add(name)
        if self.steps and calibrated.staged(name, arguments) and name not in _STEPLESS:
            arguments = {**arguments, "step": calibrated.last_step(name)}
        return f"{name}({', '.join(f'{key}={self.of(inner)}' for key, inner in arguments.items())})"

    def text(self, value: str) -> str:
        if notation.is_dtype(value):
            return value
        if value.isascii() and (granularity := notation.granularity(value)):
            self.names.add(granularity.name)
            return value
        if member := notation.member(value):
            self.names.add(member[0])
            return value
        return ascii(value)

    def imports(self) -> str:
        """Return the import statements of every name, torchao's first module first."""
        modules: dict[str, list[str]] = {}
        for name in sorted(self.names, key=lambda name: (*_place(notation.module_of(name)), name)):
            modules.setdefault(notation.module_of(name), []).append(name)
        return "\n".join(f"from {module} import {', '.join(names)}" for module, names in modules.items())


def _place(module: str) -> tuple[int, str]:
    """Return where a module's import stands: those that have most configs first."""
    known = notation.MODULES
    return (known.index(module), "") if module in known else (len(known), module)


def _check(*names: str) -> None:
    unfit = [name for name in names if not _NAME.match(name) or keyword.iskeyword(name)]
    if unfit:
        raise ValueError(f"{unfit[0]!r} is no name that Python has for a class, an argument or an option")


def expression(config: Mapping[str, Any], steps: bool = False) -> str:
    """Return ``Class(argument=value)`` of a recipe's configuration, as ``--recipe`` takes it.

    With ``steps`` it is Python's own: a config that is applied in steps has that of its last.
    """
    return _Expression(steps=steps).config(config)


def _by_name(config: Mapping[str, Any], stored: Any) -> Mapping[str, Any]:
    """Return a recipe's config with the names that a checkpoint's own has besides, which are for the recipe's default.

    Experts, which are in no linear layer, are reached by name alone.
    """
    names = quantized.named_configs(stored.get("default", stored) if isinstance(stored, Mapping) else None)
    arguments = config.get("arguments") or {}
    own = arguments.get("fqn_to_config") if config["config"] == quantized.BY_NAME else None
    table = own if isinstance(own, Mapping) else {"_default": {"config": config["config"], "arguments": arguments}}
    if not names or set(names) <= set(table) or not ({"_default"} & set(table)):
        return config
    named = {key: table.get(key, table["_default"]) for key in names}
    return {"config": quantized.BY_NAME, "arguments": {"fqn_to_config": named}}


def quantization(
    config: Mapping[str, Any], model: str, output: str, checkpoint: Mapping[str, Any] | None = None
) -> str:
    """Return a script that quantizes ``model`` as the harness does and saves it to the folder ``output``.

    ``config`` is that of a :class:`harness.records.schema.RecipeIdentity`, ``checkpoint`` the config.json of what the
    recipe made of the model: which of its modules stay plain, and what is quantized by name. Raises ValueError where it
    names a class or an argument that is no Python name, and for one that is applied in steps or to a turned model.
    """
    if config.get("rotations"):
        raise ValueError("the model is turned by SpinQuant before, which no script of a card takes yet")
    if calibrated.staged(str(config["config"]), config.get("arguments") or {}):
        raise ValueError(f"{config['config']} is applied in steps, which no script of a card takes yet")
    found = _Expression()
    held = (checkpoint or {}).get("quantization_config") or {}
    made = found.config(_by_name(config, held.get("quant_type")))
    options = dict(config.get("transformers_options") or {})
    if {"embedding", "head"} & set(config.get("quantizes") or []):
        options = {"include_input_output_embeddings": True, "modules_to_not_convert": []} | options
    if held.get("modules_to_not_convert"):
        options["modules_to_not_convert"] = held["modules_to_not_convert"]
    _check(*options)
    one_by_one = (checkpoint or {}).get("experts_implementation") == "eager"
    how = ',\n    experts_implementation="eager"' if one_by_one else ""
    keep = _KEEP.format(output=json.dumps(output)) if one_by_one else ""
    given = "".join(f", {name}={found.of(value)}" for name, value in options.items())
    untie = f"\n{_UNTIE}" if config.get("untie_embeddings") else ""
    return f"""\
import torch
{found.imports()}
from transformers import AutoModelForCausalLM, AutoTokenizer, TorchAoConfig

model_id = {json.dumps(one_line(model))}
model_to_quantize = model_id
{untie}
quant_config = {made}
quantization_config = TorchAoConfig(quant_type=quant_config{given})
quantized_model = AutoModelForCausalLM.from_pretrained(
    model_to_quantize, dtype=torch.bfloat16, device_map="auto", quantization_config=quantization_config{how}
)
tokenizer = AutoTokenizer.from_pretrained(model_id)

quantized_model.save_pretrained({json.dumps(output)})
tokenizer.save_pretrained({json.dumps(output)})
{keep}"""
