"""An ExecuTorch program as a model: next-token logits from a position on, and lm-evaluation-harness over it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lm_eval.api.model import TemplateLM

from harness.worker.program_errors import Meaning, meaning


class Program:
    """A .pte in this process, with its KV cache.

    Raises what :func:`explain` says of a file that this ExecuTorch cannot load.
    """

    def __init__(self, file: str, profile: bool = False) -> None:
        # Registers the quantized operators in this process.
        import executorch.kernels.quantized  # noqa: F401
        from executorch.extension.pybindings import portable_lib

        self.vocabulary = constant(file, "get_vocab_size")
        self.context = constant(file, "get_max_context_len")
        try:
            self._module = portable_lib._load_for_executorch(file, enable_etdump=profile)
        except RuntimeError as error:
            raise explain(file, str(error)) from None
        self._cached: list[int] = []

    def logits(self, tokens: Sequence[int], start: int = 0) -> torch.Tensor:
        """Return float32 logits (tokens - start, vocabulary) of ``tokens[start:]``, the ones before from the KV cache.

        What the cache holds of them already, from the last call, is not computed again. Raises ValueError for more
        tokens than the program's context.
        """
        if len(tokens) > self.context:
            raise ValueError(f"{len(tokens)} tokens do not fit the program's context of {self.context}")
        shared = 0
        while shared < min(start, len(self._cached), len(tokens) - 1) and self._cached[shared] == tokens[shared]:
            shared += 1
        self._cached = list(tokens[:shared])
        parts = []
        # One call takes a token less than the cache holds: torch.export wants the length below the cache's.
        for begin in range(shared, len(tokens), self.context - 1):
            end = min(begin + self.context - 1, len(tokens))
            ids = torch.tensor([tokens[begin:end]], dtype=torch.long)
            parts.append(self._module.forward([ids, torch.arange(begin, end)])[0][0])
        self._cached = list(tokens)
        return torch.cat(parts)[start - shared :]

    def operators(self, folder: Path) -> list[tuple[str, float, int]]:
        """Return name, milliseconds and calls of each operator since loading, longest first; needs ``profile``."""
        from executorch.devtools import Inspector

        file = folder / "profile.etdp"
        self._module.write_etdump_result_to_file(str(file))
        rows: dict[str, tuple[float, int]] = {}
        for block in Inspector(etdump_path=str(file)).event_blocks:
            for event in block.events:
                if event.perf_data is None or event.name in ("Method::execute", "Program::load_method", "Method::init"):
                    continue
                spent, calls = rows.get(event.name, (0.0, 0))
                rows[event.name] = (spent + sum(event.perf_data.raw), calls + len(event.perf_data.raw))
        return sorted(((name, spent, calls) for name, (spent, calls) in rows.items()), key=lambda row: -row[1])

    # What evaluate.text_quality asks of a model.

    device = torch.device("cpu")

    def __call__(self, batch: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits(batch[0].tolist())[None])


def constant(file: str, name: str) -> int:
    """Return a number of a program's metadata, without loading its model."""
    from executorch.extension.pybindings import portable_lib

    try:
        return int(portable_lib._load_program(file).load_method(name).call([])[0])
    except RuntimeError as error:
        raise explain(file, str(error)) from None


def explain(file: str, words: str) -> Exception:
    """Return the error to raise for a program that cannot be used, from ExecuTorch's words.

    A MemoryError where memory ran out, else a RuntimeError that says what to do.
    """
    name, means = Path(file).name, meaning(words)
    if means is Meaning.NO_OPERATOR:
        return RuntimeError(
            f"{name} needs an operator that is not registered here ({words}): a program with the custom SDPA runs only "
            "where executorch.extension.llm.custom_ops, or a runner that links it, is; else export by the transformers "
            "route"
        )
    if means is Meaning.NO_LIBRARY:
        return RuntimeError(f"{name} needs a backend or operator library that is not registered here ({words})")
    if means is Meaning.NO_MEMORY:
        return MemoryError(f"{name}: ExecuTorch could not allocate the memory that it needs ({words})")
    if means is Meaning.DAMAGED:
        from importlib.metadata import version

        return RuntimeError(
            f"{name} is not a whole program that ExecuTorch {version('executorch')} reads ({words}): it is cut off, "
            "damaged, or made by another version; export it again with this one"
        )
    return RuntimeError(f"{name}: {words}")


class ProgramLM(TemplateLM):  # type: ignore[misc]
    """lm-evaluation-harness over a program that gives the logits of every position.

    Requests that share a context are asked one after another, so that the context is computed once. Texts longer
    than the program's context lose their beginning, as in lm-evaluation-harness's own models; ``truncated`` counts.
    """

    def __init__(self, program: Program, tokenizer: Any) -> None:
        super().__init__()
        fits(tokenizer, program.vocabulary)
        self.program = program
        self.tokenizer = tokenizer
        self.truncated = 0

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        ids: list[int] = self.tokenizer(string, add_special_tokens=bool(add_special_tokens))["input_ids"]
        return ids

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for index in sorted(range(len(requests)), key=lambda one: requests[one][1]):
            _, context, continuation = requests[index]
            whole = [*context, *continuation][-(self.program.context + 1) :]
            self.truncated += len(whole) < len(context) + len(continuation)
            first = max(0, len(whole) - len(continuation) - 1)
            target = torch.tensor(whole[first + 1 :])
            log_p = torch.log_softmax(self.program.logits(whole[:-1], first), dim=-1)
            found = log_p.gather(1, target[:, None])[:, 0]
            answers[index] = (float(found.sum()), bool((log_p.argmax(-1) == target).all()))
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        found = []
        for request in requests:
            windows = map(
                make_disjoint_window,
                get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.program.context,
                    context_len=1,
                ),
            )
            parts = self._loglikelihood_tokens([(None, list(left), list(right)) for left, right in windows])
            found.append(sum(value for value, _ in parts))
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        return [self._generate(*request.args) for request in requests]

    def _generate(self, prompt: str, options: dict[str, Any]) -> str:
        stops = options.get("until") or []
        stops = [stops] if isinstance(stops, str) else list(stops)
        wanted = int(options.get("max_gen_toks") or 64)
        tokens = self.tok_encode(prompt)[-max(1, self.program.context - wanted) :]
        length = len(tokens)
        text = ""
        for _ in range(min(wanted, self.program.context - length)):
            following = int(self.program.logits(tokens, len(tokens) - 1)[-1].argmax())
            if following == self.eot_token_id:
                break
            tokens.append(following)
            text = self.tokenizer.decode(tokens[length:], skip_special_tokens=True)
            if any(stop in text for stop in stops):
                break
        for stop in stops:
            text = text.split(stop)[0]
        return text


def fits(tokenizer: Any, vocabulary: int) -> None:
    """Raise ValueError if a tokenizer gives ids that a model does not have; a model may have more than are used."""
    if len(tokenizer) > vocabulary:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path} has {len(tokenizer)} tokens, the program {vocabulary}: it belongs "
            "to another model; name the checkpoint that the program was made of"
        )
