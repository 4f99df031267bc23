"""How tasks are asked: by their tables in matrix.toml, and by the command line beyond that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.base.errors import MatrixError
from harness.matrix.load import load
from harness.matrix.schema import TaskOptions
from tests.matrix.test_matrix import TEXT, written

TABLE = "[tasks.gsm8k]\nnum_fewshot = 8\ngeneration = { max_gen_toks = 64 }\n\n[measurements.cpu]"


def test_the_command_line_stands_over_a_tasks_table(tmp_path: Path) -> None:
    matrix = load(written(tmp_path, TEXT.replace("[measurements.cpu]", TABLE)))
    assert matrix.task_options("gsm8k").asked == {"num_fewshot": 8, "generation": {"max_gen_toks": 64}}
    assert matrix.task_options("hellaswag").asked == {}
    given = replace(matrix, asked=TaskOptions(num_fewshot=0, chat_template=True))
    assert given.task_options("gsm8k") == TaskOptions(
        num_fewshot=0, chat_template=True, generation={"max_gen_toks": 64}
    )
    assert given.task_options("hellaswag").num_fewshot == 0


@pytest.mark.parametrize(
    ("line", "words"), [("num_fewshots = 8", "did you mean num_fewshot"), ("num_fewshot = -1", "greater than or equal")]
)
def test_a_mistake_in_a_tasks_table_is_named(tmp_path: Path, line: str, words: str) -> None:
    text = TEXT.replace("[measurements.cpu]", f"[tasks.gsm8k]\n{line}\n\n[measurements.cpu]")
    with pytest.raises(MatrixError, match=rf"tasks\.gsm8k\.{line.split()[0]}: .*{words}"):
        load(written(tmp_path, text))


def test_code_of_a_model_is_trusted_only_where_the_command_line_says_so(tmp_path: Path) -> None:
    """A model of the matrix says so itself."""
    matrix = load(written(tmp_path, TEXT))
    trusting = replace(matrix, trust_remote_code=True)
    for given in (str(tmp_path), "owner/other"):
        assert not matrix.model(given).trust_remote_code
        assert trusting.model(given).trust_remote_code
    assert not trusting.model("small").trust_remote_code
