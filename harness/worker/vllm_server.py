"""vLLM's OpenAI server, run as its own command runs it; on a CPU its engine's process is forked, not spawned.

vLLM's CPU platform spawns the engine's process, since libraries must be preloaded into it; spawning imports all of
vLLM once more. A worker of the fork server has them preloaded already, so there a fork serves as well.
"""

import multiprocessing
import os
import runpy
import sys

RANK = "batched_count_greater_than"


def main() -> None:
    from vllm.platforms import current_platform
    from vllm.v1.engine import utils

    from harness.worker import inspected, precompiled, repeated, unmade

    repeated.install()
    inspected.install()
    unmade.install()
    precompiled.install()

    if current_platform.is_cpu() and "libgomp" in os.environ.get("LD_PRELOAD", ""):
        utils.get_mp_context = lambda: multiprocessing.get_context("fork")
        if "--enforce-eager" in sys.argv:
            count_ranks_uncompiled()
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")


def count_ranks_uncompiled() -> None:
    """Have the rank of a token counted as it is written, here and in what is forked from here.

    vLLM compiles that count even where nothing else is compiled. A C++ compiler takes 18 s for it at the first prompt
    whose log-probabilities are asked for, as tasks ask for them, and the engine answers nobody meanwhile.
    """
    from vllm.v1.sample.ops import logprobs

    compiled = getattr(logprobs, RANK, None)
    plain = getattr(compiled, "_torchdynamo_orig_callable", None)
    if plain is not None:
        for module in list(sys.modules.values()):
            if getattr(module, "__dict__", {}).get(RANK) is compiled:
                setattr(module, RANK, plain)


if __name__ == "__main__":
    main()
