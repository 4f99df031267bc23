"""Claims are judged by paired differences; the committed order is the literature's; ``-m slow`` measures it anew."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from harness.matrix.plan import Matrix
from tests.literature.__main__ import in_runs, main, table
from tests.literature.order import CONTRARY, HOLDS, UNDECIDED, UNMEASURED, agree, is_near, judged, tables
from tests.literature.recipes import CLAIMS, EXPLAINED, IN_RUNS, NEAR, RECIPES, Claim

CLAIM = Claim("finer is better", "fine", "coarse")


def test_claims_are_about_recipes_that_are_measured(suites_matrix: Matrix) -> None:
    assert {name for claim in CLAIMS for name in (claim.better, claim.worse)} <= set(RECIPES)
    assert {name for claim in IN_RUNS for name in (claim.better, claim.worse)} <= set(suites_matrix.recipes)


def test_the_committed_order_is_the_literatures_but_for_what_is_explained(repository: Path) -> None:
    found, runs = json.loads((repository / "results" / "literature.json").read_text()), in_runs()
    assert agree(found, EXPLAINED) == []
    assert agree(runs, EXPLAINED, IN_RUNS) == []
    held = [
        it.words
        for of, claims in ((found, CLAIMS), (runs, IN_RUNS))
        for it in claims
        if judged(it, of).verdict == HOLDS
    ]
    assert not set(held) & set(EXPLAINED), "what comes out needs no explanation"
    assert not any(is_near(name, of) for of in (found, runs) for name in NEAR if name in EXPLAINED)
    assert (repository / "results" / "literature.md").read_text() == table(found, runs)


@pytest.mark.parametrize(("shift", "verdict"), [(-0.1, HOLDS), (0.1, CONTRARY), (0.0, UNDECIDED)])
def test_a_claim_is_judged_by_paired_differences(shift: float, verdict: str) -> None:
    """Windows differ from each other by far more than recipes do."""
    chance = random.Random(7)
    coarse = [chance.uniform(0.1, 3) for _ in range(24)]
    fine = [value + shift + chance.gauss(0, 0.05) for value in coarse]
    found = {
        "bf16": {"nll": coarse, "kl": coarse},
        "fine": {"nll": fine, "kl": fine},
        "coarse": {"nll": coarse, "kl": coarse},
    }
    assert judged(CLAIM, found).verdict == verdict
    assert judged(CLAIM, {**found, "fine": {"error": "needs a GPU"}}).verdict == UNMEASURED
    assert "cannot run here: needs a GPU" in str(tables({**found, "fine": {"error": "needs a GPU"}})[0].rows)


@pytest.mark.slow
def test_the_order_comes_out_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine, over as many windows as were committed."""
    output = tmp_path / "literature.json"
    monkeypatch.setattr("sys.argv", ["literature", "-o", str(output)])
    assert main() == 0
    assert agree(json.loads(output.read_text()), tuple(EXPLAINED)) == []
