"""Calibration text: of documents that no evaluation reads, known by its digest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.errors import ArtifactError
from harness.contract.calibrated import Pieces
from harness.matrix.config_text import with_calibration
from harness.matrix.plan import Matrix
from harness.matrix.schema import Calibration, Recipe
from harness.runtime import calibration, sources
from harness.runtime.store import Artifact, Store

WORDS = st.lists(st.text("abcdefghij", min_size=1, max_size=4), min_size=13, max_size=40)


def evaluated(folder: Path, text: str) -> Artifact:
    folder.mkdir()
    (folder / calibration.TEXT).write_text(text)
    return Artifact(folder, "sharegpt/0", made=True)


def made(store: Store, file: Path, against: Artifact, tokens: int = 64) -> Artifact:
    wanted = {"file": str(file), "sha256": calibration.digest(file), "sequences": 2, "tokens": tokens}
    return calibration.text(store, None, wanted, against)


# ------------------------------------------------------------------------------------------------------- pieces


@given(WORDS, st.integers(0, 27), st.lists(st.text("klmnop", min_size=1, max_size=3), max_size=9))
def test_thirteen_words_of_a_text_are_found_in_another(words: list[str], start: int, around: list[str]) -> None:
    first = min(start, len(words) - 13)
    piece = words[first : first + 13]
    assert Pieces(["Some other text.", " ".join(words)]).in_common(", ".join([*around, *piece, *around]).upper())


@given(WORDS, st.lists(st.text("klmnop", min_size=1, max_size=3), min_size=13, max_size=30))
def test_texts_that_share_no_words_have_nothing_in_common(words: list[str], others: list[str]) -> None:
    assert not Pieces([" ".join(words)]).in_common(" ".join(others))


def test_a_short_text_is_held_whole_or_not_at_all() -> None:
    seen = Pieces(["The cat sat on the mat, and then it slept until noon of the day."])
    assert seen.in_common("the cat sat on the mat")
    assert not seen.in_common("the cat sat on the rug")
    assert not seen.in_common("the cat sat"), "nobody can say whose three words are"
    assert not Pieces(["one two three four", "five six seven"]).in_common("three four five six seven eight")


# --------------------------------------------------------------------------------------------------------- text


def test_documents_that_are_evaluated_are_left_out_and_counted(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    own = " ".join(f"own{number}" for number in range(20))
    taken = " ".join(f"taken{number}" for number in range(20))
    file = tmp_path / "own.txt"
    file.write_text(f"{own}\n\nBefore it: {taken.upper()}\n\n{own} again")
    against = evaluated(tmp_path / "evaluated", f"A head.\n\n{taken} and a tail.")
    found = made(store, file, against)
    assert found.facts == {"documents": 2, "dropped": 1}
    assert (found.folder / calibration.TEXT).read_text() == f"{own}\n\n{own} again"
    assert made(store, file, against) == found, "kept by content"
    assert made(store, file, against, tokens=32) != found
    file.write_text(taken)
    calibration.digest.cache_clear()
    with pytest.raises(ArtifactError, match="all of it is text that is evaluated"):
        made(store, file, against)


def test_a_file_of_json_lines_and_what_is_none(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"text": "one"}\n{"text": "two\\n\\nand more"}\n')
    assert calibration.of_file(file) == ["one", "two\n\nand more"]
    file.write_text('{"words": "one"}')
    with pytest.raises(ArtifactError, match=r"own.jsonl: a line is no JSON object with a `text`"):
        calibration.of_file(file)
    for content, words in (("\n \n", "holds no text"),):
        file.with_suffix(".txt").write_text(content)
        with pytest.raises(ArtifactError, match=words):
            calibration.of_file(file.with_suffix(".txt"))
    with pytest.raises(ArtifactError, match="cannot be read: No such file"):
        calibration.of_file(tmp_path / "missing.txt")


def test_another_text_than_the_recipes_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_text("some words of a text that is long enough to be told from any other one")
    wanted = {"file": str(file), "sha256": "0" * 64, "sequences": 1, "tokens": 8}
    with pytest.raises(ArtifactError, match=r"has the SHA-256 [0-9a-f]{64}, and the recipe's is 0{64}"):
        calibration.text(Store(tmp_path / "cache"), None, wanted, evaluated(tmp_path / "evaluated", "nothing"))


def test_sharegpt_calibrates_on_conversations_after_those_that_are_evaluated(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": ""}]
    file = tmp_path / sources.SHAREGPT_FILE

    def write(count: int) -> None:
        said = [[turns[0], {"from": "gpt", "value": f"answer {number}"}] for number in range(count)]
        file.write_text(json.dumps([{"id": str(one), "conversations": it} for one, it in enumerate(said)]))

    write(sources.EVALUATED_CONVERSATIONS + 3)
    assert calibration.answers(file) == [f"answer {sources.EVALUATED_CONVERSATIONS + it}" for it in range(3)]
    write(5)
    with pytest.raises(ArtifactError, match=r"after the first 2000, .* \(--calibration FILE\)"):
        calibration.answers(file)


# ------------------------------------------------------------------------------------------------------ identity


def test_the_text_is_part_of_a_recipes_identity(suites_matrix: Matrix) -> None:
    recipe = suites_matrix.recipe("smoothquant-int8dq")
    assert recipe.calibration == Calibration()
    assert recipe.identity.config["calibration"]["sha256"] == Calibration().sha256
    asked: list[dict[str, object]] = [{"sha256": "0" * 64}, {"sequences": 9}, {"tokens": 9}]
    others = [with_calibration(recipe, one) for one in asked]
    assert len({it.identity.hash for it in (recipe, *others)}) == 4
    moved = [with_calibration(recipe, {"file": name}) for name in ("a.txt", "b.txt")]
    assert len({it.identity.hash for it in (recipe, *moved)}) == 1, "it is the text that counts, not where it lies"
    plain = suites_matrix.recipe("int8wo")
    assert with_calibration(plain, {"tokens": 9}) is plain
    assert "calibration" not in plain.identity.config
    named = suites_matrix.recipe("AWQConfig(base_config=Int8WeightOnlyConfig())")
    assert named.calibration == Calibration()


def test_a_recipe_that_observes_nothing_takes_no_text() -> None:
    with pytest.raises(ValueError, match="Int8WeightOnlyConfig observes nothing, and takes no text"):
        Recipe(name="x", config="Int8WeightOnlyConfig", servers=[], calibration=Calibration())
