"""The statistics of verdicts: their laws, other implementations' figures, and samples that no rule can use."""

from __future__ import annotations

import math
import statistics
from random import Random

import numpy as np
import pytest
import scipy
from hypothesis import assume, given
from hypothesis import strategies as st

from harness.base.errors import SampleError, TooFewSamples
from harness.judge import stats
from harness.judge.intervals import Interval
from harness.judge.looks import PRECISION
from harness.judge.stats import Decision

SAMPLE = st.floats(1e-3, 1e3)
BLOCKS = st.lists(st.tuples(SAMPLE, SAMPLE), min_size=2, max_size=15)
DIRECTION = st.sampled_from(["lower", "higher", "none"])
MARGIN = st.floats(0.005, 0.5)
FACTOR = st.floats(0.25, 4)


@st.composite
def intervals(draw: st.DrawFn) -> Interval:
    low, estimate, high = sorted(draw(st.lists(st.floats(0.5, 2), min_size=3, max_size=3)))
    return Interval(estimate, low, high, 0.95, "Student-t", draw(st.integers(2, 40)))


def sides(blocks: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [old for old, _ in blocks], [new for _, new in blocks]


def noisy(count: int, shift: float = 0.0, sd: float = 0.038, seed: int = 0) -> tuple[list[float], list[float]]:
    """Blocks whose log ratios are normal and whose machine drifts."""
    rng = np.random.default_rng(seed)
    drift = np.cumsum(rng.normal(0, 0.05, count))
    return np.exp(drift).tolist(), np.exp(drift + rng.normal(shift, sd, count)).tolist()


# ------------------------------------------------------------------------------------------------------------- ratios


@given(BLOCKS)
def test_the_interval_holds_its_estimate(blocks: list[tuple[float, float]]) -> None:
    found = stats.paired_ratio(*sides(blocks))
    assert 0 <= found.low <= found.estimate * (1 + 1e-12)
    assert found.estimate <= found.high * (1 + 1e-12)
    assert found.n == len(blocks)


@given(BLOCKS, FACTOR, st.lists(FACTOR, min_size=15, max_size=15))
def test_a_ratio_has_no_unit_and_drift_cancels(
    blocks: list[tuple[float, float]], unit: float, drift: list[float]
) -> None:
    old, new = sides(blocks)
    whole = stats.paired_ratio(old, new)
    drifted = stats.paired_ratio(
        [a * f * unit for a, f in zip(old, drift, strict=False)],
        [b * f * unit for b, f in zip(new, drift, strict=False)],
    )
    assert (drifted.low, drifted.estimate, drifted.high) == pytest.approx((whole.low, whole.estimate, whole.high))


@given(BLOCKS)
def test_swapping_the_sides_inverts_the_ratio(blocks: list[tuple[float, float]]) -> None:
    old, new = sides(blocks)
    there, back = stats.paired_ratio(old, new), stats.paired_ratio(new, old)
    assert there.estimate * back.estimate == pytest.approx(1)
    assert there.low * back.high == pytest.approx(1)


@given(BLOCKS, st.randoms(use_true_random=False))
def test_the_order_of_the_blocks_does_not_matter(blocks: list[tuple[float, float]], random: object) -> None:
    mixed = random.sample(blocks, len(blocks))  # type: ignore[attr-defined]
    one, other = stats.paired_ratio(*sides(blocks)), stats.paired_ratio(*sides(mixed))
    assert (one.low, one.high) == pytest.approx((other.low, other.high))


@pytest.mark.parametrize("count", [2, 8, 19, 20, 40])
def test_blocks_get_students_interval_of_scipy_however_many_they_are(count: int) -> None:
    old, new = noisy(count, shift=0.1)
    reference = scipy.stats.ttest_rel(np.log(new), np.log(old)).confidence_interval(0.95)
    found = stats.paired_ratio(old, new)
    assert (found.method, found.freedom) == ("Student-t", count - 1)
    assert (found.low, found.high) == pytest.approx((math.exp(reference.low), math.exp(reference.high)))


def test_samples_without_any_spread_have_no_width() -> None:
    for count in (2, 40):
        assert stats.paired_ratio([2.0] * count, [3.0] * count) == Interval(
            pytest.approx(1.5), pytest.approx(1.5), pytest.approx(1.5), 0.95, "no spread", count, count - 1
        )


@pytest.mark.parametrize("count", [6, 30])
def test_intervals_cover_the_truth_as_often_as_they_claim(count: int) -> None:
    hits = sum(
        found.low <= 1.1 <= found.high
        for seed in range(300)
        if (found := stats.paired_ratio(*noisy(count, math.log(1.1), seed=seed)))
    )
    assert stats.proportion(hits, 300, 0.999).low <= 0.95 <= stats.proportion(hits, 300, 0.999).high


@given(st.lists(SAMPLE, min_size=2, max_size=12), st.lists(SAMPLE, min_size=1, max_size=4), FACTOR)
def test_a_baseline_is_compared_without_unit_or_order(runs: list[float], today: list[float], unit: float) -> None:
    found = stats.baseline_ratio(runs, today)
    turned = stats.baseline_ratio(
        [value * unit for value in reversed(runs)], [value * unit for value in reversed(today)]
    )
    assert (found.low, found.estimate, found.high) == pytest.approx((turned.low, turned.estimate, turned.high))


def test_a_further_block_of_the_baseline_is_predicted_as_often_as_claimed() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        logs = rng.normal(0, 0.03, 6)
        found = stats.baseline_ratio(np.exp(logs[:5]).tolist(), np.exp(logs[5:]).tolist(), 0.9)
        hits += found.low <= 1 <= found.high
    rate = stats.proportion(hits, 2000, 0.999)
    assert rate.low <= 0.9 <= rate.high


# ------------------------------------------------------------------------------------------------------------- nested


def test_the_components_of_the_variance_are_found_again() -> None:
    rng = np.random.default_rng(0)
    blocks = [np.exp(rng.normal(0, 0.05) + rng.normal(0, 0.02, 10)).tolist() for _ in range(2000)]
    found = stats.variance_components(blocks)
    assert math.sqrt(found.between) == pytest.approx(0.05, rel=0.05)
    assert math.sqrt(found.within) == pytest.approx(0.02, rel=0.02)


def test_the_components_agree_with_the_analysis_of_variance() -> None:
    """One-way random effects: within is the mean square of the error, between (MSB - MSE) / samples a process."""
    rng = np.random.default_rng(1)
    logs = rng.normal(0, 0.05, (6, 1)) + rng.normal(0, 0.02, (6, 4))
    ratio = scipy.stats.f_oneway(*logs).statistic
    found = stats.variance_components(np.exp(logs).tolist())
    assert found.between == pytest.approx((ratio - 1) * found.within / 4)


PROCESSES = st.lists(st.lists(SAMPLE, min_size=2, max_size=6), min_size=2, max_size=6)


@given(PROCESSES, FACTOR, st.randoms(use_true_random=False))
def test_the_components_have_neither_unit_nor_order(processes: list[list[float]], unit: float, random: Random) -> None:
    found = stats.variance_components(processes)
    mixed = [[unit * value for value in random.sample(samples, len(samples))] for samples in processes]
    random.shuffle(mixed)
    again = stats.variance_components(mixed)
    assert (again.between, again.within) == pytest.approx((found.between, found.within), abs=1e-9)


@given(PROCESSES, st.floats(0.5, 3))
def test_the_components_grow_with_the_square_of_the_logs(processes: list[list[float]], power: float) -> None:
    found = stats.variance_components(processes)
    raised = stats.variance_components([[value**power for value in samples] for samples in processes])
    expected = (power**2 * found.between, power**2 * found.within)
    assert (raised.between, raised.within) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(st.integers(2, 6), st.integers(2, 5), st.data())
def test_the_components_add_up_to_the_variance_of_the_processes_means(
    count: int, inner: int, data: st.DataObject
) -> None:
    processes = data.draw(st.lists(st.lists(SAMPLE, min_size=inner, max_size=inner), min_size=count, max_size=count))
    found = stats.variance_components(processes)
    logs = [[math.log(value) for value in samples] for samples in processes]
    within = statistics.fmean(statistics.variance(values) for values in logs)
    means = statistics.variance([statistics.fmean(values) for values in logs])
    assert found.within == pytest.approx(within, abs=1e-9)
    assert found.between == pytest.approx(max(0.0, means - within / inner), abs=1e-9)
    assert min(found.between, found.within) >= 0


@given(PROCESSES, st.data())
def test_what_shifts_whole_processes_leaves_the_variance_within_alone(
    processes: list[list[float]], data: st.DataObject
) -> None:
    factors = data.draw(st.lists(FACTOR, min_size=len(processes), max_size=len(processes)))
    moved = [[factor * value for value in samples] for factor, samples in zip(factors, processes, strict=True)]
    assert stats.variance_components(moved).within == pytest.approx(
        stats.variance_components(processes).within, abs=1e-9
    )


@given(st.floats(0.001, 1), st.floats(0.001, 1), st.floats(1, 100), st.floats(0.1, 10))
def test_more_inner_samples_than_these_do_not_pay(between: float, within: float, process: float, sample: float) -> None:
    def cost(count: int) -> float:
        return (between + within / count) * (process + sample * count)

    found = stats.inner_samples(stats.Components(between, within), process, sample, most=10**6)
    assert cost(found) <= cost(found + 1) * (1 + 1e-9)
    if found > 2:
        assert cost(found - 1) <= cost(found - 2) * (1 + 1e-9)


def test_without_variance_between_processes_one_gives_all_the_samples() -> None:
    assert stats.inner_samples(stats.Components(0.0, 0.1), 10, 1, most=50) == 50
    assert stats.inner_samples(stats.Components(0.0, 0.0), 10, 1) == 1


# ----------------------------------------------------------------------------------------------------------- verdicts


@given(intervals(), MARGIN, DIRECTION)
def test_a_verdict_is_what_the_whole_interval_says(found: Interval, margin: float, direction: stats.Direction) -> None:
    assume(all(abs(abs(math.log(end)) - math.log1p(margin)) > 1e-12 for end in (found.low, found.high)))
    decision = stats.decide(found, margin, direction)
    assert decision.reason in stats.REASONS
    bound = 1 + margin
    worse = {"lower": found.low > bound, "higher": found.high < 1 / bound}
    worse["none"] = worse["lower"] or worse["higher"]
    fine = {"lower": found.high < bound, "higher": found.low > 1 / bound}
    fine["none"] = fine["lower"] and fine["higher"]
    assert (decision.verdict == "regressed") == worse[direction]
    assert (decision.verdict == "pass") == fine[direction]


@given(intervals(), MARGIN)
def test_a_time_and_its_rate_get_the_same_verdict(found: Interval, margin: float) -> None:
    rate = Interval(1 / found.estimate, 1 / found.high, 1 / found.low, 0.95, found.method, found.n)
    bounds = (math.log1p(margin), -math.log1p(margin))
    assume(all(abs(math.log(end) - bound) > 1e-9 for end in (found.low, found.high) for bound in bounds))
    assert stats.decide(found, margin, "lower").verdict == stats.decide(rate, margin, "higher").verdict


@pytest.mark.parametrize(
    ("low", "high", "direction", "expected"),
    [
        (0.99, 1.01, "lower", Decision("pass", "equivalent")),
        (0.80, 0.90, "lower", Decision("pass", "improved")),
        (0.90, 1.01, "lower", Decision("pass", "not-worse")),
        (1.06, 1.20, "lower", Decision("regressed", "beyond-margin")),
        (1.04, 1.06, "lower", Decision("inconclusive", "near-margin")),
        (0.80, 1.30, "lower", Decision("inconclusive", "too-noisy")),
        (1.06, 1.20, "higher", Decision("pass", "improved")),
        (0.80, 0.90, "higher", Decision("regressed", "beyond-margin")),
        (0.80, 0.90, "none", Decision("regressed", "beyond-margin")),
        (0.90, 1.01, "none", Decision("inconclusive", "too-noisy")),
    ],
)
def test_reasons(low: float, high: float, direction: stats.Direction, expected: Decision) -> None:
    assert stats.decide(Interval(math.sqrt(low * high), low, high, 0.95, "", 9), 0.05, direction) == expected


@given(st.floats(0.5, 2), st.floats(1, 1.2), MARGIN, st.integers(2, 30), FACTOR)
def test_narrowness_looks_at_the_width_alone(at: float, arm: float, margin: float, count: int, moved: float) -> None:
    here = Interval(at, at / arm, at * arm, 0.95, "", count)
    there = Interval(at * moved, at * moved / arm, at * moved * arm, 0.95, "", count)
    assume(abs(math.log(arm) - PRECISION * math.log1p(margin)) > 1e-9)
    assert stats.precise_enough(here, margin) == stats.precise_enough(there, margin)
    assert stats.precise_enough(here, margin) == (math.log(arm) <= PRECISION * math.log1p(margin))


@given(BLOCKS, MARGIN, st.sampled_from(["lower", "higher"]))
def test_the_p_value_and_the_interval_agree(
    blocks: list[tuple[float, float]], margin: float, direction: stats.Direction
) -> None:
    old, new = sides(blocks)
    p = stats.regression_p(old, new, margin, direction)
    assume(abs(p - 0.025) > 1e-9)
    regressed = stats.decide(stats.paired_ratio(old, new), margin, direction).verdict == "regressed"
    assert regressed == (p < 0.025)


@given(BLOCKS, MARGIN)
def test_the_p_value_of_students_interval_is_that_of_a_t_test(blocks: list[tuple[float, float]], margin: float) -> None:
    old, new = sides(blocks)
    logs = np.log(new) - np.log(old)
    assume(np.std(logs) > 1e-6)
    expected = scipy.stats.ttest_1samp(logs, math.log1p(margin), alternative="greater").pvalue
    found = stats.regression_p(old, new, margin, "lower")
    assert found == pytest.approx(expected, rel=1e-5) or min(found, expected, 1 - found, 1 - expected) < 1e-8


@given(st.lists(st.floats(0, 1), max_size=30), st.floats(0.01, 0.5))
def test_benjamini_hochberg_is_the_papers_step_up_procedure(p_values: list[float], q: float) -> None:
    count = len(p_values)
    passing = [rank for rank, p in enumerate(sorted(p_values), 1) if p <= rank * q / count]
    assume(all(abs(p - rank * q / count) > 1e-12 for rank, p in enumerate(sorted(p_values), 1)))
    limit = sorted(p_values)[max(passing) - 1] if passing else -1.0
    assert stats.benjamini_hochberg(p_values, q) == [p <= limit for p in p_values]


def test_benjamini_hochbergs_own_example() -> None:
    """Section 3.2 of the paper: 15 comparisons of a thrombolysis trial, four of which are rejected at 5 %."""
    values = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528,
              0.7590, 1.0]  # fmt: skip
    assert stats.benjamini_hochberg(values, 0.05) == [True] * 4 + [False] * 11


