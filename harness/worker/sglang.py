"""SGLang: its offline engine, and the server under the same launch wrapper.

    python -m harness.worker.sglang --recipe JSON [options of sglang.launch_server]

starts that server with a torchao recipe applied, or a torchao checkpoint loaded, which SGLang cannot do by itself.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, NoReturn

from harness.worker import texts
from harness.worker.backend import Backend
from harness.worker.sglang_model import MERGED, admit, is_quantized, run_scheduler


class Engine(Backend):
    """A checkpoint in ``sglang.Engine``, started once."""

    commands: ClassVar[tuple[str, ...]] = ("latency", "kernels", "predictions")

    def open(self, checkpoint: str, recipe: dict[str, Any] | None, **options: Any) -> dict[str, Any]:
        """Start the engine; ``recipe`` (config and arguments) is applied to a plain checkpoint as it is loaded."""
        admit(Path(checkpoint), recipe)
        self.vocabulary = texts.vocabulary(checkpoint, bool(options.get("trust_remote_code")))
        from sglang.srt.entrypoints.engine import Engine as SGLang

        _end_plainly()

        class Quantizing(SGLang):  # type: ignore[misc]
            run_scheduler_process_func = staticmethod(functools.partial(run_scheduler, recipe))

        self.engine = Quantizing(
            model_path=checkpoint,
            log_level="info",
            custom_sigquit_handler=_child_failed,
            **hidden(checkpoint),
            **options,
        )
        # Milliseconds: of a scheduler that dies while it is asked, nothing else would tell.
        self.engine.send_to_rpc.RCVTIMEO = 120_000
        info = self.engine._scheduler_init_result.scheduler_infos[0]
        return {
            "quantization": json.dumps(recipe) if recipe else "",
            "dtype": str(self.engine.server_args.dtype),
            "kv_cache_tokens": int(info["max_total_num_tokens"]),
            "layers": self._told("tell_layers"),
            "merged": MERGED,
        }

    def latency(self, batch_size: int, input_len: int, output_len: int) -> dict[str, Any]:
        """Run one batch of random prompts and return its wall time in seconds.

        The wall time of one ``generate`` as SGLang's ``bench_offline_throughput`` takes it, over the requests of
        ``vllm bench latency``: token ids below 10,000, sampled at temperature 1 to the full length, so that it stands
        beside vLLM's. Raises ValueError unless every request returned exactly ``output_len`` tokens.
        """
        prompts = texts.random_prompts(batch_size, input_len, self.vocabulary)
        parameters = {"temperature": 1.0, "top_p": 1.0, "ignore_eos": True, "max_new_tokens": output_len}
        start = time.perf_counter()
        outputs = self.engine.generate(input_ids=prompts, sampling_params=parameters)
        seconds = time.perf_counter() - start
        lengths = {output["meta_info"]["completion_tokens"] for output in outputs}
        if len(outputs) != batch_size or lengths != {output_len}:
            raise ValueError(f"{len(outputs)} of {batch_size} requests came back, with {sorted(lengths)} tokens")
        return {"seconds": seconds}

    def kernels(self, batch_size: int, input_len: int, output_len: int) -> dict[str, Any]:
        """Profile one batch in the scheduler, see :func:`harness.worker.profiling.stop`."""
        self.latency(batch_size, input_len, output_len)
        self.engine.collective_rpc("start_profile_of_kernels")
        self.latency(batch_size, input_len, output_len)
        found: dict[str, Any] = self._told("stop_profile_of_kernels")
        return found

    def predictions(self, sequences: list[list[int]], top: int) -> dict[str, Any]:
        """Return for every token but the first of each sequence the ``top`` likeliest (token id, log-probability)."""
        outputs = self.engine.generate(
            input_ids=sequences,
            sampling_params={"temperature": 0.0, "max_new_tokens": 1},
            return_logprob=True,
            logprob_start_len=0,
            top_logprobs_num=top,
        )
        told = [output["meta_info"]["input_top_logprobs"][1:] for output in outputs]
        return {"top": [[[(row[1], row[0]) for row in rows] for rows in window] for window in told]}

    def close(self) -> None:
        self.engine.shutdown()

    def _told(self, what: str) -> Any:
        """Ask the scheduler; its answer comes through a file, since SGLang's own calls return nothing."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "answer.json"
            self.engine.collective_rpc(what, file=str(file))
            return json.loads(file.read_text(encoding="utf-8"))


def hidden(checkpoint: str) -> dict[str, str]:
    """Return the argument that hides a torchao checkpoint's own config, which SGLang would refuse."""
    if is_quantized(Path(checkpoint)):
        return {"json_model_override_args": json.dumps({"quantization_config": None})}
    return {}


def _child_failed(signal: int, frame: FrameType | None) -> NoReturn:
    """Raise while starting, where SGLang would kill this process with its children, and the reason would be lost."""
    raise RuntimeError("a process of SGLang failed")


def _end_plainly() -> None:
    """Let this process end with status 1 when one of SGLang's dies while serving.

    SGLang would kill this one too, which cannot be told from the kernel's doing for want of memory. What is left of
    its children ends with the worker.
    """
    from sglang.srt.managers import tokenizer_manager

    class Handler(tokenizer_manager.SignalHandler):  # type: ignore[misc]
        def running_phase_sigquit_handler(self, signum: Any = None, frame: Any = None) -> NoReturn:
            print("a process of SGLang died", file=sys.stderr, flush=True)
            os._exit(1)

    tokenizer_manager.SignalHandler = Handler


def serve(argv: list[str]) -> None:
    """Start SGLang's HTTP server; ``argv`` is as in this module's docstring."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--recipe", type=json.loads, help="config and arguments of a torchao config, as JSON")
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--port", type=int, required=True)
    own, others = parser.parse_known_args(argv)
    admit(Path(own.model_path), own.recipe)
    # No gRPC server is asked for, but its port is checked; by default it is 10,000 above, which may be above them all.
    os.environ.setdefault("SGLANG_GRPC_PORT", str(own.port - 1))
    from sglang.srt.entrypoints.http_server import launch_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_process_tree

    load_plugins()
    _end_plainly()
    for name, value in hidden(own.model_path).items():
        others += ["--" + name.replace("_", "-"), value]
    arguments = prepare_server_args(["--model-path", own.model_path, "--port", str(own.port), *others])
    arguments.custom_sigquit_handler = _child_failed
    try:
        launch_server(arguments, run_scheduler_process_func=functools.partial(run_scheduler, own.recipe))
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


BACKEND = Engine

if __name__ == "__main__":
    serve(sys.argv[1:])
