"""Tables and columns of other libraries as texts: a column is a list of sentences, a table is refused with what to type."""

from __future__ import annotations

import asyncio
import decimal
import io
import re
from collections import Counter, OrderedDict, UserDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mexma_rt
from mexma_rt import InputError
from mexma_rt.checks import check_texts

TEXTS = ["un chat", "deux chiens", "trois"]
ROWS: dict[str, Any] = {"text": TEXTS, "label": [1, 2, 3]}
NUMBERED = {"id": [7, 8, 9], **ROWS}


def sqlite_rows(sqlite3: Any) -> Any:
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    return connection.execute("select 7 as id, 'un chat' as text")


def parquet_file(pq: Any) -> Any:
    stream = io.BytesIO()
    pq.write_table(pytest.importorskip("pyarrow").table(ROWS), stream)
    return pq.ParquetFile(stream)


class Row:
    """A row of the user's own, without length or numbers."""


# How each is made of a library; a library that is not installed skips its cases.
TABLES: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "pandas": ("pandas", lambda pd: pd.DataFrame(ROWS), "texts is a DataFrame of pandas with the columns text, label"),
    "pandas-one-column": ("pandas", lambda pd: pd.DataFrame({"text": TEXTS}), "Type texts['text']."),
    "pandas-group": ("pandas", lambda pd: pd.DataFrame(ROWS).groupby("label"), "texts[0] is of type tuple"),
    "pandas-tuples": ("pandas", lambda pd: pd.DataFrame(ROWS).itertuples(), "type [row.text for row in texts]."),
    "pandas-values": ("pandas", lambda pd: pd.DataFrame(ROWS).values, "Type texts[:, 0] (or another column)."),
    "pandas-one-value": ("pandas", lambda pd: pd.DataFrame({"text": TEXTS}).values, "Type texts[:, 0]."),
    "pandas-str": ("pandas", lambda pd: pd.Series(TEXTS).str, "texts is of type StringMethods, but a list"),
    "csv": ("csv", lambda csv: csv.reader(["1,un chat", "2,deux chiens"]), "type [row[0] for row in texts]."),
    "sqlite": (
        "sqlite3",
        lambda sqlite3: sqlite3.connect(":memory:").execute("select 7, 'un chat'"),
        "texts[0] is of type tuple, but each sentence must be a str. If these are rows with the text in one column, "
        "type [row[1] for row in texts].",
    ),
    "sqlite-row": ("sqlite3", lambda sqlite3: sqlite_rows(sqlite3), "type [row[1] for row in texts]."),
    "pandas-two-levels": ("pandas", lambda pd: pd.concat({"a": pd.DataFrame(ROWS)}, axis=1), "Type texts[('a', 'text')]"),
    "pandas-wide": ("pandas", lambda pd: pd.DataFrame([range(99)]), "columns 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 89 more"),
    "polars": ("polars", lambda pl: pl.DataFrame(ROWS), "Type texts['text'] (or another column)."),
    "polars-lazy": ("polars", lambda pl: pl.LazyFrame(ROWS), "Type texts.collect()['text'] (or another column)."),
    "arrow": ("pyarrow", lambda pa: pa.table(ROWS), "texts is a Table of pyarrow with the columns text, label"),
    "arrow-batch": ("pyarrow", lambda pa: pa.record_batch(ROWS), "Type texts['text'] (or another column)."),
    "arrow-struct": ("pyarrow", lambda pa: pa.table(ROWS).to_struct_array(), "type [row['text'] for row in texts]"),
    "datasets": ("datasets", lambda ds: ds.Dataset.from_dict(ROWS), "Type texts['text'] (or another column)."),
    "datasets-splits": (
        "datasets",
        lambda ds: ds.DatasetDict({"train": ds.Dataset.from_dict(ROWS)}),
        "of tables, but a list of sentences is needed. Pass one column of one of them, such as texts['train']['text'].",
    ),
    "datasets-stream": (
        "datasets",
        lambda ds: ds.Dataset.from_dict(ROWS).to_iterable_dataset(),
        "IterableDataset of datasets with the columns text, label",
    ),
    "dict": ("builtins", lambda _: ROWS, "texts is a dict with the columns text, label"),
    "ordered": ("builtins", lambda _: OrderedDict(ROWS), "texts is a OrderedDict with the columns text, label"),
    "user": ("builtins", lambda _: UserDict(ROWS), "texts is a UserDict with the columns text, label"),
    "counter": (
        "builtins",
        lambda _: Counter("ab"),
        "texts is a Counter, but a list of sentences is needed. Type list(texts).",
    ),
    "empty-dict": ("builtins", lambda _: {}, "texts is a dict, but a list of sentences is needed."),
    "rows": ("builtins", lambda _: [{"text": "a"}], "columns text: type [row['text'] for row in texts]."),
    "rows-with-a-number": ("builtins", lambda _: [{"id": 7, "text": "a"}], "type [row['text'] for row in texts]."),
    "rows-of-a-translation": (
        "builtins",
        lambda _: [{"id": 7, "translation": {"fr": "a", "en": "b"}}],
        "type [row['translation']['fr'] for row in texts].",
    ),
    "dict-of-dicts": ("pandas", lambda pd: pd.DataFrame(ROWS).to_dict(), "such as list(texts['text'].values())."),
    "dict-with-a-number": ("builtins", lambda _: NUMBERED, "Type texts['text'] (or another column)."),
    "pandas-with-a-number": ("pandas", lambda pd: pd.DataFrame(NUMBERED), "Type texts['text'] (or another column)."),
    "pandas-same-names": ("pandas", lambda pd: pd.DataFrame([[1, "a"]], columns=["t", "t"]), "Type texts['t'] (or another"),
    "polars-with-a-number": ("polars", lambda pl: pl.DataFrame(NUMBERED), "Type texts['text'] (or another column)."),
    "arrow-with-a-number": ("pyarrow", lambda pa: pa.table(NUMBERED), "Type texts['text'] (or another column)."),
    "datasets-with-a-number": (
        "datasets",
        lambda ds: ds.Dataset.from_dict(NUMBERED),
        "Type texts['text'] (or another column).",
    ),
    "splits-with-a-number": (
        "datasets",
        lambda ds: ds.DatasetDict({"train": ds.Dataset.from_dict(NUMBERED)}),
        "such as texts['train']['text'].",
    ),
    "arrow-dataset": (
        "pyarrow.dataset",
        lambda dataset: dataset.dataset(pytest.importorskip("pyarrow").table(ROWS)),
        "is a InMemoryDataset of pyarrow, but a list of sentences is needed. Read it, and pass the column that holds the text. "
        "Type texts.to_table()['text'] (or another column).",
    ),
    "parquet-file": ("pyarrow.parquet", lambda pq: parquet_file(pq), "Type texts.read()['text'] (or another column)."),
    "pandas-chunks": (
        "pandas",
        lambda pd: pd.read_csv(io.StringIO("text,label\nun chat,1\ntrois,3\n"), chunksize=1),
        "texts[0] is of type DataFrame, but each sentence must be a str. These are tables with the columns text, label: type "
        "[text for table in texts for text in table['text']].",
    ),
    "arrow-reader": (
        "pyarrow",
        lambda pa: pa.table(ROWS).to_reader(),
        "type [text for table in texts for text in table['text']].",
    ),
    "columns": ("pandas", lambda pd: [pd.Series(TEXTS)], "texts[0] is of type Series, but each sentence must be a str."),
    "objects": ("builtins", lambda _: [Row()], "texts[0] is of type Row, but each sentence must be a str."),
    "torch": ("torch", lambda torch: torch.zeros(2, 3), "texts[0] is of type Tensor, but each sentence must be a str."),
    "path": (
        "pathlib",
        lambda pathlib: pathlib.Path("a.txt"),
        "texts is a path, but a list of sentences is needed. For the lines of its file, type "
        "texts.read_text(encoding='utf-8').split('\\n').",
    ),
    "numpy-records": ("numpy", lambda np: np.array([("a", 1)], [("t", "U3"), ("n", "i4")]), "Type texts['t']"),
}

