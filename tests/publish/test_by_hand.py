"""The tutorial's commands run for a run's rows: what is run, with which variables, and what each took and gave."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.__main__ import main
from harness.base.errors import HarnessError, RecordError
from harness.commands import own_flow, tutorial
from harness.publish.by_hand import ITERATIONS, WARMUP, Bench, run
from harness.records import by_hand
from harness.records.by_hand import ByHand, Ran
from harness.records.run import Run
from harness.records.schema import Measurement
from harness.servers.base import ByHand as Commands
from tests.report.test_budget import MODEL, cell, measured

# Stands in for the commands of a server: says what it was given, and gives a figure.
COMMAND = """
import http.server, json, os, pathlib, sys
what, *given = sys.argv[1:]
words = dict(zip(given, given[1:]))
told = {"given": given, "variables": {n: os.environ.get(n) for n in ("MODEL", "OWN", "VLLM_DISABLE_COMPILE_CACHE")}}
pathlib.Path(f"{what}-{os.getpid()}.told").write_text(json.dumps(told))
if what == "latency":
    pathlib.Path(words["--output-json"]).write_text(json.dumps({"avg_latency": 1.5}))
elif what == "serving":
    assert pathlib.Path(words["--dataset-path"]).read_text() == "[]"
    pathlib.Path(words["--result-filename"]).write_text(json.dumps({"request_throughput": 4.5}))
else:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200); self.end_headers()
    http.server.HTTPServer(("127.0.0.1", int(words["--port"])), Handler).serve_forever()
