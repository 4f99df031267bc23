"""What others named: a terminal and a page are told its letters, never its controls."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import __main__
from harness.base.text import visible
from harness.records.published import Documented
from harness.records.run import Run
from harness.report import html
from tests.faults.small_session import DEVICE, measurement

HOSTILE = "a\u202egnp\x1b]8;;x\x07\x9b31m\u2066z\x08"


@given(st.text())
def test_no_control_is_left_and_all_else_stays(text: str) -> None:
    found = visible(text)
    assert not set(found) & set("\x1b\x07\x08\x9b\r\u202e\u2066\u200b\u00ad\u3164\U000e0041")
    assert len(found) == len(text)
    assert found == visible(found)
    assert all(now in (was, "\ufffd") for now, was in zip(found, text, strict=True))
    assert visible("\tlatency, 名前 \U0001f600, e\u0301\n") == "\tlatency, 名前 \U0001f600, e\u0301\n"


def test_what_joins_letters_of_other_scripts_is_shown_but_where_it_can_only_hide() -> None:
    for kept in (
        "\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\U0001f469\u200d\U0001f4bb",
        "\u2764\ufe0f",
    ):
        assert visible(kept) == kept
    assert visible("Lla\u200d\u200cma \u2764\ufe0f") == "Lla\ufffd\ufffdma \u2764\ufe0f"


def _runs(folder: Path, **more: object) -> list[Run]:
    made = [Run(folder / "runs" / name) for name in ("one", "two", "three")]
    for run in made:
        for value in (1.0, 1.01):
            run.append(measurement(0, value).model_copy(update=more))
    return made


def test_a_baseline_and_a_page_show_a_hostile_name_harmlessly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = _runs(tmp_path, device=DEVICE.model_copy(update={"name": HOSTILE}))
    assert __main__.main(["baseline", "one", "two", "three", "--results", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "gnp" in told
    assert visible(told) == told
    page, _ = html.render(runs[:1], [], Documented())
    assert "gnp" in page
    assert visible(page) == page


def test_hardware_that_is_a_path_makes_no_baseline_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = f"../{HOSTILE}"
    _runs(tmp_path, cell=measurement(0, 1.0).cell.model_copy(update={"hardware": hostile}))
    assert __main__.main(["baseline", "one", "two", "three", "--results", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "is no hardware that a file can be named after" in " ".join(told.split())
    assert visible(told) == told
    assert not [*tmp_path.rglob("*.json")]