@st.composite
def families(draw: st.DrawFn) -> tuple[list[Decision], list[float]]:
    verdicts = draw(st.lists(st.sampled_from([Decision("regressed", "beyond-margin"), Decision("pass", "equivalent"),
                                              Decision("inconclusive", "too-noisy")]), max_size=8))  # fmt: skip
    # Ties and values at the step's own corners, beside any others.
    value = st.sampled_from([0.0, 1.0, 0.05, 0.025]) | st.floats(0, 1)
    return verdicts, draw(st.lists(value, min_size=len(verdicts), max_size=len(verdicts)))


def rejected(p_values: list[float], q: float) -> set[int]:
    """Return the largest set that Benjamini and Hochberg's definition allows, found by trying every size of it."""
    largest: set[int] = set()
    for size in range(1, len(p_values) + 1):
        chosen = {index for index, p in enumerate(p_values) if p <= size * q / len(p_values)}
        if len(chosen) >= size:
            largest = chosen
    return largest


@given(families(), st.sampled_from([0.05, 0.1, 0.25]))
def test_a_family_keeps_the_regressions_that_are_discoveries_and_all_else(
    family: tuple[list[Decision], list[float]], q: float
) -> None:
    decisions, p_values = family
    assume(all(abs(p - size * q / len(p_values)) > 1e-12 for p in p_values for size in range(1, len(p_values) + 1)))
    kept = rejected(p_values, q)
    for index, (before, after) in enumerate(zip(decisions, stats.control_family(decisions, p_values, q), strict=True)):
        if before.verdict == "regressed" and index not in kept:
            assert after == Decision("inconclusive", "false-discovery")
        else:
            assert after == before


