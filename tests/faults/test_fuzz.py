"""Every reader on hostile input: HARNESS_FUZZ_EXAMPLES of them, up to a million, a few hundred where it is not said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults import fuzz

EXAMPLES = min(1_000_000, int(os.environ.get("HARNESS_FUZZ_EXAMPLES", "300")))


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> fuzz.Readers:
    return fuzz.Readers(tmp_path_factory.mktemp("fuzz"))


@settings(max_examples=EXAMPLES, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), seed=st.integers(0, 2**63))
@pytest.mark.programs
def test_a_reader_returns_data_or_raises_its_own_error(readers: fuzz.Readers, data: st.DataObject, seed: int) -> None:
    name = data.draw(st.sampled_from(sorted(readers.readers)))
    assert readers.one(name, seed) == ""


@settings(max_examples=EXAMPLES // 4, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), raw=st.binary(max_size=300) | st.text(max_size=200).map(lambda it: it.encode(errors="replace")))
def test_so_it_does_of_whatever_hypothesis_thinks_of(readers: fuzz.Readers, data: st.DataObject, raw: bytes) -> None:
    name = data.draw(st.sampled_from(sorted(readers.readers)))
    assert readers.tried(name, raw) == ""


def test_an_error_that_is_not_a_readers_own_is_told(tmp_path: Path) -> None:
    found = fuzz.Readers(tmp_path)
    found.readers["JSON"] = lambda data: {}["planted"]
    assert found.tried("JSON", b"{}").startswith("KeyError: 'planted' of b'{}'")
