"""Configs that torchao applies in steps: a model is prepared, observed on a calibration text, and converted.

Each step is torchao's own. What was observed is kept apart from the model, so that a format which cannot be saved is
converted anew by the same scales, without the text.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from harness.contract.calibrated import CONVERTING
from harness.contract.weights import Unusable, shown
from harness.worker import tensors

Observed = Mapping[str, torch.Tensor]
"""What is kept of a layer: tensors by what they are."""
Report = Callable[[dict[str, Any]], None]
_EVERY = 1.0


class Stage:
    """A config's steps, by its own classes: ``prepare``, then the text, then ``convert`` of each layer."""

    observes = True

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def saved(self) -> Any:
        """The config by which Transformers and vLLM load what was made."""
        return self._at("prepare_for_loading")

    def prepare(self, model: torch.nn.Module, names: Sequence[str]) -> None:
        """Have the linear layers of these names observe what they are given."""
        _apply(model, self._at("prepare"), names)

    def observed(self, model: torch.nn.Module, name: str) -> Observed:
        """Return what a layer has seen, in the least that converting it takes."""
        raise NotImplementedError

    def convert(self, model: torch.nn.Module, name: str, seen: Observed) -> None:
        """Quantize a layer by what was seen."""
        raise NotImplementedError

    def _at(self, step: str) -> Any:
        config = copy.deepcopy(self.config)
        config.step = step
        return config


class _Scaling(Stage):
    """AWQ and SmoothQuant: inputs are divided by a scale for each of their features, weights multiplied by it."""

    _observer = "act_obs"

    def observed(self, model: torch.nn.Module, name: str) -> Observed:
        found = self._of(model, name).calculate_qparams(**self._asked())
        named = zip(
            ("scale", "act_scale", "act_zero_point"), found if isinstance(found, tuple) else (found,), strict=False
        )
        return {what: it for what, it in named if it is not None}

    def convert(self, model: torch.nn.Module, name: str, seen: Observed) -> None:
        whole = (seen["scale"], seen.get("act_scale"), seen.get("act_zero_point"))
        known = whole if self._observer == "obs" else whole[0]
        self._of(model, name).calculate_qparams = lambda *_, **__: known
        _apply(model, self._at("convert"), [name])

    def _of(self, model: torch.nn.Module, name: str) -> Any:
        return getattr(model.get_submodule(name), self._observer)

    def _asked(self) -> dict[str, Any]:
        return {}


class _Smooth(_Scaling):
    _observer = "obs"

    def _asked(self) -> dict[str, Any]:
        static = hasattr(self.config.base_config, "get_act_quant_kwargs")
        return {"weight_quant_kwargs": _static(self.config.base_config)} if static else {}


class _Float8Static(Stage):
    @property
    def saved(self) -> Any:
        return self._at("convert")

    def observed(self, model: torch.nn.Module, name: str) -> Observed:
        layer: Any = model.get_submodule(name)
        seen = {"act_scale": layer.input_act_obs.calculate_qparams()[0]}
        if layer.output_act_obs is not None:
            seen["output_scale"] = layer.output_act_obs.calculate_qparams()[0]
        return seen

    def convert(self, model: torch.nn.Module, name: str, seen: Observed) -> None:
        layer: Any = model.get_submodule(name)
        layer.input_act_obs.calculate_qparams = lambda: (seen["act_scale"], None)
        if layer.output_act_obs is not None:
            layer.output_act_obs.calculate_qparams = lambda: (seen["output_scale"], None)
        _apply(model, self._at("convert"), [name])


