"""What one side of a gate is asked for, as text: a requirement, several of them, a wheel, or a lock."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlparse

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from harness.base.errors import BrokenEnvironment
from harness.base.files import is_file

_OTHER_LOCKS = ("uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock", "pylock.toml")


def joined(parts: Sequence[str]) -> str:
    """Return what was given word by word as one text, from which :func:`parts` has the words again."""
    return parts[0] if len(parts) == 1 else shlex.join(parts)


def is_lock(text: str) -> bool:
    """Return whether a text names a file that says every package of an environment."""
    return is_file(text) and Path(text).suffix != ".whl"


def parts(text: str) -> tuple[str, ...]:
    """Return the requirements and wheels of a text, each as pip takes it.

    Raises BrokenEnvironment for what is neither, for a wheel that is not there, and for sources in a folder.
    """
    if is_lock(text):
        raise BrokenEnvironment(f"{text}: a lock says all of its side, and is named alone")
    if problem := _problem(text):
        words = _words(text)
        if len(words) < 2:
            raise BrokenEnvironment(problem)
        if any(_plain(word) for word in words):
            raise BrokenEnvironment(problem)
        found = tuple(one for word in words for one in parts(word))
        return found
    return (_absolute(text),)


def name_of(part: str) -> str:
    """Return which package a requirement or a wheel is of, as the index spells it.

    Raises BrokenEnvironment for a wheel whose file has another kind of name than wheels have.
    """
    if not _is_wheel(part):
        return canonicalize_name(Requirement(part).name)
    try:
        return parse_wheel_filename(Path(part).name)[0]
    except InvalidWheelFilename as error:
        raise BrokenEnvironment(f"{part}: {error}") from error


def lock_file(text: str) -> Path:
    """Return the lock that a text names. Raises BrokenEnvironment for a kind that pip does not read."""
    file = Path(text).resolve()
    if file.name in _OTHER_LOCKS or file.suffix == ".toml":
        raise BrokenEnvironment(
            f"{text}: not a file of requirements: write one of it, as with uv export --format requirements-txt "
            "--no-hashes, or pip freeze"
        )
    return file


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return []


def _plain(word: str) -> bool:
    """Return whether a word is a bare name, as of a sentence, which says nothing of a version."""
    if word.endswith(".whl"):
        return False
    try:
        one = Requirement(word)
    except InvalidRequirement:
        return False
    return not (one.specifier or one.url)


def _absolute(text: str) -> str:
    return str(Path(text).resolve()) if _is_wheel(text) else text


def _is_wheel(text: str) -> bool:
    return (text.endswith(".whl") and "@" not in text and len(_words(text)) < 2) or is_file(text)


def _is_requirement(text: str) -> bool:
    try:
        Requirement(text)
    except InvalidRequirement:
        return False
    return True


def _problem(text: str) -> str:
    """Say why a text is not one requirement or wheel; empty where it is."""
    if _is_wheel(text):
        return "" if Path(text).is_file() else f"{text}: there is no such wheel"
    try:
        url = urlparse(Requirement(text).url or "")
    except InvalidRequirement as error:
        meant = re.sub(r"(?<![=<>~!])=(?!=)", "==", text)
        told = f"did you mean {meant}?" if _is_requirement(meant) else str(error).splitlines()[0]
        return f"{text!r} is neither a requirement, such as torchao==0.17.0, nor a wheel: {told}"
    if url.scheme == "file" and Path(unquote(url.path)).is_dir():
        raise BrokenEnvironment(f"{text}: sources in a folder may change under a gate; build a wheel of them")
    return ""
