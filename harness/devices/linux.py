"""Linux devices: this machine, aarch64 under qemu-user, and an ARM host over ssh."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from harness.base.files import file_digest
from harness.devices import build
from harness.devices.base import DeviceError, DeviceRunner, Reading, Request, read
from harness.machine import probe
from harness.records.schema import Device, Scalar
from harness.runtime.environment import Environment
from harness.runtime.process import Process
from harness.runtime.store import Store
from harness.runtime.variables import passed_on

QEMU = "qemu-aarch64-static"
# A core that phones have. By default qemu emulates all that ARM ever specified, and XNNPACK then chooses kernels for
# matrix extensions that no phone runs so and that take ten times as long to emulate.
CORE = "cortex-a76"
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
        return probe.host().model_copy(update={"torch_device": ""})

    def state(self) -> dict[str, Scalar]:
        return probe.host_state()

    def runner_key(self) -> str:
        return build.runner(self.store, self.environment, self.machine).key

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
            output, status = _run(command, f"{self.name} {program.name}", timeout)
            return read(output, "", status, f"{self.name} {program.name}")


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
        host = probe.host()
        name = f"aarch64 ({CORE}) under qemu-user on {host.name}"
        return Device(name=name, torch_device="", detail={**host.detail, "emulated": True})

    def state(self) -> dict[str, Scalar]:
        """Return nothing: that of this machine says nothing of what an emulated one computes or allocates."""
        return {}

    def lacks(self, route: str) -> str:
        return _ELSEWHERE if route == PUBLISHED else ""

    def operators(self) -> list[str]:
        return []

    def command(self) -> list[str]:
        return [QEMU, "-cpu", CORE, "-L", str(build.SYSROOT), *super().command()]


# Load, free memory, clock and temperature of a Linux host, a line each; what it does not tell is left out.
_STATE = (
    "cut -d' ' -f1 /proc/loadavg | sed 's/^/load_1min /'; sed -n 's/MemAvailable: *//p' /proc/meminfo"
    " | sed 's/ kB//; s/^/memory_available_gb /'; cd /sys/devices/system/cpu/cpu0/cpufreq 2>/dev/null"
    " && sed 's/^/cpu_mhz /' scaling_cur_freq 2>/dev/null; cd /sys/class/thermal/thermal_zone0 2>/dev/null"
    " && sed 's/^/temperature_c /' temp 2>/dev/null; true"
)
_STATE_UNITS = {"load_1min": 1.0, "memory_available_gb": 1024 / 1e9, "cpu_mhz": 1e-3, "temperature_c": 1e-3}
# Of coreutils: what `timeout` ends with when it has ended its command.
_TIMED_OUT = 124


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
        # Two hosts of one model are two devices; who logs in there does not matter.
        where = self.host.rpartition("@")[2]
        return Device(
            name=f"{model} ({cores} cores, {where})",
            torch_device="",
            detail={"system": f"{system} {self.machine()}", "ssh": True},
        )

    def state(self) -> dict[str, Scalar]:
        found: dict[str, Scalar] = {}
        for line in self._ask(_STATE, 30).splitlines():
            name, _, value = line.partition(" ")
            with contextlib.suppress(KeyError, ValueError):
                found[name] = round(float(value) * _STATE_UNITS[name], 2)
        return found

    def runner_key(self) -> str:
        return build.runner(self.store, self.environment, self.machine()).key

    def run(self, program: Path, request: Request, logits: Path | None, timeout: float) -> Reading:
        runner = build.runner(self.store, self.environment, self.machine())
        there = f"{self.FOLDER}/{runner.key.split('/')[1]}"
        self._ask(f"mkdir -p {there}", 30)
        if not self._holds(f"{there}/{build.RUNNER}"):
            # Libraries first: a runner under its own name has them all beside it.
            self._put([runner.folder / "lib"], there)
            part = f"{there}/{build.RUNNER}.part"
            self._put([runner.folder / build.RUNNER], part)
            self._ask(f"chmod 755 {part} && mv {part} {there}/{build.RUNNER}", 30)
        name = f"{file_digest(program)[:16]}.pte"
        if not self._holds(f"{there}/{name}"):
            self._put([program], f"{there}/{name}.part")
            self._ask(f"mv {there}/{name}.part {there}/{name}", 30)
        with tempfile.TemporaryDirectory() as folder:
            windows = Path(folder) / "windows.txt"
            windows.write_text(request.windows_text(), encoding="utf-8")
            self._put([windows], f"{there}/windows.txt")
            words = shlex.join(request.arguments(name, "windows.txt", "logits.bin"))
            # Without a terminal nothing ends the runner there when this session ends: it gets a time of its own. The
            # shell stays to tell a signal by its status, of which ssh itself would only say 255.
            remote = f"cd {there} && timeout {math.ceil(timeout)} ./{build.RUNNER} {words}; exit $?"
            output, status = _run(["ssh", *self.options, self.host, remote], f"{self.name} {program.name}", timeout)
            if "{" not in output and status == _TIMED_OUT:
                raise _late(f"{self.name} {program.name}", timeout)
            if "{" not in output and status == 255:
                raise DeviceError(
                    f"{self.name}: the connection was lost ({output.strip()[-200:] or 'ssh says nothing'}): see that "
                    f"`ssh {self.host} true` works again, then go on with --resume; what was measured stands",
                    stage="ssh",
                )
            reading = read(output, "", status, f"{self.name} {program.name}")
            if logits and request.windows:
                self._copy([f"{self.host}:{there}/logits.bin"], str(logits))
            return reading

    def _holds(self, file: str) -> bool:
        return self._ask(f"test -f {file} && echo there || true", 30).strip() == "there"

    def _put(self, sources: list[Path], target: str) -> None:
        """Copy to the host. Raises DeviceError; scp says no more than "Failure" of a disk that is full."""
        try:
            self._copy([*map(str, sources)], f"{self.host}:{target}")
        except DeviceError as error:
            files = [file for source in sources for file in (source.rglob("*") if source.is_dir() else [source])]
            needed = sum(file.stat().st_size for file in files)
            free = int(self._ask(f"df -Pk {self.FOLDER} | tail -n 1", 30).split()[3]) * 1024
            if free < needed or "No space left" in str(error):
                raise DeviceError(
                    f"{self.name} is out of storage: {free / 1e6:.0f} MB are free, {needed / 1e6:.0f} MB are to be "
                    f"copied; free some, or remove {self.FOLDER} there",
                    stage="ssh",
                ) from error
            raise

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


# The agent that has the keys, and the tickets of Kerberos.
_OF_SSH = ("SSH_AUTH_SOCK", "SSH_AGENT_PID", "KRB5CCNAME")


def _run(command: list[str], what: str, timeout: float) -> tuple[str, int]:
    """Run a command that ends with this process, however that ends, and return its output and status."""
    with tempfile.TemporaryDirectory() as folder:
        process = Process(command, environ=passed_on(os.environ, _OF_SSH), log=Path(folder) / "output")
        try:
            status = process.wait(timeout)
        finally:
            process.end()
        if status is None:
            raise _late(what, timeout)
        return process.log_text(), status


def _late(what: str, timeout: float) -> DeviceError:
    return DeviceError(f"{what}: did not finish within {timeout:g} s and was ended", stage="run", kind="timeout")
