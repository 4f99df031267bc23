"""The shape of every backend: opened once, asked many times."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

Report = Callable[[dict[str, Any]], None]


class Backend(ABC):
    """One way of working with a checkpoint.

    A subclass names in ``commands`` the methods that the planner may ask for; each takes keyword arguments of
    JSON types and returns a JSON object. ``report`` sends progress while a command runs.
    """

    commands: ClassVar[tuple[str, ...]] = ()

    def __init__(self, report: Report) -> None:
        self.report = report

    @abstractmethod
    def open(self, *arguments: Any, **specification: Any) -> dict[str, Any]:
        """Load what the commands need and return what the planner should know of it."""

    def attend(self, specification: Mapping[str, Any], answer: Callable[[], int]) -> int:
        """Have the backend opened and its requests answered by ``answer``; returns the exit status of the process.

        Here in the process's main thread, which a backend may need for something else.
        """
        return answer()

    def close(self) -> None:
        """Give back what :meth:`open` took."""
        return None
