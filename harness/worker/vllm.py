"""vLLM's offline engine, and the extension that looks inside its model."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import distributed
from torch.distributed import distributed_c10d

from harness.worker import inspected, precompiled, profiling, repeated, tensors, texts, unmade
from harness.worker.backend import Backend

if "vllm" in sys.modules:
    # In a process of an engine, which imports this for what follows, before it loads a model.
    repeated.install()
    unmade.install()
    precompiled.install()


class Inspect:
    """Mixed into vLLM's worker, so that the engine's process answers what its model is made of."""

    model_runner: Any
    kernel_profiler: Any

    def compile_seconds(self) -> float:
        """Return the seconds that torch.compile took, as this process counted them."""
        return float(self.model_runner.vllm_config.compilation_config.compilation_time)

    def start_profile_of_kernels(self) -> None:
        """Start recording what runs on the device."""
        self.kernel_profiler = profiling.start()

    def stop_profile_of_kernels(self) -> dict[str, Any]:
        """Return every kernel (on a CPU: operator) since, see :func:`harness.worker.profiling.stop`."""
        return profiling.stop(self.kernel_profiler)

    def quantized_layers(self) -> dict[str, str]:
        """Return the tensor class of every linear layer's weight by the layer's name."""
        found = {}
        for name, module in self.model_runner.get_model().named_modules():
            weight = getattr(module, "weight", None)
            linear = isinstance(weight, torch.Tensor) and weight.dim() == 2 and hasattr(module, "quant_method")
            if linear and type(module).__name__ not in ("VocabParallelEmbedding", "ParallelLMHead"):
                found[name] = tensors.tensor_class(weight)
        return found

    def merged_layers(self) -> dict[str, list[str]]:
        """Return what the model holds as one that a checkpoint holds apart, by the last parts of their names."""
        return dict(getattr(self.model_runner.get_model(), "packed_modules_mapping", None) or {})


EXTENSION = f"{Inspect.__module__}.{Inspect.__qualname__}"


class Engine(Backend):
    """A checkpoint in ``vllm.LLM``, started once; options are as ``vllm bench latency`` sets them."""

    commands: ClassVar[tuple[str, ...]] = ("latency", "kernels", "predictions")
    llm: Any = None

    def open(self, checkpoint: str, **options: Any) -> dict[str, Any]:
        from vllm import LLM

        repeated.install()
        inspected.install()
        unmade.install()
        precompiled.install()
        if told := options.pop("hf_overrides", ""):
            options["hf_overrides"] = json.loads(told)
        self.eager = bool(options.get("enforce_eager"))
        self.llm = LLM(
            model=checkpoint,
            enable_prefix_caching=False,
            worker_extension_cls=EXTENSION,
            **options,
        )
        return self.opened(checkpoint, self.llm.llm_engine.vllm_config, bool(options.get("trust_remote_code")))

    def opened(self, checkpoint: str, config: Any, trust_remote_code: bool) -> dict[str, Any]:
        """Return what an engine of a configuration, which is ready, says of itself."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        self.sampling = SamplingParams
        self.tokens_prompt = TokensPrompt
        self.vocabulary = texts.vocabulary(checkpoint, trust_remote_code)
        blocks = config.cache_config.num_gpu_blocks or 0
        return {
            "quantization": str(config.model_config.quantization or ""),
            "dtype": str(config.model_config.dtype),
            "kv_cache_tokens": blocks * config.cache_config.block_size,
            "compile_seconds": self.inspect("compile_seconds"),
            "layers": self.inspect("quantized_layers"),
            "merged": self.inspect("merged_layers"),
        }

    def inspect(self, method: str) -> Any:
        """Return what a method of :class:`Inspect` answers in the engine's first worker."""
        return self.llm.collective_rpc(method)[0]

    def generate(self, prompts: list[Any], parameters: Any) -> tuple[list[Any], float]:
        """Return vLLM's outputs for prompts that are given at once, in their order, and the seconds they took."""
        start = time.perf_counter()
        outputs = self.llm.generate(prompts, sampling_params=parameters, use_tqdm=False)
        return outputs, time.perf_counter() - start

    def latency(self, batch_size: int, input_len: int, output_len: int) -> dict[str, Any]:
        """Run one batch of random prompts and return its wall time in seconds.

        Raises ValueError unless every request returned exactly ``output_len`` tokens.
        """
        made = texts.random_prompts(batch_size, input_len, self.vocabulary)
        prompts = [self.tokens_prompt(prompt_token_ids=ids) for ids in made]
        parameters = self.sampling(temperature=1.0, top_p=1.0, ignore_eos=True, max_tokens=output_len)
        outputs, seconds = self.generate(prompts, parameters)
        lengths = {len(output.outputs[0].token_ids) for output in outputs}
        if len(outputs) != batch_size or lengths != {output_len}:
            raise ValueError(f"{len(outputs)} of {batch_size} requests came back, with {sorted(lengths)} tokens")
        return {"seconds": seconds}

    def kernels(self, batch_size: int, input_len: int, output_len: int) -> dict[str, Any]:
        """Profile one batch in the engine's worker, see :func:`harness.worker.profiling.stop`."""
        self.latency(batch_size, input_len, output_len)
        self.inspect("start_profile_of_kernels")
        self.latency(batch_size, input_len, output_len)
        found: dict[str, Any] = self.inspect("stop_profile_of_kernels")
        return found

    def predictions(self, sequences: list[list[int]], top: int) -> dict[str, Any]:
        """Return for every token but the first of each sequence the ``top`` likeliest (token id, log-probability)."""
        parameters = self.sampling(temperature=0.0, max_tokens=1, prompt_logprobs=top)
        prompts = [self.tokens_prompt(prompt_token_ids=sequence) for sequence in sequences]
        with _nothing_compiled() if self.eager else contextlib.nullcontext():
            outputs, _ = self.generate(prompts, parameters)
        # The prompt's own token is told as well, whatever its rank.
        return {
            "top": [
                [
                    [(token, it.logprob) for token, it in row.items() if it.rank <= top]
                    for row in output.prompt_logprobs[1:]
                ]
                for output in outputs
            ]
        }

    def close(self) -> None:
        """End the process at once where the engine is in it.

        vLLM's own ending looks through all that was ever imported for garbage, for two seconds.
        """
        if self.llm is not None and os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0":
            _remove_store()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)


def _remove_store() -> None:
    """Remove the file in the temporary folder by which the engine's processes would find each other, if it has one.

    Its owner removes it as it is taken down, which a process that ends at once never does.
    """
    if not distributed.is_initialized():
        return
    store = distributed_c10d._get_default_store()
    while isinstance(store, distributed.PrefixStore):
        store = store.underlying_store
    if isinstance(store, distributed.FileStore):
        Path(store.path).unlink(missing_ok=True)


def _nothing_compiled() -> AbstractContextManager[Any]:
    """Have functions run as they are written, in this process.

    vLLM compiles the count that gives a token its rank even where nothing else is compiled; a C++ compiler takes 18 s
    for it, which the few prompts of a check do not give back. It counts the same.
    """
    found: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return found


BACKEND = Engine
