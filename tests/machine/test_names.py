"""No code names a GPU: what there is of hardware stands in the matrix, in pyproject's extras and in vendors' files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.matrix.plan import Matrix

# Products, and families of them, of NVIDIA and AMD, whether a matrix has them or not.
PRODUCTS = re.compile(
    r"(?<![a-z0-9])(?:"
    r"g?[hb][123]00|gb?300|[ahl]\d0[sg]?|[ahl]\d00|l4|t4|v100|p100|(?:geforce|rtx|gtx|quadro|tesla)[ -]?\d*|"
    r"mi\d{3}[axp]?|instinct|radeon|hopper|blackwell|ampere|turing|volta"
    r")(?![a-z0-9])",
    re.IGNORECASE,
)
VENDOR_FILES = ("nvidia.py", "amd.py")


def code(repository: Path) -> list[Path]:
    """Every text of the harness and of the suites, but for the matrix and the vendors' files."""
    kinds = {".py", ".toml", ".j2", ".js", ".css", ".cpp", ".txt", ".md", ".json"}
    files = [path for path in (repository / "harness").rglob("*") if path.suffix in kinds]
    files += [*(repository / "suites").glob("*.py"), repository / "conftest.py", repository / "tox.ini"]
    files = [path for path in files if path.name != "matrix.toml"]
    return [path for path in files if path.parent.name != "machine" or path.name not in VENDOR_FILES]


def test_no_code_names_a_gpu(repository: Path, suites_matrix: Matrix) -> None:
    names = "|".join(re.escape(name) for name, it in suites_matrix.hardware.items() if it.is_gpu)
    own = re.compile(rf"(?<![a-z0-9])(?:{names})(?![a-z0-9])", re.IGNORECASE)
    found = [
        f"{path.relative_to(repository)}:{number}: {line.strip()}"
        for path in code(repository)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if PRODUCTS.search(line) or own.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "h100",
        "an H200",
        "A100-SXM4",
        "L40S",
        "L4 ",
        "RTX 4090",
        "rtx4090",
        "GH200",
        "B200",
        "MI300X",
        "mi300",
        "Hopper",
    ],
)
def test_what_would_be_found(text: str) -> None:
    assert PRODUCTS.search(text)


@pytest.mark.parametrize("text", ["head", "sm_90", "gfx942", "float8", "a1", "b2", "http", "utf-8", "l1", "e4m3fn"])
def test_what_is_none(text: str) -> None:
    assert not PRODUCTS.search(text)
