"""From the records of a gate to paired samples: only blocks that both sides finished count."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from harness.blocks import series
from harness.metrics import METRICS
from harness.records import Cell, Device, Measurement, ModelIdentity, RecipeIdentity
from harness.schedule import SIDES

MODEL = ModelIdentity(name="m", source="folder:m", revision="1", weights="pretrained")
CELL = Cell(
    model=MODEL, recipe=RecipeIdentity(name="int8wo", hash="h", config={}), hardware="cpu", server="transformers"
)


def record(metric: str, value: float, side: str, block: int = 0, attempt: int = 0, **more: object) -> Measurement:
    known = METRICS[metric]
    fields: dict[str, object] = {
        "metric": metric,
        "unit": known.unit,
        "direction": known.direction,
        "definition": known.version,
        "value": value,
        "cell": CELL,
        "packages": {},
        "device": Device(name="d"),
        "flags": {"side": side, "block": block, "attempt": attempt},
    }
    return Measurement.model_validate({**fields, **more})


places = st.tuples(st.sampled_from(SIDES), st.integers(0, 12), st.integers(0, 2))


@given(st.dictionaries(places, st.tuples(st.floats(0.1, 10), st.booleans())), st.randoms())
def test_a_pair_is_a_block_that_both_sides_finished(taken: dict, random: object) -> None:  # type: ignore[type-arg]
    lines = [
        record("generate_throughput", value, *place, discarded="throttled" if void else "")
        for place, (value, void) in taken.items()
    ]
    random.shuffle(lines)  # type: ignore[attr-defined]
    good = {place: value for place, (value, void) in taken.items() if not void}
    whole = sorted(place for side, *place in good if side == "old" and ("new", *place) in good)
    found = series(lines, interleaved=True)
    if not good:
        assert found == []
        return
    (one,) = found
    assert one.old == [good[("old", *place)] for place in whole]
    assert one.new == [good[("new", *place)] for place in whole]
    assert one.drift_cancelled


def test_quality_is_paired_document_by_document_and_metrics_stay_apart() -> None:
    lines = [
        record("perplexity", 2.0, "old", samples=[1.0, 3.0]),
        record("perplexity", 4.0, "new", samples=[3.0, 5.0]),
        *(record("latency", 1.0, side, parameters={"batch_size": size}) for side in SIDES for size in (1, 8)),
        record("chat_tokens", 5.0, "old"),
        record("latency", 9.0, "old").model_copy(update={"flags": {}}),
    ]
    found = {(one.metric, one.label): one for one in series(lines, interleaved=False)}
    assert found.keys() == {("perplexity", ""), ("latency", "batch_size=1"), ("latency", "batch_size=8")}
    assert found["perplexity", ""].new == [3.0, 5.0]
    assert not found["latency", "batch_size=1"].drift_cancelled
