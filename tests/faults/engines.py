"""ExecuTorch's worker with a real program, and SGLang's worker, whose engine is a stand-in where SGLang is not here.

Of ExecuTorch everything is real. Of SGLang the worker, its protocol, its processes and what it checks of answers are;
the package itself runs on GPUs alone, so a module of that name answers, dies, hangs and lies in its place.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from harness.base.errors import HarnessError, WorkerError
from harness.contract.protocol import Job
from harness.contract.warden import descendants
from harness.runtime.environment import Environment
from harness.runtime.job import Worker
from harness.runtime.store import Store
from tests.faults.campaign import Fault, Scenario

REPOSITORY = Path(__file__).resolve().parents[2]
KEPT = (REPOSITORY / "build" / "faults").resolve() / "cache"
STARTS, ANSWERS = 240, 120
TEXT = "the quick brown fox jumps over the lazy dog " * 40


def _worker(folder: Path, backend: str, environment: Environment, **specification: Any) -> Worker:
    job = Job(backend=backend, specification=specification)
    store = Store(KEPT)
    return Worker(job, environment=environment, store=store, log=folder / f"{backend}.log", label=backend)


@contextlib.contextmanager
def _opened(folder: Path, backend: str, environment: Environment, **specification: Any) -> Any:
    found = _worker(folder, backend, environment, **specification)
    try:
        found.wait_ready(STARTS)
        yield found
    finally:
        found.close()


def _orphans(fault: Fault, mark: str) -> None:
    """Look for what a worker started, which has its variables; after five seconds nothing of it may be there."""
    deadline = time.monotonic() + 5
    left = True
    while left and time.monotonic() < deadline:
        left = False
        for process in psutil.process_iter(["pid"]):
            with contextlib.suppress(psutil.Error, OSError):
                if process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                    left |= mark.encode() in Path(f"/proc/{process.pid}/environ").read_bytes()
        time.sleep(0.05)
    if left:
        fault.broken("orphan", f"a process of {mark} is there")


@contextlib.contextmanager
def _marked() -> Any:
    mark = f"fault-{time.monotonic_ns()}"
    os.environ["HARNESS_FAULT"] = mark
    try:
        yield mark
    finally:
        os.environ.pop("HARNESS_FAULT", None)


# ----------------------------------------------------------------------------------------------------------- ExecuTorch


@functools.cache
def tiny_program() -> tuple[Path, Path]:
    """Return a tiny model's folder and its exported program, made once and kept in build/faults."""
    store = Store(KEPT)
    script = Path(__file__).resolve().parents[1] / "tiny_model.py"

    def write(folder: Path) -> None:
        command = [sys.executable, str(script), str(folder)]
        subprocess.run(command, input=TEXT, text=True, check=True, capture_output=True)

    plain = store.get("plain", {"of": "tests.faults"}, write, label="a model")
    model = plain.folder / "model"

    def build(folder: Path) -> dict[str, Any]:
        with _opened(KEPT, "export", Environment()) as worker:
            given = {"checkpoint": str(model), "context": 96, "trust_remote_code": False}
            found: dict[str, Any] = worker.ask("transformers_route", 600, output=str(folder), **given)
            return found

    made = store.get("program", {"of": plain.key}, build, label="a program")
    return model, made.folder / str(made.facts["file"])


def _asked(worker: Worker, text: Path, timeout: float = ANSWERS) -> object:
    """Return how far the program is from the eager model, to a few digits: threads add in another order."""
    found = worker.ask("agreement", timeout, text=str(text), windows=2, window_tokens=16, logits=None)
    return {name: [round(it, 3) for it in values] for name, values in found["windows"].items()}


STRUCK = ("SIGKILL", "SIGSEGV", "SIGTERM")


