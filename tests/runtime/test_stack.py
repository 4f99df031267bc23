"""Full environments by pip over a folder of wheels: several packages, locks, what is forced, and mixtures of both."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.base.errors import BrokenEnvironment
from harness.runtime import asked, environment_pair, installed, mixtures, stack
from harness.runtime.environment import Environment
from harness.runtime.environment_pair import Pair
from harness.runtime.installed import Distribution
from harness.runtime.store import Store
from tests.runtime.test_environment_pair import base as base
from tests.wheels import only_from, write_wheel
from tests.wheels import resolved_once as resolved_once

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("resolved_once")]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Back 1 to 3; front 1 and 2, which each need its back; plain 1 and 2, which need back, of whatever version."""
    folder = tmp_path_factory.mktemp("wheels")
    for version in ("1.0", "2.0", "3.0"):
        write_wheel(folder, "back", version, {"back.py": f"VERSION = '{version}'\n", f"back_{version[0]}.py": ""})
        source = f"import back\nVERSION = '{version}'\n"
        write_wheel(folder, "plain", version, {"plain.py": source}, requires=["back"])
    for version in ("1.0", "2.0"):
        source = {"front.py": f"VERSION = '{version}'\n"}
        write_wheel(folder, "front", version, source, requires=[f"back=={version}", "spare"])
    write_wheel(folder, "spare", "1.0", {"spare.py": ""})
    with pytest.MonkeyPatch.context() as patch:
        only_from(folder, patch)
        yield folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def below(base: Environment, wheels: Path, store: Store) -> Environment:
    """An environment with back, front and plain 1.0, of which front's need of spare is left out."""
    wanted = [Distribution(name, "1.0", f"{name}==1.0") for name in ("back", "front", "plain")]
    return stack.make(store, installed.lock(base) | {it.name: it for it in wanted}, base, "below")


def versions(environment: Environment) -> dict[str, str]:
    """Return what an environment's own interpreter imports."""
    code = (
        "import importlib\nfor name in ('back', 'front', 'plain'):\n"
        " try:\n  print(name, importlib.import_module(name).VERSION)\n except ImportError:\n  pass"
    )
    done = subprocess.run([environment.python, "-c", code], capture_output=True, text=True, check=True)
    return dict(line.split() for line in done.stdout.splitlines())


@pytest.fixture(scope="module")
def pair(below: Environment, store: Store) -> Pair:
    return environment_pair.make(store, "plain==1.0 back==1.0", "plain==2.0 back==2.0", below)


def test_several_packages_move_together_with_what_they_force_and_nothing_else(pair: Pair, below: Environment) -> None:
    assert versions(pair.old) == {"back": "1.0", "front": "1.0", "plain": "1.0"}
    assert versions(pair.new) == {"back": "2.0", "front": "2.0", "plain": "2.0"}
    assert pair.package == "back plain"
    assert pair.differences == ("back 1.0 -> 2.0", "front 1.0 -> 2.0", "plain 1.0 -> 2.0")
    assert (pair.old.name, pair.new.name) == ("plain==1.0 back==1.0", "plain==2.0 back==2.0")
    gone = subprocess.run([pair.new.python, "-c", "import back_1"], capture_output=True, text=True, check=False)
    assert "No module named 'back_1'" in gone.stderr, "what the old version brought is not there any more"
    assert "spare" not in pair.new.packages(), "what was left out below stays left out"
    assert versions(below)["front"] == "1.0", "nothing was written below"


def test_an_environment_is_kept_by_what_is_in_it(pair: Pair, below: Environment, store: Store) -> None:
    again = stack.make(Store(store.root), dict(reversed(pair.locks["new"].items())), below, "again")
    assert again.python == pair.new.python


def test_what_no_release_goes_with_stays_and_is_told(below: Environment) -> None:
    found = stack.resolve([Distribution("back", "3.0", "back==3.0")], below)
    assert {name: found.lock[name].version for name in ("back", "front", "plain")} == {
        **{"back": "3.0", "front": "1.0", "plain": "1.0"}
    }
    assert found.remarks == ("front 1.0 asks for back==1.0 and stays as it is",)


def test_what_does_not_go_together_is_refused_in_one_paragraph(below: Environment) -> None:
    wanted = [Distribution("front", "2.0", "front==2.0"), Distribution("back", "1.0", "back==1.0")]
    with pytest.raises(BrokenEnvironment) as told:
        stack.resolve(wanted, below)
    what, why = str(told.value).splitlines()
    assert what == "front==2.0 back==1.0 could not be installed; the resolver says:"
    assert "front 2.0 depends on back==2.0" in why
    assert "To fix this" not in why


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("plain==1.0 gone.whl", "no such wheel"),
        ("plain==1.0 and back", "neither a requirement"),
        ("plain==1.0 'back", "neither a requirement"),
    ],
)
def test_a_text_that_is_no_list_of_requirements_is_refused(text: str, words: str) -> None:
    with pytest.raises(BrokenEnvironment, match=words):
        asked.parts(text)


