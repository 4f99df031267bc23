"""README and docs: every command is one, every link leads somewhere, every figure is one of the committed tables."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from _pytest.mark.expression import Expression

from harness.__main__ import COMMANDS as harness_commands
from harness.__main__ import main, parser
from harness.devices import KINDS
from harness.matrix.load import load
from harness.matrix.plan import Matrix
from harness.records import columns
from harness.records.published import Documented
from harness.records.run import Run
from harness.records.schema import Judgement, Measurement, Timing
from harness.report import blocks, choice, pays
from harness.report.tables import collect
from harness.servers import registry
from tests.conftest import REPOSITORY
from tests.reference import MAIN_JOB

PAGES = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md")]
PAGES += sorted((REPOSITORY / "docs").rglob("*.md"))
INSTALLED = {"tox", "uv", "mslk-cuda"}
"""What a reader may be told to install by name."""
READERS = {"my_tests", "l40s"}
"""Folders that a reader has, and hardware that is added as the guide says."""
_RUN_FOR_REAL = ("table", "export", "cost", "reference")


@dataclass(frozen=True)
class Fence:
    """A block of code of a page: its language, its lines, and why it is not tried, if it is not."""

    page: Path
    line: int
    language: str
    text: str
    untried: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def fences(page: Path) -> Iterator[Fence]:
    lines = page.read_text(encoding="utf-8").splitlines()
    found: list[str] | None = None
    start, language, untried = 0, "", ""
    for number, line in enumerate(lines, 1):
        if line.startswith("```"):
            if found is None:
                before = next((it for it in reversed(lines[: number - 1]) if it.strip()), "")
                told = re.fullmatch(r"<!-- untried: (.+) -->", before)
                start, language, untried, found = number, line[3:].strip(), told[1] if told else "", []
            else:
                yield Fence(page, start, language, "\n".join(found), untried)
                found = None
        elif found is not None:
            found.append(line)
    assert found is None, f"{page}: a fence is not closed"


FENCES = [fence for page in PAGES for fence in fences(page)]


def commands(fence: Fence) -> list[list[str]]:
    """Return every command of a fence as words, comments and variables that it sets left out."""
    lines = fence.text.replace("\\\n", " ").splitlines()
    if fence.language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        while words:
            end = next((at for at, word in enumerate(words) if word in ("&&", "|", ">", ">>")), len(words))
            found.append(words[:end])
            # What a pipe or a redirection goes to is no command of ours.
            words = words[end + 1 :] if end < len(words) and words[end] == "&&" else []
    return [stripped for words in found if (stripped := _without_variables(words))]


def _without_variables(words: list[str]) -> list[str]:
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    return words[3:] if words[:2] == ["taskset", "-c"] else words


COMMANDS = [(fence, words) for fence in FENCES if fence.language in ("bash", "console") and not fence.untried
            for words in commands(fence)]  # fmt: skip


def inline(page: Path) -> Iterator[tuple[Fence, list[str]]]:
    """Yield the commands that stand in a page's sentences."""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        for text in re.findall(r"(?<!`)`([^`]+)`(?!`)", line):
            if re.match(r"(?:pytest|python|harness|pip|tox|uv) \S", text):
                fence = Fence(page, number, "bash", text, "")
                yield from ((fence, words) for words in commands(fence))


INLINE = [found for page in PAGES for found in inline(page)]


# ------------------------------------------------------------------------------------------------------- what is tried


@pytest.fixture(scope="module")
def names() -> list[str]:
    """The ids of all tests of the suites."""
    command = [sys.executable, "-m", "pytest", "suites", "--co", "-q", "-p", "no:cacheprovider", "--no-header"]
    told = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    found = [line for line in told.stdout.splitlines() if "::" in line]
    assert len(found) > 300, told.stdout + told.stderr
    return found


@pytest.fixture(scope="module")
def matrix() -> Matrix:
    return load(REPOSITORY / "suites" / "matrix.toml")


