"""What is read from files that others wrote."""

from __future__ import annotations

import re

import pytest

from harness.base.reading import check_pattern


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("pattern", ["[[]proj", "[a||b]", "layers[.][[0-9]"])
def test_a_pattern_that_a_later_python_may_read_otherwise_is_read_as_this_one_does(pattern: str) -> None:
    re.purge()
    check_pattern(pattern)


def test_a_text_that_is_no_pattern_is_named() -> None:
    with pytest.raises(ValueError, match=r"'\[\[' is not a regular expression: unterminated character set"):
        check_pattern("[[")
