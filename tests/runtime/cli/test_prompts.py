"""--prompt of every command that embeds: the same as the prompt's text written into the files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import mexma_rt
from mexma_rt.cli import main
from mexma_rt.errors import InputError
from mexma_rt.mining.pairs import mine_report
from mexma_rt.mining.warnings import KINDS

QUERY = "query: "
ONE_BY_ONE = ["--deterministic", "--threads", "1"]  # the same bits for the same text, whatever stands beside it


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model(tiny_bundle: Path, tmp_path: Path) -> Path:
    """The tiny bundle with prompts."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "model"))
    content = json.loads((folder / "mexma.json").read_text())
    (folder / "mexma.json").write_text(json.dumps(content | {"prompts": {"query": QUERY, "passage": "passage: "}}))
    return folder


@pytest.fixture
def sides(tmp_path: Path, sentences: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """src.txt and tgt.txt, and the same lines behind the prompt in src-prompted.txt and tgt-prompted.txt."""
    lines = [text for _, text in sentences], [text + " !" for _, text in sentences]
    for name, side in zip(("src", "tgt"), lines, strict=True):
        (tmp_path / f"{name}.txt").write_text("\n".join(side) + "\n", encoding="utf-8")
        (tmp_path / f"{name}-prompted.txt").write_text("".join(f"{QUERY}{line}\n" for line in side), encoding="utf-8")
    return lines


def mexma(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(
    ("command", "texts"),
    [
        (["mine", "--threshold", "-1"], ("source", "target")),
        (["score"], ("source", "target")),
        (["filter", "-o", "kept.jsonl", "--threshold", "-1", "--max-ratio", "99"], ("source", "target")),
        (["align"], ("source", "target")),
        (["xsim"], ()),
    ],
    ids=lambda value: value[0] if value and isinstance(value, list) else "",
)
def test_a_prompt_is_what_its_text_would_be(
    command: list[str], texts: tuple[str, ...], model: Path, sides: tuple[list[str], list[str]]
) -> None:
    def run(*arguments: str) -> Any:
        output = mexma(*command, *arguments, "--model", model, *ONE_BY_ONE, "--json")
        if "kept.jsonl" in command:
            return [json.loads(line) for line in Path("kept.jsonl").read_text("utf-8").splitlines()]
        found = json.loads(output)
        return found.get("pairs", found.get("rows", found.get("results"))) if command != ["score"] else found["scores"]

    asked, written, plain = (
        run("src.txt", "tgt.txt", "--prompt", "query"),
        run("src-prompted.txt", "tgt-prompted.txt"),
        run("src.txt", "tgt.txt"),
    )
    if command == ["align"]:  # joins sentences, behind one prompt and with one before each
        asked, written, plain = ([row["source_lines"] for row in rows] for rows in (asked, written, plain))
        assert asked == written
        return
    numbers = [_numbers(rows) for rows in (asked, written, plain)]
    np.testing.assert_array_equal(numbers[0], numbers[1])
    if command != ["xsim"]:  # its counts of errors may agree by chance
        assert numbers[0] != numbers[2]
    for row in asked if texts else ():
        assert isinstance(row, float) or not row["source"].startswith(QUERY)


def _numbers(rows: list[dict[str, object]] | list[float]) -> list[object]:
    return [row if isinstance(row, float) else [value for value in row.values() if isinstance(value, float)] for row in rows]


def test_calibrated_thresholds_remember_their_prompt(model: Path, tmp_path: Path) -> None:
    words = ["stone", "river", "house", "garden", "winter", "music", "bread", "letter", "window", "morning", "horse", "paper"]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, 6)) + f" {number}" for number in range(150)]
    for name, end in (("a", ""), ("b", " !")):
        Path(f"{name}.txt").write_text("".join(f"{text}{end}\n" for text in texts), encoding="utf-8")
    report = json.loads(mexma("calibrate", "a.txt", "b.txt", "--model", model, "--prompt", "query", "--json"))
    assert report["prompt"] == "query" and json.loads((model / "mexma.json").read_text())["thresholds"]["prompt"] == "query"
    encoder = mexma_rt.load(model)
    lines = [texts, [f"{text} !" for text in texts]]
    asked = mine_report(*lines, encoder=encoder.with_prompt("query")).report
    assert not {"threshold", "prompt"} & {warning.kind for warning in asked.warnings}
    for other, now in ((encoder, "without"), (encoder.with_prompt("passage"), "with 'passage'")):
        warning = mine_report(*lines, encoder=other).report.warnings[0]
        said, title = warning.message, KINDS[warning.kind]
        assert title == "Threshold of another prompt"
        assert "was found on texts with the prompt 'query', but these are embedded " + now in said
        assert "--prompt query" in said


def test_a_background_of_another_prompt_is_refused(model: Path, sides: tuple[list[str], list[str]]) -> None:
    mexma("score", "src.txt", "tgt.txt", "--model", model, "--save-background", "b.npz", "--prompt", "query", "-o", "s.tsv")
    mexma("score", "src.txt", "tgt.txt", "--model", model, "--background", "b.npz", "--prompt", "query", "-o", "t.tsv")
    for other in ([], ["--prompt", "passage"]):
        result = CliRunner().invoke(
            main, ["score", "src.txt", "tgt.txt", "--model", str(model), "--background", "b.npz", *other]
        )
        assert result.exit_code != 0 and "made with another value of the model" in result.output


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["mine", "src.txt", "tgt.txt", "--prompt", "title"], "prompt='title': this model has the prompts 'query', 'passage'"),
        (["align", "--words", "src.txt", "tgt.txt", "--prompt", "query"], "--prompt is for sentence vectors"),
    ],
)
def test_prompts_that_cannot_be(command: list[str], message: str, model: Path, sides: tuple[list[str], list[str]]) -> None:
    result = CliRunner().invoke(main, [*command, "--model", str(model)])
    assert result.exit_code != 0 and message in result.output.replace("\n", " ")


def test_ready_vectors_with_a_prompt_need_the_model_that_made_them(sides: tuple[list[str], list[str]]) -> None:
    np.save("v.npy", np.eye(8, dtype=np.float32))
    vectors = ["--source-vectors", "v.npy", "--target-vectors", "v.npy", "-o", "p.tsv"]
    result = CliRunner().invoke(main, ["mine", *vectors, "--prompt", "query"])
    assert result.exit_code == 2 and "--model is needed too" in result.output


def test_with_prompt_checks_the_name(model: Path) -> None:
    with pytest.raises(InputError, match="prompt='title': this model has the prompts 'query', 'passage'"):
        mexma_rt.load(model).with_prompt("title")
