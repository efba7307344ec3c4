"""xsim over line-aligned files: a pair, a folder of languages against one of them, or all pairs of a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import numpy as np

from mexma_rt.checks import check_k
from mexma_rt.errors import FileError, InputError
from mexma_rt.evaluation.augmented import Augmented, read_augmented
from mexma_rt.evaluation.measures import retrieval_accuracy, xsim, xsim_both
from mexma_rt.files.atomic import read_lines
from mexma_rt.files.endings import visible
from mexma_rt.files.spool import side_by_side
from mexma_rt.progress import progress_bar

Embed = Callable[[list[str], str], np.ndarray]  # lines [n] and the name of their file -> vectors [n, D]


class Embeds(Protocol):
    """Whatever turns a list of n sentences into vectors [n, D], such as `mexma_rt.Encoder`."""

    def embed(self, texts: list[str], /) -> np.ndarray:
        """Vectors [n, D] of n sentences."""
        ...


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One language searched for in another; xsim and the accuracies are in percent.

    target is None if one file is the target of all; accuracies and by_type are None if not measured.
    """

    language: str
    target: str | None = None
    sentences: int
    errors: int
    xsim: float
    accuracy_there: float | None = None
    accuracy_back: float | None = None
    by_type: dict[str, int] | None = None

    def as_data(self) -> dict[str, Any]:
        """What was measured, for JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class FolderResult:
    """A row per comparison, their average (all errors / all sentences, as in LASER) and mean (rows weighted equally)."""

    rows: tuple[Comparison, ...]
    average: Comparison
    mean: Comparison

    @classmethod
    def of(cls, rows: Sequence[Comparison]) -> FolderResult:
        """The result of at least one row; all rows have the same measures."""
        total = sum(row.sentences for row in rows)
        by_type = None
        if (kinds := rows[0].by_type) is not None:
            by_type = {kind: sum((row.by_type or {})[kind] for row in rows) for kind in kinds}

        def over(language: str, value: Callable[[Sequence[float]], float]) -> Comparison:
            def accuracy(name: str) -> float | None:
                numbers = [getattr(row, name) for row in rows]
                return None if None in numbers else value(numbers)

            return Comparison(
                language=language,
                sentences=total,
                errors=sum(row.errors for row in rows),
                xsim=value([row.xsim for row in rows]),
                accuracy_there=accuracy("accuracy_there"),
                accuracy_back=accuracy("accuracy_back"),
                by_type=by_type,
            )

        def weighted(numbers: Sequence[float]) -> float:
            return sum(number * row.sentences for number, row in zip(numbers, rows, strict=True)) / total

        return cls(rows=tuple(rows), average=over("average", weighted), mean=over("mean", fmean))


@dataclass(frozen=True, kw_only=True)
class ParallelFiles:
    """Line-aligned files by language, and the file they are compared with (None: each is compared with all others)."""

    sources: dict[str, Path]
    target: Path | None

    @classmethod
    def of_pair(cls, source: str | Path, target: str | Path) -> ParallelFiles:
        """Pair two files; the language is the first one's name without its extension."""
        return cls(sources={visible(Path(source).stem): Path(source)}, target=Path(target))

    @classmethod
    def of_folder(
        cls, folder: str | Path, *, target: str = "eng", languages: Sequence[str] | None = None, all_pairs: bool = False
    ) -> ParallelFiles:
        """Take a folder's LANGUAGE.txt files, or those of `languages`. Raises FileError or InputError if one is missing."""
        folder = Path(folder)
        goal = folder / f"{target}.txt"
        if not all_pairs and not goal.is_file():
            raise FileError(
                f"{goal} does not exist, but --target {target} compares with it. Type --target with another language."
            )
        found = {visible(file.stem): file for file in sorted(folder.glob("*.txt")) if all_pairs or file != goal}
        if not found:
            beside = "" if all_pairs else f" besides {goal.name}: there is nothing to compare with it"
            raise InputError(f"{folder} has no .txt file{beside}.")
        wanted = list(found) if languages is None else list(dict.fromkeys(languages))
        for name in wanted:
            if name not in found:
                raise InputError(f"{folder} has no {name}.txt to compare with {goal.name}. It has: {', '.join(found)}.")
        if all_pairs and len(wanted) < 2:
            raise InputError(f"--all-pairs compares languages with each other, but there is only {wanted[0]}.")
        return cls(sources={name: found[name] for name in wanted}, target=None if all_pairs else goal)

    def read(self, k: int) -> Texts:
        """Read the lines. Raises InputError unless all files have the same number of lines, some with text, and k fits."""
        files = ([] if self.target is None else [("", self.target)]) + list(self.sources.items())
        first, lines = files[0][1], []
        with side_by_side(*(file for _, file in files)) as readable:
            for (name, file), copy in zip(files, readable, strict=True):
                lines.append(read_lines(copy))
                size = len(lines[0])
                if len(lines[-1]) != size:
                    raise InputError(f"{file} has {len(lines[-1])} lines and {first} {size}, but they must be line-aligned.")
                if name:
                    check_k(k, {str(file): size}, "lines")
        for (_, file), texts in zip(files, lines, strict=True):
            if not any(map(str.strip, texts)):
                raise InputError(f"{file} has {len(texts):,} lines but no text, so there is nothing to find.")
        if self.target is not None:
            return Texts(sources=dict(zip(self.sources, lines[1:], strict=True)), target=lines[0])
        return Texts(sources=dict(zip(self.sources, lines, strict=True)), target=None)


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The lines of `ParallelFiles`, all of one length."""

    sources: dict[str, list[str]]
    target: list[str] | None


@dataclass(frozen=True, kw_only=True)
class XsimSettings:
    """How to count; index_comparison: an equal line at another position is also an error."""

    margin: str = "ratio"
    k: int = 4
    index_comparison: bool = False


@dataclass(frozen=True, kw_only=True)
class Altered:
    """The altered copies of the target's lines, and how each was made, for xsim++."""

    lines: list[str]
    types: dict[str, Augmented]

    @classmethod
    def read(cls, augmented: str | Path, errtypes: str | Path, texts: Texts) -> Altered:
        """Read LASER's two files; see `read_augmented`."""
        lines, types = read_augmented(augmented, errtypes, texts.target or [])
        return cls(lines=lines, types=types)

    @property
    def unknown(self) -> int:
        """Number of lines without a type; finding one counts as Misaligned."""
        return sum(line not in self.types for line in self.lines)


