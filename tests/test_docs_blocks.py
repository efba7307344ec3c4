"""Every block of code in README.md and docs/ is run, or says in a comment above it why not; every link leads somewhere.

The blocks of a page run in its order, in one folder with the small files that the pages name. Python blocks of a page share
their names. Of bash blocks the syntax is checked, and every line of `mexma`, `mexma-export` and `mexma-train` is parsed by
that command itself; in README.md and docs/ the lines of `mexma` run, too.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

import mexma_rt
from mexma_rt.cli import main

ROOT = Path(__file__).parents[1]
RUN = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "benchmarks").rglob("*.md"))]
LINKED += [ROOT / "train/README.md", ROOT / "examples/README.md", *sorted((ROOT / "mexma_rt/models").glob("*/README.md"))]
ORDER = re.compile(r"^<!-- (?P<key>not run|file): (?P<value>.*?)(?:; needs: (?P<needs>.*?))? -->$")


@dataclass(frozen=True, kw_only=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    order: re.Match[str] | None  # the comment above it


def blocks_of(page: Path) -> list[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    found, start = [], None
    for i, line in enumerate(lines):
        if line.startswith("```") and start is None:
            start = i
        elif line == "```" and start is not None:
            above = ORDER.match(lines[start - 1]) if start else None
            body = "\n".join(lines[start + 1 : i]) + "\n"
            found.append(Block(page=page, line=start + 1, language=lines[start][3:], text=body, order=above))
            start = None
    assert start is None, f"{page}: the block of line {start} does not end"
    return found


def pages(paths: list[Path]) -> list[object]:
    return [pytest.param(path, id=path.relative_to(ROOT).as_posix()) for path in paths]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> Path:
    """What the pages' blocks find: two corpora, a bitext, a chapter, a test set in three languages, a bundle."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    french, english = ((ROOT / f"examples/{name}.txt").read_text("utf-8").splitlines() for name in ("french", "english"))
    files = {"source.txt": french[:150], "target.txt": english[:150], "sentences.txt": french[:20] + english[:20]}
    files |= {"bitext.fr": french[:60], "bitext.en": english[:60], "chapter.fr": french[:12], "chapter.en": english[:12]}
    files |= {f"languages/{name}.txt": lines[:30] for name, lines in [("fra", french), ("deu", english), ("eng", english)]}
    files["corpus.jsonl"] = [json.dumps({"text": line}) for line in english[:20]]
    (tmp_path / "languages").mkdir()
    for name, lines in files.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    load = mexma_rt.load
    monkeypatch.setattr(mexma_rt, "load", cache(load))  # one opening for all blocks of a page that ask for the same
    return tmp_path


def in_page(block: Block) -> bool:
    """Whether the block runs with the others of its page: it is no file of its own, and no comment says that it cannot run."""
    return block.order is None and (block.language == "python" or bool(commands(block)))


def commands(block: Block) -> list[list[str]]:
    """The lines of our own commands, as words; text after # and what is piped or redirected is left out."""
    if block.language not in ("bash", ""):
        return []
    lines = [line.strip().removeprefix("$ ") for line in block.text.replace("\\\n", " ").splitlines()]
    ours = [line for line in lines if line.startswith(("mexma ", "mexma-export ", "mexma-train "))]
    return [shlex.split(re.split(r" [|>] ", line)[0], comments=True) for line in ours]


@pytest.mark.parametrize("page", pages([page for page in RUN if any(map(in_page, blocks_of(page)))]))
def test_the_blocks_of_a_page_run(page: Path, folder: Path) -> None:
    names: dict[str, object] = {"__name__": "page"}
    for block in filter(in_page, blocks_of(page)):
        if block.language == "python":
            exec(compile("\n" * block.line + block.text, str(page), "exec"), names)
        else:
            run_lines(block)


def run_lines(block: Block) -> None:
    for words in commands(block):
        if words[0] == "mexma":
            result = CliRunner().invoke(main, words[1:])
            assert result.exit_code == 0, f"{block.page}:{block.line}: {shlex.join(words)}\n{result.output}{result.exception!r}"


def names_of_file(page: str, file: str) -> dict[str, Any]:
    """Run a block that is a file of its own; gives its names. Skips where a package that it needs is not installed."""
    (block,) = (b for b in blocks_of(ROOT / page) if b.order and b.order["value"] == file)
    assert block.order is not None
    for package in block.order["needs"].split():
        pytest.importorskip(package, reason=f"{package} is not installed")
    names: dict[str, Any] = {"__name__": file.removesuffix(".py")}
    exec(compile("\n" * block.line + block.text, f"{page}:{file}", "exec"), names)
    return names


