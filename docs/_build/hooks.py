"""What mkdocs is told beside mkdocs.yml: the reference is made from the code, and results come from where they lie."""

from __future__ import annotations

import json
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent)]

import reference  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
# Guides in the order of who comes for what; those that are not named here follow, by name.
GUIDES = ("run", "choose", "publish", "upgrade", "nightly", "your-gpu", "sglang", "phone", "offline", "evaluate",
          "models-and-tasks", "quantized-models", "page-and-exports", "own-project", "extend", "house")  # fmt: skip
_LINK = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+)([^)#\s]+)(#[^)\s]*)?\)")


def results() -> dict[str, Path]:
    """Return the committed results that are pages of their own, by their place in the site."""
    folder = ROOT / "results"
    found = [*sorted((folder / "reference" / "tables").glob("*.md")), *sorted(folder.glob("*.md")), *sorted(folder.glob("gates/*/*.md"))]
    return {f"results/{path.relative_to(folder).as_posix()}": path for path in found}


def titled(name: str) -> dict[str, str]:
    """Return a page of results with a title that tells it from the others."""
    path = results()[name]
    if path.parent.name == "tables":
        return {f"All tables of {path.stem}": name}
    gate = json.loads(path.with_name("gate.json").read_text(encoding="utf-8"))
    return {f"Gate {gate['old']} to {gate['new'].rpartition('==')[2]}": name}


def on_config(config: Any) -> Any:
    guides = {path.stem: f"guides/{path.name}" for path in (ROOT / "docs" / "guides").glob("*.md")}
    order = [*(name for name in GUIDES if name in guides), *sorted(set(guides) - set(GUIDES))]
    listed = [name for name in results() if "/tables/" in name or "/gates/" in name]
    config.nav = [
        {"Start": "index.md"},
        {"Guides": [guides[name] for name in order]},
        {"Reference": list(reference.PAGES)},
        {"Methods": ["methods/index.md", "methods/gate.md", "methods/noise.md", {"How often rules are wrong": "results/rules.md"},
                     {"How often verdicts are wrong, simulated": "results/simulation.md"},
                     {"Gates of the same, and of planted faults": "results/gate_calibration.md"},
                     {"What gates found": "results/gate_detection.md"}]},
        {"Results": ["results/cpu.md", "results/h100.md", "results/h200.md", "results/float8.md", "results/phone.md", "results/recipes.md",
                     {"The literature's order of recipes": "results/literature.md"}, *map(titled, listed)]},
        {"Glossary": "glossary.md"},
    ]  # fmt: skip
    return config


def on_files(files: Files, config: Any) -> Files:
    for name, make in reference.PAGES.items():
        files.append(File.generated(config, name, content=make()))
    for name, path in results().items():
        files.append(File.generated(config, name, content=path.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links to files of the repository that are no pages of the site into their paths."""

    def replaced(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), found[2] + found[3]))
        if not path.startswith("../"):
            return found[0]
        if path.removeprefix("../") in files.src_uris:
            return f"[{found[1]}]({'../' * page.file.src_uri.count('/')}{path.removeprefix('../')}{found[4] or ''})"
        return found[1]

    return _LINK.sub(replaced, markdown)
