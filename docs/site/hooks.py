"""Hooks of `mkdocs build`: pages that live elsewhere in the repository become pages of the site, and links follow them.

Every link in a page is written as it works in the repository. A link to a file of the site is turned to its place there; one to
any other file of the repository becomes plain text; one to nothing fails the strict build. The page of the command
line is made of the help of the commands (commands.py).
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from commands import with_help  # mkdocs finds what lies beside a hook while it loads it
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "train/README.md",
    "examples/README.md",
    "benchmarks/GPU_TODO.md",
    "benchmarks/results/*.md",
    "benchmarks/results/*.png",
    "mexma_rt/models/*/README.md",
)
LINK = re.compile(r"(!?)\[([^\]\[]*)\]\((?![a-z]+:|#)([^)#\s]*)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside docs/, under their path in the repository."""
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Turn the links, except in blocks of code."""
    here = posixpath.dirname(page.file.src_uri)
    repository = here if page.file.generated_by else posixpath.join("docs", here)

    def turned(match: re.Match[str]) -> str:
        picture, text, link, anchor = match.groups()
        target = posixpath.normpath(posixpath.join(repository, link))
        if not (ROOT / target).exists():
            raise PluginError(f"{page.file.src_uri} links to {link}, which is not in the repository.")
        place = target.removeprefix("docs/")
        if (ROOT / target).is_dir():
            place = posixpath.join(place, "README.md")
        if files.get_file_from_path(place) is None:
            return f"{text} (`{target}`)"
        return f"{picture}[{text}]({posixpath.relpath(place, here or '.')}{anchor or ''})"

    parts = re.split(r"(^```.*?^```\s*?$)", markdown, flags=re.M | re.S)
    linked = "".join(part if part.startswith("```") else LINK.sub(turned, part) for part in parts)
    return with_help(linked) if page.file.src_uri == "cli.md" else linked
