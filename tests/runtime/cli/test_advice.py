"""What commands advise can be typed: lengths that the model takes, names that say what is written; names of any bytes."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from mexma_rt.cli import main

TEXTS = ["the cat", "a dog barks", "one more house", "snow in may", "the seventh day", "twelve"]


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(f"{name}.txt").write_text("".join(f"{text} {name}\n" for text in TEXTS), encoding="utf-8")
    np.save("a.npy", np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32))


def mexma(bundle: Path, line: str, status: int = 0) -> Result:
    words = line.split()
    model = [] if words[0] in ("knn", "models") else ["--model", str(bundle)]
    result = CliRunner().invoke(main, [*words, *model])
    assert result.exit_code == status, result.output
    return result


@pytest.mark.parametrize(
    ("words", "length", "advice"),
    [
        (20, "", None),
        (300, "", "To keep more, type --max-length 302."),
        (4000, "", "To keep more, type --max-length 512. The model takes no more than 512 tokens: split longer texts"),
        (
            4000,
            "--max-length 512",
            "were cut, the first on line 7. The model takes no more than 512 tokens: split longer texts",
        ),
    ],
)
def test_a_length_that_is_advised_can_be_typed(words: int, length: str, advice: str | None, tiny_bundle: Path) -> None:
    """The tiny model takes 512 tokens; "cat" is at least one of them each time."""
    long = "t " * (words - 1) + "t"
    with Path("a.txt").open("a") as a, Path("b.txt").open("a") as b:
        a.write(f"{long}\n")
        b.write("short\n")
    commands = [
        "embed a.txt -o v.npy",
        "mine a.txt b.txt -o m.tsv",
        "score a.txt b.txt",
        "align a.txt b.txt",
        "xsim a.txt b.txt",
    ]
    for command in commands:
        result = mexma(tiny_bundle, f"{command} {length}")
        assert (advice or "") in result.output and ("--max-length" in result.output) == (
            advice is not None and "--max" in advice
        )
    if advice is not None and "--max-length" in advice:
        typed = advice.split("--max-length ")[1].split(".")[0]
        mexma(tiny_bundle, f"embed a.txt -o v.npy --max-length {typed}")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("embed a.txt -o x.txt", "x.txt: vectors are written as .npy or .parquet, depending on its name. Type another ending."),
        ("embed a.txt -o x.npy.gz", "x.npy.gz: vectors are written as .npy or .parquet"),
        ("embed a.txt -o x.npz", "x.npz: vectors are written as .npy or .parquet"),
        ("embed a.txt -o x.bin", "x.bin: vectors are written as .npy or .parquet"),
        ("embed a.txt -o x.pt", "x.pt: vectors are written as .npy or .parquet"),
        ("embed a.txt -o x.CSV", "x.CSV: vectors are written as .npy or .parquet"),
        (
            "embed a.txt -o x.npy --shard-rows 2",
            "This writes a folder, but x.npy looks like the name of a file. Leave out .npy.",
        ),
        (
            "embed a.txt -o x.txt --shard-rows 2",
            "This writes a folder, but x.txt looks like the name of a file. Leave out .txt.",
        ),
        ("knn a.npy a.npy -o x.npz", "This writes a folder, but x.npz looks like the name of a file."),
        ("models --checkpoint x.safetensors", "This writes a folder, but x.safetensors looks like the name of a file."),
        (
            "mine a.txt b.txt -o x.npy",
            "x.npy: a table is written as .tsv, .jsonl or .parquet, depending on its name. Type another ending.",
        ),
        ("mine a.txt b.txt -o x.tsv.bz2", "x.tsv.bz2: a table is written as .tsv"),
        ("mine a.txt b.txt -o x.zip", "x.zip: a table is written as .tsv"),
        (
            "mine a.txt b.txt -o m.tsv --report x.pdf",
            "x.pdf: a page is written as .html, depending on its name. Type another ending.",
        ),
        ("score a.txt b.txt -o x.xlsx", "x.xlsx: a table is written as .tsv"),
        ("score a.txt b.txt --save-background x.npy", "x.npy: a background is written as .npz"),
        ("filter a.txt b.txt -o x.json", "x.json: a table is written as .tsv"),
        ("filter a.txt b.txt -o k.tsv --dropped x.CSV.gz", "x.CSV: a table is written as .tsv"),
        ("align a.txt b.txt -o x.html", "x.html: a table is written as .tsv"),
        ("xsim a.txt b.txt -o x.csv", "x.csv: a table is written as .tsv"),
        ("xsim a.txt b.txt --plot x.jpg", "x.jpg: a picture's name must end in .png, .svg or .pdf."),
    ],
)
def test_a_name_that_promises_another_format_is_refused(command: str, message: str, tiny_bundle: Path) -> None:
    before = sorted(Path().iterdir())
    assert f"mexma: {message}" in mexma(tiny_bundle, command, 1).stderr
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("embed a.txt -o -", "An output cannot be called -."),
        ("mine a.txt b.txt -o -", "An output cannot be called -. To write a table to standard output, type /dev/stdout"),
        ("filter a.txt b.txt -o -", "An output cannot be called -."),
        ("embed a.txt -o new/", "new/ names a folder, but the output must be a file. Type new instead."),
        ("score a.txt b.txt -o s.tsv/", "s.tsv/ names a folder, but the output must be a file. Type s.tsv instead."),
        (f"embed a.txt -o {'n' * 300}", "cannot be written: File name too long."),
        (f"embed {'n' * 300} -o v.npy", "File name too long."),
        (f"mine {'n' * 300} b.txt", "cannot be read: File name too long."),
        (f"knn a.npy a.npy -o {'n' * 300}", "n: File name too long."),
        ("embed https://example.com/a.txt -o v.npy", "https://example.com/a.txt is an address, but only local files are read."),
        ("embed s3://corpus/a.parquet --field t -o v.npy", "s3://corpus/a.parquet is an address"),
        ("mine hf://datasets/a.txt b.txt", "hf://datasets/a.txt is an address"),
    ],
    ids=lambda words: words[:20],
)
def test_a_name_that_no_file_can_have_is_refused(command: str, message: str, tiny_bundle: Path) -> None:
    """`-o -` made a file called -, and `-o new/` one called new; a long name was a traceback."""
    before = sorted(Path().iterdir())
    said = mexma(tiny_bundle, command, 1).stderr
    assert message in said and said.startswith("mexma: ") and said.count("\n") == 1
    assert sorted(Path().iterdir()) == before


def test_a_folder_of_shards_may_end_in_a_slash(tiny_bundle: Path) -> None:
    mexma(tiny_bundle, "embed a.txt -o new/ --shard-rows 4")
    assert np.load("new/vectors-00001.npy").shape == (2, 32)


def test_json_is_not_taken_for_lines_of_text(tiny_bundle: Path) -> None:
    """Each command that reads lines; `embed` asks for the field."""
    lines = "".join(f"{json.dumps({'t': text})}\n" for text in TEXTS)
    for name in ("j.jsonl", "j.json", "j.NDJSON"):
        Path(name).write_text(lines, encoding="utf-8")
        for command in ("mine {} b.txt", "score b.txt {}", "filter {} b.txt -o k.tsv", "align {} b.txt", "xsim {} b.txt"):
            said = mexma(tiny_bundle, command.format(name), 1).stderr
            assert f"{name} is named as JSON" in said and "jq -r .NAME FILE > NEW" in said, command
        assert "name the field of the text" in mexma(tiny_bundle, f"embed {name} -o v.npy", 1).stderr
        mexma(tiny_bundle, f"embed {name} --field t -o v.npy")
        assert np.load("v.npy").shape == (6, 32)


def test_names_that_promise_nothing_or_the_right_thing(tiny_bundle: Path) -> None:
    for name in ("v", "v.fra-eng", "v.NPY", "v.2026"):
        mexma(tiny_bundle, f"embed a.txt -o {name}")
        assert np.load(name).shape == (6, 32)
    pq = pytest.importorskip("pyarrow.parquet", reason="part of mexma-rt[files]")
    mexma(tiny_bundle, "embed a.txt -o v.PARQUET")
    assert pq.read_table("v.PARQUET").column_names == ["vector"]
    for name in ("s", "s.txt", "s.fra-eng", "s.TSV"):
        mexma(tiny_bundle, f"score a.txt b.txt -o {name}")
        assert Path(name).read_text(encoding="utf-8").startswith("score\tsource\ttarget\n")
    mexma(tiny_bundle, "score a.txt b.txt -o s.JSONL")
    assert json.loads(Path("s.JSONL").read_text(encoding="utf-8").splitlines()[0])["source"] == "the cat a"


@pytest.mark.skipif(sys.platform != "linux", reason="file names there are Unicode")
def test_names_of_other_bytes_than_utf8(tiny_bundle: Path) -> None:
    """A name in Latin-1 is written with its bytes, in JSON that strict readers take, and in pages and tables."""
    name = os.fsdecode(b"caf\xe9")
    Path(f"{name}.txt").write_bytes(Path("a.txt").read_bytes())
    forms = {
        f"embed {name}.txt -o {name}.npy": ("file", r"caf\xe9.txt"),
        f"mine {name}.txt b.txt -o {name}.tsv --threshold=-inf --report {name}.html": ("output", r"caf\xe9.tsv"),
        f"score {name}.txt b.txt -o {name}.jsonl": ("output", r"caf\xe9.jsonl"),
        f"filter {name}.txt b.txt -o {name}k.tsv --threshold=-inf": ("output", r"caf\xe9k.tsv"),
        f"align {name}.txt b.txt -o {name}d.tsv": ("output", r"caf\xe9d.tsv"),
        f"xsim {name}.txt b.txt -o {name}x.tsv": ("target", "b.txt"),
        f"knn {name}.npy {name}.npy -o {name}n": ("output", r"caf\xe9n"),
    }
    for form, (key, value) in forms.items():
        said = mexma(tiny_bundle, f"{form} --json").stdout
        said.encode("utf-8")  # halves of surrogate pairs cannot be
        report = json.loads(said)
        assert report[key] == value, form
        json.dumps(report, ensure_ascii=False).encode("utf-8")
    assert r"caf\xe9.txt" in Path(f"{name}.html").read_text(encoding="utf-8")
    assert Path(f"{name}x.tsv").read_text(encoding="utf-8").splitlines()[1].startswith("caf\\xe9\tb\t")
    shutil.copytree(tiny_bundle, name)  # the libraries below open no files there
    refused = CliRunner().invoke(main, ["embed", "a.txt", "-o", "v.npy", "--model", name])
    assert refused.exit_code == 1 and refused.stderr.startswith(r"mexma: caf\xe9 is not valid UTF-8, and onnxruntime, ")
    error = mexma(tiny_bundle, f"embed {name}.xyz -o v.npy", 1)
    assert "does not exist" in error.output


def test_an_empty_name_is_a_variable_that_is_not_set(tiny_bundle: Path) -> None:
    for words, which in {
        ("embed", "", "-o", "v.npy"): "a file",
        ("embed", "a.txt", "-o", ""): "the output",
        ("score", "a.txt", ""): "a file",
    }.items():
        result = CliRunner().invoke(main, [*words, "--model", str(tiny_bundle)])
        assert result.exit_code == 1
        assert result.stderr == f"mexma: The name of {which} is empty, perhaps because a shell variable is not set.\n"


def test_a_path_in_a_command_that_is_advised_is_one_word(tiny_bundle: Path) -> None:
    """`rm -r my corpus/.v.npy.part` would delete the folder `my`: each advised line goes through a shell's own splitting."""
    folder = Path("my corpus")
    (folder / ".v.npy.part").mkdir(parents=True)
    (folder / ".v.npy.part/state.json").write_text("{")
    (folder / "shards").mkdir()
    Path("it's").mkdir()
    for words, advice in {
        ("embed", "a.txt", "-o", "my corpus/v.npy"): ["rm", "-r", str(Path.cwd() / "my corpus/.v.npy.part")],
        ("embed", "a.txt", "-o", "it's/no/v.npy"): ["mkdir", "-p", str(Path.cwd() / "it's/no")],
    }.items():
        result = CliRunner().invoke(main, [*words, "--model", str(tiny_bundle)])
        assert result.exit_code == 1
        start = result.stderr.index(f"{advice[0]} {advice[1]} ")
        assert shlex.split(result.stderr[start:]) == advice
    taken = CliRunner().invoke(
        main, ["embed", "a.txt", "-o", "my corpus/shards", "--shard-rows", "2", "--model", str(tiny_bundle)]
    )
    assert "my corpus/shards already exists. Choose another name, or move it away." in taken.stderr  # it may be the user's own


