"""The count of real gates: its file survives being cut off, its rules see what they should, its table counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.real_gates import __main__ as runner
from tests.real_gates import kept
from tests.real_gates.kept import Kept
from tests.real_gates.rules import RULES

SPEED = runner.ARMS["same"].metric
GATE = Kept(
    *("same", "2026-11-30T01:00:00+00:00", "two cores", 2, (1.0, 1.5), 60.0, SPEED, "pass", "equivalent", 0.05, 6),
    *(1.0, 0.98, 1.02, (10.0, 10.1, 9.9, 10.0, 10.2, 9.8), (10.1, 10.0, 9.9, 9.9, 10.1, 10.0)),
)


def noisy(slower: float, noise: float, count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(count)
    old, new = np.exp(rng.normal(0, noise, (2, count)))
    return old, new * (1 + slower)


@pytest.mark.parametrize("count", [4, 12])
def test_every_rule_sees_a_large_change_and_none_sees_a_thing_twice_as_fast(count: int) -> None:
    old, new = noisy(0.5, 0.005, count)
    assert {name for name, rule in RULES.items() if rule(old, new)} == set(RULES)
    assert not [name for name, rule in RULES.items() if rule(new, old)]


def test_rules_differ_where_they_are_known_to() -> None:
    old, new = noisy(0.05, 0.005)
    said = {name: rule(old, new) for name, rule in RULES.items()}
    assert said["Mozilla"]
    assert said["Welch's t, 5 %"]
    assert not said["asv"], "asv asks for a factor of 1.1"
    # What a block has in common hides a difference from those that do not pair.
    shared = np.exp(np.random.default_rng(1).normal(0, 0.2, 12))
    assert RULES["paired t, 5 %"](old * shared, new * shared)
    assert not RULES["Welch's t, 5 %"](old * shared, new * shared)


def test_a_file_that_was_cut_off_in_a_line_loses_that_line_alone(tmp_path: Path) -> None:
    file = tmp_path / "gates.jsonl"
    kept.append(file, GATE)
    with file.open("a", encoding="utf-8") as out:
        out.write(GATE.line()[:40])
    assert kept.read(file) == [GATE]
    kept.append(file, replace(GATE, arm="slower-2"))
    assert [it.arm for it in kept.read(file)] == ["same", "slower-2"]


def test_what_is_measured_next_has_the_smallest_part_of_its_gates() -> None:
    order = []
    gates: list[Kept] = []
    while (arm := runner.wanted(gates)) is not None:
        order.append(arm)
        gates.append(replace(GATE, arm=arm))
    assert {arm: order.count(arm) for arm in runner.ARMS} == {name: arm.gates for name, arm in runner.ARMS.items()}
    assert set(order[:12]) == set(runner.ARMS), "all of them are in the first gates"


def test_the_table_counts_verdicts_and_holds_every_rule_beside(tmp_path: Path) -> None:
    worse = replace(GATE, arm="slower-10", verdict="regressed", ratio=0.9, new=tuple(it / 1.1 for it in GATE.new))
    file = tmp_path / "gates.jsonl"
    for gate in (GATE, GATE, worse, replace(GATE, verdict="inconclusive", load=(1.0, 7.0))):
        kept.append(file, gate)
    text = runner.report(file)
    assert "2 of 3 (9% to 99%)" in text
    for name in RULES:
        assert name in text
    assert "above that" in text
