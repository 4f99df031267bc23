"""What commands keep beside records: edited it decides nothing that the metric table or another file decides."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import HarnessError
from tests.faults import kept_files

OTHER_GATE = f"{kept_files.GATE[:-1]}4"


def _edited(folder: Path, of: str, change: Callable[[Any], object]) -> Callable[[], Any]:
    path, read, _ = kept_files.KEPT[of](folder)
    assert read(), "as it was kept it is read"
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")
    return read


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"direction": "higher"}, "direction 'higher' of latency must be 'lower'"),
        ({"unit": "h"}, "unit 'h' of latency must be 's'"),
        ({"metric": "speed"}, "speed is not measured any more"),
        ({"low": 0.0}, "above zero"),
        ({"high": None}, "two bounds or none"),
        ({"low": 1.3}, "its ratio 1.1"),
        ({"ratio": 0.9}, "its ratio 0.9"),
        ({"beside": 1e308}, "larger than anything that is measured"),
    ],
)
def test_a_check_of_neighbours_is_held_against_the_metric_table_and_itself(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    read = _edited(tmp_path, "a check of neighbours", lambda data: data["pairs"][0].update(change))
    with pytest.raises(HarnessError, match=r"h200\.json: no check of neighbours \(latency: ") as raised:
        read()
    assert words in str(raised.value)


def test_what_no_command_can_have_taken_is_refused(tmp_path: Path) -> None:
    read = _edited(tmp_path, "what commands by hand took", lambda data: data["ran"][0].update(seconds=1e300))
    with pytest.raises(HarnessError, match=r"by_hand\.json: .*larger than anything that is measured"):
        read()


def test_a_gate_of_another_question_answers_none(tmp_path: Path) -> None:
    read = _edited(tmp_path, "an unfinished search", lambda data: data["gates"].update({"0.18.0": OTHER_GATE}))
    assert read() is None


@pytest.mark.parametrize(
    ("gates", "words"),
    [
        ([OTHER_GATE], f"gate {OTHER_GATE} is none of its"),
        ([kept_files.GATE, kept_files.GATE], f"gate {kept_files.GATE} is none of its"),
        (["none"], r"no unfinished calibration can be read at .*cpu\.unfinished\.json"),
    ],
)
def test_a_calibration_goes_on_with_its_own_gates_alone(tmp_path: Path, gates: list[str], words: str) -> None:
    read = _edited(tmp_path, "an unfinished calibration", lambda data: data.update(gates=gates))
    with pytest.raises(HarnessError, match=words):
        read()