@given(families(), st.randoms(use_true_random=False), st.floats(0, 1))
def test_a_familys_order_does_not_matter_and_smaller_p_values_keep_no_fewer(
    family: tuple[list[Decision], list[float]], random: Random, factor: float
) -> None:
    decisions, p_values = family
    found = stats.control_family(decisions, p_values)
    order = random.sample(range(len(decisions)), len(decisions))
    mixed = stats.control_family([decisions[i] for i in order], [p_values[i] for i in order])
    assert mixed == [found[i] for i in order]
    clearer = stats.control_family(decisions, [factor * p for p in p_values])
    assert all(after == before for before, after in zip(found, clearer, strict=True) if before.verdict == "regressed")
    assert [one.verdict for one in stats.control_family(found, p_values)] == [one.verdict for one in found]


@st.composite
def differences(draw: st.DrawFn) -> Interval:
    low, estimate, high = sorted(draw(st.lists(st.floats(-1, 1), min_size=3, max_size=3)))
    return Interval(estimate, low, high, 0.95, "Student-t", draw(st.integers(2, 40)))


@given(differences(), MARGIN, DIRECTION)
def test_a_difference_is_judged_by_its_whole_interval(
    found: Interval, margin: float, direction: stats.Direction
) -> None:
    decision = stats.decide_difference(found, margin, direction)
    worse = {"lower": found.low > margin, "higher": found.high < -margin}
    worse["none"] = worse["lower"] or worse["higher"]
    fine = {"lower": found.high < margin, "higher": found.low > -margin}
    fine["none"] = fine["lower"] and fine["higher"]
    assert (decision.verdict == "regressed") == worse[direction]
    assert (decision.verdict == "pass") == fine[direction]