def executorch(fault: Fault) -> None:
    """ExecuTorch's worker is killed, stopped, out of memory or has a damaged program: told, and the next is whole."""
    how = fault.draw.choice([*STRUCK, "stopped", "memory", "damaged", "damaged", "no tokenizer"])
    delay = fault.draw.uniform(0, 1.5)
    fault.what = f"ExecuTorch's worker: {how}" + (f" after {delay:.1f} s" if how.startswith("SIG") else "")
    model, program = tiny_program()
    text, file = fault.folder / "text.txt", fault.folder / "model.pte"
    text.write_text(TEXT, encoding="utf-8")
    file.write_bytes(program.read_bytes())
    checkpoint = model
    if how == "damaged":
        fault.what += f", {_cut(fault, file)}"
    if how == "no tokenizer":
        checkpoint = fault.folder / "model"
        checkpoint.mkdir()
        for path in model.iterdir():
            if not path.name.startswith("tokenizer") and path.is_file():
                (checkpoint / path.name).symlink_to(path)
    specification = {"program": str(file), "checkpoint": str(checkpoint), "trust_remote_code": False}
    with _marked() as mark:
        worker = _worker(fault.folder, "executorch", Environment(), **specification)
        try:
            worker.wait_ready(STARTS)
            if how == "memory":
                resource.prlimit(_victim(worker), resource.RLIMIT_AS, (1 << 28, 1 << 28))
            if how.startswith("SIG") or how == "stopped":
                number = signal.SIGSTOP if how == "stopped" else getattr(signal, how)
                threading.Timer(delay, _strike, (_victim(worker), number)).start()
            answer = _asked(worker, text, 8 if how == "stopped" else ANSWERS)
        except WorkerError as error:
            fault.hit = True
            if "Traceback" in str(error):
                fault.broken("traceback", str(error))
        else:
            # It was done before it was struck.
            fault.hit = how not in (*STRUCK, "stopped")
            if how == "damaged" and answer != _reference(text):
                fault.broken("silent pass", f"{answer}")
        finally:
            worker.close()
        _orphans(fault, mark)
    if fault.draw.random() < 0.5:
        specification |= {"program": str(program), "checkpoint": str(model)}
        with _opened(fault.folder, "executorch", Environment(), **specification) as again:
            if _asked(again, text) != _reference(text):
                fault.broken("not complete", "the next worker answers otherwise")


@functools.cache
def _answer(text: str) -> object:
    model, program = tiny_program()
    file = KEPT / "text.txt"
    file.write_text(text, encoding="utf-8")
    given = {"program": str(program), "checkpoint": str(model), "trust_remote_code": False}
    with _opened(KEPT, "executorch", Environment(), **given) as worker:
        return _asked(worker, file)


def _reference(text: Path) -> object:
    return _answer(text.read_text(encoding="utf-8"))


