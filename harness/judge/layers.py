"""Which layers a profile's time went to: attention, MLP, norms and head, for each step of prefill and of decode.

A compiled model's kernels, replayed as a graph, no longer know which module they are of. But their order tells it: a
decoder's layer is products for attention, attention itself, one product after it, and the products of its MLP; after
the last layer comes the head. How many products come before attention is seen before the first one, how many layers
there are is told by the engine. Whatever else runs is of the product that it prepares, or lies within; norms and what
is added on the way (elementwise kernels between layers' parts) are a kind of their own. Where what ran is not made up
so (experts that are chosen one by one, say), nothing is told.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.judge.profile import DECODE, OTHER, PREFILL, Kept, kind_of

ATTENTION, MLP, NORMS, HEAD, BEFORE, GAPS = (
    "attention",
    "MLP",
    "norms and residuals",
    "head and sampling",
    "embedding and inputs",
    "gaps",
)
LAYERS = (ATTENTION, MLP, NORMS, HEAD, BEFORE, GAPS)
_NORMS = ("norms and elementwise", "norms fused with quantizing")
_PRODUCT, _QUANTIZING = "matrix products", "quantizing activations"
_TELLS_NOTHING = (OTHER, "copies")
# A change of less than this share of the whole is not put into words.
_TOLD = 0.02
# The second half of the product before it; what attention is told of a step once, which is no attention.
_SECOND = re.compile(r"split_?k_?reduce", re.IGNORECASE)
_ONCE = re.compile(r"prepare_varlen|scheduler_metadata|num_splits", re.IGNORECASE)


@dataclass(frozen=True)
class Call:
    """One kernel or operator as it ran: milliseconds of its start and end, and those of its own."""

    name: str
    start: float
    end: float
    own: float

    @property
    def kind(self) -> str:
        return kind_of(self.name)


@dataclass(frozen=True)
class Step:
    """One step of the model, from the end of the one before: milliseconds by kind of layer, in all ``total``."""

    layers: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.layers.values())


def steps(calls: Sequence[Call], layers: int) -> list[Step]:
    """Return the steps of a model of so many layers in what ran, the prompt's first; empty where they are not seen."""
    if not calls or layers < 1:
        return []
    places, names = _marked(calls)
    blocks = _blocks(calls, places)
    attended = [number for number, (kind, _) in enumerate(blocks) if kind == ATTENTION]
    if not attended or len(attended) % layers:
        return []
    before = len(blocks[0][1]) if blocks[0][0] == MLP else 0
    roles = _roles(blocks, attended, layers, before)
    if before < 1 or not roles:
        return []
    return _summed(calls, places, names, roles, len(attended) // layers)


def _marked(calls: Sequence[Call]) -> tuple[list[int], list[str]]:
    """Return for each call the place of the product or attention that it is, or is within, -1 for others; and a name.

    That of an operator which another one calls, and whose own tells nothing, is that one's.
    """
    marks: list[int] = []
    names: list[str] = []
    open_calls: list[int] = []
    last = -1
    for place, it in enumerate(calls):
        # What merely begins before the one before it has ended is no part of it.
        while open_calls and calls[open_calls[-1]].end < it.end:
            open_calls.pop()
        caller = open_calls[-1] if open_calls else -1
        name = names[caller] if it.kind in _TELLS_NOTHING and caller >= 0 else it.name
        mark = marks[caller] if caller >= 0 else -1
        if mark < 0 and last >= 0 and _SECOND.search(it.name):
            mark = last
        elif mark < 0 and it.kind in (_PRODUCT, ATTENTION) and not _ONCE.search(it.name):
            mark = last = place
        marks.append(mark)
        names.append(name)
        open_calls.append(place)
    return marks, names


def _blocks(calls: Sequence[Call], places: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Return products in a row, and attention in a row, in turns: the places of their calls."""
    found: list[tuple[str, list[int]]] = []
    for place in (place for place, of in enumerate(places) if of == place):
        kind = ATTENTION if calls[place].kind == "attention" else MLP
        if found and found[-1][0] == kind:
            found[-1][1].append(place)
        else:
            found.append((kind, [place]))
    return found


def _roles(
    blocks: Sequence[tuple[str, list[int]]], attended: Sequence[int], layers: int, before: int
) -> dict[int, tuple[str, int]]:
    """Return the kind of layer and the step of each product and attention; empty where they are of no decoder."""
    roles: dict[int, tuple[str, int]] = dict.fromkeys(blocks[0][1], (ATTENTION, 0))
    of_mlp = _of_mlp(blocks, attended, layers, before)
    for count, number in enumerate(attended):
        step, last = count // layers, (count + 1) % layers == 0
        roles |= dict.fromkeys(blocks[number][1], (ATTENTION, step))
        after = blocks[number + 1][1] if number + 1 < len(blocks) else []
        final = number == attended[-1]
        own = after if final else after[: len(after) - before]
        if len(own) < 1 + of_mlp + last or of_mlp < 1:
            return {}
        roles[own[0]] = (ATTENTION, step)
        inner = own[1 : 1 + of_mlp] if last else own[1:]
        roles |= dict.fromkeys(inner, (MLP, step))
        roles |= dict.fromkeys(own[1 + len(inner) :], (HEAD, step))
        if not final:
            roles |= dict.fromkeys(after[len(own) :], (ATTENTION, step + last))
    return roles


def _of_mlp(blocks: Sequence[tuple[str, list[int]]], attended: Sequence[int], layers: int, before: int) -> int:
    """Return how many products an MLP has: those between two layers' attentions that are not attention's; 0: unknown.

    Of a model of one layer they are told by the last step, whose head is one product.
    """
    within = {
        len(blocks[number + 1][1]) - 1 - before
        for count, number in enumerate(attended)
        if (count + 1) % layers and number + 1 < len(blocks)
    }
    if layers == 1:
        within = {len(blocks[attended[-1] + 1][1]) - 2} if attended[-1] + 1 < len(blocks) else set()
    return within.pop() if len(within) == 1 else 0


def _summed(
    calls: Sequence[Call],
    places: Sequence[int],
    names: Sequence[str],
    roles: Mapping[int, tuple[str, int]],
    number: int,
) -> list[Step]:
    begins = _begins(calls, roles, number)
    found: list[dict[str, float]] = [defaultdict(float) for _ in range(number)]
    marks = sorted(roles)
    following = 0
    # The first mark at or after a call is the one that it prepares.
    for place, it in enumerate(calls):
        while following < len(marks) and marks[following] < place:
            following += 1
        step = max(count for count, begin in enumerate(begins) if place >= begin)
        if places[place] in roles:
            layer = roles[places[place]][0]
        else:
            past = roles[marks[following - 1]] if following else None
            due = roles[marks[following]] if following < len(marks) else None
            layer = _between(names[place], past, due, step)
        found[step][layer] += it.own
    ends = [calls[begin].start for begin in begins[1:]] + [max(it.end for it in calls)]
    for step, (begin, end) in enumerate(zip([calls[it].start for it in begins], ends, strict=True)):
        found[step][GAPS] = max(0.0, end - begin - sum(found[step].values()))
    return [Step({layer: it[layer] for layer in LAYERS if it.get(layer, 0.0) > 0}) for it in found]


def _begins(calls: Sequence[Call], roles: Mapping[int, tuple[str, int]], number: int) -> list[int]:
    """Return the place of the first call of each step: after the longest wait between a head and the next product."""
    found = [0]
    for step in range(1, number):
        head = max(place for place, (_, of) in roles.items() if of == step - 1)
        first = min(place for place, (_, of) in roles.items() if of == step)
        within = range(head, first)
        found.append(1 + max(within, key=lambda place: calls[place + 1].start - calls[place].end))
    return found


def _between(name: str, past: tuple[str, int] | None, due: tuple[str, int] | None, step: int) -> str:
    """Return the layer of what runs between two products or attentions, of which one may be of another step."""
    kind = kind_of(name)
    before = past[0] if past and past[1] == step else None
    after = due[0] if due and due[1] == step else None
    if before is None and after:
        # The first norm of a step; a step's inputs are made by elementwise kernels too.
        return NORMS if "norm" in name.lower() else after if kind == _QUANTIZING else BEFORE
    if after is None or before == HEAD:
        return HEAD
    if before != after and kind in _NORMS:
        return NORMS
    return after


def phases(found: Kept) -> dict[str, Step]:
    """Return the prompt's step, and the mean of the further ones, of a profile in which they are seen; else nothing."""
    if found.ran is None:
        return {}
    names = found.ran.names
    calls = [
        Call(names[place], start / 1000, end / 1000, own / 1000)
        for place, start, end, own in found.ran.calls
        if place < len(names)
    ]
    seen = steps(calls, found.layers)
    if len(seen) < 2:
        return {}
    # Of the last one it is not seen when the next would have begun.
    prompt, further = seen[0], seen[1:-1] or seen[1:]
    mean = {layer: sum(it.layers.get(layer, 0.0) for it in further) / len(further) for layer in LAYERS}
    return {PREFILL: prompt, DECODE: Step({layer: value for layer, value in mean.items() if value > 0})}


def told(step: Step, baseline: Step, name: str) -> str:
    """Return in words by how much each kind of layer takes longer or shorter than in ``name``, the most first."""
    changes = {layer: step.layers.get(layer, 0.0) - baseline.layers.get(layer, 0.0) for layer in LAYERS}
    largest = sorted(changes.items(), key=lambda it: -abs(it[1]))
    parts = [f"{layer} {value:+.2f} ms" for layer, value in largest if abs(value) >= _TOLD * baseline.total]
    which = ", ".join(parts) or "every kind as before"
    return f"by layer, {step.total:.2f} ms with gaps for {baseline.total:.2f} ms of {name}: {which}"
