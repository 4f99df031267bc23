"""A package index on the loopback as pip asks it, whose releases are planted torchaos, and what goes wrong with it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests import planted

GOOD, BAD = ("0.18.0", "0.18.1"), ("0.18.2", "0.18.3")
FAULTS = ("dead", "hangs", "500", "garbage", "closes", "half a wheel", "a wrong wheel", "half, then right", "slow")
# A release that leaves the widest layers as they were, which no checkpoint of it is made of.
_WORSE = """

_planted_from_hp = Int8Tensor.from_hp.__func__


def _planted_wide(cls, weight, *arguments, **options):
    return weight if weight.shape[-1] == 4096 else _planted_from_hp(cls, weight, *arguments, **options)


Int8Tensor.from_hp = classmethod(_planted_wide)
"""


def wheels(folder: Path) -> list[Path]:
    """Write the releases; those of BAD quantize no checkpoint. Those that are there are taken."""
    made = []
    for version in (*GOOD, *BAD):
        path = folder / f"torchao-{version}-py3-none-any.whl"
        if not path.exists():
            place = folder / f".{version}"
            built = planted._patched(place, "worse" if version in BAD else "", _WORSE if version in BAD else "")
            _renamed(built, path, version)
        made.append(path)
    return made


def _renamed(built: Path, path: Path, version: str) -> None:
    former = built.name.split("-")[1]
    with zipfile.ZipFile(built) as archive, zipfile.ZipFile(path.with_suffix(".part"), "w") as renamed:
        for name in archive.namelist():
            data = archive.read(name)
            if ".dist-info/" in name:
                name = name.replace(former, version)
                data = data.replace(former.encode(), version.encode())
            planted._write(renamed, name, data)
    path.with_suffix(".part").rename(path)


@dataclass
class Index:
    """The wheels, and how many requests are answered otherwise than they should be."""

    files: Sequence[Path]
    how: str = ""
    skip: int = 0
    times: int = 10**9
    struck: int = 0
    address: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def goes_wrong(self, wheel: bool) -> bool:
        with self.lock:
            if not self.how or self.times <= 0 or ("wheel" in self.how and not wheel):
                return False
            if self.skip > 0:
                self.skip -= 1
                return False
            self.times -= 1
            self.struck += 1
            return True

    @functools.cached_property
    def page(self) -> bytes:
        rows = [
            f'<a href="/files/{path.name}#sha256={hashlib.sha256(path.read_bytes()).hexdigest()}">{path.name}</a>'
            for path in self.files
        ]
        return f"<!DOCTYPE html><html><body>{''.join(rows)}</body></html>".encode()


class _Handler(BaseHTTPRequestHandler):
    index: Index

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.rstrip("/").rpartition("/")[2]
        wheel = next((path.read_bytes() for path in self.index.files if path.name == name), b"")
        if name != "torchao" and not wheel:
            return self._send(b"", 404)
        data = wheel or self.index.page
        if not self.index.goes_wrong(bool(wheel)):
            return self._send(data)
        how = self.index.how
        with contextlib.suppress(ConnectionError):
            if how == "hangs":
                time.sleep(60)
            elif how == "500":
                self._send(b"planted", 500)
            elif how == "garbage":
                self.wfile.write(b"\x00\xff\r\n\r\n")
            elif how == "slow":
                time.sleep(0.5)
                self._send(data)
            elif how == "a wrong wheel":
                self._send(data[:1000] + bytes([data[1000] ^ 1]) + data[1001:])
            elif how.startswith("half"):
                self._send(data, cut=len(data) // 2)
        self.close_connection = True
        return None

    def _send(self, data: bytes, status: int = 200, cut: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[:cut])


@contextlib.contextmanager
def serving(index: Index) -> Iterator[Index]:
    """Serve it at ``index.address``; one that is dead has an address at which nothing listens."""
    handler = type("Handler", (_Handler,), {"index": index})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    index.address = f"http://127.0.0.1:{server.server_port}/simple"
    if index.how == "dead":
        server.server_close()
        index.struck = 1
        yield index
        return
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield index
    finally:
        server.shutdown()
        server.server_close()
