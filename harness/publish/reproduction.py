"""The commands and scripts by which a card's reader uses a checkpoint and measures its figures again."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from harness.base.text import one_line
from harness.contract import tutorial
from harness.publish import recipe_code
from harness.records.metrics import TASK_BATCH
from harness.records.schema import Measurement, ModelIdentity, RecipeIdentity, Scalar

SHAREGPT = (
    "https://huggingface.co/datasets/anon8231489123/ShareGPT_Vicuna_unfiltered/resolve/main/"
    "ShareGPT_V3_unfiltered_cleaned_split.json"
)
_GENERATE = """\
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model_name = MODEL_ID

tokenizer = AutoTokenizer.from_pretrained(model_name)
model = AutoModelForCausalLM.from_pretrained(model_name, dtype="auto", device_map="auto")

messages = MESSAGES
text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
inputs = tokenizer(text, return_tensors="pt").to(model.device)

output = model.generate(**inputs, max_new_tokens=256)
print(tokenizer.decode(output[0][inputs.input_ids.shape[1] :], skip_special_tokens=True))
"""
# The tutorial's script, with today's argument names.
_PEAK = """\
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

# use BASELINE or MODEL_ID
model_id = MODEL_ID
model = AutoModelForCausalLM.from_pretrained(model_id, device_map=DEVICE, dtype=torch.bfloat16)
tokenizer = AutoTokenizer.from_pretrained(model_id)
RESET
messages = MESSAGES
prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
with torch.inference_mode():
    model.generate(**inputs, max_new_tokens=TOKENS)

READ
print(f"Peak Memory Usage: {memory:.02f} GB")
"""
_RESET = "torch.cuda.reset_peak_memory_stats()\n"
_READ = {
    "cuda": "memory = torch.cuda.max_memory_reserved() / 1e9",
    "cpu": "import resource\n\nmemory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9",
}
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*\Z")
_VERSION = re.compile(r"[A-Za-z0-9.!_-]+\Z")


def generate(repository: str) -> str:
    """Return a script that loads the published model and lets it answer."""
    return _GENERATE.replace("MODEL_ID", json.dumps(repository)).replace(
        "MESSAGES", _messages(tutorial.CHAT["messages"])
    )


def _messages(messages: Sequence[Mapping[str, str]]) -> str:
    """Return the source of a chat's messages: in one line if there is one, otherwise a line each."""
    lines = [json.dumps(message) for message in messages]
    return f"[{lines[0]}]" if len(lines) == 1 else "\n".join(["[", *(f"    {line}," for line in lines), "]"])


def pip(records: Iterable[Measurement], *names: str) -> str:
    """Return the installation of the versions that the records were measured under; local builds' marks are dropped."""
    newest = max(records, key=lambda it: it.time, default=None)
    packages = newest.packages if newest else {}
    found = [(name, packages[name].split("+")[0]) for name in names if name in packages]
    wanted = [f"{name}=={version}" for name, version in found if _VERSION.match(version)]
    return f"pip install {' '.join(wanted)}" if wanted else ""


def flags(record: Measurement, server: ByHand) -> tuple[list[str], list[str]]:
    """Return the environment variables and options that engine or server were started with and its commands know."""
    variables, options = [], []
    for name, value in record.flags.items():
        if name.isupper() and _VARIABLE.match(name) and name not in server.own_variables:
            variables.append(f"{name}={quoted(value)}")
        elif name in server.options and value is not False:
            option = "--" + name.replace("_", "-")
            options.append(option if value is True else f"{option} {quoted(value)}")
    return variables, options


def quoted(value: Scalar) -> str:
    """Return a value as one word of a shell's command line."""
    return shlex.quote(one_line(str(value)))


def suite(
    model: ModelIdentity,
    recipe: RecipeIdentity,
    hardware: str,
    only: str = "",
    *,
    named: str = "",
    tasks: Sequence[str] = (),
) -> str:
    """Return the command that measures recipe and baseline again with this harness.

    ``named`` is what the model is had by, if not as the records have it; ``tasks`` are options that name tasks.
    """
    kind, _, where = model.source.partition(":")
    named = named or {"hub": where, "folder": f"./{where}"}.get(kind, model.name)
    given = recipe.name
    made_by_hand = str(recipe.config.get("config", ""))
    if made_by_hand and recipe.name.startswith(made_by_hand):
        # Given on the command line as a config; its name in the records is not one that --recipe takes.
        with contextlib.suppress(ValueError):
            given = recipe_code.expression(recipe.config)
    words = ["pytest suites -m", quoted(hardware), "--model", quoted(named), "--recipe", quoted(given), *tasks]
    return " ".join(words + ([f"-k {shlex.quote(only)}"] if only else []))


@dataclass(frozen=True)
class Asked:
    """How some tasks were asked, as their records have it; ``documents`` is how many each gave."""

    documents: Scalar
    shots: Scalar = ""
    chats: bool = False
    generation: str = ""

    @classmethod
    def of(cls, it: Measurement) -> Asked | None:
        """Return how a task was asked; None for what is none, or cannot be asked by what its record says."""
        told = it.parameters
        if it.metric not in ("accuracy", "task_perplexity") or "task" not in told:
            return None
        # Of a system's text there is a digest alone.
        if "through" in told or "system_instruction" in told:
            return None
        generation = str(told.get("generation", "")).replace(", ", ",")
        return cls(told.get("documents", ""), told.get("num_fewshot", ""), "chat_template" in told, generation)

    @property
    def options(self) -> dict[str, str]:
        """lm-evaluation-harness's options that ask so, each with its value or an empty text."""
        found = {"--limit": str(self.documents)} if isinstance(self.documents, int) else {}
        found |= {"--num_fewshot": str(self.shots)} if isinstance(self.shots, int) else {}
        found |= {"--apply_chat_template": ""} if self.chats else {}
        return found | ({"--gen_kwargs": quoted(self.generation)} if self.generation else {})


