"""Regressions that were accepted: kept in a file, told with their reason, and no more than was accepted."""

from __future__ import annotations

import argparse
import datetime
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.commands import gate as gate_command
from harness.judge import accepted
from harness.judge.accepted import Acceptances, AcceptError
from harness.judge.findings import outcome
from harness.judge.gatefile import Options
from harness.judge.since import dated, search, version
from harness.report import gate_report
from tests.judge.test_findings import failed, gate, slower

TODAY = datetime.date(2026, 11, 29)
NONE = Acceptances.model_validate({})


def after(*verdicts: Any, metric: str = "latency", reason: str = "waits for its fix", **more: Any) -> Acceptances:
    found = NONE.plus(gate(*verdicts, **more), metric, reason, TODAY)
    assert found
    return found


def test_what_was_accepted_fails_no_gate_and_is_told_with_its_reason(tmp_path: Path) -> None:
    after(slower()).write(tmp_path)
    again = Acceptances.load(tmp_path).applied(gate(slower(), new="torchao==0.18.1"))
    assert again.exit_status == 0
    (verdict,) = again.verdicts
    assert (verdict.verdict, verdict.accepted, outcome(verdict)) == ("regressed", "waits for its fix", "accepted")
    assert again.remarks == []
    text = gate_report.brief(again, "here", 100)
    assert "pass; 1 finding: 1 accepted" in text
    assert "accepted: waits for its fix" in text


@pytest.mark.parametrize(
    ("now", "more", "remark"),
    [
        (slower(factor=1.6), {}, "1 figure is worse than was accepted"),
        (slower("int8dq"), {}, "this gate did not measure it"),
        (slower(factor=1.0), {}, "it is not worse now"),
        (slower(), {"old": "torchao==0.16.0"}, "it was accepted against torchao==0.17.0"),
    ],
)
def test_what_matches_nothing_is_said_and_hides_nothing(now: Any, more: dict[str, Any], remark: str) -> None:
    again = after(slower()).applied(gate(now, **more))
    assert again.exit_status == (1 if now.verdict == "regressed" else 0)
    (said,) = again.remarks
    assert remark in said
    assert "latency (waits for its fix)" in said
    flat = " ".join(gate_report.brief(again, "here", 100).split())
    assert said in flat


def test_an_acceptance_of_other_packages_and_hardware_is_not_this_gates(tmp_path: Path) -> None:
    for more in ({"package": "vllm"}, {"hardware": "h100"}):
        again = after(slower()).applied(gate(slower(), **more))
        assert (again.exit_status, again.remarks) == (1, [])


@given(then=st.floats(1.1, 3.0), now=st.floats(1.1, 3.0))
def test_no_more_is_accepted_than_was(then: float, now: float) -> None:
    first, second = (replace(slower(), ratio=ratio, verdict="regressed") for ratio in (then, now))
    again = after(first).applied(gate(second))
    assert (again.exit_status == 0) == (now <= then * (1 + second.margin))


def test_accepting_again_replaces_what_was_accepted_of_the_same() -> None:
    both = after(slower(), slower("int8dq"), reason="first")
    then = both.plus(gate(slower(factor=1.6)), "latency", "second", TODAY)
    assert then
    assert [(it.reason, [figure.place.recipe for figure in it.figures]) for it in then.accepted] == [
        ("first", ["int8dq"]),
        ("second", ["int8wo"]),
    ]
    assert then.applied(gate(slower(factor=1.6), slower("int8dq"))).exit_status == 0


def test_something_that_stopped_working_can_be_accepted() -> None:
    once = after(failed("int8wo"), metric="works: serve", reason="not ours")
    assert once.applied(gate(failed("int8wo"))).exit_status == 0
    assert once.applied(gate(failed("8da4w"))).exit_status == 1


def test_what_has_not_regressed_is_not_accepted() -> None:
    assert NONE.plus(gate(slower(factor=1.0)), "latency", "why", TODAY) is None


@pytest.mark.parametrize(
    ("text", "metric", "reason"),
    [
        ("latency:the new kernel", "latency", "the new kernel"),
        ("works: serve: known: upstream", "works: serve", "known: upstream"),
        ("old checkpoint's logits:read anew", "old checkpoint's logits", "read anew"),
    ],
)
def test_an_acceptance_is_a_metric_and_a_reason(text: str, metric: str, reason: str) -> None:
    assert accepted.parse([text]) == [(metric, reason)]


