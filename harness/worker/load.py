"""A workload on a server, sent by vLLM's serving benchmark.

The benchmark draws Poisson and gamma arrivals, holds a number of requests in flight, sends them, and takes their times.
What it has no option for is put in where it looks its parts up: our requests for its dataset, a schedule for its
arrivals (constant, bursts, traces), and around its one request the further turns of a conversation.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import math
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from harness.worker.requests import Conversation, offsets

_BEAT = 0.01


@dataclasses.dataclass(frozen=True)
class Answer:
    """How one request went: when it was sent, in seconds, its times, its tokens, and what went wrong."""

    sent: float
    ttft: float
    latency: float
    itl: list[float]
    asked: int
    tokens: int
    read: int
    text: str
    error: str


class Load:
    """One run of a workload; ``patched`` puts it into the benchmark."""

    def __init__(
        self,
        serve: Any,
        functions: dict[str, Any],
        workload: dict[str, Any],
        conversations: Sequence[Conversation],
        rate: float | None,
        encode: Any,
    ) -> None:
        self.workload = workload
        self.conversations = list(conversations)
        self.answers: list[Answer] = []
        self.yielded: list[float] = []
        self.lags: list[float] = []
        self.cpu = self.ended = 0.0
        self.offsets = offsets(workload["arrival"], rate, conversations)
        self._serve, self._functions, self._encode = serve, functions, encode
        self._began = self._cpu_began = 0.0
        self._of: dict[int, Conversation] = {}

    @contextlib.contextmanager
    def patched(self) -> Any:
        """Have the benchmark send this workload while the context lasts."""
        arrivals, send = self._serve.get_request, self._functions["openai"]
        self._serve.get_request = lambda requests, *given, **named: self._arrive(arrivals, requests, given, named)
        self._functions["openai"] = lambda *given, **named: self._converse(send, *given, **named)
        try:
            yield
        finally:
            self._serve.get_request, self._functions["openai"] = arrivals, send

    def samples(self, kind: Any) -> list[Any]:
        """Return the requests as the benchmark has them; which conversation one is of is told by its prompt."""
        known = {field.name for field in dataclasses.fields(kind)}
        found = []
        for conversation in self.conversations:
            first = conversation.turns[0]
            values = {
                "prompt": first.prompt,
                "prompt_len": len(first.prompt),
                "expected_output_len": first.output_tokens,
                "multi_modal_data": None,
            }
            found.append(kind(**{name: value for name, value in values.items() if name in known}))
            self._of[id(first.prompt)] = conversation
        return found

    async def _arrive(self, arrivals: Any, requests: Any, given: Any, named: Any) -> AsyncIterator[Any]:
        """Yield each request when it is due, and note when that was."""
        beat = asyncio.ensure_future(self._beat())
        self._began, self._cpu_began = time.perf_counter(), time.process_time()
        source = self._scheduled(requests) if self.offsets is not None else arrivals(requests, *given, **named)
        try:
            async for item in source:
                self.yielded.append(time.perf_counter() - self._began)
                yield item
        finally:
            self._last = beat

    async def _scheduled(self, requests: Any) -> AsyncIterator[Any]:
        for request, due in zip(requests, self.offsets or (), strict=True):
            if (wait := self._began + due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            yield request, 0.0

    async def _beat(self) -> None:
        """Note how late a timer of the benchmark's loop is: no time that it takes is surer than that."""
        while True:
            start = time.perf_counter()
            await asyncio.sleep(_BEAT)
            self.lags.append(time.perf_counter() - start - _BEAT)

    async def _converse(self, send: Any, request_func_input: Any, session: Any, pbar: Any = None) -> Any:
        """Send the turns of a conversation, one after another; the benchmark is given the first answer."""
        conversation = self._of.get(id(request_func_input.prompt))
        if conversation is None:
            return await send(request_func_input=request_func_input, session=session, pbar=pbar)
        prompt = conversation.turns[0].prompt
        returned = None
        for index, turn in enumerate(conversation.turns):
            if index:
                await asyncio.sleep(self.workload["think"])
                prompt = [*prompt, *turn.prompt]
            asked = dataclasses.replace(
                request_func_input,
                prompt=prompt,
                prompt_len=len(prompt),
                output_len=turn.output_tokens,
                ignore_eos=self._to_the_end,
                extra_body={**(request_func_input.extra_body or {}), **self._further()},
            )
            sent = time.perf_counter()
            found = await send(request_func_input=asked, session=session, pbar=pbar if returned is None else None)
            self.ended, self.cpu = time.perf_counter() - self._began, time.process_time() - self._cpu_began
            self.answers.append(self._answer(found, sent - self._began, turn.output_tokens))
            returned = returned or found
            if not found.success:
                break
            if index + 1 < len(conversation.turns):
                prompt = [*prompt, *self._encode(found.generated_text)]
        return returned

    @property
    def _to_the_end(self) -> bool:
        """Whether answers have the length that was asked for, whatever the model would say."""
        fixed = self.workload.get("output") or self.workload["arrival"]["kind"] == "trace"
        return bool(fixed or self.workload["prompts"] not in ("random", "sharegpt")) and not self._schema

    @property
    def _schema(self) -> dict[str, Any] | None:
        return self.workload.get("structured")

    def _further(self) -> dict[str, Any]:
        if not self._schema:
            return {}
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": self._schema}}}

    def _answer(self, found: Any, sent: float, asked: int) -> Answer:
        error = "" if found.success else (found.error or "no answer").strip().splitlines()[-1][:200]
        tokens = int(found.output_tokens or 0)
        if not tokens and found.success:
            # A server that tells of no usage sends a token a piece.
            tokens = len(found.itl) + 1
        return Answer(
            sent,
            found.ttft,
            found.latency,
            list(found.itl),
            asked,
            tokens,
            found.prompt_len,
            found.generated_text,
            error,
        )

    def told(self) -> dict[str, Any]:
        """Return what the run came to, in milliseconds; the answers in the order in which they were sent."""
        answers = sorted(self.answers, key=lambda answer: answer.sent)
        good = [answer for answer in answers if not answer.error]
        ordered = sorted(self.lags)
        return {
            "arrivals": self.yielded,
            "sent": [answer.sent for answer in good],
            "ttft": [1000 * answer.ttft for answer in good],
            "e2e": [1000 * answer.latency for answer in good],
            "tpot": [
                1000 * (answer.latency - answer.ttft) / (answer.tokens - 1) if answer.tokens > 1 else 0.0
                for answer in good
            ],
            "itl": [1000 * seconds for answer in good for seconds in answer.itl],
            "tokens": [answer.tokens for answer in good],
            "asked_tokens": [answer.asked for answer in good],
            "read": [answer.read for answer in good],
            "whole": [_keeps(answer.text) for answer in good] if self._schema else [],
            "to_the_end": self._to_the_end,
            "errors": [answer.error for answer in answers if answer.error],
            "duration": self.ended,
            "client_cpu": self.cpu / self.ended if self.ended else 0.0,
            "lag_p99": 1000 * ordered[math.ceil(0.99 * len(ordered)) - 1] if ordered else 0.0,
        }


def _keeps(text: str) -> bool:
    """Say whether an answer is a whole JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
