"""A checkpoint and its records -> a repository of the hub, or a folder that holds what the repository would."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from harness.base.errors import HarnessError, nearest
from harness.base.files import write_text
from harness.base.text import going_on, one_line, redact
from harness.contract.versions import MAKERS
from harness.publish.checkpoint import Checkpoint, Origin, cached
from harness.records.place import Place, row_of
from harness.records.run import Run
from harness.records.schema import Cell, Header, Judgement, Measurement, ModelIdentity, describe
from harness.report import unsteady
from harness.runtime.sources import folder_revision
from harness.runtime.store import Store

ALLOWED = {
    "random-weights": "figures of weights that were never trained",
    "discarded": "figures of blocks that were discarded, with the reason at the card's top",
    "failed-thresholds": "a checkpoint of which a limit does not hold, with the limit at the card's top",
    "noisy": "figures whose rounds are too far apart to say whether a limit holds, or anything, said at the card's top",
    "unnamed-base": "a checkpoint whose unquantized model nobody can download, without the commands that load it",
    "unproven": "a folder that only its recipe's class and its size tie to the records",
}


_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*\Z")


M = TypeVar("M", bound=BaseModel)


class Refused(HarnessError):
    """What was asked for is not fit to be published; the message says why and what would allow it."""


@dataclass
class Records:
    """Every line of the chosen runs that a card can be made of."""

    runs: list[str] = field(default_factory=list)
    caches: list[Path] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    """The command that goes on with each run, which measures again what was too noisy."""

    @classmethod
    def read(cls, root: Path, names: Sequence[str]) -> Records:
        found = cls()
        for run in Run.open_all(root, names):
            lines, problems = run.read()
            found.runs.append(run.name)
            found.caches += [path for path in run.caches if path not in found.caches]
            found.measurements += [line for line in lines if isinstance(line, Measurement)]
            found.judgements += [line for line in lines if isinstance(line, Judgement)]
            # Its first session's, of which those that went on with it are parts.
            begun = [it.command for it in lines if isinstance(it, Header)][:1]
            found.again += [going_on(words[1:], run.name) for words in begun if words[:1] == ["pytest"]]
            for problem in problems:
                print(problem, file=sys.stderr)
        return found

    def subjects(self) -> list[Cell]:
        """Return a cell for each pair of weights and quantized recipe, the latest measured last."""
        found: dict[object, Cell] = {}
        for it in sorted(self.measurements, key=lambda it: it.time):
            if not it.cell.recipe.baseline:
                of = (*_weights(it.cell.model), it.cell.recipe.hash)
                found.pop(of, None)
                found[of] = it.cell
        return list(found.values())

    def of(self, cell: Cell, origin: Origin | None) -> Records:
        """Return what there is of one cell's weights and recipe, and of the baseline measured under the same packages.

        Records under other packages, or on another kind of device, than the checkpoint was made with are of another
        checkpoint; how many they are is said on standard error. Raises Refused where nothing is left.
        """
        here = [it for it in self.measurements if _same(it.cell.model, cell.model)]
        own = [it for it in here if it.cell.recipe.hash == cell.recipe.hash]
        other = [it for it in own if origin and _other_making(it, origin)]
        if other:
            why = "; ".join(dict.fromkeys(_other_making(it, origin) for it in other if origin))
            if len(other) == len(own):
                raise Refused(
                    f"the records are of another checkpoint of {name_of(cell)}: {why}; measure this one, or name the "
                    "runs that did with --records"
                )
            print(f"left out: {len(other)} of {len(own)} records are of another checkpoint: {why}", file=sys.stderr)
        dropped = {id(it) for it in other}
        own = [it for it in own if id(it) not in dropped]
        under = {(it.cell.hardware, _versions(it)) for it in own}
        base = [it for it in here if it.cell.recipe.baseline and (it.cell.hardware, _versions(it)) in under]
        judged = [it for it in self.judgements if _same(it.cell.model, cell.model)]
        judged = [it for it in judged if it.cell.recipe.hash == cell.recipe.hash]
        return Records(
            self.runs,
            self.caches,
            [*base, *own],
            [it for it in judged if it.cell.hardware in {one[0] for one in under}],
            self.again,
        )


def choose(records: Records, checkpoint: Checkpoint, store: Store, allowed: Iterable[str]) -> Cell:
    """Return the cell that a checkpoint's folder is of.

    Raises Refused where the records are of other weights or another recipe, and where nothing but a class and a size
    ties the folder to them and that was not allowed.
    """
    subjects, origin = records.subjects(), checkpoint.origin
    if came := [cell for cell in subjects if cell.model.came_quantized]:
        # Records of this very folder, measured as it is.
        revision = folder_revision(checkpoint.folder)
        if itself := [cell for cell in came if cell.model.revision == revision]:
            return itself[-1]
    if origin:
        found = [cell for cell in subjects if cell.recipe.hash == origin.recipe]
        if not found:
            known = ", ".join(f"{cell.recipe.name} ({cell.recipe.hash})" for cell in subjects)
            raise Refused(
                f"{checkpoint.folder} was made by the recipe {origin.recipe}, and the records have none of it: they "
                f"are of {_shown(known) or 'no quantized recipe'}; name its runs with --records"
            )
        exact = [cell for cell in found if origin.is_of(cell.model, store)]
        if not exact:
            raise Refused(
                f"{checkpoint.folder} was quantized from other weights ({origin.plain}) than the records are of: "
                f"{_list(found)}; name its runs with --records"
            )
        return exact[-1]
    found = [cell for cell in subjects if _fits(records, cell, checkpoint)]
    classes = " and ".join(sorted(checkpoint.classes))
    if not found:
        raise Refused(
            f"{checkpoint.folder} ({_shown(classes)}, {checkpoint.weight_bytes} bytes of weights) is none of the "
            f"checkpoints that the records are of: {_list(subjects)}; name its runs with --records"
        )
    if "unproven" not in allowed:
        raise Refused(
            f"nothing but its class ({_shown(classes)}) and its size says that {checkpoint.folder} is what the records "
            f"of {_list(found)} are of: it is not in the cache, under no name. Publish the cached one (MODEL:RECIPE), "
            "name the cache with --cache, or say --allow unproven"
        )
    if len(found) > 1:
        raise Refused(f"{checkpoint.folder} could be {_list(found)}; name the runs of one of them with --records")
    return found[0]


def named(records: Records, name: str) -> Cell:
    """Return the cell that ``MODEL:RECIPE`` names among the records."""
    model, _, recipe = name.rpartition(":")
    cells = [it for it in records.subjects() if (it.model.name, it.recipe.name) == (model, recipe)]
    if not cells:
        known = [f"{it.model.name}:{it.recipe.name}" for it in records.subjects()]
        raise Refused(
            f"{name!r} is neither a folder nor a MODEL:RECIPE that the records of {_shown(', '.join(records.runs))} "
            f"have; {_shown(nearest(name, known))}"
        )
    return cells[-1]


def stored(records: Records, cell: Cell, stores: Sequence[Store]) -> tuple[Store, Path]:
    """Return the cached checkpoint that the records of a cell are of, with the first store that has it."""
    own = [it for it in records.measurements if it.cell.recipe.hash == cell.recipe.hash]
    others: dict[str, None] = {}
    for store in stores:
        for folder, origin in cached(store, cell.recipe.hash):
            if not origin.is_of(cell.model, store):
                continue
            if any(_same(it.cell.model, cell.model) and not _other_making(it, origin) for it in own):
                return store, folder
            others |= {why: None for it in own if (why := _other_making(it, origin))}
    damaged = [str(path) for store in stores for path in store.unreadable("checkpoint")]
    looked = " nor ".join(str(store.root) for store in stores)
    raise Refused(
        f"{'neither' if len(stores) > 1 else 'the cache'} {looked} "
        f"{'has' if len(stores) > 1 else 'does not have'} the checkpoint of {name_of(cell)} that was measured"
        + (f" (there is another: {_shown('; '.join(others))})" if others else "")
        + (f"; it may be that of which {_shown(', '.join(damaged))} cannot be read: quantize again" if damaged else "")
        + "; give the --cache DIR that it was measured with, or the checkpoint's folder in place of MODEL:RECIPE"
    )


def screen(records: Records, cell: Cell, allowed: Iterable[str]) -> tuple[list[Measurement], list[Judgement]]:
    """Return the figures that may be published, and the judgements that were asked for though their limit is not held.

    A discarded record goes where another of the same line stands. Raises Refused that lists all that is not fit, each
    with the option that allows it.
    """
    problems = []
    if cell.model.weights == "random":
        problems.append(("random-weights", f"{cell.model.name} has random weights: {cell.model.note}"))
    standing = {(it.cell.recipe.hash, *_line(it)) for it in records.measurements if not it.discarded}
    chosen, told = [], set()
    for it in records.measurements:
        line = (it.cell.recipe.hash, *_line(it))
        if it.discarded and line in standing:
            continue
        if it.discarded and not it.cell.recipe.baseline and line not in told:
            told.add(line)
            problems.append(("discarded", f"{describe(it)} of {name_of(it.cell)} was discarded: {it.discarded}"))
        if not it.discarded or "discarded" in allowed:
            chosen.append(it)
    latest = {}
    for judged in sorted(records.judgements, key=lambda judged: judged.time):
        # By where it comes from, not by its number, which may have been changed from run to run.
        latest[Place.of(judged), judged.comparison, judged.origin] = judged
    failed = [judged for judged in latest.values() if not judged.passed]
    for judged in failed:
        if judged.noisy:
            problems.append(("noisy", unsteady.limit(judged)))
            continue
        words = (
            f"{judged.comparison} {judged.measured:.4g}, limit {judged.limit:g}; the limit's origin: {judged.origin}"
        )
        problems.append(("failed-thresholds", f"{describe(judged)} of {name_of(judged.cell)} fails: {words}"))
    noisy = {_figure(judged) for judged in failed if judged.noisy}
    mute = [it for it in unsteady.wide(chosen) if _figure(it) not in noisy]
    problems += [("noisy", unsteady.figure(it)) for it in mute]
    refused = [(kind, words) for kind, words in problems if kind not in allowed]
    if refused:
        kinds = " ".join(f"--allow {kind}" for kind in dict.fromkeys(kind for kind, _ in refused))
        listed = "\n".join(f"  {_shown(words)}" for _, words in refused)
        quieter = [command for command in records.again if "--allow noisy" in kinds]
        again = "\nWhere it is quieter, have what is noisy measured again;" if quieter else ""
        again += "".join(f"\ngo on with: {one}" for one in quieter)
        raise Refused(
            f"{name_of(cell)} is not fit to be published:\n{listed}{again}\nTo publish it all the same, say {kinds}"
        )
    return chosen, failed


@dataclass(frozen=True)
class Cleaner:
    """Takes tokens out of whatever a card is made of."""

    secret: str

    def __call__(self, value: Any) -> Any:
        if isinstance(value, str):
            return redact(value, self.secret)
        if isinstance(value, dict):
            return {self(name): self(inner) for name, inner in value.items()}
        return [self(inner) for inner in value] if isinstance(value, list) else value

    def line(self, model: M) -> M:
        return model.model_validate(self(model.model_dump()))


def write_folder(folder: Path, text: str, files: Iterable[Path]) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise HarnessError(f"--dry-run {folder}: is there and not empty; name a new folder")
    write_text(folder / "README.md", text)
    for path in files:
        shutil.copyfile(path, folder / path.name)
    total = sum(path.stat().st_size for path in folder.iterdir())
    print(f"wrote {len(list(folder.iterdir()))} files ({total / 1e6:.1f} MB) to {folder}; nothing was sent")


def check_names(args: argparse.Namespace) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    for option, value in (("--repo", args.repo), ("--base-model", args.base_model), ("--license", args.license)):
        if value and redact(value) != value:
            raise HarnessError(f"{option} {value!r}: this looks like a credential, and a card shows it to everybody")
    for option, value in (("--repo", args.repo), ("--base-model", args.base_model)):
        try:
            if value:
                validate_repo_id(value)
        except HFValidationError as error:
            raise HarnessError(f"{option} {value!r}: {error}") from error
    if args.repo.count("/") != 1:
        raise HarnessError(f"--repo {args.repo!r}: needs the owner and the name, e.g. me/my-model-int8wo")
    if args.license and not _LICENSE.match(args.license):
        raise HarnessError(f"--license {args.license!r}: the hub names licences in small letters, e.g. apache-2.0")
    if args.card_only and not args.dry_run:
        raise HarnessError("--card-only goes with --dry-run: figures are published beside the weights they are of")


def check_base(model: ModelIdentity, base_model: str, allowed: Iterable[str]) -> None:
    """Raise Refused where a card would send its readers to a name that is of a folder of this machine alone."""
    kind, _, where = model.source.partition(":")
    if kind == "folder" and not base_model and "unnamed-base" not in allowed:
        raise Refused(
            f"{one_line(model.name)} cannot be downloaded: its weights are from the folder {one_line(where)} of this "
            "machine, and a card sends its readers to the unquantized model. Name that model on the hub with "
            "--base-model ID, or say --allow unnamed-base"
        )


def hub_id(model: ModelIdentity) -> str:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    kind, _, name = model.source.partition(":")
    try:
        validate_repo_id(name)
    except HFValidationError:
        return ""
    return name if kind == "hub" else ""


def allowed() -> str:
    return "publish in spite of it: " + "; ".join(f"{name}: {words}" for name, words in ALLOWED.items())


def _same(one: ModelIdentity, other: ModelIdentity) -> bool:
    return _weights(one) == _weights(other)


def _weights(model: ModelIdentity) -> tuple[str, ...]:
    """Return what tells weights apart; notes on them are for people."""
    return model.name, model.source, model.revision, model.weights


def _versions(it: Measurement) -> tuple[str | None, ...]:
    return tuple(it.packages.get(name) for name in MAKERS)


def _other_making(it: Measurement, origin: Origin) -> str:
    """Return why a record is not of the checkpoint that was made so; empty if it is."""
    device = it.device.makes_on
    if device != origin.device:
        return f"measured on {device}, made on {origin.device}"
    for name in MAKERS:
        if it.packages.get(name) != origin.packages.get(name):
            return f"measured under {name} {it.packages.get(name)}, made under {origin.packages.get(name)}"
    return ""


def _line(it: Measurement) -> tuple[object, ...]:
    return it.device.name, *row_of(it)


def _figure(it: Measurement | Judgement) -> Place:
    return Place.of(it).named


def _fits(records: Records, cell: Cell, checkpoint: Checkpoint) -> bool:
    sizes = {
        it.value
        for it in records.measurements
        if it.metric == "checkpoint_size" and it.cell.recipe == cell.recipe and _same(it.cell.model, cell.model)
    }
    return checkpoint.weight_bytes in sizes and str(cell.recipe.config.get("config")) in checkpoint.classes


def name_of(cell: Cell) -> str:
    return _shown(f"{cell.model.name}:{cell.recipe.name}")


def _list(cells: Iterable[Cell]) -> str:
    return ", ".join(dict.fromkeys(map(name_of, cells))) or "no quantized recipe"


def _shown(text: str) -> str:
    return one_line(text)
