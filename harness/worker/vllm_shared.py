"""One engine of vLLM's for all: the OpenAI server runs as ever, and its engine also answers what an offline one does.

The server is vLLM's own command in this process's main thread, as harness/worker/vllm_server.py runs it. The engine
client that it builds is kept, and requests of the planner are answered through it in a thread beside, on the server's
own event loop: a batch is given to the engine at once, without HTTP.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from harness.worker import vllm_server
from harness.worker.vllm import Engine

_Found = TypeVar("_Found")


class Shared(Engine):
    """The engine of a server that runs in this process."""

    engine: Any = None
    _loop: asyncio.AbstractEventLoop
    _failure: BaseException | None = None

    def attend(self, specification: Mapping[str, Any], answer: Callable[[], int]) -> int:
        from vllm.v1.engine.async_llm import AsyncLLM

        status = 1

        def answered() -> None:
            nonlocal status
            status = answer()
            # As a server is told to end: it ends its engine, and then the main thread comes back.
            os.kill(os.getpid(), signal.SIGTERM)

        # Begun once the engine's process is there, so that nothing is forked while another thread runs.
        beside = threading.Thread(target=answered, name="requests", daemon=True)

        def built(engine: Any) -> None:
            self.engine, self._loop = engine, asyncio.get_running_loop()
            beside.start()

        AsyncLLM.__init__ = _then(AsyncLLM.__init__, built)
        sys.argv = [vllm_server.__name__, *specification["arguments"]]
        try:
            vllm_server.main()
        except BaseException as error:
            if self.engine is None:
                self._failure = error
                return answer()
            if beside.is_alive():
                raise
        return status

    def open(self, checkpoint: str, **options: Any) -> dict[str, Any]:
        if self._failure:
            raise self._failure
        # vllm_server has what is compiled beside the model run as it is written, where nothing is compiled.
        self.eager = False
        return self.opened(checkpoint, self.engine.vllm_config, bool(options.get("trust_remote_code")))

    def inspect(self, method: str) -> Any:
        return self._await(self.engine.collective_rpc(method))[0]

    def generate(self, prompts: list[Any], parameters: Any) -> tuple[list[Any], float]:
        from vllm.sampling_params import RequestOutputKind

        # As the offline engine has it: an answer comes once it is whole, and no prompt is known from before.
        parameters.output_kind = RequestOutputKind.FINAL_ONLY
        names = [f"batch-{next(_NUMBERS)}" for _ in prompts]

        async def one(prompt: Any, name: str) -> Any:
            found = None
            async for output in self.engine.generate(prompt, parameters, name):
                found = output
            return found

        async def batch() -> tuple[list[Any], float]:
            await self.engine.reset_prefix_cache()
            start = time.perf_counter()
            outputs = await asyncio.gather(*map(one, prompts, names))
            return outputs, time.perf_counter() - start

        return self._await(batch())

    def _await(self, coroutine: Coroutine[Any, Any, _Found]) -> _Found:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


_NUMBERS = itertools.count()


def _then(make: Callable[..., None], made: Callable[[Any], None]) -> Callable[..., None]:
    """Return a constructor that calls ``made`` with what it has made."""

    @functools.wraps(make)
    def init(self: Any, *arguments: Any, **named: Any) -> None:
        make(self, *arguments, **named)
        made(self)

    return init


BACKEND = Shared
