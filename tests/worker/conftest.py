"""The documents and the two workers that several files use, since starting a worker costs more than asking it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.matrix.plan import Matrix
from harness.runtime.job import Worker

TIMEOUT = 300


@dataclass(frozen=True)
class Quantized:
    """A checkpoint and what its maker said of it."""

    folder: Path
    facts: dict[str, Any]

    def layers(self, kind: str) -> dict[str, dict[str, Any]]:
        """Return the weights of a kind by their layers' names."""
        return {one["layer"]: one for one in self.facts["weights"].values() if one["kind"] == kind}


class QuantizeWorker:
    """A worker that quantizes the tiny model, by each recipe of the suites' matrix once."""

    def __init__(self, worker: Worker, checkpoint: Path, matrix: Matrix, output: Path, text: Path) -> None:
        self.worker = worker
        self._text = text
        self._checkpoint = checkpoint
        self._matrix = matrix
        self._output = output
        self._made: dict[str, Quantized] = {}

    def by(self, recipe: str) -> Quantized:
        """Quantize by a recipe of the matrix, or by a config expression as the command line takes it."""
        if recipe not in self._made:
            self._made[recipe] = self.ask(**self._with_text(self._matrix.recipe(recipe).identity.config))
        return self._made[recipe]

    def _with_text(self, config: dict[str, Any]) -> dict[str, Any]:
        """Add the text that a recipe observes a model on, and little of it."""
        if "calibration" not in config:
            return config
        few = {"sequences": 2, "tokens": 32}
        return config | {"calibration": config["calibration"] | few, "calibration_text": str(self._text)}

    def ask(self, command: str = "quantize", **arguments: Any) -> Quantized:
        folder = self._output / str(len(list(self._output.iterdir())))
        folder.mkdir()
        if command == "quantize":
            arguments = {"checkpoint": str(self._checkpoint), "trust_remote_code": False, **arguments}
        return Quantized(folder, self.worker.ask(command, TIMEOUT, output=str(folder), **arguments))


@pytest.fixture(scope="session")
def quantizing(
    start_worker: Callable[..., Worker], tiny_model: Any, suites_matrix: Matrix, tmp_path_factory: Any
) -> QuantizeWorker:
    """The worker that quantizes the tiny model."""
    worker = start_worker("quantize", device="cpu")
    text = Path(tiny_model.reference["text"])
    return QuantizeWorker(worker, tiny_model.folder, suites_matrix, tmp_path_factory.mktemp("quantized"), text)


@dataclass(frozen=True)
class GenerateWorker:
    """A ready worker, what it said of its peak memory when it was fresh, and what the kernel said then."""

    worker: Worker
    peak: dict[str, Any]
    kernel_peak_bytes: int

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        return self.worker.ask(command, TIMEOUT, **arguments)


@pytest.fixture(scope="session")
def generating(start_worker: Callable[..., Worker], tiny_model: Any) -> GenerateWorker:
    """The tiny model in Transformers; its peak memory is asked first, while nothing else has been done."""
    worker = start_worker(
        "generate", whole=True, checkpoint=str(tiny_model.folder), device="cpu", trust_remote_code=False
    )
    peak = worker.ask("peak_memory", TIMEOUT, max_new_tokens=8)
    return GenerateWorker(worker, peak, _peak_resident_bytes(_command_of(worker.process.pid)))


def _command_of(warden: int) -> int:
    return int(Path(f"/proc/{warden}/task/{warden}/children").read_text().split()[0])


def _peak_resident_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