def evaluate_folder(
    encoder: Embeds,
    folder: str | Path,
    *,
    target: str = "eng",
    languages: Sequence[str] | None = None,
    all_pairs: bool = False,
    augmented: str | Path | None = None,
    errtypes: str | Path | None = None,
    settings: XsimSettings | None = None,
) -> FolderResult:
    """Measure every LANGUAGE.txt of a folder of line-aligned files against TARGET.txt, or (all_pairs) every ordered pair.

    With augmented and errtypes, in LASER's form, it is xsim++. Raises FileError and InputError for files that are missing, of
    different lengths or empty, and InputError for incompatible settings.
    """
    if (augmented is None) != (errtypes is None):
        raise InputError("augmented and errtypes go together: pass both files, or neither.")
    settings = settings or XsimSettings()
    if augmented and (all_pairs or settings.index_comparison):
        other = "all_pairs" if all_pairs else "index_comparison"
        raise InputError(f"augmented has altered lines of one target, and compares texts, so it does not go with {other}.")
    files = ParallelFiles.of_folder(folder, target=target, languages=languages, all_pairs=all_pairs)
    texts = files.read(settings.k)
    altered = Altered.read(augmented, errtypes, texts) if augmented and errtypes else None
    return FolderResult.of(list(compare(files, texts, lambda lines, _: encoder.embed(lines), settings, altered)))


def compare(
    files: ParallelFiles, texts: Texts, embed: Embed, settings: XsimSettings, altered: Altered | None = None
) -> Iterator[Comparison]:
    """Yield a row for each comparison as it is measured."""
    if files.target is None:
        return _all_pairs(texts, embed, settings)
    return _to_one(files, texts, embed, settings, altered)


def _to_one(
    files: ParallelFiles, texts: Texts, embed: Embed, settings: XsimSettings, altered: Altered | None
) -> Iterator[Comparison]:
    """Hold one language in memory at a time, besides the target."""
    right = texts.target or []
    pool = right if altered is None else right + altered.lines
    y: np.ndarray | None = None
    for name, file in files.sources.items():
        y = embed(pool, str(files.target)) if y is None else y
        x = embed(texts.sources[name], str(file))
        lines, types = None if settings.index_comparison else pool, None if altered is None else altered.types
        found = xsim(x, y, text=lines, error_types=types, margin=settings.margin, k=settings.k)
        there, back = retrieval_accuracy(x, y[: len(right)])
        yield Comparison(
            language=name,
            sentences=found.total,
            errors=found.errors,
            xsim=found.error_rate,
            accuracy_there=there,
            accuracy_back=back,
            by_type=found.by_type,
        )


def _all_pairs(texts: Texts, embed: Embed, settings: XsimSettings) -> Iterator[Comparison]:
    """Measure both directions of each pair from one product, holding all languages' vectors and lines in memory."""
    vectors = {name: embed(lines, name) for name, lines in texts.sources.items()}
    names = list(vectors)
    with progress_bar(None, total=len(names) * (len(names) - 1) // 2, desc="xsim", unit="pair") as advance:
        for place, a in enumerate(names):
            for b in names[place + 1 :]:
                a_text, b_text = (None, None) if settings.index_comparison else (texts.sources[a], texts.sources[b])
                both = xsim_both(vectors[a], vectors[b], x_text=a_text, y_text=b_text, margin=settings.margin, k=settings.k)
                for (one, other), found in zip(((a, b), (b, a)), both, strict=True):
                    yield Comparison(
                        language=one, target=other, sentences=found.total, errors=found.errors, xsim=found.error_rate
                    )
                advance(1)
