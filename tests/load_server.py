"""A simulated OpenAI-compatible server of known timing, on the loopback: what load generators are held against.

A request waits for one of ``servers`` places in the order of arrival, then its first token comes after ``first``
seconds, and each further one ``token`` seconds later. When each is due is computed, not waited for one after another,
so that nothing adds up. Every answer's times are told at ``/log`` by CLOCK_MONOTONIC, which is one for the whole
machine. Faults: it refuses, drops, or ends answers early.

Run by hand: python tests/load_server.py --first 0.02 --token 0.005 (prints its address).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import heapq
import json
import random
import select
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Simulated:
    """The state of a server: when its places are free, and what it has seen."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        self.free = [0.0] * asked.servers
        self.random = random.Random(asked.seed)
        self.seen: list[dict[str, float]] = []
        self.count = 0
        self.active = 0

    def due(self, tokens: int) -> tuple[float, float, float]:
        """Return when an answer is begun, when its first token is due, and how far apart the further ones are."""
        now, asked = time.monotonic(), self.asked
        first, token = asked.first, asked.token
        if asked.service == "exponential":
            first = self.random.expovariate(1 / asked.first)
        elif asked.service == "two-point":
            # Half of them take a third, half five thirds: squared coefficient of variation 4/9.
            first = asked.first * self.random.choice((1 / 3, 5 / 3))
        start = now
        if self.free:
            start = max(now, heapq.heappop(self.free))
            heapq.heappush(self.free, start + first + (tokens - 1) * token)
        return start, start + first, token

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                request, *lines = head.decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines if ": " in line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if not await self.answer(request.split()[1], body, writer):
                    break
        writer.close()

    async def answer(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; returns whether the connection goes on."""
        if path == "/log":
            seen, self.seen = self.seen, []
            return await _whole(writer, 200, seen)
        if path == "/v1/models":
            return await _whole(writer, 200, {"object": "list", "data": [{"id": "model", "object": "model"}]})
        if not path.endswith("completions"):
            return await _whole(writer, 200 if path in ("/health", "/reset_prefix_cache") else 404, {})
        arrived, asked = time.monotonic(), self.asked
        self.count += 1
        if asked.refuse_above and self.active >= asked.refuse_above:
            return await _whole(writer, 503, {"error": {"message": "too busy"}})
        self.active += 1
        try:
            return await self.stream(path, json.loads(body), arrived, writer)
        finally:
            self.active -= 1

    async def stream(self, path: str, wanted: dict[str, Any], arrived: float, writer: asyncio.StreamWriter) -> bool:
        asked, number = self.asked, self.count
        tokens = int(wanted.get("max_tokens") or wanted.get("max_completion_tokens") or 16)
        if asked.short_every and number % asked.short_every == 0:
            tokens = max(1, tokens // 2)
        start, due, apart = self.due(tokens)
        chat = "chat" in path
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        first = 0.0
        for index in range(tokens):
            await asyncio.sleep(max(0.0, due + index * apart - time.monotonic()))
            first = first or time.monotonic()
            if asked.drop_every and number % asked.drop_every == 0 and index >= tokens // 2:
                return False
            piece = {"delta": {"content": " w"}} if chat else {"text": " w"}
            finish = "length" if index == tokens - 1 else None
            _event(writer, {"choices": [{"index": 0, **piece, "finish_reason": finish}]})
        last = time.monotonic()
        prompt = wanted.get("prompt", "")
        read = len(prompt) if isinstance(prompt, list) else len(str(prompt).split())
        usage = {"prompt_tokens": read, "completion_tokens": tokens, "total_tokens": read + tokens}
        _event(writer, {"choices": [], "usage": usage})
        _event(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        times = {"arrived": arrived, "start": start, "due": due, "first": first, "last": last}
        self.seen.append({**times, "tokens": tokens, "read": read})
        return True


def _event(writer: asyncio.StreamWriter, data: Any) -> None:
    line = f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()
    writer.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")


async def _whole(writer: asyncio.StreamWriter, status: int, data: Any) -> bool:
    body = json.dumps(data).encode()
    head = f"HTTP/1.1 {status} {'OK' if status == 200 else 'No'}\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()
    return True


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser()
    found.add_argument("--first", type=float, default=0.02, help="seconds until the first token")
    found.add_argument("--token", type=float, default=0.005, help="seconds between tokens")
    found.add_argument("--servers", type=int, default=0, help="requests answered at once; 0: however many come")
    found.add_argument("--service", choices=("fixed", "exponential", "two-point"), default="fixed")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--port", type=int, default=0)
    found.add_argument("--refuse-above", type=int, default=0)
    found.add_argument("--drop-every", type=int, default=0)
    found.add_argument("--short-every", type=int, default=0)
    return found


async def _serve(asked: argparse.Namespace) -> None:
    simulated = Simulated(asked)
    server = await asyncio.start_server(simulated.handle, "127.0.0.1", asked.port, limit=1 << 24, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    # It ends with whoever started it.
    threading.Thread(target=lambda: (sys.stdin.read(), __import__("os")._exit(0)), daemon=True).start()
    await server.serve_forever()


class Running:
    """A simulated server in a process of its own."""

    def __init__(self, url: str, process: subprocess.Popen[str]) -> None:
        self.url = url
        self.process = process

    def log(self) -> list[dict[str, float]]:
        """Return the times of the answers since the last call, in seconds."""
        with urllib.request.urlopen(f"{self.url}/log", timeout=30) as answer:
            found: list[dict[str, float]] = json.load(answer)
            return found


@contextlib.contextmanager
def simulated(**options: Any) -> Iterator[Running]:
    """Start a server with the options of this file's command line; it ends with the context."""
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 30)[0], "the simulated server did not start"
        yield Running(process.stdout.readline().strip(), process)
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    asyncio.run(_serve(parser().parse_args()))
