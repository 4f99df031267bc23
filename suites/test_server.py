"""The OpenAI-compatible server: it answers a chat, carries load, and solves tasks as it should."""

import pytest

pytestmark = pytest.mark.stage("server")


def test_server(cell, measure, judge):
    """The server starts."""
    judge(cell, measure.server(cell))


@pytest.mark.usefixtures("chats")
def test_chat(cell, measure):
    """The tutorial's chat completion is answered, counted and finished."""
    answer = measure.chat(cell)
    choice = answer["choices"][0]
    assert choice["message"]["content"].strip()
    assert choice["finish_reason"] in ("stop", "length")
    usage = answer["usage"]
    assert usage["prompt_tokens"] > 0
    assert usage["completion_tokens"] > 0
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_serving(cell, num_prompts, measure, judge):
    """ShareGPT prompts sent at once are all answered, as fast as they should be."""
    judge(cell, measure.serving(cell, num_prompts).values())


@pytest.mark.usefixtures("pretrained")
def test_served_task(cell, task, measure, judge):
    """A task of lm-evaluation-harness is solved through the server as well as it should be."""
    judge(cell, measure.task(cell, task).values())
