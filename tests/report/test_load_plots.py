"""Pictures of load: a curve a recipe, from records alone, and nothing of what is void."""

from __future__ import annotations

import re

from harness.records.schema import Cell, Device, Measurement, ModelIdentity, RecipeIdentity
from harness.report import load_plots, tables

MODEL = ModelIdentity(name="small", source="hub:small", revision="1", weights="pretrained")
HOST = Device(name="a processor")


def record(
    recipe: str, metric: str, at: str, value: float, *, rate: float | None = None, void: str = ""
) -> Measurement:
    statistics = {"p99": 2 * value} | ({"asked_rate": rate} if rate else {})
    return Measurement(
        metric=metric,
        unit="ms" if metric != "load_tokens" else "tok/s",
        direction="lower" if metric != "load_tokens" else "higher",
        definition=1,
        parameters={"workload": "chat", "at": at},
        value=value,
        statistics=statistics,
        cell=Cell(
            model=MODEL,
            recipe=RecipeIdentity(name=recipe, hash=recipe, config={}, baseline=recipe == "bf16"),
            hardware="cpu",
            server="vllm",
        ),
        packages={},
        device=HOST,
        discarded=void,
    )


def swept(recipe: str, faster: float = 1.0, void: str = "") -> list[Measurement]:
    found = []
    for share, tokens, tpot in ((0.3, 30.0, 10.0), (0.6, 60.0, 15.0), (0.9, 90.0, 40.0)):
        at = f"{share:.0%} of saturation"
        found += [
            record(recipe, "load_tokens", at, tokens * faster, void=void),
            record(recipe, "load_tpot", at, tpot / faster, rate=10 * share, void=void),
            record(recipe, "load_ttft", at, 5 * tpot / faster, rate=10 * share, void=void),
        ]
    return found


def pictures(records: list[Measurement]) -> list[load_plots.Plot]:
    (subject,) = tables.collect(records)
    return load_plots.sweeps(subject)


def test_there_is_a_curve_a_recipe_of_users_against_the_device_and_of_latencies_over_the_rate() -> None:
    found = pictures([*swept("bf16"), *swept("int8wo", 1.5)])
    assert [plot.title for plot in found] == [
        "chat through vllm: users and device",
        "chat through vllm: time to first token",
        "chat through vllm: time per output token",
    ]
    users, first, _ = found
    # Two widths of each picture, two recipes; of latencies the 99th percentile too.
    assert users.svg.count("<polyline") == 2 * 2
    assert first.svg.count("<polyline") == 2 * 2 * 2
    assert "100 tok/s a user, 30 tok/s of the device" in users.svg
    assert "median 50 ms, p99 100 ms" in first.svg


def test_what_is_void_is_in_no_picture() -> None:
    found = pictures([*swept("bf16"), *swept("int8wo", void="the client was the bottleneck")])
    assert all("int8wo" not in plot.svg for plot in found)


def test_one_point_is_no_curve() -> None:
    assert (
        pictures(
            [record("bf16", "load_tokens", "concurrent 4", 10.0), record("bf16", "load_tpot", "concurrent 4", 5.0)]
        )
        == []
    )


def test_no_text_is_made_smaller() -> None:
    for plot in pictures(swept("bf16")):
        assert not re.search(r"font-size|transform=", plot.svg)