@given(differences(), MARGIN, DIRECTION, st.sampled_from([0.25, 0.5, 2.0, 4.0]))
def test_a_difference_has_no_unit_and_a_loss_is_a_gain_the_other_way(
    found: Interval, margin: float, direction: stats.Direction, unit: float
) -> None:
    decision = stats.decide_difference(found, margin, direction)
    scaled = found.transformed(lambda part: part * unit)
    assert stats.decide_difference(scaled, margin * unit, direction) == decision
    turned = Interval(-found.estimate, -found.high, -found.low, 0.95, found.method, found.n)
    other: dict[stats.Direction, stats.Direction] = {"lower": "higher", "higher": "lower", "none": "none"}
    assert stats.decide_difference(turned, margin, other[direction]) == decision


@given(differences(), MARGIN, st.floats(1.01, 4), DIRECTION)
def test_a_wider_margin_never_turns_a_pass_into_less(
    found: Interval, margin: float, factor: float, direction: stats.Direction
) -> None:
    narrow, wide = (stats.decide_difference(found, m, direction).verdict for m in (margin, factor * margin))
    assert narrow != "pass" or wide == "pass"
    assert wide != "regressed" or narrow == "regressed"


@given(intervals(), MARGIN, DIRECTION)
def test_a_ratio_is_judged_as_the_difference_of_its_logarithms(
    found: Interval, margin: float, direction: stats.Direction
) -> None:
    logs = found.transformed(math.log)
    assert (
        stats.decide_difference(logs, math.log1p(margin), direction).verdict
        == stats.decide(found, margin, direction).verdict
    )


