"""The tables of results/simulation.md: each says what it drew, and how often it was called what."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.gate.promise import Expected, Promise
from harness.judge import accuracy, looks, stats
from harness.judge.family import settled
from harness.judge.looks import Look
from harness.judge.rules import Margins
from harness.judge.series import Series
from harness.judge.verdict import judge
from harness.records.place import Parameters, Place
from harness.report.rendering import Table
from tests.simulation import draws, gates
from tests.simulation import nights as years
from tests.simulation.draws import Draw
from tests.simulation.gates import BLOCK_SECONDS, FAMILY, Ended

MARGINS = (0.05, 0.03, 0.02)


@dataclass(frozen=True)
class Times:
    """How often things are drawn: metrics of their own, and whole gates."""

    metrics: int = 240
    gates: int = 120

    def shorter(self, by: float) -> Times:
        return Times(max(1, round(self.metrics * by)), max(1, round(self.gates * by)))


def rate(count: int, of: int) -> str:
    """Return a share with its exact 95 % interval."""
    found = stats.proportion(count, of)
    return f"{found.estimate:.1%} ({found.low:.1%} to {found.high:.1%})"


def _many(count: int, draw: Draw, margin: float, effects: Sequence[float], **more: Any) -> list[Ended]:
    """Return so many gates of metrics whose true log ratios are ``effects``: the same ones whenever they are asked."""
    return [gates.gate(draw, np.random.default_rng((22, number)), margin, effects, **more) for number in range(count)]


def single(times: Times) -> Table:
    """A metric alone, measured until it is settled: unchanged, exactly at its margin, and twice as much worse."""
    rows = []
    for margin in MARGINS:
        for words, factor in (("unchanged", 0.0), ("at the margin", 1.0), ("twice the margin", 2.0)):
            count = max(50, round(times.metrics * margin / MARGINS[0]))
            effect = factor * math.log1p(margin)
            found = _many(count, draws.even, margin, [effect])
            verdicts = gates.counted(found)
            mean = float(np.mean([one.blocks[0] for one in found]))
            rows.append(
                (
                    f"{margin:.0%}",
                    words,
                    f"{mean:.1f}",
                    f"{mean * BLOCK_SECONDS:.0f} s",
                    *(rate(verdicts[name], count) for name in ("pass", "regressed", "inconclusive")),
                )
            )
            print(*rows[-1], sep=" | ", flush=True)
    header = ("margin", "truth", "blocks (mean)", "seconds", "pass", "regressed", "inconclusive")
    return Table("One metric", "3 % noise a process, until it is settled", header, tuple(rows))


def whole(times: Times) -> Table:
    """Gates of 25 metrics in 15 units: unchanged, over several kinds of noise, and with faults planted."""
    none = [0.0] * sum(FAMILY)
    step = math.log1p(0.05)
    cases: list[tuple[str, Draw, list[float], int]] = [
        ("unchanged", draws.even, none, 10**9),
        ("unchanged, within 30 minutes", draws.even, none, int(1800 / BLOCK_SECONDS)),
        ("unchanged, within what is promised for 90 %", draws.even, none, int(_promised(0.9) / BLOCK_SECONDS)),
        ("unchanged, noise 1.5 times more or less", draws.uneven, none, 10**9),
        ("unchanged, recorded noise", draws.recorded, none, 10**9),
        ("one metric at its margin", draws.even, [step, *none[1:]], 10**9),
        ("one metric twice its margin", draws.even, [2 * step, *none[1:]], 10**9),
        ("all metrics at their margins", draws.even, [step] * len(none), 10**9),
    ]
    rows = []
    for words, draw, effects, total in cases:
        count = times.gates if min(effects) == 0 else max(1, times.gates // 4)
        found = _many(count, draw, 0.05, effects, units=FAMILY, total=total)
        status = Counter(one.status for one in found)
        seconds = BLOCK_SECONDS * float(np.mean([sum(one.blocks) for one in found]))
        per_unit = float(np.mean([one.blocks for one in found]))
        rows.append(
            (
                words,
                str(count),
                *(rate(status[code], count) for code in (0, 1, 3)),
                f"{per_unit:.1f}",
                f"{seconds:.0f} s",
            )
        )
        print(*rows[-1], sep=" | ", flush=True)
    header = ("truth", "gates", "exit 0", "exit 1", "exit 3", "blocks a unit (mean)", "a gate takes")
    title = "25 metrics in 15 units, margin 5 %, 3 % noise a process, 23.5 s a block"
    return Table("Whole gates", title, header, tuple(rows))


def _promised(share: float) -> float:
    """Return the seconds within which the gate's own calculation says that so many unchanged gates pass."""
    noise = (draws.PROCESS * math.sqrt(2), 0.05)
    return Promise.of([Expected(BLOCK_SECONDS, [noise] * metrics) for metrics in FAMILY]).seconds(share)


