"""A plain model with a recipe applied as it is loaded, proved; and a checkpoint loaded, saved quantized or not.

Some of torchao's formats cannot be saved. Their checkpoint is the plain model in a folder of its own and the recipe
beside it, which is applied anew by whoever loads it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import TorchAoConfig

from harness.contract.quantized import AT_LOAD, PLAIN
from harness.contract.weights import Unusable
from harness.worker import apply, feasible, loading, parameters, products, proof
from harness.worker import plan as plans
from harness.worker import recipe as recipes
from harness.worker.parameters import Parameter
from harness.worker.plan import Plan


@dataclass(frozen=True)
class Asked:
    """A recipe as workers take it; ``own`` are rules for weights that the model's own code computes with."""

    config: str
    arguments: dict[str, Any]
    quantizes: list[str]
    transformers_options: dict[str, Any] = field(default_factory=dict)
    plain: list[str] = field(default_factory=list)
    own: dict[str, str] = field(default_factory=dict)

    def plan(self, model: Any) -> tuple[dict[str, Parameter], Plan]:
        """Return the parameters of a model, and what the recipe means for each."""
        found = parameters.survey(model)
        spared = self.transformers_options.get("modules_to_not_convert")
        recipe = recipes.build(self.config, self.arguments)
        return found, plans.make(found, recipe, self.quantizes, self.plain, spared, self.own)


@dataclass(frozen=True)
class Made:
    """A quantized model, what was meant of its parameters, and whether experts are among those that are quantized."""

    model: Any
    asked: Asked
    plan: Plan
    by_experts: bool


def quantized(source: str, asked: Asked, device: str, trust_remote_code: bool) -> Made:
    """Return a plain model quantized by a recipe as Transformers loads it, with all that the recipe means quantized.

    Raises Unusable naming the weights that cannot be quantized or stayed as they were.
    """
    empty = loading.without_data(source, trust_remote_code)
    found, plan = asked.plan(empty)
    feasible.check(found, plan, asked.config, device)
    config = apply.torchao_config(found, plan, recipes.build(asked.config, asked.arguments))
    options = apply.options(empty, found, plan, config, asked.transformers_options)
    del empty
    by_experts = any(found[name].kind == parameters.EXPERTS for name, choice in plan.items() if choice.config)
    model = loading.model(
        source,
        device_map=device,
        quantization_config=TorchAoConfig(config, **options),
        trust_remote_code=trust_remote_code,
        # One product of all experts, which is what Transformers takes otherwise, takes no quantized ones.
        **({"experts_implementation": "eager"} if by_experts else {}),
    )
    found, plan = asked.plan(model)
    proof.check(found, plan, asked.config, "the quantized model")
    return Made(model, asked, plan, by_experts)


def running(source: str, asked: Asked, device: str, trust_remote_code: bool) -> Made:
    """Return a quantized model that predicts: weights that its own code computes with are left plain by a rule.

    Raises Unusable besides for a model that cannot run with what is quantized, in one line.
    """
    made = quantized(source, asked, device, trust_remote_code)
    error = products.refused(made.model)
    if isinstance(error, NotImplementedError):
        whole = loading.model(source, device_map=device, trust_remote_code=trust_remote_code)
        rules = products.rules(whole, asked.plan(whole)[0])
        del whole
        if own := {name: rule for name, rule in rules.items() if made.plan[name].config is not None}:
            made = quantized(source, replace(asked, own=own), device, trust_remote_code)
            error = products.refused(made.model)
    if error is None:
        return made
    kind = type(made.model).__name__
    if made.by_experts and isinstance(error, NotImplementedError):
        raise Unusable(
            f"the experts of {kind} are quantized by {asked.config}, and the model cannot run with them: "
            f"{products.words(error)}. To leave them plain on purpose: --leave-plain experts"
        )
    preference = getattr(recipes.build(asked.config, asked.arguments), "kernel_preference", None)
    emulated = getattr(type(preference), "EMULATED", preference)
    hint = "" if preference is emulated else "; KernelPreference.EMULATED computes it without its kernels"
    raise Unusable(
        f"{asked.config} quantizes {kind}, which then cannot run on this {_device(device)}: "
        f"{products.words(error).rstrip('.')}{hint}"
    ) from error


def _device(device: str) -> str:
    return "processor" if device == "cpu" else "GPU"


def unsaved(error: BaseException) -> bool:
    """Return whether saving failed since torchao has no form of its tensors in a safetensors file."""
    return "Unsupported tensor type" in str(error)


def keep_plain(source: str, asked: Asked, folder: Path) -> None:
    """Write a checkpoint that is quantized as it is loaded: the plain model, linked where it can be, and the recipe."""
    place = folder / PLAIN
    for path in folder.iterdir():  # what saving had begun with
        if path.is_file():
            path.unlink()
    if Path(source).parent == folder:
        Path(source).rename(place)
    else:
        shutil.copytree(source, place, copy_function=_link)
    (folder / AT_LOAD).write_text(json.dumps(asdict(asked), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _link(source: str, target: str) -> None:
    real = os.path.realpath(source)
    try:
        os.link(real, target)
    except OSError:  # another file system
        shutil.copyfile(real, target)


def place(checkpoint: str) -> str:
    """Return the folder that has a checkpoint's configuration and tokenizer."""
    return str(Path(checkpoint) / PLAIN) if (Path(checkpoint) / AT_LOAD).is_file() else checkpoint


def model(checkpoint: str, device: str, trust_remote_code: bool) -> Any:
    """Return the model of a checkpoint, with its recipe applied where it is quantized as it is loaded."""
    file = Path(checkpoint) / AT_LOAD
    if not file.is_file():
        return loading.model(checkpoint, device_map=device, trust_remote_code=trust_remote_code)
    told: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return quantized(place(checkpoint), Asked(**told), device, trust_remote_code).model.eval()
