"""What the library of a GPU's vendor is asked: which GPU is measured, what it is, and its state; a file a vendor."""

from __future__ import annotations

import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import ClassVar

from harness.matrix.hardware import Arithmetic
from harness.records.schema import Scalar

State = dict[str, Scalar]


class Unseen(LookupError):
    """A vendor's library is not here, or tells of no GPU; the message says why."""


class Vendor(ABC):
    """Asks a vendor's library about the one GPU that programs see as their first. Settings are read, never changed.

    ``title`` is the vendor's name, ``choice`` the variable that chooses among several GPUs.
    """

    title: ClassVar[str]
    choice: ClassVar[str]

    @abstractmethod
    def product(self) -> str:
        """Return the product name. Raises Unseen."""

    @abstractmethod
    def capability(self) -> str:
        """Return the compute capability, as 9.0, or the architecture, as gfx942."""

    @abstractmethod
    def arithmetic(self, capability: str) -> tuple[Arithmetic, ...]:
        """Return the data types that GPUs of a capability have matrix products of."""

    @abstractmethod
    def uuid(self) -> str:
        """Return what tells the GPU from all others."""

    def count(self) -> int:
        """Return how many GPUs programs see here."""
        return 1

    @abstractmethod
    def unfit(self) -> str:
        """Return why this environment's torch cannot run on the GPU, or an empty string."""

    @abstractmethod
    def detail(self) -> State:
        """Return driver and memory, for records."""

    @abstractmethod
    def state(self) -> State:
        """Return clocks, temperature, power, memory in use and tenants; of what is not told, why.

        Raises Unseen where nothing is told.
        """

    def energy(self) -> float:
        """Return joules that the GPU has taken since some moment. Raises Unseen where there is no such counter."""
        raise Unseen(f"the library of {self.title} is not asked for a counter of energy")

    @abstractmethod
    def slowed(self) -> list[str]:
        """Return what slows the GPU down now, but for the power cap under which a busy one always runs.

        Raises Unseen.
        """

    @abstractmethod
    def processes(self) -> list[int]:
        """Return the ids of the processes that are on the GPU. Raises Unseen."""


def answers(
    questions: Mapping[str, Callable[[], Scalar]], error: type[Exception], words: Callable[[Exception], str] = str
) -> State:
    """Ask each question; one that raises ``error`` is answered with why, in its ``words``.

    Where each of them raises it, so does this: nobody is there to be asked.
    """
    found: State = {}
    refused: list[Exception] = []
    for name, question in questions.items():
        try:
            found[name] = question()
        except error as problem:
            found[name] = f"not available: {words(problem)}"
            refused.append(problem)
    if refused and len(refused) == len(questions):
        raise refused[-1]
    return found


def torch_built_for(names: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Return torch's version here, and the versions of CUDA or HIP (``names``) that it says it was built for.

    It is not imported; both are empty where it is not installed.
    """
    try:
        torch = importlib.metadata.distribution("torch")
        text = Path(str(torch.locate_file("torch/version.py"))).read_text(encoding="utf-8")
    except (importlib.metadata.PackageNotFoundError, OSError):
        return "", {}
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition("=")
        name = name.partition(":")[0].strip()
        if name in names and value.strip() != "None":
            found[name] = value.strip().strip("'\"")
    return torch.version, found
