"""An ExecuTorch program as a model: next-token logits from a position on, and lm-evaluation-harness over it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from tqdm import tqdm

from harness.contract.program_errors import Meaning, meaning
from harness.contract.weights import Unusable


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


class _Bounded:
    """What a task's texts may be long, of a program and of its eager model alike; mixed into models of lm-eval.

    As in lm-evaluation-harness's own models, a text that is to be scored and is longer than the context loses its
    beginning: ``truncated`` holds the documents of each task whose text did. A prompt that leaves no room for the new
    tokens is refused, since an answer to half a question is no answer.
    """

    max_length: int
    tok_encode: Any

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.truncated: dict[str, set[int]] = {}
        self._cut: list[int] = []

    def loglikelihood(self, requests: list[Any], *rest: Any, **named: Any) -> Any:
        found = super().loglikelihood(requests, *rest, **named)  # type: ignore[misc]
        for index in self._cut:
            self.truncated.setdefault(requests[index].task_name, set()).add(requests[index].doc_id)
        return found

    def _loglikelihood_tokens(self, requests: list[Any], *rest: Any, **named: Any) -> Any:
        lengths = [len(context) + len(continuation) for _, context, continuation in requests]
        self._cut = [index for index, length in enumerate(lengths) if length > self.max_length + 1]
        return super()._loglikelihood_tokens(requests, *rest, **named)  # type: ignore[misc]

    def generate_until(self, requests: list[Any], *rest: Any, **named: Any) -> Any:
        for request in requests:
            prompt, options = request.args
            admit(len(self.tok_encode(prompt)), _generation(options)["max_gen_toks"], self.max_length)
        return super().generate_until(requests, *rest, **named)  # type: ignore[misc]


def admit(prompt_tokens: int, new_tokens: int, context: int) -> None:
    """Raise ValueError if a prompt and its answer do not fit a program's context."""
    if prompt_tokens + new_tokens > context:
        raise ValueError(
            f"a prompt of {prompt_tokens} tokens and {new_tokens} new ones do not fit the program's context of "
            f"{context}: export it with a longer one (measurements.arm-mobile.mobile.context)"
        )


def _generation(options: dict[str, Any]) -> dict[str, Any]:
    """Return a request's options as HFLM reads them: every name of ``max_gen_toks``, and 256 where there is none."""
    from lm_eval.models.utils import normalize_gen_kwargs

    return dict(normalize_gen_kwargs(options))


def eager_lm(model: Any, tokenizer: Any, context: int) -> Any:
    """Return lm-evaluation-harness over an eager model, which sees of a text as much as a program's context holds."""
    from lm_eval.models.huggingface import HFLM

    class EagerLM(_Bounded, HFLM):  # type: ignore[misc]
        pass

    return EagerLM(pretrained=model, tokenizer=tokenizer, batch_size=8, device="cpu", max_length=context)


class _Scored(TemplateLM):  # type: ignore[misc]
    """Scores and generates with a program that gives the logits of every position, tokens as HFLM takes them.

    Requests that share a context are asked one after another, so that the context is computed once.
    """

    def __init__(self, program: Program, tokenizer: Any) -> None:
        super().__init__()
        self.program = program
        self.tokenizer = tokenizer
        self.max_length = program.context

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        if add_special_tokens is None and string.startswith(self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        # Unless told otherwise the tokenizer itself decides.
        named = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        ids: list[int] = self.tokenizer.encode(string, **named)
        return ids

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        order = sorted(range(len(requests)), key=lambda one: requests[one][1])
        for index in tqdm(order, desc="Running loglikelihood requests", mininterval=1):
            _, context, continuation = requests[index]
            whole = [*context, *continuation][-(self.max_length + 1) :]
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
                    max_seq_len=self.max_length,
                    context_len=1,
                ),
            )
            parts = self._loglikelihood_tokens([(None, list(left), list(right)) for left, right in windows])
            found.append(sum(value for value, _ in parts))
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        asked = tqdm(requests, desc="Running generate_until requests", mininterval=1)
        return [self._generate(*request.args) for request in asked]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def _generate(self, prompt: str, options: dict[str, Any]) -> str:
        wanted = _generation(options)
        if wanted.get("do_sample") or wanted.get("num_beams", 1) > 1:
            raise Unusable(
                f"a program's answers are greedy here, and the task asks for {options}: leave these options out"
            )
        tokens = self.tok_encode(prompt)
        length = len(tokens)
        text = ""
        for _ in range(wanted["max_gen_toks"]):
            following = int(self.program.logits(tokens, len(tokens) - 1)[-1].argmax())
            if following == self.eot_token_id:
                break
            tokens.append(following)
            text = self.tokenizer.decode(tokens[length:], skip_special_tokens=True)
            if any(stop in text for stop in wanted["until"]):
                break
        for stop in wanted["until"]:
            text = text.split(stop)[0]
        return text


class ProgramLM(_Bounded, _Scored):
    """lm-evaluation-harness over a program."""


def fits(tokenizer: Any, vocabulary: int) -> None:
    """Raise ValueError if a tokenizer gives ids that a model does not have; a model may have more than are used."""
    if len(tokenizer) > vocabulary:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path} has {len(tokenizer)} tokens, the program {vocabulary}: it belongs "
            "to another model; name the checkpoint that the program was made of"
        )
