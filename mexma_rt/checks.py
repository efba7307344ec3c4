"""Checks user arguments before any work starts; errors name the bad argument, with its index if it has one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard, cast

import numpy as np

from mexma_rt.errors import InputError

IN_MEMORY = ("pandas", "polars", "pyarrow", "datasets", "numpy")  # whose columns can be looked into at no cost


def check_texts(texts: Iterable[str], name: str = "texts") -> list[str]:
    """Return the texts as a list, or raise InputError saying what is wrong, at which index, and what to type.

    Any iterable of str with an order is accepted: list, tuple, generator, numpy array, and a column of pandas, polars, pyarrow
    or datasets. A table is refused, because its iteration gives column names or rows. Empty and blank strings are valid. Lone
    surrogates are refused: they are not valid Unicode and could only be replaced silently.
    """
    items = text_items(texts, name)
    for index, text in enumerate(items):
        if not isinstance(text, str):
            text = items[index] = _python_value(text)
            if not isinstance(text, str):
                raise InputError(_not_a_string(name, index, text))
        if not text.isascii():  # isascii reads one flag, so the common case costs nothing
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InputError(
                    f"{name}[{index}] contains a lone surrogate (U+{ord(text[error.start]):04X} at character "
                    f"{error.start}), which is not valid Unicode. Type "
                    "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') to repair it."
                ) from None
    return items


def text_items(texts: Iterable[Any], name: str) -> list[Any]:
    """Return the unchecked items of an ordered, one-dimensional collection. Raises InputError for a single text or a table."""
    if isinstance(texts, str):
        raise InputError(f"{name} is a single str, but a list of sentences is needed. Type [text] instead of text.")
    if isinstance(texts, (set, frozenset)):
        raise InputError(f"{name} is a {type(texts).__name__}, but a list of sentences is needed. Type list(...) around it.")
    if (columns := columns_of(texts)) is not None:
        raise InputError(_table_message(texts, columns, name))
    if isinstance(texts, np.ndarray) and texts.ndim != 1:
        line = (
            f"{name}[:, 0]" + (" (or another column)" if texts.shape[1:] != (1,) else "")
            if texts.ndim == 2
            else f"{name}.ravel()"
        )
        raise InputError(f"{name} is an array of shape {texts.shape}, but sentences [n] are needed. Type {line}.")
    if isinstance(texts, os.PathLike):
        line = f"{name}.read_text(encoding='utf-8').split('\\n')"
        raise InputError(f"{name} is a path, but a list of sentences is needed. For the lines of its file, type {line}.")
    if read := next((read for read in ("to_table", "read_row_groups") if hasattr(type(texts), read)), None):
        raise InputError(_unread_message(texts, name, "to_table" if read == "to_table" else "read"))
    if isinstance(texts, (bytes, bytearray)) or not isinstance(texts, Iterable):
        raise InputError(f"{name} is of type {type(texts).__name__}, but a list of sentences (str) is needed.")
    if type(texts).__module__.partition(".")[0] == "pyarrow" and hasattr(texts, "to_pylist"):
        return list(texts.to_pylist())  # its own iteration gives scalars
    try:
        items = iter(texts)
    except TypeError:  # __iter__ exists but raises, as it does for pandas' .str accessor
        raise InputError(f"{name} is of type {type(texts).__name__}, but a list of sentences (str) is needed.") from None
    return list(items)


def _not_a_string(name: str, index: int, item: object) -> str:
    message = f"{name}[{index}] is of type {type(item).__name__}, but each sentence must be a str."
    if is_missing(item):
        return f"{message} It is a missing value: drop it, or type '' for an empty sentence."
    if isinstance(item, (bytes, bytearray)):
        return f"{message} Type item.decode('utf-8')."
    if isinstance(item, Mapping) and item:
        keys = "".join(f"[{key!r}]" for key in _path_to_text(item))
        return f"{message} These are rows of a table with the columns {_listed(item)}: type [row{keys} for row in {name}]."
    if columns := columns_of(item):  # chunks of a table, as from read_csv(chunksize=) and Arrow's readers
        line = f"[text for table in {name} for text in table[{_text_column(item, columns)!r}]]"
        return f"{message} These are tables with the columns {_listed(columns)}: type {line}."
    fields = getattr(item, "_fields", ())  # a named tuple's, as from DataFrame.itertuples
    if (texts := [place for place in range(len(item)) if isinstance(item[place], str)] if _is_row(item) else []) and fields:
        return f"{message} These are rows with the fields {_listed(fields)}: type [row.{fields[texts[0]]} for row in {name}]."
    if texts:
        return f"{message} If these are rows with the text in one column, type [row[{texts[0]}] for row in {name}]."
    return message


def _path_to_text(row: Mapping[Any, Any]) -> list[Any]:
    """Return the keys that lead to a row's first text, which may be in an inner mapping; the first key if there is none."""
    for key, value in row.items():
        if isinstance(value, str):
            return [key]
    for key, value in row.items():
        if isinstance(value, Mapping) and value:
            return [key, *_path_to_text(value)]
    return [next(iter(row))]


