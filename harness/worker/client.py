"""The client's side of serving: vLLM's own serving benchmark, and lm-evaluation-harness through a server."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from harness.worker import tasks, texts
from harness.worker.backend import Backend
from harness.worker.load import Load
from harness.worker.requests import Conversation, Turn, made


class Client(Backend):
    """Imports the benchmark once and asks any OpenAI-compatible server on loopback."""

    commands: ClassVar[tuple[str, ...]] = ("serving", "load", "tasks")

    def open(self) -> dict[str, Any]:
        from vllm.benchmarks import serve
        from vllm.benchmarks.lib import endpoint_request_func
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        self.serve = serve
        self.parser = FlexibleArgumentParser()
        serve.add_cli_args(self.parser)
        self.read_samples = serve.get_samples
        self.samples: dict[tuple[str, ...], Any] = {}
        serve.get_samples = self._samples
        self.kept: dict[str, Any] = {}
        if read := getattr(serve, "get_tokenizer", None):
            serve.get_tokenizer = functools.partial(self._kept_tokenizer, read)
        self.load_run: Load | None = None
        self.functions = endpoint_request_func.ASYNC_REQUEST_FUNCS
        self.tokenizers: dict[str, Any] = {}
        endpoint_request_func.StreamedResponseHandler = _strict(endpoint_request_func.StreamedResponseHandler)
        return {}

    def serving(
        self,
        url: str,
        model: str,
        tokenizer: str,
        dataset: str,
        num_prompts: int,
        output_len: int | None,
        trust_remote_code: bool,
    ) -> dict[str, Any]:
        """Send ``num_prompts`` ShareGPT prompts at once, as ``vllm bench serve`` does, and return its result.

        Times are in milliseconds: every request's time to first token (``ttft``) and time per output token
        (``tpot``), and every interval between tokens (``itl``). Raises ValueError if any request failed: a rate
        over the others would be void.
        """
        arguments = [
            *("--backend", "openai", "--base-url", url, "--endpoint", "/v1/completions"),
            *("--model", model, "--served-model-name", model, "--tokenizer", tokenizer),
            *("--dataset-name", "sharegpt", "--dataset-path", dataset, "--num-prompts", str(num_prompts)),
            *("--seed", "0", "--temperature", "0", "--disable-tqdm", "--save-detailed"),
            # Whether a first request asks if the server answers is left to vLLM; for how long is not.
            *("--ready-check-timeout-sec", str(min(30, self.parser.get_default("ready_check_timeout_sec")))),
        ]
        if output_len is not None:
            arguments += ["--sharegpt-output-len", str(output_len)]
        if trust_remote_code:
            arguments.append("--trust-remote-code")
        found = self.serve.main(self.parser.parse_args(arguments))
        failed = [error for error in found.get("errors", []) if error]
        if found["completed"] != num_prompts or failed:
            first = f"; the first error: {failed[0].strip().splitlines()[-1][:300]}" if failed else ""
            raise ValueError(f"{num_prompts - found['completed']} of {num_prompts} requests failed{first}")
        lengths = found["output_lens"]
        itls = found["itls"]
        tpots = [sum(itl) / (length - 1) for itl, length in zip(itls, lengths, strict=True) if length > 1]
        return {
            "request_throughput": found["request_throughput"],
            "output_throughput": found["output_throughput"],
            "duration": found["duration"],
            "input_tokens": found["total_input_tokens"],
            "output_tokens": found["total_output_tokens"],
            "ttft": [1000 * seconds for seconds in found["ttfts"]],
            "tpot": [1000 * seconds for seconds in tpots],
            "itl": [1000 * seconds for itl in itls for seconds in itl],
        }

    def load(
        self,
        url: str,
        model: str,
        tokenizer: str,
        workload: dict[str, Any],
        requests: int,
        rate: float | None,
        seed: int,
        dataset: str | None,
        trust_remote_code: bool,
    ) -> dict[str, Any]:
        """Send a workload's requests at a rate, all at once where there is none, and tell of each; see Load.told.

        Failed requests are told of, and not counted among the others.
        """
        arrival = workload["arrival"]
        own = self._tokenizer(tokenizer, trust_remote_code)
        conversations = (
            self._conversations(tokenizer, own, workload, requests, seed, dataset)
            if workload["prompts"] == "sharegpt"
            else made(workload, requests, seed, len(own))
        )
        encode = functools.partial(_encoded, own)
        self.load_run = Load(self.serve, self.functions, workload, conversations, rate, encode)
        arguments = [
            *("--backend", "openai", "--base-url", url, "--endpoint", "/v1/completions"),
            *("--model", model, "--served-model-name", model, "--tokenizer", tokenizer),
            *("--dataset-name", "sharegpt", "--num-prompts", str(len(conversations)), "--seed", str(seed)),
            *("--temperature", "0", "--disable-tqdm", "--ready-check-timeout-sec", "0"),
            *("--request-rate", str(rate) if rate and arrival["kind"] in ("poisson", "gamma") else "inf"),
        ]
        if arrival["kind"] == "gamma":
            arguments += ["--burstiness", str(arrival["burstiness"])]
        if arrival["kind"] == "concurrent":
            arguments += ["--max-concurrency", str(arrival["concurrency"])]
        if trust_remote_code:
            arguments.append("--trust-remote-code")
        try:
            with self.load_run.patched():
                self.serve.main(self.parser.parse_args(arguments))
            return self.load_run.told()
        finally:
            self.load_run = None

    def _tokenizer(self, folder: str, trust_remote_code: bool) -> Any:
        if folder not in self.tokenizers:
            from transformers import AutoTokenizer

            self.tokenizers[folder] = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        return self.tokenizers[folder]

    def _conversations(
        self, folder: str, tokenizer: Any, workload: dict[str, Any], requests: int, seed: int, dataset: str | None
    ) -> list[Conversation]:
        """Return ShareGPT's prompts as the published benchmark reads them."""
        words = ["--dataset-name", "sharegpt", "--dataset-path", str(dataset), "--num-prompts", str(requests)]
        words += ["--seed", str(seed), "--model", folder, "--tokenizer", folder]
        if workload.get("output"):
            words += ["--sharegpt-output-len", str(workload["output"]["tokens"])]
        random.seed(seed)
        found = self.read_samples(self.parser.parse_args(words), tokenizer)
        return [Conversation((Turn(it.prompt, it.expected_output_len),)) for it in found]

    def _kept_tokenizer(self, read: Callable[..., Any], folder: str, *arguments: Any, **named: Any) -> Any:
        """Load a tokenizer once; every later round, and every recipe of its model, takes the same."""
        key = str((vocabulary(folder), arguments, sorted(named.items())))
        if key not in self.kept:
            self.kept[key] = read(folder, *arguments, **named)
        return self.kept[key]

    def _samples(self, arguments: Any, tokenizer: Any) -> Any:
        """Read and tokenize a dataset once; later rounds, and other recipes of a model, send the same requests."""
        if self.load_run is not None:
            from vllm.benchmarks.datasets import SampleRequest

            return self.load_run.samples(SampleRequest)
        names = ("dataset_path", "num_prompts", "sharegpt_output_len", "seed")
        key = (vocabulary(arguments.tokenizer), *(str(getattr(arguments, name)) for name in names))
        if key not in self.samples:
            self.samples[key] = self.read_samples(arguments, tokenizer)
        return copy.deepcopy(self.samples[key])

    def tasks(
        self,
        url: str,
        model: str,
        tokenizer: str,
        names: list[str],
        data: str | None,
        limit: int | None,
        options: dict[str, Any] | None = None,
        calibrated_on: str | None = None,
    ) -> dict[str, Any]:
        """Run lm-evaluation-harness tasks through the server's completions endpoint, texts begun as in Transformers."""
        served = _served()(
            model=model,
            base_url=f"{url}/v1/completions",
            tokenizer=tokenizer,
            tokenizer_backend="huggingface",
            num_concurrent=8,
            max_retries=2,
            batch_size=1,
        )
        return tasks.evaluate(served, names, data, limit, options, self.report, calibrated_on)


