from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer

import mexma_train.data.prepare as prepare_module
from mexma_rt.errors import FileError, InputError
from mexma_train.data.bitext import Row
from mexma_train.data.prepare import prepare
from mexma_train.data.shards import ARRAYS, Shards, open_shards


def columns(pairs_tsv: Path) -> list[tuple[str, ...]]:
    """lang, source, english, text of all rows."""
    return list(zip(*(line.split("\t") for line in pairs_tsv.read_text(encoding="utf-8").splitlines()), strict=True))


def english_texts(shards: Shards, tokenizer: Tokenizer) -> list[str]:
    ragged = shards.english(np.arange(len(shards)), 512)
    return tokenizer.decode_batch([part.tolist() for part in np.split(ragged.ids, np.cumsum(ragged.lengths)[:-1])])


def test_english_is_stored_once(pairs_tsv: Path, toy_shards: Path) -> None:
    english = columns(pairs_tsv)[2]
    shards = open_shards(toy_shards)
    assert len(shards.english_offsets) - 1 == len(set(english)) < len(english)
    first: dict[str, int] = {}
    assert shards.pair_english.tolist() == [first.setdefault(text, len(first)) for text in english]


def test_meta_counts_what_was_read(pairs_tsv: Path, toy_shards: Path) -> None:
    meta = json.loads((toy_shards / "meta.json").read_text())
    tokenizer = Tokenizer.from_file(str(toy_shards / "tokenizer.json"))
    english, text = (
        sum(len(tokenizer.encode(t, add_special_tokens=False).ids) for t in side) for side in columns(pairs_tsv)[2:]
    )
    assert meta["tokens"] == {"english": english, "text": text}
    assert (meta["format"], meta["pairs"], meta["rows_read"], meta["rows_skipped"]) == (2, 600, 600, {})
    assert (meta["languages"], meta["sources"], meta["vocab_size"]) == (["fra", "rus"], ["ui", "toy"], 90)
    assert meta["tokenizer_sha256"] == hashlib.sha256((toy_shards / "tokenizer.json").read_bytes()).hexdigest()


def test_the_order_groups_pairs_by_language_and_source_in_file_order(
    toy_shards: Path, pairs_tsv: Path, toy_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "SORTED_PAIRS", 7)  # many blocks, the last one not full
    monkeypatch.setattr(prepare_module, "SLAB_ROWS", 11)
    prepare(pairs_tsv, tmp_path / "small", toy_tokenizer)
    shards = open_shards(tmp_path / "small")
    assert (shards.order == np.lexsort((shards.pair_source, shards.pair_lang))).all()  # lexsort is stable
    place = 0
    for group in shards.groups:
        assert group.start == place
        rows = shards.order[group.start : group.start + group.count]
        assert (shards.pair_lang[rows] == group.lang).all() and (shards.pair_source[rows] == group.source).all()
        place += group.count
    assert place == 600 and len(shards.groups) == 4
    for name in (*(f"{array}.npy" for array in ARRAYS), "meta.json"):  # slabs and blocks leave no trace
        assert (tmp_path / "small" / name).read_bytes() == (toy_shards / name).read_bytes(), name


def test_english_outside_the_window_is_stored_again_with_the_same_hash(
    toy_shards: Path, pairs_tsv: Path, toy_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "WINDOW", 1)
    rows = ["a b", "sun", "a b", "moon", "river", "a b", "sun"]
    (tmp_path / "pairs.tsv").write_text("".join(f"fra\tx\t{english}\tlune\n" for english in rows))
    prepare(tmp_path / "pairs.tsv", tmp_path / "shards", toy_tokenizer)
    shards = open_shards(tmp_path / "shards")
    # Generations hold one line each: when `a b` comes again after `sun`, the old one still has it; after two others none has.
    assert shards.pair_english.tolist() == [0, 1, 0, 2, 3, 4, 5]
    tokenizer = Tokenizer.from_file(str(toy_tokenizer))
    assert english_texts(shards, tokenizer) == [tokenizer.decode(tokenizer.encode(row).ids) for row in rows]
    by_hash = shards.english_hash[shards.pair_english]
    assert [(by_hash == value).tolist() for value in by_hash] == [[other == row for other in rows] for row in rows]
    # A window that holds all lines stores each once: the figures of the toy corpus.
    whole = open_shards(toy_shards)
    assert len(np.unique(whole.english_hash)) == len(whole.english_hash) == len(set(columns(pairs_tsv)[2]))


