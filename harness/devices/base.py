"""The shape of every device that runs a program, what it is asked, and what it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt, ValidationError

from harness.base.errors import WorkerError
from harness.base.reading import json_value
from harness.base.text import redact
from harness.contract.program_errors import Meaning, meaning
from harness.records.schema import Device, Scalar

# What the project's runner says when a device's storage takes no more of the logits.
UNWRITTEN = "the logits could not be written"


class DeviceError(WorkerError):
    """A device, or the runner on it, failed; what was measured before stands."""

    def __init__(self, message: str, *, stage: str, kind: str = "exception", log_tail: str = "") -> None:
        super().__init__(redact(message), stage=stage, kind=kind, log_tail=redact(log_tail))


class Reading(BaseModel):
    """One run of a program on a device, as the project's C++ runner prints it.

    Times are in seconds; ``peak_bytes`` is the runner process's peak resident set before any logits are written.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    load_seconds: NonNegativeFloat | None = None
    peak_bytes: PositiveInt | None = None
    prompt_tokens: PositiveInt
    new_tokens: PositiveInt
    warmup: int = Field(default=0, ge=0)
    context: int = 0
    vocabulary: int = 0
    windows: int = 0
    # Of the runner's process after the rounds; an emulator's own count too.
    threads: PositiveInt | None = None
    prefill_seconds: list[NonNegativeFloat]
    decode_seconds: list[NonNegativeFloat]
    tokens: list[int] = []
    # Of every round, warm-up included, from a runner that counts tokens itself and may end an answer early.
    prompt_counts: list[PositiveInt] = []
    new_counts: list[PositiveInt] = []

    @property
    def prefill_rates(self) -> list[float]:
        """Prompt tokens a second of every round, warm-up included; the first new token counts to the prompt."""
        counts = self.prompt_counts or [self.prompt_tokens] * len(self.prefill_seconds)
        return [count / seconds for count, seconds in zip(counts, self.prefill_seconds, strict=True) if seconds]

    @property
    def decode_rates(self) -> list[float]:
        """New tokens a second after the first, of every round, warm-up included."""
        counts = self.new_counts or [self.new_tokens] * len(self.decode_seconds)
        return [(count - 1) / seconds for count, seconds in zip(counts, self.decode_seconds, strict=True) if seconds]

    @property
    def whole_rates(self) -> list[float]:
        """New tokens a second of prompt and answer together, of every round, warm-up included."""
        counts = self.new_counts or [self.new_tokens] * len(self.decode_seconds)
        seconds = [sum(pair) for pair in zip(self.prefill_seconds, self.decode_seconds, strict=True)]
        return [count / whole for count, whole in zip(counts, seconds, strict=True) if whole]


@dataclass(frozen=True)
class Request:
    """What a device is asked: a prompt of token ids, greedy new tokens, rounds; ``windows`` asks for their logits."""

    prompt: list[int]
    new_tokens: int
    warmup: int
    rounds: int
    windows: list[list[int]] | None = None

    def arguments(self, program: str, windows: str, logits: str) -> list[str]:
        """Return the runner's command line for files as the device sees them."""
        found = ["--program", program, "--prompt", ",".join(map(str, self.prompt)), "--new", str(self.new_tokens)]
        found += ["--warmup", str(self.warmup), "--rounds", str(self.rounds)]
        return [*found, "--windows", windows, "--logits", logits] if self.windows else found

    def windows_text(self) -> str:
        return "".join(" ".join(map(str, window)) + "\n" for window in self.windows or ())


class DeviceRunner(ABC):
    """One device.

    ``speed`` says whether its times are figures of a real device, which an emulator's never are; ``logits`` whether it
    can give those of a request's windows; ``alone`` why a baseline may be missing beside what it measured, if it may.
    """

    name: str
    speed: bool = True
    alone: str = ""

    @property
    def logits(self) -> bool:
        return True

    @abstractmethod
    def missing(self) -> str:
        """Return why the device cannot be used and the command that mends it, or an empty string."""

    @abstractmethod
    def device(self) -> Device:
        """Return what the records say the program ran on."""

    @abstractmethod
    def run(self, program: Path, request: Request, logits: Path | None, timeout: float) -> Reading:
        """Run a program; the logits of the request's windows go to ``logits``. Raises DeviceError."""

    def runner_key(self) -> str:
        """Return what tells the runner's binary from another one, or an empty string where that is not known."""
        return ""

    def lacks(self, route: str) -> str:
        """Return why programs of one of the export's routes cannot run there, or an empty string."""
        return ""

    def state(self) -> dict[str, Scalar]:
        """Return the device's state now: temperature, battery, throttling, as far as it tells."""
        return {}

    def throttled(self, before: dict[str, Scalar], after: dict[str, Scalar]) -> str:
        """Return why a measurement between two states is void, or an empty string."""
        return ""


def read(output: str, errors: str, status: int, what: str) -> Reading:
    """Return the reading that a runner printed; its last line of standard output is the JSON."""
    lines = [line for line in output.splitlines() if line.lstrip().startswith("{")]
    try:
        found = json_value(lines[-1]) if lines else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        signal = f" (signal {status - 128})" if 128 < status < 160 else ""
        raise DeviceError(
            f"{what}: the runner ended with status {status}{signal} and no result",
            stage="run",
            kind="out_of_memory" if status == 137 else "crash",
            log_tail=(output + errors)[-3000:],
        )
    if "error" in found:
        words = str(found["error"])
        raise DeviceError(
            f"{what}: {explain(words, str(found.get('stage')))}",
            stage=str(found.get("stage", "run")),
            kind="out_of_memory" if meaning(words) is Meaning.NO_MEMORY else "exception",
            log_tail=(errors or output)[-3000:],
        )
    try:
        return Reading.model_validate(found)
    except ValidationError as error:
        raise DeviceError(
            f"{what}: the runner's result does not hold: {error.errors()[0]['msg']}", stage="run"
        ) from error


def explain(words: str, stage: str) -> str:
    """Return a runner's error with what to do about it."""
    if UNWRITTEN in words:
        return f"{stage}: {words}: the device's storage is full; free some"
    means = meaning(words)
    if means is Meaning.NO_OPERATOR:
        return (
            f"{stage}: an operator of the program is not in the runner ({words}); a program with the custom SDPA needs "
            "a runner that links it, the transformers route needs none"
        )
    advice = {
        Meaning.NO_LIBRARY: "the runner lacks a backend or operator library that the program needs; link XNNPACK, the "
        "optimized and the quantized kernels whole",
        Meaning.NO_MEMORY: "the device has too little free memory for the program",
        Meaning.DAMAGED: "the program is cut off, damaged, or made by another ExecuTorch version than the runner's; "
        "export it again",
    }
    return f"{stage}: {words}: {advice[means]}" if means else f"{stage}: {words}"
