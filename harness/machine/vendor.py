"""What the library of a GPU's vendor is asked: which GPU is measured, what it is, and its state; a file a vendor."""

from __future__ import annotations

import functools
import importlib.metadata
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from harness.matrix.hardware import Arithmetic
from harness.records.schema import Scalar

State = dict[str, Scalar]


class Unseen(LookupError):
    """A vendor's library is not here, or tells of no GPU; the message says why."""


class Vendor(ABC):
    """Asks a vendor's library about the GPUs that programs see as their first. Settings are read, never changed.

    ``gpus`` is how many of them, one where it is left out: those that share a model.

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
    def uuids(self, gpus: int = 1) -> list[str]:
        """Return what tells each of the GPUs from all others. Raises Unseen where there are fewer."""

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
    def state(self, gpus: int = 1) -> State:
        """Return clocks, temperature, power, memory in use and tenants; of what is not told, why.

        Of several GPUs that is the lowest clock, the highest temperature, and all power, memory and tenants. Raises
        Unseen where nothing is told.
        """

    def energy(self, gpus: int = 1) -> float:
        """Return joules that the GPUs have taken since some moment. Raises Unseen where there is no such counter."""
        raise Unseen(f"the library of {self.title} is not asked for a counter of energy")

    @abstractmethod
    def slowed(self, gpus: int = 1) -> list[str]:
        """Return what slows a GPU down now, but for the power cap under which a busy one always runs.

        Raises Unseen.
        """

    @abstractmethod
    def processes(self, gpus: int = 1) -> list[int]:
        """Return the ids of the processes that are on the GPUs. Raises Unseen."""


def over(gpus: int) -> tuple[int, ...]:
    """Return what a vendor is asked with: nothing of one GPU, which each question is about by itself."""
    return (gpus,) if gpus > 1 else ()


# Of several GPUs that share a model the slowest decides; what is no clock and no temperature adds up.
_OF_SEVERAL: dict[str, Callable[[Sequence[Any]], Any]] = {"sm_mhz": min, "memory_mhz": min, "temperature_c": max}


def joined(states: Sequence[State]) -> State:
    """Return the states of GPUs that share a model as one; what one of them does not tell is not told."""
    if len(states) == 1:
        return states[0]
    found: State = {}
    for name, value in states[0].items():
        values = [state[name] for state in states if name in state]
        if name == "throttle_reasons" and all(isinstance(it, int) for it in values):
            found[name] = functools.reduce(operator.or_, values)
        elif all(isinstance(it, (int, float)) for it in values):
            found[name] = round(_OF_SEVERAL.get(name, sum)(values), 2)
        else:
            found[name] = ", ".join(dict.fromkeys(str(it) for it in values if it != "")) or value
    return found


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
