"""Records: what is written is read again, whatever names hold and wherever a kill, a full disk or an edit struck."""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

import harness
from harness.base.errors import RecordError
from harness.base.reading import json_value
from harness.base.text import file_name, redact
from harness.records.migrations import SCHEMA_VERSION, migrate
from harness.records.run import Run, parse, read
from harness.records.schema import (
    LINE,
    Cell,
    Device,
    Failure,
    Header,
    Judgement,
    Line,
    Measurement,
    ModelIdentity,
    Outcome,
    RecipeIdentity,
    Timing,
    identity,
)
from tests.faults.fuzz import mutated
from tests.laws import examples
from tests.reference import MAIN_JOB

NAMES = st.text(
    st.sampled_from("ab|\n\r\t\"'\\{}[],:\x00\x0b\x0c\x85\u2028é😀") | st.characters(exclude_categories=["Cs"]),
    max_size=12,
)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
LAST_SECOND = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()
TIMES = st.floats(0, LAST_SECOND)
SCALARS = NAMES | st.integers() | FINITE | st.booleans()
OPTIONS = st.dictionaries(NAMES, SCALARS, max_size=3)
CONFIGS = st.dictionaries(
    NAMES,
    st.recursive(SCALARS | st.none(), lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner)),
    max_size=2,
)
MODELS = st.builds(
    ModelIdentity,
    name=NAMES,
    source=NAMES,
    revision=NAMES,
    weights=st.sampled_from(["pretrained", "random"]),
    note=NAMES,
)
RECIPES = st.builds(RecipeIdentity, name=NAMES, hash=NAMES, config=CONFIGS, baseline=st.booleans())
CELLS = st.builds(Cell, model=MODELS, recipe=RECIPES, hardware=NAMES, server=NAMES)
DEVICES = st.builds(Device, name=NAMES, detail=OPTIONS)
PACKAGES = st.dictionaries(NAMES, NAMES, max_size=3)
MEASUREMENTS = st.builds(
    Measurement,
    time=TIMES,
    metric=NAMES,
    unit=NAMES,
    direction=st.sampled_from(["lower", "higher", "none"]),
    definition=st.integers(1, 9),
    parameters=OPTIONS,
    value=FINITE,
    samples=st.lists(FINITE, max_size=4),
    warmup=st.lists(FINITE, max_size=2),
    statistics=st.dictionaries(NAMES, FINITE, max_size=3),
    cell=CELLS,
    packages=PACKAGES,
    device=DEVICES,
    flags=OPTIONS,
    state_before=OPTIONS,
    state_after=OPTIONS,
    attachment=NAMES,
    from_cache=st.booleans(),
    kept_from=NAMES,
    kept_time=st.none() | TIMES,
    discarded=NAMES,
)
LINES = st.one_of(
    MEASUREMENTS,
    st.builds(Header, time=TIMES, run=NAMES, command=st.lists(NAMES), packages=PACKAGES, device=DEVICES, harness=NAMES),
    st.builds(
        Outcome,
        time=TIMES,
        test=NAMES,
        cell=st.none() | CELLS,
        outcome=st.sampled_from(["passed", "failed", "skipped", "error"]),
        seconds=FINITE,
        reason=NAMES,
    ),
    st.builds(Failure, time=TIMES, cell=CELLS, stage=NAMES, failure=NAMES, message=NAMES, log_tail=NAMES),
    st.builds(
        Judgement,
        time=TIMES,
        cell=CELLS,
        metric=NAMES,
        parameters=OPTIONS,
        passed=st.booleans(),
        measured=FINITE | st.just(math.inf),
        limit=FINITE,
        comparison=NAMES,
        origin=NAMES,
        published=st.none() | FINITE,
    ),
    st.builds(Timing, time=TIMES, cell=st.none() | CELLS, stage=NAMES, seconds=FINITE),
)
QUICK = examples(15)