def _pytest(words: list[str], config: pytest.Config, matrix: Matrix, names: list[str]) -> None:
    # The parser that this very session was started with, harness and all.
    given = config._parser.parse(words)
    markers = {line.split(":")[0].split("(")[0] for line in config.getini("markers")}
    for name in re.findall(r"[\w-]+", given.markexpr):
        assert name in markers | READERS | {"not", "and", "or"}, f"-m {name}"
    for path in given.file_or_dir:
        # harness init makes bench/ of the project's own suites.
        assert path in READERS or (REPOSITORY / path.removeprefix("bench/").split("::")[0]).exists(), path
    if given.keyword:
        expression = Expression.compile(given.keyword)
        assert any(expression.evaluate(functools.partial(_is_in, it.lower())) for it in names), words
    for recipe in given.recipe or []:
        assert recipe in matrix.recipes or matrix.recipe(recipe), recipe
    for server in given.server or []:
        assert server in (*registry.names(), "NAME"), server
    for model in given.model or []:
        assert model in matrix.models or "/" in model or model in ("FOLDER", "SmolLM2-360M-Instruct"), model
    for device in given.device or []:
        kinds = {kind.partition(":")[0] for kind in KINDS}
        assert device.partition(":")[0] in kinds | {"FORM"}, device


def _is_in(name: str, word: str, /, **_: object) -> bool:
    return word.lower() in name


def _harness(words: list[str], config: pytest.Config, matrix: Matrix, names: list[str]) -> None:
    if len(words) > 1:
        assert callable(parser().parse_args(words).run)
    else:
        # A sentence speaks of a command, or of all.
        assert not set(words) - set(harness_commands), words


def _pip(words: list[str], config: pytest.Config, matrix: Matrix, names: list[str]) -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    if words[:1] == ["list"]:
        return
    assert words[0] == "install"
    for word in (it for it in words[1:] if not it.startswith("-")):
        own = re.fullmatch(r"\.[\w./-]*(?:\[([\w,]+)\])?", word)
        if own:
            assert set((own[1] or "report").split(",")) <= set(extras), word
        else:
            known = {re.split(r"[=<>\[]", it)[0] for group in extras.values() for it in group}
            assert re.split(r"[=<>]", word)[0] in known | INSTALLED, word


def _tox(words: list[str], config: pytest.Config, matrix: Matrix, names: list[str]) -> None:
    tox = ConfigParser()
    tox.read(REPOSITORY / "tox.ini")
    given = argparse.ArgumentParser(exit_on_error=False)
    given.add_argument("command", choices=["run"])
    given.add_argument("-e", dest="environment", default="test")
    known, rest = given.parse_known_args(words)
    assert f"testenv:{known.environment}" in tox, words
    assert rest[:1] in ([], ["--"]), words


def _python(words: list[str], config: pytest.Config, matrix: Matrix, names: list[str]) -> None:
    if words[:2] == ["-m", "harness"]:
        _harness(words[2:], config, matrix, names)
    elif words[:2] == ["-m", "pytest"]:
        _pytest(words[2:], config, matrix, names)
    elif words[:2] == ["-m", "venv"]:
        assert len(words) == 3, words
    elif words[0] == "-m":
        assert importlib.util.find_spec(words[1]), words
    else:
        assert (REPOSITORY / words[0]).is_file(), words


def _tool(words: list[str], config: pytest.Config, matrix: Matrix, names: list[str]) -> None:
    """A tool of the project's own: that it is one is enough."""


PARSERS: dict[str, Callable[[list[str], pytest.Config, Matrix, list[str]], None]] = {
    "pytest": _pytest, "python": _python, "harness": _harness, "pip": _pip, "tox": _tox,
    "ruff": _tool, "mypy": _tool, "export": _tool, "cd": _tool,
}  # fmt: skip