def test_lines_that_differ_for_no_token_have_one_hash(toy_tokenizer: Path, tmp_path: Path) -> None:
    """White space and width vanish in the tokenizer, and two copies of one vector are what KoLeo cannot bear."""
    (tmp_path / "pairs.tsv").write_text(
        "".join(f"fra\tx\t{e}\tlune\n" for e in ("sun  moon", "sun moon ", "ｓｕｎ moon", "moon sun"))
    )
    prepare(tmp_path / "pairs.tsv", tmp_path / "shards", toy_tokenizer)
    shards = open_shards(tmp_path / "shards")
    assert len(shards.english_hash) == 4 and len(np.unique(shards.english_hash)) == 2


def test_a_window_never_forgets_the_last_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "WINDOW", 50)
    seen = prepare_module._Seen()
    rng = np.random.default_rng(3)
    last: dict[str, int] = {}
    for new, value in enumerate(rng.integers(0, 200, 5_000)):
        recent = list(last)[-50:]  # the last 50 distinct lines
        number = seen.number(str(value), new)
        if str(value) in recent:
            assert number == last[str(value)]
        assert len(seen.young) <= 50 and len(seen.old) <= 50
        last.pop(str(value), None)
        last[str(value)] = number


def test_ids_are_wide_where_the_tokenizer_needs_it(toy_tokenizer: Path, toy_shards: Path, tmp_path: Path) -> None:
    """65,536 pieces fit two bytes, one more does not."""
    data = json.loads(toy_tokenizer.read_text(encoding="utf-8"))
    pieces = data["model"]["vocab"]
    mask = data["added_tokens"][-1]
    for size, kind in ((2**16, np.uint16), (2**16 + 1, np.uint32)):
        extra = [(f"▁w{i}", -5.0) for i in range(size - len(pieces))]
        mask["id"] = size - 1
        wide = {**data, "model": {**data["model"], "vocab": [*pieces[:-1], *extra, pieces[-1]]}}
        (tmp_path / f"{size}.json").write_text(json.dumps(wide), encoding="utf-8")
        last = extra[-1][0].removeprefix("▁")
        (tmp_path / f"{size}.tsv").write_text(f"fra\tx\tsun {last}\t{last}\n")
        meta = prepare(tmp_path / f"{size}.tsv", tmp_path / f"shards{size}", tmp_path / f"{size}.json")
        shards = open_shards(tmp_path / f"shards{size}")
        assert meta["vocab_size"] == size and shards.english_ids.dtype == shards.text_ids.dtype == kind
        assert shards.text(np.array([0]), 9).ids.tolist() == [0, size - 2, 2]  # the highest id but <mask>
    assert open_shards(toy_shards).text_ids.dtype == np.uint16


def test_several_sources_and_options(pairs_tsv: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "news.en").write_text("sun\nmoon\n\n")
    (tmp_path / "news.de").write_text("Sonne\nMond\nStein\n")
    sources: list[str | Path] = [pairs_tsv, f"{tmp_path}/news.en:{tmp_path}/news.de"]
    meta = prepare(sources, tmp_path / "shards", toy_tokenizer, lang="deu")
    assert (meta["languages"], meta["sources"]) == (["fra", "rus", "deu"], ["ui", "toy", "news"])
    assert (meta["pairs"], meta["rows_read"], meta["rows_skipped"]) == (602, 603, {"empty side": 1})
    assert meta["first_skipped"]["empty side"].endswith("news.de, row 3")


