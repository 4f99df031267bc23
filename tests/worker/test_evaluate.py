"""lm-evaluation-harness's tasks over local documents, in the worker that holds the two-layer model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.errors import WorkerError

STORIES = [
    ("Baking", "A woman pours flour into a bowl.", "she"),
    ("Rowing", "Two men sit in a boat on a lake.", "they"),
    ("Painting", "A boy holds a brush before a wall.", "he"),
]
ENDINGS = ["adds an egg and stirs.", "pulls at the oars.", "paints it blue.", "sings."]


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three HellaSwag stories, each with every of its four labels, so that any model is right in a quarter; and LAMBADA."""
    folder = tmp_path_factory.mktemp("documents")
    hellaswag = [
        {"activity_label": label, "ctx_a": context, "ctx_b": subject, "endings": ENDINGS, "label": str(right)}
        for label, context, subject in STORIES
        for right in range(4)
    ]
    lambada = [{"text": f"{context} {subject} {ending}".rstrip(".")} for (_, context, subject), ending in zip(STORIES, ENDINGS, strict=False)]
    for name, found in (("hellaswag", hellaswag), ("lambada_openai", lambada)):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(one) for one in found), encoding="utf-8")
    return folder


def evaluate(generating: Any, names: list[str], data: Path, limit: int | None = None) -> dict[str, Any]:
    found: dict[str, Any] = generating.ask("tasks", names=names, data=str(data), limit=limit, batch_size=4)
    return found


def test_tasks_are_evaluated_over_local_documents(generating, documents):
    found = evaluate(generating, ["hellaswag", "lambada_openai"], documents)
    hellaswag, lambada = found["hellaswag"], found["lambada_openai"]
    assert len({document["doc_hash"] for document in hellaswag["documents"]}) == 12
    for metric in ("acc", "acc_norm"):
        assert hellaswag["metrics"][metric] == 0.25
        by_story = [[d[metric] for d in hellaswag["documents"]][start : start + 4] for start in (0, 4, 8)]
        assert [sum(story) for story in by_story] == [1, 1, 1], "each story's choice is right under one label"
        assert hellaswag["stderr"][metric] > 0
    assert hellaswag["higher_is_better"] == {"acc": True, "acc_norm": True}
    assert len(lambada["documents"]) == 3
    assert lambada["metrics"]["perplexity"] > 1
    assert 0 <= lambada["metrics"]["acc"] <= 1


def test_limit_takes_the_first_documents(generating, documents):
    found = evaluate(generating, ["hellaswag"], documents, limit=4)["hellaswag"]
    assert [document["doc_id"] for document in found["documents"]] == [0, 1, 2, 3]
    assert found["metrics"]["acc"] == 0.25


def test_a_missing_file_is_an_error_that_names_it_and_what_there_is(generating, documents):
    with pytest.raises(WorkerError, match=r"task arc_easy: .*arc_easy\.jsonl is not there; the folder has hellaswag, lam"):
        evaluate(generating, ["arc_easy"], documents)


def test_an_unknown_task_is_an_error_that_offers_the_nearest(generating, documents):
    with pytest.raises(WorkerError, match=r"no task hellaswagg; nearest: .*'hellaswag'"):
        evaluate(generating, ["hellaswagg"], documents)