def test_a_family_takes_back_a_regression_that_chance_explains() -> None:
    regressed, passed = Decision("regressed", "beyond-margin"), Decision("pass", "equivalent")
    decisions = [regressed, *[passed] * 9]
    assert stats.control_family(decisions, [0.02, *[0.9] * 9])[0] == Decision("inconclusive", "false-discovery")
    assert stats.control_family(decisions, [0.001, *[0.9] * 9]) == decisions


# ------------------------------------------------------------------------------------------------------------- memory


@given(st.floats(100, 1000), st.floats(0, 200), st.floats(1, 50), st.floats(0.01, 0.1))
def test_memory_grows_only_beyond_both_margins(size: float, growth: float, absolute: float, relative: float) -> None:
    assume(abs(growth - max(absolute, relative * size)) > 1e-6)
    grown = stats.decide_memory([size], [size + growth], absolute=absolute, relative=relative)
    assert (grown.verdict == "regressed") == (growth > absolute and growth > relative * size)
    assert grown.verdict != "inconclusive"


def test_memory_that_varies_across_the_margin_is_inconclusive() -> None:
    decision = stats.decide_memory([1000, 1001], [1010, 1060], absolute=16, relative=0.02)
    assert decision == Decision("inconclusive", "mixed-range")
    assert stats.range_ratio([1000, 1001], [1010, 1060]).confidence is None


SIDE = st.lists(SAMPLE, min_size=1, max_size=8)


