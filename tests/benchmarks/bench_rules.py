"""How often verdicts are wrong: the gate's rule against rules that others use, over the same simulated measurements.

Run: PYTHONPATH=. python tests/benchmarks/bench_rules.py [--gates 1000] [--noise FILE] [-o results/rules.md]

The noise is that of real gates of old against old (bench_gate.py writes the file). Each rule sees processes drawn from
the same noise, the gate and its like in the blocks in which they ran; the new side is slower by a known factor, so
every verdict is known to be right or wrong. 1000 gates take some minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import stats as distributions

from harness.judge import stats
from harness.judge.baseline import MOST_MARGIN, smallest_margin
from harness.judge.family import settled
from harness.judge.looks import MINIMUM_BLOCKS
from harness.judge.rules import FALSE_DISCOVERIES, Margins
from harness.judge.verdict import judge
from harness.records.place import Place
from harness.report.rendering import Table, render
from tests.simulation.draws import series

ROOT = Path(__file__).resolve().parents[2]
SLOWER = (0.0, 0.05, 0.10, 0.20)
MARGINS = (0.03, 0.05, 0.10)
BUDGET_SECONDS = 1800
NIGHTLY_RUNS = 5
# As many as a gate over all CPU recipes has primary metrics with a p-value, about.
FAMILY = 25
_LATENCY = Place("m", "", "r", "", server="s").at("latency", {"batch_size": 1})


@dataclass(frozen=True)
class Noise:
    """Where simulated processes come from: ``draw(rng, blocks)`` gives log deviations, (blocks, 2).

    The two of a block ran in turns, so what the machine did meanwhile is in both. ``sd`` is that of their difference,
    ``drift`` that of a random walk of the machine's speed from block to block.
    """

    name: str
    words: str
    sd: float
    draw: Callable[[np.random.Generator, int], np.ndarray]
    drift: float = 0.0

    def processes(self, rng: np.random.Generator, count: int, paired: bool) -> np.ndarray:
        """Return log deviations of ``count`` processes: block by block, or one after another as others run them."""
        blocks = (count + 1) // 2 if paired else count
        found = self.draw(rng, blocks) + np.cumsum(rng.normal(0, self.drift, blocks))[:, None]
        return found.ravel()[:count] if paired else found[:, 0]


@dataclass(frozen=True)
class Outcome:
    verdict: str
    processes: int


def recorded(file: Path) -> tuple[np.ndarray, float]:
    """Return log deviations from the median process, (blocks, 2), in the order they ran, and what a block took (s)."""
    data = json.loads(file.read_text(encoding="utf-8"))
    blocks = [pair for gate in data["gates"] for pair in zip(gate["old"], gate["new"], strict=True)]
    logs = -np.log(np.array(blocks))
    return logs - np.median(logs), float(data["block_seconds"])


def robust_sd(values: np.ndarray) -> float:
    return float(distributions.median_abs_deviation(values, axis=None, scale="normal"))


def noises(logs: np.ndarray) -> list[Noise]:
    difference = logs[:, 1] - logs[:, 0]
    whole, of_block = float(np.sqrt((difference**2).mean())), robust_sd(difference)
    process = robust_sd(logs)
    shared = math.sqrt(max(0.0, process**2 - of_block**2 / 2))

    def normal(rng: np.random.Generator, blocks: int) -> np.ndarray:
        return rng.normal(0, of_block / math.sqrt(2), (blocks, 2)) + rng.normal(0, shared, blocks)[:, None]

    return [
        Noise(
            "as measured",
            f"drawn from the {len(logs)} recorded blocks, stragglers included (standard deviation of a process "
            f"{float(logs.std(ddof=1)):.1%}, of a block's log ratio {whole:.1%})",
            whole,
            lambda rng, blocks: logs[rng.integers(0, len(logs), blocks)],
        ),
        Noise(
            "without stragglers",
            f"normal, with the recorded robust standard deviations (MAD: of a process {process:.1%}, of a block's log "
            f"ratio {of_block:.1%})",
            of_block,
            normal,
        ),
        Noise(
            "without stragglers, drifting",
            f"the same on a machine whose speed also walks at random by {process / 2:.1%} a block",
            of_block,
            normal,
            drift=process / 2,
        ),
    ]


# -------------------------------------------------------------------------------------------------------------- rules


@dataclass(frozen=True)
class Rule:
    """A way to a verdict: how many processes it may take, which of them are new, and what it says of their seconds.

    ``paired`` ones run old and new in blocks, the others one process after another.
    """

    name: str
    processes: int
    new: slice
    judge: Callable[[np.ndarray], Outcome]
    paired: bool = False


def one_sample(seconds: np.ndarray) -> Outcome:
    """One process a side; regressed if new takes more than 5 % longer."""
    return Outcome("regressed" if seconds[1] > 1.05 * seconds[0] else "pass", 2)


def mean_tolerance(seconds: np.ndarray) -> Outcome:
    """Five processes a side, first all old, then all new; regressed if new's mean is more than 8 % longer."""
    return Outcome("regressed" if seconds[5:].mean() > 1.08 * seconds[:5].mean() else "pass", 10)


