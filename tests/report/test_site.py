"""The site: every link leads somewhere, it needs no server, it is made again only where something changed."""

from __future__ import annotations

import functools
import html.parser
import http.server
import json
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from harness.__main__ import main
from harness.records.schema import Measurement
from harness.report.site import STATE, _pair
from tests.records.test_columns import written
from tests.reference import MAIN_JOB
from tests.report.test_report import chromium as chromium
from tests.report.test_tables import measured

DAYS = 14


class _Links(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("href", "src")]
        self.ids |= {value or "" for name, value in attrs if name == "id"}


def _sampled(record: Measurement, samples: list[float]) -> Measurement:
    return record.model_copy(update={"samples": samples, "value": sum(samples) / len(samples)})


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A folder of runs: fourteen nights of one machine with a step in one figure, a hostile name, a committed run."""
    folder = tmp_path_factory.mktemp("stored") / "runs"
    generator = random.Random(3)
    for day in range(DAYS):
        level, time = 1.0 if day < DAYS - 6 else 1.3, 1.7e9 + 86400 * day
        lines = [
            _sampled(measured("latency", 2.0, time=time), [1.98, 2.0, 2.02]),
            _sampled(
                measured("latency", level, "int8wo", time=time), [level * generator.gauss(1, 0.004) for _ in range(3)]
            ),
            measured("checkpoint_size", 1e9 + day, "int8wo", time=time),
        ]
        written(folder, lines, f"night-{day:02}")
    written(folder, [measured("latency", 1.0, "<img src=x onerror=alert(1)>")], "a run & more")
    shutil.copytree(MAIN_JOB, folder / MAIN_JOB.name)
    return folder


@pytest.fixture(scope="module")
def site(stored: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    gates = repository / "results" / "gates"
    assert main(["site", str(folder), "--runs", str(stored), "--gates", str(gates)]) == 0
    return folder


@pytest.mark.programs
def test_every_link_of_every_page_leads_somewhere(site: Path) -> None:
    pages = {path: _Links() for path in site.rglob("*.html")}
    assert len(pages) > DAYS + 5
    for path, links in pages.items():
        links.feed(path.read_text(encoding="utf-8"))
    for path, links in pages.items():
        for link in links.found:
            parts = urlsplit(link)
            if parts.scheme == "data":
                continue
            assert not parts.scheme, f"{path}: {link} leaves the site"
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), f"{path}: {link}"
            if parts.fragment:
                assert parts.fragment in pages[target].ids, f"{path}: {link}"


@pytest.mark.programs
def test_nothing_is_written_again_that_did_not_change_and_what_is_gone_goes(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, folder = tmp_path / "runs", tmp_path / "site"
    for name in ("night-00", "night-01"):
        shutil.copytree(stored / name, runs / name)
    command = ["site", str(folder), "--runs", str(runs), "--gates", str(tmp_path / "none")]
    assert main(command) == 0
    capsys.readouterr()
    assert main(command) == 0
    assert "0 files new" in capsys.readouterr().out
    shutil.rmtree(runs / "night-00")
    (folder / "mine.html").write_text("kept")
    assert main(command) == 0
    assert "writing its page" not in capsys.readouterr().out
    assert not list(folder.glob("*/night-00.*"))
    assert (folder / "runs" / "night-01.html").is_file()
    assert (folder / "mine.html").is_file()
    (folder / STATE).write_text("damaged")
    assert main(command) == 0
    assert "night-01: writing its page" in capsys.readouterr().out


def test_what_a_run_was_too_noisy_for_is_compared_with_nothing(tmp_path: Path) -> None:
    for name, samples in (("noisy", [0.3, 1.0, 11.0]), ("quiet", [1.0, 1.01, 0.99])):
        written(tmp_path / "runs", [_sampled(measured("latency", 1.0), samples)], name)
    command = ["site", str(tmp_path / "site"), "--gates", str(tmp_path / "none")]
    assert main([*command, "--runs", str(tmp_path / "runs" / "noisy"), "--runs", str(tmp_path / "runs" / "quiet")]) == 0
    data = {name: (tmp_path / "site" / "data" / f"{name}.js").read_text("utf-8") for name in ("noisy", "quiet")}
    assert ["too noisy" in data[name] for name in ("noisy", "quiet")] == [True, False]


def test_nothing_to_show_is_an_error_that_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").mkdir()
    command = ["site", str(tmp_path / "site"), "--gates", str(tmp_path / "none")]
    assert main([*command, "--runs", str(tmp_path / "runs")]) == 2
    assert "no run and no gate was found" in capsys.readouterr().err
    assert main([*command, "--runs", str(tmp_path / "nowhere")]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert not (tmp_path / "site").exists()


@pytest.mark.programs
def test_a_trend_page_names_the_run_at_which_a_level_changed(site: Path) -> None:
    page = (site / "trend" / "latency.html").read_text(encoding="utf-8")
    assert f"int8wo at night-{DAYS - 6:02}" in page
    assert page.count("Change points") == 3  # the caption, and the label of each width


# ------------------------------------------------------------------------------------------------------------ a browser


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    """The site on a static host, on loopback."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_pages_fit_and_work_from_a_folder_and_from_a_host(
    chromium: Any, site: Path, served: str, width: int, scheme: str
) -> None:
    context = chromium.new_context(color_scheme=scheme, viewport={"width": width, "height": 844})
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    for root in (site.as_uri(), served):
        for name in ("index.html", "trend.html", "trend/latency.html", "compare.html?before=night-03&after=night-12"):
            page.goto(f"{root}/{name}")
            if "compare" in name:
                page.wait_for_function("document.querySelectorAll('#compared tbody tr').length > 0")
                words = page.locator("#summary").text_content()
                assert words.startswith("3 figures of both runs: 1 clearly worse, 0 clearly better")
                row = page.locator("#compared tbody tr").first.text_content()
                assert "latency" in row
                assert "worse" in row
                page.locator("#show").select_option("all")
                assert page.locator("#compared tbody tr").count() == 3
                if root == served:
                    assert "show=all" in page.url
            assert page.evaluate("document.documentElement.scrollWidth") == width, name
    assert wrong == []
    context.close()


@pytest.mark.programs
def test_a_site_says_nothing_of_the_hour_it_was_made(site: Path) -> None:
    """Equal runs give equal files, so a host or a commit sees only what changed."""
    state = json.loads((site / STATE).read_text(encoding="utf-8"))
    assert set(state) > {"night-00", ""}
    assert "written 20" not in (site / "runs" / "night-00.html").read_text(encoding="utf-8")


def test_the_runs_compared_first_are_the_latest_and_the_one_before_of_the_same_recipes() -> None:
    def row(figures: str, recipes: str = "bf16 int8wo", device: str = "cpu", models: str = "SmolLM2") -> dict[str, Any]:
        hardware = [device]
        told = {"device": device, "hardware": hardware, "models": models.split(), "recipes": recipes.split()}
        return {**told, "figures": figures.split()}

    newest_first = [
        ("part", row("a", "bf16")),
        ("gpu", row("a b", device="gpu")),
        ("last", row("a b")),
        ("other model", row("a b", models="Phi-4")),
        ("half", row("a", "int8wo")),
        ("before", row("a b c")),
        ("long ago", row("a b")),
    ]
    assert _pair(newest_first) == ("before", "last")
    assert _pair([newest_first[2], newest_first[4], newest_first[3]]) == ("other model", "last"), "most in common"
    assert _pair([("b", row("a")), ("a", row("c"))]) == ("a", "b"), "none in common"
    assert _pair([("a", row("a"))]) == ("a", "a")
    assert _pair([]) == ("", "")
