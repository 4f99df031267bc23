"""The page: sound whatever names hold, small, and in a real Chromium free of errors, sortable, filterable, readable."""

from __future__ import annotations

import html.parser
import json
import random
import re
import shutil
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.__main__ import main
from harness.base.files import json_finite
from harness.judge.gatefile import VERDICT
from harness.judge.gatefile import load as load_gate
from harness.records.published import Documented
from harness.records.run import Run
from harness.records.schema import Judgement, Line, Measurement
from harness.report import html as report
from harness.report import judged, plots, tables, tradeoffs
from harness.report.svg import FONT, Scale, number, place_labels, shortened, spread, text_width
from tests.commands.test_export import gate_folder
from tests.laws import examples
from tests.records.test_columns import written
from tests.records.test_records import LINES
from tests.reference import MAIN_JOB
from tests.report.test_tables import measured

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = st.sampled_from(
    ["<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "a|b\nc", "<!--", "]]>", "{{7*7}}", "\u2028"]
)


class _Elements(html.parser.HTMLParser):
    """Collects what elements a page really has."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def page_of(runs: list[Run]) -> str:
    return report.render(runs, [], Documented(), "title")[0]


def hostile(line: Line, name: str) -> Line:
    """Put a hostile text in every place for one."""

    def changed(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {(f"{it} {name}" if key in ("packages", "parameters", "flags") else it): changed(inner, it)
                    for it, inner in value.items()}  # fmt: skip
        keep = ("kind", "direction", "weights", "outcome")
        return f"{value}{name}" if isinstance(value, str) and key not in keep else value

    return type(line).model_validate(changed(line.model_dump()))


@examples(8, quick=4)
@given(st.lists(LINES, max_size=3), HOSTILE)
@pytest.mark.programs
def test_no_text_of_a_record_becomes_markup(lines: list[Line], name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        given_lines = [hostile(line, name) for line in lines] + [
            hostile(measured("latency", value, of), name) for value, of in ((2.0, "bf16"), (1.0, "int8wo"))
        ]
        elements = _Elements()
        elements.feed(page_of([written(Path(folder), given_lines)]))
    tags = [tag for tag, _ in elements.found]
    assert "img" not in tags
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]
    assert [attributes for tag, attributes in elements.found if tag == "script"] == [{}]


@examples(10, quick=5)
@given(HOSTILE)
def test_markdown_keeps_its_cells_whatever_names_hold(name: str) -> None:
    lines = [hostile(measured("latency", value, of), name) for value, of in ((2.0, "bf16"), (1.0, "int8wo"))]
    text = tables.render(tables.tables_of("published", lines, Documented()), "md")  # type: ignore[arg-type]
    (rule,) = [line for line in text.splitlines() if line.startswith("|--")]
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {row.replace("\\|", "").count("|") for row in rows} == {rule.count("|")}
    assert "<script" not in text


def test_the_pareto_front_is_what_nothing_else_beats() -> None:
    rows = [{"x": x, "y": y} for x, y in ((1, 1), (2, 3), (3, 2), (2, 2), (4, 1))]
    assert [(row["x"], row["y"]) for row in tradeoffs.pareto(rows, True, True)] == [(2, 3), (3, 2), (4, 1)]
    assert [(row["x"], row["y"]) for row in tradeoffs.pareto(rows, False, True)] == [(1, 1), (2, 3)]


def test_a_trade_offs_bar_is_what_the_rounds_leave_open() -> None:
    def rows(spread: float) -> list[Measurement]:
        rounds = {"n": 5.0, "stdev": spread}
        return [
            measured(metric, value, of, server="transformers", statistics=statistics)
            for of, speed, loss in (("bf16", 20.0, 10.0), ("int8wo", 10.0, 11.0))
            for metric, value, statistics in (("generate_throughput", speed, rounds), ("perplexity", loss, {}))
        ]

    (sure,) = tradeoffs.trade_offs(tables.collect(rows(0.0))[0])
    assert "interval" not in sure.svg + sure.caption
    (open_,) = tradeoffs.trade_offs(tables.collect(rows(2.0))[0])
    assert "95% interval of generate" in open_.caption
    # In the wide picture and in the narrow one; 2.776 standard errors to either side reach beyond the other's point.
    bars = re.findall(r'<line class="interval c\d" x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)"', open_.svg)
    assert len(bars) == 4
    (low, at, high, same), (other_low, _, other_high, _) = (tuple(map(float, bar)) for bar in bars[:2])
    assert at == same
    assert high - low == pytest.approx(other_high - other_low, rel=0.02)


def test_an_improvements_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = random.Random(1)
    covered = 0
    for _ in range(600):
        base = [2.0 * generator.lognormvariate(0, 0.1) for _ in range(8)]
        other = [1.0 * generator.lognormvariate(0, 0.05) for _ in range(5)]
        means = [geometric_mean(side) for side in (base, other)]
        found = plots.interval(base, other, means[0] / means[1])
        assert found
        covered += found[0] <= 2.0 <= found[1]
    assert 0.925 <= covered / 600 <= 0.975


def test_few_or_impossible_samples_have_no_interval() -> None:
    assert plots.interval([1.0, 2.0], [1.0, 2.0, 3.0], 1.0) is None
    assert plots.interval([1.0, 2.0, 0.0], [1.0, 2.0, 3.0], 1.0) is None
    assert plots.interval([2.0] * 3, [1.0] * 3, 2.0) == (2.0, 2.0)


def test_many_samples_are_thinned_to_quantiles() -> None:
    kept = plots.thinned([float(it) for it in range(10_001)])
    assert (len(kept), kept[0], kept[-1]) == (plots.MOST_SAMPLES, 0.0, 10_000.0)


def test_a_token_never_reaches_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "the-secret-token")
    told = measured("latency", 1.0).model_copy(update={"discarded": "with the-secret-token and hf_" + "a" * 30})
    page = page_of([written(tmp_path, [told])])
    assert "the-secret-token" not in page
    assert "hf_aaaa" not in page


def test_a_run_without_its_baseline_still_gives_a_page(tmp_path: Path) -> None:
    page = page_of([written(tmp_path, [measured("latency", 1.0, "int8wo")])])
    assert "int8wo" in page


def test_a_recipe_of_which_only_the_device_was_measured_is_not_told_of(tmp_path: Path) -> None:
    run = written(tmp_path / "run", [measured("copy_bandwidth", 3000), measured("latency", 1.0, "int8wo")])
    page = page_of([run])
    assert "int8wo" in page
    assert "<td>bf16</td>" not in page


@pytest.mark.parametrize("command", ["table", "report", "export"])
def test_a_time_that_is_no_date_costs_its_own_line(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = written(tmp_path, [measured("latency", 1.25), measured("latency", 2.5, "int8wo")])
    lines = run.path.read_text(encoding="utf-8").splitlines()
    lines[-1] = json.dumps(json.loads(lines[-1]) | {"time": 1e18})
    run.path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = {"table": ["--layout", "all"], "report": [], "export": ["--format", "pytorch-v3"]}[command]
    assert main([command, str(run.folder), *options, "-o", str(tmp_path / "made")]) == 0
    told = capsys.readouterr()
    assert f"line {len(lines)}: left out, measurement.time" in told.err + told.out
    made = (tmp_path / "made").read_text(encoding="utf-8")
    assert "1.25" in made
    assert '"int8wo"' not in made


@pytest.mark.parametrize(("where", "why"), [(".", "a directory"), ("file/page", "Not a directory|File exists")])
@pytest.mark.parametrize("command", ["table", "report", "export"])
def test_an_output_that_cannot_be_written_is_one_error(
    tmp_path: Path, command: str, where: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = written(tmp_path, [measured("latency", 1.0)])
    (tmp_path / "file").write_text("kept")
    options = {"export": ["--format", "csv"]}.get(command, [])
    assert main([command, str(run.folder), *options, "-o", str(tmp_path / where)]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert re.match(rf"error: {re.escape(str(tmp_path / where))}: cannot be written \(.*({why})", told)
    assert (tmp_path / "file").read_text() == "kept"
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_page_over_the_limit_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "MOST_BYTES", 1000)
    run = written(tmp_path, [measured("latency", 1.0)])
    assert main(["report", str(run.folder), "-o", str(tmp_path / "page.html")]) == 2
    assert "give fewer runs" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


# ----------------------------------------------------------------------------------------------------------- a browser


HEIGHT = {"cpu": 2600, "h100": 3200, "h200": 3200, "arm-mobile": 3000}
"""What a page with everything folded may be high at 1280 pixels: three to four screens, whatever was measured."""


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A page of the committed reference runs, a gate, and a run that has hostile names and a failed limit."""
    folder = tmp_path_factory.mktemp("page")
    bad = measured("latency", 1.0, "<img src=x onerror=alert(1)>")
    limit = Judgement(cell=bad.cell, metric="latency", passed=False, measured=2, limit=1, comparison="max", origin="me")
    run = written(folder, [measured("latency", 2.0), bad, limit])
    references = [str(path) for path in sorted((repository / "results" / "reference").glob("*-20*"))]
    target = folder / "page.html"
    assert main(["report", *references, str(gate_folder(folder)), str(run.folder), "-o", str(target)]) == 0
    assert target.stat().st_size < 1_500_000
    return target


