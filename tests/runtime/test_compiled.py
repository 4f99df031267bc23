"""What compilers leave: found by the next start of the same, by no other, and never trusted when damaged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.base.errors import WorkerError
from harness.runtime.compiled import Compiled
from harness.runtime.environment import Environment
from harness.runtime.job import Job, Worker
from harness.runtime.process import ForkServer
from harness.runtime.store import Store

KEY = {"server": "vllm", "packages": {"torch": "2.13.0"}}
VARIABLES = {"VLLM_CACHE_ROOT": "vllm", "TRITON_CACHE_DIR": "triton"}


def started(store: Store, key: dict[str, object] = KEY) -> Compiled:
    return Compiled(store, key, VARIABLES, "a cell")


def compile_into(one: Compiled, name: str, text: str = "code") -> None:
    file = Path(one.variables["VLLM_CACHE_ROOT"]) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def working(cache: Path) -> set[Path]:
    return {it for it in (cache / "compiling").iterdir() if it.is_dir()}


def held(one: Compiled) -> dict[str, str]:
    root = Path(one.variables["VLLM_CACHE_ROOT"])
    return {str(it.relative_to(root)): it.read_text() for it in root.rglob("*") if it.is_file()}


def test_a_second_start_finds_what_the_first_one_compiled(tmp_path: Path) -> None:
    first = started(Store(tmp_path))
    assert first.found is None
    compile_into(first, "graph/a.so")
    compile_into(first, "graph/a.lock")
    compile_into(first, "graph/b.so.tmp")
    assert first.keep({"compile_seconds": 131.0})
    assert not first.keep({"compile_seconds": 1.0})
    first.close(whole=True)
    second = started(Store(tmp_path))
    assert second.found == {"cell": "a cell", "compile_seconds": 131.0}
    assert held(second) == {"graph/a.so": "code"}
    assert not second.keep({"compile_seconds": 2.0})
    second.close(whole=True)
    assert working(tmp_path) == set()


def test_a_start_works_where_the_one_before_it_did_since_compilers_write_down_where_their_files_lie(
    tmp_path: Path,
) -> None:
    places = []
    for _ in range(3):
        one = started(Store(tmp_path / "cache"))
        place = one.variables["VLLM_CACHE_ROOT"]
        compile_into(one, "index", f"{place}/a.so")
        compile_into(one, "a.so")
        one.close(whole=True)
        places.append(place)
    assert len(set(places)) == 1
    one = started(Store(tmp_path / "cache"))
    assert Path(held(one)["index"]).read_text(encoding="utf-8") == "code"
    # Beside it is another place, where nothing of the first is of use.
    beside = started(Store(tmp_path / "cache"))
    assert beside.variables != one.variables
    assert (beside.found, held(beside)) == (None, {})
    for it in (one, beside):
        it.close(whole=True)
    # A cache that was moved or carried to another machine is another place too.
    (tmp_path / "cache").rename(tmp_path / "moved")
    moved = started(Store(tmp_path / "moved"))
    assert (moved.found, held(moved)) == (None, {})
    moved.close(whole=True)


def test_what_an_engine_knows_of_its_own_code_is_found_by_other_recipes_of_the_same_packages(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def start(recipe: str, torch: str = "2.13.0") -> Compiled:
        key = {"config": recipe, "packages": {"torch": torch}}
        return Compiled(store, key, VARIABLES, recipe, common=["vllm/modelinfos"], of=["packages"])

    first = start("bf16")
    compile_into(first, "modelinfos/llama.json")
    compile_into(first, "graph.so")
    first.close(whole=True)
    second = start("float8dq")
    assert (second.found, held(second)) == (None, {"modelinfos/llama.json": "code"})
    assert not second.keep()
    compile_into(second, "modelinfos/qwen.json")
    second.close(whole=True)
    third, other = start("int8wo"), start("int8wo", torch="2.14.0")
    assert set(held(third)) == {"modelinfos/llama.json", "modelinfos/qwen.json"}
    assert held(other) == {}
    for it in (third, other):
        it.close(whole=False)


def test_what_is_thrown_away_is_not_found_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = started(store)
    assert not first.forget()
    compile_into(first, "a.so")
    first.close(whole=True)
    second = started(store)
    assert second.found is not None
    assert second.forget()
    assert not second.forget()
    second.close(whole=False)
    third = started(store)
    assert (third.found, held(third)) == (None, {})
    third.close(whole=False)


@pytest.mark.parametrize(
    "other", [{**KEY, "packages": {"torch": "2.14.0"}}, {**KEY, "device": "another"}, {**KEY, "torchao": "mended"}]
)
def test_what_was_compiled_of_something_else_is_not_found(tmp_path: Path, other: dict[str, object]) -> None:
    store = Store(tmp_path)
    first = started(store)
    compile_into(first, "a.so")
    first.close(whole=True)
    second = started(store, other)
    assert (second.found, held(second)) == (None, {})
    second.close(whole=False)


def test_what_a_start_compiles_later_is_kept_as_it_ends_beside_what_was_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    # At once, as engine and server of a cell are on a processor: each finds its own again.
    engine, server = started(store), started(store)
    compile_into(engine, "engine.so")
    engine.keep({"compile_seconds": 40.0})
    compile_into(server, "server.so")
    server.keep()
    compile_into(engine, "first_batch.so")
    for one in (engine, server):
        one.close(whole=True)
    engine, server = started(store), started(store)
    assert held(engine) == dict.fromkeys(("engine.so", "first_batch.so"), "code")
    assert engine.found == {"cell": "a cell", "compile_seconds": 40.0}
    assert held(server) == {"server.so": "code"}
    for one in (engine, server):
        one.close(whole=True)


def test_nothing_is_kept_of_a_start_that_failed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = started(store)
    compile_into(first, "half.so")
    first.close(whole=False)
    assert started(store).found is None


@pytest.mark.parametrize("damage", ["contents", "missing", "manifest"])
def test_what_is_damaged_is_thrown_away_and_told_of(tmp_path: Path, damage: str) -> None:
    told: list[str] = []
    first = started(Store(tmp_path))
    compile_into(first, "a.so")
    first.close(whole=True)
    (artifact,) = (it for it in (tmp_path / "compiled").iterdir() if it.is_dir())
    if damage == "contents":
        (artifact / "vllm" / "a.so").write_text("edoc", encoding="utf-8")
    elif damage == "missing":
        (artifact / "vllm" / "a.so").unlink()
    else:
        (artifact / "artifact.json").write_text("{}", encoding="utf-8")
    second = started(Store(tmp_path, told.append))
    assert (second.found, held(second)) == (None, {})
    assert "compilation of a cell: the stored artifact is damaged" in told[0]
    compile_into(second, "a.so")
    second.close(whole=True)
    assert held(started(Store(tmp_path))) == {"a.so": "code"}


def test_a_disk_that_is_full_at_the_end_loses_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = started(Store(tmp_path))
    compile_into(first, "a.so")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.runtime.store._sync", full)
    first.close(whole=True)
    monkeypatch.undo()
    assert started(Store(tmp_path)).found is None


def test_the_folder_of_a_planner_that_was_killed_is_thrown_away(tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from harness.runtime.compiled import Compiled;"
        "from harness.runtime.store import Store;"
        f"Compiled(Store(Path({str(tmp_path)!r})), {{}}, {{}}, 'a cell'); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    left = working(tmp_path)
    assert len(left) == 1
    mine, other = started(Store(tmp_path)), started(Store(tmp_path))
    assert len(working(tmp_path)) == 2
    assert not left & working(tmp_path)
    mine.close(whole=False)
    other.close(whole=False)


def test_a_package_of_the_same_version_with_other_code_is_another(tmp_path: Path) -> None:
    for side, code in (("old", "x = 1"), ("same", "x = 1"), ("new", "x = 2")):
        package = tmp_path / side / "torchao"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(code, encoding="utf-8")
    old, same, new = (Environment(overlay=tmp_path / side).sources("torchao") for side in ("old", "same", "new"))
    assert old == same != new
    assert new != Environment(overlay=tmp_path).sources("no_such_package_at_all")


# ------------------------------------------------------------------------------------------------- of workers

# Stands in for an engine: compiles into the folder it is told, and says what was there.
STUB = """\
#!{python} -IS
import json, os
from pathlib import Path
requests = os.fdopen(int(os.environ["HARNESS_REQUESTS_FD"]))
replies = int(os.environ["HARNESS_REPLIES_FD"])
job = json.loads(requests.readline())
folder = Path(os.environ["VLLM_CACHE_ROOT"])
there = sorted(it.name for it in folder.glob("*"))
folder.mkdir(exist_ok=True)
(folder / "start").write_text("code")
if job["specification"].get("broken"):
    raise SystemExit(1)
