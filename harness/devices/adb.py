"""Android phones, through the user's adb: push, warm up, run, pull, with thermal state and battery."""

from __future__ import annotations

import math
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from harness.base.files import file_digest
from harness.base.reading import json_value
from harness.devices.base import UNWRITTEN, DeviceError, DeviceRunner, Reading, Request, read
from harness.records.schema import Device, Scalar

# Where a program of the shell user may be executed on any Android.
FOLDER = "/data/local/tmp/torchao-harness"
BUILD = (
    "name one with --phone-runner FILE: harness/devices/runner.cpp built with the Android NDK, or ExecuTorch's own "
    "llama_main (docs/guides/phone.md says how)"
)
_OBSERVER = "PyTorchObserver "
_COUNTS = (("prompt_tokens", 0), ("generated_tokens", 1))
_GONE = re.compile("device .*not found|device offline|no devices|error: closed|protocol fault|connection reset")


class Adb(DeviceRunner):
    """One phone by its serial. The runner is the user's: the project's own, or ExecuTorch's ``llama_main``.

    ``llama_main`` is told a text and not tokens, so it needs the tokenizer (:attr:`tokenizer`) and a prompt
    (:attr:`prompt_text`), gives no logits, and runs one round a process; only its PyTorchObserver line is read.
    """

    def __init__(self, serial: str, runner: Path | None) -> None:
        self.name = f"adb:{serial}"
        self.serial = serial
        self.runner = runner
        self.tokenizer: Path | None = None
        self.prompt_text = ""

    @property
    def is_llama_main(self) -> bool:
        return self.runner is not None and self.runner.name.startswith("llama_main")

    @property
    def logits(self) -> bool:
        return not self.is_llama_main

    def missing(self) -> str:
        if not shutil.which("adb"):
            return "no adb; on Debian: apt-get install adb"
        if self.runner is None:
            return f"no runner for a phone: {BUILD}"
        if not self.runner.is_file():
            return f"--phone-runner {self.runner} is not there"
        try:
            state = self._adb(["get-state"], 30).strip()
        except DeviceError as error:
            return str(error)
        return "" if state == "device" else f"{self.name} is {state}"

    def device(self) -> Device:
        names = ("ro.product.manufacturer", "ro.product.model", "ro.soc.model", "ro.build.version.release")
        maker, model, soc, release = (self._shell(f"getprop {name}", 30).strip() for name in names)
        # Two phones of one model are two devices.
        return Device(
            name=f"{maker} {model} ({self.serial})".strip(),
            torch_device="",
            detail={"serial": self.serial, "soc": soc, "system": f"Android {release}"},
        )

    def runner_key(self) -> str:
        return file_digest(self.runner)[:16] if self.runner else ""

    def state(self) -> dict[str, Scalar]:
        """Return thermal status (0 none to 6 shutdown), battery level in percent and temperature, lock and sleep."""
        battery = self._shell("dumpsys battery", 30)
        thermal = self._shell("dumpsys thermalservice", 30)
        found: dict[str, Scalar] = {}
        for name, text, pattern, scale in (
            ("thermal_status", thermal, r"Thermal Status: (\d+)", 1.0),
            ("battery_percent", battery, r"^\s*level: (\d+)", 1.0),
            ("battery_c", battery, r"^\s*temperature: (\d+)", 0.1),
        ):
            if match := re.search(pattern, text, re.MULTILINE):
                found[name] = round(int(match.group(1)) * scale, 1)
        found["locked"] = locked(self._shell("dumpsys trust", 30))
        if match := re.search(r"mWakefulness=(\w+)", self._shell("dumpsys power", 30)):
            found["awake"] = match.group(1) == "Awake"
        return found

    def throttled(self, before: dict[str, Scalar], after: dict[str, Scalar]) -> str:
        # ExecuTorch runs on the CPU: Android lowers its clocks from MODERATE (2) on.
        worst = max(float(before.get("thermal_status", 0)), float(after.get("thermal_status", 0)))
        return f"throttled: thermal status {worst:g} of the phone" if worst >= 2 else ""

    def run(self, program: Path, request: Request, logits: Path | None, timeout: float) -> Reading:
        assert self.runner  # noqa: S101 - for the type alone
        state = self.state()
        if state["locked"] or not state.get("awake", True):
            how = "locked" if state["locked"] else "asleep"
            raise DeviceError(
                f"{self.name} is {how}: a phone that is {how} runs at other clocks; unlock it and keep it awake "
                "(`adb shell svc power stayon usb`)",
                stage="run",
            )
        there = self._push(program, f"{file_digest(program)[:16]}.pte")
        runner = self._push(self.runner, f"runner-{file_digest(self.runner)[:16]}")
        self._shell(f"chmod 755 {runner}", 30)
        if self.is_llama_main:
            return self._llama_main(runner, there, request, timeout)
        windows = f"{FOLDER}/windows.txt"
        with tempfile.TemporaryDirectory() as folder:
            text = Path(folder) / "windows.txt"
            text.write_text(request.windows_text(), encoding="utf-8")
            self._adb(["push", str(text), windows], 300)
        words = shlex.join(request.arguments(there, windows, f"{FOLDER}/logits.bin"))
        output, errors, status = self._call(["shell", f"cd {FOLDER} && exec {runner} {words}"], timeout)
        self._connected(errors, status)
        if "{" not in output:
            # adb itself ends with status 0 when the phone goes while a command runs.
            self._adb(["get-state"], 30)
        try:
            reading = read(output, errors, status, f"{self.name} {program.name}")
        except DeviceError as error:
            if UNWRITTEN in str(error):
                raise self._full(str(error), error.stage) from None
            raise
        if logits and request.windows:
            self._adb(["pull", f"{FOLDER}/logits.bin", str(logits)], 1800)
        return reading

    def _llama_main(self, runner: str, program: str, request: Request, timeout: float) -> Reading:
        if self.tokenizer is None or not self.prompt_text:
            raise DeviceError(f"{self.name}: llama_main needs a tokenizer and a text", stage="run")
        tokenizer = self._push(self.tokenizer, f"{file_digest(self.tokenizer)[:16]}-tokenizer.json")
        options = {"model_path": program, "tokenizer_path": tokenizer, "prompt": self.prompt_text, "temperature": "0"}
        options["max_new_tokens"] = str(request.new_tokens)
        words = shlex.join(f"--{name}={value}" for name, value in options.items())
        rounds = []
        for _ in range(request.warmup + request.rounds):
            output, errors, status = self._call(["shell", f"cd {FOLDER} && exec {runner} {words}"], timeout)
            self._connected(errors, status)
            lines = [line for line in (output + errors).splitlines() if _OBSERVER in line]
            if not lines:
                raise DeviceError(
                    f"{self.name}: llama_main ended with status {status} and no PyTorchObserver line",
                    stage="run",
                    log_tail=(output + errors)[-3000:],
                )
            rounds.append(lines[-1].split(_OBSERVER, 1)[1])
        return observer(rounds, request.warmup)

    def _push(self, file: Path, name: str) -> str:
        """Put a file on the phone under a name of its contents, unless it is there whole."""
        there = f"{FOLDER}/{name}"
        size = self._shell(f"stat -c %s {there} 2>/dev/null || true", 30).strip()
        if size != str(file.stat().st_size):
            self._shell(f"mkdir -p {FOLDER}", 30)
            self._adb(["push", str(file), there], 1800)
        return there

    def _shell(self, command: str, timeout: float) -> str:
        return self._adb(["shell", command], timeout)

    def _adb(self, arguments: list[str], timeout: float) -> str:
        output, errors, status = self._call(arguments, timeout)
        if status:
            self._connected(errors + output, status)
            words = (errors + output).strip()[-500:]
            if "No space left" in words or "ENOSPC" in words:
                raise self._full(words, arguments[0])
            if arguments[0] in ("push", "pull"):
                # What adb says of a file that stopped half way does not name a pulled cable.
                self._adb(["get-state"], 30)
            raise DeviceError(f"{self.name}: adb {arguments[0]}: {words or f'status {status}'}", stage=arguments[0])
        return output

    def _full(self, words: str, stage: str) -> DeviceError:
        return DeviceError(f"{self.name} is out of storage ({words}): free some, or remove {FOLDER} there", stage=stage)

    def _connected(self, words: str, status: int) -> None:
        """Raise what adb says when there is no phone to talk to."""
        if not status:
            return
        if "unauthorized" in words:
            raise DeviceError(
                f"{self.name} has not allowed this computer: unlock the phone and accept its question", stage="adb"
            )
        if _GONE.search(words):
            raise DeviceError(
                f"{self.name} is not connected ({words.strip()[-200:]}): look at the cable and at `adb devices`, then "
                "go on with --resume; what was measured stands",
                stage="adb",
            )

    def _call(self, arguments: list[str], timeout: float) -> tuple[str, str, int]:
        command = ["adb", "-s", self.serial, *arguments]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise DeviceError(
                f"{self.name}: adb {arguments[0]} did not end within {timeout:g} s", stage=arguments[0], kind="timeout"
            ) from error
        return done.stdout, done.stderr, done.returncode


