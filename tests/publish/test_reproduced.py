"""The card of a run on this machine is reproduced by running it: what it says starts, ends well and measures.

Marked slow: an engine is started for each of the card's commands, as its readers would, which takes minutes. What
test_commands.py asks of the parsers is asked every time.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from harness.runtime.job import free_port
from harness.runtime.sources import SHAREGPT_FILE
from harness.runtime.store import Store
from tests.conftest import TinyModel
from tests.publish.test_commands import commands, without_variables

pytestmark = [pytest.mark.slow, pytest.mark.models]

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
SECONDS = 900


class Reader:
    """Somebody who has a card, and the models that it names as ``folders`` here: its own, then the others."""

    def __init__(self, card: str, folders: Mapping[str, Path], home: Path) -> None:
        self.card, self.folders, self.home = card, folders, home
        self.commands = list(commands(card, next(iter(folders))))
        threads = str(len(os.sched_getaffinity(0)))
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = os.environ | OFFLINE | {"PATH": path, "OMP_NUM_THREADS": threads}

    def local(self, word: str) -> str:
        # The longest name first: one may be the beginning of another.
        for name in sorted(self.folders, key=len, reverse=True):
            word = word.replace(name, str(self.folders[name]))
        return word

    def those(self, *words: str) -> list[list[str]]:
        """Return the commands that have these words, each once, for the machine here."""
        found = [list(it) for it in dict.fromkeys(map(tuple, self.commands)) if all(word in it for word in words)]
        return [[self.local(word) for word in it] for it in found]

    def run(self, words: Sequence[str]) -> str:
        variables = dict(word.split("=", 1) for word in words[: len(words) - len(without_variables(list(words)))])
        done = subprocess.run(
            without_variables(list(words)),
            env=self.environment | variables,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def scripts(self, part: str) -> list[str]:
        """Return the Python of the card that has some text in it."""
        tokens = MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(self.card)
        found = [token.content for token in tokens if token.type == "fence" and token.info == "Py"]
        return [self.local(text) for text in found if part in text]

    def serve(self, words: Sequence[str], port: int) -> subprocess.Popen[bytes]:
        """Start the card's server, but for the port, which is the machine's."""
        variables = dict(word.split("=", 1) for word in words[: len(words) - len(without_variables(list(words)))])
        command = [*without_variables(list(words)), "--host", "127.0.0.1", "--port", str(port)]
        with (self.home / "server.log").open("wb") as log:
            started = subprocess.Popen(
                command, env=self.environment | variables, cwd=self.home, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            assert started.poll() is None, (self.home / "server.log").read_text(errors="replace")[-3000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    return started
            except OSError:
                time.sleep(1)
        raise AssertionError("the server did not get ready")


def reproduced(reader: Reader) -> dict[str, list[float]]:
    """Run all that a card has but for what downloads, and return what it measured, by metric."""
    found: dict[str, list[float]] = {"latency": [], "serving": [], "memory": [], "chat": []}
    for words in reader.those("--num-iters"):
        found["latency"].append(float(re.findall(r"Avg latency: ([\d.]+) seconds", reader.run(words))[-1]))
    for words in reader.those("--max-model-len"):
        if "--num-iters" in words:
            continue
        port = free_port()
        server = reader.serve(words, port)
        try:
            for chat in reader.those("curl"):
                at = [word.replace("localhost:8000", f"127.0.0.1:{port}") for word in chat]
                told = json.loads(reader.run([*at, "--noproxy", "*"]))
                assert told["choices"][0]["message"]["content"]
                found["chat"].append(float(told["usage"]["completion_tokens"]))
            for client in reader.those("--num-prompts"):
                said = reader.run([*client, "--host", "127.0.0.1", "--port", str(port)])
                found["serving"].append(float(re.findall(r"Request throughput \(req/s\):\s+([\d.]+)", said)[-1]))
        finally:
            server.terminate()
            server.wait(60)
    for script in reader.scripts("Peak Memory Usage"):
        said = reader.run([sys.executable, "-c", script])
        found["memory"].append(float(re.findall(r"Peak Memory Usage: ([\d.]+) GB", said)[-1]))
    for script in reader.scripts("skip_special_tokens"):
        assert reader.run([sys.executable, "-c", script]).strip()
    return found


def test_the_card_of_a_run_here_is_reproduced_by_running_it(
    tiny_model: TinyModel, kept_store: Store, sharegpt_folder: Path, repository: Path, tmp_path: Path
) -> None:
    results, out = tmp_path / "results", tmp_path / "out"
    command = [sys.executable, "-m", "pytest", "suites", "-m", "cpu", "--model", str(tiny_model.folder)]
    command += ["--recipe", "int8wo", "--cache", str(kept_store.root), "--data", str(sharegpt_folder)]
    command += ["--results", str(results), "-k", "checkpoint or peak_memory or latency or serving"]
    subprocess.run(command, cwd=repository, check=True, capture_output=True, timeout=SECONDS)
    publish = [sys.executable, "-m", "harness", "publish", f"{tiny_model.folder.name}:int8wo", "--repo", "me/it-int8wo"]
    publish += ["--runs", str(results / "runs"), "--dry-run", str(out), "--base-model", "me/it", "--allow", "noisy"]
    done = subprocess.run(publish, cwd=repository, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    shutil.copyfile(sharegpt_folder / SHAREGPT_FILE, tmp_path / SHAREGPT_FILE)
    card = (out / "README.md").read_text(encoding="utf-8")
    found = reproduced(Reader(card, {"me/it-int8wo": out, "me/it": tiny_model.folder}, tmp_path))
    assert {name: len(values) for name, values in found.items()} == {"latency": 2, "serving": 2, "memory": 1, "chat": 1}
    assert all(value > 0 for values in found.values() for value in values)
