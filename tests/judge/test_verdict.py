"""From samples to verdicts: each kind of metric by its own rule, whatever the samples hold."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.errors import HarnessError
from harness.judge import looks
from harness.judge.family import control, settled
from harness.judge.gatefile import exit_status
from harness.judge.rules import REASONS, RULES, Margins
from harness.judge.series import SIDES, Series
from harness.judge.verdict import Verdict, combined, event, judge
from harness.records.metrics import METRICS
from harness.records.place import Place
from harness.records.stored import implausible

MARGINS = Margins()
CELL = Place(model="m", recipe="r", server="s")
NOISE = (1.0, 1.01, 0.99, 1.005, 0.995, 1.008, 0.992, 1.0)


def series(metric: str, old: list[float], new: list[float]) -> Series:
    return Series(CELL.at(metric), {"old": old, "new": new})


def times(factor: float, by: tuple[float, ...] = NOISE) -> list[float]:
    return [10 * factor * noise for noise in by]


@pytest.mark.parametrize(
    ("metric", "factor", "verdict", "reason"),
    [
        ("latency", 1.0, "error", "stuck-clock"),
        ("latency", 1.01, "pass", "equivalent"),
        ("latency", 1.2, "regressed", "beyond-margin"),
        ("latency", 0.8, "pass", "improved"),
        ("generate_throughput", 0.8, "regressed", "beyond-margin"),
        ("generate_throughput", 1.2, "pass", "improved"),
        ("request_throughput", 0.8, "regressed", "beyond-margin"),
        ("ttft", 1.2, "regressed", "beyond-margin"),
        ("peak_memory", 1.2, "regressed", "beyond-range"),
        ("peak_memory", 1.0005, "pass", "within-range"),
        ("checkpoint_size", 1.0, "pass", "identical"),
    ],
)
def test_the_direction_decides(metric: str, factor: float, verdict: str, reason: str) -> None:
    size = RULES[metric].kind == "size"
    scale = 1e9 if metric == "checkpoint_size" else 1.0
    by = (1.0, 1.0) if size else NOISE
    new = [factor * value for value in times(scale, by)] if size else times(factor, NOISE[::-1] if factor != 1 else by)
    found = judge(series(metric, times(scale, by), new), MARGINS)
    assert (found.verdict, found.reason) == (verdict, reason)
    assert found.unit == METRICS[metric].unit
    assert found.blocks == len(by)


def test_a_noisy_metric_is_inconclusive() -> None:
    found = judge(series("latency", times(1.0), [5, 20, 5, 20, 5, 20, 5, 20]), MARGINS)
    assert (found.verdict, found.reason) == ("inconclusive", "too-noisy")
    assert not settled(found)


def test_fewer_blocks_than_the_rule_needs_are_inconclusive() -> None:
    found = judge(series("latency", [10.0], [20.0]), MARGINS)
    assert (found.verdict, found.reason, found.ratio) == ("inconclusive", "too-few-blocks", None)
    assert "at least 2" in found.detail


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("metric", "bad"),
    [
        *((metric, bad) for metric in ("latency", "peak_memory") for bad in (math.nan, math.inf, 0.0, -1.0)),
        *(("perplexity", bad) for bad in (math.nan, math.inf, 0.0, -1.0)),
    ],
)
def test_what_is_no_number_is_an_error_that_names_it(metric: str, side: str, bad: float) -> None:
    values = {"old": times(1.0), "new": times(1.0)}
    values[side][3] = bad
    found = judge(series(metric, values["old"], values["new"]), MARGINS)
    assert (found.verdict, found.reason) == ("error", "bad-samples")
    assert "sample 3" in found.detail or "document" in found.detail


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("metric", RULES)
@given(data=st.data())
def test_whatever_samples_hold_there_is_a_verdict(metric: str, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 8))
    sides = {side: data.draw(st.lists(st.floats(), min_size=count, max_size=count)) for side in SIDES}
    found = judge(series(metric, sides["old"], sides["new"]), MARGINS)
    assert found.reason in REASONS
    if count > 1 and not all(map(math.isfinite, sides["old"] + sides["new"])):
        assert (found.verdict, found.reason) == ("error", "bad-samples")


@pytest.mark.parametrize("metric", [name for name, rule in RULES.items() if rule.kind != "size"])
@given(data=st.data())
def test_what_is_said_of_samples_can_be_stored_however_far_apart_they_are(metric: str, data: st.DataObject) -> None:
    """Two noisy blocks have an interval whose ends are beyond all that is measured, and a gate writes them down."""
    sample, count = st.floats(1e-12, 1e12), data.draw(st.integers(2, 5))
    old, new = (data.draw(st.lists(sample, min_size=count, max_size=count)) for _ in SIDES)
    found = judge(series(metric, old, new), MARGINS)
    told = [it for it in (found.ratio, found.low, found.high) if it is not None and not math.isnan(it)]
    assert not implausible(told), told
    if METRICS[metric].timed and old != new and len(set(old)) > 1 and len(set(new)) > 1:
        assert found.verdict != "error", found.detail


def test_two_blocks_that_say_nothing_are_noise_and_no_error() -> None:
    found = judge(series("tpot", [24.0, 71.0], [0.5, 900.0]), MARGINS)
    assert (found.verdict, found.reason) == ("inconclusive", "too-noisy")
    assert (found.low or 1.0) < 1e-9
    assert 1e9 < (found.high or 1.0) < 1e18


def test_ratios_beyond_all_numbers_are_told_as_the_farthest() -> None:
    found = judge(series("task_perplexity", [-1.0, -2.0], [-1.0, -2000.0]), MARGINS)
    assert (found.verdict, found.reason) == ("inconclusive", "too-noisy")
    assert not implausible([found.ratio or math.inf, found.low or math.inf, found.high or math.inf])


def test_accuracy_is_judged_document_by_document_and_flips_are_told() -> None:
    old = [1.0] * 60 + [0.0] * 40
    lost = [0.0] * 20 + [1.0] * 40 + [1.0] * 2 + [0.0] * 38
    found = judge(series("accuracy", old, lost), MARGINS)
    assert found.verdict == "regressed"
    assert "20 lost, 2 won" in found.detail
    assert "McNemar" in found.detail
    unchanged = judge(series("accuracy", old * 3, old * 3), MARGINS)
    assert (unchanged.verdict, unchanged.reason) == ("pass", "identical")
    few = judge(series("accuracy", [1.0] * 10, [1.0] * 10), MARGINS)
    assert few.verdict == "inconclusive", "ten documents cannot show that two per cent were not lost"


def task(name: str, lost: int, documents: int, metric: str = "acc") -> Series:
    # Tasks that are named otherwise lose other documents.
    before = sum(map(ord, name)) * lost % (documents - lost + 1)
    new = [1.0] * before + [0.0] * lost + [1.0] * (documents - lost - before)
    answers = {"old": [1.0] * documents, "new": new}
    return Series(CELL.at("accuracy", {"task": name, "task_metric": metric}), answers)


def test_several_tasks_are_combined_each_counting_once() -> None:
    small, large = task("small", 10, 100, "acc_norm"), task("large", 0, 10_000)
    assert combined([small]) == [], "one task is its own mean"
    elsewhere = replace(large, place=replace(large.place, recipe="other"))
    (both,) = combined([task("small", 0, 100), small, large, elsewhere])
    found = judge(both, MARGINS)
    assert found.ratio == pytest.approx(0.95), "a large task does not hide a small one"
    assert (found.task, found.label, found.primary) == (None, "mean of 2 tasks", True)
    assert "the mean over small acc_norm, large acc, each task counting once" in found.detail
    assert "10 lost, 0 won" in found.detail
    assert found.p is not None
    assert found.p < 0.025, "the interval lies beyond the margin"


def test_losses_that_no_task_shows_by_itself_are_seen_together() -> None:
    tasks = [task(f"t{index}", 12, 400) for index in range(9)]
    assert {judge(one, MARGINS).verdict for one in tasks} == {"inconclusive"}
    (together,) = combined(tasks)
    assert judge(together, MARGINS).verdict == "regressed"


def test_documents_that_several_tasks_share_are_counted_once() -> None:
    """Asked four times, 400 documents tell no more than 400 do."""
    alone = task("t0", 12, 400)
    same = [replace(alone, place=task(f"t{index}", 12, 400).place) for index in range(4)]
    others = [task(f"t{index}", 12, 400) for index in range(4)]
    one, again, more = (judge(it, MARGINS) for it in (alone, *combined(same), *combined(others)))
    assert (again.low, again.high) == pytest.approx((one.low, one.high))
    assert more.low > one.low
    assert more.high < one.high


@pytest.mark.programs
def test_a_family_keeps_what_several_tasks_show_together_though_a_large_one_gained() -> None:
    """Over all documents more were won than lost; each task counting once, 2.6 % were lost."""
    tasks = [task(f"t{index}", 12, 400) for index in range(9)]
    answers = {"old": [0.0] * 210 + [1.0] * 13790, "new": [1.0] * 14000}
    gained = Series(CELL.at("accuracy", {"task": "large", "task_metric": "acc"}), answers)
    verdicts = control([judge(one, MARGINS) for one in [*tasks, gained, *combined([*tasks, gained])]])
    assert verdicts[-1].verdict == "regressed"
    assert [verdict.verdict for verdict in verdicts[:-1]] == ["inconclusive"] * 9 + ["pass"]


def test_a_family_keeps_partial_credit_that_fell() -> None:
    old = [0.6] * 20 + [0.5] * 30
    found = judge(series("accuracy", old, [0.1] * 20 + [0.51] * 30), MARGINS)
    assert found.verdict == "regressed"
    assert control([found])[0].verdict == "regressed"


def test_losses_that_are_tolerated_do_not_keep_a_regression_of_speed() -> None:
    """Each task lost 0.6 %, for certain and within its margin of 2 %: no discovery that others may lean on."""
    tolerated = [judge(task(f"t{index}", 60, 10_000), MARGINS) for index in range(3)]
    assert {verdict.verdict for verdict in tolerated} == {"pass"}
    assert all(verdict.p is not None and verdict.p > 0.5 for verdict in tolerated)
    old, new = times(1.0)[:6], [10.85, 11.95, 10.75, 11.95, 10.65, 11.35]
    slower = judge(series("latency", old, new), MARGINS)
    assert slower.verdict == "regressed"
    assert slower.p is not None
    assert 0.05 / 8 < slower.p < looks.level(6)
    verdict = control([*tolerated, *tolerated, tolerated[0], slower])[-1]
    assert (verdict.verdict, verdict.reason) == ("inconclusive", "false-discovery")
    assert not settled(verdict), "it is measured on"


def test_a_loss_of_just_the_margin_is_inconclusive_and_no_bad_sample() -> None:
    lost = series("accuracy", [1.0] * 10 + [0.0] * 3 + [1.0] * 187, [0.0] * 10 + [1.0] * 190)
    assert judge(lost, Margins(["accuracy=0.035"])).verdict == "inconclusive"


def test_quality_that_is_too_noisy_says_what_would_tell_more() -> None:
    few = judge(series("accuracy", [1.0] * 10, [1.0] * 10), MARGINS)
    assert "more documents tell more" in few.detail


def test_divergence_is_judged_as_a_difference_with_a_margin_of_its_own() -> None:
    old = [0.005 + 0.0001 * index for index in range(16)]
    same = judge(series("kl_divergence", old, [value + 1e-5 for value in old]), MARGINS)
    assert same.verdict == "pass"
    worse = judge(series("kl_divergence", old, [value + 0.01 + 1e-5 * i for i, value in enumerate(old)]), MARGINS)
    assert worse.verdict == "regressed"
    assert worse.p is not None
    assert worse.p < 0.01
    zero = judge(series("token_flips", [0.0] * 16, [0.1] * 16), MARGINS)
    assert zero.verdict == "regressed", "no share of nothing can be told, but the difference can"


@given(
    st.lists(st.floats(0.5, 2), min_size=2, max_size=30),
    st.sampled_from([name for name, rule in RULES.items() if rule.kind in ("blocks", "size", "ratio", "difference")]),
    st.floats(0.8, 1.25),
)
def test_a_metric_against_itself_is_never_a_regression(values: list[float], metric: str, scale: float) -> None:
    found = judge(series(metric, values, values), MARGINS)
    assert found.verdict in ("pass", "inconclusive") or found.reason == "stuck-clock"
    shifted = [scale * value for value in values]
    one, two = (
        judge(series(metric, values, shifted), MARGINS),
        judge(series(metric, values[::-1], shifted[::-1]), MARGINS),
    )
    assert one.verdict == two.verdict, "the order of the blocks says nothing"


def test_one_regression_among_many_tests_must_be_clear() -> None:
    """Benjamini-Hochberg: one p-value just under its threshold does not stand alone in a family of twenty."""
    passing = judge(series("latency", times(1.0), times(1.01, NOISE[::-1])), MARGINS)
    regressed = judge(series("latency", times(1.0), times(1.2, NOISE[::-1])), MARGINS)
    # Of no blocks, whose noise would be estimated from all of them.
    none: dict[str, list[float]] = {"old": [], "new": []}
    weak, passing = replace(regressed, p=0.02, samples=none), replace(passing, samples=none)
    found = control([weak, *[replace(passing, p=0.9) for _ in range(20)]])
    assert (found[0].verdict, found[0].reason) == ("inconclusive", "false-discovery")
    assert control([regressed, passing])[0].verdict == "regressed"
    advisory = replace(weak, primary=False)
    assert control([advisory, *[replace(passing, p=0.9)] * 20])[0].verdict == "regressed", "told, and decides nothing"


def test_improvements_are_no_discoveries_of_a_family_of_regressions() -> None:
    better = judge(series("accuracy", [0.0] * 20 + [1.0] * 80, [1.0] * 100), MARGINS)
    worse = judge(series("accuracy", [1.0] * 100, [0.0] * 20 + [1.0] * 80), MARGINS)
    assert better.p == pytest.approx(1.0, abs=1e-5)
    assert worse.p is not None
    assert worse.p < 1e-3
    regressed = judge(series("latency", times(1.0), times(1.2, NOISE[::-1])), MARGINS)
    weak, fair = replace(regressed, p=0.04), judge(series("latency", times(1.0), times(1.01, NOISE[::-1])), MARGINS)
    (found, *_) = control([weak, *[better] * 9, fair])
    assert found.reason == "false-discovery"


def of(verdict: str, primary: bool = True) -> Verdict:
    about = Series(CELL.at("works: load"))
    return replace(event(about, verdict, "stopped-working", ""), primary=primary)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [
        ([of("pass")], 0),
        ([of("pass"), of("regressed"), of("error"), of("inconclusive")], 1),
        ([of("pass"), of("error"), of("inconclusive")], 2),
        ([of("pass"), of("inconclusive")], 3),
        ([of("pass"), of("regressed", primary=False)], 0),
        ([], 2),
        ([of("pass", primary=False)], 2),
    ],
)
def test_the_exit_status_is_that_of_the_worst_primary_verdict(verdicts: list[Verdict], status: int) -> None:
    assert exit_status(verdicts) == status


def test_the_worst_comes_first() -> None:
    small = judge(series("latency", times(1.0), times(1.12, NOISE[::-1])), MARGINS)
    large = judge(series("latency", times(1.0), times(1.5, NOISE[::-1])), MARGINS)
    ordered = sorted([of("pass"), small, of("inconclusive"), large, of("error")], key=lambda it: it.severity)
    assert [it.verdict for it in ordered] == ["regressed", "regressed", "error", "inconclusive", "pass"]
    assert ordered[0] == large


def test_margins_are_given_for_all_times_or_for_one_metric() -> None:
    margins = Margins(["0.1", "latency=0.2", "perplexity=0.03"])
    assert margins.of("generate_throughput") == margins.of("request_throughput") == 0.1
    assert margins.of("latency") == 0.2
    assert margins.of("perplexity") == 0.03
    assert margins.of("peak_memory") == RULES["peak_memory"].margin


@pytest.mark.parametrize("text", ["5%", "0", "1", "-0.1", "nan", "latency", "latency=", "latencies=0.1", "=0.5x"])
def test_a_margin_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(HarnessError, match="--margin"):
        Margins([text])


def test_every_reason_that_a_rule_gives_has_a_meaning() -> None:
    assert {"identical", "too-few-blocks", "bad-samples", "stopped-working", "layers-lost"} <= REASONS.keys()
    assert all(meaning and not meaning.endswith(".") for meaning in REASONS.values())
