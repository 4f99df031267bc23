"""Artifacts: built once whoever asks, whole or not at all, and never trusted when damaged."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.errors import ArtifactError, WorkerError
from harness.base.files import default_root
from harness.runtime.store import Store
from tests.laws import examples

KEY = {"model": "small", "versions": {"torch": "2.13.0"}}
FACTS = {"bytes": 12, "layers": {"a|b\n": 1.5}, "note": "é", "none": None}
CONTENTS = {"weights.bin": b"\x00\x01weights", "deep/config.json": b'{"a": 1}', "empty": b""}


def build(folder: Path) -> dict[str, Any]:
    for name, content in CONTENTS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return FACTS


def refuse(folder: Path) -> dict[str, Any]:
    raise AssertionError("must not be built again")


def folders_of(root: Path) -> list[str]:
    """Return the names of the artifact folders under ``root``, hidden ones included."""
    return [path.name for kind in root.iterdir() for path in kind.iterdir() if path.is_dir()]


# ---------------------------------------------------------------------------------------------------------- built once


def test_the_same_key_is_built_once_and_says_what_its_maker_said(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert not store.holds("thing", KEY)
    first = store.get("thing", KEY, build, label="a thing")
    again = store.get("thing", dict(reversed(KEY.items())), refuse, label="a thing")
    elsewhere = Store(tmp_path).get("thing", KEY, refuse, label="a thing")
    assert first == again == elsewhere
    assert (first.made, elsewhere.made) == (True, False)
    assert first.facts == elsewhere.facts == FACTS
    assert {name: (first.folder / name).read_bytes() for name in CONTENTS} == CONTENTS
    assert store.holds("thing", KEY)


@pytest.mark.parametrize("other", [{**KEY, "model": "big"}, {**KEY, "x": None}, {"model": "small"}, {}], ids=str)
def test_another_key_or_kind_is_another_artifact(tmp_path: Path, other: dict[str, Any]) -> None:
    store = Store(tmp_path)
    first = store.get("thing", KEY, build, label="a thing")
    assert store.get("thing", other, lambda _: None, label="a thing").folder != first.folder
    assert store.get("other", KEY, lambda _: None, label="a thing").folder != first.folder


_RIVAL = """
import sys, time
from pathlib import Path
from harness.runtime.store import Store
root, name, other = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
def build(folder):
    with (root / "built").open("a") as file:
        file.write(name)
    (folder / "who").write_text(name)
(root / name).touch()
while not (root / other).exists():
    time.sleep(0.01)
artifact = Store(root / "cache").get("thing", {}, build, label="a thing")
print(artifact.made, (artifact.folder / "who").read_text())
"""


def test_two_processes_at_once_build_once(tmp_path: Path) -> None:
    rivals = [
        subprocess.Popen([sys.executable, "-c", _RIVAL, str(tmp_path), *names], stdout=subprocess.PIPE, text=True)
        for names in ("ab", "ba")
    ]
    answers = sorted(rival.communicate(timeout=60)[0].split() for rival in rivals)
    winner = (tmp_path / "built").read_text()
    assert winner in ("a", "b")
    assert answers == [["False", winner], ["True", winner]]


# ------------------------------------------------------------------------------------------------------ never trusted


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store that a test damages again and again."""
    return tmp_path_factory.mktemp("damaged")


@examples(40)
@given(st.data())
def test_any_byte_may_be_damaged(damaged: Path, data: st.DataObject) -> None:
    folder = Store(damaged).get("thing", KEY, build, label="a thing").folder
    path = data.draw(st.sampled_from([path for path in sorted(folder.rglob("*")) if path.is_file()]))
    content = bytearray(path.read_bytes())
    if content and data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    elif content and data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content += data.draw(st.binary(min_size=1, max_size=3))
    path.write_bytes(content)
    artifact = Store(damaged).get("thing", KEY, build, label="a thing")
    assert artifact.facts == FACTS
    assert {name: (artifact.folder / name).read_bytes() for name in CONTENTS} == CONTENTS


@pytest.mark.parametrize("name", [*CONTENTS, "artifact.json"])
def test_a_missing_file_is_made_again_and_said(tmp_path: Path, name: str) -> None:
    (Store(tmp_path).get("thing", KEY, build, label="a thing").folder / name).unlink()
    said: list[str] = []
    artifact = Store(tmp_path, said.append).get("thing", KEY, build, label="a thing")
    assert artifact.made
    assert (artifact.folder / name).exists()
    assert len(said) == 1
    assert said[0].startswith("a thing: the stored artifact is damaged (")


