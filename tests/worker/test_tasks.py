"""lm-evaluation-harness as it is, over local documents: splits of every name, groups, examples, chats and what "
"lacks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import WorkerError
from harness.contract.weights import Unusable

pytestmark = pytest.mark.models


def sums(first: int, count: int) -> list[dict[str, Any]]:
    """Return problems in gsm8k's schema, each with numbers of its own."""
    numbers = range(first, first + count)
    return [{"question": f"What is {n} and {n}?", "answer": f"{n}+{n}={2 * n}\n#### {2 * n}"} for n in numbers]


def choices(subject: str, count: int) -> list[dict[str, Any]]:
    """Return questions in mmlu's schema; the right answer is each choice in turn."""
    asked = [f"{subject} {number}: which letter is it?" for number in range(count)]
    return [
        {"question": text, "subject": subject, "choices": ["a", "b", "c", "d"], "answer": number % 4}
        for number, text in enumerate(asked)
    ]


def pairs(count: int) -> list[dict[str, Any]]:
    texts = [f"Fox {number} is quick." for number in range(count)]
    return [
        {
            "premise": text,
            "hypothesis": "It runs.",
            "label": number % 3,
            "idx": number,
            "uid": str(number),
            "reason": "",
        }
        for number, text in enumerate(texts)
    ]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of tasks whose splits have other names than most, of a group, and of tasks that show examples."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, documents in {
        "mnli": pairs(6),
        "anli_r1.test_r1": pairs(3),
        "mmlu_anatomy": choices("anatomy", 4),
        "mmlu_anatomy.dev": choices("anatomy (solved)", 5),
        "mmlu_astronomy": choices("astronomy", 8),
        "gsm8k.test": sums(0, 4),
        "gsm8k.train": sums(100, 6),
        "gsm8k_platinum": sums(0, 7),
        "ifeval": [{"key": 1, "prompt": "Say hi.", "instruction_id_list": [], "kwargs": []}],
        "squadv2": [{"id": "1"}],
    }.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, documents)), encoding="utf-8")
    return folder


def ask(generating: Any, task: str, data: Path, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = generating.ask(
        "tasks", names=[task], data=str(data), limit=None, batch_size=8, options=options
    )
    return found


@pytest.mark.parametrize(("task", "documents"), [("mnli", 6), ("anli_r1", 3), ("mmlu_anatomy", 4)])
def test_splits_have_the_names_that_the_task_gives_them(generating: Any, data: Path, task: str, documents: int) -> None:
    found = ask(generating, task, data)[task]
    assert len(found["documents"]) == documents
    assert 0 <= found["metrics"]["acc"] <= 1
    assert found["num_fewshot"] == 0


def test_a_group_is_evaluated_over_those_of_its_tasks_that_have_documents(generating: Any, data: Path) -> None:
    found = ask(generating, "mmlu", data)
    assert list(found) == ["mmlu"]
    group = found["mmlu"]
    assert {name: round(4 * it["acc"]) for name, it in group["tasks"].items()}.keys() == {
        "mmlu_anatomy",
        "mmlu_astronomy",
    }
    assert [sum(one["task"] == name for one in group["documents"]) for name in group["tasks"]] == [4, 8]
    by_size = sum(count * group["tasks"][name]["acc"] for name, count in (("mmlu_anatomy", 4), ("mmlu_astronomy", 8)))
    assert group["metrics"]["acc"] == pytest.approx(by_size / 12)


def test_a_groups_documents_may_be_in_one_file(generating: Any, tmp_path: Path) -> None:
    documents = [*choices("anatomy", 2), *choices("astronomy", 3)]
    (tmp_path / "mmlu.jsonl").write_text("\n".join(map(json.dumps, documents)), encoding="utf-8")
    found = ask(generating, "mmlu", tmp_path)["mmlu"]
    assert [one["task"] for one in found["documents"]] == ["mmlu_anatomy"] * 2 + ["mmlu_astronomy"] * 3


def test_examples_come_from_their_own_split(generating: Any, data: Path) -> None:
    found = ask(generating, "gsm8k", data, generation={"max_gen_toks": 4})["gsm8k"]
    assert found["num_fewshot"] == 5
    assert found["prompt"].count("Question: ") == 6
    assert found["prompt"].count("What is 0 and 0?") == 1, "the question itself, unanswered"
    solved = found["prompt"].split("Question: ")[1:-1]
    assert all("What is 10" in one and "#### 2" in one for one in solved)


def test_examples_are_never_the_documents_that_are_asked(generating: Any, data: Path, tmp_path: Path) -> None:
    (tmp_path / "gsm8k.jsonl").write_text((data / "gsm8k.test.jsonl").read_text(), encoding="utf-8")
    with pytest.raises(
        WorkerError, match=r"gsm8k shows 5 solved examples of its split train: put .*gsm8k\.train\.jsonl"
    ):
        ask(generating, "gsm8k", tmp_path)
    found = ask(generating, "gsm8k", tmp_path, num_fewshot=0, generation={"max_gen_toks": 4})["gsm8k"]
    assert (found["num_fewshot"], found["prompt"].count("Question: ")) == (0, 1)


def test_a_task_that_takes_examples_from_what_it_asks_leaves_out_the_question(generating: Any, data: Path) -> None:
    """Its seven documents are six examples at most for each, were five not enough."""
    found = ask(generating, "gsm8k_platinum", data, num_fewshot=6, generation={"max_gen_toks": 4})["gsm8k_platinum"]
    assert found["prompt"].count("Question: ") == 7
    assert found["prompt"].count("What is 0 and 0?") == 1


def test_a_chat_template_and_a_system_instruction_are_applied(generating: Any, data: Path) -> None:
    options = {"chat_template": True, "system_instruction": "Be brief.", "generation": {"max_gen_toks": 4}}
    prompt = ask(generating, "gsm8k", data, num_fewshot=1, **options)["gsm8k"]["prompt"]
    assert prompt.startswith("<|im_start|>system\nBe brief.")
    assert prompt.count("<|im_start|>user") == 2
    assert prompt.endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (
            "ifeval",
            r"task ifeval needs the package langdetect, which is not installed: pip install 'lm-eval\[ifeval\]'",
        ),
        ("squadv2", r"task squadv2 is code that fetches its own documents"),
        ("blimp", r"task blimp stands for 67 tasks .*has documents of none"),
        ("arc_easy", r"task arc_easy: .*arc_easy\.jsonl is not there; the folder has anli_r1\.test_r1, gsm8k\.test"),
    ],
)
def test_what_stops_a_task_is_said_with_what_to_do(generating: Any, data: Path, task: str, words: str) -> None:
    with pytest.raises(WorkerError, match=words) as caught:
        ask(generating, task, data)
    assert caught.value.kind == "refused"


def test_a_metric_that_is_a_program_of_the_hub_is_named() -> None:
    """As lm-evaluation-harness loads that of humaneval."""
    from harness.worker import tasks

    words = "Couldn't find a module script at /a/code_eval/code_eval.py. Module 'code_eval' doesn't exist on the Hub"
    with (
        pytest.raises(Unusable, match=r"task humaneval computes its metric by a program of the hub \(code_eval\)"),
        tasks._explained("humaneval", None),
    ):
        raise FileNotFoundError(words)
