"""gate.json as others read it: checked, as JUnit XML and as markdown. It is written by the upgrade gate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.base.errors import HarnessError

SCHEMA = 1


class GateError(HarnessError):
    """A gate.json cannot be used; the message names the file and what is wrong."""


class _Part(BaseModel):
    # A gate may say more than is shown here.
    model_config = ConfigDict(frozen=True, extra="ignore")


class Verdict(_Part):
    """One metric of one cell, new against old: ``ratio`` is new / old, ``low`` and ``high`` its interval."""

    model: str
    recipe: str
    server: str | None = None
    metric: str
    task: str | None = None
    unit: str
    direction: Literal["lower", "higher", "none"]
    primary: bool
    verdict: Literal["pass", "regressed", "inconclusive", "error"]
    ratio: float | None
    low: float | None
    high: float | None
    confidence: float
    margin: float
    blocks: int
    reason: str
    detail: str
    label: str = ""

    @property
    def what(self) -> str:
        """The metric, with its parameters or task where it has any."""
        label = self.label or self.task
        return f"{self.metric} ({label})" if label else self.metric

    @property
    def name(self) -> str:
        return " ".join(part for part in (self.model, self.recipe, self.server, self.what) if part)


class Compatibility(_Part):
    model: str
    recipe: str
    server: str | None = None
    stage: str
    old: str
    new: str
    error: str | None = None


class GateFile(_Part):
    """One gate's verdicts."""

    package: str
    old: str
    new: str
    hardware: str
    created: str
    seconds: float
    differences: list[str] = []
    environments: dict[str, dict[str, str]] = {}
    verdicts: list[Verdict]
    compatibility: list[Compatibility] = []
    exit_status: int

    @property
    def title(self) -> str:
        return f"{self.old} to {self.new} on {self.hardware}"


def load(path: Path) -> GateFile:
    """Read a gate.json, or that of a gate's folder. Raises GateError naming the file, also for a newer schema."""
    file = path / "gate.json" if path.is_dir() else path
    try:
        data: Any = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(data, dict) and isinstance(data.get("schema"), int) and data["schema"] > SCHEMA:
            raise GateError(f"{file}: schema {data['schema']} is newer than this harness reads ({SCHEMA}); upgrade it")
        return GateFile.model_validate(data)
    except OSError as error:
        raise GateError(f"{file}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise GateError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except ValueError as error:
        raise GateError(f"{file}: not JSON ({error})") from error