@pytest.fixture(scope="module")
def run_pages(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> dict[str, Path]:
    """A page for the first committed reference run of each hardware, by the run's name."""
    folder = tmp_path_factory.mktemp("pages")
    pages = {}
    runs = {
        run.name.partition("-20")[0]: run for run in sorted((repository / "results" / "reference").glob("*-20*"))[::-1]
    }
    for run in runs.values():
        pages[run.name] = folder / f"{run.name}.html"
        assert main(["report", str(run), "-o", str(pages[run.name])]) == 0
    return pages


@pytest.mark.programs
def test_the_page_of_a_run_is_small(run_pages: dict[str, Path]) -> None:
    assert any(name.startswith("h100") for name in run_pages)
    assert {name: path.stat().st_size for name, path in run_pages.items() if path.stat().st_size >= 600_000} == {}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if not CHROMIUM:
        pytest.skip("no Chromium is installed; on Debian: apt-get install chromium")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    # Nobody types an address; each window would start two more processes for what then pops up.
    flags += ["--disable-features=WebUIOmniboxPopup,WebUIOmniboxAimPopup,HttpsUpgrades,PaintHolding"]
    with sync.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*flags, "--disable-sync", "--no-first-run"])
        yield browser
        browser.close()


def opened(chromium: Any, file: Path, scheme: str = "light", width: int = 1280) -> tuple[Any, list[str], list[str]]:
    """Return the page, what went wrong, and what it asked for over a network."""
    page = chromium.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}).new_page()
    wrong: list[str] = []
    asked: list[str] = []
    page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    return page, wrong, [url for url in asked if not url.startswith(("file:", "data:"))]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 360)])
