"""What mkdocs is told beside mkdocs.yml: the reference is made from the code, and results come from where they lie."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent)]

import reference  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
# Guides in the order of who comes for what; those that are not named here follow, by name.
GUIDES = ("run", "publish", "upgrade", "nightly", "your-gpu", "sglang", "phone", "offline", "evaluate",
          "quantized-models", "page-and-exports", "extend", "house")  # fmt: skip
_LINK = re.compile(r"\]\(((?:\.\./)+)([^)#\s]+)(#[^)\s]*)?\)")


def results() -> dict[str, Path]:
    """Return the committed results that are pages of their own, by their place in the site."""
    folder = ROOT / "results"
    found = [*sorted((folder / "tables").glob("*.md")), *sorted(folder.glob("*.md")), *sorted(folder.glob("gates/*/*.md"))]
    return {f"results/{path.relative_to(folder).as_posix()}": path for path in found}


def on_config(config: Any) -> Any:
    guides = {path.stem: f"guides/{path.name}" for path in (ROOT / "docs" / "guides").glob("*.md")}
    order = [*(name for name in GUIDES if name in guides), *sorted(set(guides) - set(GUIDES))]
    config.nav = [
        {"Start": "index.md"},
        {"Guides": [guides[name] for name in order]},
        {"Reference": list(reference.PAGES)},
        {"Methods": ["methods/index.md", "methods/gate.md", "results/rules.md", "results/gate_calibration.md",
                     "results/gate_detection.md"]},
        {"Results": ["results/cpu.md", "results/h100.md", "results/phone.md", *(it for it in results() if "/tables/" in it
                     or "/gates/" in it)]},
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
        path = Path(page.file.src_uri).parent.as_posix() + "/" + found[1] + found[2]
        inside = _plain(path)
        if inside in files.src_uris:
            return found[0]
        place = _plain("docs/" + path)
        if place.startswith("results/") and place in files.src_uris:
            up = "../" * page.file.src_uri.count("/")
            return f"]({up}{place}{found[3] or ''})"
        return "](REPOSITORY)"

    return re.sub(r"\[([^\]]*)\]\(REPOSITORY\)", r"\1", _LINK.sub(replaced, markdown))


def _plain(path: str) -> str:
    parts: list[str] = []
    for part in path.split("/"):
        if part == ".." and parts:
            parts.pop()
        elif part not in (".", "", ".."):
            parts.append(part)
    return "/".join(parts)
