"""The table of model_ablations.py: Markdown of the rows that it keeps, each beside what it is compared with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from model_dev import FEW, FEW_DEV, HELD_OUT, MAX_DEV, MIN_DEV, NATURAL, SAMPLED, UNSPACED

AD_HOC = "ad hoc †"  # "made_by" of the rows from before model_ablations.py

INTRODUCTION = f"""# Ablations of the bundled model

Made by `benchmarks/model_ablations.py`; its module says how each arm is run, and `--list` what each one changes. Every row is
one run with one seed. **Spread** shows what another seed of weights and draws alone changes: smaller differences prove nothing.
What has no row here was not measured.

**Held out.** {100 * HELD_OUT:g} % of the English segments, drawn once, the same for all arms: no pair of theirs, nor of an
equal English line, is trained on, in any language. **dev** (the figure by which arms are chosen): texts whose nearest English
sentence among those of all dev pairs is not their translation, % (lower is better), mean over languages. Dev pairs are those
of held-out segments and of {", ".join(NATURAL)}; at most {MAX_DEV} of a language, which needs {MIN_DEV}.
They come from the same sources as the training pairs.
**FLORES**: xsim error, % (lower is better), FLORES-200 devtest, ratio margin, k = 4, text to English, mean over the languages
trained on. **Tatoeba-36**: accuracy, % (higher is better), mean of both directions and of XTREME's 36 languages. Those two are
test sets: shown, not chosen by.

**The arms.** Unless its heading names a stage, an arm is the bag-of-subwords warm start from fresh weights, updates of 2,048
drawn pairs (1,024 in the rows of 60 updates), measured before any other stage. A row says how many updates it made, the pairs
they saw and the CPU seconds of the updates alone, batches included. No English segment stands twice in a batch: of equal ones
the first stays, because a duplicate makes KoLeo explode (tests/train/test_losses.py,
test_koleo_of_a_duplicate_is_large_but_finite_and_has_a_finite_gradient) and is a wrong negative. Rows in italics are repeated
for comparison. Arms of unlike numbers of updates are not comparable; each is shown beside the base of its own number.

**Shortened.** The rows of 2026-11-25 ran on one thread of two cores (AVX2) that other work kept busy: the warm start has
60 updates in place of 300 (its rate then rises over 20, not 100), the later stages 16 of 96 pairs in place of 60 of 512
or 256. The rows of 2026-11-27 have the warm start whole, and of later stages 60 updates of 128 pairs. So short a later stage
only does harm (see "no update"): its rows say which arm does less, not what the stage would give; the bundled model's ranking
stage has 1,000 updates of 512 pairs. A row of 32,000 pieces is of a sample of 280,311 pairs with dev pairs of its own: its dev
figure compares with no other.

