"""A program is what its checkpoint is: here, emulated on ARM, in ExecuTorch's runner and under a task."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

import pytest

from harness.base.files import file_digest
from harness.devices import Adb, Host, Qemu, Request
from harness.measure.mobile import metrics_on
from harness.runtime.environment import Environment
from harness.runtime.store import Artifact, Store
from tests import needs
from tests.devices.conftest import CONTEXT

pytestmark = needs.package("executorch")

_IN_PROCESS = """
import json, random, sys
from types import SimpleNamespace
import torch
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer
from harness.worker.program import Program, ProgramLM

file, checkpoint, prompt, wanted = sys.argv[1:]
model = ProgramLM(Program(file), AutoTokenizer.from_pretrained(checkpoint))
asked = SimpleNamespace(args=(prompt, {"until": [], "max_gen_toks": int(wanted)}))
(text,) = model.generate_until([asked])
draw, worst = random.Random(0), 0.0
for _ in range(20):
    shared = [draw.randrange(3, 300) for _ in range(draw.randrange(1, 60))]
    model.program.logits(shared)
    tokens = shared + [draw.randrange(3, 300) for _ in range(draw.randrange(1, 30))]
    start = draw.randrange(len(tokens))
    reused = torch.log_softmax(model.program.logits(tokens, start), -1)
    model.program._cached = []
    fresh = torch.log_softmax(model.program.logits(tokens, start), -1)
    assert reused.shape == fresh.shape == (len(tokens) - start, model.program.vocabulary)
    worst = max(worst, float((fresh.exp() * (fresh - reused)).sum(-1).mean()))
def answered(**options):
    return model.generate_until([SimpleNamespace(args=(prompt, {"until": [], **options}))])[0]
told = {"short": [answered(**{name: 3}) for name in ("max_gen_toks", "max_new_tokens", "max_tokens")], "refused": []}
for options in ({}, {"max_gen_toks": model.program.context}):
    try:
        answered(**options)
    except ValueError as error:
        told["refused"].append(str(error))
# As lm-evaluation-harness's own model takes texts: with a beginning-of-text token, added by the tokenizer or not.
plain = AutoTokenizer.from_pretrained(checkpoint)
begins = AutoTokenizer.from_pretrained(checkpoint, bos_token=plain.convert_ids_to_tokens(5))
adds = AutoTokenizer.from_pretrained(checkpoint, bos_token=begins.bos_token)
adds._tokenizer.post_processor = TemplateProcessing(single="B $A", special_tokens=[("B", 5)])
for tokenizer in (plain, begins, adds):
    ours = ProgramLM(model.program, tokenizer)
    theirs = SimpleNamespace(custom_prefix_token_id=None, tokenizer=tokenizer, add_bos_token=None)
    theirs.prefix_token_id = HFLM.prefix_token_id.fget(theirs)
    assert ours.prefix_token_id == theirs.prefix_token_id
    for string in ("a text", tokenizer.decode(theirs.prefix_token_id) + "a text"):
        for special in (None, True, False):
            assert ours.tok_encode(string, special) == HFLM.tok_encode(theirs, string, special), (string, special)
assert ProgramLM(model.program, adds).tok_encode("a")[0] == 5 == ProgramLM(model.program, begins).prefix_token_id
tokens = model.tok_encode(prompt)
generated = []
for _ in range(int(wanted)):
    generated.append(int(model.program.logits(tokens + generated, len(tokens + generated) - 1)[-1].argmax()))
decoded = model.tokenizer.decode(generated, skip_special_tokens=True)
told |= {"three": model.tokenizer.decode(generated[:3], skip_special_tokens=True)}
print(json.dumps({"text": text, "tokens": tokens, "generated": generated, "worst": worst, "decoded": decoded} | told))
"""

# The published route over one layer of random weights, and what Transformers predicts greedily with the same weights.
_PUBLISHED = """
import json, sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from harness.worker.export import Export

folder, output = sys.argv[1:]
sizes = dict(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=1, max_position_embeddings=64)
heads = dict(num_attention_heads=2, num_key_value_heads=1, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True)
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.3)).eval()
model.save_pretrained(folder)
prompt = torch.tensor([[10, 11, 12, 13]])
greedy = model.generate(prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False)[0, 4:].tolist()
progress = []
export = Export(progress.append)
facts = export.llama_route(folder, output, 64, "smollm2", False)
with open(output + "/said.json", "w") as file:
    json.dump({"progress": progress, "facts": facts, "greedy": greedy}, file)
