"""What a device can do at best, measured by a real worker: of the data types that it is asked for, and no others."""

from __future__ import annotations

from tests.conftest import StartWorker


def test_only_what_is_asked_for_is_multiplied(start_worker: StartWorker) -> None:
    worker = start_worker("limits", device="cpu")
    sizes = {"copy_bytes": 1 << 20, "size": 64, "rounds": 1}
    for arithmetic in (["bfloat16"], ["int8", "bfloat16"], []):
        found = worker.ask("measure", 60, arithmetic=arithmetic, **sizes)
        assert list(found["rates"]) == arithmetic
        assert all(rate > 0 for rate in (found["bandwidth"], *found["rates"].values()))
