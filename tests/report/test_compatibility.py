"""What gates found to work, by version: each recipe's worst stage, whose checkpoints are read, and why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import __main__
from harness.base.errors import HarnessError
from harness.judge import gatefile
from harness.judge.gatefile import GateFile, State, Works
from harness.judge.rules import LOAD, LOGITS, OLD_CHECKPOINT, QUANTIZE
from harness.judge.series import Series
from harness.judge.verdict import event
from harness.records.place import Place
from harness.report import compatibility


def at(recipe: str, server: str = "transformers", model: str = "tiny") -> Place:
    return Place(model=model, recipe=recipe, hardware="cpu", server=server)


def gate(old: str, new: str, rows: list[Works], **more: Any) -> GateFile:
    given: dict[str, Any] = {
        "finished": True,
        "package": "torchao",
        "old": f"torchao=={old}",
        "new": f"torchao=={new}",
        "hardware": "cpu",
        "created": "2026-01-01T00:00:00+00:00",
        "seconds": 1.0,
        "verdicts": [],
        "compatibility": rows,
        "exit_status": 0,
        **more,
    }
    return GateFile(**given)


def test_each_recipe_under_each_version_and_whose_checkpoints_are_read() -> None:
    differs = event(Series(at("int4wo").at(LOGITS)), "regressed", "checkpoint-differs", "KL 0.045 nats")
    first = gate(
        "0.9.0",
        "0.18.0",
        [
            Works(at("int8wo", ""), QUANTIZE, "fails", "works", "old: no such tensor"),
            Works(at("int8wo"), LOAD, "not tried", "works"),
            Works(at("int4wo", ""), QUANTIZE, "works", "works"),
            Works(at("int4wo"), LOAD, "works", "works"),
            Works(at("int4wo"), OLD_CHECKPOINT, "works", "fails", "new: unknown class"),
            Works(at("opaque"), LOAD, "works", "fails", "new: has no kernel"),
        ],
    )
    second = gate(
        "0.17.0",
        "0.18.0",
        [
            Works(at("int4wo", ""), QUANTIZE, "works", "works"),
            Works(at("int4wo"), LOAD, "works", "works"),
            Works(at("int4wo"), OLD_CHECKPOINT, "works", "works"),
        ],
        verdicts=[differs],
        exit_status=1,
    )
    recipes, checkpoints, why = compatibility.tables([second, first])
    assert recipes.header == ("recipe", "0.9.0", "0.17.0", "0.18.0"), "versions are in the order of releases"
    assert {row[0]: row[1:] for row in recipes.rows} == {
        "int8wo": ("fails: quantize and save", "-", "works"),
        "int4wo": ("works", "works", "works"),
        "opaque": ("works, quantized at load", "-", "fails: load and run (transformers)"),
    }
    assert checkpoints.header == ("recipe", "0.9.0 read by 0.18.0", "0.17.0 read by 0.18.0")
    assert checkpoints.rows == (("int4wo", "fails", "reads, predicts otherwise"),)
    assert set(why.rows) == {
        ("int8wo", "0.9.0", QUANTIZE, "no such tensor"),
        ("int4wo", "0.9.0 read by 0.18.0", OLD_CHECKPOINT, "unknown class"),
        ("int4wo", "0.17.0 read by 0.18.0", OLD_CHECKPOINT, "KL 0.045 nats"),
        ("opaque", "0.18.0", LOAD, "has no kernel"),
    }


def test_of_several_gates_of_one_pair_the_latest_tells_what_it_tried() -> None:
    first = gate("0.17.0", "0.18.0", [Works(at("a", ""), QUANTIZE, "fails", "works", "old: ours, since mended")])
    tried = [Works(at("a", ""), QUANTIZE, "works", "works"), Works(at("a"), LOAD, "works", "not tried")]
    later = gate("0.17.0", "0.18.0", tried, created="2026-01-02T00:00:00+00:00")
    for gates in ([first, later], [later, first]):
        recipes, _, why = compatibility.tables(gates)
        assert recipes.rows == (("a", "works", "works"),)
        assert why.rows == ()


@given(st.lists(st.sampled_from(["works", "fails", "not tried"]), min_size=1, max_size=5))
def test_a_recipe_works_where_no_stage_fails_and_one_was_tried(states: list[State]) -> None:
    rows = [Works(at("int8wo", f"server{number}"), LOAD, state, "works") for number, state in enumerate(states)]
    (recipes, *_) = compatibility.tables([gate("0.17.0", "0.18.0", rows)])
    told = recipes.rows[0][1]
    assert told.startswith("fails") == ("fails" in states)
    assert told.startswith("works") == ("fails" not in states and "works" in states)
    assert (told == "-") == (set(states) == {"not tried"})


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"package": "vllm"}, "several packages"),
        ({"hardware": "h100"}, "several hardware"),
        ({"old": "before.lock"}, "not of one package's version"),
        ({"old": "torchao==0.15.0 vllm==0.26.0"}, "not of one package's version"),
    ],
)
def test_gates_that_make_no_one_table_are_refused(more: dict[str, str], words: str) -> None:
    rows = [Works(at("int8wo"), LOAD, "works", "works")]
    other = gate("0.16.0", "0.18.0", rows).model_copy(update=more)
    with pytest.raises(HarnessError, match=words):
        compatibility.tables([gate("0.17.0", "0.18.0", rows), other])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "gates" / "one"
    folder.mkdir(parents=True)
    row = Works(at("int8wo", ""), QUANTIZE, "fails", "works", f"old: {'word ' * 90}")
    made = gate("0.17.0", "0.18.0", [row], exit_status=2)
    (folder / "gate.json").write_text(made.text())
    assert gatefile.load(folder).compatibility == made.compatibility
    assert __main__.main(["compatibility", "one", "--results", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "| int8wo | fails: quantize and save | works  |" in told
    assert "- gates: one: torchao==0.17.0 to torchao==0.18.0 on cpu" in told
    assert max(map(len, told.splitlines())) <= 100
    assert __main__.main(["compatibility", str(folder), "-o", str(tmp_path / "it.md")]) == 0
    assert "fails: quantize and save" in (tmp_path / "it.md").read_text()
    assert __main__.main(["compatibility", "other", "--results", str(tmp_path)]) == 2
    assert "no gate other" in capsys.readouterr().err