CELL = Cell(
    model=ModelIdentity(name="small", source="hub:owner/small", revision="abc", weights="pretrained"),
    recipe=RecipeIdentity(name="int8wo", hash="0123", config={"config": "Int8WeightOnlyConfig"}),
    hardware="cpu",
    server="vllm",
)
LATENCY = Measurement(
    metric="latency",
    unit="s",
    direction="lower",
    definition=1,
    parameters={"batch_size": 1},
    value=1.5,
    samples=[1.4, 1.6],
    cell=CELL,
    packages={"torch": "2.13.0"},
    device=Device(name="a processor"),
    flags={"enforce_eager": True},
)
STEPS = [Timing(stage="étape\n|", seconds=seconds) for seconds in (1.0, 2.5, 1e-9, 4.0)]


def encoded(lines: Sequence[Line]) -> list[bytes]:
    """Return each line as the store itself writes it, newline included."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        for line in lines:
            run.append(line)
        return run.path.read_bytes().splitlines(keepends=True)


STEP_BYTES = encoded(STEPS)


# ------------------------------------------------------------------------------------------------- what is read again


@QUICK
@given(st.lists(LINES, max_size=3))
def test_every_kind_of_line_is_read_as_it_was_written(lines: list[Line]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        for line in lines:
            run.append(line)
        if lines:
            assert run.read() == (lines, [])


@QUICK
@given(LINES, st.integers(0, 2**31))
def test_the_quick_way_to_read_a_line_says_what_the_careful_one_says(line: Line, seed: int) -> None:
    sound = line.model_dump_json().encode()
    for raw in (sound, mutated(random.Random(seed), [sound])):
        try:
            careful = LINE.validate_python(migrate(json_value(raw), "x"))
        except (ValueError, KeyError, TypeError, RecordError):
            with pytest.raises(RecordError):
                parse(raw, "x")
        else:
            assert repr(parse(raw, "x")) == repr(careful)


def test_lines_are_read_one_by_one_and_those_that_are_held_share_what_is_the_same(tmp_path: Path) -> None:
    run = Run(tmp_path)
    packages = {f"package-{number}": "1.0" for number in range(300)}
    lines = [LATENCY.model_copy(update={"value": float(it), "packages": packages}) for it in range(400)]
    run.path.write_bytes(b"".join(line.model_dump_json().encode() + b"\n" for line in lines))
    tracemalloc.start()
    assert sum(1 for _ in run.lines()) == 400
    _, peak = tracemalloc.get_traced_memory()
    held, problems = run.read()
    now, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (held, problems) == (lines, [])
    size = run.path.stat().st_size
    assert peak < size / 10
    assert now < size * 0.7, "each of them holds what differs alone"
    assert {id(it.packages) for it in held if isinstance(it, Measurement)} == {id(held[0].packages)}  # type: ignore[union-attr]


@QUICK
@given(MEASUREMENTS)
def test_a_measurement_keeps_its_identity_on_the_disk(measurement: Measurement) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        run.append(measurement)
        (again,) = run.lines()
        assert isinstance(again, Measurement)
        assert identity(again) == identity(measurement)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["value", "samples", "warmup", "statistics"])
def test_what_is_not_a_number_is_not_recorded(place: str, number: float) -> None:
    held = {"value": number, "samples": [1.0, number], "warmup": [number], "statistics": {"p99": number}}[place]
    with pytest.raises(ValidationError, match="finite"):
        Measurement(**(LATENCY.model_dump() | {place: held}))


# ------------------------------------------------------------------------------------------------ what has been broken


@QUICK
@given(st.data())
def test_a_file_cut_off_anywhere_keeps_its_whole_lines_and_names_the_broken_one(data: st.DataObject) -> None:
    whole = b"".join(STEP_BYTES)
    cut = data.draw(st.integers(0, len(whole)))
    ends = [len(b"".join(STEP_BYTES[: count + 1])) - 1 for count in range(len(STEP_BYTES))]
    kept = sum(end <= cut for end in ends)
    broken = cut not in {0, *ends, *(end + 1 for end in ends)}
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        run.path.write_bytes(whole[:cut])
        lines, problems = run.read()
        assert lines == STEPS[:kept]
        assert len(problems) == broken
        assert all(f"{run.path}, line {kept + 1}:" in problem for problem in problems)

        run.append(LATENCY)
        lines, problems = run.read()
        assert lines == [*STEPS[:kept], LATENCY]
        assert len(problems) == broken


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ('"seconds":2.5', '"seconds":"long"', "seconds"),
        ('"seconds":2.5', '"seconds":2.5,"minutes":1', "minutes"),
        ('"seconds":2.5', '"secs":2.5', "sec"),
        ('"kind":"timing"', '"kind":"tming"', "tming"),
        (f'"schema_version":{SCHEMA_VERSION},', "", "schema_version"),
        (f'"schema_version":{SCHEMA_VERSION}', '"schema_version":0', "schema version 0 does not exist"),
        (f'"schema_version":{SCHEMA_VERSION}', '"schema_version":true', "schema version True does not exist"),
        ("{", "", "JSON"),
        ("}", "", "JSON"),
    ],
)
def test_an_edited_line_is_named_and_the_others_are_read(tmp_path: Path, before: str, after: str, words: str) -> None:
    path = tmp_path / "records.jsonl"
    edited = STEP_BYTES[1].decode().replace(before, after, 1)
    assert edited != STEP_BYTES[1].decode()
    path.write_bytes(STEP_BYTES[0] + edited.encode() + STEP_BYTES[2])
    lines, (problem,) = read(path)
    assert lines == [STEPS[0], STEPS[2]]
    assert f"{path}, line 2:" in problem
    assert words in problem


@pytest.mark.parametrize("line", [b"[]", b"1", b"null", b'"text"', b"\xff\xfe", b"\x00", b"{}"])
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(STEP_BYTES[0] + line + b"\n")
    lines, (problem,) = read(path)
    assert lines == [STEPS[0]]
    assert f"{path}, line 2:" in problem


@pytest.mark.programs
def test_records_of_the_first_schema_are_migrated(repository: Path, tmp_path: Path) -> None:
    """With the records of real runs as it would have them, and what a resumed run then appends to them."""
    for source in sorted((repository / "results" / "reference").glob("*/records.jsonl")):
        kept = [json.loads(raw) | {"schema_version": 1} for raw in source.read_bytes().splitlines()]
        first = [line for line in kept if line["kind"] != "outcome"]
        for line in first:
            line.pop("harness", None)
            (line.get("cell") or {}).pop("gpus", None)
        path = tmp_path / source.parent.name / "records.jsonl"
        path.parent.mkdir()
        path.write_text("".join(f"{json.dumps(line)}\n" for line in first), encoding="utf-8")
        Run(path.parent).append(STEPS[0])
        lines, problems = read(path)
        assert problems == []
        assert len(lines) == len(first) + 1
        assert {line.schema_version for line in lines} == {SCHEMA_VERSION}
        (header, *_) = (line for line in lines if isinstance(line, Header))
        assert header.harness == ""
        for line, found in zip(first, lines, strict=False):
            if isinstance(found, Measurement):
                model = line["cell"]["model"]
                model["came_quantized"] = model["note"].startswith("came quantized")
                gpu, programs = "gpu_memory_gb" in line["device"]["detail"], line["cell"]["hardware"] == "arm-mobile"
                line["device"]["vendor"] = "nvidia" if gpu else "none"
                line["device"]["torch_device"] = "cuda" if gpu else "" if programs else "cpu"
                line.setdefault("disturbed", "")
                line |= {"kept_from": "", "kept_time": None}
                line["cell"]["gpus"] = 1
                assert line == json.loads(found.model_dump_json()) | {"schema_version": 1}


@given(st.text(max_size=400), st.text(max_size=400))
def test_the_names_of_files_are_short_plain_and_tell_texts_apart_that_were_cut(one: str, other: str) -> None:
    for text in (one, other):
        name = file_name(text)
        assert len(name) <= 200
        assert re.fullmatch(r"[A-Za-z0-9._-]*", name)
        assert file_name(name) == name
    if len(one) > 200 and len(other) > 200:
        assert (file_name(one) == file_name(other)) == (one == other)


@pytest.mark.parametrize(
    ("outcome", "reason", "migrated"),
    [
        (
            "skipped",
            "perplexity: measured 17, max_ratio 1.7, limit 1.6; the limit's origin: chosen",
            "xfailed",
        ),
        (
            "skipped",
            "0 calls of kernels, 480 are due, one a quantized layer and step; what ran instead",
            "xfailed",
        ),
        ("skipped", "random weights", "skipped"),
        ("failed", "a cell: measured 17; the limit's origin: chosen", "failed"),
    ],
)
def test_an_expected_failure_of_the_second_schema_was_a_skip(outcome: str, reason: str, migrated: str) -> None:
    line = {"schema_version": 2, "kind": "outcome", "time": 0.0, "test": "t", "seconds": 1.0}
    found = parse(json.dumps(line | {"outcome": outcome, "reason": reason}).encode(), "here")
    assert isinstance(found, Outcome)
    assert (found.outcome, found.known, found.reason, found.schema_version) == (migrated, "", reason, SCHEMA_VERSION)


def test_a_judgement_of_the_third_schema_did_not_say_what_was_expected(repository: Path) -> None:
    run = MAIN_JOB / "records.jsonl"
    line = next(it for it in map(json.loads, run.read_bytes().splitlines()) if it["kind"] == "judgement")
    line.pop("known", None)
    found = parse(json.dumps(line | {"schema_version": 3}).encode(), "here")
    assert isinstance(found, Judgement)
    assert (found.known, found.schema_version) == ("", SCHEMA_VERSION)


def test_what_came_quantized_said_so_in_its_note_until_the_fourth_schema(repository: Path) -> None:
    kept = repository / "results" / "reference"
    came = {
        path.name: {it.cell.model.came_quantized for it in Run(path).lines() if isinstance(it, Measurement)}
        for path in kept.glob("*-20*")
    }
    assert [name for name, found in came.items() if found == {True}] == ["h100-20261128-114605"]
    assert all(found == {False} for name, found in came.items() if name != "h100-20261128-114605")


@pytest.mark.parametrize(
    ("message", "worker", "repeated"),
    [
        ("engine model-int8wo-cpu-vllm: start: ended with status 1", "engine", False),
        ("old side, block 3, attempt 0: transformers m: peak_memory: broke", "transformers", False),
        ("server m: start: broke (it failed before in this session and is not tried again)", "server", True),
        ("client: start: broke", "client", False),
    ],
)
def test_a_failure_of_the_fourth_schema_said_in_its_message_what_failed(
    message: str, worker: str, repeated: bool
) -> None:
    line = {"schema_version": 4, "kind": "failure", "time": 0.0, "cell": LATENCY.cell.model_dump(), "stage": "start"}
    found = parse(json.dumps(line | {"failure": "start", "message": message}).encode(), "here")
    assert isinstance(found, Failure)
    assert (found.worker, found.repeated) == (worker, repeated)
    assert found.message == message.removesuffix(" (it failed before in this session and is not tried again)")


def test_expected_failures_of_the_runs_that_are_kept(repository: Path) -> None:
    kept = sorted((repository / "results" / "reference").glob("*-20*"))
    found = [line for run in kept for line in Run(run).read()[0] if isinstance(line, Outcome)]
    expected = [line for line in found if line.outcome == "xfailed"]
    assert expected
    assert {line.test.partition("[")[0] for line in expected} <= {
        "test_engine.py::test_kernels",
        "test_transformers.py::test_kernels",
        "test_transformers.py::test_text_quality",
        "test_mobile.py::test_task",
        "test_mobile.py::test_agreement",
    }


def test_a_newer_schema_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(STEP_BYTES[0] + STEP_BYTES[1].replace(b'"schema_version":', b'"schema_version":7'))
    with pytest.raises(RecordError, match=rf"{path}, line 2: schema version 7\d+ is newer.*upgrade"):
        read(path)


_APPEND = """
import sys
from pathlib import Path
from harness.base.errors import RecordError
from harness.records.run import Run
from harness.records.schema import Timing
run, limit = Run(Path(sys.argv[1])), int(sys.argv[2])
if limit:
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    for number in range(100_000):
        run.append(Timing(stage="measure", seconds=number))
        print(number, flush=True)