‡ Measured on {", ".join(FEW)} alone and {FEW_DEV} dev pairs of each, so compare it with rows of this mark only.
Where the run says "first n lines", so many of each test file were measured, which makes FLORES and Tatoeba easier.
"""
ABOUT_AD_HOC = """
† Measured with scripts that this benchmark replaced: the product's sampler, bags, losses and rates, the same held-out segments
and dev pairs, in a loop of their own. Three differences: fresh weights of seed 0 (the draws' seed is the row's); held-out pairs
were dropped from a batch after it was drawn; the CPU seconds include the measuring, on a machine that was busy with other work,
so compare them with care. The teacher of these rows is use_quantized.onnx, an int8 copy of multilingual USE, its 512
dimensions projected on 256 principal axes.
"""
FIGURES = ("dev, %", "FLORES, %", "Tatoeba-36, %")
COLUMNS = ("arm", "why", "updates", "pairs seen", "CPU s", "threads", *FIGURES, "seed", "run")
SETTLED = "no update"  # the arm with which later stages are compared


def table(rows: list[dict[str, Any]], not_run: list[str], described: Iterable[dict[str, Any]] = ()) -> str:
    """Markdown of the rows that model_ablations.py keeps: by question, below the rows that they compare with.

    Each has "question" ("" for the base) and "why" beside its figures; of a run made twice the last row counts. not_run names
    arms without a row, described tokenizers with no arm of their own.
    """
    same_run = ("few", "seed", "arm", "start", "updates", "threads")
    latest = {(_protocol(row), *(row.get(name) for name in same_run)): row for row in rows}
    rows = list(latest.values())
    lines = [INTRODUCTION]
    if any(row["made_by"] == AD_HOC for row in rows):
        lines.append(ABOUT_AD_HOC.lstrip())
    lines += _spread(rows)
    for question in dict.fromkeys(row["question"] for row in rows):
        own = [row for row in rows if row["question"] == question]
        lines += [f"## {question or 'The base'}", "", *_row(COLUMNS), *_row(["---"] * len(COLUMNS))]
        for protocol in dict.fromkeys(_protocol(row) for row in own):
            same = [row for row in own if _protocol(row) == protocol]
            beside = [row for row in rows if row not in same and any(_is_reference(row, arm) for arm in same)]
            lines += [line for row in beside for line in _figures(row, True)]
            lines += [line for row in same for line in _figures(row, False)]
        lines.append("")
    lines += _tokenizers([*rows, *described])
    if not_run:
        lines += ["## Arms without a row", "", "Defined in `model_ablations.py`, not run yet: " + "; ".join(not_run) + "."]
    return "\n".join(lines).rstrip("\n") + "\n"


def _protocol(row: dict[str, Any]) -> tuple[Any, ...]:
    """What rows must have alike to be compared; the seed is left to the spread."""
    return (row["made_by"] == AD_HOC, row["steps"], row.get("lines"), row["corpus_pairs"], row["tokenizer"]["vocab_size"])


def _is_reference(row: dict[str, Any], of: dict[str, Any]) -> bool:
    """Whether a row is what another is compared with: its warm start (or the base), settled or not, or its plain arm."""
    if _protocol(row) != _protocol(of) or row["seed"] != of["seed"] or row.get("few", False) != of.get("few", False):
        return False
    if of["stage"] in ("ranking", "mexma") and row["arm"] == SETTLED:
        return True
    return row["arm"] == (of["start"] or "base") or (of["stage"] != "warmup" and row["arm"] == of["stage"])


def _spread(rows: list[dict[str, Any]]) -> list[str]:
    """Of arms run with several seeds: mean, lowest and highest of each figure."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["arm"], _protocol(row), row["start"], row["updates"]), []).append(row)
    found = [same for same in groups.values() if len(same) > 1]
    if not found:
        return []
    lines = ["## Spread", "", *_row(["arm", "updates", "pieces", "seeds", *FIGURES]), *_row(["---"] * (4 + len(FIGURES)))]
    for same in found:
        figures = [[row[name] for row in same] for name in ("dev", "flores", "tatoeba")]
        cells = [f"{np.mean(of):.2f} ({min(of):.2f} to {max(of):.2f})" for of in figures]
        pieces = f"{same[0]['tokenizer']['vocab_size']:,}"
        lines += _row([same[0]["arm"], f"{same[0]['updates']:,}", pieces, str(len(same)), *cells])
    return [*lines, ""]


def _figures(row: dict[str, Any], reference: bool) -> list[str]:
    figures = (f"{row[name]:.2f}" for name in ("dev", "flores", "tatoeba"))
    name = (f"*{row['arm']}*" if reference else row["arm"]) + (" ‡" if row.get("few") else "")
    spent = (f"{row['updates']:,}", f"{row['pairs_seen']:,}", f"{row['cpu_seconds']:,.0f}", str(row["threads"]))
    run = f"{row['date']}, {row['made_by']}" + (f", first {row['lines']} lines" if row.get("lines") else "")
    return _row([name, row["why"], *spent, *figures, str(row["seed"]), run])


def _tokenizers(rows: list[dict[str, Any]]) -> list[str]:
    """The tokenizers of the rows side by side; what they did to the figures is in the rows of the base."""
    kinds = {(row["corpus_pairs"], row["tokenizer"]["vocab_size"]): row["tokenizer"] for row in rows}
    facts = [kinds[key] for key in sorted(kinds)]
    heads = [f"{pairs:,} pairs, {vocab_size:,} pieces" for pairs, vocab_size in sorted(kinds)]
    lines = ["## Tokenizers", "", f"Pieces per word (per character: {', '.join(UNSPACED)}), of {SAMPLED} training texts a"]
    lines[-1] += " language; a language counts with the script of most of its letters."
    lines += ["", *_row(["", *heads]), *_row(["---"] * (len(heads) + 1))]
    for name, key in (("unknown, % of the texts' tokens", "unknown"), ("unknown, % of the English tokens", "english_unknown")):
        lines += _row([name, *(f"{fact[key]:.4f}" for fact in facts)])
    for script in sorted({script for fact in facts for script in fact["scripts"]}):
        found = [fact["scripts"].get(script) for fact in facts]
        lines += _row([script, *("" if value is None else f"{value:.2f}" for value in found)])
    return [*lines, ""]


def _row(cells: Iterable[str]) -> list[str]:
    return ["| " + " | ".join(cells) + " |"]
