"""A command that is printed can be pasted: it is broken as a shell reads it, or not at all."""

from __future__ import annotations

import io
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.terminal import Folded, fold, width

WORDS = st.lists(st.text("ab'\"$ /é-=", min_size=1, max_size=30), min_size=1, max_size=30)
PROGRAMS = (["python", "-m", "harness"], ["ray", "start"])
LABELS = ("find it: ", "accept it: ", "next: ", "-> ", "    12 s  next: ", "")


@given(
    program=st.sampled_from(PROGRAMS),
    words=WORDS,
    wide=st.integers(60, 100),
    label=st.sampled_from(LABELS),
    indent=st.integers(0, 20),
)
def test_what_a_shell_reads_of_a_folded_command_is_the_command(
    program: list[str], words: list[str], wide: int, label: str, indent: int
) -> None:
    command = [*program, *words]
    lines = fold(" " * indent + label + shlex.join(command), wide)
    # As a shell does, and shlex does not.
    joined = "\n".join(lines).replace("\\\n", "")
    assert shlex.split(joined.strip().removeprefix(label.strip())) == command
    assert max(map(width, lines)) <= max(wide, indent + 50 + max(len(shlex.quote(word)) for word in words))


@given(words=WORDS, wide=st.integers(60, 100), label=st.sampled_from(LABELS))
def test_a_command_that_was_folded_before_stays_as_it_is(words: list[str], wide: int, label: str) -> None:
    once = fold(label + shlex.join(["python", "-m", "harness", *words]), wide)
    assert "\n".join(fold("\n".join(once), wide)).split("\n") == once


@given(words=WORDS, wide=st.integers(60, 100))
def test_how_to_go_on_is_one_line(words: list[str], wide: int) -> None:
    line = f"go on with: {shlex.join(['python', '-m', 'pytest', *words])}"
    assert fold(line, wide) == [line]


@pytest.mark.parametrize(
    "pieces", [["find it: ", "python", " -m harness", " gate"], ["find", " it: python -m harness gate"]]
)
def test_a_command_may_come_in_pieces(pieces: list[str]) -> None:
    stream = io.StringIO()
    folded = Folded(stream, 60)
    for piece in [*pieces, " --model some-model" * 6, "\nwhat follows is text again " * 5]:
        folded.write(piece)
    lines = stream.getvalue().split("\n")
    assert [line.endswith(" \\") for line in lines[:3]] == [True, True, False]
    assert max(map(width, lines)) <= 60


@pytest.mark.parametrize("line", ["python is a snake ", "a harness and a pytest ", "what next: think "])
def test_what_only_begins_like_a_command_is_text(line: str) -> None:
    assert "\\" not in "".join(fold(line * 10, 60))