class _Int8Static(Stage):
    """torchao has no observer of its own for this config: the least and the greatest input of each layer are noted."""

    @property
    def saved(self) -> Any:
        return self.config

    def prepare(self, model: torch.nn.Module, names: Sequence[str]) -> None:
        self._ends: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._hooks = {name: model.get_submodule(name).register_forward_pre_hook(self._noting(name)) for name in names}

    def observed(self, model: torch.nn.Module, name: str) -> Observed:
        from torchao.quantization.quantize_.common import _choose_quant_func_and_quantize_tensor

        # Of one scale for all values the ends alone count. Layers of Transformers are given three dimensions.
        ends = torch.stack(self._ends[name])[None, None]
        found: Any = _choose_quant_func_and_quantize_tensor(ends, _static(self.config))
        return {"act_scale": found.scale, "act_zero_point": found.zero_point}

    def convert(self, model: torch.nn.Module, name: str, seen: Observed) -> None:
        self._hooks.pop(name).remove()
        config = copy.deepcopy(self.config)
        config.act_quant_scale, config.act_quant_zero_point = seen["act_scale"], seen["act_zero_point"]
        _apply(model, config, [name])

    def _noting(self, name: str) -> Callable[..., None]:
        def note(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            least, most = inputs[0].aminmax()
            if name in self._ends:
                before = self._ends[name]
                least, most = torch.minimum(least, before[0]), torch.maximum(most, before[1])
            self._ends[name] = (least, most)

        return note


class _Gptq(Stage):
    """Its Hessians are as large as the weights and of no use after: a layer is converted by what it holds itself."""

    @property
    def saved(self) -> Any:
        return self.config.base_config

    def prepare(self, model: torch.nn.Module, names: Sequence[str]) -> None:
        _apply(model, self._at("observe"), names)

    def observed(self, model: torch.nn.Module, name: str) -> Observed:
        return {}

    def convert(self, model: torch.nn.Module, name: str, seen: Observed) -> None:
        weight: Any = model.get_submodule(name).weight
        if weight.device.type != "cuda":
            raise Unusable("GPTQConfig: torchao's GPTQ runs on CUDA GPUs alone, whose device it asserts")
        _apply(model, self._at("convert"), [name])


class _Trained(Stage):
    """QAT's convert: a model that was trained with fake quantization is quantized by the config that it imitated."""

    observes = False

    @property
    def saved(self) -> Any:
        return self.config.base_config

    def observed(self, model: torch.nn.Module, name: str) -> Observed:
        return {}

    def convert(self, model: torch.nn.Module, name: str, seen: Observed) -> None:
        _apply(model, self._at("convert"), [name])


_STAGES: dict[str, type[Stage]] = {
    "AWQConfig": _Scaling,
    "SmoothQuantConfig": _Smooth,
    "Float8StaticActivationFloat8WeightConfig": _Float8Static,
    "Int8StaticActivationInt8WeightConfig": _Int8Static,
    "GPTQConfig": _Gptq,
    CONVERTING: _Trained,
}


def _static(config: Any) -> Any:
    """Return how a config quantizes activations by a scale that is one for all of them; Unusable for one a row."""
    found = config.get_act_quant_kwargs()
    if type(found.granularity).__name__ != "PerTensor":
        raise Unusable(
            f"{type(config).__name__}: a static scale is one for all activations, and its granularity is one a row: "
            "give granularity = PerTensor(), or [PerTensor(), PerRow()] with weights by row"
        )
    return found


def of(config: Any) -> Stage | None:
    """Return the steps of a config that is applied in steps; None for any other."""
    if getattr(config, "act_quant_scale", None) is not None:
        return None
    kind = _STAGES.get(type(config).__name__)
    return kind(config) if kind else None


def base(config: Any) -> Any:
    """Return the config whose format the weights get: that which another one is put on top of, or itself."""
    return getattr(config, "base_config", None) or config


@tensors.without_gradients
def observe(
    model: Any, stage: Stage, names: Sequence[str], ids: Sequence[Sequence[int]], report: Report = lambda _: None
) -> None:
    """Prepare layers and run the calibration text through a model; ``report`` is told of sequences and time left."""
    _check_linear(model, names)
    stage.prepare(model, names)
    if not stage.observes:
        return
    for index in _told(range(len(ids)), len(ids), "calibration sequences", report):
        model(torch.tensor([list(ids[index])], device=model.device), use_cache=False)


@tensors.without_gradients
def convert(
    model: Any,
    stage: Stage,
    names: Sequence[str],
    seen: Mapping[str, Observed] | None = None,
    report: Report = lambda _: None,
) -> dict[str, Observed]:
    """Quantize prepared layers, by what was ``seen`` before or by what they have observed, and return that."""
    found: dict[str, Observed] = {}
    for name in _told(names, len(names), "layers", report):
        found[name] = seen[name] if seen is not None and name in seen else stage.observed(model, name)
        stage.convert(model, name, found[name])
    return found


@tensors.without_gradients
def try_on(holder: torch.nn.Sequential, stage: Stage, inputs: torch.Tensor) -> None:
    """Quantize the one layer of a holder, observed on ``inputs`` (1, tokens, features)."""
    stage.prepare(holder, ["0"])
    if stage.observes:
        holder(inputs)
    stage.convert(holder, "0", stage.observed(holder, "0"))


def _check_linear(model: torch.nn.Module, names: Sequence[str]) -> None:
    others = [name for name in names if not isinstance(model.get_submodule(name), torch.nn.Linear)]
    if others:
        raise Unusable(
            f"what is observed are linear layers, and {shown(others)} are none: leave them plain "
            "(--leave-plain embedding or experts)"
        )


def _apply(model: torch.nn.Module, config: Any, names: Sequence[str]) -> None:
    from torchao.quantization import quantize_

    meant = frozenset(names)
    quantize_(model, config, filter_fn=lambda _, name: name in meant)


def _told(items: Sequence[Any], count: int, unit: str, report: Report) -> Iterator[Any]:
    """Yield items, and report how many are done and how long the others will take."""
    begun = said = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - said >= _EVERY or done == count:
            said = now
            report({"done": done, "of": count, "unit": unit, "left": (now - begun) / done * (count - done)})