@pytest.mark.parametrize(
    ("fence", "words"),
    COMMANDS + INLINE,
    ids=[f"{fence}: {' '.join(words)[:60]}" for fence, words in COMMANDS + INLINE],
)
def test_a_command_is_one(
    fence: Fence, words: list[str], pytestconfig: pytest.Config, matrix: Matrix, names: list[str]
) -> None:
    name = words[0].rpartition("/")[2]
    assert name in PARSERS, f"{fence}: nothing tries {words[0]!r}; mark the fence with <!-- untried: why -->"
    try:
        PARSERS[name](words[1:], pytestconfig, matrix, names)
    except (SystemExit, pytest.UsageError) as error:
        pytest.fail(f"{fence}: {shlex.join(words)}: {error}")


def test_code_stands_in_fences_which_say_their_language() -> None:
    """What is indented alone is tried by nothing."""
    assert [str(fence) for fence in FENCES if not fence.language] == []
    for page in PAGES:
        outside = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        assert re.findall(r"(?:\A|\n)\n    (\S.*)", outside) == [], page


def test_there_are_commands_and_few_that_are_not_tried() -> None:
    assert len(COMMANDS) > 60
    untried = [fence for fence in FENCES if fence.untried]
    assert len(untried) <= 6, [str(it) for it in untried]


def written(words: list[str]) -> Iterator[str]:
    """Yield the files and folders that a command writes where it is typed."""
    options = ("-o", "--dry-run", "--junit", "--json")
    yield from (after for word, after in itertools.pairwise(words) if word in options)
    if words[:3] == ["python", "-m", "harness"] and words[3] in ("init", "site", "bundle"):
        yield words[-1]


@pytest.mark.programs
def test_what_commands_write_leaves_git_clean(tmp_path: Path) -> None:
    """Whoever has typed them all in a checkout has nothing to commit."""
    files = sorted({file for _, words in COMMANDS for file in written(words) if not file.startswith("--")})
    assert {"report.html", "out/", "build/site", "gate.json", "bench"} <= set(files)
    shutil.copy(REPOSITORY / ".gitignore", tmp_path)
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    for file in files:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if Path(file).suffix:
            path.touch()
        else:
            path.mkdir(exist_ok=True)
            (path / "file").touch()
    seen = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    assert seen.split() == ["??", ".gitignore"], seen


@pytest.mark.programs
def test_cheap_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads records is run, in a folder as a session leaves it."""
    runs = tmp_path / "results" / "runs"
    shutil.copytree(MAIN_JOB, runs / "RUN")
    for name in ("reference", "shelf", "gates", "documented"):
        (tmp_path / "results" / name).symlink_to(REPOSITORY / "results" / name)
    monkeypatch.chdir(tmp_path)
    wanted = dict.fromkeys(
        tuple(words[3:])
        for _, words in COMMANDS
        if words[:3] == ["python", "-m", "harness"] and words[3] in _RUN_FOR_REAL
    )
    assert len(wanted) > 4
    for words in wanted:
        assert main(list(words)) == 0, words


def test_tables_of_the_matrix_are_ones(tmp_path: Path, repository: Path) -> None:
    """The guide's additions to matrix.toml, all together, make a matrix."""
    guide = repository / "docs" / "guides" / "extend.md"
    added = [fence.text for fence in FENCES if fence.page == guide and fence.language == "toml"]
    assert len(added) > 3
    shutil.copytree(repository / "suites", tmp_path / "suites")
    path = tmp_path / "suites" / "matrix.toml"
    path.write_text("\n".join([path.read_text(encoding="utf-8"), *added]), encoding="utf-8")
    found = load(path)
    assert "SmolLM2-360M-Instruct" in found.models
    assert "int8wo-group64" in found.recipes


def test_python_of_the_pages_compiles() -> None:
    for fence in FENCES:
        if fence.language == "python":
            compile(fence.text, str(fence), "exec")


# --------------------------------------------------------------------------------------------------------- what is said


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HOSTS = {"ai.google.dev", "github.com", "semver.org", "huggingface.co"}