os.write(replies, (json.dumps(dict(kind="ready", value=dict(there=there))) + "\\n").encode())
requests.readline()
(folder / "end").write_text("code")
"""


def test_a_worker_finds_what_one_before_it_compiled_and_one_that_fails_leaves_nothing(tmp_path: Path) -> None:
    python = tmp_path / "stub"
    python.write_text(STUB.format(python=sys.executable))
    python.chmod(0o755)
    store = Store(tmp_path / "cache")

    def worker(**specification: bool) -> Worker:
        return Worker(
            Job(backend="stub", specification=specification),
            environment=Environment(python=str(python)),
            store=store,
            log=tmp_path / "logs" / "worker.log",
            label="a worker",
            compiled=started(store),
        )

    broken = worker(broken=True)
    with pytest.raises(WorkerError):
        broken.wait_ready(20)
    broken.close()
    for due in ([], ["end", "start"]):
        one = worker()
        assert one.wait_ready(20)["there"] == due
        one.close()
    assert working(store.root) == set()


def test_a_forked_process_has_variables_of_its_own(forks: ForkServer, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("import os; print(os.environ.get('VLLM_CACHE_ROOT'))", encoding="utf-8")
    (tmp_path / "argv.json").write_text('["-c"]', encoding="utf-8")
    said = []
    for environ in ({"VLLM_CACHE_ROOT": "/one"}, {"VLLM_CACHE_ROOT": "/two"}, {}):
        process = forks.start("tests.forked", [str(tmp_path)], log=tmp_path / "log", environ=environ)
        assert process.wait(60) == 0
        process.end()
        said.append((tmp_path / "stdout").read_text(encoding="utf-8").split()[-1])
        (tmp_path / "stdout").unlink()
    assert said == ["/one", "/two", "None"]
