"""Transformers' own generate: peak memory, throughput, a chat, and the quality of what the model predicts."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch

from harness.contract.tutorial import MEMORY
from harness.worker import applied, evaluate, loading, parameters, profiling, reference, tasks, tensors, texts
from harness.worker.backend import Backend


class Generate(Backend):
    """A checkpoint loaded once through AutoModelForCausalLM."""

    commands: ClassVar[tuple[str, ...]] = (
        "peak_memory",
        "generate",
        "reference",
        "text_quality",
        "predictions",
        "tasks",
        "kernels",
    )

    def open(self, checkpoint: str, device: str, trust_remote_code: bool) -> dict[str, Any]:
        self.checkpoint = checkpoint
        self.device = device
        self.tokenizer = loading.tokenizer(applied.place(checkpoint), trust_remote_code=trust_remote_code)
        self.model = applied.model(checkpoint, device, trust_remote_code)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.used = False
        self.trust_remote_code = trust_remote_code
        return {
            "weight_bytes": tensors.weight_bytes(self.model),
            "linear": parameters.multiplied(self.model),
            "threads": torch.get_num_threads(),
        }

    def peak_memory(self, max_new_tokens: int) -> dict[str, Any]:
        """Generate from the tutorial's prompt and return the peak memory in bytes.

        On a GPU ``max_memory_reserved`` since loading, on a CPU the peak resident set of this process, which
        therefore must not have done anything else: RuntimeError if it has.
        """
        if self.used:
            raise RuntimeError("peak memory needs a fresh process; this one has been used")
        inputs = self._inputs(MEMORY)
        self.used = True
        start = time.perf_counter()
        with tensors.inference(self.model):
            output = self.model.generate(**inputs, max_new_tokens=max_new_tokens)
        seconds = time.perf_counter() - start
        peak = torch.cuda.max_memory_reserved() if self.device == "cuda" else peak_resident_bytes()
        new = output[0][inputs["input_ids"].shape[1] :]
        text = self.tokenizer.decode(new, skip_special_tokens=True)
        return {"peak_bytes": peak, "new_tokens": len(new), "seconds": seconds, "response": text}

    def generate(self, prompt: str, max_new_tokens: int) -> dict[str, Any]:
        """Generate greedily, exactly ``max_new_tokens`` tokens, and return text, token ids and seconds."""
        self.used = True
        inputs = self._inputs([{"role": "user", "content": prompt}])
        self._synchronize()
        start = time.perf_counter()
        with tensors.inference(self.model):
            output = self.model.generate(
                **inputs, max_new_tokens=max_new_tokens, min_new_tokens=max_new_tokens, do_sample=False
            )
        self._synchronize()
        seconds = time.perf_counter() - start
        new = output[0][inputs["input_ids"].shape[1] :].tolist()
        return {"seconds": seconds, "tokens": new, "text": self.tokenizer.decode(new, skip_special_tokens=True)}

    def reference(
        self, checkpoint: str, text: str, windows: int, window_tokens: int, output: str, at_once: int = 1
    ) -> dict[str, Any]:
        """Write what a checkpoint predicts over windows of a text to the file ``output``, for :meth:`text_quality`."""
        self.used = True
        wanted = texts.windows(self.tokenizer, Path(text), windows, window_tokens)
        model = self.model if checkpoint == self.checkpoint else self._load(checkpoint)
        reference.keep(model, wanted, Path(output), self._progress(windows), at_once)
        return {}

    def text_quality(
        self,
        text: str,
        windows: int,
        window_tokens: int,
        baseline: str | None,
        kept: str | None = None,
        calibrated_on: str | None = None,
        at_once: int = 1,
    ) -> dict[str, Any]:
        """Compare this model with the text, and with the baseline checkpoint over the same text.

        ``at_once`` windows are predicted in one pass. Raises Unusable where a piece of it is of the text
        ``calibrated_on`` too.

        ``kept`` is what :meth:`reference` has written of the baseline; where this is the baseline itself, it is what
        this model predicts, and nothing is computed twice.
        """
        self.used = True
        wanted = texts.windows(self.tokenizer, Path(text), windows, window_tokens)
        if calibrated_on:
            # Windows follow one another, and begin in the midst of words.
            whole = [token for window in wanted.ids for token in window[wanted.given :]]
            texts.check_apart(calibrated_on, "the evaluated texts", [self.tokenizer.decode(whole)])
        known = reference.Kept(Path(kept), self.model.device) if kept else None
        model = known if known and baseline is None else self.model
        against = None if baseline is None else known or self._load(baseline)
        found: dict[str, Any] = evaluate.text_quality(model, against, wanted, self._progress(windows), at_once)
        return found

    def predictions(self, text: str, windows: int, window_tokens: int, top: int) -> dict[str, Any]:
        """Return windows of a text and what is predicted at each position: the ``top`` likeliest tokens.

        ``ids`` are the windows' token ids; ``top`` holds (token id, log-probability) pairs, likeliest first, for
        every token but the first of each window.
        """
        self.used = True
        wanted = texts.windows(self.tokenizer, Path(text), windows, window_tokens)
        return {"ids": wanted.ids, "top": evaluate.likeliest(self.model, wanted, top)}

    def tasks(
        self,
        names: list[str],
        data: str | None,
        limit: int | None,
        batch_size: int,
        options: dict[str, Any] | None = None,
        calibrated_on: str | None = None,
    ) -> dict[str, Any]:
        """Run lm-evaluation-harness tasks through its own Hugging Face backend."""
        self.used = True
        from lm_eval.models.huggingface import HFLM

        model = HFLM(pretrained=self.model, tokenizer=self.tokenizer, batch_size=batch_size, device=self.device)
        return tasks.evaluate(model, names, data, limit, options, self.report, calibrated_on)

    def kernels(self, batch_size: int, input_len: int, output_len: int) -> dict[str, Any]:
        """Profile generating from random prompts; returns ``kernels`` as :func:`harness.worker.profiling.sums` does.

        ``due`` is how many products of quantized linear layers there were, by the layers that were called.
        """
        self.used = True
        ids = texts.random_prompts(batch_size, input_len, loading.rows(self.model))
        whole = torch.tensor(ids, device=self.model.device)
        asked = {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
        layers = [it for it in self.model.modules() if isinstance(it, torch.nn.Linear)]
        quantized = [it for it in layers if tensors.tensor_class(it.weight) != "Tensor"]
        called: list[torch.nn.Module] = []
        with tensors.inference(self.model):
            # A first product may try its kernel before it takes it.
            self.model.generate(**asked, max_new_tokens=1, do_sample=False)
            hooks = [it.register_forward_pre_hook(lambda layer, _: called.append(layer)) for it in quantized]
            profiler = profiling.start()
            self.model.generate(**asked, max_new_tokens=output_len, min_new_tokens=output_len, do_sample=False)
            found = profiling.sums(profiler)
        for hook in hooks:
            hook.remove()
        return {"kernels": found, "due": len(called)}

    def _load(self, checkpoint: str) -> Any:
        return applied.model(checkpoint, self.device, self.trust_remote_code)

    def _progress(self, of: int) -> Callable[[int], None]:
        return lambda done: self.report({"done": done, "of": of})

    def _inputs(self, messages: list[dict[str, str]]) -> dict[str, torch.Tensor]:
        ids = texts.chat(self.tokenizer, messages)
        texts.check_ids(self.tokenizer, ids, loading.rows(self.model))
        whole = torch.tensor([ids], device=self.model.device)
        return {"input_ids": whole, "attention_mask": torch.ones_like(whole)}

    def _synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def peak_resident_bytes() -> int:
    """Return the peak resident set of this process since it was executed."""
    if sys.platform == "linux":
        for line in Path(f"/proc/{os.getpid()}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


BACKEND = Generate