@pytest.mark.parametrize(
    "page", [*PAGES, REPOSITORY / "SECURITY.md", REPOSITORY / "CHANGELOG.md"], ids=lambda it: it.name
)
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(page.read_text(encoding="utf-8")):
        host = re.match(r"https?://([^/]+)", link)
        if host:
            assert host[1] in _HOSTS, link
            continue
        path = link.partition("#")[0]
        # The reference is made from the code as the site is built.
        made = path.partition("reference/")[2] in {f"{it}.md" for it in reference_names()} and "reference/" in path
        assert not path or made or (page.parent / path).exists(), f"{page}: {link}"


def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", REPOSITORY / "docs" / "_build" / "reference.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference_names() -> list[str]:
    return [name.rpartition("/")[2].removesuffix(".md") for name in reference().PAGES]


def test_the_reference_says_something_of_everything() -> None:
    """No option, argument, metric or reason is there without a word on it."""
    made = {name: make() for name, make in reference().PAGES.items()}
    for name in ("reference/options.md", "reference/commands.md", "reference/verdicts.md"):
        rows = [line.strip("| ").split(" | ") for line in made[name].splitlines() if line.startswith("| ")]
        assert [row for row in rows if len(row) < 2 or not row[-1].strip()] == []
    for words in ("--recipe", "--against", "--resume"):
        assert words in made["reference/options.md"]
    for words in ("## gate", "## site", "--budget"):
        assert words in made["reference/commands.md"]
    assert "{#peak_memory}" in made["reference/metrics.md"]
    assert "too-noisy" in made["reference/verdicts.md"]
    assert "known_failure" in made["reference/matrix.md"]
    assert "## Measurement" in made["reference/records.md"]


def rows_of(text: str) -> list[tuple[str, ...]]:
    """Return the rows of all markdown tables of a text, as cells."""
    found = []
    for line in text.splitlines():
        if line.startswith("|") and not re.fullmatch(r"[|\-: ]+", line):
            cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
            found.append(tuple(cell.strip() for cell in cells))
    return found


@pytest.fixture
def main_job() -> Run:
    return Run(MAIN_JOB)


def test_what_the_main_job_took_is_what_its_committed_run_took(main_job: Run) -> None:
    lines, _ = main_job.read()
    took = lines[-1].time - lines[0].time
    stages: Counter[str] = Counter()
    for line in lines:
        if isinstance(line, Timing):
            stages[line.stage] += line.seconds
    stages["idle"] = took - stages.total()
    page = (REPOSITORY / "docs" / "results" / "cpu.md").read_text(encoding="utf-8")
    for stage, seconds in [*stages.items(), ("total", took)]:
        assert f"{stage:<14}{seconds:8.1f} s" in page
    limits = [line.passed for line in lines if isinstance(line, Judgement)]
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert f"{sum(limits)} of {len(limits)} limits hold" in readme
    for text in (page, readme):
        assert f" {took / 60:.1f} minutes" in " ".join(text.split())
    faster = pays.lines(lines, Documented.load())
    assert faster
    for line in faster:
        assert " ".join(line.split()) in " ".join(page.split())
    told = dict(line.split(": ", 1) for line in page.splitlines() if " through vllm on cpu: " in line)
    assert told
    for of, kernels in told.items():
        recipe = of.split()[1]
        (row,) = (
            line
            for line in lines
            if isinstance(line, Measurement)
            and (line.metric, line.cell.recipe.name, line.cell.server) == ("kernel_time", recipe, "vllm")
        )
        ran = main_job.attached(row.attachment)["kernels"][:3]
        assert kernels == ", ".join(f"{name} {1000 * seconds / row.value:.0%}" for name, seconds, _ in ran)


