"""A small hub on the loopback: the endpoints that huggingface_hub really calls to publish a model, and their faults.

Run by hand: python tests/hub_server.py FOLDER (prints the address; files land in FOLDER).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_" + "aTokenThatNobodyMaySee" * 2
_BLOCK = 1 << 16


@dataclass
class Seen:
    """One request as the server saw it."""

    method: str
    path: str
    headers: dict[str, str]
    received: int = 0
    status: int = 0


@dataclass
class Fault:
    """What goes wrong with requests whose method and path match, ``times`` times, after ``skip`` of them."""

    method: str
    path: str
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | str = field(default_factory=dict)
    cut_after: int = -1
    lose_answer: bool = False
    call: Callable[[], None] | None = None
    times: int = 1
    skip: int = 0


@dataclass
class Repository:
    private: bool = False
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    commits: list[dict[str, Any]] = field(default_factory=list)


class Hub:
    """The state of the hub: repositories, stored large files, faults to come, and every request so far."""

    def __init__(self, folder: Path, *, user: str = "me", xet: str = "", part: int = 16 << 20) -> None:
        self.folder = folder
        self.user = user
        self.xet = xet
        self.part = part
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, dict[int, Path]] = {}
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.lock = threading.Lock()
        self.address = ""
        (folder / "objects").mkdir(parents=True, exist_ok=True)

    def fault(self, method: str, path: str, **how: Any) -> Fault:
        self.faults.append(Fault(method, path, **how))
        return self.faults[-1]

    def next_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.method == method and re.search(fault.path, path) and fault.times > 0:
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def object(self, oid: str) -> Path:
        return self.folder / "objects" / oid

    def sent(self, pattern: str = r"^/storage/") -> int:
        """Bytes of large files' content that were received."""
        return sum(it.received for it in self.seen if it.method == "PUT" and re.search(pattern, it.path))

    def requests(self, method: str, pattern: str) -> list[Seen]:
        return [it for it in self.seen if it.method == method and re.search(pattern, it.path)]

    def content(self, repository: str, name: str) -> bytes:
        entry = self.repositories[repository].files[name]
        return self.object(entry["oid"]).read_bytes() if entry["lfs"] else entry["content"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        self.seen = Seen(self.command, unquote(parts.path), dict(self.headers.items()))
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.hub.seen.append(self.seen)
        self.fault = self.hub.next_fault(self.command, self.seen.path)
        if self.fault and self.fault.call:
            self.fault.call()
        try:
            self._answer()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def _answer(self) -> None:
        path = self.seen.path
        if path.startswith("/storage/") and self.command == "PUT":
            return self._store(*path.removeprefix("/storage/").split("/"))
        body = self._read()
        if self.fault and self.fault.status:
            return self._reply(self.fault.body, self.fault.status, self.fault.headers)
        if path.startswith("/complete/"):
            return self._complete(path.removeprefix("/complete/"), json.loads(body))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._refuse(401, "Invalid credentials in Authorization header")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body))
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch(match[1], json.loads(body))
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/([a-z-]+)(?:/(.+))?)?", path)
        if not match or match[1] not in self.hub.repositories:
            return self._refuse(404, "Repository not found", {"X-Error-Code": "RepoNotFound"})
        return self._of(self.hub.repositories[match[1]], match[1], match[2] or "", body)

    def _of(self, repository: Repository, name: str, what: str, body: bytes) -> None:
        if what == "preupload":
            files = [
                {
                    "path": it["path"],
                    "uploadMode": "lfs" if it["path"].endswith((".safetensors", "tokenizer.json")) else "regular",
                    "shouldIgnore": False,
                    "oid": repository.files.get(it["path"], {}).get("oid"),
                }
                for it in json.loads(body)["files"]
            ]
            return self._reply({"files": files})
        if what == "commit":
            return self._commit(repository, name, [json.loads(line) for line in body.splitlines()])
        if what == "tree":
            return self._reply([self._entry(path, it) for path, it in repository.files.items()])
        if what == "xet-write-token":
            headers = {
                "X-Xet-Cas-Url": self.hub.xet,
                "X-Xet-Access-Token": "xet",
                "X-Xet-Token-Expiration": str(int(time.time()) + 3600),
            }
            return self._reply(
                {"casUrl": self.hub.xet, "exp": int(time.time()) + 3600, "accessToken": "xet"}, 200, headers
            )
        head = repository.commits[-1]["oid"] if repository.commits else "0" * 40
        return self._reply({"id": name, "sha": head, "private": repository.private, "siblings": [], "tags": []})

    @staticmethod
    def _entry(path: str, it: Mapping[str, Any]) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": it["size"], "oid": it["oid"][:40]}
        if it["lfs"]:
            entry["lfs"] = {"oid": it["oid"], "size": it["size"], "pointerSize": 134}
        return entry

    def _create(self, asked: Mapping[str, Any]) -> None:
        owner = asked["organization"] or self.hub.user
        name = f"{owner}/{asked['name']}"
        address = {"url": f"{self.hub.address}/{name}", "name": name}
        if owner != self.hub.user:
            return self._refuse(403, f"You don't have the rights to create a model under the namespace {owner}")
        if name in self.hub.repositories:
            return self._reply({"error": "You already created this model repo", **address}, 409)
        self.hub.repositories[name] = Repository(private=asked.get("visibility") == "private")
        return self._reply(address)

    def _validate(self, asked: Mapping[str, Any]) -> None:
        try:
            found = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", asked["content"], re.DOTALL)[1])
            assert isinstance(found, dict)
        except (yaml.YAMLError, AssertionError, TypeError) as error:
            return self._reply({"errors": [{"message": str(error)}], "warnings": []}, 400)
        return self._reply({"errors": [], "warnings": []})

    def _batch(self, name: str, asked: Mapping[str, Any]) -> None:
        if name not in self.hub.repositories:
            return self._refuse(404, "Repository not found", {"X-Error-Code": "RepoNotFound"})
        objects = []
        for it in asked["objects"]:
            entry = {"oid": it["oid"], "size": it["size"]}
            if not self.hub.object(it["oid"]).exists():
                parts = -(-it["size"] // self.hub.part)
                base = f"{self.hub.address}/storage/{it['oid']}"
                if parts > 1:
                    self.hub.uploads[it["oid"]] = {}
                    header = {str(n): f"{base}/{n}" for n in range(1, parts + 1)} | {"chunk_size": str(self.hub.part)}
                    entry["actions"] = {
                        "upload": {"href": f"{self.hub.address}/complete/{it['oid']}", "header": header}
                    }
                else:
                    entry["actions"] = {"upload": {"href": base}}
            objects.append(entry)
        return self._reply({"transfer": "multipart", "objects": objects})

    def _store(self, oid: str, part: str = "") -> None:
        """Take a file, or one part of it; a cut connection leaves nothing behind, as with a real store."""
        target = self.hub.object(f".{oid}-{part}-{id(self)}")
        left, fault = int(self.headers["Content-Length"]), self.fault
        digest = hashlib.sha256()
        with target.open("wb") as file:
            while left:
                if fault and 0 <= fault.cut_after <= self.seen.received:
                    target.unlink()
                    self.seen.status = -1
                    self.close_connection = True
                    self.connection.shutdown(2)
                    return
                block = self.rfile.read(min(left, _BLOCK))
                if not block:
                    target.unlink()
                    raise ConnectionError
                file.write(block)
                digest.update(block)
                left -= len(block)
                self.seen.received += len(block)
        if fault and fault.status:
            target.unlink()
            return self._reply(fault.body, fault.status, fault.headers)
        if part:
            self.hub.uploads[oid][int(part)] = target
        else:
            assert digest.hexdigest() == oid, "the content is not what was announced"
            target.replace(self.hub.object(oid))
        return self._reply({}, 200, {"ETag": digest.hexdigest()})

    def _complete(self, oid: str, asked: Mapping[str, Any]) -> None:
        parts = self.hub.uploads.pop(oid)
        digest, whole = hashlib.sha256(), self.hub.object(f".{oid}")
        with whole.open("wb") as file:
            for it in asked["parts"]:
                with parts[it["partNumber"]].open("rb") as part:
                    while block := part.read(_BLOCK):
                        digest.update(block)
                        file.write(block)
                parts[it["partNumber"]].unlink()
        if digest.hexdigest() != oid:
            return self._refuse(422, "the content is not what was announced")
        whole.replace(self.hub.object(oid))
        return self._reply({})

    def _commit(self, repository: Repository, name: str, lines: list[dict[str, Any]]) -> None:
        oid = hashlib.sha1(json.dumps(lines).encode()).hexdigest()
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                content = base64.b64decode(value["content"])
                blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                repository.files[value["path"]] = {"lfs": False, "size": len(content), "oid": blob, "content": content}
            elif line["key"] == "lfsFile":
                if not self.hub.xet and not self.hub.object(value["oid"]).exists():
                    return self._refuse(400, f"{value['path']} was never uploaded")
                repository.files[value["path"]] = {"lfs": True, "size": value["size"], "oid": value["oid"]}
        repository.commits.append({"oid": oid, "paths": [it["value"].get("path") for it in lines[1:]]})
        return self._reply({"commitUrl": f"{self.hub.address}/{name}/commit/{oid}", "commitOid": oid})

    def _read(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _refuse(self, status: int, message: str, headers: Mapping[str, str] = {}) -> None:
        self._reply({"error": message}, status, {"X-Error-Message": message, **headers})

    def _reply(self, body: Any, status: int = 200, headers: Mapping[str, str] = {}) -> None:
        self.seen.status = status
        if self.fault and self.fault.lose_answer:
            self.close_connection = True
            self.connection.shutdown(2)
            return
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    with serving(Hub(Path(sys.argv[1]), xet=sys.argv[2] if len(sys.argv) > 2 else "")) as running:
        print(running.address, flush=True)
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(1)
                print(f"{len(running.seen)} requests, {running.sent() / 1e6:.1f} MB received", flush=True)
