"""Claims -> verdicts, by paired differences over the same windows; and the tables that tell them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.judge.intervals import Interval, mean_interval
from harness.records.schema import Line, Measurement
from harness.report.rendering import Table
from tests.literature.recipes import CLAIMS, NEAR, NEAR_RATIO, Claim

Measured = Mapping[str, Mapping[str, Any]]
HOLDS, UNDECIDED, CONTRARY, UNMEASURED = "holds", "undecided", "contrary", "not measured"


@dataclass(frozen=True)
class Judged:
    """A claim, the interval of the difference of KL (better minus worse, nats), and what that says."""

    claim: Claim
    difference: Interval | None
    verdict: str


def of_runs(lines: Iterable[Line], model: str) -> dict[str, dict[str, list[float]]]:
    """Return what the records of runs hold of a model's recipes on a CPU: nats of each window, and KL, the latest.

    Recipes are in the order of their names, whichever run has them first.
    """
    found: dict[str, dict[str, list[float]]] = {}
    windows: dict[str, Any] = {"windows": 16, "window_tokens": 256}
    for line in lines:
        if not isinstance(line, Measurement) or line.discarded or line.metric not in ("perplexity", "kl_divergence"):
            continue
        cell = line.cell
        if (cell.model.name, cell.hardware, cell.server) == (model, "cpu", "transformers") and windows.items() <= (
            line.parameters.items()
        ):
            of = found.setdefault(cell.recipe.name, {})
            if line.metric == "perplexity":
                of["nll"] = [math.log(value) for value in line.samples]
            else:
                of["kl"] = line.samples
    return dict(sorted(found.items()))


def judged(claim: Claim, found: Measured) -> Judged:
    """Return what windows that both recipes were held over say of a claim, by 95 % of a paired difference."""
    better, worse = (found.get(name, {}).get("kl") for name in (claim.better, claim.worse))
    if not better or not worse:
        return Judged(claim, None, UNMEASURED)
    apart = mean_interval([ours - theirs for ours, theirs in zip(better, worse, strict=True)])
    verdict = HOLDS if apart.high < 0 else CONTRARY if apart.low > 0 else UNDECIDED
    return Judged(claim, apart, verdict)


def perplexity_ratio(name: str, found: Measured) -> Interval:
    """Return the interval of a recipe's perplexity over that of the plain model."""
    pairs = zip(found[name]["nll"], found["bf16"]["nll"], strict=True)
    return mean_interval([ours - theirs for ours, theirs in pairs]).transformed(math.exp)


def tables(found: Measured, claims: Sequence[Claim] = CLAIMS) -> list[Table]:
    """Return a table of the recipes, one of the claims, and one of what is as good as bfloat16."""
    rows = [(name, *_told(name, found)) for name in found]
    recipes = Table("", "Recipes", ("recipe", "KL to bf16 (nats)", "perplexity", "of bf16's, 95 %"), tuple(rows))
    told = [judged(claim, found) for claim in claims]
    verdicts = Table(
        "",
        "Claims",
        ("claim", "better, less worse (nats)", "95 %", "verdict"),
        tuple(
            (
                f"{it.claim.words} ({it.claim.better}, {it.claim.worse})",
                f"{it.difference.estimate:+.4f}" if it.difference else "-",
                f"{it.difference.low:+.4f} to {it.difference.high:+.4f}" if it.difference else "-",
                it.verdict,
            )
            for it in told
        ),
    )
    near = tuple(
        (name, f"{perplexity_ratio(name, found).high:.4f}", HOLDS if is_near(name, found) else CONTRARY)
        for name in NEAR
        if "nll" in found.get(name, {})
    )
    header = ("recipe", f"perplexity over bf16's, at most (must be below {NEAR_RATIO})", "as good as bf16")
    return [recipes, verdicts, Table("", "As good as bf16", header, near)]


def is_near(name: str, found: Measured) -> bool:
    """Return whether a recipe is as good as bfloat16, by the upper end of its interval."""
    return perplexity_ratio(name, found).high <= NEAR_RATIO


def _told(name: str, found: Measured) -> tuple[str, str, str]:
    mine = found[name]
    if "error" in mine:
        return f"cannot run here: {mine['error']}", "-", "-"
    ratio = perplexity_ratio(name, found)
    kl = "-"
    if name != "bf16":
        error = statistics.stdev(mine["kl"]) / math.sqrt(len(mine["kl"]))
        kl = f"{statistics.fmean(mine['kl']):.4f} ± {error:.4f}"
    return kl, f"{math.exp(statistics.fmean(mine['nll'])):.2f}", f"{ratio.low:.3f} to {ratio.high:.3f}"


def agree(found: Measured, known: Collection[str], claims: Sequence[Claim] = CLAIMS) -> list[str]:
    """Return in words what does not come out as the literature has it and is not among the ``known``."""
    told = [judged(claim, found) for claim in claims]
    odd = [f"{it.claim.words}: {it.verdict}" for it in told if it.verdict != HOLDS and it.claim.words not in known]
    near = [name for name in NEAR if "nll" in found.get(name, {}) and name not in known]
    return odd + [f"{name} is not as good as bf16" for name in near if not is_near(name, found)]
