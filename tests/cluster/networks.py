"""Machines of a network of their own inside this one: a network namespace each, on a bridge; needs root and iproute2.

Each has an address, a name and temporary files of its own, so that it neither reaches the others but by the network
nor finds what they keep; links are cut as cables are.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

_SUBNET = "198.18"
"""Kept for benchmarks of networks (RFC 2544): nothing else has such an address."""


def missing() -> str:
    """Return why this machine can hold no such network; nothing where it can."""
    if os.geteuid():
        return "network namespaces need root"
    if any(Path(it).resolve().is_relative_to("/tmp") for it in (sys.prefix, __file__)):
        return "the interpreter or the tests lie in /tmp, which each of the machines has of its own"
    for program, package in (("ip", "iproute2"), ("nsenter", "util-linux")):
        if not shutil.which(program):
            return f"no {program}; on Debian: apt-get install {package}"
    name = f"h{os.getpid()}-try"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return "network namespaces are not permitted here"
    try:
        made = ["ip", "-n", name, "link", "add", "t0", "type", "veth", "peer", "name", "t1"]
        if subprocess.run(made, capture_output=True, check=False).returncode:
            return "virtual network links are not permitted here"
    finally:
        _do("ip", "netns", "del", name)
    return ""


@dataclass(frozen=True)
class Machine:
    """One of a network's machines; what it keeps below ``/tmp`` lies in ``folder``."""

    name: str
    address: str
    link: str
    folder: Path

    def start(self, words: Sequence[str], environ: Mapping[str, str], cwd: str, out: IO[Any] | int) -> Any:
        """Start a program there."""
        outside = self.folder.parent
        # Of names beside those nobody there can be asked, and is not waited for.
        bound = {outside / "hosts": "/etc/hosts", outside / "resolv.conf": "/etc/resolv.conf", self.folder: "/tmp"}
        mounts = "; ".join(f"mount --bind {it} {there}" for it, there in bound.items())
        own = f'set -e; hostname {self.name}; mount --make-rprivate /; {mounts}; cd {cwd}; exec "$@"'
        inside = [
            "nsenter",
            f"--net=/run/netns/{self.name}",
            "unshare",
            "--mount",
            "--uts",
            "sh",
            "-c",
            own,
            "sh",
            *words,
        ]
        return subprocess.Popen(inside, env=dict(environ), stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def run(self, words: Sequence[str], environ: Mapping[str, str], cwd: str = "/") -> str:
        """Run a program there to its end; returns what it printed. Raises CalledProcessError."""
        with (self.folder / "printed").open("w+b") as out:
            process = self.start(words, environ, cwd, out)
            status = process.wait()
            printed = (self.folder / "printed").read_text(encoding="utf-8", errors="replace")
        if status:
            raise subprocess.CalledProcessError(status, list(words), printed)
        return printed

    def part(self) -> None:
        """Cut its cable."""
        _do("ip", "link", "set", self.link, "down")

    def heal(self) -> None:
        """Mend its cable."""
        _do("ip", "link", "set", self.link, "up")

    def processes(self) -> list[int]:
        """Return the processes that run there."""
        return [int(it) for it in _do("ip", "netns", "pids", self.name).split()]

    def die(self) -> None:
        """End all that runs there at once, as a power cut does."""
        deadline = time.monotonic() + 10
        while (left := self.processes()) and time.monotonic() < deadline:
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.1)


@dataclass
class Network:
    """A bridge, whose address is this machine's own, and the machines on it."""

    folder: Path
    machines: list[Machine] = field(default_factory=list)

    @property
    def address(self) -> str:
        """This machine's own, on the bridge."""
        return f"{self._subnet}.1"

    def __enter__(self) -> Network:
        self._bridge = f"h{os.getpid()}"
        self._subnet = f"{_SUBNET}.{os.getpid() % 250}"
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{self.address} {socket.gethostname()}\n")
        (self.folder / "resolv.conf").touch()
        _do("ip", "link", "add", self._bridge, "type", "bridge")
        _do("ip", "address", "add", f"{self.address}/24", "dev", self._bridge)
        _do("ip", "link", "set", self._bridge, "up")
        return self

    def add(self) -> Machine:
        """Plug in another machine."""
        number = len(self.machines) + 2
        link, folder = f"{self._bridge}-{number}", self.folder / f"machine-{number}"
        made = Machine(f"{link}-n", f"{self._subnet}.{number}", link, folder)
        folder.mkdir(parents=True)
        folder.chmod(0o1777)
        _do("ip", "netns", "add", made.name)
        self.machines.append(made)
        with (self.folder / "hosts").open("a", encoding="utf-8") as file:
            file.write(f"{made.address} {made.name}\n")
        _do("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", made.name)
        _do("ip", "link", "set", link, "master", self._bridge, "up")
        _do("ip", "-n", made.name, "link", "set", "lo", "up")
        _do("ip", "-n", made.name, "address", "add", f"{made.address}/24", "dev", "eth0")
        _do("ip", "-n", made.name, "link", "set", "eth0", "up")
        _do("ip", "-n", made.name, "route", "add", "default", "via", self.address)
        return made

    def __exit__(self, *_: object) -> None:
        for machine in self.machines:
            machine.die()
            _do("ip", "netns", "del", machine.name)
        _do("ip", "link", "del", self._bridge)


def answers(address: str, port: int) -> bool:
    """Return whether something listens on a port."""
    with contextlib.suppress(OSError), socket.create_connection((address, port), 1):
        return True
    return False


def _do(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout
