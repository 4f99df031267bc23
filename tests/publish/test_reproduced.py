"""The card of a run on this machine is reproduced by running it: what it says starts, ends well and measures.

Its programs are forked from processes that have imported vLLM and Transformers, so that none waits for it again; what
is run, and with which words, is the card's. Its records are such as a session here has; the slow test is of a session
itself. The parsers are asked of the commands of every card.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from harness.matrix.plan import Matrix
from harness.runtime.environment import Environment
from harness.runtime.job import free_port
from harness.runtime.process import ForkServer, Process
from harness.runtime.sources import SHAREGPT_FILE
from harness.runtime.store import Store
from tests.conftest import TinyModel, run_forked
from tests.noticing.standing import STANDING
from tests.publish.test_commands import (
    REPOSITORY,
    card,
    commands,
    of_every_card,
    session,
    started_with,
    without_variables,
)

pytestmark = pytest.mark.models

PARSE = Path(__file__).with_name("parse.py")
SECONDS = 900


@pytest.fixture(scope="module")
def families(
    kept_store: Store, forks: ForkServer, standing: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, ForkServer]]:
    """What the card's programs are forked from: with vLLM's imports, and with Transformers'."""
    environ = Environment().environ(kept_store) | {"OMP_NUM_THREADS": "1", STANDING: str(standing)}
    environ["PYTHONPATH"] = os.pathsep.join([environ["PYTHONPATH"], str(repository)])
    log = tmp_path_factory.mktemp("vllm") / "imports.log"
    vllm = ForkServer("vllm", python=sys.executable, environ=environ, log=log)
    yield {"vllm": vllm, "transformers": forks}
    vllm.close()


