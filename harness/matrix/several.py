"""Which of a table's recipes run on how many GPUs that share a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from harness.matrix.hardware import Hardware
from harness.matrix.schema import CellEntry, Model, Recipe


def on_gpus(
    recipes: Sequence[Recipe], numbers: Sequence[int], asked: Mapping[str, Sequence[int]], listed: Sequence[int]
) -> Iterator[tuple[Recipe, int]]:
    """Yield recipes with each number of GPUs that they run on; those of one number follow each other.

    ``numbers`` are those of the table, ``asked`` those of a command line, ``listed`` those of :func:`listed_baseline`.
    """
    of = {recipe.name: list(asked.get(recipe.name) or asked.get("") or ()) for recipe in recipes}
    for recipe in recipes:
        if not of[recipe.name]:
            of[recipe.name] = [it for it in numbers if it in listed] if recipe.baseline and listed else list(numbers)
    for number in dict.fromkeys(number for recipe in recipes for number in of[recipe.name]):
        yield from ((recipe, number) for recipe in recipes if number in of[recipe.name])


def listed_baseline(
    placed: Sequence[tuple[CellEntry, Hardware]], entry: CellEntry, hardware: Hardware, model: Model, baseline: str
) -> Sequence[int]:
    """Return the numbers of GPUs that other tables list the baseline of a model on, if ``entry`` does not list it."""
    if baseline in entry.recipes:
        return ()
    others = [one for one, on in placed if on == hardware and baseline in one.recipes and model.name in one.models]
    return [number for one in others for number in one.gpus or model.gpus]


def too_many(hardware: Hardware, gpus: int) -> str:
    """Return why a hardware cannot share a model among so many GPUs, or an empty string if it can."""
    if gpus == 1 or hardware.is_gpu:
        return ""
    return f"{gpus} GPUs share the model of this cell, and {hardware} has none"