def test_it_loads_without_errors_or_a_network_and_fits(chromium: Any, page_file: Path, scheme: str, width: int) -> None:
    page, wrong, asked = opened(chromium, page_file, scheme, width)
    assert (wrong, asked) == ([], [])
    assert page.locator("svg.drawing").count() > 20
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ground, ink = (page.evaluate(f"getComputedStyle(document.body).{it}") for it in ("backgroundColor", "color"))
    lightness = [sum(map(int, it.removeprefix("rgb(").removesuffix(")").split(","))) for it in (ground, ink)]
    assert (lightness[0] > lightness[1]) == (scheme == "light")
    # Texts of plots follow the theme too.
    drawn = page.evaluate("getComputedStyle(document.querySelector('svg.drawing text.name')).fill")
    assert drawn == ink
    page.context.close()


def test_it_sorts_and_filters_by_keyboard_alone(chromium: Any, page_file: Path) -> None:
    page, wrong, _ = opened(chromium, page_file)
    page.locator("#figures > summary").focus()
    page.keyboard.press("Enter")
    table = page.locator("#every-figure")
    values = "[...document.querySelectorAll('#every-figure tbody tr:not([hidden])')].map(it => it.cells[6].textContent)"
    head = table.locator("th button", has_text="value")
    head.focus()
    page.keyboard.press("Enter")
    rising = [float(it) for it in page.evaluate(values)]
    assert rising == sorted(rising)
    assert table.locator("th[aria-sort=ascending]").count() == 1
    page.keyboard.press("Space")
    assert [float(it) for it in page.evaluate(values)] == rising[::-1]
    page.locator("#filter").focus()
    page.keyboard.type("int8wo LATENCY")
    texts = page.evaluate(
        "[...document.querySelectorAll('#every-figure tbody tr:not([hidden])')].map(it => it.textContent)"
    )
    assert texts
    assert all("int8wo" in it and "latency" in it for it in texts)
    assert "of" in page.locator("#count").text_content()
    page.locator("#theme").focus()
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("Enter")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    assert wrong == []
    page.context.close()