"""


@pytest.fixture(scope="module")
def published(kept_store: Store, repository: Path, run_code: Any) -> Path:
    """A folder with a program of the published route, and ``said.json``: progress, facts, greedy tokens."""

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as checkpoint:
            done = run_code(_PUBLISHED, checkpoint, str(folder))
        assert done.returncode == 0, done.stderr[-2000:]

    names = ("export.py", "lowering.py", "llama_export.py")
    code = [file_digest(repository / "harness" / "worker" / name) for name in names]
    key = {"script": _PUBLISHED, "code": code, "packages": Environment().decisive()}
    return kept_store.get("test-published", key, build, label="the tests' published program").folder


def test_the_published_route(host: Host, published: Path) -> None:
    """Its stages are told as they begin, each with its own CPU time, and here it predicts what Transformers does."""
    said = json.loads((published / "said.json").read_text(encoding="utf-8"))
    steps = ["load the checkpoint", "torch.export", "lower to XNNPACK", "to ExecuTorch", "write"]
    assert [line["done"] for line in said["progress"]] == [f"{step}: {index}" for index, step in enumerate(steps)]
    spent = said["facts"]["export_steps"]
    assert list(spent) == steps
    assert max(spent.values()) < said["facts"]["export_cpu_seconds"] == pytest.approx(sum(spent.values()))
    assert spent["lower to XNNPACK"] > 0.1
    reading = host.run(published / "model.pte", Request([10, 11, 12, 13], 5, 0, 1), None, 60)
    assert reading.tokens == said["greedy"]
    assert reading.context == 64


def test_what_is_measured_where(kept_store: Store) -> None:
    """An emulator gives no time, a process that loads PyTorch no memory, llama_main no memory either."""
    here, emulated = Host(kept_store, Environment()), Qemu(kept_store, Environment())
    rates = {"prefill_throughput", "decode_throughput", "generate_throughput"}
    assert metrics_on(emulated, "transformers") == ["peak_memory"]
    assert {*metrics_on(here, "transformers")} == {"peak_memory", "load_time", *rates}
    assert {*metrics_on(here, "llama")} == rates
    assert {*metrics_on(Adb("any", Path("llama_main")), "llama")} == {"load_time", *rates}
    assert {*metrics_on(Adb("any", Path("runner")), "llama")} == {"peak_memory", "load_time", *rates}


def test_report_of_the_export(program: Artifact, pte: Path) -> None:
    """The facts say what the file is, that every matrix product was delegated, and what the export cost."""
    facts = program.facts
    assert facts["program_bytes"] == pte.stat().st_size
    assert facts["context"] == CONTEXT
    assert facts["arithmetic_share"] == 1.0
    assert facts["fallback_products"] == {}
    assert facts["delegated_nodes"] > 0 < facts["fallback_nodes"]
    assert facts["delegates"].keys() == {"XnnpackBackend"}
    assert facts["quantized_layers"] == facts["layers"] == 2 * 7 + 2
    assert facts["widened_to_float32"]
    assert facts["export_cpu_seconds"] == pytest.approx(sum(facts["export_steps"].values()))
    assert facts["export_peak_bytes"] > pte.stat().st_size


def test_program_holds_four_bits_a_weight(program: Artifact, quantized: Artifact) -> None:
    """Linear weights take half a byte and a scale for 32 of them, the embedding one byte, and little else is there."""
    sizes = {"embedding": 0, "linear": 0, "head": 0}
    for weight in quantized.facts["weights"].values():
        if weight["kind"] in sizes:
            sizes[weight["kind"]] += weight["shape"][0] * weight["shape"][1]
    least = sizes["embedding"] + (sizes["linear"] + sizes["head"]) * (0.5 + 2 / 32)
    assert least < program.facts["program_bytes"] < 1.1 * least


def test_here_and_on_arm(host: Host, qemu: Qemu, pte: Path, executorch: Any, text: str, tmp_path: Path) -> None:
    """Both runners say what they did, write the same greedy tokens, and agree with the eager model.

    Random weights have many almost equal most likely tokens: which one is first says nothing of them.
    """
    sizes = {"text": text, "windows": 2, "window_tokens": 48}
    ids = executorch("windows", **sizes)["windows"]
    answers = []
    for device in (host, qemu):
        logits = tmp_path / device.name
        reading = device.run(pte, Request(ids[0][:12], 6, 1, 2, ids), logits, 300)
        assert (reading.prompt_tokens, reading.new_tokens, reading.context, reading.windows) == (12, 6, CONTEXT, 2)
        assert len(reading.prefill_rates) == len(reading.decode_rates) == 3
        assert reading.load_seconds
        assert reading.peak_bytes
        assert reading.threads
        assert pte.stat().st_size * 0.5 < reading.peak_bytes < pte.stat().st_size + 200e6
        answers.append(reading.tokens)
        found = executorch("agreement", logits=str(logits), **sizes)
        assert statistics.fmean(found["windows"]["kl"]) < 0.01
        assert found["windows"]["nll"] == pytest.approx(found["windows"]["eager_nll"], rel=1e-2)
    assert answers[0] == answers[1]
    assert not qemu.speed
    assert qemu.device().detail["emulated"]


def test_llm_runner(executorch: Any, text: str) -> None:
    """ExecuTorch's own runner gives its statistics for every round, warm-up included."""
    rounds = executorch("run", text=text, prompt_tokens=64, new_tokens=24, warmup=1, rounds=2)["rounds"]
    assert len(rounds) == 3
    for one in rounds:
        assert one["prefill_token_per_sec"] > 0 < one["decode_token_per_sec"]
        assert one["inference_start_ms"] <= one["first_token_ms"] <= one["inference_end_ms"]