class Reader:
    """Somebody who has a card, and the models that it names as ``folders`` here: its own, then the others."""

    def __init__(self, text: str, folders: Mapping[str, Path], home: Path, families: Mapping[str, ForkServer]) -> None:
        self.card, self.folders, self.home, self._families = text, folders, home, families
        self.commands = list(commands(text, next(iter(folders))))
        self._started = 0

    def local(self, word: str) -> str:
        # The longest name first: one may be the beginning of another.
        for name in sorted(self.folders, key=len, reverse=True):
            word = word.replace(name, str(self.folders[name]))
        return word

    def those(self, *words: str) -> list[list[str]]:
        """Return the commands that have these words, each once, for the machine here."""
        found = [list(it) for it in dict.fromkeys(map(tuple, self.commands)) if all(word in it for word in words)]
        return [[self.local(word) for word in it] for it in found]

    def run(self, words: Sequence[str], family: str = "vllm") -> str:
        """Run one of the card's programs to its end and return what it printed."""
        folder, process = self._start(words, family)
        status = process.wait(SECONDS)
        process.end()
        said = "".join((folder / name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
        assert status == 0, f"{words}\n{said[-3000:]}"
        return said

    def script(self, text: str) -> str:
        """Run Python of the card in a process that has Transformers loaded, and return what it printed."""
        return self.run(["python", "-c", text], "transformers")

    def scripts(self, part: str) -> list[str]:
        """Return the Python of the card that has some text in it."""
        tokens = MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(self.card)
        found = [token.content for token in tokens if token.type == "fence" and token.info == "Py"]
        return [self.local(text) for text in found if part in text]

    def serve(self, words: Sequence[str], port: int) -> Process:
        """Start the card's server, but for the port, which is the machine's."""
        folder, process = self._start([*words, "--host", "127.0.0.1", "--port", str(port)], "vllm")
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            assert process.exit_code() is None, (folder / "stderr").read_text(errors="replace")[-3000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    return process
            except OSError:
                time.sleep(0.2)
        raise AssertionError("the server did not get ready")

    def _start(self, words: Sequence[str], family: str) -> tuple[Path, Process]:
        """Start ``python -c CODE ...`` or ``python -m MODULE ...``, with the variables that stand before it."""
        python, how, what, *arguments = without_variables(list(words))
        assert (python, how in ("-c", "-m")) == ("python", True)
        variables = dict(word.split("=", 1) for word in words[: len(words) - len(arguments) - 3])
        code = what if how == "-c" else f"import runpy; runpy.run_module({what!r}, run_name='__main__', alter_sys=True)"
        self._started += 1
        folder = self.home / f"program-{self._started}"
        folder.mkdir()
        begin = f"import os; os.environ.update({variables!r}); os.chdir({str(self.home)!r})\n"
        (folder / "code.py").write_text(begin + code, encoding="utf-8")
        (folder / "argv.json").write_text(json.dumps(["-c", *arguments]), encoding="utf-8")
        return folder, self._families[family].start("tests.forked", [str(folder)], log=folder / "log")


def reproduced(reader: Reader) -> dict[str, list[float]]:
    """Run all that a card has but for what downloads, and return what it measured, by metric."""
    found: dict[str, list[float]] = {"latency": [], "serving": [], "memory": [], "chat": []}
    for words in reader.those("--num-iters"):
        found["latency"].append(float(re.findall(r"Avg latency: ([\d.]+) seconds", reader.run(words))[-1]))
    for words in reader.those("--max-model-len"):
        if "--num-iters" in words:
            continue
        model = words[words.index("--model") + 1]
        port = free_port()
        server = reader.serve(words, port)
        try:
            for chat in reader.those("curl") if model == str(next(iter(reader.folders.values()))) else ():
                found["chat"].append(asked(chat, port))
            for client in reader.those("--num-prompts"):
                if client[client.index("--model") + 1] == model:
                    said = reader.run([*client, "--host", "127.0.0.1", "--port", str(port)])
                    found["serving"].append(float(re.findall(r"Request throughput \(req/s\):\s+([\d.]+)", said)[-1]))
        finally:
            server.end()
    for script in reader.scripts("Peak Memory Usage"):
        said = reader.script(script)
        found["memory"].append(float(re.findall(r"Peak Memory Usage: ([\d.]+) GB", said)[-1]))
    for script in reader.scripts("skip_special_tokens"):
        assert reader.script(script.replace("max_new_tokens=256", "max_new_tokens=8")).strip()
    return found


def asked(chat: Sequence[str], port: int) -> float:
    """Ask the server what the card's curl asks, but for fewer tokens, and return the tokens of its answer."""
    at = [word.replace("localhost:8000", f"127.0.0.1:{port}").replace(": 1024", ": 16") for word in chat]
    done = subprocess.run(
        [*at, "--silent", "--noproxy", "*"], capture_output=True, text=True, timeout=SECONDS, check=True
    )
    told = json.loads(done.stdout)
    assert told["choices"][0]["message"]["content"]
    return float(told["usage"]["completion_tokens"])


def test_servers_and_benchmarks_and_tasks_are_read_by_their_own_parsers(
    suites_matrix: Matrix, families: dict[str, ForkServer], tmp_path: Path
) -> None:
    asked = started_with(of_every_card(suites_matrix), "vllm", "python", "lm_eval")
    given = [*asked, ["vllm", "serve", "x", "--inputs", "sharegpt/1"], ["lm_eval", "--model", "hf", "--no"]]
    parse = "import io, runpy, sys\nsys.stdin = io.StringIO(sys.argv[1])\n"
    parse += f"runpy.run_path({str(PARSE)!r}, run_name='__main__')"
    done = run_forked(families["vllm"], tmp_path, parse, json.dumps(given))
    assert done.returncode == 0, done.stderr
    *read, inputs, unknown = json.loads(done.stdout)
    assert "unrecognized arguments: --inputs" in inputs["refused"], "it is a parser, and refuses"
    assert "refused" in unknown
    by_words = {tuple(words): found for words, found in zip(asked, read, strict=True)}
    for words, found in by_words.items():
        assert "refused" not in found, (words, found)
    served = {found.get("model_tag", "None") for words, found in by_words.items() if words[:2] == ("vllm", "serve")}
    assert served == {REPOSITORY}
    lengths = [found for found in by_words.values() if found.get("num_iters")]
    assert {(it["input_len"], it["output_len"], it["batch_size"]) for it in lengths} == {(256, 256, 1)}
    tasks = {found["tasks"]: found for words, found in by_words.items() if words[0] == "lm_eval"}
    assert tasks.keys() == {"['hellaswag']", "['gsm8k']"}, "of a system's text a digest is known alone"
    gsm8k = tasks["['gsm8k']"]
    assert (gsm8k["limit"], gsm8k["num_fewshot"], gsm8k["apply_chat_template"]) == (20, 5, True)
    assert gsm8k["gen_kwargs"] == "{'max_gen_toks': 8, 'top_k': 1}"


def test_the_card_of_a_session_here_is_reproduced_by_running_it(
    tiny_model: TinyModel, suites_matrix: Matrix, sharegpt_folder: Path, families: dict[str, ForkServer], tmp_path: Path
) -> None:
    """The checkpoint that the others load is the one that the card's own recipe makes."""
    shutil.copyfile(sharegpt_folder / SHAREGPT_FILE, tmp_path / SHAREGPT_FILE)
    quick = {"batch_size": 1, "input_len": 32, "output_len": 8}
    records = session(suites_matrix, "cpu", tasks=())
    text = card([it.model_copy(update={"parameters": quick}) if it.metric == "latency" else it for it in records])
    made = tmp_path / "Tiny-int8wo"
    reader = Reader(text, {"me/Tiny-int8wo": made, "them/Tiny": tiny_model.folder}, tmp_path, families)
    (recipe,) = reader.scripts("quantized_model.save_pretrained")
    reader.script(recipe)
    found = reproduced(reader)
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys(found, 1)
    assert all(value > 0 for values in found.values() for value in values)


@pytest.mark.slow
def test_the_card_of_a_run_here_is_reproduced_by_running_it(
    tiny_model: TinyModel,
    kept_store: Store,
    sharegpt_folder: Path,
    families: dict[str, ForkServer],
    repository: Path,
    tmp_path: Path,
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
    text = (out / "README.md").read_text(encoding="utf-8")
    found = reproduced(Reader(text, {"me/it-int8wo": out, "me/it": tiny_model.folder}, tmp_path, families))
    assert {name: len(values) for name, values in found.items()} == {"latency": 2, "serving": 2, "memory": 1, "chat": 1}
    assert all(value > 0 for values in found.values() for value in values)