def coverage(times: Times) -> Table:
    """How often the interval of a paired ratio holds the truth, by how many blocks it is of and how they are spread."""
    rng = np.random.default_rng(8)
    count = 4 * times.metrics
    rows = []
    for words, sample in _SPREADS.items():
        for blocks in (6, 12, 19, 20, 40):
            values, truth = sample(rng, count, blocks)
            found = [stats.paired_ratio([1.0] * blocks, np.exp(one).tolist()) for one in values]
            held = sum(one.low <= math.exp(truth) <= one.high for one in found)
            width = float(np.median([math.log(one.high / one.low) / 2 for one in found]))
            rows.append((words, str(blocks), rate(held, count), f"{width * math.sqrt(blocks) / np.std(values):.3f}"))
            print(*rows[-1], sep=" | ", flush=True)
    header = ("log ratios", "blocks", "interval of 95 % holds the truth", "arm, in standard errors (median)")
    return Table("Coverage", "the interval of a paired ratio", header, tuple(rows))


Sample = Callable[[np.random.Generator, int, int], tuple[np.ndarray, float]]


def _normal(rng: np.random.Generator, count: int, blocks: int) -> tuple[np.ndarray, float]:
    return rng.normal(0, 0.04, (count, blocks)), 0.0


def _skewed(rng: np.random.Generator, count: int, blocks: int) -> tuple[np.ndarray, float]:
    return 0.02 * np.exp(rng.normal(0, 0.75, (count, blocks))), 0.02 * math.exp(0.75**2 / 2)


def _stragglers(rng: np.random.Generator, count: int, blocks: int) -> tuple[np.ndarray, float]:
    late = rng.random((count, blocks)) < 0.1
    return rng.normal(0, 0.02, (count, blocks)) + np.where(late, 0.2, 0.0), 0.02


_SPREADS: dict[str, Sample] = {
    "normal": _normal,
    "skewed (lognormal, .75)": _skewed,
    "one in ten 20 % slower": _stragglers,
}


def dependence(times: Times) -> Table:
    """What dependence between blocks does, where nothing is known of it and where ten stored gates are."""
    rows = []
    margin = math.log1p(0.05)
    for share in (0.0, 0.2, 0.5, 0.8):
        draw = draws.dependent(share)
        stored = [list(draw(np.random.default_rng((10, gate)), sum(FAMILY), 8)) for gate in range(10)]
        for words, kept in (
            ("nothing", 0.0),
            ("10 stored gates", looks.dependence([one for gate in stored for one in gate])),
        ):
            values = draw(np.random.default_rng(5), 2 * times.metrics, 20)
            found = [Look.at(one, kept=kept).interval(0.95) for one in values]
            held = sum(one.low <= 0 <= one.high for one in found)
            count = times.metrics
            at, same = (gates.counted(_many(count, draw, 0.05, [effect], kept=kept)) for effect in (margin, 0.0))
            shares = (rate(at["regressed"], count), rate(at["pass"], count), rate(same["pass"], count))
            rows.append((f"{share:g}", words, f"{kept:.2f}", rate(held, len(values)), *shares))
            print(*rows[-1], sep=" | ", flush=True)
    header = (
        "AR(1)",
        "known beside the gate",
        "allowed for",
        "coverage at 20 blocks",
        "regressed at the margin",
        "pass at the margin",
        "unchanged: pass",
    )
    title = "a share of every block is kept by the next one; one metric, margin 5 %"
    return Table("Dependence", title, header, tuple(rows))