@given(SIDE, SIDE)
def test_the_range_is_that_of_every_pairs_ratio_and_holds_the_ratio_of_medians(
    old: list[float], new: list[float]
) -> None:
    found = stats.range_ratio(old, new)
    ratios = [after / before for before in old for after in new]
    assert (found.low, found.high) == pytest.approx((min(ratios), max(ratios)))
    assert found.estimate == pytest.approx(statistics.median(new) / statistics.median(old))
    assert found.low <= found.estimate * (1 + 1e-12)
    assert found.estimate <= found.high * (1 + 1e-12)
    assert (found.confidence, found.n) == (None, min(len(old), len(new)))


@given(SIDE, SIDE, FACTOR, st.randoms(use_true_random=False))
def test_the_range_has_neither_unit_nor_order_and_is_inverted_by_swapping_the_sides(
    old: list[float], new: list[float], unit: float, random: Random
) -> None:
    found, swapped = stats.range_ratio(old, new), stats.range_ratio(new, old)
    again = stats.range_ratio(*([unit * value for value in random.sample(side, len(side))] for side in (old, new)))
    assert (again.low, again.estimate, again.high) == pytest.approx((found.low, found.estimate, found.high))
    inverted = (1 / swapped.high, 1 / swapped.estimate, 1 / swapped.low)
    assert inverted == pytest.approx((found.low, found.estimate, found.high))


@given(SIDE, SIDE, SAMPLE)
def test_a_further_sample_never_narrows_the_range(old: list[float], new: list[float], more: float) -> None:
    found = stats.range_ratio(old, new)
    for wider in (stats.range_ratio([*old, more], new), stats.range_ratio(old, [*new, more])):
        assert wider.low <= found.low
        assert found.high <= wider.high


@given(SIDE, SIDE, st.floats(0.1, 100), st.floats(0.01, 0.5))
def test_memory_is_judged_by_the_growth_of_every_pair(
    old: list[float], new: list[float], absolute: float, relative: float
) -> None:
    allowed = max(absolute, relative * statistics.median(old))
    grown = [after - before for before in old for after in new]
    assume(all(abs(growth - allowed) > 1e-9 for growth in grown))
    beyond = sum(growth > allowed for growth in grown)
    expected = "pass" if not beyond else "regressed" if beyond == len(grown) else "inconclusive"
    assert stats.decide_memory(old, new, absolute=absolute, relative=relative).verdict == expected


# -------------------------------------------------------------------------------------------------------------- noise


@given(st.lists(SAMPLE, min_size=2, max_size=15), FACTOR, st.randoms(use_true_random=False))
def test_the_noise_has_neither_unit_nor_order_and_inverting_leaves_it(
    values: list[float], unit: float, random: Random
) -> None:
    found = stats.log_sd(values)
    assert found == pytest.approx(statistics.stdev(map(math.log, values)), abs=1e-9)
    mixed = [unit * value for value in random.sample(values, len(values))]
    assert stats.log_sd(mixed) == pytest.approx(found, abs=1e-9)
    assert stats.log_sd([1 / value for value in values]) == pytest.approx(found, abs=1e-9)
    assert stats.log_sd([value**2 for value in values]) == pytest.approx(2 * found, abs=1e-9)


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=15))
def test_small_noise_is_the_coefficient_of_variation(deviations: list[float]) -> None:
    values = [100 + 0.1 * part for part in deviations]
    variation = statistics.stdev(values) / statistics.fmean(values)
    assert stats.log_sd(values) == pytest.approx(variation, rel=0.005, abs=1e-9)


@given(BLOCKS, st.lists(FACTOR, min_size=15, max_size=15))
def test_the_noise_of_blocks_is_that_of_their_ratios_without_the_drift_of_both(
    blocks: list[tuple[float, float]], drift: list[float]
) -> None:
    old, new = sides(blocks)
    found = stats.log_ratio_sd(old, new)
    assert found == pytest.approx(stats.log_sd([b / a for a, b in blocks]), abs=1e-9)
    assert stats.log_ratio_sd(new, old) == pytest.approx(found, abs=1e-9)
    moved = ([value * factor for value, factor in zip(side, drift, strict=False)] for side in (old, new))
    assert stats.log_ratio_sd(*moved) == pytest.approx(found, abs=1e-9)


# -------------------------------------------------------------------------------------------------------------- power


