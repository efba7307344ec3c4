"""Figures cannot rot: what README.md, the pages and the cards say was measured is what the files in benchmarks/results/ say."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from pathlib import Path

import pytest

from mexma_rt.bundle.golden import LEAST_COSINE
from mexma_rt.bundle.opening import bundled_models

from .scripts import load_script

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
README = (ROOT / "README.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?")
CARDS = sorted((ROOT / "mexma_rt/models").glob("*/README.md"))


def agrees(said: str, measured: float) -> bool:
    """Whether a number as written is the measured one, rounded to the digits that it has."""
    decimals = len(said.partition(".")[2])
    return abs(float(said.replace(",", "")) - measured) <= 0.5 * 10**-decimals + 1e-9


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in NUMBER.findall(text)]


def search(pattern: str, text: str) -> re.Match[str]:
    found = re.search(pattern, text, re.M)
    assert found is not None, f"{pattern} is not in {text[:200]!r}"
    return found


def result(name: str) -> str:
    return (RESULTS / name).read_text(encoding="utf-8")


def quality_of(model: str) -> dict:
    """What `mexma-train eval --suite` measured of a model: benchmarks/results/quality*.json."""
    for path in sorted(RESULTS.glob("quality*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["model"]["name"] == model:
            return content
    raise AssertionError(f"No benchmarks/results/quality*.json is of {model}: mexma-train eval --suite {model} writes one.")


def readme_rows() -> list[tuple[str, str]]:
    """(what was measured, what README.md says of it)."""
    table = README.split("| measured on the bundled files | |\n|---|---|\n")[1].split("\n\n")[0]
    return [tuple(cell.strip() for cell in line.strip("|").rsplit("|", 1)) for line in table.splitlines()]  # type: ignore[misc]


def of_language(text: str) -> list[tuple[str, str]]:
    return re.findall(r"\b(?!the)([a-z]{3}) ([\d.]+)", text)


def check_accuracy(said: str, quality: dict) -> None:
    mean = quality["averages"]["tatoeba_accuracy"]["trained"]
    share, languages = search(r"([\d.]+) % over the (\d+) languages", said).groups()
    assert agrees(share, mean["mean"]) and agrees(languages, mean["languages"])
    for language, accuracy in of_language(said):
        assert agrees(accuracy, quality["languages"][language]["tatoeba_accuracy"]), language


def check_xsim(said: str, quality: dict) -> None:
    mean = quality["averages"]["flores_xsim"]["trained"]
    error, languages = search(r"([\d.]+) % over the (\d+) ", said).groups()
    assert agrees(error, mean["mean"]) and agrees(languages, mean["languages"])


def check_f1(said: str, quality: dict) -> None:
    assert of_language(said)
    for language, f1 in of_language(said):
        assert agrees(f1, quality["mining"][language]["0"]["f1"]), language


def check_parity(said: str, quality: dict) -> None:
    folder = bundled_models()[quality["model"]["name"]]
    manifest = json.loads((folder / "mexma.json").read_text(encoding="utf-8"))
    parity = manifest["parity"][manifest["default_precision"]]
    lowest, mean = search(r"lowest ([\d.]+), mean ([\d.]+)", said).groups()
    assert agrees(lowest, parity["min_cosine"]) and agrees(mean, parity["mean_cosine"])


def check_embed(said: str, quality: dict) -> None:
    table = result("embed_small.md").split("**mixed**")[1].split("\n\n")[1]
    rows = {cells[1].strip(): float(cells[4].split()[0]) for cells in (row.split("|") for row in table.splitlines()[2:])}
    w4, int8, bf16 = search(r"([\d.]+) times its default as.*, ([\d.]+) times with .*\(its bf16: ([\d.]+)\)", said).groups()
    assert agrees(w4, rows["mexma embed, w4"]) and agrees(int8, rows["mexma embed, int8"])
    assert agrees(bf16, rows["sentence-transformers, torch bf16"])


def check_faiss(said: str, quality: dict) -> None:
    cells = search(r"^\| times as fast as faiss, each round \|(.*)\|$", result("mining_speed.md"))[1].split("|")
    for dimensions, columns in (("384", cells[:2]), ("1,024", cells[2:])):
        rates = numbers(" ".join(columns))
        lowest, highest = search(rf"([\d.]+) to ([\d.]+)(?: times as fast)? at {dimensions}", said).groups()
        assert agrees(lowest, min(rates)) and agrees(highest, max(rates)), dimensions


def check_knn(said: str, quality: dict) -> None:
    part = result("mining_speed.md").split("## `mexma knn` out of core")[1]
    hours, share, memory = search(r"([\d.]+) h \(extrapolated from ([\d.]+) %\), peak memory ([\d.]+) GB", said).groups()
    assert agrees(hours, float(search(r"extrapolated from [\d.]+%: ([\d.]+) h", part)[1]))
    assert agrees(share, float(search(r"extrapolated from ([\d.]+)%", part)[1]))
    assert agrees(memory, float(search(r"peak of the whole process \(VmHWM\): ([\d.]+) of", part)[1]))


CHECKS = {
    "Tatoeba, accuracy": check_accuracy,
    "FLORES-200 devtest, xsim": check_xsim,
    "`mexma mine`": check_f1,
    "cosine to the PyTorch checkpoint": check_parity,
    "sentences per second": check_embed,
    "exact neighbours": check_faiss,
    "`mexma knn`": check_knn,
}


@pytest.mark.parametrize("what, said", [pytest.param(*row, id=row[0][:30]) for row in readme_rows()])
def test_a_row_of_the_readme_is_what_the_file_of_results_says(what: str, said: str) -> None:
    (model,) = set(re.findall(r"^`(mexma-\w+)`: ", README, re.M))
    check = next((check for start, check in CHECKS.items() if what.startswith(start)), None)
    if check is not None:
        check(said, quality_of(model))
        return
    everything = numbers(" ".join(path.read_text(encoding="utf-8") for path in RESULTS.glob("*.md")))
    missing = [number for number in NUMBER.findall(said) if "." in number and not any(agrees(number, x) for x in everything)]
    assert not missing, f"{missing} of {what!r} is in no file of benchmarks/results/"


@pytest.mark.parametrize("card", [pytest.param(card, id=card.parent.name) for card in CARDS])
def test_the_rows_of_a_card_are_those_of_its_quality_file(card: Path) -> None:
    quality = quality_of(card.parent.name)
    rows = re.findall(
        r"^\| ([a-z]{3}) \| (?:yes|no) \| ([\d.]+|-) \| ([\d.]+|-) \| ([\d.]+|-) \|$", card.read_text("utf-8"), re.M
    )
    assert len(rows) > 20
    for language, *cells in rows:
        for key, cell in zip(("flores_xsim", "tatoeba_to_english", "tatoeba_from_english"), cells, strict=True):
            measured = quality["languages"][language].get(key)
            assert (cell == "-") == (measured is None) and (cell == "-" or agrees(cell, measured)), (language, key)


def test_the_parity_page_has_the_thresholds_of_the_code() -> None:
    page = (ROOT / "docs/parity.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([\d.]+) \| ([\d.]+) \|$", page, re.M)
    said = {name: (float(lowest), float(mean)) for names, lowest, mean in rows for name in re.findall(r"`(\w+)`", names)}
    assert {name: lowest for name, (lowest, _) in said.items()} == LEAST_COSINE
    verdict = pytest.importorskip("mexma_export.verdict")
    assert said == {name: (t.min_cosine, t.mean_cosine) for name, t in verdict.THRESHOLDS.items()}
    sentences = (ROOT / "export/mexma_export/parity_sentences.tsv").read_text(encoding="utf-8").splitlines()
    languages = {line.split("\t")[0] for line in sentences if "\t" in line and not line.startswith("#")}
    count, of = search(r"- (\d+) sentences in (\d+) languages", page).groups()
    assert agrees(count, sum("\t" in line and not line.startswith("#") for line in sentences)) and agrees(of, len(languages))


def test_a_page_that_states_a_measured_figure_links_to_its_file() -> None:
    """A paragraph with a share or a factor names the file that has it. The plan is exempt: it computes, and says so."""
    measured = re.compile(r"\d %|\d per cent|[\d.]+ times as|\d sentences per second")
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        if page.name == "mining.md":
            text = text.split("### When which")[0].split("## A billion lines")[0]
        for paragraph in re.split(r"\n\n", text):
            if measured.search(paragraph):
                assert "benchmarks/results/" in paragraph, f"{page.name}: {paragraph[:80]}"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.md")), ids=lambda path: path.name)
def test_a_file_of_results_says_when_on_what_and_how(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.search(r"20\d\d-\d\d-\d\d|\d{1,2} \w+ 20\d\d", text), "no date"
    assert re.search(r"python (-m )?\S+|`benchmarks/\w+\.py`|mexma-\w+ ", text), "no command"


@pytest.mark.parametrize("size", ["full", "quick", "smoke"])
def test_the_commands_of_all_have_their_scripts_and_flags(size: str) -> None:
    module = load_script("benchmarks/all.py", "benchmarks_all")
    places = {"model": "m", "out": "o", "flores": "f", "tatoeba": "t"}
    for name, job in module.JOBS.items():
        assert job.needs or not any("{flores}" in line or "{tatoeba}" in line for line in job.commands), name
        for words in module.commands_of(job, quick=size == "quick", smoke=size == "smoke", **places):
            if words[0] == "-m":
                found = importlib.util.find_spec(words[1])
                assert found and (not found.submodule_search_locations or importlib.util.find_spec(f"{words[1]}.__main__")), (
                    words
                )
                continue
            source = (ROOT / words[0]).read_text(encoding="utf-8")
            for flag in (word for word in words if word.startswith("-")):
                assert f'"{flag}"' in source, f"{words[0]} has no {flag}"


def test_every_script_of_benchmarks_says_how_it_is_called() -> None:
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path.name
