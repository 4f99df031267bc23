"""What works under which version: recipes through engines and servers, old checkpoints, layers and kernels."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from harness.base.errors import HarnessError, Unsuitable, WorkerError
from harness.gate.bench import Bench
from harness.gate.blocks import REPEATS, of_the_machine, was_lost
from harness.gate.plan import Unit
from harness.judge.rules import LAYERS, LOAD, LOGITS, OLD_CHECKPOINT, QUANTIZE, SERVE
from harness.judge.series import SIDES, Series, Side
from harness.judge.verdict import Verdict, event
from harness.matrix.plan import Cell
from harness.measure.flow import Flow
from harness.measure.measure import Measure
from harness.records.metrics import METRICS
from harness.records.run import Run
from harness.records.schema import Line, Measurement

State = Literal["works", "fails", "not tried"]
Result = TypeVar("Result")

# Mean KL in nats between the old and the new version's predictions for one checkpoint. Chosen: less than half of what
# the mildest recipe costs (0.005 for int8 weights). A recipe that quantizes activations as they come is further than
# that from itself once its matrix products have another shape; it may be so many times as far from its old version.
LOGITS_BOUND = 0.002
SELF_FACTOR = 2.0
_WINDOWS, _WINDOW_TOKENS = 4, 64


@dataclass
class Row:
    """One line of the compatibility matrix: a recipe at one stage through one server, before and after."""

    model: str
    recipe: str
    server: str | None
    stage: str
    old: State = "not tried"
    new: State = "not tried"
    error: str | None = None

    def note(self, side: Side, error: HarnessError | None) -> None:
        """Take down how it went on one side; the first error is kept."""
        state: State = "fails" if error else "works"
        if side == "old":
            self.old = state
        else:
            self.new = state
        if error and not self.error:
            self.error = f"{side}: {error}"[:1000]

    def verdict(self) -> Verdict | None:
        """Return what the row means, or None where it works on both sides or was not tried on both."""
        about = Series(self.model, self.recipe, self.server, f"works: {self.stage}", "")
        if "not tried" in (self.old, self.new):
            return None
        if self.old == "works" and self.new == "fails":
            return event(about, "regressed", "stopped-working", self.error or "")
        if self.old == "fails" and self.new == "works":
            return event(about, "pass", "started-working", f"it failed under the old version: {self.error}")
        if self.old == "fails":
            return event(about, "error", "fails-both", self.error or "")
        return None


@dataclass(frozen=True)
class Change:
    """Something of a recipe that is not the same before and after: a tensor class, a kernel."""

    model: str
    recipe: str
    what: str
    old: str
    new: str


class Compatibility:
    """Fills the compatibility matrix and compares layers and kernels.

    What fails because of the machine (``blocks.of_the_machine``) is no failure of a recipe: its row stays untried.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.rows: dict[tuple[str, str, str | None, str], Row] = {}
        self.changes: list[Change] = []
        self.verdicts: list[Verdict] = []
        self._same: set[tuple[str, str]] = set()

    def row(self, cell: Cell, stage: str) -> Row:
        key = (cell.model.name, cell.recipe.name, cell.server or None, stage)
        return self.rows.setdefault(key, Row(*key))

    def checkpoints(self, through: Sequence[Cell]) -> dict[Side, HarnessError | None]:
        """Make the checkpoint of a cell on both sides, unless all its servers quantize by themselves.

        Returns each side's error; through such servers alone it is that the model does not suit the recipe.
        """
        for cell in through:
            if not self.bench.base.at_load(cell):
                return self.quantize(replace(cell, server=""))
        try:
            self.bench.base.served(through[0])
        except Unsuitable as error:
            return dict.fromkeys(SIDES, error)
        return dict.fromkeys(SIDES)

    def quantize(self, cell: Cell) -> dict[Side, HarnessError | None]:
        """Make the cell's checkpoint on both sides; returns each side's error.

        A cell that the model does not suit has no row: nothing of it works or fails.
        """
        self.bench.base.plain(cell.model, cell.hardware)

        def make(side: Side) -> tuple[dict[str, Any], str]:
            flow: Flow = self.bench.flow(side)
            Measure(flow, self.bench.run, {"side": side, "block": 0, "attempt": 0}).checkpoint(cell)
            return flow.facts(cell), flow.checkpoint(cell).key

        found = self.bench.both(lambda side: self._repeated(f"quantize {cell.id}", lambda: make(side)))
        errors = {side: found[side] if isinstance(found[side], HarnessError) else None for side in SIDES}
        if any(isinstance(error, Unsuitable) for error in errors.values()):
            return errors
        row = self.row(cell, QUANTIZE)
        for side, error in errors.items():
            if not of_the_machine(error):
                row.note(side, error)
        if not any(errors.values()):
            (old, old_key), (new, new_key) = found["old"], found["new"]
            self._layers(cell, old["layers"], new["layers"])
            if old_key == new_key:
                self._same.add((cell.model.name, cell.recipe.name))
        return errors

    def row_of(self, unit: Unit) -> Row:
        """Return the row that a unit's first block fills."""
        return self.row(unit.cell, SERVE if unit.stage == "server" else LOAD)

    def first_block(self, unit: Unit, errors: dict[Side, HarnessError | None]) -> None:
        """Take down how a unit's first block went."""
        row = self.row_of(unit)
        for side, error in errors.items():
            row.note(side, error)

    def alone(self, unit: Unit, side: Side) -> None:
        """Load and run a recipe on the only side that has a checkpoint of it; raises what is not the recipe's."""

        def load() -> None:
            flow: Flow = self.bench.flow(side)
            try:
                {"transformers": flow.transformers, "engine": flow.engine, "server": flow.server}[unit.stage](unit.cell)
            finally:
                flow.end_workers()

        self._note(self.row_of(unit), side, lambda: self._repeated(f"load {unit.id}", load))

    def _note(self, row: Row, side: Side, work: Callable[[], None]) -> None:
        """Take down how ``work`` goes; raises the error of a machine, which says nothing of the row."""
        try:
            work()
        except HarnessError as error:
            if of_the_machine(error):
                raise
            row.note(side, error)
        else:
            row.note(side, None)

    def old_checkpoint(self, unit: Unit) -> None:
        """Load what the old version quantized and saved under the new one: same logits, and vLLM's engine runs it.

        Nothing is tried where both versions make the very same checkpoint, nor once more for the server of an engine
        that has told, nor through a server that is given none. Raises what is not the recipe's.
        """
        cell = unit.cell
        if self.bench.base.at_load(cell):
            return
        row, runs = self.row(cell, OLD_CHECKPOINT), self.row_of(unit)
        if cell.recipe.baseline or row.new != "not tried":
            return
        row.old = runs.old
        if (cell.model.name, cell.recipe.name) in self._same:
            row.new = runs.new
            return
        maker = self.bench.flow("old")
        if unit.stage != "transformers":
            self._note(row, "new", lambda: self._repeated(f"serve {cell.id}", lambda: self._serve(cell, maker)))
        else:
            self._note(row, "new", lambda: self._compare_logits(cell, maker))

    def _serve(self, cell: Cell, maker: Flow) -> None:
        flow = self.bench.carried("new", maker)
        try:
            engine = flow.engine(cell)
            limit = cell.measurements.time_limits.measure
            engine.ask("latency", limit, batch_size=1, input_len=8, output_len=4)
        finally:
            flow.end_workers()

    def _compare_logits(self, cell: Cell, maker: Flow) -> None:
        text = str(self.bench.base.prompts().folder / "text.txt")
        common = {"text": text, "windows": _WINDOWS, "window_tokens": _WINDOW_TOKENS}
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "logits.safetensors")
            itself = self._ask("old", maker, cell, "write_logits", output=file, **common)
            found = self._ask("new", maker, cell, "compare_logits", against=file, **common)
        about = Series(cell.model.name, cell.recipe.name, cell.server, LOGITS, "")
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
            f"{command} of {cell.id}", lambda: self.bench.carried(side, maker).ask_once(cell, command, **arguments)
        )

    def _repeated(self, what: str, ask: Callable[[], Result]) -> Result:
        """Return what ``ask`` does; a worker that was lost says nothing of the version, so another one is tried."""
        for _ in range(REPEATS):
            try:
                return ask()
            except WorkerError as error:
                if not was_lost(error):
                    raise
                self.bench.progress(f"{what} lost its worker: repeated")
        return ask()

    def _add(self, verdict: Verdict) -> None:
        """Take a verdict in, in place of one of an earlier session on the same thing."""
        about = (verdict.model, verdict.recipe, verdict.server, verdict.metric)
        self.verdicts = [it for it in self.verdicts if (it.model, it.recipe, it.server, it.metric) != about]
        self.verdicts.append(verdict)

    def _layers(self, cell: Cell, old: dict[str, Any], new: dict[str, Any]) -> None:
        """Hold the quantized layers of both sides against each other, by name."""
        lost = [name for name, layer in old.items() if layer["quantized"] and not new.get(name, {}).get("quantized")]
        counts = {"old": [_quantized(old)], "new": [_quantized(new)]}
        about = Series(cell.model.name, cell.recipe.name, cell.server or None, LAYERS, "", None, counts)
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
            change = Change(cell.model.name, cell.recipe.name, what, before, after)
            self.changes = [one for one in self.changes if one != change] + [change]

    def kernels(self, run: Run, lines: Iterable[Line]) -> None:
        """Add the recipe's kernels where they are not the same before and after, from the profiles of the run."""
        profiles: dict[tuple[str, str], dict[str, set[str]]] = {}
        for line in lines:
            if isinstance(line, Measurement) and line.metric == "quantized_kernel_share" and "side" in line.flags:
                pattern = str(line.parameters["pattern"])
                ran = json.loads((run.folder / line.attachment).read_text(encoding="utf-8"))["kernels"]
                own = {name for name, _, _ in ran if re.search(pattern, name)}
                key = (line.cell.model.name, line.cell.recipe.name)
                profiles.setdefault(key, {})[str(line.flags["side"])] = own
        for (model, recipe), sides in profiles.items():
            if len(sides) == len(SIDES) and sides["old"] != sides["new"]:
                before, after = (", ".join(sorted(sides[side])) or "none" for side in SIDES)
                change = Change(model, recipe, "kernels", before, after)
                self.changes = [one for one in self.changes if one != change] + [change]

    def restore(self, stored: dict[str, Any]) -> None:
        """Take over the rows, verdicts and changes of a gate that was interrupted."""
        for row in (Row(**row) for row in stored["compatibility"]):
            self.rows[(row.model, row.recipe, row.server, row.stage)] = row
        kept = ("checkpoint-reads-same", "checkpoint-differs", "layers-lost", "layers-kept")
        self.verdicts += [Verdict(**verdict) for verdict in stored["verdicts"] if verdict["reason"] in kept]
        self.changes = [Change(**change) for change in stored["kernels"]]

    def as_json(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the compatibility matrix and the changes, as gate.json holds them."""
        return [asdict(row) for row in self.rows.values()], [asdict(change) for change in self.changes]


def _quantized(layers: dict[str, Any]) -> float:
    return float(sum(layer["quantized"] for layer in layers.values()))