KANJI = "We can not learn Japanese without learning Kanji!"  # Tatoeba's test set of LASER
MICE = "„Wir haben jetzt 4 Monate alte Mäuse, die Diabetes hatten und jetzt keinen mehr haben“, fügte er hinzu."  # FLORES-200


def test_rows_with_a_test_sentence_are_dropped_and_are_no_bad_rows(toy_tokenizer: Path, tmp_path: Path) -> None:
    clean = [("fra", f"sun {i}", f"soleil {i}") for i in range(990)]
    held = [("jpn", KANJI.lower(), "本" * i) for i in range(1, 25)] + [("deu", "house", MICE), ("deu", KANJI, MICE)]
    rows = [*clean[:500], *held, *clean[500:]]  # 2.6 % of the rows, of which 1 % may be bad
    (tmp_path / "p.tsv").write_text("".join(f"{lang}\tx\t{e}\t{t}\n" for lang, e, t in rows), encoding="utf-8")
    meta = prepare(tmp_path / "p.tsv", tmp_path / "shards", toy_tokenizer)
    assert (meta["pairs"], meta["rows_read"], meta["rows_skipped"]) == (990, 1016, {})
    assert meta["held_out"]["rows"] == 26 and meta["held_out"]["languages"] == {"jpn": 24, "deu": 2}
    assert list(meta["held_out"]["sets"]) == ["FLORES-200 devtest", "Tatoeba test set of LASER"]
    assert json.loads((tmp_path / "shards" / "meta.json").read_text())["held_out"] == meta["held_out"]
    (tmp_path / "clean.tsv").write_text("".join(f"{lang}\tx\t{e}\t{t}\n" for lang, e, t in clean))
    prepare(tmp_path / "clean.tsv", tmp_path / "without", toy_tokenizer)
    for array in ARRAYS:  # nothing of them is left, not even an English segment without a pair
        assert (tmp_path / "shards" / f"{array}.npy").read_bytes() == (tmp_path / "without" / f"{array}.npy").read_bytes()

    kept = prepare(tmp_path / "p.tsv", tmp_path / "all", toy_tokenizer, allow_held_out=True)
    assert (kept["pairs"], kept["languages"], kept["held_out"]) == (1016, ["fra", "jpn", "deu"], None)


def test_the_command_line_drops_test_sentences_unless_told_to_keep_them(toy_tokenizer: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="mexma-train needs torch: pip install 'mexma-rt[train]'")
    from mexma_train.cli import main

    (tmp_path / "p.tsv").write_text(f"jpn\tx\t{KANJI}\tsun\njpn\tx\tmoon\tsun\n")
    for words, pairs in ([], 1), (["--allow-held-out"], 2):
        shards = tmp_path / f"shards{pairs}"
        arguments = [str(tmp_path / "p.tsv"), str(shards), "--tokenizer", str(toy_tokenizer)]
        result = CliRunner().invoke(main, ["prepare", *arguments, *words])
        assert result.exit_code == 0 and json.loads(result.stdout)["pairs"] == len(open_shards(shards)) == pairs