def locked(trust: str) -> bool:
    """Return whether the current user has the phone locked; other users and work profiles have locks of their own."""
    told = [line for line in trust.splitlines() if "deviceLocked=" in line]
    current = [line for line in told if "(current)" in line] or told[:1]
    return any("deviceLocked=1" in line for line in current)


def observer(lines: list[str], warmup: int = 0) -> Reading:
    """Return the reading of the JSON that ExecuTorch's runner printed, a text for each round.

    Raises DeviceError for a text that is none, and as :func:`observed` does.
    """
    try:
        rounds = [json_value(line) for line in lines]
        if wrong := [it for found in rounds for it in found.values() if isinstance(it, bool) or not _is_count(it)]:
            raise ValueError(f"{wrong[0]!r} is no number")
        return observed(rounds, warmup)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        words = f"{type(error).__name__}: {str(error)[:200]}"
        raise DeviceError(
            f"llama_main: what it printed of its times cannot be read ({words}); take a runner of the ExecuTorch that "
            "the program was exported with",
            stage="run",
            log_tail="\n".join(lines)[-3000:],
        ) from error


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def observed(rounds: list[dict[str, int]], warmup: int) -> Reading:
    """Return the reading of PyTorchObserver objects, as ExecuTorch's runners print them: times in milliseconds.

    Every round has the token counts that the runner reports of it. Raises DeviceError if an answer ended with its first
    token, after which nothing is decoded.
    """

    def seconds(found: dict[str, int], start: str, end: str) -> float:
        return (found[end] - found[start]) / found.get("SCALING_FACTOR_UNITS_PER_SECOND", 1000)

    if short := [index for index, found in enumerate(rounds) if found["generated_tokens"] < 1]:
        raise DeviceError(
            f"llama_main: the answer of round {short[0] + 1} ended with its first token: there is no decoding to time",
            stage="run",
        )
    # The first token belongs to the prompt; generated_tokens counts those after it.
    prompts, news = ([found[name] + more for found in rounds] for name, more in _COUNTS)
    return Reading(
        load_seconds=seconds(rounds[0], "model_load_start_ms", "model_load_end_ms"),
        prompt_tokens=prompts[0],
        new_tokens=max(news),
        prompt_counts=prompts,
        new_counts=news,
        warmup=warmup,
        prefill_seconds=[seconds(found, "inference_start_ms", "prompt_eval_end_ms") for found in rounds],
        decode_seconds=[seconds(found, "prompt_eval_end_ms", "inference_end_ms") for found in rounds],
    )
