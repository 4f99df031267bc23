"""requirements/install.py with a pip and a uv that only note what they are told: what is asked for, in which order."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PIP = """
import json, os, sys

if sys.argv[1:] == ["config", "list"]:
    print(os.environ.get("TOLD", ""))
    raise SystemExit(0)
with open(os.environ["CALLS"], "a") as calls:
    print(json.dumps(["pip", *sys.argv[1:]]), file=calls)
raise SystemExit(int("install.lock" in sys.argv[-1] or os.environ.get("PIP_FAILS", "0")))
"""
UV = """#!{python}
import json, os, sys

if "--version" in sys.argv:
    print("uv " + os.environ.get("UV_IS", "0.13.9"))
    raise SystemExit(0)
with open(os.environ["CALLS"], "a") as calls:
    told = {{name: os.environ.get(name) for name in ("SSL_CERT_FILE", "UV_HTTP_TIMEOUT")}}
    print(json.dumps(["uv", *sys.argv[1:], told]), file=calls)
backend = "--torch-backend" in sys.argv
problem = os.environ.get("ANYWAY_FAILS" if backend else "UV_SAYS", "")
print(problem, file=sys.stderr)
raise SystemExit(int(bool(problem)))
"""
NO_TORCH = "Because there is no version of torch==2.13.0+cpu and you require torch==2.13.0+cpu, it cannot be solved."

Install = Callable[..., tuple[int, list[list[str]]]]


@pytest.fixture
def install(repository: Path, tmp_path: Path) -> Install:
    """Run the step; returns its exit status and what pip and uv were called with."""
    (tmp_path / "modules" / "pip").mkdir(parents=True)
    (tmp_path / "modules" / "pip" / "__init__.py").write_text("")
    (tmp_path / "modules" / "pip" / "__main__.py").write_text(PIP)
    # Stands before a uv that was installed beside this interpreter.
    (tmp_path / "modules" / "uv.py").write_text("raise SystemExit(1)")
    (tmp_path / "bin").mkdir()
    uv = tmp_path / "bin" / "uv"
    uv.write_text(UV.format(python=sys.executable))
    uv.chmod(0o755)
    calls = tmp_path / "calls"

    def call(*words: str, uv_here: bool = True, told: str = "", **variables: str) -> tuple[int, list[list[str]]]:
        environment = {name: it for name, it in os.environ.items() if not name.startswith(("PIP_", "UV_", "SSL_"))}
        environment |= {"PYTHONPATH": str(tmp_path / "modules"), "CALLS": str(calls), "TOLD": told, **variables}
        environment["PATH"] = str(tmp_path / "bin") if uv_here else "/nowhere"
        calls.write_text("")
        command = [sys.executable, str(repository / "requirements" / "install.py"), *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, [json.loads(line) for line in calls.read_text().splitlines()]

    return call


def test_what_pip_is_told_is_handed_to_uv(install: Install) -> None:
    told = "\n".join(
        (
            ":env:.find-links='/wheels /more-wheels'",
            ":env:.cert='/own.crt'",
            "global.cert='/system.crt'",
            "global.find-links='/old-wheels'",
            "global.index-url='https://mirror.example/simple'",
            "global.extra-index-url='https://one.example/simple\\nhttps://two.example/simple'",
            "install.constraint='/etc/constraints.txt'",
            "install.no-index='false'",
            "global.timeout='180'",
            "list.format='freeze'",
        )
    )
    status, calls = install("--no-deps", "-r", "cpu.lock", told=told)
    assert (status, len(calls)) == (0, 1)
    (call,) = calls
    assert call[:5] == ["uv", "pip", "install", "--python", sys.executable]
    assert call[5:-4] == [
        *("--default-index", "https://mirror.example/simple"),
        *("--index", "https://one.example/simple", "--index", "https://two.example/simple"),
        *("--find-links", "/wheels", "--find-links", "/more-wheels"),
        *("--constraint", "/etc/constraints.txt"),
        *("--index-strategy", "unsafe-best-match"),
    ]
    assert call[-4:-1] == ["--no-deps", "-r", "cpu.lock"]
    assert call[-1] == {"SSL_CERT_FILE": "/own.crt", "UV_HTTP_TIMEOUT": "180"}


@pytest.mark.parametrize("written_later", [True, False])
def test_what_was_installed_is_compiled_but_for_what_is_seldom_imported(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written_later: bool
) -> None:
    """Where nothing writes bytecode later, that too; what was there before, and what is no Python, is left alone."""
    spec = importlib.util.spec_from_file_location("install", repository / "requirements" / "install.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "dont_write_bytecode", not written_later)
    site = tmp_path / "lib" / "site-packages"
    names = (
        "new/often.py",
        "new/tests/seldom.py",
        "new/template.py",
        "../../bin/script.py",
        "new/data.txt",
        "old/it.py",
    )
    for name in names:
        (site / name).resolve().parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text("{{ no Python }}}" if "template" in name else "x = 1\n")
    for name in ("old", "new"):
        record = site / f"{name}-1.dist-info" / "RECORD"
        record.parent.mkdir()
        before = module.installed(site)
        record.write_text("".join(f"{it},sha256=abc,6\n" for it in names if name in it or "script" in it))
    found = module.installed(site)
    module.compile_files(site, [it for it, state in found.items() if before.get(it) != state])
    compiled = {path.name.partition(".")[0] for path in tmp_path.rglob("*.pyc")}
    assert compiled == ({"often"} if written_later else {"often", "seldom"})


def test_where_uv_was_told_of_an_index_itself_that_stands(install: Install) -> None:
    told = "global.index-url='https://mirror.example/simple'"
    _, calls = install("torch", told=told, UV_DEFAULT_INDEX="https://own.example/simple")
    assert "--default-index" not in calls[0]


def test_where_torch_is_found_nothing_else_is_asked(install: Install) -> None:
    status, calls = install("-r", "cpu.lock")
    assert status == 0
    assert ["--torch-backend" in call for call in calls] == [False]


def test_where_no_index_has_the_cpu_build_torchs_own_is_asked(install: Install) -> None:
    status, calls = install("-r", "cpu.lock", UV_SAYS=NO_TORCH)
    assert status == 0
    plain, asked = calls
    assert asked == [*plain[:-3][:8], "--torch-backend", "cpu", *plain[-3:]]


@pytest.mark.parametrize("status", ["0", "1"])
@pytest.mark.programs
def test_where_that_fails_too_pip_has_the_last_word(install: Install, status: str) -> None:
    found, calls = install("-r", "cpu.lock", UV_SAYS=NO_TORCH, ANYWAY_FAILS="no route to host", PIP_FAILS=status)
    assert found == int(status)
    assert [call[0] for call in calls] == ["uv", "uv", "pip"]
    assert calls[-1] == ["pip", "install", "-r", "cpu.lock"]


def test_another_failure_asks_no_other_index_for_torch(install: Install) -> None:
    _, calls = install("twine==0", UV_SAYS="Because there is no version of twine==0 it cannot be solved.")
    assert [call[0] for call in calls] == ["uv", "pip"]


@pytest.mark.parametrize("here", [{"uv_here": False}, {"UV_IS": "0.4.30"}])
@pytest.mark.programs
def test_without_a_uv_that_will_do_one_is_installed_and_otherwise_pip_does_it(
    install: Install, here: dict[str, str]
) -> None:
    """This pip installs none."""
    status, calls = install("-r", "cpu.lock", **here)
    assert status == 0
    first, second = calls
    assert first[:2] == ["pip", "install"]
    assert first[-1].endswith("requirements/install.lock")
    assert second == ["pip", "install", "-r", "cpu.lock"]


def test_every_environment_of_tox_installs_so(repository: Path) -> None:
    text = (repository / "tox.ini").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("install_command")]
    assert line == "install_command = python {tox_root}/requirements/install.py --no-deps {opts} {packages}"


# ------------------------------------------------------------------------------------------------------------- hashes


def test_every_locked_package_has_a_hash(repository: Path) -> None:
    """Whoever changes a lock runs requirements/hashes.py again."""
    folder = repository / "requirements"
    known = {line.split()[0] for line in (folder / "hashes.lock").read_text().splitlines() if line[0] != "#"}
    locked = set()
    for lock in folder.glob("*.lock"):
        if lock.name != "hashes.lock":
            pins = (line for line in lock.read_text().splitlines() if "==" in line and not line.startswith("#"))
            locked |= {re.sub(r"[-_.]+", "-", name).lower() + f"=={version}" for name, _, version in map(_parts, pins)}
    assert known == locked


def _parts(line: str) -> tuple[str, str, str]:
    return line.strip().partition("==")


@pytest.mark.programs
def test_a_lock_of_the_project_is_installed_with_its_hashes(install: Install, repository: Path) -> None:
    lock = repository / "requirements" / "install.lock"
    status, calls = install("--no-deps", "-r", str(lock))
    assert status == 0
    (call,) = calls
    (given,) = [word for word in call if str(word).endswith("install.lock")]
    assert given != str(lock)
    other = repository / "README.md"
    assert str(other) in install("-r", str(other))[1][0], "whatever else is asked for stays as it is"


@pytest.mark.programs
def test_another_file_than_the_locked_one_is_said_and_ends_it_where_locks_are_strict(
    install: Install, repository: Path
) -> None:
    lock = str(repository / "requirements" / "docs.lock")
    mismatch = "error: Hash mismatch for `uv==0.13.9`"
    status, calls = install("-r", lock, UV_SAYS=mismatch)
    assert status == 0
    assert [call[0] for call in calls] == ["uv", "uv", "pip"], "with hashes, without, and then as ever"
    assert lock in calls[1]
    status, calls = install("-r", lock, UV_SAYS=mismatch, HARNESS_LOCKS="strict")
    assert (status, len(calls)) == (1, 1)
    status, calls = install("-r", lock, uv_here=False, HARNESS_LOCKS="strict")
    assert status == 1
    assert [call for call in calls if call[-1] == lock] == []


@pytest.mark.programs
def test_an_audit_that_cannot_be_made_says_so(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "pip_audit.py").write_text(
        'raise SystemExit("requests.exceptions.ConnectionError: Max retries exceeded")'
    )
    told = audited(repository, tmp_path)
    assert (told.returncode, "skipped: " in told.stdout, "Max retries" in told.stdout) == (0, True, True)
    (tmp_path / "pip_audit.py").write_text('raise SystemExit("something else is wrong")')
    assert audited(repository, tmp_path).returncode == 1
    told = audited(repository, tmp_path, "/no/such/python")
    assert (told.returncode, told.stdout) == (0, "audit of /no/such/python: skipped: it is not there\n")


@pytest.mark.parametrize(
    ("packages", "status", "said"),
    [
        ([{"name": "a", "version": "1", "vulns": []}], 0, "1 packages, 0 not known to the index, 0 findings"),
        ([{"name": "a", "skip_reason": "none"}], 0, "skipped: the index here has no advisories"),
        (
            [{"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}],
            1,
            "a 1: CVE-1, mended in 2",
        ),
    ],
)
@pytest.mark.programs
def test_an_audit_says_what_is_known(
    repository: Path, tmp_path: Path, packages: list[dict[str, object]], status: int, said: str
) -> None:
    (tmp_path / "pip_audit.py").write_text(
        "import json, sys\n"
        "with open(sys.argv[sys.argv.index('--output') + 1], 'w') as file:\n"
        f"    json.dump({{'dependencies': {packages!r}}}, file)\n"
    )
    told = audited(repository, tmp_path)
    assert (told.returncode, said in told.stdout) == (status, True)


def audited(repository: Path, modules: Path, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(repository / "requirements" / "audit.py"), python]
    environment = os.environ | {"PYTHONPATH": str(modules)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
