"""The requests of a workload: prompts, how long the answers are to be, and the times of a schedule."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_RANDOM_IDS = 10_000


@dataclass(frozen=True)
class Turn:
    """One prompt, as token ids or a text, and the tokens that its answer is to have; further turns add to it."""

    prompt: list[int] | str
    output_tokens: int


@dataclass(frozen=True)
class Conversation:
    """What one arrival sends: mostly one turn. ``at`` is when it comes, in seconds, where a trace says so."""

    turns: tuple[Turn, ...]
    at: float | None = None


def made(workload: dict[str, Any], number: int, seed: int, vocabulary: int) -> list[Conversation]:
    """Return so many conversations of a workload of random prompts, a trace or a file; the seed decides all of it.

    Raises ValueError for a file that has too few of them, or a line that is none.
    """
    arrival = workload["arrival"]
    if arrival["kind"] == "trace":
        return _trace(Path(arrival["file"]), arrival, number, random.Random(seed), vocabulary)  # noqa: S311
    if workload["prompts"] != "random":
        return _file(Path(workload["prompts"]), workload, number, random.Random(seed))  # noqa: S311
    drawn = random.Random(seed)  # noqa: S311
    ids = range(min(_RANDOM_IDS, vocabulary))
    prefix = workload.get("shared_prefix") or {"tokens": 0, "groups": 1}
    # The same in every run, as a system prompt is; the cache is emptied between runs.
    beginnings = [
        random.Random(group).choices(ids, k=prefix["tokens"])  # noqa: S311
        for group in range(prefix["groups"])
    ]
    found = []
    for index in range(number):
        turns = []
        for turn in range(workload["turns"]):
            own = drawn.choices(ids, k=length(workload["input"], drawn))
            start = beginnings[index % len(beginnings)] if turn == 0 else []
            turns.append(Turn([*start, *own], length(workload["output"], drawn)))
        found.append(Conversation(tuple(turns)))
    return found


def length(wanted: dict[str, Any], drawn: random.Random) -> int:
    """Return a length in tokens of a distribution; what would be beyond a bound is on it."""
    kind = wanted["kind"]
    if kind == "fixed":
        return int(wanted["tokens"])
    low, high = int(wanted["low"]), int(wanted["high"])
    if kind == "uniform":
        return drawn.randint(low, high)
    mean, deviation = wanted["mean"], wanted["deviation"]
    if kind == "normal":
        found = drawn.gauss(mean, deviation)
    else:
        sigma = math.sqrt(math.log(1 + (deviation / mean) ** 2))
        found = drawn.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)
    return min(high, max(low, round(found)))


def offsets(arrival: dict[str, Any], rate: float | None, conversations: Sequence[Conversation]) -> list[float] | None:
    """Return when each arrival is due, in seconds, or None where the generator draws or holds them itself."""
    if arrival["kind"] == "trace":
        return [conversation.at or 0.0 for conversation in conversations]
    if arrival["kind"] == "constant" and rate:
        return [(index + 1) / rate for index in range(len(conversations))]
    if arrival["kind"] == "burst" and rate:
        size = arrival["burst"]
        return [(index // size) * size / rate for index in range(len(conversations))]
    return None


def _trace(
    path: Path, arrival: dict[str, Any], number: int, drawn: random.Random, vocabulary: int
) -> list[Conversation]:
    scale = (1000.0 if arrival["unit"] == "ms" else 1.0) * arrival["speed"]
    ids = range(min(_RANDOM_IDS, vocabulary))
    rows = _rows(path)[:number]
    try:
        start = float(rows[0]["timestamp"])
        found = []
        for row in rows:
            prompt = row.get("prompt") or drawn.choices(ids, k=int(row["input_length"]))
            wanted = int(row.get("output_tokens") or row["output_length"])
            found.append(Conversation((Turn(prompt, wanted),), (float(row["timestamp"]) - start) / scale))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"{path}: every line needs timestamp, and input_length and output_length or prompt and output_tokens "
            f"({type(error).__name__}: {error})"
        ) from error
    return sorted(found, key=lambda conversation: conversation.at or 0.0)


def _file(path: Path, workload: dict[str, Any], number: int, drawn: random.Random) -> list[Conversation]:
    rows = _rows(path)
    if len(rows) < number:
        raise ValueError(
            f"{path} has {len(rows)} prompts, and {number} are sent: a prompt that comes again is answered out of the "
            "prefix cache; give more, or fewer requests and seconds (load.requests, load.seconds, load.sweep)"
        )
    output = workload.get("output")
    found = []
    for row in drawn.sample(rows, number):
        try:
            wanted = length(output, drawn) if output else int(row["output_tokens"])
            found.append(Conversation((Turn(row["prompt"], wanted),)))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: a line needs prompt and output_tokens ({row!r:.100})") from error
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]
