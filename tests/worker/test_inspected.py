"""What vLLM asks of a model's class is answered by a fork as by the process that vLLM starts for it."""

from __future__ import annotations

import json

from tests.conftest import RunCode

FORKED = """
import json, os, threading, time
from harness.worker import inspected

asked = []

def run(ask):
    asked.append(1)
    return "as vLLM does"

def fails():
    raise ValueError("no such model")

here = os.getpid()
found = [inspected.of_a_fork(run, lambda: os.getpid() != here), inspected.of_a_fork(run, fails)]
found.append(inspected.of_a_fork(run, lambda: "x" * 1_000_000) == "x" * 1_000_000)
beside = threading.Thread(target=time.sleep, args=(5,), daemon=True)
beside.start()
found.append(inspected.of_a_fork(run, lambda: "of a fork"))
print(json.dumps([found, len(asked)]))
"""
REAL = """
import json
from vllm.model_executor.models import registry
from harness.worker import inspected

own = registry._run_in_subprocess
inspected.install()
inspected.install()
asked = registry._run_in_subprocess
assert asked.func is inspected.of_a_fork and asked.args == (own,)
registry._run_in_subprocess = lambda ask: asked.func(lambda _: "not of a fork", ask)
model = registry.ModelRegistry.models["LlamaForCausalLM"]
told = registry._run_in_subprocess(lambda: registry._ModelInfo.from_model_cls(model.load_model_cls()))
print(json.dumps([told == registry._ModelInfo.from_model_cls(model.load_model_cls()), told.architecture]))
"""


def test_it_is_asked_of_a_fork_and_as_ever_where_that_fails_or_another_thread_runs(run_code: RunCode) -> None:
    done = run_code(FORKED)
    assert json.loads(done.stdout.splitlines()[-1]) == [[True, "as vLLM does", True, "as vLLM does"], 2], done.stderr
    assert "ValueError: no such model" in done.stderr


def test_a_fork_answers_of_a_real_model_what_the_class_says(run_code: RunCode) -> None:
    done = run_code(REAL)
    assert json.loads(done.stdout.splitlines()[-1]) == [True, "LlamaForCausalLM"], done.stderr