COLUMNS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "pandas": ("pandas", lambda pd: pd.Series(TEXTS)),
    "pandas-object": ("pandas", lambda pd: pd.Series(TEXTS, dtype=object)),
    "pandas-string": ("pandas", lambda pd: pd.Series(TEXTS, dtype="string")),
    "pandas-category": ("pandas", lambda pd: pd.Series(TEXTS, dtype="category")),
    "pandas-index": ("pandas", lambda pd: pd.Index(TEXTS)),
    "pandas-from-9": ("pandas", lambda pd: pd.Series(TEXTS, index=[9, 8, 7])),
    "pandas-labelled": ("pandas", lambda pd: pd.Series(TEXTS, index=["columns", "column_names", "as_py"])),
    "polars": ("polars", lambda pl: pl.Series(TEXTS)),
    "polars-categorical": ("polars", lambda pl: pl.Series(TEXTS, dtype=pl.Categorical)),
    "arrow": ("pyarrow", lambda pa: pa.array(TEXTS)),
    "arrow-chunks": ("pyarrow", lambda pa: pa.chunked_array([TEXTS[:1], TEXTS[1:]])),
    "arrow-large": ("pyarrow", lambda pa: pa.array(TEXTS, pa.large_string())),
    "arrow-view": ("pyarrow", lambda pa: pa.array(TEXTS, pa.string_view())),
    "arrow-dictionary": ("pyarrow", lambda pa: pa.array(TEXTS).dictionary_encode()),
    "arrow-scalars": ("pyarrow", lambda pa: list(pa.array(TEXTS))),
    "datasets": ("datasets", lambda ds: ds.Dataset.from_dict(ROWS)["text"]),
    "datasets-stream": ("datasets", lambda ds: ds.Dataset.from_dict(ROWS).to_iterable_dataset()["text"]),
    "numpy-str": ("numpy", lambda np: np.array(TEXTS)),
    "numpy-object": ("numpy", lambda np: np.array(TEXTS, dtype=object)),
    "numpy-unmasked": ("numpy", lambda np: np.ma.array(TEXTS)),
    "deque": ("builtins", lambda _: deque(TEXTS)),
}

