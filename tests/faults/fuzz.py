"""Whatever a file holds, a reader of ours returns data or raises its own error: every reader, on seeded hostile input.

An input is one of a reader's sound files with bytes changed, put in and cut out, numbers and words put in others'
places, and brackets without end, or nothing but noise.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError
from harness.base.reading import json_value, toml_value
from harness.bundle import asked, install
from harness.contract import notation, quantized, weights
from harness.devices.base import read as reading
from harness.judge import baseline, gatefile
from harness.judge.calibration import Calibration
from harness.matrix.config_text import parse_config
from harness.matrix.load import load
from harness.records import columns
from harness.records.published import Documented
from harness.records.run import BrokenLine, Run, parse
from harness.records.run import read as read_records
from harness.report.judged import nights
from harness.runtime import sources, store
from tests.faults import damage
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
        self._records()
        self._stored()
        self._others()

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
        parts = json.dumps({"format": install.FORMAT, "version": install.VERSION}).encode()
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


def run(count: int, seconds: float, start: int, found: Callable[[str, int, str], object]) -> dict[str, int]:
    """Try seeds from ``start`` on, by every reader, until ``count`` or the time is reached; return how many of each."""
    deadline, done = time.monotonic() + seconds, 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        readers = Readers(Path(folder))
        counts = dict.fromkeys(readers.readers, 0)
        # The slow ones, which read whole files, one time in twenty.
        slow = {"tables of a record file", "a record file", "a matrix", "published figures", "a gate.json"}
        seed = start
        while done < count and time.monotonic() < deadline:
            for name in readers.readers:
                if name in slow and seed % 20:
                    continue
                if problem := readers.one(name, seed):
                    found(name, seed, problem)
                counts[name] += 1
                done += 1
            seed += 1
    return counts