def test_one_that_an_older_version_said_less_of_is_made_again(tmp_path: Path) -> None:
    def build_of_before(folder: Path) -> dict[str, Any]:
        return {name: value for name, value in build(folder).items() if name != "layers"}

    Store(tmp_path).get("thing", KEY, build_of_before, label="a thing")
    assert not Store(tmp_path).get("thing", KEY, refuse, label="a thing", facts=["bytes"]).made
    said: list[str] = []
    artifact = Store(tmp_path, said.append).get("thing", KEY, build, label="a thing", facts=[*FACTS])
    assert artifact.facts == FACTS
    assert said == ["a thing: the stored artifact is of an older version (its facts lack: layers); building it again"]
    assert not Store(tmp_path).get("thing", KEY, refuse, label="a thing", facts=[*FACTS]).made


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"files": [], "facts": {}}', '{"files": {}}', "\x00"])
def test_a_manifest_that_is_none_is_not_trusted(tmp_path: Path, text: str) -> None:
    (Store(tmp_path).get("thing", KEY, build, label="a thing").folder / "artifact.json").write_text(text)
    assert Store(tmp_path).get("thing", KEY, build, label="a thing").facts == FACTS


def test_a_folder_that_may_gain_files_is_not_read_through(tmp_path: Path) -> None:
    folder = Store(tmp_path).get("thing", KEY, build, label="a thing", verify=False).folder
    (folder / "weights.bin").write_bytes(b"\x00\x01WEIGHTS")
    (folder / "new").touch()
    assert not Store(tmp_path).get("thing", KEY, refuse, label="a thing", verify=False).made
    (folder / "weights.bin").write_bytes(b"shorter")
    assert Store(tmp_path).get("thing", KEY, build, label="a thing", verify=False).made


# ------------------------------------------------------------------------------------------------ whole or not at all


def fill(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(b"half of it")
    with Path("/dev/full").open("w") as file:
        file.write("more than there is room for")


def fail(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(b"half of it")
    raise ValueError("the builder's own words")


def interrupt(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(b"half of it")
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("builder", "error", "words"),
    [
        (fail, ValueError, "the builder's own words"),
        (interrupt, KeyboardInterrupt, None),
        pytest.param(
            fill,
            ArtifactError,
            "a thing: the disk of the cache .* is full; .*--cache",
            marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full"),
        ),
    ],
)
def test_a_builder_that_fails_leaves_nothing(
    tmp_path: Path, builder: Callable[[Path], None], error: type[BaseException], words: str | None
) -> None:
    store = Store(tmp_path)
    with pytest.raises(error, match=words):
        store.get("thing", KEY, builder, label="a thing")
    assert folders_of(tmp_path) == []
    assert not store.holds("thing", KEY)
    assert store.get("thing", KEY, build, label="a thing").made


def refused_by_disk(number: int) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        raise OSError(number, os.strerror(number))

    return build


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "is full; free some space"),
        (errno.EDQUOT, "is full; free some space"),
        (errno.EFBIG, "takes no file as large"),
        (errno.EROFS, "is read-only"),
        (errno.EACCES, "refuses to be written by you"),
    ],
)
def test_a_cache_that_cannot_be_written_is_named_with_the_option(tmp_path: Path, number: int, words: str) -> None:
    with pytest.raises(ArtifactError, match=f"a thing: the disk of the cache {tmp_path} {words}.*--cache"):
        Store(tmp_path).get("thing", KEY, refused_by_disk(number), label="a thing")
    assert folders_of(tmp_path) == []


def test_what_a_worker_says_of_a_full_disk_names_the_cache_too(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        told = "OSError: [Errno 28] No space left on device"
        raise WorkerError(
            f"m: quantize: {told}", stage="quantize", kind="exception", log_tail="its log", worker="quantize"
        )

    with pytest.raises(
        WorkerError, match=f"m: quantize: .*the disk of the cache {tmp_path} is full.*--cache"
    ) as caught:
        Store(tmp_path).get("thing", KEY, build, label="a thing")
    assert (caught.value.stage, caught.value.kind, caught.value.log_tail) == ("quantize", "exception", "its log")


_HANGING = """
import sys, time
from pathlib import Path
from harness.runtime.store import Store
def build(folder):
    (folder / "weights.bin").write_bytes(b"half of it")
    print("building", flush=True)
    time.sleep(600)
Store(Path(sys.argv[1])).get("thing", {"model": "small", "versions": {"torch": "2.13.0"}}, build, label="a thing")
"""


def test_a_killed_builder_leaves_nothing_that_the_next_trusts_or_keeps(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HANGING, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "building\n"
        os.kill(builder.pid, signal.SIGKILL)
    assert len(folders_of(tmp_path)) == 1
    artifact = Store(tmp_path).get("thing", KEY, build, label="a thing")
    assert artifact.made
    assert folders_of(tmp_path) == [artifact.folder.name]


def test_the_default_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "torchao-harness"
