"""What vLLM asks of a model's class before it has an engine: asked of a fork of this process.

vLLM asks it of a process of its own, so that no device is initialized in the one that asks, and that one imports all of
vLLM anew: some ten seconds of each first start over an empty cache. A fork has it imported.
"""

from __future__ import annotations

import functools
import os
import pickle
import threading
import traceback
from collections.abc import Callable
from typing import Any

import torch

_RUN = "_run_in_subprocess"


def install() -> None:
    """Have vLLM's registry of models ask forks; a release that asks in another way goes on as it does."""
    from vllm.model_executor.models import registry

    run = getattr(registry, _RUN, None)
    if run is not None and not isinstance(run, functools.partial):
        setattr(registry, _RUN, functools.partial(of_a_fork, run))


def of_a_fork(run: Callable[[Callable[[], Any]], Any], ask: Callable[[], Any]) -> Any:
    """Return what ``ask`` returns in a fork; where there can be none, or it fails, what ``run`` makes of it."""
    if threading.active_count() > 1 or torch.cuda.is_initialized():
        return run(ask)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "wb") as told:
                pickle.dump(ask(), told)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        answer = told.read()
    _, status = os.waitpid(child, 0)
    # Its own way tells in its own words what is wrong.
    return run(ask) if status else pickle.loads(answer)  # noqa: S301 - of this process's own fork