def test_a_file_that_is_utf8_but_for_a_line_is_not_to_be_converted(tiny_bundle: Path) -> None:
    """iconv from WINDOWS-1252 would make "cafÃ©" of the other lines; what is advised leaves them as they are."""
    good = "".join(f"le café numéro {i}\n" for i in range(5)).encode()
    Path("a.txt").write_bytes(good + b"un caf\xe9 de trop\n")
    said = mexma(tiny_bundle, "embed a.txt -o v.npy", 1).stderr
    assert "line 6, byte 7: 0xe9 is not valid UTF-8. 5 lines before it are, so a conversion" in said
    words = shlex.split(said[said.index("iconv ") :].partition(" FILE")[0])
    if shutil.which("iconv"):
        done = subprocess.run([*words, "a.txt"], capture_output=True, check=False)
        assert done.stdout == good + b"un caf de trop\n"
    Path("a.txt").write_bytes("日本\n".encode("shift-jis") * 9)
    assert "Convert the file from its own encoding" in mexma(tiny_bundle, "embed a.txt -o v.npy", 1).stderr


@pytest.mark.parametrize("encoding", ["cp1252", "shift-jis", "gb18030", "euc-kr", "koi8-r"])
def test_no_encoding_is_advised_that_would_make_nonsense_of_the_text(encoding: str, tiny_bundle: Path) -> None:
    text = {"cp1252": "It’s “quoted”", "shift-jis": "日本語の文章", "gb18030": "你好，世界", "euc-kr": "안녕하세요"}.get(
        encoding, "Привет"
    )
    Path("a.txt").write_bytes(text.encode(encoding))
    said = mexma(tiny_bundle, "embed a.txt -o v.npy", 1).stderr
    assert "is not valid UTF-8. Convert the file from its own encoding: iconv -f ENCODING -t UTF-8" in said
    assert "LATIN1" not in said and "8859-1" not in said