"""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(
        "#!/bin/sh\ngrep -q max_new_tokens=128 $1 && echo 'Peak Memory Usage: 8.90 GB'\n", encoding="utf-8"
    )
    python.chmod(0o755)
    folder, prompts = tmp_path / "a folder", tmp_path / "prompts.json"
    folder.mkdir()
    prompts.write_text("[]", encoding="utf-8")
    (folder / "command.py").write_text(COMMAND, encoding="utf-8")
    environ = {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}"}
    return Bench(environ, folder, prompts, 60, lambda _: None)


def commands() -> Commands:
    command = f"{sys.executable} command.py"
    return Commands(
        title="vLLM",
        distributions=("vllm",),
        serve=f"{command} serve --model $MODEL",
        latency=f"{command} latency --model $MODEL",
        serving=f"{command} serving --model $MODEL",
        options=("max_model_len",),
    )


def rows(recipe: str = "float8dq") -> list[Measurement]:
    of = cell(recipe)
    flags = {"OWN": "1", "max_model_len": 4096, "shared_engine": True}
    found = [
        measured("peak_memory", 8.9, cell(recipe, "transformers"), max_new_tokens=128),
        measured("latency", 1.0, of, batch_size=1, input_len=256, output_len=256),
        measured("request_throughput", 4.0, of, num_prompts=1, dataset="ShareGPT"),
        measured("request_throughput", 60.0, of, num_prompts=1000, dataset="ShareGPT"),
    ]
    return [it.model_copy(update={"flags": flags, "samples": [1.0] * 8, "warmup": [1.0] * 2}) for it in found]


def told(bench: Bench, what: str) -> list[dict]:
    return [by_hand.json_file(path) for path in sorted(bench.folder.glob(f"{what}-*.told"))]


def test_each_command_is_run_by_itself_and_tells_what_it_took_and_gave(bench: Bench) -> None:
    found = list(run(rows(), Path("/the model"), bench, commands()))
    told_of = [(it.metric, it.parameters.get("num_prompts"), it.value) for it in found]
    assert told_of == [
        ("peak_memory", None, 8.9),
        ("latency", None, 1.5),
        ("server", None, None),
        ("request_throughput", 1, 4.5),
        ("request_throughput", 1000, 4.5),
    ]
    assert all(it.seconds > 0 for it in found)
    (latency,) = told(bench, "latency")
    assert f"--num-iters-warmup {WARMUP} --num-iters {ITERATIONS}" in " ".join(latency["given"]), (
        "not the session's rounds"
    )
    assert "--max-model-len" in latency["given"]
    assert latency["variables"] == {"MODEL": "/the model", "OWN": "1", "VLLM_DISABLE_COMPILE_CACHE": "1"}
    (server,) = told(bench, "serve")
    assert all(f"--port {server['given'][-1]}" in " ".join(it["given"]) for it in told(bench, "serving"))


def test_the_baseline_finds_what_it_compiled(bench: Bench) -> None:
    list(run(rows("bf16")[1:2], Path("/m"), bench, commands()))
    assert told(bench, "latency")[0]["variables"]["VLLM_DISABLE_COMPILE_CACHE"] is None


@pytest.mark.parametrize(("name", "what"), [("latency", "latency 1"), ("serve", "serve"), ("serving", "serving 1")])
def test_a_command_that_fails_is_named_and_nothing_is_left(bench: Bench, name: str, what: str) -> None:
    broken = replace(commands(), **{name: f"{sys.executable} -c 'raise ValueError(\"out of luck\")'"})
    with pytest.raises(HarnessError, match=rf"{what}: ended with status 1 \(ValueError: out of luck\)"):
        list(run(rows()[1:], Path("/m"), bench, broken))


def test_what_was_kept_is_read_again_and_damage_is_named(tmp_path: Path) -> None:
    ran = Ran(metric="latency", model="m", recipe="r", parameters={"batch_size": 1}, command="c", seconds=60, value=1.0)
    kept = ByHand(device="H200", created=1.0, ran=[ran, ran])
    path = kept.write(tmp_path)
    assert by_hand.load(tmp_path) == kept
    assert kept.seconds == 120
    path.write_text(path.read_text(encoding="utf-8").replace("60", "-1"), encoding="utf-8")
    with pytest.raises(RecordError, match=r"by_hand\.json: not what .* run them again"):
        by_hand.load(tmp_path)
    path.unlink()
    assert by_hand.load(tmp_path) is None


def test_the_command_runs_what_a_run_has_rows_of_and_keeps_it_beside_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The baseline's commands first, each with its checkpoint; what ended before a failure is kept too."""
    kept = Run.create(tmp_path / "runs")
    words = ["tutorial", kept.name, "-m", "cpu", "--results", str(tmp_path), "--cache", str(tmp_path / "cache")]
    name = "SmolLM2-135M-Instruct"
    for recipe in ("int8wo", "bf16"):
        of = cell(recipe).model_copy(update={"hardware": "cpu", "model": MODEL.model_copy(update={"name": name})})
        kept.append(measured("latency", 2.0, of, batch_size=1))
    artifacts = SimpleNamespace(
        served=lambda it: SimpleNamespace(folder=Path(it.recipe.name)), prompts=lambda: SimpleNamespace(folder=tmp_path)
    )
    flow = SimpleNamespace(checkpoints=artifacts, close=lambda: None)
    monkeypatch.setattr(own_flow.Flow, "open", lambda *_, **__: flow)
    asked: list[str] = []
    broken: list[str] = []

    def stand_in(own: list[Measurement], checkpoint: Path, *_: object) -> Iterator[Ran]:
        asked.append(str(checkpoint))
        if checkpoint.name in broken:
            raise HarnessError("by hand: it broke")
        common = {"model": name, "recipe": checkpoint.name, "command": "c"}
        yield Ran(metric="latency", parameters=own[0].parameters, seconds=60, value=1.0, **common)

    monkeypatch.setattr(tutorial, "run_by_hand", stand_in)
    for fails, status, ran in (([], 0, ["bf16", "int8wo"]), (["int8wo"], 2, ["bf16"])):
        asked.clear()
        broken[:] = fails
        assert main(words) == status
        assert asked == ["bf16", "int8wo"]
        found = by_hand.load(kept.folder)
        assert found is not None
        assert [it.recipe for it in found.ran] == ran
    assert "latency (batch_size 1): 2, by hand 1 (ratio 2.0000)" in " ".join(capsys.readouterr().out.split())
    assert main([*words, "--recipe", "float8dq"]) == 2, "of which the run has no row"
