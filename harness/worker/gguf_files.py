"""GGUF files read once: Transformers reads all of one anew for its configuration, its weights and its tokenizer.

To read one takes seconds, since each token of its vocabulary is a field; and the table of all names of an
architecture's tensors is made for each module of a model.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock


@contextlib.contextmanager
def read_once() -> Iterator[None]:
    """Have each file read, and each architecture's table of names made, once in this block; nobody changes them."""
    import gguf

    known = functools.cache(gguf.get_tensor_name_map)
    read = functools.cache(gguf.GGUFReader)

    def reader(path: Any, mode: Any = "r") -> Any:
        return read(os.fspath(path), mode)

    with mock.patch.object(gguf, "GGUFReader", reader), mock.patch.object(gguf, "get_tensor_name_map", known):
        yield
