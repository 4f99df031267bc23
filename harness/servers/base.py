"""What a server and its offline engine must say of themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.matrix.hardware import Needs, lacking
from harness.records.metric import Stage
from harness.records.metrics import GATED
from harness.records.schema import Scalar

if TYPE_CHECKING:
    from harness.matrix.hardware import Hardware
    from harness.matrix.plan import Cell


SERVED_NAME = "model"


@dataclass(frozen=True)
class ByHand:
    """How a reader without this harness serves and measures a published checkpoint, which the commands call $MODEL.

    ``title`` is the server as people write it; ``latency`` and ``serving`` are its own benchmarks of a batch and of a
    server. Of what a record says that it was started with, ``options`` are those that these commands know, and
    ``own_variables`` those that the harness set for its own sake. ``builds`` are those of other distributions of it,
    whose commands differ; ``after_install`` is what must be done before they start.
    """

    title: str
    distributions: tuple[str, ...]
    serve: str
    latency: str
    serving: str
    options: tuple[str, ...] = ()
    own_variables: tuple[str, ...] = ()
    after_install: str = ""
    builds: Mapping[str, ByHand] = field(default_factory=dict)

    def of(self, packages: Collection[str]) -> ByHand:
        """Return what holds for the distribution of it that is among some packages."""
        return next((build for name, build in self.builds.items() if name in packages), self)


class ServerBackend(ABC):
    """A server and its offline engine.

    ``at_load`` says that it is given the plain checkpoint and applies the recipe itself as it loads it,
    ``quantized_kinds`` which kinds of weights (harness/worker/parameters.py) it takes as torchao tensors, ``compiles``
    that it compiles the model and tells how long that took, ``compiled_alike`` are options of which nothing that it
    compiles depends, ``inspected`` the places, among those that it compiles into, of what it knows of its own code,
    whatever the model, ``own_environment`` that it pins packages which the others
    have otherwise, so that it is usually installed by itself. ``worker`` is the engine's module in harness/worker/,
    ``module`` is what runs as the server, ``family`` names the imports that both are forked with (those of
    harness/worker/forkserver.py), if they can be. ``distributions`` are the packages that may hold it, ``repository``
    is where on GitHub they are made, ``empty_cache`` is the path that empties its prefix cache. ``client`` is the
    worker of its serving benchmark, by which all servers are asked, if it brings one; ``tutorial`` says that it is what
    the published tutorial measures through, ``structured`` that it is started with a grammar, so that answers may be
    asked to keep a JSON schema. ``by_hand`` is None where it cannot read a checkpoint by itself.
    ``by_modules`` are the same commands by Python's modules, where no console script may be installed.
    ``needs`` is what it needs of hardware: one of them. ``several`` is the option by which engine and server cut
    a model over several GPUs (tensor parallel); empty where they cannot. ``reads_one_layer`` says
    that it makes a whole model of a checkpoint of one layer (harness/worker/repeated.py). ``shared_worker`` is a module
    in harness/worker/ that is its engine and its server in one, if there is one.
    """

    needs: ClassVar[tuple[Needs, ...]] = ()
    several: ClassVar[str] = ""
    reads_one_layer: ClassVar[bool] = False
    shared_worker: ClassVar[str] = ""
    at_load: ClassVar[bool] = False
    quantized_kinds: ClassVar[frozenset[str]] = frozenset({"linear"})
    compiles: ClassVar[bool] = False
    compiled_alike: ClassVar[frozenset[str]] = frozenset()
    inspected: ClassVar[tuple[str, ...]] = ()
    own_environment: ClassVar[bool] = False
    worker: ClassVar[str]
    module: ClassVar[str]
    family: ClassVar[str] = ""
    distributions: ClassVar[tuple[str, ...]]
    repository: ClassVar[str]
    empty_cache: ClassVar[str]
    client: ClassVar[str] = ""
    tutorial: ClassVar[bool] = False
    structured: ClassVar[bool] = True
    by_hand: ClassVar[ByHand | None] = None
    by_modules: ClassVar[ByHand | None] = None

    @property
    def stages(self) -> Mapping[Stage, frozenset[str]]:
        """What it can be gated on: the metrics of each of its stages, as harness/records/metrics.py has them."""
        engine = GATED["engine"] if self.compiles else GATED["engine"] - {"compile_time"}
        return {"engine": engine, "server": GATED["server"]}

    @abstractmethod
    def options(self, cell: Cell, context: int) -> dict[str, Scalar]:
        """Return the options of engine and server; ``context`` is in tokens.

        They are the same for baseline and recipe, but for the type of the KV cache, where a recipe has one.
        """

    @abstractmethod
    def variables(self, cell: Cell) -> dict[str, str]:
        """Return the environment variables of engine and server, the same for baseline and recipe."""

    @abstractmethod
    def specification(self, cell: Cell, checkpoint: Path, options: Mapping[str, Scalar]) -> dict[str, Any]:
        """Return what the engine's worker is opened with."""

    @abstractmethod
    def arguments(self, cell: Cell, checkpoint: Path, options: Mapping[str, Scalar], port: int) -> list[str]:
        """Return what the server's module is given; it listens on 127.0.0.1 alone."""

    def shared(self, cell: Cell, checkpoint: Path, options: Mapping[str, Scalar], port: int) -> dict[str, Any]:
        """Return what ``shared_worker`` is opened with; asked where there is one."""
        raise NotImplementedError(f"{type(self).__name__} names a shared_worker and not what it is opened with")

    def cache_tokens(self, read: Callable[[str], str]) -> int | None:
        """Return how many tokens a running server's key-value cache holds; None where it does not tell.

        ``read`` returns what the server answers to a path.
        """
        return None

    def cut(self, cell: Cell) -> dict[str, Scalar]:
        """Return the option that cuts a cell's model over its GPUs; none for one."""
        return {self.several: cell.gpus} if cell.gpus > 1 and self.several else {}

    def compiles_into(self, options: Mapping[str, Scalar]) -> Mapping[str, str]:
        """Return the variables that say where its compilers keep what they make, each with a folder's name.

        Empty where nothing is compiled with these options, or nothing is to be kept of it.
        """
        return {}

    def unsupported(self, on: Hardware) -> str:
        """Return why the server cannot run on a hardware, or an empty string if it can."""
        if not lacking(self.needs, on):
            return ""
        name = self.by_hand.title if self.by_hand else type(self).__name__
        return f"{name} is served on {', or '.join(map(str, self.needs))}, not on {on}"


def command_flags(options: Mapping[str, Scalar]) -> list[str]:
    """Return options as a command line takes them: true ones bare, false ones not at all."""
    found = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        found += [flag] if value is True else [] if value is False else [flag, str(value)]
    return found
