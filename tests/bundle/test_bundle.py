"""A bundle is made of real wheels by the real pip, and installed by its own script in another process."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import lzma
import os
import platform
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.version import Version

from harness import __main__ as command_line
from harness.bundle import asked as bundle_asked
from harness.bundle import install as bundle_install
from harness.bundle import make as bundle
from harness.bundle import pack
from harness.bundle import resolve as bundle_resolve
from harness.bundle.asked import BundleError, Settings, Target
from harness.bundle.resolve import Ask, Decision, Found, Planner, ResolverFailed, decide

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a runner is a Linux machine")

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
HERE = Target(PYTHON, f"manylinux_2_39_{platform.machine()}")
STAYS = Settings(
    stays={"torch": "built for its driver", "nvidia-*": "CUDA"}, left_out={"flashinfer-*": "not on Hopper"}
)
PYPROJECT = """
[project]
name = "my-project"
dependencies = ["plain>=1"]
[project.optional-dependencies]
gpu = ["engine==2.0", "numbers-lib", "my-project[more]"]
more = ["torch>=2"]
"""
SETTINGS = """
[every.stays]
torch = "built for its driver"
[extra.gpu.left_out]
kernels = "not on this card"
[extra.gpu.files.engine]
"engine/_old*.so" = "kernels for older cards"
"""


def write_wheel(
    folder: Path, name: str, version: str, files: Mapping[str, bytes], *, requires: Sequence[str] = ()
) -> None:
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {line}\n" for line in requires)
    contents = dict(files) | {
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = []
    for path, data in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record.append(f"{path},sha256={digest},{len(data)}\n")
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, data in contents.items():
            wheel.writestr(path, data)
        wheel.writestr(f"{info}/RECORD", "".join([*record, f"{info}/RECORD,,\n"]))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a project file, settings, what the runner has, and a few wheels for pip to find."""
    folder = tmp_path_factory.mktemp("shop")
    wheels = folder / "wheels"
    wheels.mkdir()
    write_wheel(wheels, "plain", "1.5", {"plain.py": b"ANSWER = 42\n", "plain_broken.py": b"def (\n"})
    write_wheel(
        wheels,
        "engine",
        "2.0",
        {
            "engine/__init__.py": b"import helper, plain\ndef main(): print('engine', plain.ANSWER, helper.NAME)\n",
            "engine/_new.so": os.urandom(60_000),
            "engine/_old_1.so": os.urandom(50_000),
            "engine-2.0.dist-info/entry_points.txt": b"[console_scripts]\nengine = engine:main\n",
            "engine-2.0.data/scripts/engine-tool": b"#!python\nprint('tool')\n",
            "engine-2.0.data/purelib/engine_extra.py": b"",
        },
        requires=[
            "kernels==3",
            "helper>=1",
            "torch==2.11.0",
            f"only-there; python_version == '{PYTHON}'",
            "numbers-lib<5",
        ],
    )
    write_wheel(wheels, "kernels", "3", {"kernels.py": b"raise SystemExit('left out')\n"}, requires=["orphan"])
    write_wheel(wheels, "orphan", "1", {"orphan.py": b""})
    write_wheel(wheels, "helper", "1.0", {"helper.py": b"NAME = 'old helper'\n"}, requires=["numbers-lib>=3"])
    write_wheel(wheels, "helper", "2.0", {"helper.py": b"NAME = 'new helper'\n"}, requires=["numbers-lib>=4"])
    write_wheel(wheels, "numbers_lib", "3.5", {"numbers_lib.py": b""})
    write_wheel(wheels, "numbers_lib", "4.1", {"numbers_lib.py": b""})
    write_wheel(wheels, "only_there", "1", {"only_there.py": b""})
    write_wheel(wheels, "torch", "2.11.0", {"torch.py": b"raise SystemExit('the runner has its own')\n"})
    (folder / "pyproject.toml").write_text(PYPROJECT, encoding="utf-8")
    (folder / "bundle.toml").write_text(SETTINGS, encoding="utf-8")
    (folder / "runner.txt").write_text("torch==2.11.0+cu130\nnumbers.lib==3.5\nunrelated\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def _only_these_wheels(shop: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(shop / "wheels"))
        yield


def make(shop: Path, out: Path, **changes: Any) -> dict[str, Any]:
    asked = {
        "target": HERE,
        "extra": "gpu",
        "part_size": 30_000,
        "runner": bundle_asked.read_runner(shop / "runner.txt"),
        "pyproject": shop / "pyproject.toml",
        "settings_file": shop / "bundle.toml",
        "say": lambda _: None,
    }
    return bundle.make(out, **(asked | changes))


@pytest.fixture(scope="module")
def bundled(shop: Path, _only_these_wheels: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "out"
    make(shop, out)
    return out


@pytest.mark.programs
@pytest.mark.usefixtures("_only_these_wheels")
def test_the_harness_goes_with_its_own_project_file_wherever_that_lies(shop: Path, tmp_path: Path) -> None:
    copy, said = tmp_path / "pyproject.toml", list[str]()
    copy.write_text(PYPROJECT.replace("my-project", bundle_asked.DISTRIBUTION), encoding="utf-8")
    made = make(shop, tmp_path / "own", pyproject=copy, part_size=30_000_000, say=said.append)
    other = make(shop, tmp_path / "other", part_size=30_000_000, say=said.append)
    assert made["files"] > other["files"]
    (word,) = [it for it in said if "not carried, since" in it]
    assert str(shop / "pyproject.toml") in word


@pytest.fixture
def parts(bundled: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may damage."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for path in bundled.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def install(parts: Path, target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(parts / "install.py"), str(parts), str(target)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def names(manifest: Mapping[str, Any]) -> dict[str, str]:
    return {package["name"]: package["version"] for package in manifest["packages"]}


# ---------------------------------------------------------------- sizes, settings, requirements


@pytest.mark.parametrize(
    ("text", "size"), [("60MiB", 60 << 20), ("500MB", 500_000_000), ("1GiB", 1 << 30), ("1.5 kb", 1500), ("17", 17)]
)
def test_a_size_is_a_number_and_a_unit(text: str, size: int) -> None:
    assert bundle_asked.parse_size(text) == size


@given(st.integers(1, 10**15), st.sampled_from(["", "B", "kB", "KiB", "MB", "MiB", "GB", "GiB"]))
def test_a_size_keeps_its_number_exactly(number: int, unit: str) -> None:
    assert bundle_asked.parse_size(f"{number}{unit}") == number * bundle_asked.parse_size(f"1{unit}")


@pytest.mark.parametrize("text", ["", "MiB", "60 parsecs", "-1MB", "0", "0.1", "1e3", "60MiB/s", "٣"])
def test_what_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(BundleError, match=re.escape(repr(text))):
        bundle_asked.parse_size(text)


def test_an_unknown_extra_is_answered_with_the_nearest(shop: Path) -> None:
    with pytest.raises(BundleError, match=r"no extra 'gpus'; did you mean gpu"):
        bundle_asked.read_requirements(shop / "pyproject.toml", "gpus", HERE.environment())


def test_an_extra_may_name_another_of_the_same_project(shop: Path) -> None:
    found = bundle_asked.read_requirements(shop / "pyproject.toml", "gpu", HERE.environment())
    assert sorted(map(str, found)) == ["engine==2.0", "numbers-lib", "plain>=1", "torch>=2"]


def test_an_installed_harness_needs_no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "torchao_harness-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchao-harness\nVersion: 1.0\nProvides-Extra: gpu\nProvides-Extra: old-gpu\n"
        "Requires-Dist: plain>=1\nRequires-Dist: engine<3; python_version >= '3.8' and extra == 'gpu'\n"
        "Requires-Dist: never; python_version < '3.8' and extra == 'gpu'\n"
        "Requires-Dist: torchao-harness[gpu]; extra == 'old-gpu'\nRequires-Dist: torch<2.12; extra == 'old-gpu'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(bundle_asked, "PROJECT", tmp_path / "pyproject.toml")
    found = bundle_asked.read_requirements(bundle_asked.PROJECT, "old-gpu", HERE.environment())
    assert sorted(map(str, found)) == ["engine<3", "plain>=1", "torch<2.12"]
    assert bundle_asked.named_extras(bundle_asked.PROJECT, "old-gpu") == ["old-gpu", "gpu"]
    with pytest.raises(BundleError, match=r"no extra 'gpus'; did you mean gpu"):
        bundle_asked.read_requirements(bundle_asked.PROJECT, "gpus", HERE.environment())
    with pytest.raises(BundleError, match=r"elsewhere.toml"):
        bundle_asked.read_requirements(tmp_path / "elsewhere.toml", "gpu", HERE.environment())


def test_the_runner_is_read_from_a_freeze(tmp_path: Path) -> None:
    path = tmp_path / "freeze.txt"
    path.write_text("# ours\nTorch==2.11.0+cu130\nbare_name\nmine @ file:///x\n-e git+https://x\n\n", encoding="utf-8")
    assert bundle_asked.read_runner(path) == {"torch": Version("2.11.0+cu130"), "bare-name": None, "mine": None}
    path.write_text("fine==1\nnot a package\n", encoding="utf-8")
    with pytest.raises(BundleError, match="line 2: 'not a package'"):
        bundle_asked.read_runner(path)


def test_a_setting_that_is_not_known_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bundle.toml"
    path.write_text('[extra.gpu.leftout]\nx = "why"\n', encoding="utf-8")
    with pytest.raises(BundleError, match=r"extra\.gpu\.leftout is not known; did you mean left_out"):
        bundle_asked.read_settings(path, "gpu")
    path.write_text('[every.left_out]\nx = ""\n', encoding="utf-8")
    with pytest.raises(BundleError, match=r"every\.left_out\.x: a reason"):
        bundle_asked.read_settings(path, "gpu")


def test_the_settings_of_this_project_are_sound() -> None:
    names = bundle_asked.named_extras(bundle_asked.PROJECT, "h100")
    assert names == ["h100", "gpu-torch211"], "an extra that names another has its settings"
    settings = bundle_asked.read_settings(bundle_asked.SETTINGS, *names)
    assert decide("torch", [], {}, settings) is Decision.STAYS
    assert decide("nvidia-cublas", [], {}, settings) is Decision.STAYS
    assert decide("flashinfer-python", [], {}, settings) is Decision.LEFT_OUT
    assert decide("vllm", [], {}, settings) is Decision.CARRIED


# ---------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("name", "wanted", "has", "decision"),
    [
        ("flashinfer-python", "==1", "1", Decision.LEFT_OUT),
        ("torch", "==2.12", "2.11.0+cu130", Decision.STAYS),
        ("nvidia-cudnn-cu13", "==9", None, Decision.STAYS),
        ("numpy", ">=2", "2.5.2", Decision.RUNNER),
        ("numpy", "<2.4", "2.5.2", Decision.CARRIED),
        ("numpy", "==2.5.2", "2.5.2+local", Decision.RUNNER),
        ("numba", "==0.65.0", "", Decision.CARRIED),
        ("click", "<9,>=8", "", Decision.RUNNER),
        ("httpcore", "==1.*", "", Decision.RUNNER),
        ("pydantic", ">=2", None, Decision.CARRIED),
    ],
)
def test_the_rule(name: str, wanted: str, has: str | None, decision: Decision) -> None:
    runner = {} if has is None else {name: Version(has) if has else None}
    assert decide(name, [Ask("someone", Requirement(name + wanted))], runner, STAYS) is decision


@given(
    st.lists(st.sampled_from([">=1", "<3", "==2.0", "!=2.1", "~=2.0"]), max_size=4),
    st.sampled_from(["1.0", "2.0", "2.1", "3.0"]),
)
def test_the_runners_is_used_only_if_everyone_takes_it(wanted: list[str], has: str) -> None:
    asks = [Ask("someone", Requirement(f"thing{versions}")) for versions in wanted]
    decision = decide("thing", asks, {"thing": Version(has)}, STAYS)
    assert (decision is Decision.RUNNER) == all(ask.requirement.specifier.contains(has) for ask in asks)


Shelf = Mapping[str, Sequence[tuple[str, Sequence[str]]]]


def resolver(shelf: Shelf) -> Callable[[Sequence[Requirement], Mapping[str, Version]], dict[str, Found]]:
    """A stand-in for pip: takes the newest of each, walks back on the first conflict, and reads no markers."""

    def resolve(asked: Sequence[Requirement], stand_ins: Mapping[str, Version]) -> dict[str, Found]:
        found: dict[str, Found] = {}

        def take(pending: list[Requirement]) -> bool:
            if not pending:
                return True
            first, *rest = pending
            if first.name in found:
                return first.specifier.contains(found[first.name].version) and take(rest)
            choices = shelf[first.name]
            if first.name in stand_ins:
                choices = [(str(stand_ins[first.name]), [])]
            for version, lines in choices:
                requires = [Requirement(line) for line in lines]
                if first.specifier.contains(version):
                    found[first.name] = Found(Version(version), tuple(requires))
                    if take(rest + [requirement for requirement in requires if requirement.marker is None]):
                        return True
                    del found[first.name]
            return False

        if not take(list(asked)):
            raise ResolverFailed("impossible", conflict=True)
        return found

    return resolve


def plan(roots: Sequence[str], runner: Mapping[str, str], shelf: Shelf) -> bundle_resolve.Plan:
    has = {name: Version(version) if version else None for name, version in runner.items()}
    return Planner(
        [Requirement(r) for r in roots], has, STAYS, Target("3.12", HERE.platform).environment(), resolver(shelf)
    ).plan()


def test_an_older_package_is_carried_if_it_goes_with_the_runners() -> None:
    shelf = {"data": [("5", ["hub>=2"]), ("4", ["hub>=1"])], "hub": [("2", []), ("1", [])]}
    chosen = plan(["data"], {"hub": "1"}, shelf)
    assert {name: str(found.version) for name, found in chosen.carried.items()} == {"data": "4"}


def test_what_a_pin_refuses_is_carried_and_reported() -> None:
    shelf = {"data": [("5", ["hub>=2"])], "hub": [("2", []), ("1", [])]}
    chosen = plan(["data==5"], {"hub": "1"}, shelf)
    assert {name: str(found.version) for name, found in chosen.carried.items()} == {"data": "5", "hub": "2"}
    assert [(row.package, row.wanted, row.runner, row.decision) for row in chosen.rows] == [
        ("hub", ">=2 (data)", "1", Decision.CARRIED)
    ]


def test_what_anything_refuses_is_carried_if_nothing_else_goes() -> None:
    shelf = {"a": [("1", ["b"])], "b": [("1", ["hub>=2"])], "hub": [("2", []), ("1", [])]}
    assert plan(["a"], {"hub": "1"}, shelf).carried.keys() == {"a", "b", "hub"}


def test_a_pin_found_late_still_carries_an_unknown_version() -> None:
    shelf = {"a": [("2", ["hub>=2"]), ("1", ["x==2"])], "hub": [("2", []), ("1", [])], "x": [("2", []), ("1", [])]}
    chosen = plan(["a", "x"], {"hub": "1", "x": ""}, shelf)
    assert {name: str(found.version) for name, found in chosen.carried.items()} == {"a": "1", "x": "2"}


def test_another_torch_than_the_runners_is_a_conflict() -> None:
    with pytest.raises(ResolverFailed):
        plan(["engine"], {"torch": "2.11.0"}, {"engine": [("1", ["torch==2.12"])], "torch": [("2.12", [])]})


def test_markers_are_read_as_they_hold_on_the_runner() -> None:
    lines = ["six>1; python_version == '3.12'", "old; python_version < '3.12'", "kit; extra == 'all'"]
    shelf = {"a": [("1", lines)], "six": [("2", [])], "old": [("1", [])], "kit": [("1", [])]}
    assert plan(["a"], {}, shelf).carried.keys() == {"a", "six"}
    assert plan(["a[all]"], {}, shelf).carried.keys() == {"a", "six", "kit"}


def test_what_only_a_left_out_package_needs_is_not_carried() -> None:
    shelf = {"a": [("1", ["flashinfer-x"])], "flashinfer-x": [("1", ["orphan"])], "orphan": [("1", [])]}
    assert plan(["a"], {}, shelf).carried.keys() == {"a"}


# ---------------------------------------------------------------- a bundle, made and installed


@pytest.mark.programs
def test_the_parts_carry_what_the_runner_lacks(bundled: Path) -> None:
    manifest = json.loads((bundled / "manifest.json").read_text(encoding="utf-8"))
    # numbers-lib 3.5 of the runner goes with helper 1.0, not with 2.0; kernels is left out, and orphan with it
    assert names(manifest) == {"engine": "2.0", "helper": "1.0", "only-there": "1", "plain": "1.5"}
    assert [(row["package"], row["decision"]) for row in manifest["decisions"]] == [("kernels", "left out")]
    assert len(manifest["parts"]) > 1
    for part in manifest["parts"]:
        data = (bundled / part["name"]).read_bytes()
        assert len(data) == part["size"] <= 30_000
        assert hashlib.sha256(data).hexdigest() == part["sha256"]


@pytest.mark.programs
def test_an_installed_bundle_works_and_is_found_again(bundled: Path, tmp_path: Path) -> None:
    target = tmp_path / "a folder" / "site"
    done = install(bundled, target)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("export PYTHONPATH=")
    assert "some cannot be" in done.stdout  # plain_broken.py
    ran = subprocess.run(["bash", "-c", f"{last}; engine; engine-tool"], capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["engine", "42", "old", "helper", "tool"], ran.stderr
    assert list(target.glob(f"__pycache__/plain.*{sys.version_info.minor}.pyc"))
    again = install(bundled, target)
    assert "already holds this bundle" in again.stdout
    assert again.stdout.splitlines()[-1] == last
    assert sorted(path.name for path in target.parent.iterdir()) == ["site"]


@pytest.mark.programs
def test_files_left_out_of_a_wheel_are_gone_from_its_record(bundled: Path, tmp_path: Path) -> None:
    manifest = json.loads((bundled / "manifest.json").read_text(encoding="utf-8"))
    left = {package["name"]: package["left"] for package in manifest["packages"]}
    assert left["engine"] == ["engine/_old_1.so"]
    assert install(bundled, tmp_path / "site").returncode == 0
    assert [path.name for path in (tmp_path / "site" / "engine").glob("*.so")] == ["_new.so"]
    record = (tmp_path / "site" / "engine-2.0.dist-info" / "RECORD").read_text(encoding="utf-8")
    assert "engine/_new.so," in record
    assert "_old" not in record


def test_missing_and_damaged_parts_are_named(parts: Path, tmp_path: Path) -> None:
    damaged = bytearray((parts / "part-00.bin").read_bytes())
    damaged[1000] ^= 1
    (parts / "part-00.bin").write_bytes(damaged)
    (parts / "part-01.bin").unlink()
    (parts / "part-02.bin").write_bytes(b"short")
    done = install(parts, tmp_path / "site")
    assert done.returncode == 2
    assert "part-00.bin: damaged (its SHA-256 differs)" in done.stderr
    assert "part-01.bin: missing" in done.stderr
    assert "part-02.bin: damaged (5 bytes instead of" in done.stderr
    assert not (tmp_path / "site").exists()


def test_another_python_is_refused(parts: Path, tmp_path: Path) -> None:
    manifest = json.loads((parts / "manifest.json").read_text(encoding="utf-8"))
    (parts / "manifest.json").write_text(json.dumps(manifest | {"python": "3.99"}), encoding="utf-8")
    done = install(parts, tmp_path / "site")
    assert done.returncode == 2
    assert "for Python 3.99" in done.stderr


def test_a_folder_with_something_else_is_left_alone(bundled: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious", encoding="utf-8")
    done = install(bundled, tmp_path)
    assert done.returncode == 2
    assert "holds something that is no bundle" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.programs
def test_another_bundle_takes_the_place_of_an_older_one(parts: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    assert install(parts, target).returncode == 0
    (target / bundle_install.MARK).write_text('{"sha256": "of an older one"}', encoding="utf-8")
    (target / "stale.py").touch()
    assert install(parts, target).returncode == 0
    assert not (target / "stale.py").exists()
    assert (target / "plain.py").is_file()


def crafted(folder: Path, member: tarfile.TarInfo) -> Path:
    """Write a bundle whose hashes are right and whose one member is not."""
    folder.mkdir()
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        member.size = 4 if member.isreg() else 0
        archive.addfile(member, io.BytesIO(b"evil") if member.isreg() else None)
    data = lzma.compress(raw.getvalue())
    digest = hashlib.sha256(data).hexdigest()
    manifest = {
        "format": bundle_install.FORMAT,
        "version": bundle_install.VERSION,
        "python": PYTHON,
        "machine": platform.machine(),
        "sha256": digest,
        "size": len(data),
        "unpacked_size": 4,
        "files": 1,
        "parts": [{"name": "part-00.bin", "size": len(data), "sha256": digest}],
        "blocks": [{"offset": 0, "size": len(data)}],
        "raw": [],
        "packages": [],
    }
    (folder / "part-00.bin").write_bytes(data)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (folder / "install.py").write_bytes(Path(bundle_install.__file__).read_bytes())
    return folder


@pytest.mark.parametrize("name", ["../evil.py", "/tmp/evil.py", "a/../../evil.py", "a\\..\\evil.py"])
def test_a_path_outside_the_target_is_refused(name: str, tmp_path: Path) -> None:
    done = install(crafted(tmp_path / "parts", tarfile.TarInfo(name)), tmp_path / "site")
    assert done.returncode == 2
    assert "outside the target" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts"]


def test_a_link_is_refused(tmp_path: Path) -> None:
    link = tarfile.TarInfo("innocent")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc"
    done = install(crafted(tmp_path / "parts", link), tmp_path / "site")
    assert done.returncode == 2
    assert "not a plain file" in done.stderr


def test_a_bundle_that_unpacks_to_more_than_it_says_is_refused(tmp_path: Path) -> None:
    parts = crafted(tmp_path / "parts", tarfile.TarInfo("a.py"))
    told = json.loads((parts / "manifest.json").read_text(encoding="utf-8")) | {"unpacked_size": 3}
    (parts / "manifest.json").write_text(json.dumps(told), encoding="utf-8")
    done = install(parts, tmp_path / "site")
    assert done.returncode == 2
    assert "more bytes than its manifest says" in done.stderr


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("parts", [{"name": "../x", "size": 1, "sha256": "x"}], "parts.0.name is '../x', which is no name of a file"),
        ("parts", [{"name": "x"}], "parts.0.size is None"),
        ("blocks", [{"offset": -1, "size": 1}], "blocks.0.offset is -1"),
        ("raw", ["x"], "raw.0.path is None"),
        ("sha256", 5, "sha256 is 5"),
        ("packages", None, "packages is None"),
    ],
)
def test_a_manifest_that_does_not_hold_is_named(tmp_path: Path, key: str, value: object, words: str) -> None:
    parts = crafted(tmp_path / "parts", tarfile.TarInfo("a.py"))
    told = json.loads((parts / "manifest.json").read_text(encoding="utf-8")) | {key: value}
    (parts / "manifest.json").write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(bundle_install.InstallError, match=re.escape(words)):
        bundle_install.read_manifest(parts)


@given(st.text(st.sampled_from("ab./\\\0"), max_size=12))
def test_a_safe_path_is_below_the_target(name: str) -> None:
    target = Path("/target/folder")
    try:
        path = bundle_install.safe_path(target, name)
    except bundle_install.InstallError:
        return
    assert Path(os.path.normpath(path)).is_relative_to(target)


def test_a_wheel_that_would_write_outside_is_refused(tmp_path: Path) -> None:
    write_wheel(tmp_path, "bad", "1", {"../bad.py": b""})
    with pytest.raises(BundleError, match=r"bad-1-py3-none-any.whl: .*outside the target"):
        pack.wheel_entries(next(tmp_path.glob("*.whl")), {})


@given(st.lists(st.integers(0, 3 * pack.BLOCK), max_size=30))
def test_every_file_is_in_one_block(sizes: list[int]) -> None:
    entry = pack.Entry("x", 0, False, Path("w"), "x")
    entries = [dataclasses.replace(entry, path=f"{n}.py", size=size) for n, size in enumerate(sizes)]
    sorted_blocks = pack.blocks(entries)
    assert sorted(e.path for block in sorted_blocks for e in block) == sorted(e.path for e in entries)
    assert all(len(block) == 1 or sum(e.size for e in block) <= pack.BLOCK for block in sorted_blocks)


# ---------------------------------------------------------------- the command


def bundle_command(shop: Path, out: Path, *more: str) -> int:
    options = ["--python", PYTHON, "--extra", "gpu", "--runner", str(shop / "runner.txt")]
    options += ["--platform", HERE.platform, "--pyproject", str(shop / "pyproject.toml"), *more]
    return command_line.main(["bundle", *options, str(out)])


@pytest.mark.programs
def test_the_command_replaces_a_bundle_and_nothing_else(
    shop: Path,
    parts: Path,
    bundled: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bundle_asked, "SETTINGS", shop / "bundle.toml")
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").touch()
    assert bundle_command(shop, other) == 2
    assert "no bundle" in capsys.readouterr().err
    (parts / "part-99.bin").touch()
    make(shop, parts)
    assert sorted(p.name for p in parts.iterdir()) == sorted(p.name for p in bundled.iterdir())
    for path in bundled.iterdir():
        assert path.read_bytes() == (parts / path.name).read_bytes(), "the same wheels give the same bundle"


@pytest.mark.usefixtures("_only_these_wheels")
@pytest.mark.programs
def test_what_the_resolver_said_last_is_shown_and_nothing_left(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text(
        '[project]\nname = "p"\n[project.optional-dependencies]\ngpu = ["engine==7"]\n', encoding="utf-8"
    )
    assert bundle_command(shop, tmp_path / "out", "--pyproject", str(project)) == 2
    assert "No matching distribution found for engine==7" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["pyproject.toml"]


def test_wrong_options_are_answered_with_what_to_do(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, words in (
        (("--part-size", "60 parsecs"), "such as 60MiB"),
        (("--python", "three"), "such as 3.12"),
        (("--platform", "windows"), "such as manylinux_2_39_x86_64"),
        (("--runner", str(tmp_path / "none.txt")), "pip freeze"),
        (("--extra", "gqu"), "did you mean gpu"),
    ):
        assert bundle_command(shop, tmp_path / "out", *options) == 2
        assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_parts_too_small_are_refused(shop: Path, bundled: Path, tmp_path: Path) -> None:
    wheels = [pack.wheel_entries(path, {})[0] for path in sorted((shop / "wheels").glob("engine*.whl"))]
    with pytest.raises(BundleError, match=r"too small: .* parts, above 1000; give at least \d+B"):
        pack.write_parts(tmp_path, pack.merge(wheels), 10)


@pytest.mark.usefixtures("_only_these_wheels")
@pytest.mark.programs
def test_a_full_disk_leaves_nothing_half_made(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Path, *given: Any, **named: Any) -> Any:
        if given != ("ab",):
            return opened(self, *given, **named)
        # A device that is always full, so that the system itself refuses.
        return opened(Path("/dev/full"), "wb", buffering=0)

    opened: Callable[..., Any] = Path.open
    monkeypatch.setattr(Path, "open", full)
    assert bundle_command(shop, tmp_path / "out") == 2
    assert "free some space" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
