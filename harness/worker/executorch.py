"""An ExecuTorch program on this machine: ExecuTorch's LLM runner, agreement with the eager model, and tasks."""

from __future__ import annotations

import functools
import json
import math
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy
import torch

from harness.worker import evaluate, loading, tasks, texts
from harness.worker.backend import Backend
from harness.worker.export import load_float32
from harness.worker.program import Program, ProgramLM, constant, eager_lm, explain, fits


class Executorch(Backend):
    """A program and the checkpoint it was made of; either is loaded by the first command that needs it."""

    commands: ClassVar[tuple[str, ...]] = ("run", "windows", "agreement", "tasks", "profile")

    def open(self, program: str, checkpoint: str, trust_remote_code: bool) -> dict[str, Any]:
        self.file = program
        self.checkpoint = checkpoint
        self.trust_remote_code = trust_remote_code
        self._loaded: Any = None
        torch.set_grad_enabled(False)
        return {"threads": torch.get_num_threads()}

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer. Raises ValueError, before anything runs, if it does not fit the program."""
        found = loading.tokenizer(self.checkpoint, trust_remote_code=self.trust_remote_code)
        fits(found, constant(self.file, "get_vocab_size"))
        return found

    def run(self, text: str, prompt_tokens: int, new_tokens: int, warmup: int, rounds: int) -> dict[str, Any]:
        """Generate greedily with ExecuTorch's LLM runner and return its own statistics of every round.

        The prompt is the beginning of ``text``, about ``prompt_tokens`` long; the runner counts its tokens itself.
        Raises ValueError for a round too short for the runner's clock, which counts milliseconds: it has no rates then.
        """
        import executorch.extension.llm.custom_ops.custom_ops
        import executorch.kernels.quantized  # noqa: F401
        from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner

        tokenizer = Path(self.checkpoint) / "tokenizer.json"
        if not tokenizer.is_file():
            raise FileNotFoundError(f"{tokenizer}: ExecuTorch's LLM runner reads tokenizer.json, which is not there")
        prompt_ids = self._ids(text, prompt_tokens)
        try:
            runner = TextLLMRunner(self.file, str(tokenizer))
            prompt = self.tokenizer.decode(prompt_ids)
            config = GenerationConfig(echo=False, max_new_tokens=new_tokens, temperature=0.0)
            found: list[dict[str, Any]] = []
            for _ in range(warmup + rounds):
                runner.reset()
                runner.generate(prompt, config, None, lambda stats: found.append(json.loads(stats.to_json_string())))
                self.report({"done": len(found), "of": warmup + rounds})
        except RuntimeError as error:
            raise explain(self.file, str(error)) from None
        if any(rate not in one for one in found for rate in ("prefill_token_per_sec", "decode_token_per_sec")):
            raise ValueError(
                f"{prompt_tokens} tokens and {new_tokens} new ones took ExecuTorch's runner less than the millisecond "
                "that it counts in, so it has no rates: ask for more (prompt_tokens, new_tokens of the matrix's mobile)"
            )
        return {"rounds": found}

    def windows(self, text: str, windows: int, window_tokens: int) -> dict[str, Any]:
        """Return windows of token ids from the start of a text."""
        return {"windows": texts.windows(self.tokenizer, Path(text), windows, window_tokens).ids}

    def agreement(self, text: str, windows: int, window_tokens: int, logits: str | None) -> dict[str, Any]:
        """Hold the program against the eager checkpoint in float32, teacher-forced over the same real text.

        With ``logits``, a file of float32 (windows, tokens of a window, vocabulary) that a device wrote, those are held
        against it instead of the program in this process. Returns per window: the program's negative log-likelihood
        (``nll``), the eager model's (``eager_nll``), KL(eager || program), top-1 agreement; and the largest absolute
        difference of any logit.
        """
        wanted = texts.windows(self.tokenizer, Path(text), windows, window_tokens)
        eager = self._eager()
        vocabulary = int(eager.get_input_embeddings().weight.shape[0])
        model = Program(self.file) if logits is None else _Written(Path(logits), wanted, vocabulary)
        watched = _Watched(model, eager, wanted.given)
        found = evaluate.text_quality(
            watched, watched.eager, wanted, lambda done: self.report({"done": done, "of": windows})
        )
        parts = found["windows"]
        return {
            "windows": {"nll": parts["nll"], "eager_nll": watched.eager_nll, "kl": parts["kl"], "top1": parts["top1"]},
            "largest_difference": watched.largest,
        }

    def tasks(
        self,
        names: list[str],
        data: str | None,
        limit: int | None,
        eager: bool,
        options: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Run lm-evaluation-harness tasks over the program, or over the eager checkpoint in float32.

        Both see as much of a text as the program's context holds; ``truncated`` counts the documents of a task that
        are longer.
        """
        if eager:
            model = eager_lm(self._eager(), self.tokenizer, constant(self.file, "get_max_context_len"))
        else:
            model = ProgramLM(Program(self.file), self.tokenizer)
        found = tasks.evaluate(model, names, data, limit, options, self.report)
        for name, result in found.items():
            leaves = result.get("tasks") or (name,)
            result["truncated"] = sum(len(model.truncated.get(leaf, ())) for leaf in leaves)
        return found

    def profile(self, text: str, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
        """Return milliseconds and calls of every operator over one prompt and its answer, from an etdump."""
        tokens = self._ids(text, prompt_tokens)
        program = Program(self.file, profile=True)
        for _ in range(new_tokens):
            tokens.append(int(program.logits(tokens, len(tokens) - 1)[-1].argmax()))
        with tempfile.TemporaryDirectory() as folder:
            return {"operators": program.operators(Path(folder))}

    def _eager(self) -> Any:
        if self._loaded is None:
            self._loaded, _ = load_float32(self.checkpoint, self.trust_remote_code)
        return self._loaded

    def _ids(self, text: str, tokens: int) -> list[int]:
        """Return the first tokens of a text, without what its tokenizer begins it with."""
        found = texts.windows(self.tokenizer, Path(text), 1, tokens)
        return found.ids[0][found.given :]


class _Written:
    """Logits that a device has written, asked for as a model is."""

    device = torch.device("cpu")

    def __init__(self, file: Path, windows: texts.Windows, vocabulary: int) -> None:
        shape = (len(windows), len(windows.ids[0]), vocabulary)
        expected = math.prod(shape) * 4
        if file.stat().st_size != expected:
            raise ValueError(
                f"{file.name} has {file.stat().st_size} bytes of logits, {expected} are due: the device's program has "
                "another vocabulary, or its run was cut short"
            )
        self._logits = torch.from_numpy(numpy.fromfile(file, dtype=numpy.float32).reshape(shape))
        self._next = 0

    def __call__(self, _: torch.Tensor) -> Any:
        from types import SimpleNamespace

        self._next += 1
        return SimpleNamespace(logits=self._logits[self._next - 1][None])


class _Watched:
    """Passes a program's logits on and notes how they differ from the eager model's, which is asked once a window."""

    def __init__(self, program: Any, eager: Any, given: int) -> None:
        self._program = program
        self._eager = eager
        self._given = given
        self._last: torch.Tensor | None = None
        self.device = torch.device("cpu")
        self.largest = 0.0
        self.eager_nll: list[float] = []

    def __call__(self, batch: torch.Tensor) -> Any:
        found = self._program(batch)
        self._last = found.logits
        return found

    def eager(self, batch: torch.Tensor) -> Any:
        assert self._last is not None  # noqa: S101 - for the type alone
        found = self._eager(batch)
        self.largest = max(self.largest, float((found.logits - self._last).abs().max()))
        log_p = torch.log_softmax(found.logits[0, self._given : -1].float(), dim=-1)
        self.eager_nll.append(float(-log_p.gather(1, batch[0, self._given + 1 :, None]).mean()))
        return found


BACKEND = Executorch
