"""What a bisection has found so far, kept so that ``--resume`` asks nothing twice."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError
from harness.base.files import write_text
from harness.base.reading import json_file
from harness.gate.bisect import answer_of
from harness.judge import gatefile
from harness.judge.gatefile import GateFile, Options

SCHEMA = 1
_FOLDER = "bisects"


@dataclass(frozen=True)
class Searched:
    """One search: what it was asked for, and the gate that answered each question, in ``results/bisects/NAME.json``."""

    results: Path
    path: Path
    asked: Mapping[str, Any]
    gates: dict[str, str] = field(default_factory=dict)
    """Names of gates by question."""

    @classmethod
    def begin(cls, results: Path, asked: Mapping[str, Any]) -> Searched:
        """Return a new search; ``asked`` is all that its answers depend on."""
        name = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        folder = results / _FOLDER
        numbers = [name, *(f"{name}-{number}" for number in range(1, 100))]
        free = next(it for it in numbers if not (folder / f"{it}.json").exists())
        return cls(results, folder / f"{free}.json", asked)

    @classmethod
    def resume(cls, results: Path, name: str, asked: Mapping[str, Any]) -> Searched:
        """Return an interrupted search (``last``: the latest).

        Raises HarnessError where there is none of that name, where its file is damaged, and where it was asked for
        something else, naming what.
        """
        there = sorted((results / _FOLDER).glob("*.json"))
        path = there[-1] if name == "last" and there else results / _FOLDER / f"{name.removesuffix('.json')}.json"
        if not path.is_file():
            names = ", ".join(it.stem for it in there[-5:]) or "none yet"
            raise HarnessError(f"no search {name!r} under {results / _FOLDER}; the latest are: {names}")
        try:
            stored = json_file(path, finite=True, once=True)
            if stored["schema"] != SCHEMA:
                raise HarnessError(f"{path}: of schema {stored['schema']}, and this harness reads {SCHEMA}")
            then, gates = dict(stored["asked"]), dict(stored["gates"])
            if not all(isinstance(word, str) for word in (*gates, *gates.values())):
                raise TypeError("its gates are no names")
        except OSError as error:
            raise HarnessError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValueError, TypeError, KeyError) as error:
            raise HarnessError(f"{path}: damaged ({error}); begin the search anew without --resume") from error
        now = json.loads(json.dumps(asked))
        changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
        if changed:
            told = "; ".join(f"{key}: {_shown(then.get(key))} then, {_shown(now.get(key))} now" for key in changed)
            raise HarnessError(f"search {path.stem} was asked for something else: {told}")
        return cls(results, path, asked, gates)

    def answered(self, question: str, metric: str, wanted: Options) -> GateFile | None:
        """Return the finished gate that answered a question, or None.

        One that cannot be read or was asked for something else has not, nor has one that is inconclusive: more time
        may settle it.
        """
        if (name := self.gates.get(question)) is None:
            return None
        found: GateFile | None
        try:
            found = gatefile.load(self.results / "gates" / name)
        except HarnessError:
            found = None
        if found is None or found.options is None or wanted.changed(found.options):
            # Nor can it be gone on with.
            del self.gates[question]
            return None
        return found if found.finished and answer_of(found, metric) != "inconclusive" else None

    def begun(self, question: str, wanted: Options) -> str | None:
        """Return the name of the gate to go on with: the question's own, or the latest like it that has not ended."""
        if question in self.gates:
            return self.gates[question]
        for path in sorted((self.results / "gates").glob("*/gate.json"), reverse=True):
            try:
                found = gatefile.load(path)
            except HarnessError:
                continue
            if found.options and not wanted.changed(found.options):
                return None if found.finished else path.parent.name
        return None

    def note(self, question: str, gate: str) -> None:
        """Keep which gate answered a question."""
        self.gates[question] = gate
        self.keep()

    def keep(self) -> None:
        """Write what there is."""
        text = json.dumps({"schema": SCHEMA, "asked": self.asked, "gates": self.gates}, indent=1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, f"{text}\n")


def asked_of(metric: str, old: str, new: str, wanted: Options, packages: Mapping[str, str]) -> dict[str, Any]:
    """Return what answers depend on: all of the gates' options but time and blocks, and the packages here."""
    options = {name: value for name, value in asdict(wanted).items() if name not in ("budget", "blocks", "old", "new")}
    return {"metric": metric, "old": old, "new": new, **options, "packages": dict(packages)}


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else "otherwise"