def test_locks_are_environments_of_what_they_name_alone(
    below: Environment, store: Store, wheels: Path, tmp_path: Path
) -> None:
    files = [tmp_path / "old.txt", tmp_path / "new.txt"]
    for file, version in zip(files, ("1.0", "3.0"), strict=True):
        file.write_text(f"# a comment\nback=={version}\nplain==1.0\n", encoding="utf-8")
    made = environment_pair.make(store, str(files[0]), str(files[1]), below)
    assert [versions(it) for it in (made.old, made.new)] == [
        {"back": "1.0", "plain": "1.0"},
        {"back": "3.0", "plain": "1.0"},
    ]
    # This folder may be a checkout of the harness, which is in the path of whatever is run in it.
    assert set(made.new.packages()) - {"torchao-harness"} == {"back", "plain"}
    assert (made.package, made.old.name, made.new.name) == ("back", "old.txt", "new.txt")
    with pytest.raises(BrokenEnvironment, match="is named alone"):
        environment_pair.make(store, f"{files[0]} back==3.0", "back==1.0", below)
    (tmp_path / "uv.lock").write_text("", encoding="utf-8")
    with pytest.raises(BrokenEnvironment, match="uv export"):
        environment_pair.make(store, str(files[0]), str(tmp_path / "uv.lock"), below)


def test_a_requirement_beside_a_lock_is_that_environment_with_it(
    below: Environment, store: Store, tmp_path: Path
) -> None:
    file = tmp_path / "pinned.txt"
    file.write_text("front==1.0\nback==1.0\nplain==3.0\n", encoding="utf-8")
    made = environment_pair.make(store, str(file), "back==2.0", below)
    assert versions(made.old) == {"back": "1.0", "front": "1.0", "plain": "3.0"}
    assert versions(made.new) == {"back": "2.0", "front": "2.0", "plain": "3.0"}, "what it forces moves, and no more"
    assert (made.package, made.old.name, made.new.name) == ("back", "pinned.txt", "pinned.txt with back==2.0")
    turned = environment_pair.make(store, "back==2.0", str(file), below)
    assert (turned.old, turned.new) == (made.new, made.old)


def test_mixtures_have_the_new_version_of_what_is_chosen_and_refuse_what_does_not_go_together(
    pair: Pair, below: Environment, store: Store
) -> None:
    mixed = mixtures.of(store, pair, below)
    assert mixed.names == ("back", "plain", "front"), "what was asked for comes before what it forces"
    assert versions(mixed.pair({"plain"}).new) == {"back": "1.0", "front": "1.0", "plain": "2.0"}
    assert mixed.pair({"plain"}).differences == ("plain 1.0 -> 2.0",)
    assert mixed.ruled_out({"back"}) == "front 1.0 asks for back==1.0"
    assert not mixed.ruled_out({"back", "front"})
    assert mixed.releases("plain") == ["1.0", "2.0"]
    assert versions(mixed.release("plain", "3.0").new) == {"back": "1.0", "front": "1.0", "plain": "3.0"}


def test_words_of_pip_are_one_paragraph_without_its_advice() -> None:
    said = """
ERROR: Cannot install a and b because these package versions have conflicting dependencies.

The conflict is caused by:
    a 1.0 depends on c==1
    b 2.0 depends on c==2

To fix this you could try to:
1. loosen the range of package versions you've specified
2. remove package versions to allow pip to attempt to solve the dependency conflict

ERROR: ResolutionImpossible: for help visit https://pip.pypa.io/en/latest/topics/dependency-resolution/
"""
    assert stack.reason(said) == (
        "Cannot install a and b because these package versions have conflicting dependencies. "
        "The conflict is caused by: a 1.0 depends on c==1; b 2.0 depends on c==2"
    )
    many = ", ".join(f"1.{number}" for number in range(40))
    short = stack.reason(f"ERROR: No version of x==9 (from versions: {many})\nERROR: No matching distribution for x==9")
    assert short == (
        "No version of x==9 (the newest of 40 versions: 1.34, 1.35, 1.36, 1.37, 1.38, 1.39); "
        "No matching distribution for x==9"
    )


def test_words_come_back_as_they_were_given() -> None:
    for words in (["torchao==0.17.0"], ["torchao==0.17.0", "vllm>=0.26, <0.27"], ["a @ https://x.org/a.whl", "b==1"]):
        assert list(asked.parts(asked.joined(words))) == words