def test_what_compiled_starts_take_is_what_the_committed_runs_took() -> None:
    page = (REPOSITORY / "docs" / "results" / "cpu-compiled.md").read_text(encoding="utf-8")
    folders = re.findall(r"\[(?:first|second)\]\(../../(results/studies/[\w-]+)\)", page)
    due: dict[str, list[float]] = {}
    for folder in folders:
        for line in Run(REPOSITORY / folder).read()[0]:
            if isinstance(line, Measurement) and line.metric in ("engine_start", "compile_time"):
                due.setdefault(line.cell.recipe.name, []).append(line.value)
    assert len(folders) == 2
    assert due
    (told,) = re.findall(r"\| recipe \| first start .*\n\|[-|]+\n((?:\|.*\n)+)", page)
    rows = {name: figures for name, *figures in (re.findall(r"[\w.]+", row) for row in told.splitlines())}
    assert rows == {name: [f"{value:.1f}" for value in values] for name, values in due.items()}


def test_the_readmes_table_is_that_of_the_committed_records(main_job: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run = main_job.folder
    assert main(["table", str(run), "--layout", "main", "--wide"]) == 0
    made = rows_of(capsys.readouterr().out)
    assert len(made) > 5
    for name in ("README.md", "docs/index.md"):
        rows = rows_of((REPOSITORY / name).read_text(encoding="utf-8"))
        assert rows[: len(made)] == made, f"{name}: write it with harness table {run.name} --layout main --wide"


@pytest.mark.parametrize("page", ["cpu-compiled", "cpu-int4"])
def test_a_studys_table_is_that_of_its_committed_records(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (REPOSITORY / "docs" / "results" / f"{page}.md").read_text(encoding="utf-8")
    (run,) = re.findall(r"harness table (results/studies/\S+) --layout main", text)
    assert main(["table", str(REPOSITORY / run), "--layout", "main", "--wide"]) == 0
    made = rows_of(capsys.readouterr().out)
    columns = [made[0].index(name) for name in rows_of(text)[0] if name in made[0]]
    assert len(columns) > 2
    assert rows_of(text)[: len(made)] == [tuple(row[at] for at in columns) for row in made]


def test_what_choose_tells_of_the_main_job_is_what_its_records_tell(main_job: Run) -> None:
    found = choice.choices(collect(columns.load([main_job]).standing())[0])
    page = (REPOSITORY / "docs" / "guides" / "choose.md").read_text(encoding="utf-8")
    told = f"{blocks.text([found.table()], 100)}\nworth having: {', '.join(found.standing)}\n"
    assert f"```text\n{told}```\n" in page, f"docs/guides/choose.md is to have:\n{told}"


@pytest.mark.parametrize(("page", "table"), [("cpu", "cpu"), ("h100", "h100"), ("phone", "arm-mobile")])
def test_figures_of_the_results_are_those_of_the_committed_tables(page: str, table: str) -> None:
    committed: dict[str, set[str]] = {}
    tables = REPOSITORY / "results" / "reference" / "tables"
    for label, *cells in rows_of((tables / f"{table}.md").read_text(encoding="utf-8")):
        committed.setdefault(label, set()).update(cells)
    rows = rows_of((REPOSITORY / "docs" / "results" / f"{page}.md").read_text(encoding="utf-8"))
    checked = 0
    for label, *cells in rows:
        if label in committed and label != "Benchmark":
            assert set(cells) <= committed[label], (label, set(cells) - committed[label])
            checked += 1
    assert checked > 10
    assert checked > len(rows) * 0.8


def test_the_documentations_lock_has_what_the_harness_needs(repository: Path) -> None:
    """The reference is made from the code, so all that the code imports must be there as it is built."""
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lock = (repository / "requirements" / "docs.lock").read_text(encoding="utf-8")
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lock.splitlines() if "==" in line}
    wanted = [*project["dependencies"], *project["optional-dependencies"]["docs"]]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~ ;]", it)[0]).lower() for it in wanted}
    assert names - pinned == set()


def test_templates_of_issues_are_forms(repository: Path) -> None:
    found = sorted((repository / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(found) > 3
    for path in found:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.stem != "config":
            assert {"name", "description", "body"} <= set(form), path
            assert len({part["id"] for part in form["body"]}) == len(form["body"]), path