@pytest.mark.parametrize(
    ("text", "words"), [("latencies:x", "did you mean latency"), ("latency", "say why"), ("latency: ", "say why")]
)
def test_a_metric_that_is_none_and_a_reason_that_is_none_are_refused(text: str, words: str) -> None:
    with pytest.raises(AcceptError, match=words):
        accepted.parse([text])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reason": " "}, "accepted.0.reason"),
        ({"metric": "latencies"}, "accepted.0.metric: 'latencies' is judged by no gate; did you mean latency"),
        ({"figures": []}, "accepted.0.figures"),
        ({"accepted": "yesterday"}, "accepted.0.accepted"),
        ({"why": "x"}, "accepted.0.why"),
        ({"old": None}, "accepted.0.old"),
    ],
)
def test_a_file_that_does_not_hold_is_named_with_its_key(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = after(slower()).write(tmp_path)
    data = json.loads(path.read_text(encoding="utf-8"))
    data["accepted"][0] |= change
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(AcceptError) as raised:
        Acceptances.load(tmp_path)
    assert str(raised.value).startswith(f"{path}: {words}")


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"schema": 2}', '{"accepted": [{"figures": [{"worse": NaN}]}]}', "\0"]
)
def test_no_file_is_a_traceback(tmp_path: Path, text: str) -> None:
    Acceptances.path(tmp_path).write_text(text, encoding="utf-8")
    with pytest.raises(AcceptError, match=str(Acceptances.path(tmp_path))):
        Acceptances.load(tmp_path)


def test_without_a_file_nothing_is_accepted(tmp_path: Path) -> None:
    assert Acceptances.load(tmp_path).accepted == []


def test_the_version_that_it_is_worse_since_is_that_of_earlier_gates() -> None:
    earlier = [
        gate(slower(factor=1.0), new="torchao==0.17.1"),
        gate(slower(), new="torchao==0.17.3"),
        gate(slower(), new="torchao==0.17.2", hardware="h100"),
        gate(slower("int8dq"), new="torchao==0.17.2"),
    ]
    now = dated(gate(slower()), earlier)
    assert now.verdicts[0].since == "0.17.3 at the latest; 0.17.1 was still as before"
    assert dated(gate(slower()), []).verdicts[0].since == "0.18.0 at the latest; held against 0.17.0"
    wheel = dated(gate(slower(), new="dist/torchao-0.19-py3-none-any.whl"), earlier).verdicts[0]
    assert wheel.since == "dist/torchao-0.19-py3-none-any.whl; torchao==0.17.0 was better"


def test_the_release_is_searched_for_where_both_versions_are_releases() -> None:
    assert search(slower(), gate()) == (
        "python -m harness bisect torchao 0.17.0..0.18.0 -m cpu --metric latency --recipe int8wo"
    )
    assert search(slower(), gate(new="a.whl")) == ""
    assert search(slower(), gate(new="torchao==0.18.0+ours")) == "", "no release of that name is to be had"
    ours = dated(gate(slower(), new="torchao==0.18.0+ours"), []).verdicts[0]
    assert ours.since == "torchao==0.18.0+ours; torchao==0.17.0 was better"


def test_a_search_measures_the_model_and_in_the_places_of_its_gate() -> None:
    options = Options("torchao==0.17.0", "torchao==0.18.0", "cpu", models=("./my model",), servers=("transformers",))
    asked = options.command("--results", "elsewhere", "--junit", "j.xml")
    told = search(slower(), gate().model_copy(update={"options": options, "command": asked}))
    assert told.endswith("--recipe int8wo --model './my model' --server transformers --results elsewhere")
    alone = search(slower(), gate().model_copy(update={"options": options}))
    assert alone.endswith("--recipe int8wo --model './my model' --server transformers")
    assert version("torchao>=0.17") is None


def test_an_interrupted_gate_knows_what_is_accepted_and_writes_what_its_command_asks_for(tmp_path: Path) -> None:
    asked = ["torchao==0.17.0", "torchao==0.18.0", "-m", "cpu", "--results", str(tmp_path), "--junit"]
    parser = argparse.ArgumentParser()
    gate_command.add_arguments(parser)
    arguments = parser.parse_args([*asked, str(tmp_path / "j.xml")])
    so_far = gate(slower(), failed("8da4w", "new: no")).model_copy(update={"finished": False})
    words = gate_command.told(
        arguments, Options(*asked[:2], "cpu"), after(slower()), 100, so_far, tmp_path / "gates" / "a"
    )
    assert "accepted: waits for its fix" in words
    assert f"gate: {tmp_path}/gates/a" in " ".join(words.split())
    assert f"--results {tmp_path}" in " ".join(words.replace("\\", " ").split())
    suite = (tmp_path / "j.xml").read_text(encoding="utf-8")
    assert suite.count("<failure") == 1, "what is accepted fails nothing"
