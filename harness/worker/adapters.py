"""Merges an adapter into the weights of its model, through PEFT; all of the adapter's tensors, or an error."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from harness.contract.weights import ADAPTER, ADAPTER_WEIGHTS, Unusable, header, shown
from harness.worker import loading


def merged(folder: Path, adapter: Path, trust_remote_code: bool = False) -> tuple[Any, str]:
    """Return the model of a folder with an adapter merged, and in words what adapter it is.

    ``adapter`` is the folder that holds it, which may be the model's own.

    Raises Unusable where PEFT is not installed, for a kind of adapter that has no weights of its own in the model's
    layers (prompt tuning), and for one whose tensors are not those that the model's layers take.
    """
    try:
        import peft
    except ImportError as error:
        raise Unusable(f"merging an adapter needs the package peft: pip install peft ({error})") from error
    told = json.loads((adapter / ADAPTER).read_text(encoding="utf-8"))
    kind = str(told.get("peft_type"))
    words = " of ".join(filter(None, (kind, told.get("base_model_name_or_path"))))
    named = f"the adapter of {adapter} ({words})"
    where = "beside it" if adapter == folder else folder
    with tempfile.TemporaryDirectory() as place:
        # Transformers would look for the adapter's base model elsewhere if it saw the adapter.
        for path in folder.iterdir():
            if path.name not in (ADAPTER, ADAPTER_WEIGHTS):
                (Path(place) / path.name).symlink_to(path.resolve())
        base = loading.model(place, trust_remote_code=trust_remote_code)
    try:
        model = peft.PeftModel.from_pretrained(base, str(adapter))
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(map(str.strip, str(error).strip().splitlines()[:2])) or type(error).__name__
        raise Unusable(f"{named} does not fit the model {where}: {reason}") from error
    if not hasattr(model.base_model, "merge_and_unload"):
        raise Unusable(f"{named} has no weights that could be merged into the model's layers")
    wanted = set(peft.get_peft_model_state_dict(model, save_embedding_layers=False))
    held = set(header(adapter / ADAPTER_WEIGHTS))
    # Embeddings that were trained with it stand in the file by the model's own names.
    idle, absent = held - wanted - model.state_dict().keys(), wanted - held
    if idle or absent:
        raise Unusable(
            f"{named} does not fit the model {where}: {len(idle)} of its tensors have no "
            f"place in it, and {len(absent)} are missing: {shown(sorted(idle | absent))}"
        )
    try:
        return model.merge_and_unload(safe_merge=True).eval(), words
    except ValueError as error:
        raise Unusable(f"{named} cannot be merged: {error}") from error
