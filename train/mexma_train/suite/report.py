"""Writes the suite's report: results.json (all figures), suite.md (tables) and suite.png, optionally beside earlier results."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mexma_rt.errors import FileError, InputError, require_extra
from mexma_rt.files.atomic import atomic_write, check_output
from mexma_train.suite.run import FIGURES, FORMAT, FORMAT_VERSION, groups

RESULTS, TABLES, PICTURE = "results.json", "suite.md", "suite.png"
GROUPS = {"trained": "languages trained on", "xtreme": "XTREME's 36", "use": "multilingual USE's 14", "all": "all tested"}
MINED = {
    "pairs": "pairs",
    "precision": "precision %",
    "recall": "recall %",
    "f1": "F1 %",
    "best_f1": "best F1 %",
    "best_threshold": "at threshold",
}
PARAPHRASES = {"english": "English", "trained": "languages trained on", "all": "all languages but English"}

READING = """\
## What the figures are

- **FLORES xsim error**: sentences that do not find their English translation by ratio margin (k = 4), in percent; less is
  better.
- **Tatoeba accuracy**: sentences whose nearest neighbour by cosine is their translation; the mean of both directions unless one
  is named. **Tatoeba xsim error** is the measure used on FLORES, on Tatoeba's vectors. Averages give every language the same
  weight. For a model that was trained on other sentences of Tatoeba this test is in-domain; FLORES is not.
- **Mining**: `mine` at its default threshold on shuffled Tatoeba pairs. With noise 0.3, 15 % of the pairs lost their English
  line and 15 % their text, so that 15 of 85 lines of each side have no partner. "Best F1" is that of the best threshold of
  1.00 to 1.20, chosen on the same lines: a bound, not a result.
- **Paraphrases**: two lines of one language in Tatoeba that have the same translation, against random lines of similar length:
  how often (AUC) the paraphrase has the higher cosine; 50 is chance. There are few pairs, and some are spelt nearly alike, so
  the AUC of spelling (shared letter trigrams) is given too: it shows what needs no model.
- **Pieces aligned**: numbers and (parts of) names that occur once in a FLORES sentence and once in its translation: how often
  each is the other's nearest piece by cosine of the final token states. By chance: under a random permutation of the pieces.
  Equal pieces start from equal embeddings, so this shows whether the encoder keeps them apart, not whether it translates words.
"""


@dataclass(frozen=True, kw_only=True)
class _Average:
    value: float | None
    of: str  # how many languages or pairs
    measured: object  # what was averaged over; if equal in two runs, their averages may be compared


@dataclass(frozen=True, kw_only=True)
class _Cell:
    now: float | None
    before: float | None
    alike: bool = True

    def texts(self) -> list[str]:
        """Now, before and the difference."""
        change = None if self.now is None or self.before is None or not self.alike else self.now - self.before
        return [_shown(self.now), _shown(self.before), _shown(change, "+")]


def _shown(value: float | None, sign: str = "") -> str:
    if value is None:
        return "-"
    return format(value, f"{sign}d" if isinstance(value, int) else f"{sign}.2f")


NOTHING = _Average(value=None, of="", measured=None)


def read_results(path: Path) -> dict[str, Any]:
    """Read the results.json of an earlier suite. Raises FileError if it cannot be read, InputError if it is something else."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FileError(f"{path} does not exist. Give --before the {RESULTS} of an earlier --out folder.") from None
    except IsADirectoryError:
        raise FileError(f"{path} is a folder. Type: --before {path / RESULTS}") from None
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}). Give --before the {RESULTS} of an earlier --out folder.") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        form = found.get("format") if isinstance(found, dict) else type(found).__name__
        raise InputError(
            f"{path}: the format is {form!r}, not {FORMAT!r}. Give --before the {RESULTS} of an earlier --out folder."
        )
    if found.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {found.get('format_version')}, but this mexma-train reads {FORMAT_VERSION}. "
            "Measure that model again."
        )
    try:
        tables(found, found)  # fails on anything missing now, before the long work
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path} is damaged or incomplete ({error!r}). Copy it again, or measure that model again.") from None
    return found


