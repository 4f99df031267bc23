"""lm-evaluation-harness's tasks over local documents, in the worker that holds the two-layer model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import WorkerError


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
    with pytest.raises(
        WorkerError, match=r"task arc_easy: .*arc_easy\.jsonl is not there; the folder has hellaswag, lam"
    ):
        evaluate(generating, ["arc_easy"], documents)


def test_an_unknown_task_is_an_error_that_offers_the_nearest(generating, documents):
    with pytest.raises(WorkerError, match=r"no task hellaswagg; nearest: .*'hellaswag'"):
        evaluate(generating, ["hellaswagg"], documents)
