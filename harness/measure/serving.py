"""An HTTP server: its start, a chat, and the published serving benchmark."""

from __future__ import annotations

import functools
import statistics
from typing import Any

from harness.base.errors import HarnessError, WorkerError
from harness.contract.tutorial import CHAT
from harness.matrix.plan import Cell
from harness.measure.engine import cold
from harness.measure.figures import Enough, Figure, Timer, between_rounds, in_a_row, percentiles, thinned
from harness.measure.flow import Flow
from harness.measure.recorder import Recorder
from harness.measure.rounds import FEWEST_SERVED, All, Rule, words
from harness.records.schema import Measurement, Scalar
from harness.runtime.job import Server, Shared
from harness.servers.base import SERVED_NAME


def server(recorder: Recorder, cell: Cell) -> Measurement:
    """Record the start of the HTTP server."""
    fleet = recorder.flow.fleet

    def take() -> dict[str, Figure]:
        started = fleet.server(cell)
        seconds, told = started.start_seconds, cold(started, "start")
        cache(recorder, cell)
        client = fleet.client(cell).start_seconds
        recorder.note(cell, {"kind": "client"}, "engine_start", Figure(client), engine=True)
        if not isinstance(started, Shared):
            # Those seconds are an offline engine's.
            told.pop("cold_start", None)
        return {"engine_start": Figure(seconds, [seconds], statistics=told)}

    # The start is of the block that is discarded.
    return recorder.block(cell, {"kind": "server"}, engine=True).take(
        take, names=("engine_start",), again=lambda: fleet.renew(cell, "server")
    )["engine_start"]


def cache(recorder: Recorder, cell: Cell) -> None:
    """Record how many tokens fit the key-value cache of the cell's server, which runs, where it tells."""
    fleet = recorder.flow.fleet
    server = fleet.server(cell)
    try:
        tokens = fleet.backend(cell).cache_tokens(functools.partial(server.get, timeout=60))
    except WorkerError:
        # What is asked there is no part of any standard.
        server.check_alive("cache")
        return
    if tokens is not None:
        recorder.note(cell, {"kind": "server"}, "kv_cache_capacity", Figure(float(tokens)), engine=True)


def chat(recorder: Recorder, cell: Cell) -> dict[str, Any]:
    """Ask the server the tutorial's chat completion and return its answer."""
    wanted = cell.measurements.serving

    def take() -> dict[str, Figure]:
        body = {"model": SERVED_NAME, "max_tokens": wanted.chat_tokens, **CHAT}
        asked = recorder.flow.fleet.server(cell)
        answer = asked.post("/v1/chat/completions", body, cell.measurements.time_limits.measure)
        attachment = recorder.attach(f"{cell.id}-chat", answer)
        return {"chat_tokens": Figure(float(answer["usage"]["completion_tokens"]), attachment=attachment)}

    def ask() -> Measurement:
        parameters: dict[str, Scalar] = {"max_tokens": wanted.chat_tokens}
        taken = recorder.block(cell, parameters, engine=True).take(take, names=("chat_tokens",), quick=True)
        return taken["chat_tokens"]

    found = ask()
    try:
        answer: dict[str, Any] = recorder.run.attached(found.attachment)
    except HarnessError:
        # A resumed run that is kept without its attachments, or with damaged ones.
        recorder.forget(found)
        answer = recorder.run.attached(ask().attachment)
    return answer


def serving(recorder: Recorder, cell: Cell, num_prompts: int, timer: Timer = in_a_row) -> dict[str, Measurement]:
    """Measure the published serving benchmark, a round a call of the timer.

    The prefix cache is emptied before every round. Some versions of the benchmark then send their first prompt once
    to see whether the server answers, so that prompt's prefix is warm, by hand as here. Rounds end early as those of
    latency do, once both rates are known; where a limit is asked of a time, all are taken.
    """
    flow, wanted = recorder.flow, cell.measurements.serving
    rates, times = ("request_throughput", "output_throughput"), ("ttft", "tpot", "itl")
    parameters: dict[str, Scalar] = {"num_prompts": num_prompts, "dataset": "ShareGPT"}
    if wanted.output_len is not None:
        parameters["output_len"] = wanted.output_len
    block = recorder.block(cell, parameters, engine=True, inputs=flow.checkpoints.prompts().key)

    def take() -> dict[str, Figure]:
        rounds: list[dict[str, Any]] = []
        asked = prompts_asked(flow, cell, num_prompts)
        rules: dict[str, Rule] = {
            name: All()
            if any(block.limited(it) for it in times)
            else block.rule(name, statistics.median, wanted.rounds, fewest=FEWEST_SERVED)
            for name in rates
        }

        def once() -> None:
            if rounds and all(rule.enough([it[name] for it in rounds]) for name, rule in rules.items()):
                raise Enough
            number = len(rounds) + 1
            flow.progress(f"serving {num_prompts} prompts of {cell.id}: round {number} of {wanted.rounds}")
            stage = f"serving {num_prompts} prompts, round {number}"
            rounds.append(through_client(flow, cell, "serving", stage, **asked))

        timer(once, wanted.rounds, 0)
        found = {}
        for name in rates:
            samples = [answer[name] for answer in rounds]
            # Ended by both together.
            early = rules[name].told(samples) if len(rounds) < wanted.rounds else {}
            told = percentiles(samples) | early
            found[name] = Figure(statistics.median(samples), samples, statistics=told)
            if early and name == rates[0]:
                flow.progress(words(f"serving {num_prompts} prompts of {cell.id}", early, len(samples)))
        for name in times:
            samples = [value for answer in rounds for value in answer[name]]
            if samples:
                told = percentiles(samples) | between_rounds([answer[name] for answer in rounds])
                found[name] = Figure(statistics.median(samples), thinned(samples), statistics=told)
        return found

    return block.take(take, names=(*rates, *times))


def prompts_asked(flow: Flow, cell: Cell, num_prompts: int) -> dict[str, Any]:
    """Return what the client is told of the published serving benchmark."""
    dataset = str(flow.checkpoints.prompts().folder / "prompts.json")
    return {"num_prompts": num_prompts, "output_len": cell.measurements.serving.output_len, "dataset": dataset}


def through_client(flow: Flow, cell: Cell, operation: str, stage: str, **asked: Any) -> dict[str, Any]:
    """Have the cell's client send requests to its server and return what it tells, see :func:`to_server`."""
    return to_server(flow, cell, flow.fleet.server(cell), operation, stage, asked)


def to_server(
    flow: Flow, cell: Cell, server: Server, operation: str, stage: str, asked: dict[str, Any]
) -> dict[str, Any]:
    """Have the cell's client send requests to a server, over an empty prefix cache, and return what it tells.

    Raises WorkerError, which says how the server ended where it has.
    """
    client = flow.fleet.client(cell)
    server.tell(flow.fleet.backend(cell).empty_cache, 60)
    try:
        return client.ask(
            operation,
            cell.measurements.time_limits.measure,
            url=server.url,
            model=SERVED_NAME,
            tokenizer=str(flow.checkpoints.served(cell).folder),
            trust_remote_code=cell.model.trust_remote_code,
            **asked,
        )
    except WorkerError:
        server.check_alive(stage)
        raise
