"""A stand-in for the adb server: it speaks adb's wire protocol on loopback, and its phone is a folder of this machine.

The protocol: SERVICES.TXT, SYNC.TXT and shell_protocol.h of Android's system/core/adb. The real ``adb`` binary is the
client. Shell commands run in ``sh`` with the phone's folder in place of /data/local/tmp; what only Android has
(getprop, dumpsys) is answered from :attr:`AdbServer.answers`.
"""

from __future__ import annotations

import contextlib
import os
import socketserver
import struct
import subprocess
import threading
from pathlib import Path
from typing import Any

VERSION = 41
STDOUT, STDERR, EXIT = 1, 2, 3
PHONE = {
    "getprop ro.product.manufacturer": "Stand-in",
    "getprop ro.product.model": "Phone",
    "getprop ro.soc.model": "SoC",
    "getprop ro.build.version.release": "16",
    "dumpsys battery": "Current Battery Service state:\n  level: 77\n  temperature: 312\n",
    "dumpsys thermalservice": "IsStatusOverride: false\nThermal Status: 0\n",
    "dumpsys power": "POWER MANAGER (dumpsys power)\n  mWakefulness=Awake\n  mWakefulnessChanging=false\n",
    "dumpsys trust": 'Trust manager state:\n User "Owner" (id=0, flags=0x4c13) (current): trusted=0, deviceLocked=0\n',
}


class AdbServer(socketserver.ThreadingTCPServer):
    """Serves phones by serial until :meth:`close`.

    ``refusal`` is what every request for a phone is refused with, ``full`` makes its storage full, ``unplug_at`` is a
    text in a shell command, or in a file's request (SEND or RECV and its path), at which the phone is unplugged.
    """

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, folder: Path, serials: tuple[str, ...] = ("emulated-1",)) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.folder = folder
        self.serials = list(serials)
        self.answers = dict(PHONE)
        self.refusal = ""
        self.full = False
        self.unplug_at = ""
        self.pushed: list[str] = []
        self.commands: list[str] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def here(self, path: str) -> Path:
        return Path(path.replace("/data/local/tmp", str(self.folder)))

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Gone(Exception):
    """The phone was unplugged."""


class _Connection(socketserver.BaseRequestHandler):
    server: AdbServer

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, _Gone, struct.error):
            while True:
                service = self._exactly(int(self._exactly(4), 16)).decode()
                if not self._serve(service):
                    return

    def _serve(self, service: str) -> bool:
        """Answer one request; returns whether the connection goes on to another."""
        server = self.server
        if service == "host:version":
            return self._okay(f"{VERSION:04x}", False)
        if service == "host:devices":
            return self._okay("".join(f"{serial}\tdevice\n" for serial in server.serials), False)
        if service.startswith("host-serial:"):
            serial, _, question = service.removeprefix("host-serial:").rpartition(":")
            if refused := self._refusal(serial):
                return self._fail(refused)
            return self._okay({"features": "shell_v2,cmd", "get-state": "device"}[question], False)
        if service.startswith("host:tport:serial:"):
            if refused := self._refusal(service.removeprefix("host:tport:serial:")):
                return self._fail(refused)
            self.request.sendall(b"OKAY" + struct.pack("<Q", 1))
            return True
        if service.startswith("shell,v2"):
            self.request.sendall(b"OKAY")
            self._shell(service.partition(":")[2])
            return False
        if service == "sync:":
            self.request.sendall(b"OKAY")
            self._sync()
            return False
        return self._fail(f"unknown service {service}")

    def _refusal(self, serial: str) -> str:
        return self.server.refusal or ("" if serial in self.server.serials else f"device '{serial}' not found")

    def _shell(self, command: str) -> None:
        server = self.server
        server.commands.append(command)
        if server.unplug_at and server.unplug_at in command:
            server.serials.clear()
            raise _Gone
        if command in server.answers:
            output, errors, status = server.answers[command].encode(), b"", 0
        else:
            done = subprocess.run(
                ["sh", "-c", command.replace("/data/local/tmp", str(server.folder))], capture_output=True, check=False
            )
            output, errors, status = done.stdout, done.stderr, done.returncode
        for kind, data in ((STDOUT, output), (STDERR, errors), (EXIT, bytes([status & 255]))):
            if data:
                self.request.sendall(struct.pack("<BI", kind, len(data)) + data)

    def _sync(self) -> None:
        while True:
            name, length = struct.unpack("<4sI", self._exactly(8))
            if name == b"QUIT":
                return
            path = self._exactly(length).decode()
            if self.server.unplug_at and self.server.unplug_at in f"{name.decode()} {path}":
                self.server.serials.clear()
                raise _Gone
            if name == b"STAT":
                self._stat(self.server.here(path))
            elif name == b"SEND":
                self._receive(path.rpartition(",")[0])
            elif name == b"RECV":
                self._send(self.server.here(path))
            else:
                raise ConnectionError(f"unknown sync request {name!r}")

    def _stat(self, file: Path) -> None:
        found: Any = file.stat() if file.exists() else None
        parts = (found.st_mode, found.st_size, int(found.st_mtime)) if found else (0, 0, 0)
        self.request.sendall(b"STAT" + struct.pack("<III", *parts))

    def _receive(self, path: str) -> None:
        data = bytearray()
        while True:
            name, length = struct.unpack("<4sI", self._exactly(8))
            if name == b"DONE":
                break
            data += self._exactly(length)
        if self.server.full:
            words = b"couldn't write file: No space left on device"
            self.request.sendall(b"FAIL" + struct.pack("<I", len(words)) + words)
            return
        file = self.server.here(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        os.chmod(file, 0o755)
        self.server.pushed.append(path)
        self.request.sendall(b"OKAY" + struct.pack("<I", 0))

    def _send(self, file: Path) -> None:
        data = file.read_bytes()
        for start in range(0, len(data), 65536):
            part = data[start : start + 65536]
            self.request.sendall(b"DATA" + struct.pack("<I", len(part)) + part)
        self.request.sendall(b"DONE" + struct.pack("<I", 0))

    def _okay(self, text: str, more: bool) -> bool:
        self.request.sendall(b"OKAY" + f"{len(text):04x}".encode() + text.encode())
        return more

    def _fail(self, words: str) -> bool:
        self.request.sendall(b"FAIL" + f"{len(words):04x}".encode() + words.encode())
        return False

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.request.recv(count - len(data))
            if not part:
                raise ConnectionError("the client has gone")
            data += part
        return data
