"""What works under which version: recipes through engines and servers, old checkpoints, layers and kernels."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from harness.base.errors import HarnessError, Unsuitable, WorkerError
from harness.gate.bench import Bench
from harness.gate.blocks import REPEATS, of_the_machine, was_lost
from harness.gate.plan import Unit
from harness.judge.gatefile import Difference, GateFile, State, Works
from harness.judge.rules import LAYERS, LOAD, LOGITS, OLD_CHECKPOINT, QUANTIZE, SERVE
from harness.judge.series import SIDES, Series, Side
from harness.judge.verdict import Verdict, event
from harness.matrix.plan import Cell
from harness.measure.flow import Flow
from harness.measure.recorder import Recorder
from harness.measure.sizes import checkpoint
from harness.records.metrics import METRICS
from harness.records.place import Place
from harness.records.schema import Line, Measurement

Result = TypeVar("Result")

# Mean KL in nats between the old and the new version's predictions for one checkpoint. Chosen: less than half of what
# the mildest recipe costs (0.005 for int8 weights). A recipe that quantizes activations as they come is further than
# that from itself once its matrix products have another shape; it may be so many times as far from its old version.
LOGITS_BOUND = 0.002
SELF_FACTOR = 2.0
_WINDOWS, _WINDOW_TOKENS = 4, 64


def noted(row: Works, side: Side, error: HarnessError | None, went: State = "works") -> Works:
    """Return the row with how it went on one side, ``went`` where there is no error; the first error is kept."""
    state: State = "fails" if error else went
    told = row.error or (f"{side}: {error}"[:1000] if error else None)
    return replace(row, old=state, error=told) if side == "old" else replace(row, new=state, error=told)


def verdict_of(row: Works) -> Verdict | None:
    """Return what a row means, or None where it works on both sides or was not tried on both."""
    about = Series(row.place.at(f"works: {row.stage}"))
    if "not tried" in (row.old, row.new):
        return None
    if row.old != "fails" and row.new == "fails":
        return event(about, "regressed", "stopped-working", row.error or "")
    if row.old == "fails" and row.new != "fails":
        return event(about, "pass", "started-working", f"it failed under the old version: {row.error}")
    if row.old == "works" and row.new == "at load":
        return event(about, "regressed", "stopped-saving", "")
    if row.old == "at load" and row.new == "works":
        return event(about, "pass", "started-saving", "")
    if row.old == "fails":
        return event(about, "error", "fails-both", row.error or "")
    return None


class Compatibility:
    """Fills the compatibility matrix and compares layers and kernels.

    What fails because of the machine (``blocks.of_the_machine``) is no failure of a recipe: its row stays untried.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.rows: dict[tuple[Place, str], Works] = {}
        self.changes: list[Difference] = []
        self.verdicts: list[Verdict] = []
        self._same: set[Place] = set()
        self._unsaved: set[Place] = set()
        self._kernels: dict[Place, dict[str, set[str]]] = {}

    def row(self, cell: Cell, stage: str) -> Works:
        """Return how a cell went at a stage of the matrix; it has a row from now on."""
        return self.rows.setdefault((cell.place.named, stage), Works(cell.place, stage))

    def note(self, cell: Cell, stage: str, side: Side, error: HarnessError | None, went: State = "works") -> None:
        """Take down how a cell went at a stage on one side."""
        self.rows[cell.place.named, stage] = noted(self.row(cell, stage), side, error, went)

    def checkpoints(self, through: Sequence[Cell]) -> dict[Side, HarnessError | None]:
        """Make the checkpoint of a cell on both sides, unless all its servers quantize by themselves.

        Returns each side's error; through such servers alone it is that the model does not suit the recipe.
        """
        for cell in through:
            if not self.bench.base.checkpoints.at_load(cell):
                return self.quantize(replace(cell, server=""))
        try:
            self.bench.base.checkpoints.served(through[0])
        except Unsuitable as error:
            return dict.fromkeys(SIDES, error)
        return dict.fromkeys(SIDES)

    def quantize(self, cell: Cell) -> dict[Side, HarnessError | None]:
        """Make the cell's checkpoint on both sides; returns each side's error.

        A cell that the model does not suit has no row: nothing of it works or fails.
        """
        self.bench.base.checkpoints.plain(cell.model, cell.hardware)

        def make(side: Side) -> tuple[dict[str, Any], str]:
            flow = self.bench.flow(side)
            checkpoint(Recorder(flow, self.bench.run, {"side": side, "block": 0, "attempt": 0}), cell)
            return flow.checkpoints.facts(cell), flow.checkpoints.of(cell).key

        found = self.bench.both(lambda side: self._repeated(f"quantize {cell.id}", lambda: make(side)))
        errors = {side: found[side] if isinstance(found[side], HarnessError) else None for side in SIDES}
        if any(isinstance(error, Unsuitable) for error in errors.values()):
            return errors
        self.row(cell, QUANTIZE)
        saved = {side: not errors[side] and found[side][0]["checkpoint_bytes"] is not None for side in SIDES}
        for side, error in errors.items():
            if not of_the_machine(error):
                self.note(cell, QUANTIZE, side, error, "works" if saved[side] else "at load")
        if not errors["old"] and not saved["old"]:
            # What the new version quantizes anew is no checkpoint of the old one.
            self._unsaved.add(_anywhere(cell.place))
        if not any(errors.values()):
            (old, old_key), (new, new_key) = found["old"], found["new"]
            self._layers(cell, *({one["layer"]: one for one in it["weights"].values()} for it in (old, new)))
            if old_key == new_key:
                self._same.add(_anywhere(cell.place))
        return errors

    def first_block(self, unit: Unit, errors: dict[Side, HarnessError | None]) -> None:
        """Take down how a unit's first block went."""
        for side, error in errors.items():
            self.note(unit.cell, _runs(unit), side, error)

    def alone(self, unit: Unit, side: Side) -> None:
        """Load and run a recipe on the only side that has a checkpoint of it; raises what is not the recipe's."""

        def load() -> None:
            fleet = self.bench.flow(side).fleet
            try:
                {"transformers": fleet.transformers, "engine": fleet.engine, "server": fleet.server}[unit.stage](
                    unit.cell
                )
            finally:
                fleet.end()

        self._try(unit.cell, _runs(unit), side, lambda: self._repeated(f"load {unit.id}", load))

    def _try(self, cell: Cell, stage: str, side: Side, work: Callable[[], None]) -> None:
        """Take down how ``work`` goes; raises the error of a machine, which says nothing of the cell."""
        self.row(cell, stage)
        try:
            work()
        except HarnessError as error:
            if of_the_machine(error := self.bench.cut_off.instead(error)):
                raise error from None
            self.note(cell, stage, side, error)
        else:
            self.note(cell, stage, side, None)

    def looks_at(self, unit: Unit) -> bool:
        """Return whether an old checkpoint of a unit's cell is still to be tried under the new version."""
        cell = unit.cell
        if self.bench.base.checkpoints.at_load(cell) or cell.recipe.baseline:
            return False
        if _anywhere(cell.place) in self._same | self._unsaved:
            return False
        return self.row(cell, OLD_CHECKPOINT).new == "not tried"

    def old_checkpoint(self, unit: Unit) -> None:
        """Load what the old version quantized and saved under the new one: same logits, and vLLM's engine runs it.

        Nothing is tried where both versions make the very same checkpoint or the old one saves none, nor once more for
        the server of an engine that has told, nor through a server that is given none. Raises what is not the recipe's.
        """
        cell = unit.cell
        if self.bench.base.checkpoints.at_load(cell) or _anywhere(cell.place) in self._unsaved:
            return
        row, runs = self.row(cell, OLD_CHECKPOINT), self.row(cell, _runs(unit))
        if cell.recipe.baseline or row.new != "not tried":
            return
        same = _anywhere(cell.place) in self._same
        self.rows[cell.place.named, OLD_CHECKPOINT] = replace(row, old=runs.old, new=runs.new if same else row.new)
        if same:
            return
        maker = self.bench.flow("old")
        if unit.stage != "transformers":
            what = f"serve {cell.id}"
            self._try(cell, OLD_CHECKPOINT, "new", lambda: self._repeated(what, lambda: self._serve(cell, maker)))
        else:
            self._try(cell, OLD_CHECKPOINT, "new", lambda: self._compare_logits(cell, maker))

    def _serve(self, cell: Cell, maker: Flow) -> None:
        fleet = self.bench.flow("new", checkpoints=maker.checkpoints).fleet
        try:
            engine = fleet.engine(cell)
            limit = cell.measurements.time_limits.measure
            engine.ask("latency", limit, batch_size=1, input_len=8, output_len=4)
        finally:
            fleet.end()

    def _compare_logits(self, cell: Cell, maker: Flow) -> None:
        text = str(self.bench.base.checkpoints.prompts().folder / "text.txt")
        common = {"text": text, "windows": _WINDOWS, "window_tokens": _WINDOW_TOKENS}
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "logits.safetensors")
            itself = self._ask("old", maker, cell, "write_logits", output=file, **common)
            found = self._ask("new", maker, cell, "compare_logits", against=file, **common)
        about = Series(cell.place.at(LOGITS))
        bound = max(LOGITS_BOUND, SELF_FACTOR * itself["kl"])
        words = (
            f"KL {found['kl']:.2g} nats (bound {bound:.2g}; the old version is {itself['kl']:.2g} from itself when the "
            f"batch changes), top-1 {found['top1']:.1%} the same (itself {itself['top1']:.1%}), "
            f"largest difference of a logit {found['largest']:.2g}"
        )
        same = found["kl"] <= bound
        self._add(
            event(
                about, "pass" if same else "regressed", "checkpoint-reads-same" if same else "checkpoint-differs", words
            )
        )

    def _ask(self, side: Side, maker: Flow, cell: Cell, command: str, **arguments: Any) -> dict[str, Any]:
        """Ask a fresh worker about a checkpoint of ``maker``'s; one that is lost says nothing of the version."""
        return self._repeated(
            f"{command} of {cell.id}", lambda: self.bench.ask_once(side, maker, cell, command, **arguments)
        )

    def _repeated(self, what: str, ask: Callable[[], Result]) -> Result:
        """Return what ``ask`` does; a worker that was lost says nothing of the version, so another one is tried."""
        for _ in range(REPEATS):
            try:
                return ask()
            except WorkerError as error:
                if not was_lost(error) or self.bench.cut_off.happened:
                    raise
                self.bench.progress(f"{what} lost its worker: repeated")
        return ask()

    def _add(self, verdict: Verdict) -> None:
        """Take a verdict in, in place of one of an earlier session on the same thing."""
        self.verdicts = [it for it in self.verdicts if it.place.named != verdict.place.named]
        self.verdicts.append(verdict)

    def _layers(self, cell: Cell, old: dict[str, Any], new: dict[str, Any]) -> None:
        """Hold the quantized layers of both sides against each other, by name."""
        lost = [name for name, layer in old.items() if layer["quantized"] and not new.get(name, {}).get("quantized")]
        counts = {"old": [_quantized(old)], "new": [_quantized(new)]}
        about = Series(cell.place.at(LAYERS), counts)
        unit = METRICS[LAYERS].unit
        if lost:
            shown = ", ".join(lost[:6]) + (f" and {len(lost) - 6} more" if len(lost) > 6 else "")
            self._add(event(about, "regressed", "layers-lost", f"no longer quantized: {shown}", unit=unit))
        elif counts["old"][0]:
            self._add(event(about, "pass", "layers-kept", "", unit=unit))
        moves = Counter(
            (layer["kind"], layer["tensor"], new[name]["tensor"])
            for name, layer in old.items()
            if name in new and layer["tensor"] != new[name]["tensor"]
        )
        for (kind, before, after), count in sorted(moves.items()):
            what = f"tensor class of {count} {kind} layer{'s' if count > 1 else ''}"
            self._change(Difference(_anywhere(cell.place), what, before, after))

    def add(self, line: Line) -> None:
        """Take a record in: the recipe's kernels, where they are not the same before and after, from its profiles."""
        if not isinstance(line, Measurement) or line.metric != "quantized_kernel_share" or "side" not in line.flags:
            return
        pattern = str(line.parameters["pattern"])
        ran = self.bench.run.attached(line.attachment)["kernels"]
        place = _anywhere(Place.of(line))
        sides = self._kernels.setdefault(place, {})
        sides[str(line.flags["side"])] = {name for name, _, _ in ran if re.search(pattern, name)}
        if len(sides) == len(SIDES) and sides["old"] != sides["new"]:
            before, after = (", ".join(sorted(sides[side])) or "none" for side in SIDES)
            self._change(Difference(place, "kernels", before, after))

    def _change(self, change: Difference) -> None:
        self.changes = [one for one in self.changes if one != change] + [change]

    def restore(self, stored: GateFile) -> None:
        """Take over the rows, verdicts and changes of a gate that was interrupted."""
        self.rows |= {(row.place.named, row.stage): row for row in stored.compatibility}
        kept = ("checkpoint-reads-same", "checkpoint-differs", "layers-lost", "layers-kept")
        self.verdicts += [verdict for verdict in stored.verdicts if verdict.reason in kept]
        self.changes = [replace(one, place=_anywhere(one.place)) for one in stored.kernels]


def _runs(unit: Unit) -> str:
    """Return the stage of the matrix that a unit's blocks tell of."""
    return SERVE if unit.stage == "server" else LOAD


def _anywhere(place: Place) -> Place:
    """Return the model and recipe by their names, through whichever server: what one checkpoint is made for."""
    return place.named.cell.without("server")


def _quantized(layers: dict[str, Any]) -> float:
    return float(sum(layer["quantized"] for layer in layers.values()))
