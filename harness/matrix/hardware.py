"""Hardware as data: what a table of matrix.toml says of it, what follows, and what a recipe or a server needs of it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from harness.base.reading import check_pattern
from harness.records.metrics import TASK_BATCH

Vendor = Literal["none", "nvidia", "amd"]
Arithmetic = Literal["bfloat16", "float8", "int8"]
Runs = Literal["models", "programs"]
TorchDevice = Literal["cpu", "cuda"]
Value = TypeVar("Value")

IMPLIED_GROUPS = ("gpu", "nvidia", "amd")
"""Groups that follow from the vendor, unless [groups] lists their members: everything that has one, and each one's."""

_VENDORS: dict[Vendor, str] = {"none": "a processor", "nvidia": "an NVIDIA GPU", "amd": "an AMD GPU"}


class _Written(NamedTuple):
    """How a vendor's capabilities are written: as a pattern, and in words."""

    pattern: str
    told: str


_CAPABILITIES: dict[Vendor, _Written] = {
    "none": _Written("", "left out where there is no vendor"),
    "nvidia": _Written(r"\d+\.\d+", "a number as 9.0"),
    "amd": _Written(r"gfx[0-9a-f]+", "an architecture as gfx942"),
}

_TOKENS_AT_ONCE = 1024

STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)
"""Of every table of matrix.toml: its keys and types are exactly those that are declared."""


class _Table(BaseModel):
    model_config = STRICT


