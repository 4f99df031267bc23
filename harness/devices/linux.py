"""Linux devices: this machine, aarch64 under qemu-user, and an ARM host over ssh."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from harness import hardware
from harness.artifacts import Store, file_digest
from harness.devices import build
from harness.devices.base import DeviceError, DeviceRunner, Reading, Request, read
from harness.environment import Environment
from harness.process import Process
from harness.records import Device

QEMU = "qemu-aarch64-static"
# The route of the export whose programs use ExecuTorch's custom SDPA.
PUBLISHED = "llama"
# The aarch64 PyTorch of the package index is for CUDA alone, so an emulated ARM has none to load.
_ELSEWHERE = (
    "a program of the llama route needs the custom SDPA, whose library in ExecuTorch's wheel loads PyTorch: it runs "
    "where both are installed (the device host, also of an ARM machine), or on a phone whose runner has it linked"
)


class Host(DeviceRunner):
    """This machine's processor; on an ARM machine it is the ARM device."""

    name = "host"

    def __init__(self, store: Store, environment: Environment) -> None:
        self.store = store
        self.environment = environment
        self.machine = platform.machine()

    def missing(self) -> str:
        return build.missing(self.machine)

    def device(self) -> Device:
        return hardware.device("cpu")

    def command(self) -> list[str]:
        return [str(build.runner(self.store, self.environment, self.machine).folder / build.RUNNER)]

    def lacks(self, route: str) -> str:
        if route == PUBLISHED and not build.operators(self.store, self.environment):
            return f"ExecuTorch's wheel for {self.machine} has no library of the custom SDPA"
        return ""

    def operators(self) -> list[str]:
        """Return the runner's arguments for the libraries that a program with the custom SDPA needs."""
        found = build.operators(self.store, self.environment)
        return ["--operators", ",".join(map(str, found))] if found else []

    def run(self, program: Path, request: Request, logits: Path | None, timeout: float) -> Reading:
        with tempfile.TemporaryDirectory() as folder:
            windows = Path(folder) / "windows.txt"
            windows.write_text(request.windows_text(), encoding="utf-8")
            written = str(logits) if logits else str(Path(folder) / "logits")
            command = [*self.command(), *request.arguments(str(program), str(windows), written), *self.operators()]
            return _run(command, f"{self.name} {program.name}", timeout)


class Qemu(Host):
    """aarch64 emulated: what it computes and allocates is real, how long it takes means nothing."""

    name = "qemu"
    speed = False

    def __init__(self, store: Store, environment: Environment) -> None:
        super().__init__(store, environment)
        self.machine = "aarch64"

    def missing(self) -> str:
        if not shutil.which(QEMU):
            return f"no {QEMU}; on Debian: apt-get install qemu-user-static"
        if platform.machine() != "aarch64" and not build.SYSROOT.is_dir():
            return f"no libraries of aarch64 at {build.SYSROOT}; on Debian: apt-get install g++-aarch64-linux-gnu"
        return super().missing()

    def device(self) -> Device:
        host = hardware.device("cpu")
        return Device(name=f"aarch64 under qemu-user on {host.name}", detail={**host.detail, "emulated": True})

    def lacks(self, route: str) -> str:
        return _ELSEWHERE if route == PUBLISHED else ""

    def operators(self) -> list[str]:
        return []

    def command(self) -> list[str]:
        return [QEMU, "-L", str(build.SYSROOT), *super().command()]


class Ssh(DeviceRunner):
    """An ARM Linux host that ``ssh HOST`` reaches without a question (keys and options are those of ~/.ssh/config).

    Runner, libraries and program are copied once, under names of their contents, to ``~/.cache/torchao-harness``.
    """

    FOLDER = ".cache/torchao-harness"

    def __init__(self, store: Store, environment: Environment, host: str) -> None:
        self.name = f"ssh:{host}"
        self.host = host
        self.store = store
        self.environment = environment
        # Options of the whole session, e.g. another port or key; there is no other way to give scp and ssh the same.
        self.options = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]
        self.options += shlex.split(os.environ.get("HARNESS_SSH_OPTIONS", ""))
        self._machine = ""

    def missing(self) -> str:
        if not shutil.which("ssh"):
            return "no ssh; on Debian: apt-get install openssh-client"
        try:
            return build.missing(self.machine())
        except DeviceError as error:
            return str(error)

    def lacks(self, route: str) -> str:
        return _ELSEWHERE if route == PUBLISHED else ""

    def machine(self) -> str:
        if not self._machine:
            self._machine = self._ask("uname -m", 30).strip()
        return self._machine

    def device(self) -> Device:
        facts = self._ask("nproc; grep -m1 -E 'model name|Model' /proc/cpuinfo || true; uname -sr", 30).splitlines()
        cores, system = facts[0], facts[-1]
        model = facts[1].split(":", 1)[1].strip() if len(facts) > 2 else self.machine()
        return Device(name=f"{model} ({cores} cores)", detail={"system": f"{system} {self.machine()}", "ssh": True})

    def run(self, program: Path, request: Request, logits: Path | None, timeout: float) -> Reading:
        runner = build.runner(self.store, self.environment, self.machine())
        there = f"{self.FOLDER}/{runner.key.split('/')[1]}"
        self._ask(f"mkdir -p {there}", 30)
        if self._ask(f"test -x {there}/runner && echo there || true", 30).strip() != "there":
            self._copy([str(runner.folder / "lib"), str(runner.folder / build.RUNNER)], f"{self.host}:{there}/")
        name = f"{file_digest(program)[:16]}.pte"
        if self._ask(f"test -f {there}/{name} && echo there || true", 30).strip() != "there":
            self._copy([str(program)], f"{self.host}:{there}/{name}.part")
            self._ask(f"mv {there}/{name}.part {there}/{name}", 30)
        with tempfile.TemporaryDirectory() as folder:
            windows = Path(folder) / "windows.txt"
            windows.write_text(request.windows_text(), encoding="utf-8")
            self._copy([str(windows)], f"{self.host}:{there}/windows.txt")
            words = request.arguments(name, "windows.txt", "logits.bin")
            remote = f"cd {there} && ./runner {shlex.join(words)}"
            reading = _run(["ssh", *self.options, self.host, remote], f"{self.name} {program.name}", timeout)
            if logits and request.windows:
                self._copy([f"{self.host}:{there}/logits.bin"], str(logits))
            return reading

    def _ask(self, command: str, timeout: float) -> str:
        return self._call(["ssh", *self.options, self.host, command], timeout)

    def _copy(self, sources: list[str], target: str) -> None:
        self._call(["scp", "-q", "-r", *self.options, *sources, target], 1800)

    def _call(self, command: list[str], timeout: float) -> str:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired as error:
            raise DeviceError(
                f"{self.name} did not answer within {timeout:g} s", stage="ssh", kind="timeout"
            ) from error
        if done.returncode:
            words = done.stderr.strip()[-500:] or f"status {done.returncode}"
            raise DeviceError(f"{self.name}: {words}; `ssh {self.host} true` must work without a question", stage="ssh")
        return done.stdout


def _run(command: list[str], what: str, timeout: float) -> Reading:
    """Run a command that ends with this process, however that ends, and return what it printed last."""
    with tempfile.TemporaryDirectory() as folder:
        process = Process(command, environ=dict(os.environ), log=Path(folder) / "output")
        try:
            status = process.wait(timeout)
        finally:
            process.end()
        if status is None:
            raise DeviceError(f"{what}: did not finish within {timeout:g} s and was ended", stage="run", kind="timeout")
        return read(process.log_text(), "", status, what)