except RecordError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [1000, 1001])
def test_a_full_disk_is_an_error_that_keeps_what_was_recorded(tmp_path: Path, limit: int) -> None:
    command = [sys.executable, "-c", _APPEND, str(tmp_path), str(limit)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    *written, message = result.stdout.splitlines()
    assert str(tmp_path / "records.jsonl") in message
    assert "--resume" in message
    lines, problems = Run(tmp_path).read()
    assert [line.seconds for line in lines if isinstance(line, Timing)] == [float(number) for number in written]
    assert written
    assert not problems


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_the_disks_own_words_are_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").symlink_to("/dev/full")
    with pytest.raises(RecordError, match=r"records\.jsonl.*No space left on device"):
        Run(tmp_path).append(LATENCY)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_attachment_on_a_full_disk_is_an_error_that_says_how_to_go_on(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.append(LATENCY)
    run.attachments.mkdir()
    (run.attachments / "answers.tmp").symlink_to("/dev/full")
    with pytest.raises(RecordError, match=r"answers\.json: cannot write an attachment \(No space left.*--resume"):
        run.attach("answers", {"text": "x" * 100_000})
    assert list(run.attachments.iterdir()) == []
    assert run.read() == ([LATENCY], [])


def test_a_folder_that_cannot_hold_runs_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=r"file/runs: no run can be kept there \(Not a directory"):
        Run.create(tmp_path / "file" / "runs")
    with pytest.raises(RecordError, match=r"records\.jsonl: cannot write a record \(Not a directory"):
        Run(tmp_path / "file" / "run").append(LATENCY)


def test_threads_append_whole_lines_and_are_told_of_them_in_the_order_of_the_file(tmp_path: Path) -> None:
    """As the two sides of a gate do."""
    run, told = Run(tmp_path), []
    run.written = told.append

    def append(side: str) -> None:
        for number in range(30):
            run.append(Timing(stage=f"{side} {number} {'x' * 5000}", seconds=1.0))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(append, ("old", "new")))
    lines, problems = run.read()
    assert not problems
    assert lines == told
    assert len(lines) == 60