def test_operators(executorch: Any, text: str) -> None:
    """The profile holds what was delegated and what was not, longest first."""
    rows = executorch("profile", text=text, prompt_tokens=16, new_tokens=3)["operators"]
    spent = [row[1] for row in rows]
    assert spent == sorted(spent, reverse=True)
    names = {row[0] for row in rows}
    assert "DELEGATE_CALL" in names
    assert any(name.startswith("native_call_") for name in names)


def test_tasks_as_the_eager_model(executorch: Any, documents: Path) -> None:
    """The program scores every document of a task as its eager model in float32 does, prefixes shared or not."""
    asked = {"names": ["hellaswag", "lambada_openai"], "data": str(documents), "limit": None}
    program, eager = (executorch("tasks", eager=eager, **asked) for eager in (False, True))
    for name in asked["names"]:
        assert len(program[name]["documents"]) == len(eager[name]["documents"])
        for metric, value in program[name]["metrics"].items():
            # Of random weights it is astronomical: what is alike are the nats that it is the exponential of.
            scale, share = (math.log, 0.001) if metric == "perplexity" else (float, 0.005)
            assert scale(value) == pytest.approx(scale(eager[name]["metrics"][metric]), rel=share), metric
    assert program["hellaswag"]["truncated"] == 0


def test_long_texts(executorch: Any, tmp_path: Path) -> None:
    """Program and eager model lose the same beginnings of texts that are too long, and say of how many documents."""
    texts = [
        "A short one fits.",
        "Which one of them is long? " * 8 + "this",
        "Which one of them is longer? " * 9 + "that",
    ]
    (tmp_path / "lambada_openai.jsonl").write_text("\n".join(json.dumps({"text": it}) for it in texts))
    asked = {"names": ["lambada_openai"], "data": str(tmp_path), "limit": None}
    program, eager = (executorch("tasks", eager=eager, **asked)["lambada_openai"] for eager in (False, True))
    assert program["truncated"] == eager["truncated"] == 2
    assert program["metrics"]["perplexity"] == pytest.approx(eager["metrics"]["perplexity"], rel=0.02)


def test_generation_and_a_reused_cache(
    program: Artifact, quantized: Artifact, pte: Path, host: Host, run_code: Any
) -> None:
    """Generating for a task is the runner's greedy text, and what the KV cache holds needs no second computing."""
    prompt, wanted = "Name three colours.", 12
    done = run_code(_IN_PROCESS, str(pte), str(quantized.folder), prompt, str(wanted))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    reading = host.run(pte, Request(found["tokens"], wanted, 0, 1), None, 60)
    assert found["generated"] == reading.tokens
    assert found["text"] == found["decoded"]
    assert found["worst"] < 0.01
    assert found["short"] == [found["three"]] * 3
    length = len(found["tokens"])
    assert found["refused"] == [
        f"a prompt of {length} tokens and {new} new ones do not fit the program's context of {CONTEXT}: export it with "
        "a longer one (measurements.arm-mobile.mobile.context)"
        for new in (256, CONTEXT)
    ]


def test_a_program_as_the_published_route_makes_it(host: Host, qemu: Qemu, custom: Path, tmp_path: Path) -> None:
    """The runner loads the custom SDPA for a program that has it, counts positions up, and scores token by token."""
    assert host.lacks("llama") == ""
    logits = tmp_path / "logits"
    reading = host.run(custom, Request([7, 7, 7, 7], 3, 1, 2, [[5, 5, 5], [6, 6, 6]]), logits, 60)
    assert reading.tokens == [0, 4, 5]
    assert reading.windows == 2
    found = memoryview(logits.read_bytes()).cast("f").tolist()
    rows = [found[start : start + 8] for start in range(0, len(found), 8)]
    assert [row.index(max(row)) for row in rows] == [0, 1, 2] * 2
    assert [row[7] for row in rows] == [5.0] * 3 + [6.0] * 3
    assert "whose library in ExecuTorch's wheel loads PyTorch" in qemu.lacks("llama")
    assert host.lacks("transformers") == qemu.lacks("transformers") == ""
