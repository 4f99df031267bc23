"""Calibration text: answers of ShareGPT that no evaluation reads, or a file's, without what is evaluated."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.base.errors import ArtifactError
from harness.base.reading import json_value
from harness.contract.calibrated import Pieces
from harness.runtime import sources
from harness.runtime.store import Artifact, Store

TEXT = "text.txt"
_FIRST, _LAST = sources.EVALUATED_CONVERSATIONS, 2 * sources.EVALUATED_CONVERSATIONS
# A file may hold gigabytes; the head of an evaluated text is more than any evaluation reads.
_HEAD = 2_000_000
# More characters than a token has in any text that is worth calibrating on.
_CHARACTERS = 16


def answers(file: Path) -> list[str]:
    """Return the answers of a ShareGPT file's conversations after those whose answers are evaluated.

    Raises ArtifactError for a file that has no more of them.
    """
    found = sources.answers(sources.read_conversations(_read(file), _LAST)[_FIRST:])
    if not found:
        raise ArtifactError(
            f"{file} has no conversation after the first {_FIRST}, whose answers are evaluated, so there is none to "
            "calibrate a recipe on: give a text of its own (--calibration FILE)"
        )
    return found


def of_file(file: Path) -> list[str]:
    """Return the documents of a file: of JSON lines their ``text``, of any other its paragraphs."""
    text = _read(file)
    if file.suffix == ".jsonl":
        try:
            found = [str(json_value(line)["text"]) for line in text.splitlines() if line.strip()]
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"--calibration {file}: a line is no JSON object with a `text` ({error})") from error
    else:
        found = text.split("\n\n")
    found = [one.strip() for one in found if one.strip()]
    if not found:
        raise ArtifactError(f"--calibration {file} holds no text")
    return found


@functools.cache
def digest(file: Path, sharegpt: bool = False) -> str:
    """Return the SHA-256 of the documents that a file gives to calibrate on."""
    return _digest(answers(file) if sharegpt else of_file(file))


def text(store: Store, data: Path | None, wanted: dict[str, Any], evaluated: Artifact) -> Artifact:
    """Return an artifact with a calibration text, ``text.txt``, of the documents that no evaluated text holds.

    ``wanted`` is a recipe's calibration: ``file`` or none for ShareGPT, its ``sha256``, ``sequences`` and ``tokens``.
    Facts: ``documents`` kept, and ``dropped`` since ``evaluated`` holds a piece of them. Raises ArtifactError for
    another text than the recipe's, and where nothing is left.
    """
    characters = wanted["sequences"] * wanted["tokens"] * _CHARACTERS

    def build(folder: Path) -> dict[str, Any]:
        file = Path(wanted["file"]) if wanted.get("file") else sources.sharegpt_file(store, data)[0]
        documents = of_file(file) if wanted.get("file") else answers(file)
        if (found := _digest(documents)) != wanted["sha256"]:
            raise ArtifactError(
                f"{file}: its text to calibrate on has the SHA-256 {found}, and the recipe's is {wanted['sha256']}: "
                "it has changed, or is another ShareGPT: give the text itself (--calibration FILE)"
            )
        with (evaluated.folder / TEXT).open(encoding="utf-8") as opened:
            pieces = Pieces(opened.read(_HEAD).split("\n\n"))
        kept: list[str] = []
        length = dropped = 0
        for one in documents:
            if length >= characters:
                break
            if pieces.in_common(one):
                dropped += 1
            else:
                kept.append(one)
                length += len(one)
        if not kept:
            raise ArtifactError(f"{file}: all of it is text that is evaluated, and none is left to calibrate on")
        (folder / TEXT).write_text("\n\n".join(kept), encoding="utf-8")
        return {"documents": len(kept), "dropped": dropped}

    key = {"sha256": wanted["sha256"], "characters": characters, "evaluated": evaluated.key}
    return store.get("calibration", key, build, label="calibration text")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="ignore")
    except OSError as error:
        raise ArtifactError(f"calibration text {file} cannot be read: {error.strerror}") from error


def _digest(documents: Sequence[str]) -> str:
    return hashlib.sha256("\n\n".join(documents).encode("utf-8", "surrogatepass")).hexdigest()
