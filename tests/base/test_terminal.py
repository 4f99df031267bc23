"""Nothing that is printed is wider than asked, and nothing of it is lost."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.terminal import Folded, Folding, columns, fold, unfolded, width

# Letters, what is wide, what stands over others, a colour, and all kinds of breaks.
TEXTS = st.text(st.sampled_from(" \n\tab/_é漢́"), max_size=200) | st.text(max_size=200)
COLOURED = st.lists(st.sampled_from(["word ", "\x1b[31m", "\x1b[0m", "x" * 70, "漢字", " ", "\n"]), max_size=30)


def solid(text: str) -> str:
    return "".join(text.split())


@given(text=TEXTS, wide=st.integers(40, 100), hang=st.integers(0, 4))
def test_no_line_is_wider_and_nothing_is_lost(text: str, wide: int, hang: int) -> None:
    lines = fold(text, wide, hang=hang)
    assert max(map(width, lines)) <= wide
    assert solid("".join(lines)) == solid(text)


@given(pieces=COLOURED, wide=st.integers(40, 100))
def test_pieces_are_folded_as_one_text_is(pieces: list[str], wide: int) -> None:
    stream = io.StringIO()
    folded = Folded(stream, wide)
    for piece in pieces:
        folded.write(piece)
    assert all(width(line) <= wide for line in stream.getvalue().split("\n"))
    assert solid(stream.getvalue()) == solid("".join(pieces))
    assert folded.column <= wide


def test_a_word_after_a_full_line_begins_a_new_one() -> None:
    assert max(map(width, fold(f" word {'x' * 70} {'x' * 70}", 40))) <= 40


@given(text=st.text(st.characters(categories=["L", "N", "P"]), max_size=40))
def test_what_fits_stays_as_it_is(text: str) -> None:
    assert Folding(200)(f"  {text} and so on\n") == f"  {text} and so on\n"


def test_a_line_goes_on_further_in_than_it_began() -> None:
    assert fold("    " + "word " * 12, 40) == [
        "    word word word word word word word",
        "      word word word word word",
    ]


def test_a_path_is_broken_behind_a_slash() -> None:
    first, second = fold("records: " + "/a-folder" * 7, 40)
    assert first.endswith("/")
    assert second.startswith("  a-folder")


@pytest.mark.parametrize(("asked", "given"), [("250", 100), ("80", 80), ("100", 100), ("10", 40)])
def test_as_wide_as_the_terminal_and_never_over_100(monkeypatch: pytest.MonkeyPatch, asked: str, given: int) -> None:
    monkeypatch.setenv("COLUMNS", asked)
    assert columns() == given


def test_data_goes_past_the_folding() -> None:
    stream = io.StringIO()
    unfolded(Folded(stream, 40)).write("x," * 60)
    assert stream.getvalue() == "x," * 60
    assert unfolded(stream) is stream