def t_test(seconds: np.ndarray) -> Outcome:
    """Ten processes a side, first all old, then all new; regressed if new is slower and Welch's p is below 0.05."""
    old, new = seconds[:10], seconds[10:]
    slower = distributions.ttest_ind(new, old, equal_var=False).pvalue < 0.05 and new.mean() > old.mean()
    return Outcome("regressed" if slower else "pass", 20)


def peeking(seconds: np.ndarray) -> Outcome:
    """A paired t-test asked after every block, stopped as soon as p is below 0.05: stopping on significance."""
    old, new = _blocks(seconds)
    means, errors = _running(np.log(new / old))
    counts = np.arange(1, len(old) + 1)
    significant = np.abs(means[2:]) > distributions.t.ppf(0.975, counts[2:] - 1) * errors[2:]
    if not significant.any():
        return Outcome("pass", len(seconds))
    stopped = 2 + int(significant.argmax())
    return Outcome("regressed" if means[stopped] > 0 else "pass", 2 * (stopped + 1))


def gate(margin: float, family: int = 1) -> Callable[[np.ndarray], Outcome]:
    """The gate's rule: paired blocks until a look decides, or the budget is spent.

    In a ``family`` of primary metrics of which no other is worse, Benjamini-Hochberg asks for a p-value that many times
    smaller. What the others say of its noise is left out.
    """

    def judge_all(seconds: np.ndarray) -> Outcome:
        logs = np.log(seconds[1::2] / seconds[0::2])
        for count in range(2, len(logs) + 1):
            found = judge(series(_LATENCY, logs[:count]), Margins([f"latency={margin}"]))
            if found.verdict == "regressed" and (found.p or 0.0) > FALSE_DISCOVERIES / family:
                found = replace(found, verdict="inconclusive", reason="false-discovery")
            if settled(found):
                break
        return Outcome(found.verdict, 2 * count)

    return judge_all


def nightly(seconds: np.ndarray) -> Outcome:
    """A night's block against a baseline of several runs; a regression must recur in a second block."""
    runs = seconds[:NIGHTLY_RUNS].tolist()
    margin = max(0.05, smallest_margin(stats.log_sd(runs), NIGHTLY_RUNS))
    if margin > MOST_MARGIN:
        return Outcome("inconclusive", 1)
    first, second = (
        stats.decide(stats.baseline_ratio(runs, [block], 0.9), margin, "lower").verdict
        for block in seconds[NIGHTLY_RUNS:].tolist()
    )
    if first != "regressed":
        return Outcome(first, 1)
    return Outcome("regressed" if second == "regressed" else "inconclusive", 2)


def rules(most: int) -> list[Rule]:
    """Return every rule; those that go on measuring may take ``most`` blocks."""
    second = slice(1, None, 2)
    return [
        Rule("one sample, 5 % threshold", 2, second, one_sample),
        Rule("mean of 5, 8 % tolerance", 10, slice(5, None), mean_tolerance),
        Rule("two-sample t-test at 5 %, 10 and 10", 20, slice(10, None), t_test),
        Rule(f"paired t-test at 5 % after every block, up to {most}", 2 * most, second, peeking, paired=True),
        Rule("this gate, margin 10 %", 2 * most, second, gate(0.10), paired=True),
        Rule("this gate, margin 5 %", 2 * most, second, gate(0.05), paired=True),
        Rule(f"this gate, margin 5 %, one of {FAMILY} metrics", 2 * most, second, gate(0.05, FAMILY), paired=True),
        Rule(f"nightly, baseline of {NIGHTLY_RUNS} runs", NIGHTLY_RUNS + 2, slice(NIGHTLY_RUNS, None), nightly),
    ]


