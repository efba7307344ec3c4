"""The command line on a real (tiny, random) bundle: files, columns, JSON, standard input and output."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import mexma_rt
from mexma_rt.cli import main
from mexma_rt.evaluation.measures import retrieval_accuracy

HEADER = "score\tcosine\tsource_line\ttarget_line\tforward_rank\tbackward_rank\tsource_mean\ttarget_mean\tsource\ttarget"


@pytest.fixture(scope="module")
def encoder(tiny_bundle: Path) -> mexma_rt.Encoder:
    return mexma_rt.load(tiny_bundle)


@pytest.fixture
def corpora(tmp_path: Path, sentences: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """src.txt and tgt.txt: the same sentences, the second side with other endings."""
    texts = [text for _, text in sentences]
    source, target = texts, [text + " !" for text in reversed(texts)]
    (tmp_path / "src.txt").write_text("\n".join(source) + "\n", encoding="utf-8")
    (tmp_path / "tgt.txt").write_text("\n".join(target) + "\n", encoding="utf-8")
    return source, target


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def mexma(*arguments: object, stdin: str | bytes | None = None) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)
    assert result.exit_code == 0, result.output
    return result


def test_embed_writes_what_the_library_gives(
    tiny_bundle: Path, encoder: mexma_rt.Encoder, corpora: tuple[list[str], list[str]]
) -> None:
    result = mexma("embed", "src.txt", "-o", "v.npy", "--model", tiny_bundle)
    vectors = np.load("v.npy", allow_pickle=False)
    np.testing.assert_array_equal(vectors, encoder.embed(corpora[0]))
    assert re.search(r"^src.txt: 20 sentences in [\d.]+ s, [\d,]+ per second; tiny, int8 on cpu$", result.stdout, re.M)
    assert "v.npy: float32 [20, 32]" in result.stdout


def test_embed_deterministic(tiny_bundle: Path, corpora: tuple[list[str], list[str]]) -> None:
    mexma("embed", "src.txt", "-o", "v.npy", "--model", tiny_bundle, "--precision", "int8", "--deterministic")
    alone = mexma_rt.load(tiny_bundle, precision="int8", deterministic=True)
    assert np.load("v.npy").tobytes() == np.concatenate([alone.embed([text]) for text in corpora[0]]).tobytes()


def test_embed_options_stdin_and_json(
    tiny_bundle: Path, encoder: mexma_rt.Encoder, corpora: tuple[list[str], list[str]]
) -> None:
    options = ["--storage", "float16", "--no-normalize", "--precision", "fp32", "--max-length", "8", "--json"]
    stdin = Path("src.txt").read_bytes()
    result = mexma("embed", "-", "-o", "v.npy", "--model", tiny_bundle, "--device", "cpu", *options, stdin=stdin)
    expected = mexma_rt.load(tiny_bundle, precision="fp32", max_length=8).embed_report(
        corpora[0], normalize=False, precision="float16"
    )
    vectors = np.load("v.npy")
    assert vectors.dtype == np.float16
    np.testing.assert_array_equal(vectors, expected.vectors)
    report = json.loads(result.stdout)
    assert report["shape"] == [20, 32] and report["file"] == "-" and report["output"] == "v.npy"
    assert report["truncated"] == list(expected.report.truncated) and report["truncated"]
    assert (report["device"], report["precision"]) == ("cpu", "fp32")


def test_embed_with_a_prompt_of_the_model(
    tiny_bundle: Path, corpora: tuple[list[str], list[str]], encoder: mexma_rt.Encoder, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "asks"))
    manifest = json.loads((folder / "mexma.json").read_text())
    (folder / "mexma.json").write_text(json.dumps(manifest | {"prompts": {"query": "query: "}}))
    mexma("embed", "src.txt", "-o", "v.npy", "--model", folder, "--prompt", "query")
    np.testing.assert_array_equal(np.load("v.npy"), encoder.embed(["query: " + text for text in corpora[0]]))
    arguments = ["embed", "src.txt", "-o", "w.npy", "--model", str(folder), "--prompt", "title"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "prompt='title': this model has the prompts 'query'. Name one of its own" in result.stderr
    assert not Path("w.npy").exists()


def test_embed_of_json_lines_to_shards(
    tiny_bundle: Path, encoder: mexma_rt.Encoder, corpora: tuple[list[str], list[str]]
) -> None:
    Path("in.jsonl").write_text("".join(json.dumps({"t": text}) + "\n" for text in corpora[0]))
    options = ["--field", "t", "--shard-rows", "12", "--truncate-dim", "16", "--storage", "ubinary", "--json"]
    report = json.loads(mexma("embed", "in.jsonl", "-o", "v", "--model", tiny_bundle, *options).stdout)
    assert (report["shape"], report["dtype"], report["resumed"], report["sentences"]) == ([20, 2], "ubinary", 0, 20)
    shards = [np.load(f"v/vectors-0000{i}.npy") for i in (0, 1)]
    assert [len(shard) for shard in shards] == [12, 8]
    bits = np.unpackbits(np.concatenate(shards), axis=1)
    np.testing.assert_array_equal(bits, encoder.embed(corpora[0], truncate_dim=16) > 0)


def test_embed_says_what_was_cut(tiny_bundle: Path) -> None:
    Path("in.txt").write_text("short\n" + "long " * 50 + "\n")
    result = mexma("embed", "in.txt", "-o", "v.npy", "--model", tiny_bundle, "--max-length", "8")
    assert (
        "1 sentences had more than 8 tokens and were cut, the first on line 2. To keep more, type --max-length" in result.stdout
    )


@pytest.mark.parametrize(("content", "rows"), [(b"", 0), (b"\n" * 100_000, 100_000)])
def test_embed_of_empty_files_and_lines(tiny_bundle: Path, content: bytes, rows: int) -> None:
    Path("in.txt").write_bytes(content)
    mexma("embed", "in.txt", "-o", "v.npy", "--model", tiny_bundle)
    assert np.load("v.npy").shape == (rows, 32)


def test_mine_writes_the_pairs_of_the_library(
    tiny_bundle: Path, encoder: mexma_rt.Encoder, corpora: tuple[list[str], list[str]]
) -> None:
    settings: dict[str, Any] = {"margin": "distance", "k": 3, "retrieval": "intersect", "threshold": 0.01}
    options = [part for name, value in settings.items() for part in (f"--{name}", value)]
    result = mexma("mine", "src.txt", "tgt.txt", "-o", "p.tsv", "--model", tiny_bundle, *options)
    header, *rows = Path("p.tsv").read_text(encoding="utf-8").splitlines()
    assert header == HEADER
    pairs = mexma_rt.mine(*corpora, encoder=encoder, **settings)
    assert pairs
    assert rows == [
        f"{p.score:.6f}\t{p.cosine:.6f}\t{p.source_index + 1}\t{p.target_index + 1}\t{p.forward_rank}\t{p.backward_rank}\t"
        f"{p.source_mean:.6f}\t{p.target_mean:.6f}\t{p.source}\t{p.target}"
        for p in pairs
    ]
    assert result.stdout.startswith(f"{len(pairs)} pairs of 20 x 20 lines with distance >= 0.01 (intersect, k=3) in ")
    assert result.stdout.endswith("p.tsv\n")
    assert "src.txt: 20 sentences" in result.stderr and "tgt.txt: 20 sentences" in result.stderr
    assert "warning: Fewer than 1,000 different lines (the source 20 and the target 20)" in result.stderr


def test_mine_without_output_prints_pure_tsv(tiny_bundle: Path, corpora: tuple[list[str], list[str]]) -> None:
    arguments = ["--model", tiny_bundle, "--threshold", "-inf"]
    mexma("mine", "src.txt", "tgt.txt", "-o", "p.tsv", *arguments)
    result = mexma("mine", "-", "tgt.txt", *arguments, stdin=Path("src.txt").read_bytes())
    assert result.stdout_bytes == Path("p.tsv").read_bytes()
    assert "20 x 20 lines with ratio >= -inf (max, k=4)" in result.stderr


def test_mine_show_is_for_reading(tiny_bundle: Path, encoder: mexma_rt.Encoder, corpora: tuple[list[str], list[str]]) -> None:
    result = mexma("mine", "src.txt", "tgt.txt", "--show", "2", "--threshold", "-inf", "--model", tiny_bundle)
    first, second, _ = mexma_rt.mine(*corpora, encoder=encoder, threshold=-np.inf)[:3]
    lines = result.stdout.splitlines()
    assert lines[0] == f"{first.score:8.4f}  cosine {first.cosine:.4f}"
    assert lines[1] == f"{first.source_index + 1:>8}  {first.source}"
    assert lines[5] == f"{second.target_index + 1:>8}  {second.target}"
    assert " pairs of 20 x 20 lines" in lines[6] and len(lines) == 7


def test_mine_json(tiny_bundle: Path, corpora: tuple[list[str], list[str]]) -> None:
    arguments = ["src.txt", "tgt.txt", "--threshold", "-inf", "--json", "--model", tiny_bundle]
    everything = json.loads(mexma("mine", *arguments).stdout)
    assert everything["found"] == len(everything["pairs"]) > 3
    assert list(everything["pairs"][0]) == HEADER.split("\t")
    assert (everything["k"], everything["margin"], everything["retrieval"], everything["threshold"]) == (
        4,
        "ratio",
        "max",
        None,
    )
    assert everything["source"]["file"] == "src.txt" and everything["target"]["sentences"] == 20
    assert json.loads(mexma("mine", *arguments, "--show", "2").stdout)["pairs"] == everything["pairs"][:2]
    summary = json.loads(mexma("mine", *arguments, "-o", "p.tsv").stdout)
    assert summary["pairs"] == [] and summary["found"] == everything["found"] and Path("p.tsv").exists()


def test_tabs_and_carriage_returns_cannot_break_the_table(tiny_bundle: Path) -> None:
    Path("a.txt").write_bytes(b"tab\there\nbare\rreturn\ntwo\nthree\n")
    mexma("mine", "a.txt", "a.txt", "-o", "p.tsv", "--threshold", "-inf", "--model", tiny_bundle)
    rows = Path("p.tsv").read_bytes().decode().split("\n")[1:-1]
    assert {len(row.split("\t")) for row in rows} == {10}
    assert {row.split("\t")[8] for row in rows} >= {"tab here", "bare return"}


def test_score_keeps_the_lines(tiny_bundle: Path, encoder: mexma_rt.Encoder, corpora: tuple[list[str], list[str]]) -> None:
    source, target = [*corpora[0], ""], [*corpora[1], "no partner"]
    Path("a.txt").write_text("\n".join(source) + "\n", encoding="utf-8")
    Path("b.txt").write_text("\n".join(target) + "\n", encoding="utf-8")
    scores = mexma_rt.score_pairs(source, target, encoder=encoder)
    result = mexma("score", "a.txt", "b.txt", "-o", "s.tsv", "--model", tiny_bundle)
    header, *rows = Path("s.tsv").read_text(encoding="utf-8").splitlines()
    assert header == "score\tsource\ttarget"
    assert rows == [f"{s:.6f}\t{a}\t{b}" for s, a, b in zip(scores.tolist(), source, target, strict=True)]
    assert rows[-1] == "-inf\t\tno partner"
    assert result.stdout == f"21 pairs, 1 with a blank side, mean ratio {scores[:-1].mean():.4f}: s.tsv\n"
    report = json.loads(mexma("score", "a.txt", "b.txt", "--json", "--model", tiny_bundle).stdout)
    assert (report["pairs"], report["blank"], report["scores"][-1]) == (21, 1, None)
    assert report["scores"][:-1] == scores[:-1].tolist()


def test_xsim_of_two_files_and_of_a_folder(
    tiny_bundle: Path, encoder: mexma_rt.Encoder, corpora: tuple[list[str], list[str]]
) -> None:
    source = corpora[0]
    languages = {"aaa": [text.lower() for text in source], "bbb": [text[3:] for text in source], "eng": source}
    for name, lines in languages.items():
        Path(f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    Path("src.txt").unlink()
    Path("tgt.txt").unlink()
    y = encoder.embed(source)
    expected = {}
    for name in ("aaa", "bbb"):
        x = encoder.embed(languages[name])
        expected[name] = (mexma_rt.xsim(x, y, k=3, text=source), retrieval_accuracy(x, y))

    arguments = ["xsim", ".", "--k", "3", "--model", tiny_bundle]
    report = json.loads(mexma(*arguments, "--json").stdout)
    for row in report["results"]:
        result, (there, back) = expected[row["language"]]
        assert (row["xsim"], row["errors"], row["sentences"]) == (result.error_rate, result.errors, 20)
        assert (row["accuracy_there"], row["accuracy_back"]) == (there, back)
    errors = sum(result.errors for result, _ in expected.values())
    assert report["average"]["xsim"] == pytest.approx(100 * errors / 40) and report["average"]["errors"] == errors > 0

    table = mexma(*arguments).stdout.splitlines()
    assert [line.split()[0] for line in table] == ["language", "aaa", "bbb", "average", "mean"]
    assert table[1].split()[2] == f"{expected['aaa'][0].error_rate:.2f}"
    alone = mexma(*arguments, "--languages", "bbb").stdout.splitlines()
    assert alone == [table[0], table[2]]
    pair = mexma("xsim", "bbb.txt", "eng.txt", "--k", "3", "--model", tiny_bundle).stdout.splitlines()
    assert pair == alone
    turned = json.loads(mexma(*arguments, "--target", "aaa", "--json").stdout)
    assert [row["language"] for row in turned["results"]] == ["bbb", "eng"]


def test_doctor(tiny_bundle: Path, encoder: mexma_rt.Encoder) -> None:
    short = mexma("doctor", "--model", tiny_bundle).stdout
    assert f"mexma-rt {mexma_rt.__version__}" in short and "auto: " not in short and "pip install" not in short
    assert "works  onnxruntime cpu  int8" in short and "  no     tensorrt cuda fp16" in short
    assert max(map(len, short.splitlines())) < 170  # the folder of the bundle is one of them
    text = mexma("doctor", "--model", tiny_bundle, "--verbose").stdout
    assert f"mexma-rt {mexma_rt.__version__}" in text and f"numpy {np.__version__}" in text
    assert "model tiny: 32 dimensions, 128 of at most 512 tokens" in text
    assert "sizes and hashes correct" in text
    assert "runs int8 on cpu by onnxruntime, because auto: " in text
    assert "works  onnxruntime cpu  int8" in text
    report = json.loads(mexma("doctor", "--model", tiny_bundle, "--json", "--precision", "fp32").stdout)
    assert report["runs"]["precision"] == "fp32" and report["model"]["files"] == len(encoder.bundle.files)
    assert {(c["device"], c["precision"]) for c in report["choices"] if c["usable"]} >= {("cpu", "fp32"), ("cpu", "int8")}
    assert report["sentence_milliseconds"] > 0


def test_models(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mexma_rt.bundle.opening.bundled_models", lambda: {"tiny": tiny_bundle})
    assert mexma("models").stdout.startswith("tiny: 32 dimensions, 128 tokens, fp32, int8, ")
    (model,) = json.loads(mexma("models", "--json").stdout)["models"]
    assert (model["name"], model["folder"]) == ("tiny", str(tiny_bundle))
    monkeypatch.setattr("mexma_rt.bundle.opening.bundled_models", dict)
    assert "No model comes with this installation" in mexma("models").stdout


def test_version_and_defaults() -> None:
    assert mexma("--version").stdout == f"mexma, version {mexma_rt.__version__}\n"
    default = inspect.signature(mexma_rt.load).parameters["model"].default
    assert f"[default: {default}]" in mexma("embed", "--help").stdout


def test_start_is_light() -> None:
    heavy = {"onnxruntime", "tokenizers", "torch", "tqdm", "huggingface_hub"}
    code = f"import sys, mexma_rt.cli; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_utf8_whatever_the_locale_and_quiet_when_the_reader_leaves(tiny_bundle: Path, corpora: object) -> None:
    command = [sys.executable, "-c", "from mexma_rt.cli import main; main()", "mine", "src.txt", "tgt.txt"]
    command += ["--threshold=-inf", f"--model={tiny_bundle}"]
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(mexma_rt.__file__).parents[1])}
    done = subprocess.run([*command, "--show=9"], capture_output=True, check=True, env=environment)
    assert "кошка" in done.stdout.decode() or "猫" in done.stdout.decode()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


@pytest.fixture
def parallel(tmp_path: Path) -> tuple[Path, Path]:
    """150 pairs that a model without training finds, for both sides begin alike."""
    words = ["stone", "river", "house", "garden", "winter", "music", "bread", "letter", "window", "morning", "horse", "paper"]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, 6)) + f" {i}" for i in range(150)]
    paths = tmp_path / "a.txt", tmp_path / "b.txt"
    for path, end in zip(paths, ("", " !"), strict=True):
        path.write_text("".join(f"{text}{end}\n" for text in texts), encoding="utf-8")
    return paths


def test_calibrate_writes_what_mine_and_filter_take(tiny_bundle: Path, parallel: tuple[Path, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "own"))
    model = ["--model", folder, "--precision", "fp32"]
    foreign = "warning: The threshold 1.12 of the margin 'ratio' was chosen for mexma-small, not for the model 'tiny'"
    assert foreign in mexma("mine", *parallel, "-o", "p.tsv", *model).stderr
    assert foreign in mexma("filter", *parallel, "-o", "k.tsv", *model).stderr
    assert foreign not in mexma("filter", *parallel, "-o", "k.tsv", "--top", "0.5", *model).stderr
    assert foreign not in mexma("mine", *parallel, "-o", "p.tsv", "--threshold", "1", *model).stderr
    mexma("mine", *parallel, "-o", "p.tsv", "--report", "page.html", *model)
    assert "<b>Threshold of another model.</b> The threshold 1.12" in Path("page.html").read_text(encoding="utf-8")

    result = mexma("calibrate", *parallel, *model)
    lines = result.stdout.splitlines()
    assert lines[0] == "tiny: 150 pairs; 5 draws of 115 lines a side, 30% of them without a partner; k=4, seed 0"
    assert lines[1].split()[:4] == ["margin", "threshold", "precision", "recall"]
    assert [line.split()[0] for line in lines[2:5]] == ["ratio", "distance", "absolute"]
    assert lines[5] == f"{folder}: thresholds written; mine and filter use them with --model {folder}"
    assert "warning: 150 pairs are few" in result.stderr
    own = mexma_rt.load(folder).bundle.thresholds
    assert own is not None and [f"{value:.3f}" for value in own.by_margin().values()] == [x.split()[1] for x in lines[2:5]]

    for command in ("mine", "filter"):
        result = mexma(command, *parallel, "-o", "p.tsv", "--json", *model)
        assert json.loads(result.stdout)["threshold"] == own.ratio and "chosen for" not in result.stderr
    for path in parallel:
        mexma("embed", path, "-o", path.with_suffix(".npy"), *model)
    vectors = ["--source-vectors", "a.npy", "--target-vectors", "b.npy", "-o", "v.tsv", "--json", "--margin", "absolute"]
    assert json.loads(mexma("mine", *vectors, *model).stdout)["threshold"] == own.absolute
    assert json.loads(mexma("mine", *vectors).stdout)["threshold"] == 0.62  # of the default model
    assert "chosen for mexma-small" in mexma("mine", *vectors, "--model", tiny_bundle).stderr


def test_calibrate_of_a_tsv_into_a_copy(tiny_bundle: Path, parallel: tuple[Path, Path], tmp_path: Path) -> None:
    rows = zip(*(path.read_text().splitlines() for path in parallel), strict=True)
    Path("s.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in rows))
    options = ["--model", tiny_bundle, "--precision", "fp32", "--json"]
    report = json.loads(mexma("calibrate", "s.tsv", "-o", "copy", "--seed", "7", *options).stdout)
    assert (report["pairs"], report["seed"], report["bundle"]) == (150, 7, "copy")
    written = mexma_rt.load("copy").bundle.thresholds
    assert written is not None and written.ratio == report["margins"]["ratio"]["threshold"]
    assert mexma_rt.load(tiny_bundle).bundle.thresholds is None
    again = json.loads(mexma("calibrate", *parallel, "-o", "again", "--seed", "7", *options).stdout)
    assert again["margins"] == report["margins"]
    assert Path("copy/mexma.json").read_bytes() == Path("again/mexma.json").read_bytes()


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (
            "a\tb\na b\n",
            ["s.tsv"],
            "s.tsv, line 2: 1 columns, not two (source<TAB>target). For two files, type: mexma calibrate",
        ),
        ("a\n", ["s.tsv", "s.tsv", "-o", "copy"], "Of 1 lines, 0 are usable pairs"),
        ("a\tb\n" * 200, ["s.tsv", "-o", "copy"], "(all lines of the source are equal)"),
        ("a\tb\n", ["s.tsv"], "belongs to the installed package. Name a new folder for a copy with the thresholds: --output"),
        ("a\tb\n", ["s.tsv", "-o", "."], "already exists. Name another folder"),
        ("a\tb\n", ["missing.tsv"], "missing.tsv"),
    ],
)
def test_calibrate_says_what_is_wrong_before_it_computes(content: str, arguments: list[str], message: str) -> None:
    Path("s.tsv").write_text(content)
    result = CliRunner().invoke(main, ["calibrate", *arguments])
    assert result.exit_code == 1 and message in result.stderr and not Path("copy").exists()