def test_a_kill_loses_at_most_the_line_in_flight(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _APPEND, str(tmp_path), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        seen = [int(writer.stdout.readline()) for _ in range(30)]
        os.kill(writer.pid, signal.SIGKILL)
        seen += [int(line) for line in writer.stdout]
    run = Run(tmp_path)
    lines, problems = run.read()
    numbers = [line.seconds for line in lines if isinstance(line, Timing)]
    assert numbers == list(range(len(numbers)))
    assert len(seen) <= len(numbers) <= len(seen) + 1
    assert len(problems) <= 1
    run.append(LATENCY)
    assert run.read() == ([*lines, LATENCY], problems)


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ('"value":', '"value":0.5,"value":', "value"),
        ('"schema_version":', '"schema_version":1,"schema_version":', "schema_version"),
        ('"hardware":', '"hardware":"h100","hardware":', "hardware"),
        ('"parameters":{', '"parameters":{"input_len":1,"input_len":2,', "input_len"),
        ('"value":', '"val\\u0075e":0.5,"value":', "value"),
    ],
)
def test_a_name_that_stands_twice_in_a_line_makes_it_a_broken_one(
    tmp_path: Path, old: str, new: str, name: str
) -> None:
    run, line = Run(tmp_path), LATENCY.model_dump_json()
    twice = line.replace(old, new, 1)
    assert twice != line
    spaced = json.dumps(json.loads(line), indent=None)
    run.path.write_text(f"{twice}\n{line}\n{spaced}\n{twice.replace(',', ', ', 1)}\n", encoding="utf-8")
    lines, problems = run.read()
    assert lines == [LATENCY, LATENCY]
    assert [it.startswith(f"{run.path}, line {number}: left out") for it, number in zip(problems, (1, 4), strict=True)]
    assert all(f"{name!r} stands twice in one object" in it for it in problems)