def _cut(fault: Fault, file: Path) -> str:
    """Damage a program otherwise than in its weights alone, which only the store's digest can tell."""
    how, data = fault.draw.choice(["emptied", "removed", "cut off", "cut off", "garbage"]), file.read_bytes()
    file.unlink()
    if how != "removed":
        kept = {"emptied": b"", "garbage": fault.draw.randbytes(9999)}
        file.write_bytes(kept.get(how, data[: fault.draw.randrange(1, len(data) // 2)]))
    return how


def _victim(worker: Worker) -> int:
    """Return the process that has the backend: below what watches it, where something does."""
    below = descendants(worker.process.pid)
    return max(below, key=lambda pid: psutil.Process(pid).memory_info().rss, default=worker.process.pid)


def _strike(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


# --------------------------------------------------------------------------------------------------------------- SGLang

ENGINE = """
import multiprocessing, os, signal, sys, time
from types import SimpleNamespace
HOW = os.environ["HARNESS_FAULT_HOW"]
def child():
    time.sleep(600)
class Engine:
    def __init__(self, **given):
        if HOW == "raises at start":
            raise RuntimeError("planted")
        if HOW == "dies at start":
            os.kill(os.getpid(), signal.SIGKILL)
        if HOW == "out of memory at start":
            raise MemoryError("planted")
        self.child = multiprocessing.get_context("fork").Process(target=child)
        self.child.start()
        self.send_to_rpc = SimpleNamespace(RCVTIMEO=0)
        self.server_args = SimpleNamespace(dtype="bfloat16")
        self._scheduler_init_result = SimpleNamespace(scheduler_infos=[{"max_total_num_tokens": 9}])
        if HOW == "child fails at start":
            given["custom_sigquit_handler"](signal.SIGQUIT, None)
    def collective_rpc(self, what, file=""):
        if HOW == "tells nothing":
            return
        text = {"tells half": "[1,", "tells deep": "[" * 100000}.get(HOW, "{}")
        with open(file, "w") as told:
            told.write(text)
    def generate(self, input_ids, sampling_params, **_):
        if HOW == "hangs":
            time.sleep(600)
        if HOW == "raises":
            raise ValueError("planted")
        if HOW == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if HOW == "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        if HOW == "ends":
            os._exit(1)
        if HOW == "no memory":
            raise MemoryError("planted")
        count = sampling_params["max_new_tokens"] - (HOW == "short answers")
        found = [{"meta_info": {"completion_tokens": count}} for _ in input_ids]
        if HOW == "fewer answers":
            found = found[1:]
        if HOW == "wrong answers":
            found = [{"meta_info": {}} for _ in input_ids]
        if HOW == "no list":
            return None
        return found
    def shutdown(self):
        if HOW == "does not shut down":
            time.sleep(600)
        if HOW != "leaves its child":
            self.child.kill()
"""
MANAGER = """
class SignalHandler:
    pass
"""
AT_START = ("raises at start", "dies at start", "out of memory at start", "child fails at start")
TELLS = ("tells nothing", "tells half", "tells deep")
ASKED = (
    *("hangs", "raises", "dies", "crashes", "ends", "no memory"),
    *("short answers", "fewer answers", "wrong answers", "no list"),
)
SOUND = ("leaves its child", "does not shut down")


def sglang(fault: Fault) -> None:
    """SGLang's worker over an engine that dies, hangs, lies or leaves its processes behind."""
    how = fault.draw.choice([*AT_START, *TELLS, *ASKED, *SOUND])
    fault.what = f"SGLang's worker, whose engine {how}"
    overlay = fault.folder / "site"
    for name, body in (("entrypoints/engine", ENGINE), ("managers/tokenizer_manager", MANAGER)):
        file = overlay / "sglang" / "srt" / f"{name}.py"
        file.parent.mkdir(parents=True)
        for folder in (overlay / "sglang", overlay / "sglang" / "srt", file.parent):
            (folder / "__init__.py").touch()
        file.write_text(body, encoding="utf-8")
    checkpoint = fault.folder / "model"
    checkpoint.mkdir()
    config = {"model_type": "llama", "vocab_size": 64, "architectures": ["LlamaForCausalLM"]}
    (checkpoint / "config.json").write_text(json.dumps(config), encoding="utf-8")
    environment = Environment(overlay=overlay)
    os.environ["HARNESS_FAULT_HOW"] = how
    due = {"out of memory at start": "out_of_memory", "no memory": "out_of_memory", "hangs": "timeout"}.get(how)
    try:
        with _marked() as mark:
            worker = _worker(fault.folder, "sglang", environment, checkpoint=str(checkpoint), recipe=None)
            try:
                worker.wait_ready(STARTS)
                timeout = 2 if how == "hangs" else ANSWERS
                answer = worker.ask("latency", timeout, batch_size=3, input_len=4, output_len=5)
            except WorkerError as error:
                fault.hit = True
                if how in SOUND:
                    fault.broken("other", f"it failed: {error}")
                if due and error.kind != due:
                    fault.broken("other", f"kind {error.kind} where {due} is due: {error}")
                if "Traceback" in str(error):
                    fault.broken("traceback", str(error))
            else:
                fault.hit = how in SOUND
                if how not in SOUND or not 0 <= answer["seconds"] < 60:
                    fault.broken("silent pass", f"{answer}")
            finally:
                with contextlib.suppress(HarnessError):
                    worker.close()
            _orphans(fault, mark)
    finally:
        os.environ.pop("HARNESS_FAULT_HOW", None)


SCENARIOS = [
    Scenario("worker: ExecuTorch's, with a real program", executorch, 2, quick=False),
    Scenario("worker: SGLang's, over a stand-in of its package", sglang, 4),
]
