"""What a test needs beside the project itself; to look for it imports nothing, so collecting stays quick."""

from __future__ import annotations

import importlib.util
import shutil

import pytest


def package(name: str) -> pytest.MarkDecorator:
    """Skip where a package is not installed."""
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


def program(name: str, debian: str = "") -> pytest.MarkDecorator:
    """Skip where a program is not installed; ``debian`` is the package that has it, if that is called otherwise."""
    return pytest.mark.skipif(not shutil.which(name), reason=f"no {name}; on Debian: apt-get install {debian or name}")