@given(TIMES | st.floats() | st.integers() | st.just(10**400))
@example(1e18)
@example(-1.0)
@example(LAST_SECOND)
@example(LAST_SECOND + 1)
def test_a_time_without_a_date_is_named_and_the_other_lines_are_read(
    tmp_path_factory: pytest.TempPathFactory, seconds: float
) -> None:
    run = Run(tmp_path_factory.mktemp("run"))
    edited = json.dumps(json.loads(LATENCY.model_dump_json()) | {"time": seconds})
    run.path.write_text(f"{LATENCY.model_dump_json()}\n{edited}\n{LATENCY.model_dump_json()}\n", encoding="utf-8")
    lines, problems = run.read()
    if 0 <= seconds <= LAST_SECOND:
        assert (len(lines), problems) == (3, [])
        assert datetime.fromtimestamp(lines[1].time, UTC).year <= 9999
    else:
        assert lines == [LATENCY, LATENCY]
        assert len(problems) == 1
        assert "line 2: left out" in problems[0]
        assert "time" in problems[0] or "not a whole JSON record" in problems[0]


# ------------------------------------------------------------------------------------------------------------ identity


@pytest.mark.parametrize(
    "change",
    [
        {"time": 1.0},
        {"value": 2.0},
        {"samples": [2.0]},
        {"warmup": [9.0]},
        {"statistics": {"p99": 2.0}},
        {"state_before": {"load_1min": 3.0}},
        {"state_after": {"load_1min": 3.0}},
        {"attachment": "attachments/x.json"},
        {"from_cache": True},
        {"kept_from": "20261130-181135", "kept_time": 1.0},
        {"discarded": "the clock was throttled"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_repeats_of_a_measurement_have_one_identity(change: dict[str, object]) -> None:
    assert identity(LATENCY.model_copy(update=change)) == identity(LATENCY)


@pytest.mark.parametrize(
    "change",
    [
        {"metric": "ttft"},
        {"definition": 2},
        {"parameters": {"batch_size": 8}},
        {"parameters": {}},
        {"packages": {"torch": "2.14.0"}},
        {"device": Device(name="another processor")},
        {"flags": {}},
        {"cell": CELL.model_copy(update={"hardware": "h100"})},
        {"cell": CELL.model_copy(update={"server": "transformers"})},
        {"cell": CELL.model_copy(update={"model": CELL.model.model_copy(update={"revision": "def"})})},
        {"cell": CELL.model_copy(update={"recipe": CELL.recipe.model_copy(update={"hash": "4567"})})},
    ],
    ids=str,
)
def test_another_measurement_has_another_identity(change: dict[str, object]) -> None:
    assert identity(LATENCY.model_copy(update=change)) != identity(LATENCY)


# ---------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Seven runs with records, and one folder that has none."""
    for day in range(1, 8):
        Run(tmp_path / f"2026010{day}-120000").append(LATENCY)
    (tmp_path / "20260109-120000").mkdir()
    return tmp_path


def test_a_run_is_opened_by_name_by_path_and_as_the_last(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs.parent)
    third = runs / "20260103-120000"
    assert Run.open(runs, "20260103-120000").folder == third
    assert Run.open(runs, str(third)).folder == third
    assert Run.open(runs, str(third / "records.jsonl")).folder == third
    assert Run.open(runs, "last").name == "20260107-120000"


@pytest.mark.parametrize("name", ["20260199-120000", "20260109-120000", "nowhere/at/all"])
def test_a_run_that_is_not_there_is_named_beside_the_latest(runs: Path, name: str) -> None:
    with pytest.raises(
        RecordError, match=rf"no run '{name}' under {runs}.*20260103-120000, .*20260107-120000"
    ) as raised:
        Run.open(runs, name)
    assert "20260102" not in str(raised.value)


@pytest.mark.parametrize("name", ["last", "20260101-120000"])
def test_where_there_are_no_runs_it_says_so(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecordError, match="none yet"):
        Run.open(tmp_path / "runs", name)


def test_a_run_whose_records_are_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "20260101-000000").mkdir()
    (tmp_path / "20260101-000000" / "gate.json").touch()
    with pytest.raises(RecordError, match=r"none yet.*; 20260101-000000 there has gate\.json and no records\.jsonl"):
        Run.open(tmp_path, "last")


def test_new_runs_never_share_a_folder(tmp_path: Path) -> None:
    folders = {Run.create(tmp_path / "runs").folder for _ in range(4)}
    assert len(folders) == 4
    assert all(folder.is_dir() for folder in folders)


@pytest.mark.parametrize("name", ["small-int8wo-cpu-vllm", "owner/model x:y|z", "../../elsewhere", "é"])
def test_an_attachment_stays_in_its_run(tmp_path: Path, name: str) -> None:
    run = Run(tmp_path / "run")
    relative = run.attach(name, {"documents": [1, 2]})
    path = (run.folder / relative).resolve()
    assert path.parent == run.attachments
    assert json.loads(path.read_text()) == {"documents": [1, 2]}
    assert [entry.name for entry in run.attachments.iterdir()] == [path.name]


def test_the_detail_of_an_earlier_record_stays(tmp_path: Path) -> None:
    """A resumed run may measure another model of the same name: each record keeps the detail that was measured."""
    run = Run(tmp_path / "run")
    first, again, other, third = (run.attach("kernels", {"took": it}) for it in (1, 1, 2, 3))
    assert first == again
    assert [run.attached(it)["took"] for it in (first, other, third)] == [1, 2, 3]


# ------------------------------------------------------------------------------------------------------------- secrets

TOKEN = "hf_" + "AbCd1234" * 4


@pytest.mark.parametrize(
    "text",
    [
        f"401 for {TOKEN}",
        f"HF_TOKEN={TOKEN}",
        f"'token': '{TOKEN}'",
        f"'the log said:\\n{TOKEN}\\n'",
        "Authorization: Bearer AbCd1234AbCd1234",
        "authorization: bearer AbCd1234AbCd1234",
    ],
)
def test_credentials_are_taken_out(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    assert "AbCd1234" not in redact(text)
    assert "[token removed]" in redact(text)
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize("names", [["HF_TOKEN"], ["HUGGING_FACE_HUB_TOKEN"], ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]])
@QUICK
@given(before=st.text(), after=st.text())
def test_the_tokens_of_the_environment_are_taken_out_wherever_they_stand(
    names: list[str], before: str, after: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            patch.delenv(name, raising=False)
        for name in names:
            patch.setenv(name, f"secret-of-{name}")
        assert "secret-of-" not in redact("".join(f"{before}secret-of-{name}{after}" for name in names))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/ada/.cache/x.so: no such file", "~/.cache/x.so: no such file"),
        ("in '/home/ada'", "in '~'"),
        ("/home/adam/x /mnt/home/ada/y /home/ada.old", "/home/adam/x /mnt/home/ada/y /home/ada.old"),
    ],
)
def test_the_home_folder_is_not_named(monkeypatch: pytest.MonkeyPatch, text: str, shown: str) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert redact(text) == shown


def test_a_traceback_does_not_say_where_packages_lie() -> None:
    own = Path(harness.__file__).with_name("records.py")
    text = f'  File "/srv/x/site-packages/torch/nn.py", line 1\n  File "{own}", line 2\n/srv/site-packages/y'
    shown = '  File "torch/nn.py", line 1\n  File "harness/records.py", line 2\n/srv/site-packages/y'
    assert redact(text) == shown


@pytest.mark.parametrize("text", ["", "nothing to hide", "self.hf_quantizer.preprocess(model)", "import hf_transfer"])
def test_other_words_stay(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    assert redact(text) == text


def test_a_record_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"records\.jsonl: cannot be read \(No such file"):
        list(Run(tmp_path).lines())
    (tmp_path / "records.jsonl").mkdir()
    with pytest.raises(RecordError, match=r"records\.jsonl: cannot be read \(Is a directory"):
        Run(tmp_path).read()