MISSING: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "pandas-None": ("pandas", lambda pd: pd.Series(["a", None])),
    "pandas-NA": ("pandas", lambda pd: pd.Series(["a", pd.NA], dtype="string")),
    "pandas-object-NA": ("pandas", lambda pd: pd.Series(["a", pd.NA], dtype=object)),
    "list-of-NA": ("pandas", lambda pd: ["a", pd.NA]),
    "pandas-NaT": ("pandas", lambda pd: ["a", pd.NaT]),
    "pandas-category": ("pandas", lambda pd: pd.Series(["a", None], dtype="category")),
    "polars": ("polars", lambda pl: pl.Series(["a", None])),
    "arrow": ("pyarrow", lambda pa: pa.array(["a", None])),
    "arrow-scalars": ("pyarrow", lambda pa: list(pa.array(["a", None]))),
    "numpy-float32": ("numpy", lambda np: ["a", np.float32("nan")]),
    "numpy-masked": ("numpy", lambda np: np.ma.array(["a", "b"], mask=[False, True])),
    "decimal": ("builtins", lambda _: ["a", decimal.Decimal("nan")]),
}


def made(library: str, make: Callable[[Any], Any]) -> Any:
    return make(pytest.importorskip(library, reason=f"{library} makes the table or column"))


@pytest.mark.parametrize(("library", "make", "message"), TABLES.values(), ids=TABLES.keys())
def test_a_table_is_refused_with_the_line_to_type(library: str, make: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        check_texts(made(library, make))


NO_TEXTS_BY_THAT_LINE = {"path", "empty-dict", "pandas-wide", "pandas-same-names"}


@pytest.mark.parametrize("case", sorted(TABLES.keys() - NO_TEXTS_BY_THAT_LINE))
def test_the_line_can_be_typed_and_gives_sentences(case: str) -> None:
    library, make, _ = TABLES[case]
    with pytest.raises(InputError) as caught:
        check_texts(made(library, make))
    if found := re.match(r".*(?<!of )(?:[Tt]ype|such as) (\S.*?)(?: \(or another column\))?\.$", str(caught.value)):
        assert check_texts(eval(found[1], {"texts": made(library, make)}))


@pytest.mark.parametrize(("library", "make"), COLUMNS.values(), ids=COLUMNS.keys())
def test_a_column_is_a_list_of_sentences(library: str, make: Callable[[Any], Any]) -> None:
    assert check_texts(made(library, make)) == TEXTS


@pytest.mark.parametrize(("library", "make"), MISSING.values(), ids=MISSING.keys())
def test_a_missing_value_is_called_one(library: str, make: Callable[[Any], Any]) -> None:
    message = r"texts\[1\] is of type .* It is a missing value: drop it, or type '' for an empty sentence\."
    with pytest.raises(InputError, match=message):
        check_texts(made(library, make))


VERBS: dict[str, Callable[[Any, Any], Any]] = {
    "embed": lambda encoder, texts: mexma_rt.embed(texts),
    "encode": lambda encoder, texts: encoder.encode(texts),
    "embed_tokens": lambda encoder, texts: encoder.embed_tokens(texts),
    "aembed": lambda encoder, texts: asyncio.run(encoder.aembed(texts)),
    "mine": lambda encoder, texts: mexma_rt.mine(texts, texts, k=1, retrieval="knn", encoder=encoder),
    "score_pairs": lambda encoder, texts: mexma_rt.score_pairs(texts, texts, k=1, encoder=encoder),
    "align_documents": lambda encoder, texts: mexma_rt.align_documents(texts, texts, encoder=encoder),
    "align_words": lambda encoder, texts: mexma_rt.align_words(texts, texts, encoder=encoder),
}


@pytest.fixture(scope="module")
def encoder() -> mexma_rt.Encoder:
    return mexma_rt.load()


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS.keys())
def test_every_verb_refuses_a_table_and_takes_its_column(verb: Callable[[Any, Any], Any], encoder: mexma_rt.Encoder) -> None:
    pd = pytest.importorskip("pandas", reason="makes the table")
    table = pd.DataFrame(ROWS)
    with pytest.raises(InputError, match=r"is a DataFrame of pandas with the columns text, label.*\['text'\]"):
        verb(encoder, table)
    with encoder.service() as service, pytest.raises(InputError, match="is a DataFrame"):
        service.embed(table)
    ours, theirs = verb(encoder, TEXTS), verb(encoder, table["text"])
    if isinstance(ours, np.ndarray):
        np.testing.assert_array_equal(ours, theirs)
    else:
        assert len(ours) == len(theirs) >= 1
