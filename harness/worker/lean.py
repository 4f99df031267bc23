"""Imports what workers need of large packages in less time and memory: without what no worker uses.

Transformers imports scikit-learn, and with it SciPy, pandas and pyarrow, for one threshold of assisted generation, and
SciPy's optimizers for losses of object detection. Together that is a third of a worker's imports; vLLM imports SciPy's
filters for sounds. What imports these packages by itself, as tasks of lm_eval do, has them as ever. And it reads the
names that each of its 3,000 files gives away, of which the last lines tell, which are then all that is split into
lines; and which distribution each package is of, for which all metadata of all that is installed would be parsed, and
are looked for one line. Packages of another build than torch's are passed over too, since importing them fails.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.machinery
import importlib.metadata
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from types import ModuleType
from typing import Any
from unittest import mock

PASSED_OVER = {
    "transformers.generation.candidate_generator": "is_sklearn_available",
    "transformers.loss.loss_": "is_scipy_available",
}
"""By how names of modules begin: what of ``transformers.utils`` they ask before they import what has no use here."""


LEFT_OUT = {"vllm.multimodal.audio": "scipy.signal"}
"""Modules, and what they do without where it is not there: vLLM resamples sounds with it, a tenth of its imports."""


NAMES = "transformers.utils.import_utils"


class _Lean:
    """A finder that lets some modules be imported as if what they ask for were not there, and makes one quicker."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        asked = next((it for beginning, it in PASSED_OVER.items() if name.startswith(beginning)), None)
        if asked is None and name != NAMES and name not in LEFT_OUT:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def lean(module: ModuleType) -> None:
                utils = sys.modules.get("transformers.utils")
                # Another release may ask in another way: then it imports what it likes.
                if asked is not None and hasattr(utils, asked):
                    with mock.patch.object(utils, asked, return_value=False):
                        execute(module)
                elif name == NAMES:
                    with mock.patch.object(importlib.metadata, "packages_distributions", packages_distributions):
                        execute(module)
                elif name in LEFT_OUT:
                    with _absent(LEFT_OUT[name]):
                        execute(module)
                else:
                    execute(module)
                if fetch := vars(module).get("fetch__all__"):
                    vars(module)["fetch__all__"] = _of_the_last_lines(fetch)

            spec.loader.exec_module = lean  # type: ignore[method-assign]
        return spec


@contextlib.contextmanager
def _absent(name: str) -> Iterator[None]:
    """Let a module not be found in this block, unless it is loaded already."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


_distributions = importlib.metadata.distributions
_packages_distributions = importlib.metadata.packages_distributions
_NAME = re.compile(r"^Name:[ \t]*(\S+)[ \t]*$", re.MULTILINE | re.IGNORECASE)


class _Brief:
    """A distribution whose name and files are told quickly, of files that say the same of what is imported one each."""

    def __init__(self, whole: importlib.metadata.Distribution) -> None:
        self._whole = whole

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    @property
    def metadata(self) -> Any:
        text = (self._whole.read_text("METADATA") or "").partition("\n\n")[0]
        found = _NAME.search(text)
        return {"Name": found.group(1)} if found else self._whole.metadata

    @property
    def files(self) -> Iterable[PurePosixPath] | None:
        record = self._whole.read_text("RECORD")
        if record is None or '"' in record:
            return self._whole.files
        names = (line.partition(",")[0] for line in record.splitlines())
        known = {(name.partition("/")[0], name.endswith(".py")): name for name in names if name}
        return [PurePosixPath(name) for name in known.values()]


def packages_distributions() -> Mapping[str, Any]:
    """Return what ``importlib.metadata.packages_distributions`` does, sooner."""
    brief = [_Brief(one) for one in _distributions()]
    with mock.patch.object(importlib.metadata, "distributions", return_value=brief):
        return _packages_distributions()


def _of_the_last_lines(fetch: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
    """Return what finds the same in a module's text as ``fetch``, which goes by the last line that sets ``__all__``."""
    return lambda text: fetch(text[max(text.rfind("\n__all__") + 1, 0) :])


OF_TORCH = ("torchvision", "torchaudio", "torchcodec")
"""What is built for one build of torch, and is of no use to a language model."""


def pass_over_other_builds() -> None:
    """Let packages that are built for CUDA not be found beside torch's build for CPUs, where importing them fails.

    pip installs them so, since vLLM's build for CPUs asks for them by version alone; Transformers imports what it
    finds, and then has no model ("operator torchvision::nms does not exist").
    """
    if not _version("torch").endswith("+cpu"):
        return
    for name in OF_TORCH:
        version = _version(name)
        if version and not version.endswith("+cpu"):
            # So neither an import nor whoever looks for it finds it.
            sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


@contextlib.contextmanager
def imports(whole: bool = False) -> Iterator[None]:
    """Pass over what no worker uses from now on; look for no garbage in this block, nor later among what it brings.

    If they are to be ``whole``, as those of a program that loads a model, only what could not be imported is passed
    over.

    A fortieth of the objects of Transformers' imports is garbage, without which the process takes no less memory. To
    look for it once takes a tenth of these imports' time.
    """
    pass_over_other_builds()
    if whole:
        yield
        return
    if _Lean not in sys.meta_path:
        sys.meta_path.insert(0, _Lean)
    looking = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if looking:
            gc.enable()
