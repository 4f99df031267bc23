"""Files that are cut off, have a bit flipped or hold something else: found and made anew, or refused by name."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError
from harness.contract.weights import Unusable, header
from harness.judge import baseline, gatefile
from harness.judge.calibration import Calibration
from harness.matrix.load import load
from harness.records import columns
from harness.records.metrics import METRICS
from harness.records.published import Documented
from harness.records.run import Run, read
from harness.records.schema import Header, Measurement
from harness.runtime import sources
from harness.runtime.store import Store
from tests.faults.campaign import Fault, Scenario
from tests.faults.small_session import DEVICE, measurement

REPOSITORY = Path(__file__).resolve().parents[2]
# What the cache keeps: checkpoints, programs, compile caches and wheels by the names that they have there.
FILES = (
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "model.pte",
    "compile/cache/a.so",
    "wheels/x.whl",
    "empty",
)


def spoil(draw: random.Random, path: Path) -> str:
    """Damage a file, and say how."""
    data = path.read_bytes()
    ways = ["emptied", "removed", "a folder", "garbage"] + (
        ["cut off", "a bit flipped", "bytes put in", "zeroes"] * 2 if data else []
    )
    how = draw.choice(ways)
    if how == "removed":
        path.unlink()
    elif how == "a folder":
        path.unlink()
        path.mkdir()
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "garbage":
        path.write_bytes(draw.randbytes(len(data) or 10))
    elif how == "cut off":
        path.write_bytes(data[: draw.randrange(len(data))])
    elif how == "a bit flipped":
        changed = bytearray(data)
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
    elif how == "bytes put in":
        at = draw.randrange(len(data))
        path.write_bytes(data[:at] + draw.randbytes(draw.randrange(1, 9)) + data[at:])
    else:
        at = draw.randrange(len(data))
        path.write_bytes(data[:at] + bytes(len(data) - at))
    return how


def _same(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data


# ------------------------------------------------------------------------------------------------------------ artifacts


def artifact(fault: Fault) -> None:
    """A file of an artifact, or its manifest, is damaged: the next session makes it anew, or it is as it was."""
    seed = fault.draw.randrange(1000)

    def build(folder: Path) -> dict[str, Any]:
        for index, name in enumerate(FILES):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(random.Random(seed + index).randbytes(0 if name == "empty" else 300))
        return {"seed": seed}

    made = Store(fault.folder).get("checkpoint", {"seed": seed}, build, label="c")
    before = {name: (made.folder / name).read_bytes() for name in FILES}
    name = fault.draw.choice([*FILES, "artifact.json", "artifact.json"])
    data = (made.folder / name).read_bytes()
    how = spoil(fault.draw, made.folder / name)
    if how == "emptied" and not data:
        (made.folder / name).write_bytes(b"\0")
        how = "no more empty"
    fault.what = f"{name} of an artifact: {how}"
    fault.hit = not _same(made.folder / name, data)
    again = Store(fault.folder).get("checkpoint", {"seed": seed}, build, label="c", facts=["seed"])
    if again.facts != {"seed": seed} or any(not _same(again.folder / it, before[it]) for it in FILES):
        fault.broken("silent pass", "a damaged artifact was handed on")


def weights(fault: Fault) -> None:
    """A safetensors file is cut off or has another size: its header is refused by name."""
    tensors = {
        f"w{index}": {"dtype": "F32", "shape": [16], "data_offsets": [index * 64, index * 64 + 64]}
        for index in range(4)
    }
    head = json.dumps(tensors).encode()
    path = fault.folder / "model.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(256))
    size = path.stat().st_size
    how = fault.draw.choice(["cut off", "longer", "header"])
    data = bytearray(path.read_bytes())
    if how == "cut off":
        path.write_bytes(data[: fault.draw.randrange(size)])
    elif how == "longer":
        path.write_bytes(data + bytes(fault.draw.randrange(1, 99)))
    else:
        for _ in range(fault.draw.randrange(1, 9)):
            data[fault.draw.randrange(8 + len(head))] = fault.draw.randrange(256)
        path.write_bytes(data)
    fault.what = f"a safetensors file: {how}"
    fault.hit = True
    try:
        header(path)
    except Unusable as error:
        if str(path) not in str(error):
            fault.broken("other", f"the file is not named: {error}")
    else:
        # Another name of a tensor is no damage that a header can tell; the store's digest does.
        fault.hit = how != "header"
        if how != "header":
            fault.broken("silent pass", "it was read")


# -------------------------------------------------------------------------------------------------------------- records


def records(fault: Fault) -> None:
    """Lines of a record file are torn, foreign, endless or nested without end: all others stay."""
    run = Run(fault.folder / "run")
    run.append(Header(run="run", command=["small"], packages={}, device=DEVICE))
    for unit in range(4):
        run.append(measurement(unit, 1.0 + unit))
    lines = run.path.read_bytes().splitlines()
    bad = fault.draw.choice(
        [
            lines[2][: fault.draw.randrange(1, len(lines[2]))],
            b"[" * 100_000,
            b'{"a":' * 50_000,
            fault.draw.randbytes(200).replace(b"\n", b" "),
            b'{"schema_version": 7, "kind": "measurement"}',
            b'{"time": ' + b"9" * 5000 + b"}",
            lines[3].replace(b'"value":', b'"value":1e999,"x":'),
            b"null",
            b"\x00" * 500,
        ]
    )
    at = fault.draw.randrange(1, len(lines) + 1)
    torn = at == len(lines) and fault.draw.random() < 0.5
    run.path.write_bytes(b"\n".join([*lines[:at], bad, *lines[at:]]) + (b"" if torn else b"\n"))
    fault.what = f"line {at + 1} of the records is {bad[:30]!r}" + (", and torn" if torn else "")
    fault.hit = bool(bad.strip())
    run.append(measurement(9, 2.0))
    found, problems = read(run.path)
    units = [int(it.parameters["unit"]) for it in found if isinstance(it, Measurement)]
    if units != [0, 1, 2, 3, 9]:
        fault.broken("record lost", f"{units} of 0, 1, 2, 3, 9 are read")
    if fault.hit and len(problems) != 1:
        fault.broken("silent pass", f"{problems}")
    standing = columns.load([run], cache=fault.folder / "cache").standing()
    if len(standing) != 5:
        fault.broken("record lost", f"{len(standing)} of 5 figures stand in the tables")


def copies(fault: Fault) -> None:
    """The columnar copy of a run in the cache is damaged: the tables are made of the records again."""
    run = Run(fault.folder / "run")
    for unit in range(3):
        run.append(measurement(unit, 1.0 + unit))
    cache = fault.folder / "cache"
    before = columns.load([run], cache=cache).standing()
    (copy,) = (cache / "columns").glob("*.parquet")
    data = copy.read_bytes()
    how = spoil(fault.draw, copy)
    fault.what = f"a columnar copy: {how}"
    fault.hit = not _same(copy, data)
    if columns.load([run], cache=cache).standing() != before:
        fault.broken("silent pass", "the tables are others")


# --------------------------------------------------------------------------------------------- files that others store


def _baseline(folder: Path) -> tuple[Path, Callable[[], Any]]:
    runs = [Run(folder / f"run-{number}") for number in range(3)]
    for number, run in enumerate(runs):
        run.append(measurement(0, 1.0 + number / 100))
    (made,) = baseline.collect(runs)
    path = made.write(folder)
    return path, lambda: baseline.load(path)


def _gate(folder: Path) -> tuple[Path, Callable[[], Any]]:
    path = folder / "gate.json"
    shutil.copy(REPOSITORY / "results" / "gates" / "20261128-082255" / "gate.json", path)
    return path, lambda: gatefile.load(path)


def _calibration(folder: Path) -> tuple[Path, Callable[[], Any]]:
    made = Calibration(
        hardware="cpu", device="d", created="", gates=2, judged=3, alarms=1, verdicts_regressed=1,
        verdicts_inconclusive=0, budget_seconds=1.0, threads="1", noise=[],
    )  # fmt: skip
    path = made.write(folder)
    return path, lambda: Calibration.find(folder, "cpu", "d")


def _published(folder: Path) -> tuple[Path, Callable[[], Any]]:
    (source, *_) = sorted((REPOSITORY / "results" / "documented").glob("*.json"))
    path = folder / source.name
    shutil.copy(source, path)
    return path, lambda: Documented.load(folder).publications


def _matrix(folder: Path) -> tuple[Path, Callable[[], Any]]:
    path = folder / "matrix.toml"
    shutil.copy(REPOSITORY / "suites" / "matrix.toml", path)
    return path, lambda: load(path)


def _conversations(folder: Path) -> tuple[Path, Callable[[], Any]]:
    path = folder / sources.SHAREGPT_FILE
    turn = {"from": "gpt", "value": "words " * 20}
    path.write_text(json.dumps([{"id": str(it), "conversations": [turn, turn]} for it in range(20)]), encoding="utf-8")
    return path, lambda: sources.sharegpt(Store(folder / "cache"), folder).facts


STORED = {
    "a baseline": _baseline,
    "a gate.json": _gate,
    "a calibration": _calibration,
    "published figures": _published,
    "a matrix": _matrix,
    "ShareGPT of --data": _conversations,
}


def stored(fault: Fault) -> None:
    """A stored file is damaged, or edited to say something else: refused by an error of ours that names it, or read."""
    name = fault.draw.choice(list(STORED))
    path, reader = STORED[name](fault.folder)
    before, data = reader(), path.read_bytes()
    how = edit(fault.draw, path) if path.suffix == ".json" and fault.draw.random() < 0.6 else spoil(fault.draw, path)
    fault.what = f"{name}: {how}"
    fault.hit = not _same(path, data)
    try:
        after = reader()
    except HarnessError as error:
        if path.name not in str(error):
            fault.broken("other", f"the file is not named: {error}")
    except RecursionError as error:
        fault.broken("traceback", repr(error))
    else:
        decisive(fault, before, after)


def edit(draw: random.Random, path: Path) -> str:
    """Change one value of a JSON file to something hostile, and say which."""
    data = json.loads(path.read_text(encoding="utf-8"))
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((value, key))
            walk(value[key])

    walk(data)
    if not places:
        return "nothing to edit"
    holder, key = draw.choice(places)
    new = draw.choice(
        [
            "higher",
            "lower",
            "h",
            "speed",
            "",
            None,
            [],
            {},
            -1,
            0,
            1e308,
            -1e308,
            float("nan"),
            float("inf"),
            10**400,
            True,
        ]
    )
    holder[key] = new
    path.write_text(json.dumps(data), encoding="utf-8")
    return f"{key} is {str(new)[:20]!r}"


def decisive(fault: Fault, before: Any, after: Any) -> None:
    """Hold what was read against what may never come from a file: directions, units, infinite numbers."""
    if isinstance(after, baseline.Baseline):
        for entry in after.entries:
            known = METRICS[entry.place.metric]
            if (entry.direction, entry.unit) != (known.direction, known.unit):
                fault.broken("silent pass", f"{entry}")
    if isinstance(after, gatefile.GateFile) and after.exit_status == 0 and gatefile.exit_status(after.verdicts):
        fault.broken("silent pass", "a gate passes that its verdicts fail")


SCENARIOS = [
    Scenario("damage: artifacts (checkpoints, .pte, compile caches, wheels, manifests)", artifact, 40),
    Scenario("damage: headers of safetensors", weights, 12),
    Scenario("damage: lines of records", records, 16),
    Scenario("damage: columnar copies", copies, 10),
    Scenario("damage: baselines, gates, calibrations, publications, matrix, --data", stored, 40),
]
