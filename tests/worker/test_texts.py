"""Texts and chats as token ids: every text begins as its tokenizer begins it, and no chat with two BOS."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from harness.contract.weights import Unusable
from harness.worker import texts

SPECIAL = ["<pad>", "<s>", "</s>", "[gMASK]"]
LETTERS = [chr(code) for code in range(32, 127)]
ROWS = len(SPECIAL) + len(LETTERS)
MESSAGES = [{"role": "system", "content": ""}, {"role": "user", "content": "Hey, are you conscious?"}]
TURNS = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
# What a tokenizer puts before a text, and after it.
FRAMES = {"none": ([], []), "bos": (["<s>"], []), "two": (["[gMASK]", "<s>"], []), "both": (["<s>"], ["</s>"])}
TEMPLATES = {"none": None, "plain": TURNS, "bos": "{{ bos_token }}" + TURNS}


def tokenizer(frame: str, template: str = "none") -> Any:
    """Return a tokenizer of single ASCII letters."""
    from transformers import PreTrainedTokenizerFast

    before, after = FRAMES[frame]
    found = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(SPECIAL + LETTERS)}, unk_token="?"))
    found.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    found.add_special_tokens(SPECIAL)
    if before or after:
        found.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            special_tokens=[(name, SPECIAL.index(name)) for name in {*before, *after}],
        )
    made = PreTrainedTokenizerFast(tokenizer_object=found, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    made.chat_template = TEMPLATES[template]
    return made


@pytest.mark.parametrize("frame", FRAMES)
def test_what_a_tokenizer_begins_a_text_with(frame: str) -> None:
    assert texts.begin(tokenizer(frame)) == [SPECIAL.index(name) for name in FRAMES[frame][0]]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("frame", FRAMES)
def test_a_chat_has_the_bos_that_its_tokenizer_adds_once(frame: str, template: str) -> None:
    words = tokenizer(frame, template)
    ids = texts.chat(words, MESSAGES)
    assert ids.count(words.bos_token_id) == ("<s>" in FRAMES[frame][0] or template == "bos")
    said = words(MESSAGES[1]["content"], add_special_tokens=False)["input_ids"]
    assert any(ids[start : start + len(said)] == said for start in range(len(ids)))


@given(
    st.sampled_from(sorted(FRAMES)), st.text(LETTERS, min_size=12, max_size=40), st.integers(1, 4), st.integers(1, 3)
)
def test_windows_are_the_text_in_order_each_begun_as_a_text(
    tmp_path_factory: pytest.TempPathFactory, frame: str, text: str, count: int, tokens: int
) -> None:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(text, encoding="utf-8")
    words = tokenizer(frame)
    found = texts.windows(words, file, count, tokens)
    begun = texts.begin(words)
    assert found.given == len(begun)
    assert [len(window) for window in found.ids] == [len(begun) + tokens] * count
    assert all(window[: len(begun)] == begun for window in found.ids)
    joined = [index for window in found.ids for index in window[len(begun) :]]
    assert joined == words(text, add_special_tokens=False)["input_ids"][: count * tokens]


def test_a_tokenizer_fits_a_model_with_as_many_rows_or_more() -> None:
    texts.check_fits(tokenizer("bos"), ROWS)
    texts.check_fits(tokenizer("bos"), ROWS + 64)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused_by_what_it_lacks() -> None:
    with pytest.raises(Unusable, match=rf"has {ROWS} tokens and the model {ROWS - 1}: .*no row for '~' \({ROWS - 1}\)"):
        texts.check_fits(tokenizer("bos"), ROWS - 1)


def test_a_special_token_beyond_the_model_does_no_harm_until_a_prompt_holds_it() -> None:
    words = tokenizer("bos")
    words.add_tokens([AddedToken("<image>", special=True)])
    texts.check_fits(words, ROWS)
    texts.check_ids(words, texts.chat(words, MESSAGES), ROWS)
    words.chat_template = "<image>" + TURNS
    with pytest.raises(Unusable, match=rf"holds '<image>' \({ROWS}\), and the model has {ROWS} tokens"):
        texts.check_ids(words, texts.chat(words, MESSAGES), ROWS)


def test_a_word_that_was_added_beyond_the_model_is_refused() -> None:
    """Somebody's ``add_tokens`` without ``resize_token_embeddings``: any text may hold it."""
    words = tokenizer("bos")
    words.add_tokens(["quantization"])
    with pytest.raises(Unusable, match="no row for 'quantization'"):
        texts.check_fits(words, ROWS)


@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 300_000))
def test_random_prompts_have_ids_that_the_model_has_rows_for(number: int, length: int, vocabulary: int) -> None:
    made = texts.random_prompts(number, length, vocabulary)
    assert [len(ids) for ids in made] == [length] * number
    assert all(0 <= one < min(10_000, vocabulary) for ids in made for one in ids)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            "{% for message in messages %}",
            r"cannot write a chat of system and user \(Unexpected end of template\..*mend it",
        ),
        ("{{ raise_exception('no system, please') }}", r"cannot write a chat of system and user \(no system, please\)"),
    ],
)
def test_a_template_that_is_none_or_refuses_a_chat_is_said(template: str, words: str) -> None:
    made = tokenizer("bos")
    made.chat_template = template
    with pytest.raises(Unusable, match=words) as caught:
        texts.chat(made, MESSAGES)
    assert "\n" not in str(caught.value)