class Hardware(_Table):
    """What cells run on: one [hardware.NAME] table, whose name is a pytest marker and stands in records.

    All that code asks of it beyond the table is a property here. ``groups`` are those that it belongs to.
    """

    name: str
    groups: Annotated[tuple[str, ...], Field(strict=False)] = ()
    meaning: str
    vendor: Vendor = "none"
    match: str = Field(default="", description="Regular expression of the product name that its driver gives a GPU.")
    capability: str = Field(
        default="", description="Compute capability of an NVIDIA GPU, as 9.0; architecture of an AMD one, as gfx942."
    )
    arithmetic: Annotated[tuple[Arithmetic, ...], Field(strict=False)] = Field(
        default=("bfloat16",), description="Data types of the matrix products whose ceiling may be measured."
    )
    runs: Runs = Field(default="models", description="Models under torch, or programs that were exported from them.")
    needs: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(), description="Distributions without which nothing can be run on it."
    )
    install: str = Field(default="", description="How what workers need for it is installed.")

    @model_validator(mode="after")
    def _is_whole(self) -> Hardware:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", self.name) or self.name in ("and", "or", "not"):
            raise ValueError(f"{self.name!r} cannot be a marker: letters, digits, - and _, as in arm-mobile")
        try:
            check_pattern(self.match)
        except ValueError as error:
            raise ValueError(f"match: {error}") from error
        if (self.vendor == "none") != (not self.match):
            raise ValueError("needs `match` (of the driver's product name) with a vendor, and none without")
        written = _CAPABILITIES[self.vendor]
        if not re.fullmatch(written.pattern, self.capability):
            raise ValueError(f"capability: {self.capability!r} is none; recipes go by it, and it is {written.told}")
        if "bfloat16" not in self.arithmetic:
            raise ValueError("arithmetic: needs bfloat16, in which every model runs that is not quantized")
        return self

    def __str__(self) -> str:
        return self.name

    @property
    def is_gpu(self) -> bool:
        return self.vendor != "none"

    @property
    def implied_groups(self) -> tuple[str, ...]:
        """The groups that it belongs to by its vendor alone."""
        return (self.vendor, IMPLIED_GROUPS[0]) if self.is_gpu else ()

    @property
    def torch_device(self) -> TorchDevice:
        """The torch device type that workers use; ROCm's torch has CUDA's name for it too."""
        return "cuda" if self.is_gpu else "cpu"

    @property
    def workers_at_once(self) -> bool:
        """Whether all workers of a cell may be there at once, each idle until its turn; a GPU's memory is for one."""
        return not self.is_gpu

    @property
    def sides_at_once(self) -> bool:
        """Whether the two sides of a gate's block may be there at once, their rounds in turns."""
        return not self.is_gpu

    @property
    def whole_processes(self) -> bool:
        """Whether peak memory is that of the whole process, so that what a fork inherits would not be its own."""
        return not self.is_gpu

    @property
    def watched(self) -> bool:
        """Whether its driver tells of throttling and of other processes while something is measured."""
        return self.is_gpu

    @property
    def task_batch(self) -> int:
        """Documents of a task that are evaluated at once."""
        return TASK_BATCH[self.torch_device]

    def windows_at_once(self, tokens: int) -> int:
        """Return how many windows of so many tokens of a text are predicted at once.

        A processor unpacks quantized weights anew for each; a GPU has the work of one quickly done.
        """
        return 1 if self.is_gpu else max(1, _TOKENS_AT_ONCE // tokens)

    def fits(self, product: str) -> bool:
        """Return whether it is what a driver calls ``product``."""
        return self.is_gpu and re.search(self.match, product) is not None

    def is_of(self, names: Collection[str]) -> bool:
        """Return whether it, or a group that it belongs to, is among some names."""
        return self.name in names or any(group in names for group in self.groups)

    def pick(self, table: Mapping[str, Value]) -> Value | None:
        """Return what a table says of it: by its own name, else by its first group that stands there; or None."""
        return next((table[name] for name in (self.name, *self.groups) if name in table), None)


class Needs(_Table):
    """What a recipe or a server needs of hardware; what is left out does not matter.

    ``capability`` is a version specifier for numbers (``>=8.9``), or the name of an architecture (``gfx942``).
    """

    vendor: Annotated[tuple[Vendor, ...], Field(strict=False)] = ()
    capability: str = ""
    runs: Annotated[tuple[Runs, ...], Field(strict=False)] = ()

    @field_validator("capability")
    @classmethod
    def _can_be_asked(cls, given: str) -> str:
        if re.match(r"[<>=!~]", given):
            try:
                SpecifierSet(given)
            except InvalidSpecifier as error:
                raise ValueError(f"{given!r} is no condition on a capability; as in >=8.9, or gfx942") from error
        elif given and not re.fullmatch(r"[a-z][a-z0-9]*", given):
            raise ValueError(f"{given!r} is no condition on a capability; as in >=8.9, or gfx942")
        return given

    def met_by(self, hardware: Hardware) -> bool:
        if self.vendor and hardware.vendor not in self.vendor:
            return False
        if self.runs and hardware.runs not in self.runs:
            return False
        if not self.capability or self.capability == hardware.capability:
            return True
        numbers = self.capability[0] in "<>=!~" and hardware.vendor == "nvidia"
        return numbers and SpecifierSet(self.capability).contains(hardware.capability)

    def __str__(self) -> str:
        words = " or ".join(_VENDORS[name] for name in self.vendor) or "hardware"
        words += f" of capability {self.capability}" if self.capability else ""
        return words + (f" that runs {' or '.join(self.runs)}" if self.runs else "")


def _alternatives(given: Any) -> Any:
    return [given] if isinstance(given, (dict, Needs)) else given


AnyOf = Annotated[tuple[Needs, ...], BeforeValidator(_alternatives), Field(strict=False)]
"""One table of needs, or several of which one must be met; none asks for nothing."""


def lacking(needs: Sequence[Needs], hardware: Hardware) -> str:
    """Return what ``hardware`` lacks where none of some needs is met, or an empty string."""
    if not needs or any(one.met_by(hardware) for one in needs):
        return ""
    kind = _VENDORS[hardware.vendor] + (f" of capability {hardware.capability}" if hardware.capability else "")
    kind += f" that runs {hardware.runs}" if any(one.runs for one in needs) else ""
    return f"it needs {', or '.join(map(str, needs))}; {hardware.name} is {kind}"