def tasks(own: Sequence[Measurement]) -> list[str]:
    """Return the harness's options that ask the tasks of the records so again; none where they were asked unalike."""
    found = {(str(it.parameters["task"]), asked) for it in own if (asked := Asked.of(it))}
    ways = {asked for _, asked in found}
    if len(ways) != 1:
        return []
    (way,) = ways
    options = [f"{name.replace('_', '-')} {value}".strip() for name, value in way.options.items()]
    return [*(f"--task {quoted(name)}" for name in sorted({name for name, _ in found})), *options]


def lm_eval(own: Sequence[Measurement], models: Sequence[str]) -> str:
    """Return lm-evaluation-harness's own commands for the tasks in the records, or an empty text."""
    wanted: dict[tuple[str, Asked], dict[str, None]] = {}
    for it in own:
        if asked := Asked.of(it):
            wanted.setdefault((it.device.makes_on, asked), {})[str(it.parameters["task"])] = None
    lines = []
    for (device, asked), names in wanted.items():
        for model in models:
            where = f"{'cuda:0' if device == 'cuda' else device} --batch_size {TASK_BATCH[device]}"
            options = (f"{name} {value}".strip() for name, value in asked.options.items())
            chosen = " ".join([f"--tasks {quoted(','.join(names))}", *options])
            lines.append(f"lm_eval --model hf --model_args pretrained={model},dtype=bfloat16 {chosen} --device {where}")
    return "\n".join(lines)


def peak_memory(own: Sequence[Measurement], repository: str, base: str) -> list[str]:
    """Return the script behind the peak memory, one for each kind of device in the records."""
    scripts = {}
    for it in own:
        tokens = it.parameters.get("max_new_tokens")
        if it.metric == "peak_memory" and isinstance(tokens, int):
            device = it.device.makes_on
            text = _PEAK.replace("RESET\n", _RESET + "\n" if device == "cuda" else "\n").replace("READ", _READ[device])
            text = (
                text.replace("MESSAGES", _messages(tutorial.MEMORY))
                .replace("DEVICE", f'"{device}"')
                .replace("TOKENS", str(tokens))
            )
            scripts[device] = text.replace("MODEL_ID", json.dumps(repository)).replace("BASELINE", json.dumps(base))
    return list(scripts.values())


class ByHand(Protocol):
    """A server's own commands, which call the checkpoint ``$MODEL``; see harness.servers.base.ByHand."""

    @property
    def title(self) -> str: ...
    @property
    def distributions(self) -> tuple[str, ...]: ...
    @property
    def serve(self) -> str: ...
    @property
    def latency(self) -> str: ...
    @property
    def serving(self) -> str: ...
    @property
    def options(self) -> tuple[str, ...]: ...
    @property
    def own_variables(self) -> tuple[str, ...]: ...
    @property
    def after_install(self) -> str: ...
    def of(self, packages: Collection[str]) -> ByHand: ...


def install(records: Sequence[Measurement], server: ByHand) -> str:
    """Return what installs the server that the records were measured through, so that its commands start."""
    wanted = pip(records, *server.distributions, "torchao")
    if not wanted or not server.after_install:
        return wanted
    # The CPU builds of torch are on an index of their own, which uv knows and pip must be told.
    uv = wanted.replace("pip install", "uv pip install --torch-backend cpu", 1)
    return f"{wanted}\n# where pip finds no CPU build of torch: {uv}\n{server.after_install}"


def serve(record: Measurement, server: ByHand) -> str:
    """Return the command that serves ``$MODEL`` as a record's server was started."""
    server = server.of(record.packages)
    variables, options = flags(record, server)
    return " ".join([*variables, server.serve, *options])


def latency(own: Sequence[Measurement], servers: Mapping[str, ByHand]) -> list[str]:
    """Return the servers' latency benchmark for each batch in the records; ``$MODEL`` is recipe or baseline."""
    found: dict[str, None] = {}
    for it in own:
        sizes = [it.parameters.get(name) for name in ("input_len", "output_len", "batch_size")]
        server = servers.get(it.cell.server)
        if server and it.metric == "latency" and all(isinstance(size, int) for size in sizes):
            server = server.of(it.packages)
            variables, options = flags(it, server)
            words = [*variables, server.latency]
            names = ("--input-len", "--output-len", "--batch-size")
            words += [f"{name} {size}" for name, size in zip(names, sizes, strict=True)]
            words += [f"--num-iters-warmup {len(it.warmup)} --num-iters {len(it.samples)}", *options]
            found[" ".join(words)] = None
    return list(found)


def serving(own: Sequence[Measurement], servers: Mapping[str, ByHand]) -> tuple[list[str], list[str]]:
    """Return the servers' and the clients' commands of the serving benchmark; ``$MODEL`` is recipe or baseline."""
    serves: dict[str, None] = {}
    clients: dict[str, None] = {}
    for it in own:
        prompts, server = it.parameters.get("num_prompts"), servers.get(it.cell.server)
        if server and it.metric == "request_throughput" and isinstance(prompts, int):
            server = server.of(it.packages)
            serves[serve(it, server)] = None
            client = f"{server.serving} --dataset-name sharegpt --temperature 0"
            client += f" --dataset-path ./{SHAREGPT.rsplit('/', 1)[1]} --num-prompts {prompts}"
            length = it.parameters.get("output_len")
            clients[client + (f" --sharegpt-output-len {length}" if isinstance(length, int) else "")] = None
    return list(serves), list(clients)
