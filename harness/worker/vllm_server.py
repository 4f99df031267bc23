"""vLLM's OpenAI server, run as its own command runs it; on a CPU its engine's process is forked, not spawned.

vLLM's CPU platform spawns the engine's process, since libraries must be preloaded into it; spawning imports all of
vLLM once more. A worker of the fork server has them preloaded already, so there a fork serves as well.
"""

import multiprocessing
import os
import runpy


def main() -> None:
    from vllm.platforms import current_platform
    from vllm.v1.engine import utils

    if current_platform.is_cpu() and "libgomp" in os.environ.get("LD_PRELOAD", ""):
        utils.get_mp_context = lambda: multiprocessing.get_context("fork")
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")


if __name__ == "__main__":
    main()
