"""Where a program runs: this machine, an emulated ARM, an ARM host over ssh, Android phones, an iPhone's results."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from harness.base.errors import MatrixError
from harness.devices.adb import Adb
from harness.devices.base import DeviceError, DeviceRunner, Reading, Request
from harness.devices.ios import Ios, named
from harness.devices.linux import Host, Qemu, Ssh
from harness.runtime.environment import Environment
from harness.runtime.store import Store

__all__ = [
    "KINDS",
    "Adb",
    "DeviceError",
    "DeviceRunner",
    "Devices",
    "Host",
    "Ios",
    "Qemu",
    "Reading",
    "Request",
    "Ssh",
    "named",
    "open_device",
]

KINDS = {
    "host": "this machine",
    "qemu": "aarch64 under qemu-user: correctness and memory, never speed",
    "ssh:HOST": "an ARM Linux host over ssh, as `ssh HOST` reaches it",
    "adb:SERIAL": "an Android phone; needs --phone-runner",
    "ios:[RECIPE=]FILE": "the JSON that the XCTest benchmark wrote on an iPhone, of one recipe's program",
}


def open_device(name: str, store: Store, environment: Environment, phone_runner: Path | None = None) -> DeviceRunner:
    """Return the device that a command line names; nothing is built or asked yet. Raises MatrixError for another."""
    check_name(name)
    kind, _, which = name.partition(":")
    if name == "host":
        return Host(store, environment)
    if name == "qemu":
        return Qemu(store, environment)
    if kind == "ssh":
        return Ssh(store, environment, which)
    return Adb(which, phone_runner) if kind == "adb" else Ios(named(which)[1])


def check_name(name: str) -> None:
    """Raise MatrixError for the name of a device that a command line cannot mean."""
    kind, _, which = name.partition(":")
    if which.startswith("-") or (kind == "ssh" and "@-" in which) or name.startswith("-"):
        # ssh, scp and adb would take it for an option, and ssh has options that run commands.
        raise MatrixError(f"--device {name!r}: a name that begins with a hyphen is an option to {kind}, not a device")
    if wrong := re.search(r"[^\w.@:%+/~\[\]-]" if kind == "ssh" else r"[\x00-\x1f\x7f]", which):
        # ssh hands a host's name to a shell where its settings say so (ProxyCommand, Match exec).
        raise MatrixError(f"--device {name!r}: {wrong[0]!r} is in no name of a device")
    if name in ("host", "qemu") or (kind in ("ssh", "adb", "ios") and which):
        return
    known = "; ".join(f"{form} ({meaning})" for form, meaning in KINDS.items())
    raise MatrixError(f"--device {name!r} is not one of: {known}")


class Devices:
    """The devices of a session by their names on the command line, each opened once.

    ``own`` gives a device that is known elsewhere by that name, before any of these.
    """

    def __init__(
        self,
        store: Store,
        environment: Environment,
        phone_runner: Path | None = None,
        own: Callable[[str], DeviceRunner | None] = lambda _: None,
    ) -> None:
        self._store = store
        self._environment = environment
        self._phone_runner = phone_runner
        self._own = own
        self._open: dict[str, DeviceRunner] = {}

    def __call__(self, name: str) -> DeviceRunner:
        """Return a device; raises MatrixError where none is called so."""
        if name not in self._open:
            own = self._own(name)
            self._open[name] = own or open_device(name, self._store, self._environment, self._phone_runner)
        return self._open[name]
