"""Text and chats as token ids: begun as the tokenizer begins a text, and with no id that the model lacks."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.contract.calibrated import Pieces
from harness.contract.weights import Unusable, shown


def begin(tokenizer: Any) -> list[int]:
    """Return the ids that a tokenizer puts before every text, such as its BOS; an empty list where it puts none."""
    text = "a"
    whole = list(tokenizer(text)["input_ids"])
    bare = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start]
    return []


# Ids of the requests of `vllm bench latency`, so that engines and their published figures are asked the same.
_RANDOM_IDS = 10_000


def random_prompts(number: int, length: int, vocabulary: int) -> list[list[int]]:
    """Return prompts of random token ids below 10,000, or below what a model has rows for, if that is less."""
    ids = range(min(_RANDOM_IDS, vocabulary))
    return [random.choices(ids, k=length) for _ in range(number)]  # noqa: S311


def vocabulary(checkpoint: str, trust_remote_code: bool) -> int:
    """Return how many token ids a checkpoint's model has rows for, as its configuration says."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=trust_remote_code)
    return int(config.get_text_config().vocab_size)


def chat(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """Return the ids of a chat that an answer is to follow, with one BOS, whether template or tokenizer writes it.

    Without a chat template it is the text of its messages, one a line. Raises Unusable for a template that is none, or
    that refuses such a chat.
    """
    if tokenizer.chat_template:
        # Which Transformers needs for a template alone.
        import jinja2

        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except jinja2.TemplateError as error:
            roles, why = " and ".join(message["role"] for message in messages), " ".join(str(error).split())
            raise Unusable(
                f"the chat template of the tokenizer {tokenizer.name_or_path} cannot write a chat of {roles} ({why}): "
                "mend it, or take it away to have the messages' text alone"
            ) from error
    else:
        text = "\n".join(message["content"] for message in messages if message["content"])
    return begun(list(tokenizer(text, add_special_tokens=False)["input_ids"]), begin(tokenizer))


def begun(ids: list[int], first: list[int]) -> list[int]:
    """Return ids with those before them that a tokenizer begins a text with, but for what is there already."""
    for written in range(len(first), 0, -1):
        if ids[:written] == first[-written:]:
            return [*first[:-written], *ids]
    return [*first, *ids]


@dataclass(frozen=True)
class Windows:
    """Token ids of windows of a text. The first ``given`` of each are no text: its tokenizer begins every text so."""

    ids: list[list[int]]
    given: int

    def __len__(self) -> int:
        return len(self.ids)


def windows(tokenizer: Any, text: Path, count: int, tokens: int) -> Windows:
    """Return ``count`` consecutive windows of ``tokens`` tokens from the start of a text, each begun as a text is.

    Raises ValueError for a text that is too short.
    """
    wanted = count * tokens
    characters = text.read_text(encoding="utf-8")[: wanted * 16]
    ids = tokenizer(characters, add_special_tokens=False)["input_ids"][:wanted]
    if len(ids) < wanted:
        raise ValueError(f"{text} has {len(ids)} tokens; {count} windows of {tokens} need {wanted}")
    first = begin(tokenizer)
    return Windows([[*first, *ids[start : start + tokens]] for start in range(0, wanted, tokens)], len(first))


def check_apart(calibrated_on: str, what: str, documents: Iterable[str]) -> None:
    """Raise Unusable where documents that are evaluated hold a piece of the text that a model was calibrated on."""
    seen = Pieces(Path(calibrated_on).read_text(encoding="utf-8").split("\n\n"))
    found = [index for index, one in enumerate(documents) if seen.in_common(one)]
    if found:
        raise Unusable(
            f"{len(found)} of {what} are in the text that the recipe was calibrated on (the first is number "
            f"{found[0]}), which would make it look better than it is: give another text (--calibration FILE)"
        )


def check_fits(tokenizer: Any, rows: int) -> None:
    """Raise Unusable if a tokenizer gives ids of ordinary text that a model of ``rows`` embeddings does not have.

    A special token beyond them, as Gemma 3's tokenizer has one for images, does no harm until a prompt holds it.
    """
    added = tokenizer.added_tokens_decoder
    beyond = {
        token: index
        for token, index in tokenizer.get_vocab().items()
        if index >= rows and not (index in added and added[index].special)
    }
    if beyond:
        first = [f"{token!r} ({index})" for token, index in sorted(beyond.items(), key=lambda item: item[1])]
        raise Unusable(
            f"the tokenizer {tokenizer.name_or_path} has {len(tokenizer)} tokens and the model {rows}: it has no row "
            f"for {shown(first, 3)}. Give the tokenizer that belongs to the model, or save the model again after "
            "`resize_token_embeddings`"
        )


def check_ids(tokenizer: Any, ids: list[int], rows: int) -> None:
    """Raise Unusable if a prompt holds a token that a model of ``rows`` embeddings does not have."""
    if beyond := sorted({index for index in ids if index >= rows}):
        names = [
            f"{token!r} ({index})" for token, index in zip(tokenizer.convert_ids_to_tokens(beyond), beyond, strict=True)
        ]
        raise Unusable(
            f"a prompt of the tokenizer {tokenizer.name_or_path} holds {shown(names, 3)}, and the model has {rows} "
            "tokens: its chat template belongs to another model"
        )