def test_the_service_of_the_production_page_answers(folder: Path) -> None:
    names = names_of_file("docs/production.md", "service_app.py")
    from fastapi.testclient import TestClient

    with TestClient(names["app"]) as client:
        answer = client.post("/embed", json={"texts": ["Hello world", "Bonjour"]})
        assert answer.status_code == 200 and len(answer.json()) == 2
        assert answer.json()[0] == pytest.approx(mexma_rt.embed(["Hello world", "Bonjour"])[0].tolist(), abs=1e-5)
        assert client.post("/embed", json={"texts": "no list"}).status_code == 422
        assert client.post("/embed", content=b'{"texts": ["\\ud800"]}').status_code == 422


@pytest.mark.peers
@pytest.mark.parametrize("file", ["st.py", "fast.py"])
def test_a_peer_loads_the_bundle_and_gives_its_vectors(folder: Path, file: str) -> None:
    names = names_of_file("docs/interop.md", file)
    ours = mexma_rt.load("bundle/", precision="fp32").embed(["Hello world", "Bonjour le monde"])
    assert np.abs(np.array(names["theirs"]) - ours).max() < 1e-5


@pytest.mark.peers
def test_the_adapter_of_langchain(folder: Path) -> None:
    adapter = names_of_file("docs/interop.md", "lang.py")["MexmaEmbeddings"]()
    from langchain_core.vectorstores import InMemoryVectorStore

    store = InMemoryVectorStore.from_texts(["Where is the station?", "I like soup."], adapter)
    assert store.similarity_search("Où est la gare ?", k=1)[0].page_content == "Where is the station?"


@pytest.mark.peers
def test_the_adapter_of_llama_index(folder: Path) -> None:
    adapter = names_of_file("docs/interop.md", "llama.py")["MexmaEmbedding"]()
    texts = ["Where is the station?", "I like soup."]
    np.testing.assert_allclose(adapter.get_text_embedding_batch(texts), mexma_rt.embed(texts), atol=1e-5)
    assert adapter.get_query_embedding(texts[0]) == pytest.approx(mexma_rt.embed(texts[:1])[0].tolist(), abs=1e-5)


@pytest.mark.parametrize("page", pages([page for page in LINKED if "```bash" in page.read_text("utf-8")]))
def test_bash_blocks_parse_and_their_options_exist(page: Path) -> None:
    for block in blocks_of(page):
        if block.language != "bash":
            continue
        done = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True, check=False)
        assert done.returncode == 0 and not done.stderr, f"{page}:{block.line}: {done.stderr}"
        for words in commands(block):
            try:
                parse(words)
            except click.UsageError as error:
                raise AssertionError(f"{page}:{block.line}: {shlex.join(words)}: {error.format_message()}") from error


def parse(words: list[str]) -> None:
    """Have the command read its arguments, and do nothing. Raises click.UsageError for an option it does not have.

    With each command's own settings: click keeps the help option of the first context that a command meets, here and in
    other tests of the process.
    """
    first, *arguments = words
    name: str | None = first
    command: click.Command | None = main
    if first != "mexma":
        command = pytest.importorskip(first.replace("-", "_") + ".cli").main
    context = None
    while isinstance(command, click.Group):
        context = click.Context(command, info_name=name, parent=context, **command.context_settings)
        name, command, arguments = command.resolve_command(context, arguments)
    assert command is not None
    context = click.Context(command, info_name=name, parent=context, **command.context_settings)
    command.make_parser(context).parse_args(arguments)


def test_the_parse_refuses_what_is_not_there() -> None:
    with pytest.raises(click.UsageError, match="No such option"):
        parse(["mexma", "mine", "a", "b", "--no-such-option"])
    with pytest.raises(click.UsageError, match="No such command"):
        parse(["mexma", "min", "a", "b"])


@pytest.mark.parametrize("page", pages(LINKED))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), f"{page}: {target}"
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists() and file.is_relative_to(ROOT), f"{page} links to {target}, which is not there"
        if anchor:
            assert anchor in headings(file), f"{page} links to {target}, and {file.name} has no such heading"


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub and mkdocs make them of its headings."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.M):
        given = re.search(r"\{ #(\S+) \}$", heading)
        plain = re.sub(r"[^\w\- ]", "", heading.lower().strip())
        found.add(given[1] if given else re.sub(r"[\s-]+", "-", plain))
    return found
