"""Artifacts between machines: made once, checked before use, and made here where the shared store does not answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.errors import ArtifactError
from harness.base.text import digest
from harness.runtime.shared import Shared
from harness.runtime.store import MANIFEST, Store
from tests import needs
from tests.laws import examples
from tests.runtime import object_stores
from tests.runtime.test_artifacts import CONTENTS, FACTS, KEY, build, refuse

pytestmark = needs.package("fsspec")
NAME = f"checkpoint/{digest(KEY)}"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket of S3 on the loopback."""
    if why := object_stores.missing("s3"):
        pytest.skip(why)
    with object_stores.serving("s3", tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture(scope="module")
def gs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket of Google Cloud Storage on the loopback."""
    if why := object_stores.missing("gs"):
        pytest.skip(why)
    with object_stores.serving("gs", tmp_path_factory.mktemp("gs")) as url:
        yield url


@pytest.fixture(params=["folder", "s3", "gs"])
def common(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An address that several processes reach."""
    if request.param == "folder":
        return str(tmp_path / "shared")
    return f"{request.getfixturevalue(request.param)}/{tmp_path.name}"


@pytest.fixture(params=["folder", "memory", "s3", "gs"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder, and file systems of objects: without links, renames or locks."""
    if request.param == "folder":
        yield str(tmp_path / "shared")
        return
    if request.param != "memory":
        yield f"{request.getfixturevalue(request.param)}/{tmp_path.name}"
        return
    import fsspec

    yield f"memory://{tmp_path.name}"
    files = fsspec.filesystem("memory")
    if files.exists(f"/{tmp_path.name}"):
        files.rm(f"/{tmp_path.name}", recursive=True)


def machine(folder: Path, url: str, said: list[str] | None = None) -> Store:
    """Return the store of a machine of its own."""
    say = (said if said is not None else []).append
    return Store(folder, say, Shared.at(url, say))


def get(store: Store, make: Callable[[Path], dict[str, Any] | None] = build, kind: str = "checkpoint") -> Any:
    return store.get(kind, KEY, make, label="it", facts=["bytes"] if make is not build else [])


def test_what_one_machine_makes_another_fetches(tmp_path: Path, url: str) -> None:
    said: list[str] = []
    assert get(machine(tmp_path / "one", url)).made
    found = get(machine(tmp_path / "two", url, said), refuse)
    assert not found.made
    assert found.facts == FACTS
    assert {name: (found.folder / name).read_bytes() for name in CONTENTS} == CONTENTS
    assert said == ["it: fetched from the shared store"]
    # Nothing but the artifact and its pointer is left there.
    shared = Shared.at(url, said.append)
    there = sorted(path.removeprefix(shared.root) for path in shared.files.find(shared.root))
    assert len(there) == len(CONTENTS) + 2
    assert there.count(f"/{NAME}.json") == 1


def test_what_a_machine_has_already_is_given_to_others(tmp_path: Path, url: str) -> None:
    get(Store(tmp_path / "one"))
    get(machine(tmp_path / "one", url), refuse)
    get(machine(tmp_path / "two", url), refuse)


@examples(20)
@given(data=st.data())
def test_any_byte_of_it_may_be_damaged(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    url = str(folder / "shared")
    get(machine(folder / "one", url))
    files = sorted(path for path in Path(url).rglob("*") if path.is_file() and path.stat().st_size)
    path = data.draw(st.sampled_from(files))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    made: list[Path] = []

    def again(folder: Path) -> dict[str, Any]:
        made.append(folder)
        return build(folder)

    found = get(machine(folder / "two", url), again)
    assert {name: (found.folder / name).read_bytes() for name in CONTENTS} == CONTENTS
    assert found.facts == FACTS
    if made:
        # The sound one took its place.
        get(machine(folder / "three", url), refuse)


def test_an_object_that_is_damaged_is_taken_out_and_made_again(tmp_path: Path, url: str) -> None:
    get(machine(tmp_path / "one", url))
    shared = Shared.at(url, print)
    (weights,) = [path for path in shared.files.find(shared.root) if path.endswith("weights.bin")]
    shared.files.pipe_file(weights, CONTENTS["weights.bin"][:-1] + b"?")
    said: list[str] = []
    found = get(machine(tmp_path / "two", url, said))
    assert found.made
    assert {name: (found.folder / name).read_bytes() for name in CONTENTS} == CONTENTS
    assert "what the shared store has cannot be used" in said[0]
    get(machine(tmp_path / "three", url), refuse)


def test_what_an_artifact_says_lies_outside_of_it_is_not_written(tmp_path: Path) -> None:
    url = str(tmp_path / "shared")
    get(machine(tmp_path / "one", url))
    pointer = tmp_path / "shared" / f"{NAME}.json"
    told = json.loads(pointer.read_text())
    file = tmp_path / "shared" / NAME / told["folder"] / MANIFEST
    manifest = json.loads(file.read_text())
    del manifest["digest"]
    manifest["files"]["../../../../escaped"] = manifest["files"]["weights.bin"]
    manifest["digest"] = digest(manifest)
    file.write_text(json.dumps(manifest))
    pointer.write_text(json.dumps(told | {"digest": manifest["digest"]}))
    said: list[str] = []
    assert get(machine(tmp_path / "two", url, said)).made
    assert "lies outside of it" in said[0]
    assert not list(tmp_path.rglob("escaped"))


def test_of_two_that_were_made_the_first_counts(tmp_path: Path, url: str) -> None:
    stores = [machine(tmp_path / name, url) for name in ("one", "two")]
    for store in stores:
        shared, store.shared = store.shared, None
        get(store)
        store.shared = shared
    for store in stores:
        assert store.shared
        real = store.shared._read
        # Neither has seen the other's.
        store.shared._read = lambda path, real=real: None if path.endswith(".json") else real(path)  # type: ignore[method-assign,misc]
        store.shared.publish(NAME, store.root / NAME)
    shared = Shared.at(url, print)
    assert len(shared.files.find(shared.root)) == len(CONTENTS) + 2


def test_environments_and_evaluations_stay_where_they_were_made(tmp_path: Path, url: str) -> None:
    for kind in ("venv", "evaluation"):
        get(machine(tmp_path / "one", url), kind=kind)
        assert get(machine(tmp_path / "two", url), kind=kind).made


class Broken:
    """A file system that fails as soon as it is asked."""

    asked = 0

    def __getattr__(self, name: str) -> Any:
        def fail(*given: Any, **more: Any) -> Any:
            Broken.asked += 1
            raise ConnectionError("no route to host")

        return fail


def test_a_store_that_does_not_answer_is_told_of_once(tmp_path: Path) -> None:
    said: list[str] = []
    store = Store(tmp_path, said.append, Shared(Broken(), "/x", said.append))
    assert get(store).made
    assert store.get("plain", KEY, build, label="other").made
    assert said == [
        "the shared store does not answer (ConnectionError: no route to host); this machine makes artifacts for itself"
    ]
    assert Broken.asked == 1


def test_an_address_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="--share nothing://there: "):
        Shared.at("nothing://there", print)


MAKER = """
import sys, time
from pathlib import Path
from harness.runtime.shared import Shared
from harness.runtime.store import Store
from tests.runtime.test_artifacts import KEY, build
root, url, seconds, lease = sys.argv[1:]
shared = Shared.at(url, print)
shared.lease, shared.look = float(lease), 0.05
def slow(folder):
    with open(Path(root).with_name("made"), "a") as file:
        file.write(root + "\\n")
    print("making", flush=True)
    time.sleep(float(seconds))
    return build(folder)
Store(Path(root), lambda words: print(words, flush=True), shared).get("checkpoint", KEY, slow, label="it")
"""


def start(folder: Path, url: str, name: str, seconds: float, lease: float = 60.0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAKER, str(folder / name), url, str(seconds), str(lease)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


@pytest.mark.programs
def test_two_machines_at_once_make_it_once(tmp_path: Path, common: str) -> None:
    both = [start(tmp_path, common, name, 1.0) for name in ("one", "two")]
    for process in both:
        process.communicate(timeout=120)
        assert process.returncode == 0
    assert len((tmp_path / "made").read_text().split()) == 1
    assert all((tmp_path / name / NAME / "weights.bin").is_file() for name in ("one", "two"))
    shared = Shared.at(common, print)
    assert not [path for path in shared.files.find(shared.root) if path.endswith(".lock")]


@pytest.mark.programs
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_what_a_machine_that_died_or_hangs_was_making_another_makes(
    tmp_path: Path, common: str, how: signal.Signals
) -> None:
    first = start(tmp_path, common, "one", 600.0, lease=1.0)
    try:
        assert first.stdout
        while "making" not in first.stdout.readline():
            pass
        os.kill(first.pid, how)
        started = time.monotonic()
        second = start(tmp_path, common, "two", 0.0, lease=1.0)
        said, _ = second.communicate(timeout=120)
        assert second.returncode == 0
        assert "has said nothing for 1 s; taken over" in said
        assert time.monotonic() - started >= 1.0
    finally:
        first.kill()
        first.communicate()
    assert get(machine(tmp_path / "three", common), refuse).facts == FACTS