def check_out(out: Path, before: Path | None) -> None:
    """Make the folder `out`. Raises if its files cannot be written, `before` is one of them, or matplotlib is missing."""
    require_extra("train", "matplotlib")
    if out.exists() and not out.is_dir():
        raise FileError(f"{out} is a file, but --out is a folder for {RESULTS}, {TABLES} and {PICTURE}. Choose another name.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{out} cannot be made: {error.strerror}. Choose another --out folder.") from error
    for name in (RESULTS, TABLES, PICTURE):
        check_output(out / name, [before] if before else [])


def write(results: dict[str, Any], out: Path, before: dict[str, Any] | None = None) -> None:
    """Write results.json, suite.md and suite.png into the folder `out`, each complete or not at all."""
    from mexma_train.suite.plot import figure

    drawn = figure(results, before)
    with atomic_write(out / RESULTS) as stream:
        stream.write((json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
    with atomic_write(out / TABLES) as stream:
        stream.write(tables(results, before).encode())
    with atomic_write(out / PICTURE) as stream:
        drawn.savefig(stream, format="png", dpi=120)


def tables(results: dict[str, Any], before: dict[str, Any] | None = None) -> str:
    """Return the Markdown page: averages, languages, mined pairs; with `before`, its figures and the differences too."""
    page = [f"# Quality of `{results['model']['name']}`", "", *_about(results, before), "", "## Summary", ""]
    page += [*_summary(results, before), "", "## Languages", "", *_languages(results, before), ""]
    if results["mining"]:
        page += ["## Mined pairs", "", *_mined(results, before), ""]
    return "\n".join([*page, READING])


def _about(results: dict[str, Any], before: dict[str, Any] | None) -> list[str]:
    lines = [_made(results), "Made by `mexma-train eval --suite`; all figures are in `results.json`."]
    missing = sorted(set(results["trained"]) - set(results["languages"]))
    if missing:
        lines.append(f"Trained on, but without a test file here: {', '.join(missing)}.")
    if any(results["truncated"].values()):
        cut = ", ".join(f"{count} in {where}" for where, count in results["truncated"].items() if count)
        lines.append(f"Sentences cut at {results['model']['max_tokens']} tokens: {cut}.")
    if before:
        lines += [f"Before: {_made(before)}", *_unlike(results, before)]
        lines.append("Earlier averages are over this run's languages; there is no difference where the earlier run lacks some.")
    return [f"- {line}" for line in lines]


def _made(results: dict[str, Any]) -> str:
    model = results["model"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    how = f"{model['embedded_with']}, {model['precision']} on {model['device']}, at most {model['max_tokens']} tokens"
    weights = (model.get("source_sha256") or model["sha256"])[:12]
    return (
        f"{results['date']}: {model['kind']} `{model['name']}`, {model['dimensions']} dimensions, weights {weights}, "
        f"embedded with {how} ({versions}; {results['machine']})."
    )


def _unlike(results: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Settings and data that differ between the two runs, and so may explain a difference in figures."""
    pairs = [("max_tokens", results["model"]["max_tokens"], before["model"].get("max_tokens"))]
    pairs += [(name, value, before["settings"].get(name)) for name, value in results["settings"].items()]
    for key in ("flores_sentences", "tatoeba_pairs"):
        for lang, now in results["languages"].items():
            earlier = before["languages"].get(lang, {})
            pairs += [(f"{lang} {key}", now[key], earlier[key])] if key in now and key in earlier else []
    unlike = [f"{name} {now} (earlier {earlier})" for name, now, earlier in pairs if now != earlier]
    return [f"**Measured differently**: {'; '.join(unlike)}."] if unlike else []


def _averages(results: dict[str, Any], by_group: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], _Average]:
    """Every row of the summary: {(measure, what it is averaged over): average}."""
    rows: dict[tuple[str, str], _Average] = {}
    for figure, title in FIGURES.items():
        for group, over in GROUPS.items():
            values = {lang: results["languages"].get(lang, {}).get(figure) for lang in by_group[group]}
            rows[title, over] = _mean(values)
    for noise in (f"{noise:g}" for noise in results["settings"]["mining_noise"]):
        values = {lang: by_noise[noise]["f1"] for lang, by_noise in results["mining"].items()}
        rows[f"Mining F1 %, noise {noise}", " ".join(values)] = _mean(values)
    for key, over in PARAPHRASES.items():
        part = results["paraphrases"][key]
        for name, title in (("auc", "Paraphrases, AUC %"), ("auc_of_spelling", "Paraphrases, AUC % of spelling")):
            rows[title, over] = _Average(value=part[name], of=f"{part['pairs']} pairs", measured=part["pairs"])
    return rows


def _mean(values: Mapping[str, float | None]) -> _Average:
    found = {lang: value for lang, value in values.items() if value is not None}
    mean = math.fsum(found.values()) / len(found) if found else None
    return _Average(value=mean, of=f"{len(found)} languages", measured=sorted(found))


def _summary(results: dict[str, Any], before: dict[str, Any] | None) -> list[str]:
    by_group = groups(results["languages"], results["trained"])
    now, earlier = _averages(results, by_group), _averages(before, by_group) if before else {}
    rows = []
    for (title, over), average in now.items():
        then = earlier.get((title, over), NOTHING)
        if average.value is not None or then.value is not None:
            cell = _Cell(now=average.value, before=then.value, alike=average.measured == then.measured)
            rows.append(([title, over, average.of], [cell]))
    table = _table(["measure", "over", "of"], ["figure"], rows, before is not None)
    reasons = {f"Paraphrases, {over}": results["paraphrases"][key].get("reason") for key, over in PARAPHRASES.items()}
    reasons["Pieces aligned"] = results["word_alignment"].get("reason")
    notes = [f"{what}: no figure, {reason}." for what, reason in reasons.items() if reason]
    return [*table, "", *notes] if notes else table


def _languages(results: dict[str, Any], before: dict[str, Any] | None) -> list[str]:
    shown = [name for name in FIGURES if any(name in figures for figures in results["languages"].values())]
    rows = []
    for lang, figures in results["languages"].items():
        then = before["languages"].get(lang, {}) if before else {}
        cells = [_Cell(now=figures.get(name), before=then.get(name)) for name in shown]
        rows.append(([lang, "yes" if figures["trained"] else "no"], cells))
    return _table(["language", "trained on"], [FIGURES[name] for name in shown], rows, before is not None)


def _mined(results: dict[str, Any], before: dict[str, Any] | None) -> list[str]:
    rows = []
    for lang, by_noise in results["mining"].items():
        for noise, figures in by_noise.items():
            then = before["mining"].get(lang, {}).get(noise, {}) if before else {}
            rows.append(([lang, noise], [_Cell(now=figures[name], before=then.get(name)) for name in MINED]))
    return _table(["language", "noise"], list(MINED.values()), rows, before is not None)


def _table(heads: list[str], figures: list[str], rows: list[tuple[list[str], list[_Cell]]], both: bool) -> list[str]:
    """The lines of a Markdown table; with `both` every figure has three columns: now, before, difference."""
    titles = [*heads, *(title for figure in figures for title in ([figure, "before", "difference"] if both else [figure]))]
    lines = [titles, ["---"] * len(heads) + ["---:"] * (len(titles) - len(heads))]
    for words, cells in rows:
        lines.append([*words, *(text for cell in cells for text in (cell.texts() if both else cell.texts()[:1]))])
    return [f"| {' | '.join(line)} |" for line in lines]