@pytest.mark.parametrize(("blocks", "deviations"), [(5, 1.96589), (10, 1.15457), (30, 0.61245)])
def test_the_smallest_effect_is_that_of_statsmodels(blocks: int, deviations: float) -> None:
    """In standard deviations, as statsmodels 0.15.0's TTestPower gives them for alpha 0.025, one-sided, power 0.9."""
    assert math.log1p(stats.smallest_effect(0.01, blocks)) / 0.01 == pytest.approx(deviations, abs=1e-4)


@given(st.floats(0.001, 0.2), st.floats(0.01, 0.3))
def test_the_blocks_needed_are_the_fewest_that_do(sd: float, margin: float) -> None:
    blocks = stats.samples_needed(sd, margin)
    assert blocks is not None
    assert stats.smallest_effect(sd, blocks) <= margin
    if blocks > 2:
        assert stats.smallest_effect(sd, blocks - 1) > margin


def test_no_number_of_blocks_is_enough_for_everything() -> None:
    assert stats.samples_needed(1.0, 0.001, most=1000) is None


def test_the_promised_power_is_kept() -> None:
    blocks, margin, effect = 10, 0.05, stats.smallest_effect(0.038, 10)
    shift = math.log1p(margin) + math.log1p(effect)
    caught = sum(
        stats.decide(stats.paired_ratio(*noisy(blocks, shift, seed=seed)), margin, "lower").verdict == "regressed"
        for seed in range(400)
    )
    found = stats.proportion(caught, 400, 0.999)
    assert found.low <= 0.9 <= found.high


@given(st.integers(0, 50), st.integers(1, 50))
def test_a_rate_lies_in_its_exact_interval(count: int, trials: int) -> None:
    assume(count <= trials)
    found = stats.proportion(count, trials)
    assert 0 <= found.low <= found.estimate <= found.high <= 1
    if count:
        assert scipy.stats.binom.sf(count - 1, trials, found.low) == pytest.approx(0.025)


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_sample_that_is_not_a_number_is_named(bad: float) -> None:
    with pytest.raises(SampleError, match=r"new sample 1 is (nan|inf): nothing to calculate with; measure it again"):
        stats.paired_ratio([1, 1, 1], [1, bad, 1])
    with pytest.raises(SampleError, match="old sample 0"):
        stats.decide_memory([bad], [1], absolute=1, relative=0.1)


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_a_ratio_of_nothing_is_refused(bad: float) -> None:
    with pytest.raises(SampleError, match=rf"old sample 2 is {bad:g}: a ratio needs samples above zero"):
        stats.paired_ratio([1, 1, bad], [1, 1, 1])


@pytest.mark.parametrize(
    ("call", "needed", "got"),
    [
        (lambda: stats.paired_ratio([], []), 2, 0),
        (lambda: stats.paired_ratio([1.0], [1.0]), 2, 1),
        (lambda: stats.regression_p([1.0], [2.0], 0.05, "lower"), 2, 1),
        (lambda: stats.variance_components([[1.0, 2.0]]), 2, 1),
        (lambda: stats.variance_components([[1.0, 2.0], [1.0]]), 2, 1),
        (lambda: stats.smallest_effect(0.1, 1), 2, 1),
        (lambda: stats.range_ratio([], [1.0]), 1, 0),
        (lambda: stats.proportion(0, 0), 1, 0),
        (lambda: stats.log_ratio_sd([1.0], [1.0]), 2, 1),
        (lambda: stats.baseline_ratio([1.0], [1.0]), 2, 1),
        (lambda: stats.baseline_ratio([1.0, 2.0], []), 1, 0),
    ],
)
def test_too_few_samples_are_counted(call: object, needed: int, got: int) -> None:
    with pytest.raises(TooFewSamples, match=rf"needs at least {needed} \D+ and got {got}"):
        call()  # type: ignore[operator]


def test_unpaired_sides_and_impossible_margins_are_refused() -> None:
    with pytest.raises(SampleError, match="got 2 old and 1 new"):
        stats.paired_ratio([1, 1], [1])
    for margin in (0.0, -0.1, math.nan):
        with pytest.raises(SampleError, match="a margin is a positive number"):
            stats.decide(Interval(1, 1, 1, 0.95, "", 5), margin, "lower")
    with pytest.raises(SampleError, match="p-values lie between 0 and 1"):
        stats.benjamini_hochberg([0.1, math.nan])