def test_nothing_but_test_sentences(toy_tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_text(f"jpn\tx\t{KANJI}\tsun\n")
    with pytest.raises(InputError, match=r"p\.tsv contains no usable pair \(1 rows read, 1 of them held out, bad rows: none\)"):
        prepare(tmp_path / "p.tsv", tmp_path / "shards", toy_tokenizer)


def test_nothing_usable_and_an_existing_folder(pairs_tsv: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    with pytest.raises(InputError, match="already exists"):
        prepare(pairs_tsv, tmp_path / "shards", toy_tokenizer)
    (tmp_path / "empty.tsv").write_text("fra\tx\t \tlune\n")
    with pytest.raises(InputError, match=r"empty\.tsv contains no usable pair \(1 rows read, bad rows: {'empty side': 1}\)"):
        prepare(tmp_path / "empty.tsv", tmp_path / "new", toy_tokenizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.tsv", "shards"]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, FileError("the disk of the source is gone"), OSError(28, "No space left")]
)
def test_an_error_leaves_nothing_behind(
    error: BaseException | type[BaseException], toy_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(*_: object) -> Iterator[Row]:
        yield Row(lang="fra", source="x", english="sun", text="soleil")
        (work,) = tmp_path.iterdir()
        assert work.name.startswith(".new.") and work.name.endswith(".partial")
        raise error

    monkeypatch.setattr(prepare_module, "read_pairs", rows)
    expected = FileError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as raised:
        prepare("x", tmp_path / "new", toy_tokenizer)
    if type(error) is OSError:
        assert "new was not written: No space left. Any earlier folder of that name" in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.kill
def test_a_killed_prepare_leaves_no_shards_and_the_next_try_cleans_up(
    pairs_tsv: Path, toy_tokenizer: Path, tmp_path: Path
) -> None:
    code = (
        "import os, sys, mexma_train.data.prepare as p\n"
        "p._second_pass = lambda *_: os.kill(os.getpid(), 9)\n"
        "p.prepare(*sys.argv[1:])\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(pairs_tsv), str(tmp_path / "s"), str(toy_tokenizer)])
    assert killed.returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".s.") and (left / "text.ids.npy").exists()
    alive = tmp_path / f".s.{socket.gethostname()}-{os.getppid()}-00000000.partial"  # a process still works at the same name
    elsewhere = tmp_path / f".s.another-host-{2**22 + 1}-00000000.partial"  # no process here, but maybe one there
    alive.mkdir()
    elsewhere.mkdir()
    prepare(pairs_tsv, tmp_path / "s", toy_tokenizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([alive.name, elsewhere.name, "s"])
    assert len(open_shards(tmp_path / "s")) == 600


def test_another_process_that_was_faster_is_not_overwritten(
    pairs_tsv: Path, toy_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second_pass = prepare_module._second_pass

    def slow(work: Path, pairs: int, groups: list[list[int]]) -> int:
        (tmp_path / "s").mkdir()
        return second_pass(work, pairs, groups)

    monkeypatch.setattr(prepare_module, "_second_pass", slow)
    with pytest.raises(InputError, match="already exists"):
        prepare(pairs_tsv, tmp_path / "s", toy_tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["s"] and list((tmp_path / "s").iterdir()) == []


def test_documents_in_the_place_of_sources_are_refused(
    toy_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "MAX_GROUPS", 20)
    (tmp_path / "p.tsv").write_text("".join(f"fra\tdocument {i}\tsun {i}\tlune\n" for i in range(50)))
    with pytest.raises(InputError, match=r"the first 50 pairs have 1 languages and 50 sources in more than 20 combinations"):
        prepare(tmp_path / "p.tsv", tmp_path / "s", toy_tokenizer)


def test_memory_does_not_grow_with_the_corpus(toy_tokenizer: Path, tmp_path: Path) -> None:
    """What Python objects and arrays hold between slabs, counted by tracemalloc, is alike for 1,000 and 9,000 rows."""
    code = """
import sys, tracemalloc, mexma_train.data.prepare as p
from mexma_train.data.bitext import Row
p.SLAB_ROWS, p.WINDOW, p.SORTED_PAIRS = 500, 200, 500
rows = lambda n: (Row(lang="fra", source="x", english=f"sun {i}", text=f"lune {i}") for i in range(n))
peaks = []
for n in (1_000, 1_000, 9_000):  # the first warms caches
    p.read_pairs = lambda *_: rows(n)
    tracemalloc.start()
    p.prepare("x", f"{sys.argv[1]}/{n}-{len(peaks)}", sys.argv[2])
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
print(*peaks[1:])
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(toy_tokenizer)], capture_output=True, text=True, check=True
    )
    small, large = map(int, run.stdout.split())
    assert large - small < 8_000 * 2  # less than two bytes for each row more; an int alone has 28