def _is_row(item: object) -> TypeGuard[Sequence[object]]:
    """Whether an item looks like a row from a database, csv.reader or zip: short, and indexed by number."""
    of_database = type(item).__name__ == "Row" and hasattr(type(item), "__len__")  # sqlite3's and SQLAlchemy's
    if isinstance(item, (list, tuple)) or of_database:
        return 0 < len(cast(Sequence[object], item)) <= 100
    return False


def is_missing(item: object) -> bool:
    """Whether an item is a missing value: None, NaN, NaT, pandas' NA, numpy's masked or pyarrow's null."""
    if item is None or item is np.ma.masked or type(item).__name__ == "NAType":
        return True
    try:
        return bool(item != item)  # true of NaN and NaT in every library, and of Decimal's NaN
    except (TypeError, ValueError, ArithmeticError, RuntimeError):  # arrays and torch tensors, for example
        return False


def _python_value(item: Any) -> Any:
    """Convert a pyarrow scalar to the Python value; return anything else unchanged."""
    return item.as_py() if hasattr(type(item), "as_py") else item


def columns_of(texts: Any) -> list[Any] | None:
    """Return the column names of a table (mapping, data frame, Arrow table, data set, structured array), or None otherwise."""
    if isinstance(texts, Mapping):
        return list(texts)
    if isinstance(texts, np.ndarray):
        return list(texts.dtype.names) if texts.dtype.names else None
    if hasattr(type(texts), "collect_schema"):  # a polars LazyFrame, whose .columns costs a query and a warning
        return list(texts.collect_schema())
    for attribute in ("column_names", "columns"):  # pyarrow and datasets; pandas, polars, dask, Spark and DuckDB
        if hasattr(type(texts), attribute):  # asks the type: a pandas Series also has its index labels as attributes
            found = getattr(texts, attribute)
            if found is not None and not callable(found):
                return list(found)
    return None


def _table_message(texts: Any, columns: list[Any], name: str) -> str:
    kind, module = type(texts).__name__, type(texts).__module__.partition(".")[0]
    what = f"{name} is a {kind}" + (f" of {module}" if module not in ("builtins", "collections") else "")
    if isinstance(texts, Mapping) and columns and columns_of(texts[columns[0]]) is not None:  # a data set's splits
        first = texts[columns[0]]
        inner = columns_of(first) or ["NAME"]
        line = f"{name}[{columns[0]!r}][{_text_column(first, inner)!r}]"
        if isinstance(first, Mapping) and isinstance(first.get(inner[0]), str):  # as from DataFrame.to_dict()
            line = f"list({name}[{columns[0]!r}].values())"
        return f"{what} of tables, but a list of sentences is needed. Pass one column of one of them, such as {line}."
    if isinstance(texts, Mapping) and (
        not columns or isinstance(texts[columns[0]], (str, int, float))
    ):  # names to texts, or counts
        line = f"list({name}.values())" if columns and isinstance(texts[columns[0]], str) else f"list({name})"
        return f"{what}, but a list of sentences is needed. Type {line}."
    start = f"{what} with the columns {_listed(columns)}" if columns else what
    column = repr(_text_column(texts, columns)) if columns else "'NAME'"
    line = f"{name}[{column}]"
    if hasattr(type(texts), "collect_schema") and hasattr(type(texts), "collect"):
        line = f"{name}.collect()[{column}]"
    elif not hasattr(type(texts), "__getitem__"):  # a stream of rows
        line = f"[row[{column}] for row in {name}]"
    return (
        f"{start}, but a list of sentences is needed. Pass the column that holds the text. Type {line}"
        f"{' (or another column)' if len(columns) > 1 else ''}."
    )


