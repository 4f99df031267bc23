"""Two environments that differ in one package, made by a pip that has a folder of wheels and no network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.base.errors import BrokenEnvironment
from harness.runtime import environment_pair
from harness.runtime.environment import Environment
from harness.runtime.store import Store
from tests.wheels import only_from, write_wheel
from tests.wheels import resolved_once as resolved_once

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("resolved_once")]


@pytest.fixture(scope="module")
def base(kept_store: Store) -> Environment:
    """An environment of its own with pip alone, which is asked many times and reads what is installed each time."""

    def build(folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)

    made = kept_store.get(
        "test-base", {"python": sys.version, "of": sys.base_prefix}, build, label="the tests' environment", verify=False
    )
    return Environment(python=str(made.folder / "venv" / "bin" / "python"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store in which what one test has installed is there for the others, as it is for the gates of a user."""
    return Store(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder that pip finds packages in: tiny_pkg 1.0 to 3.0, and others that need one another."""
    folder = tmp_path / "wheels"
    for version in ("1.0", "2.0", "3.0", "2.5rc1"):
        write_wheel(folder, "tiny_pkg", version, {"tiny_pkg/__init__.py": f"VERSION = '{version}'\n"})
    write_wheel(folder, "tiny_pkg", "9.0", {"tiny_pkg/__init__.py": "raise ImportError('planted: does not import')\n"})
    for version, needs in (("1.0", "tiny_pkg==1.0"), ("2.0", "tiny_pkg==2.0"), ("3.0", "no_such_pkg>=1")):
        source = "import tiny_pkg\nVERSION = tiny_pkg.VERSION\n"
        write_wheel(folder, "needy_pkg", version, {"needy_pkg.py": source}, requires=[needs])
    only_from(folder, monkeypatch)
    return folder


def left(store: Store) -> list[Path]:
    """Return every artifact and every half-made folder of the store."""
    return [path for kind in ("overlay", "venv", "imported") for path in (store.root / kind).glob("*") if path.is_dir()]


def test_a_package_without_dependencies_is_overlaid_and_nothing_else_differs(
    base: Environment, wheels: Path, shared: Store
) -> None:
    made = environment_pair.make(shared, "tiny_pkg==1.0", "tiny_pkg==2.0", base)
    assert made.package == "tiny-pkg"
    assert (made.old.name, made.new.name) == ("tiny_pkg==1.0", "tiny_pkg==2.0")
    assert made.old.python == made.new.python == base.python
    assert made.differences == ("tiny-pkg 1.0 -> 2.0",)
    assert made.apart("old") == {"tiny-pkg": "1.0"}
    assert made.old.overlay != made.new.overlay


def test_a_package_with_dependencies_gets_an_environment_each_and_what_else_differs_is_said(
    base: Environment, wheels: Path, shared: Store
) -> None:
    made = environment_pair.make(shared, "needy_pkg==1.0", "needy_pkg==2.0", base)
    assert made.old.python != made.new.python
    assert made.differences == ("needy-pkg 1.0 -> 2.0", "tiny-pkg 1.0 -> 2.0")
    assert made.new.packages().keys() >= base.packages().keys(), "everything of the base is there"
    assert "needy_pkg" not in base.packages(), "and the base is as it was"


def test_a_version_that_does_not_exist_is_refused_in_the_resolvers_words(
    base: Environment, wheels: Path, store: Store
) -> None:
    with pytest.raises(BrokenEnvironment, match=r"(?s)tiny_pkg==7.* cannot be had; the resolver says.*tiny_pkg==7"):
        environment_pair.make(store, "tiny_pkg==1.0", "tiny_pkg==7", base)
    assert left(store) == []


def test_a_version_that_does_not_install_leaves_nothing_half_made(
    base: Environment, wheels: Path, store: Store
) -> None:
    with pytest.raises(BrokenEnvironment, match=r"(?s)needy_pkg==3.0 could not be installed.*no_such_pkg"):
        environment_pair.make(store, "needy_pkg==3.0", "needy_pkg==1.0", base)
    assert left(store) == []


def test_an_environment_whose_import_fails_is_refused_and_tried_again_another_time(
    base: Environment, wheels: Path, shared: Store
) -> None:
    for _ in range(2):
        with pytest.raises(BrokenEnvironment, match=r"(?s)tiny_pkg==9.0 does not work.*planted: does not import"):
            environment_pair.make(shared, "tiny_pkg==1.0", "tiny_pkg==9.0", base)


def test_an_import_that_does_not_end_is_an_error_that_names_the_requirement_and_the_time(
    base: Environment, wheels: Path, shared: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(wheels, "tiny_pkg", "5.0", {"tiny_pkg/__init__.py": "import time\ntime.sleep(60)\n"})
    monkeypatch.setattr(environment_pair, "_IMPORT_SECONDS", 1)
    with pytest.raises(BrokenEnvironment, match=r"tiny_pkg==5.0 does not work: .* did not end within 1 s"):
        environment_pair.make(shared, "tiny_pkg==5.0", "tiny_pkg==1.0", base)


@pytest.mark.parametrize("package", ["tiny_pkg", "needy_pkg"])
def test_a_range_means_the_newest_release_each_time(
    base: Environment, wheels: Path, shared: Store, package: str
) -> None:
    for name in ("tiny_pkg-3.0", "tiny_pkg-9.0", "needy_pkg-3.0"):
        (wheels / f"{name}-py3-none-any.whl").unlink()
    before = environment_pair.make(shared, f"{package}==1.0", f"{package}>=1.0", base)
    needs = ["tiny_pkg==2.0"] if package == "needy_pkg" else []
    write_wheel(wheels, package, "2.7", {f"{package}.py": "VERSION = '2.7'\n"}, requires=needs)
    after = environment_pair.make(shared, f"{package}==1.0", f"{package}>=1.0", base)
    assert [made.new.name for made in (before, after)] == [f"{package}==2.0", f"{package}==2.7"]
    assert [made.new.packages()[package] for made in (before, after)] == ["2.0", "2.7"]
    assert after.old == before.old


def test_extras_are_kept_where_a_requirement_is_pinned(base: Environment, wheels: Path) -> None:
    assert environment_pair.resolve("tiny_pkg[more, less] >= 1, < 3", base).requirement == "tiny_pkg[less,more]==2.0"


def test_a_wheel_that_was_built_anew_is_another_environment(base: Environment, wheels: Path, shared: Store) -> None:
    path = write_wheel(wheels / "own", "tiny_pkg", "4.0", {"tiny_pkg/__init__.py": "VERSION = 'first'\n"})
    first = environment_pair.make(shared, "tiny_pkg==1.0", str(path), base)
    path = write_wheel(wheels / "own", "tiny_pkg", "4.0", {"tiny_pkg/__init__.py": "VERSION = 'second'\n"})
    second = environment_pair.make(shared, "tiny_pkg==1.0", str(path), base)
    assert first.new.name == second.new.name == "tiny_pkg==4.0"
    assert first.new.overlay != second.new.overlay
    assert first.apart("new") != second.apart("new"), "nor does it share what the other one has made"
    (wheels / "elsewhere").mkdir()
    moved = path.rename(wheels / "elsewhere" / path.name)
    assert environment_pair.make(shared, "tiny_pkg==1.0", str(moved), base).new == second.new, "wherever it lies"


def test_two_builds_of_one_version_are_told_apart_and_named(base: Environment, wheels: Path, shared: Store) -> None:
    old, new = (
        write_wheel(wheels / side, "tiny_pkg", "4.0", {"tiny_pkg/__init__.py": f"VERSION = '{side}'\n"})
        for side in ("old", "new")
    )
    made = environment_pair.make(shared, str(old), str(new), base)
    assert made.apart("old") != made.apart("new")
    (line,) = made.differences
    assert "tiny-pkg 4.0: other contents under the same version" in line
    again = environment_pair.make(shared, str(old), str(old), base)
    assert again.differences == ()
    assert again.apart("old") == again.apart("new") == made.apart("old")
    direct = environment_pair.make(shared, "tiny_pkg==1.0", f"tiny_pkg @ {new.as_uri()}", base)
    assert direct.apart("new").keys() > direct.apart("old").keys(), "a URL's contents may change too"


def test_a_folder_of_sources_is_refused(base: Environment, wheels: Path, store: Store, tmp_path: Path) -> None:
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "pyproject.toml").write_text("[project]\nname = 'tiny_pkg'\nversion = '4.0'\n")
    with pytest.raises(BrokenEnvironment, match="build a wheel"):
        environment_pair.make(store, "tiny_pkg==1.0", f"tiny_pkg @ {(tmp_path / 'sources').as_uri()}", base)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("tiny_pkg==1.0", "needy_pkg==1.0", "are two packages"),
        ("tiny_pkg==1.0", "not a requirement", "neither a requirement"),
        ("tiny_pkg==1.0", "gone-1.0-py3-none-any.whl", "no such wheel"),
        ("--upgrade", "tiny_pkg==1.0", "neither a requirement"),
        ("tiny_pkg==1.0 needy_pkg==1.0", "tiny_pkg==2.0", "needy-pkg: named for one side alone"),
        ("tiny_pkg==1.0 tiny_pkg==2.0", "tiny_pkg==2.0 tiny_pkg==1.0", "names a package twice"),
        ("tiny_pkg==1.0", "named-otherwise.whl", "named-otherwise.whl: Invalid wheel filename"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    base: Environment,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    old: str,
    new: str,
    words: str,
) -> None:
    """At once: pip is not asked."""
    monkeypatch.setattr(environment_pair, "resolve", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "named-otherwise.whl").touch()
    with pytest.raises(BrokenEnvironment, match=words):
        environment_pair.make(store, old, new, base)


def test_releases_come_from_pips_own_index_query(base: Environment, wheels: Path) -> None:
    known = environment_pair.releases("tiny_pkg", base)
    assert known == ["1.0", "2.0", "3.0", "9.0"], "oldest first, without pre-releases"
    assert environment_pair.between(known, "1.0", "3.0") == ["1.0", "2.0", "3.0"]
    for first, last, words in (("1.0", "8.0", "8.0 is not a release"), ("3.0", "1.0", "older"), ("x", "1.0", "x")):
        with pytest.raises(BrokenEnvironment, match=words):
            environment_pair.between(known, first, last)
    with pytest.raises(BrokenEnvironment, match="releases of no_such_pkg cannot be listed"):
        environment_pair.releases("no_such_pkg", base)
