"""A word of a command that is told is one that a shell reads as it was."""

from __future__ import annotations

import os
import subprocess

from hypothesis import given
from hypothesis import strategies as st

from harness.base.text import quoted
from tests.laws import examples

WORDS = st.lists(st.text("ab ~/'\"$`\\!*\t", max_size=12), min_size=1, max_size=20)


@given(words=WORDS)
@examples(15)
def test_a_shell_reads_the_word(words: list[str]) -> None:
    command = f"printf '%s\\0' {' '.join(map(quoted, words))}"
    read = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout.split("\0")[:-1]
    home = os.path.expanduser("~")
    assert read == [f"{home}{word[1:]}" if word.startswith("~/") else word for word in words]