def test_sizes_sort_by_bytes_and_not_by_their_digits(chromium: Any, tmp_path: Path) -> None:
    sizes = {"bf16": 7.67e9, "int8wo": 163.8e6, "tiny": 900.0}
    # The table has a column a recipe, so the rows to sort are models' sizes in one column of every figure's table.
    run = written(tmp_path, [measured("checkpoint_size", size, of) for of, size in sizes.items()])
    target = tmp_path / "page.html"
    assert main(["report", str(run.folder), "-o", str(target)]) == 0
    page, _, _ = opened(chromium, target)
    page.locator("#figures > summary").click()
    page.locator("#every-figure th button", has_text="value").click()
    cells = page.evaluate("[...document.querySelectorAll('#every-figure tbody tr')].map(it => it.cells[1].textContent)")
    assert cells == ["tiny", "int8wo", "bf16"]
    page.context.close()


def test_it_prints_in_dark_ink_whatever_the_theme(chromium: Any, page_file: Path) -> None:
    page, _, _ = opened(chromium, page_file, "dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert not page.locator("#contents").is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.context.close()


def test_trend_lines_mark_where_the_level_changed(chromium: Any, tmp_path: Path) -> None:
    generator = random.Random(0)
    runs = []
    for day in range(24):
        level = 1.0 if day < 12 else 1.3
        row = measured("latency", level * generator.gauss(1, 0.01), "int8wo", time=1.7e9 + 86400 * day)
        runs.append(written(tmp_path, [row], f"run-{day:02}"))
    target = tmp_path / "page.html"
    assert main(["report", *(str(run.folder) for run in runs), "-o", str(target)]) == 0
    page, wrong, _ = opened(chromium, target)
    caption = page.locator("#trends figcaption").text_content()
    assert "int8wo at run-12" in caption
    assert caption.count(" at run-") == 1
    assert wrong == []
    assert page.locator("#trends svg.wide .dot").count() == 24
    assert "run-12" in page.locator("#trends svg.wide .dot[r='5'] title").text_content()
    page.context.close()


def test_one_run_has_no_plot_of_trends(run_pages: dict[str, Path]) -> None:
    for path in run_pages.values():
        text = path.read_text(encoding="utf-8")
        assert 'id="trends"' not in text
        assert "change of level" not in text


def test_what_a_baseline_says_stands_on_the_page(
    tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the verdicts of a committed gate where a night would have written its own."""
    gate = load_gate(repository / "results" / "gates" / "20261128-083821")
    run = written(tmp_path, [measured("latency", 1.0)])
    data = {"baseline": "results/baselines/cpu.json", "verdicts": [VERDICT.dump_python(it) for it in gate.verdicts]}
    (run.folder / "against.json").write_text(json.dumps(json_finite(data)))
    page = page_of([run])
    assert "against cpu: 2 regressed, 8 inconclusive, 29 pass." in page
    assert 'class="verdict bad"' in page
    assert f"<summary>{sum(it.verdict == 'pass' for it in gate.verdicts)} pass</summary>" in page
    assert page.count('<td class="regressed">') == 2
    (run.folder / "against.json").write_text('{"baseline": "cpu", "verdicts": [1]}')
    assert main(["report", str(run.folder), "-o", str(tmp_path / "page.html")]) == 0
    assert "against.json: left out" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- what is seen first


def shown(chromium: Any, run_pages: dict[str, Path], width: int, height: int, scheme: str = "light") -> Iterator[Any]:
    for name, path in run_pages.items():
        page = chromium.new_context(color_scheme=scheme, viewport={"width": width, "height": height}).new_page()
        page.goto(path.as_uri())
        yield name, page
        page.context.close()


def test_the_first_table_is_in_the_first_screen_and_the_rest_is_folded(
    chromium: Any, run_pages: dict[str, Path]
) -> None:
    for name, page in shown(chromium, run_pages, 1280, 800):
        table = page.locator("table.main").first.bounding_box()
        assert table["y"] < 400, name
        assert page.locator("p.verdict").bounding_box()["y"] < 150, name
        high = page.evaluate("document.documentElement.scrollHeight")
        assert high < next(most for of, most in HEIGHT.items() if name.startswith(of)), name
        assert page.locator("details.detail[open]").count() == 0, name
        page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
        contents = page.locator("#contents").bounding_box()
        assert abs(contents["y"]) < 10, f"{name}: the contents went out of sight"
        page.locator("#contents a", has_text="Every figure").click()
        assert page.locator("#every-figure").is_visible(), name


def test_on_a_phone_the_main_table_is_read_without_scrolling_aside(chromium: Any, run_pages: dict[str, Path]) -> None:
    for name, page in shown(chromium, run_pages, 390, 844, "dark"):
        page.evaluate("document.querySelectorAll('details').forEach(it => { it.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") == 390, name
        for table in page.locator("table.main").all():
            box = table.bounding_box()
            assert box["x"] >= 0, name
            assert box["x"] + box["width"] <= 390, name
        wide = "[...document.querySelectorAll('table.main td span')].filter(it => it.scrollWidth > it.clientWidth + 1)"
        assert page.evaluate(f"{wide}.length") == 0, name
        page.evaluate("scrollTo(0, 3000)")
        assert page.locator("#contents .bar").bounding_box()["y"] < 10, name


_TEXTS = """(minimum) => [...document.querySelectorAll('svg.drawing')].filter(it => it.checkVisibility()).map(svg => {
  const texts = [...svg.querySelectorAll('text')];
  const boxes = texts.map(it => it.getBoundingClientRect());
  const touching = [];
  for (let a = 0; a < boxes.length; a++) for (let b = a + 1; b < boxes.length; b++) {
    const [one, other] = [boxes[a], boxes[b]];
    const over = Math.min(one.right, other.right) - Math.max(one.left, other.left);
    const under = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
    if (over > 1 && under > 3) touching.push([texts[a].textContent, texts[b].textContent]);
  }
  const frame = svg.getBoundingClientRect();
  const outside = boxes.flatMap((it, at) =>
    it.left < frame.left - 1 || it.right > frame.right + 1 ? [texts[at].textContent] : []);
  const small = texts.filter(it => parseFloat(getComputedStyle(it).fontSize) < minimum).map(it => it.textContent);
  const size = svg.viewBox.baseVal.width - frame.width;
  return {touching, outside, small, size};
})"""


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_no_text_of_a_plot_is_small_or_overlaps_another(
    chromium: Any, run_pages: dict[str, Path], width: int, scheme: str
) -> None:
    drawn = 0
    for name, page in shown(chromium, run_pages, width, 900, scheme):
        page.evaluate("document.querySelectorAll('details').forEach(it => { it.open = true; })")
        for found in page.evaluate(_TEXTS, FONT):
            assert found == {"touching": [], "outside": [], "small": [], "size": 0}, name
            drawn += 1
    assert drawn > 20


def test_heads_and_first_columns_of_long_tables_stay_in_view(chromium: Any, run_pages: dict[str, Path]) -> None:
    path = next(path for name, path in run_pages.items() if name.startswith("cpu"))
    page, _, _ = opened(chromium, path, width=700)
    page.locator("#figures > summary").click()
    place = "document.querySelector('#every-figure').closest('.scroll')"
    page.evaluate(f"{place}.scrollTo(400, 400)")
    frame = page.locator(".scroll:has(#every-figure)").bounding_box()
    head = page.locator("#every-figure thead th").first.bounding_box()
    assert abs(head["x"] - frame["x"]) < 3
    assert abs(head["y"] - frame["y"]) < 3
    assert abs(page.locator("#every-figure tbody th").nth(30).bounding_box()["x"] - frame["x"]) < 3
    page.context.close()


def test_a_known_failure_is_amber_and_a_new_one_red(chromium: Any, tmp_path: Path) -> None:
    rows = [measured("latency", 2.0), measured("latency", 3.0, "int8wo"), measured("latency", 4.0, "int8dq")]
    common = {
        "metric": "latency",
        "passed": False,
        "measured": 1.5,
        "limit": 1.0,
        "comparison": "max_ratio",
        "origin": "me",
    }
    known = Judgement.model_validate(common | {"cell": rows[1].cell, "known": "its kernel is missing"})
    new = Judgement.model_validate(common | {"cell": rows[2].cell})
    target = tmp_path / "page.html"
    for lines, tone, words in (
        ([*rows, known], "known", "0 of 1 limits hold, 1 is a known failure."),
        ([*rows, known, new], "bad", "0 of 2 limits hold, 1 does not and 1 is a known failure."),
    ):
        run = written(tmp_path, lines, tone)
        assert main(["report", str(run.folder), "-o", str(target)]) == 0
        page, _, _ = opened(chromium, target)
        assert page.locator("p.verdict").text_content() == words
        assert page.locator(f"p.verdict.{tone}").count() == 1
        assert "its kernel is missing" in page.locator("#failed .known-box").text_content()
        cell = page.locator("table.main td.known")
        assert cell.count() == 1
        assert "known failure" in cell.text_content()
        assert page.locator("table.main td.failed").count() == (tone == "bad")
        red, green, _ = page.evaluate(
            "getComputedStyle(document.querySelector('td.known .flag')).color.match(/\\d+/g).map(Number)"
        )
        assert green > red / 2, "amber, not red"
        page.context.close()


def test_what_is_too_noisy_to_say_is_on_the_page_and_claims_nothing(tmp_path: Path) -> None:
    quiet, noisy = (
        measured("latency", value, of, parameters={"batch_size": 1}).model_copy(update={"samples": samples, **more})
        for value, of, samples, more in (
            (0.3, "bf16", [0.30, 0.31, 0.29], {}),
            (6.88, "int8wo", [0.53, 8.84, 11.27], {"disturbed": "shared: other processes used 1.3 of 2 processors"}),
        )
    )
    limit = {"metric": "latency", "parameters": {"batch_size": 1}, "passed": False, "noisy": True, "limit": 1.5}
    limit |= {"measured": 22.9, "low": 0.2, "high": 840.0, "comparison": "max_ratio", "origin": "me"}
    run = written(tmp_path, [quiet, noisy, Judgement.model_validate(limit | {"cell": noisy.cell})], "noisy")
    assert main(["report", str(run.folder), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    body = page[page.index("<main") :]
    assert "0 of 1 limits hold, of 1 it is too noisy to say." in page
    assert "limit: too noisy to say" in body
    noise = body.partition('<section id="noise">')[2].partition("</section>")[0]
    assert "by its rounds 0.2 to 840, limit 1.5: too noisy to say" in noise
    assert "1 of 2 figures were measured on a machine that was not quiet: shared: other processes" in noise
    assert "6.88s ± 5.6 †" in body
    assert "slowdown" not in body.partition("<script")[0]
    assert "known failure" not in body.partition("<script")[0]


def test_a_page_of_a_run_and_a_gate_begins_with_the_runs_table(tmp_path: Path) -> None:
    run = written(tmp_path, [measured("latency", 2.0, of) for of in ("bf16", "int8wo")], "run")
    assert main(["report", str(gate_folder(tmp_path)), str(run.folder), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    places = [page.index(it) for it in ('class="verdict', 'id="subject-1"', 'id="gate-1"', 'id="rest"')]
    assert places == sorted(places)
    contents = page[: page.index("<main")]
    assert contents.index("#subject-1") < contents.index("#gate-1")


def test_the_main_jobs_known_failure_is_told_by_its_test() -> None:
    found = judged.limits(Run(MAIN_JOB).lines())
    assert (len(found.failed), len(found.known)) == (0, 1)
    ((limit, why),) = found.known
    assert (limit.metric, limit.cell.recipe.name) == ("perplexity", "8da4w-int8emb")
    assert why


# ------------------------------------------------------------------------------------------------------ laws of drawing

_AT = st.floats(0, 1)
_NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-MW", min_size=1, max_size=24)


@given(st.lists(st.tuples(_AT, _AT, _NAMES), min_size=1, max_size=24))
def test_names_beside_points_never_touch(points: list[tuple[float, float, str]]) -> None:
    """Whatever the points, some height has room for all names; the page's plots grow until it is found."""
    texts = [shortened(name, 200) for _, _, name in points]
    for height in range(300, 4000, 60):
        places = [(58 + x * 400, 30 + y * (height - 90)) for x, y, _ in points]
        found = place_labels(places, texts, (58, 22, 470, height - 44))
        if found:
            break
    assert found
    boxes = [it.box for it in found]
    marks = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    for index, box in enumerate(boxes):
        assert box[0] >= 58
        assert box[2] <= 470
        for other in (*boxes[:index], *marks):
            assert not (box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3])


@given(st.lists(st.floats(0, 300), min_size=1, max_size=20))
def test_names_at_the_ends_of_lines_are_spread(wanted: list[float]) -> None:
    found = spread(wanted, 15, 0, 300)
    ordered = sorted(found)
    assert ordered[0] >= -1e-6
    assert ordered[-1] <= 300 + 1e-6
    assert all(after - before >= 15 - 1e-6 for before, after in pairwise(ordered))


@given(st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=9), st.booleans())
def test_a_scale_holds_its_values_and_has_round_ticks(values: list[float], log: bool) -> None:
    scale = Scale.over(values, 10, 300, log=log)
    assert all(10 <= scale(value) <= 300 for value in values)
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 7
    assert all(scale.low <= tick <= scale.high for tick in ticks)
    assert len({number(tick) for tick in ticks}) == len(ticks)


@given(st.text(max_size=60), st.floats(20, 300))
def test_a_shortened_text_fits_and_keeps_both_ends(text: str, pixels: float) -> None:
    found = shortened(text, pixels)
    assert text_width(found) <= pixels or len(found) <= 3
    assert found == text or (found[0] == text[0] and "\u2026" in found)
