"""A plain model with a recipe applied as it is loaded, proved; and a checkpoint loaded, saved quantized or not.

Some of torchao's formats cannot be saved. Their checkpoint is the plain model in a folder of its own and the recipe
beside it, which is applied anew by whoever loads it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import TorchAoConfig
from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer

from harness.contract.quantized import AT_LOAD, OBSERVED, PLAIN
from harness.contract.weights import Unusable, files
from harness.worker import apply, feasible, loading, parameters, products, proof, staged
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
    """A quantized model, what was meant of its parameters, and whether experts are among those that are quantized.

    ``seen`` is what was observed of each layer on a calibration text.
    """

    model: Any
    asked: Asked
    plan: Plan
    by_experts: bool
    seen: Mapping[str, staged.Observed] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """The token ids of a calibration text's sequences, or what was seen on it before; ``report`` is told how far."""

    ids: Sequence[Sequence[int]] = ()
    seen: Mapping[str, staged.Observed] | None = None
    report: staged.Report = lambda _: None


def quantized(
    source: str, asked: Asked, device: str, trust_remote_code: bool, calibration: Calibration | None = None
) -> Made:
    """Return a plain model quantized by a recipe as Transformers loads it, with all that the recipe means quantized.

    One that is applied in steps is loaded plain, and observed on ``calibration`` where it needs one. Raises Unusable
    naming the weights that cannot be quantized or stayed as they were.
    """
    empty = loading.without_data(source, trust_remote_code)
    found, plan = asked.plan(empty)
    feasible.check(found, plan, asked.config, device)
    config = apply.torchao_config(found, plan, recipes.build(asked.config, asked.arguments))
    stage = staged.of(recipes.build(asked.config, asked.arguments))
    if stage and type(config) is not type(stage.config):
        raise Unusable(
            f"{asked.config} is applied in steps, to linear layers alone: leave embeddings and experts plain"
        )
    options = apply.options(empty, found, plan, config, asked.transformers_options)
    del empty
    if stage:
        return _in_steps(source, asked, stage, options, device, trust_remote_code, calibration or Calibration())
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


def _in_steps(
    source: str,
    asked: Asked,
    stage: staged.Stage,
    options: Mapping[str, Any],
    device: str,
    trust_remote_code: bool,
    calibration: Calibration,
) -> Made:
    """Return a model quantized by a config's steps, which Transformers saves as one that it has quantized itself."""
    seen = calibration.seen
    if stage.observes and seen is None and not calibration.ids:
        raise Unusable(f"{asked.config} is calibrated on a text, and there is none")
    model = loading.model(source, device_map=device, trust_remote_code=trust_remote_code)
    found, plan = asked.plan(model)
    names = [found[name].module for name, choice in plan.items() if choice.config is not None]
    staged.observe(model, stage, names, () if seen is not None else calibration.ids, calibration.report)
    kept = staged.convert(model, stage, names, seen, calibration.report)
    model.hf_quantizer = TorchAoHfQuantizer(TorchAoConfig(stage.saved, **options), pre_quantized=False)
    model.config.quantization_config = model.hf_quantizer.quantization_config
    found, plan = asked.plan(model)
    proof.check(found, plan, asked.config, "the quantized model")
    return Made(model, asked, plan, by_experts=False, seen=kept)


def running(
    source: str, asked: Asked, device: str, trust_remote_code: bool, calibration: Calibration | None = None
) -> Made:
    """Return a quantized model that predicts: weights that its own code computes with are left plain by a rule.

    Raises Unusable besides for a model that cannot run with what is quantized, in one line.
    """
    made = quantized(source, asked, device, trust_remote_code, calibration)
    error = products.refused(made.model)
    if isinstance(error, NotImplementedError):
        whole = loading.model(source, device_map=device, trust_remote_code=trust_remote_code)
        rules = products.rules(whole, asked.plan(whole)[0])
        del whole
        if own := {name: rule for name, rule in rules.items() if made.plan[name].config is not None}:
            made = quantized(source, replace(asked, own=own), device, trust_remote_code, calibration)
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


def unread(model: Any, folder: Path) -> list[str]:
    """Return the tensors of a saved checkpoint that Transformers writes and does not read again."""
    told = model.hf_quantizer.quantization_config
    parts = {
        pattern
        for converter in TorchAoHfQuantizer(told, pre_quantized=True).get_weight_conversions()
        for pattern in converter.source_patterns
    }
    names = [name for file in files(folder) for name in _names(file)]
    return [name for name in names if (own := name.rpartition(".")[2]).startswith("_weight_") and own not in parts]


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def keep_plain(source: str, made: Made, folder: Path) -> None:
    """Write a checkpoint that is quantized as it is loaded: the plain model, linked where it can be, and the recipe.

    Of a calibrated one what was observed is kept, so that each load converts by the same scales.
    """
    place = folder / PLAIN
    for path in folder.iterdir():  # what saving had begun with
        if path.is_file():
            path.unlink()
    if Path(source).parent == folder:
        Path(source).rename(place)
    else:
        shutil.copytree(source, place, copy_function=_link)
    told = json.dumps(asdict(made.asked), indent=2, sort_keys=True) + "\n"
    (folder / AT_LOAD).write_text(told, encoding="utf-8")
    if any(made.seen.values()):
        flat = {f"{name}:{what}": it.contiguous().clone() for name, of in made.seen.items() for what, it in of.items()}
        save_file(flat, folder / OBSERVED)


def _seen(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in load_file(folder / OBSERVED).items() if (folder / OBSERVED).is_file() else ():
        name, _, what = key.rpartition(":")
        found.setdefault(name, {})[what] = value
    return found


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
    seen = {name: {what: it.to(device) for what, it in of.items()} for name, of in _seen(Path(checkpoint)).items()}
    calibration = Calibration(seen=seen)
    return quantized(place(checkpoint), Asked(**told), device, trust_remote_code, calibration).model.eval()