def _text_column(table: Any, columns: list[Any]) -> Any:
    """Return the first column of a table in memory whose first item is a text; of other tables, the first column."""
    if isinstance(table, Mapping) or type(table).__module__.partition(".")[0] in IN_MEMORY:
        for column in columns[:100]:
            try:
                first = next(iter(table[column]), None)
            except Exception:  # of any library: a lazy table, a column name that occurs twice
                continue
            if not isinstance(table[column], str) and isinstance(_python_value(first), str):
                return column
    return columns[0]


def _unread_message(texts: Any, name: str, read: str) -> str:
    columns = getattr(getattr(texts, "schema", None), "names", None) or ["NAME"]
    return (
        f"{name} is a {type(texts).__name__} of {type(texts).__module__.partition('.')[0]}, but a list of sentences is needed. "
        f"Read it, and pass the column that holds the text. Type {name}.{read}()[{columns[0]!r}] (or another column)."
    )


def _listed(columns: Iterable[Any]) -> str:
    names = [str(column) for column in columns]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def check_vectors(vectors: np.ndarray, name: str) -> np.ndarray:
    """Return vectors as an array [n, D] of real, finite numbers that fit float32, or raise InputError naming what is wrong."""
    array = np.asarray(vectors)
    if array.ndim != 2 or array.shape[1] == 0:
        raise InputError(f"{name} has shape {array.shape}, but vectors are needed as [sentences, dimensions].")
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name} has type {array.dtype}, but vectors are real numbers (float32, float16 or float64).")
    for start in range(0, len(array), 65536):
        with np.errstate(over="ignore"):  # a float64 beyond float32 turns into infinity and is reported below
            block = np.asarray(array[start : start + 65536], np.float32)
        bad = ~np.isfinite(block).all(axis=1)
        if bad.any():
            raise InputError(
                f"{name} has NaN or infinity in row {start + int(bad.argmax())} (counted from 0). "
                "Remove that row or embed its text again."
            )
    return array


def check_dimensions(x: np.ndarray, y: np.ndarray, x_name: str, y_name: str) -> None:
    """Raise InputError unless x [n, D] and y [m, D] agree in D."""
    check_dimensions_of(x.shape, y.shape, x_name, y_name)


def check_dimensions_of(x: tuple[int, ...], y: tuple[int, ...], x_name: str, y_name: str) -> None:
    """`check_dimensions` for shapes."""
    if x[1] != y[1]:
        raise InputError(
            f"{x_name} has shape {x} and {y_name} {y}: the dimensions {x[1]} and {y[1]} differ. "
            "Embed both sides with the same model and the same truncate_dim."
        )


def check_k(k: int, sizes: dict[str, int], what: str) -> None:
    """Raise InputError unless k is a whole number of at least 1 and each side (name -> number of `what`) has at least k."""
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise InputError(f"k={k!r}, but the number of neighbours is a whole number of at least 1, such as k=4.")
    for name, size in sizes.items():
        if size == 0:
            raise InputError(f"{name} is empty: there is nothing to compare with. Pass at least k={k} {what} on each side.")
    for name, size in sizes.items():
        if size < k:
            raise InputError(
                f"{name} has {size} {what}, too few to find k={k} neighbours among them. "
                f"Type k={min(sizes.values())} or pass more."
            )


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise InputError unless value is one of choices."""
    if value not in choices:
        raise InputError(f"{name}={value!r} is not known. Type one of: {', '.join(choices)}.")


def check_count(name: str, value: int) -> int:
    """Return value as an int, or raise InputError unless it is a whole number of at least 1."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name}={value!r} must be a whole number of at least 1.")
    return int(value)
