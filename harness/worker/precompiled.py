"""What vLLM compiled in an earlier start, found again on a CPU; and the seconds that compiling took there.

On a CPU vLLM hands its model to Inductor whole, not in the pieces of its own backend. Torch saves what comes out, and
loads it; but then vLLM asks it to finish loading as its own pieces do, which torch's callable has no word for, and so
it traced and compiled all of it once more at each start (``no attribute 'finalize_loading'``, 0.32). And it counts the
seconds of its own backend alone, and reported none.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

_FINISH = "finalize_loading"
_MONITOR = "monitor_torch_compile"
_MARK = "_harness_whole"


def install() -> None:
    """Have what torch loads be taken, and its time counted; a release that does so by itself goes on as it does."""
    from vllm.compilation import decorators

    load = getattr(torch.compiler, "load_compiled_function", None)
    if load is not None and not hasattr(load, _MARK):
        torch.compiler.load_compiled_function = _finished(load)
    monitor = getattr(decorators, _MONITOR, None)
    if monitor is not None and not hasattr(monitor, _MARK):
        setattr(decorators, _MONITOR, _counted(monitor))


def _finished(load: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def load_compiled_function(*arguments: Any, **named: Any) -> Any:
        found = load(*arguments, **named)
        compiled = getattr(getattr(found, "_artifacts", None), "compiled_fn", None)
        if compiled is not None and not hasattr(compiled, _FINISH):
            # It is whole as it comes.
            setattr(compiled, _FINISH, lambda config: None)
        return found

    setattr(load_compiled_function, _MARK, True)
    return load_compiled_function


def _counted(monitor: Callable[..., AbstractContextManager[None]]) -> Callable[..., AbstractContextManager[None]]:
    @contextlib.contextmanager
    def monitor_torch_compile(vllm_config: Any, *arguments: Any, **named: Any) -> Iterator[None]:
        config = vllm_config.compilation_config
        before, start = config.compilation_time, time.perf_counter()
        with monitor(vllm_config, *arguments, **named):
            yield
        if config.compilation_time == before and not named.get("is_encoder"):
            config.compilation_time += time.perf_counter() - start

    setattr(monitor_torch_compile, _MARK, True)
    return monitor_torch_compile
