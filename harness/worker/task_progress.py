"""Tells how many documents of a task are done and how long the others will take, from the bars of the libraries."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

Report = Callable[[dict[str, Any]], None]

# What the bars of lm-evaluation-harness say that count requests to a model; others count what is prepared for them.
_ASKING = ("Running", "Requesting")
_EVERY = 1.0


class Told:
    """Turns a bar's count of requests into documents done, documents in all and seconds left."""

    def __init__(self, report: Report, clock: Callable[[], float] = time.monotonic) -> None:
        self._report = report
        self._clock = clock
        self._said = self._begun = clock()
        self._documents = self._requests = self._before = self._now = 0

    def begin(self, documents: int, requests: int) -> None:
        """Take in that a model is asked for so many documents by so many requests, which bars may count in several."""
        self._documents, self._requests, self._before, self._now = documents, requests, 0, 0
        self._begun = self._clock()

    def bar(self, done: int, total: int) -> None:
        """Take in what a bar shows."""
        if done < self._now:
            # A further bar: the last one has come to its end.
            self._before += self._now
        self._now = done
        count, now = min(self._before + done, self._requests), self._clock()
        if count and (now - self._said >= _EVERY or count == self._requests):
            self._said = now
            left = (now - self._begun) / count * (self._requests - count)
            documents = count * self._documents // self._requests
            self._report({"done": documents, "of": self._documents, "unit": "documents", "left": left})


@contextlib.contextmanager
def told(model: Any, report: Report | None) -> Iterator[None]:
    """Report while a model of lm-evaluation-harness answers requests."""
    if report is None:
        yield
        return
    from tqdm import std

    progress = Told(report)

    def counting(name: str) -> Callable[..., Any]:
        method = getattr(model, name)

        def asked(requests: list[Any], *rest: Any, **named: Any) -> Any:
            documents = {(request.task_name, request.doc_id) for request in requests}
            progress.begin(len(documents), _pieces(model, requests) if name.endswith("rolling") else len(requests))
            return method(requests, *rest, **named)

        return asked

    def shows(bar: Any, *_: Any, **__: Any) -> bool:
        if str(bar.desc or "").startswith(_ASKING) and bar.total:
            progress.bar(bar.n, bar.total)
        return True

    with contextlib.ExitStack() as stack:
        for name in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            stack.enter_context(patch.object(model, name, counting(name)))
        stack.enter_context(patch.object(std.tqdm, "display", shows))
        yield


def _pieces(model: Any, requests: list[Any]) -> int:
    """Return how many windows texts are cut into, each of which is a request of its own."""
    length = max(1, int(getattr(model, "max_length", 0) or 2048))
    return sum(max(1, -(-len(model.tok_encode(request.args[0])) // length)) for request in requests)