def _blocks(seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return seconds[0::2], seconds[1::2]


def _running(logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of the first n values and its standard error, for every n."""
    count = np.arange(1, len(logs) + 1)
    means = np.cumsum(logs) / count
    squares = np.maximum(0, np.cumsum(logs**2) - count * means**2)
    return means, np.sqrt(squares / np.maximum(1, count - 1) / count)


# --------------------------------------------------------------------------------------------------------- simulation


def simulate(rule: Rule, noise: Noise, slower: float, gates: int) -> list[Outcome]:
    """Return the outcomes of a rule over many gates whose new side takes longer by a known share."""
    outcomes = []
    for seed in range(gates):
        rng = np.random.default_rng((seed, round(1000 * slower)))
        seconds = np.exp(noise.processes(rng, rule.processes, rule.paired))
        seconds[rule.new] *= 1 + slower
        outcomes.append(rule.judge(seconds))
    return outcomes


def recorded_table(logs: np.ndarray) -> Table:
    """The same rules over the recorded processes, in their order: nothing changed, so each alarm is false."""
    rows = []
    for rule in rules(len(logs)):
        # Those that know no blocks get one process of each, so that they look at processes which ran alone.
        line = logs.ravel() if rule.paired else logs[:, 0]
        windows = [line[at : at + rule.processes] for at in range(0, len(line) - rule.processes + 1, rule.processes)]
        counts = Counter(rule.judge(np.exp(window)).verdict for window in windows)
        rows.append(
            (rule.name, str(len(windows)), *(str(counts[name]) for name in ("regressed", "inconclusive", "pass")))
        )
    header = ("rule", "verdicts", "regressed (false alarms)", "inconclusive", "pass")
    return Table(
        "Rules", f"the {len(logs)} recorded blocks themselves, one after another, unchanged", header, tuple(rows)
    )


def rate(count: int, gates: int) -> str:
    """Return a rate with its 95 % interval (Clopper and Pearson)."""
    found = stats.proportion(count, gates)
    return f"{found.estimate:.1%} ({found.low:.1%} to {found.high:.1%})"


def rules_table(noise: Noise, most: int, gates: int) -> Table:
    rows = []
    for rule in rules(most):
        found = {slower: simulate(rule, noise, slower, gates) for slower in SLOWER}
        verdicts = {slower: Counter(outcome.verdict for outcome in outcomes) for slower, outcomes in found.items()}
        processes = statistics.median(outcome.processes for outcome in found[0.0])
        rows.append(
            (
                rule.name,
                f"{processes:g}",
                rate(verdicts[0.0]["regressed"], gates),
                *(rate(verdicts[slower]["regressed"], gates) for slower in SLOWER[1:]),
                *(f"{verdicts[slower]['pass'] / gates:.1%}" for slower in SLOWER[2:]),
                f"{verdicts[0.0]['inconclusive'] / gates:.1%}",
            )
        )
        print(noise.name, *rows[-1], sep=" | ", flush=True)
    header = (
        "rule",
        "processes (median)",
        "false alarms: regressed at no change",
        *(f"regressed at {slower:.0%} slower" for slower in SLOWER[1:]),
        *(f"missed: pass at {slower:.0%} slower" for slower in SLOWER[2:]),
        "inconclusive at no change",
    )
    return Table("Rules", f"noise {noise.name}: {noise.words}", header, tuple(rows))


def cost_table(every: list[Noise], seconds: float) -> Table:
    """What a verdict costs: blocks for a power of 0.9, and what blocks of the recorded kind take."""
    rows = []
    for noise in every[:2]:
        for margin in MARGINS:
            blocks = stats.samples_needed(noise.sd, margin)
            assert blocks is not None
            blocks = max(blocks, MINIMUM_BLOCKS)
            took = blocks * seconds
            rows.append(
                (noise.name, f"{margin:.0%}", str(blocks), str(2 * blocks), f"{took:.0f} s ({took / 60:.0f} min)")
            )
    header = ("noise", "margin", "blocks", "processes", "measurement")
    title = (
        f"one verdict with a power of 0.9, at {seconds:.1f} s a block (two processes, from their start); all metrics "
        "of a process are judged from the same blocks"
    )
    return Table("Cost", title, header, tuple(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gates", type=int, default=1000, help="simulated gates a rule and effect")
    parser.add_argument("--noise", type=Path, default=ROOT / "results" / "gate_calibration.json")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "results" / "rules.md")
    arguments = parser.parse_args()
    logs, seconds = recorded(arguments.noise)
    every = noises(logs)
    most = int(BUDGET_SECONDS / seconds)
    shown = [rules_table(noise, most, arguments.gates) for noise in every]
    facts = {
        "simulated gates": f"{arguments.gates} for each rule, effect and noise; intervals are Clopper-Pearson, 95 %",
        "noise": f"generate_throughput of {len(logs)} blocks of two fresh processes, {arguments.noise.name}",
        "budget": f"{BUDGET_SECONDS} s, {most} blocks of two processes",
        "written by": "tests/benchmarks/bench_rules.py",
    }
    text = render(
        [*shown, recorded_table(logs), cost_table(every, seconds)],
        "md",
        title="How often verdicts are wrong",
        facts=facts,
    )
    arguments.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