_OF_A_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "tekken.json", "config.json"),
)

_OF_ITS_FOLDER = ("is_local", "local_files_only", "name_or_path")


def vocabulary(folder: str) -> str:
    """Return what tells tokenizers apart: a digest of the files of one, or its folder where none of them is there.

    Of a checkpoint's configuration, which may choose the class of its tokenizer, the type of the model counts. Where a
    tokenizer came from, which Transformers notes as it saves one anew, does not.
    """
    found = hashlib.sha256()
    there = [path for name in _OF_A_TOKENIZER if (path := Path(folder) / name).is_file()]
    if not any(path.name != "config.json" for path in there) or any(Path(folder).glob("*.py")):
        return folder
    for path in there:
        told = path.read_bytes()
        if path.name == "config.json":
            told = str(json.loads(told).get("model_type")).encode()
        elif path.name == "tokenizer_config.json":
            known = {name: value for name, value in json.loads(told).items() if name not in _OF_ITS_FOLDER}
            told = json.dumps(known, sort_keys=True).encode()
        found.update(f"{path.name} {hashlib.sha256(told).hexdigest()}\n".encode())
    return found.hexdigest()


def _encoded(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _served() -> Any:
    """Return lm-evaluation-harness's client of a server, made to tokenize as its model of Transformers does.

    By itself it begins no text with the BOS that the tokenizer adds, so that a model would answer otherwise than in
    Transformers for want of it.
    """
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    class Served(LocalCompletionsAPI):  # type: ignore[misc]
        def __init__(self, **named: Any) -> None:
            super().__init__(**named)
            # What it passes on where nothing else is said: the tokenizer decides.
            self.add_bos_token = None
            self._begin = texts.begin(self.tokenizer)

        def tok_encode(
            self, string: Any, left_truncate_len: int | None = None, add_special_tokens: bool | None = None, **_: Any
        ) -> Any:
            several = not isinstance(string, str)
            found = []
            for text in string if several else [string]:
                ids = list(self.tokenizer(text, add_special_tokens=False).input_ids)
                whole = ids if add_special_tokens is False else texts.begun(ids, self._begin)
                found.append(whole[-left_truncate_len:] if left_truncate_len else whole)
            return found if several else found[0]

    return Served


def _strict(handler: Any) -> Any:
    """Return vLLM's reader of streamed answers, made to fail a request whose stream holds an error.

    A server whose engine fails after the first token says so inside the stream, with status 200; vLLM's benchmark
    passes over it and counts the request as completed.
    """

    class Strict(handler):  # type: ignore[misc]
        def add_chunk(self, chunk_bytes: bytes) -> Any:
            messages = super().add_chunk(chunk_bytes)
            for message in messages:
                # Generated text cannot look like this: inside of JSON its quotes are escaped.
                if '"error"' in message and "error" in json.loads(message.removeprefix("data: ")):
                    raise ValueError(f"an error inside the stream: {message[:300]}")
            return messages

    return Strict


BACKEND = Client