def medians(times: Times) -> Table:
    """Faults that no median shows, in blocks of rounds and of requests: how many metrics are called regressed."""
    rows = []
    cases = [
        ("unchanged, 15 rounds", "latency", 15, 0.0, 0.0, 1.0),
        ("2 of 15 rounds twice as long on both sides", "latency", 15, 2 / 15, 2 / 15, 2.0),
        ("2 of 15 rounds twice as long in the new one", "latency", 15, 0.0, 2 / 15, 2.0),
        ("unchanged, 1000 requests", "tpot", 1000, 0.0, 0.0, 1.0),
        ("3 % of requests five times as long on both sides", "tpot", 1000, 0.03, 0.03, 5.0),
        ("3 % of requests five times as long in the new one", "tpot", 1000, 0.0, 0.03, 5.0),
    ]
    count = max(20, times.metrics // 4)
    for words, metric, samples, old, new, by in cases:
        verdicts: Counter[str] = Counter()
        blind: Counter[str] = Counter()
        blocks = 0
        for number in range(count):
            rng = np.random.default_rng((4, number))
            drawn = {side: _samples(rng, 40, samples, slow, by) for side, slow in (("old", old), ("new", new))}
            place = Place("m", "", "r", "", server="s").at(metric)
            for at in range(2, 41):
                sides = {side: every[:at] for side, every in drawn.items()}
                values = {side: [float(np.median(block)) for block in some] for side, some in sides.items()}
                given = {"rounds": sides} if metric == "latency" else {"requests": sides}
                found = judge(Series(place, values, **given), Margins())  # type: ignore[arg-type]
                if settled(found):
                    break
            verdicts[found.verdict] += 1
            blocks += at
            blind[judge(Series(place, values), Margins()).verdict] += 1
        shares = (rate(verdicts["regressed"], count), rate(verdicts["pass"], count), rate(blind["regressed"], count))
        rows.append((words, f"{blocks / count:.1f}", *shares))
        print(*rows[-1], sep=" | ", flush=True)
    header = ("fault", "blocks (mean)", "regressed", "pass", "regressed by the median alone")
    title = "one metric, 3 % noise a process and 2 % a sample, at its own margin (latency 5 %, time a token 10 %)"
    return Table("What a median does not see", title, header, tuple(rows))


def _samples(rng: np.random.Generator, blocks: int, samples: int, slow: float, by: float) -> list[list[float]]:
    """Return blocks of samples, each of which is ``by`` times as long with a probability of ``slow``."""
    found = np.exp(rng.normal(0, draws.PROCESS, (blocks, 1)) + rng.normal(0, 0.02, (blocks, samples)))
    return np.where(rng.random(found.shape) < slow, by * found, found).tolist()  # type: ignore[no-any-return]


def tasks(times: Times) -> Table:
    """How often the interval of the mean over tasks holds the truth: of their own documents, and of the same ones."""
    rows = []
    count, documents, flips, loss = 2 * times.metrics, 500, 0.04, 0.01
    for words, of, same in (("4 tasks of their own documents", 4, 0.0), ("4 tasks of the same documents", 4, 0.7)):
        rng = np.random.default_rng(15)
        held = {True: 0, False: 0}
        for _ in range(count):
            common = _flipped(rng, flips, loss, (1, documents))
            drawn = np.where(rng.random((of, documents)) < same, common, _flipped(rng, flips, loss, (of, documents)))
            answered = [([float(d < 0) for d in one], [float(d > 0) for d in one]) for one in drawn]
            intervals = [accuracy.noninferiority(old, new) for old, new in answered]
            for known in held:
                found = accuracy.combine_tasks(intervals, accuracy.shared(answered) if known else None)
                held[known] += found.low <= -loss <= found.high
        rows.append((words, rate(held[True], count), rate(held[False], count)))
        print(*rows[-1], sep=" | ", flush=True)
    header = ("tasks", "interval of 95 % holds the truth", "if they were taken to be independent")
    title = f"mean of {documents} documents each, of which 4 % change and 1 % are lost, by MOVER"
    return Table("Several tasks", title, header, tuple(rows))


def _flipped(rng: np.random.Generator, flips: float, loss: float, shape: tuple[int, int]) -> np.ndarray:
    """Return -1 for documents lost, 1 for those won, 0 for the others."""
    drawn = rng.random(shape)
    lost = (flips + loss) / 2
    return np.where(drawn < lost, -1, np.where(drawn < flips, 1, 0))


def answers(times: Times) -> Table:
    """How often a small loss of accuracy is called: by the margins of answers, by the flips, by accuracy's own rule."""
    rows = []
    for documents in (400, 2_000, 10_000):
        for loss in (0.0, 0.003, 0.01):
            rng = np.random.default_rng((9, documents, round(1000 * loss)))
            called = Counter[str]()
            for _ in range(times.metrics):
                old, new = draws.answered(rng, documents, loss=loss)
                called["margins"] += _judged("answer_margin", old, new) == "regressed"
                called["accuracy"] += _judged("accuracy", old > 0, new > 0) == "regressed"
                lost, won = int(np.sum((old > 0) & (new <= 0))), int(np.sum((old <= 0) & (new > 0)))
                called["flips"] += lost > won and accuracy.mcnemar_exact(lost, won) < 0.05
            told = (rate(called[by], times.metrics) for by in ("margins", "flips", "accuracy"))
            rows.append((f"{documents:,}", f"{loss:.1%}", *told))
            print(*rows[-1], sep=" | ", flush=True)
    header = (
        "documents",
        "answers lost",
        "called by their margins",
        "by McNemar at 5 %",
        "by accuracy's margin of 2 %",
    )
    return Table("Answers", "multiple choice, of which 2 % flip by noise; loss drawn or not", header, tuple(rows))


def _judged(metric: str, old: np.ndarray, new: np.ndarray) -> str:
    place = Place(model="m", recipe="r", metric=metric, parameters=Parameters({"task": "t"}))
    return judge(Series(place, {"old": [*map(float, old)], "new": [*map(float, new)]}), Margins()).verdict


def nights(times: Times) -> Table:
    """False alarms of a year of nights of 50 metrics, and how often a step of 5 % is found within five nights."""
    rows = []
    shared, own = 0.8**0.5 * 0.03, 0.2**0.5 * 0.03
    machines = {
        "1 % of each metric's own": years.noisy(0.01),
        "3 %, of which the night shares 80 % of the variance": years.noisy(own, shared),
        "the same, of which the next night keeps 80 %": years.noisy(own, shared, kept=0.8),
        "the same, and the machine walks 0.3 % a night": years.noisy(own, shared, walk=0.003),
        "1 %, and the machine walks 0.3 % a night": years.noisy(0.01, walk=0.003),
        "3 % of each metric's own": years.noisy(0.03),
        "the same, four runs a night": years.noisy(0.015),
    }
    count = max(1, times.metrics // 60)
    for words, machine in machines.items():
        found = [years.year(machine, np.random.default_rng((6, number))) for number in range(count)]
        alarms, steps = [one.alarms for one in found], sum(one.steps for one in found)
        told = rate(sum(one.found for one in found), steps)
        rows.append((words, f"{np.mean(alarms):.2g}", f"{max(alarms)}", told))
        print(*rows[-1], sep=" | ", flush=True)
    header = ("noise", "false alarms a year", f"worst of {count} years", "a step of 5 % is found within 5 nights")
    title = f"{years.METRICS} metrics, of which {years.CONTROLS} are controls, a night held against up to 60 before it"
    return Table("Nights", title, header, tuple(rows))


TABLES: Sequence[Callable[[Times], Table]] = (single, whole, coverage, dependence, medians, tasks, answers, nights)
