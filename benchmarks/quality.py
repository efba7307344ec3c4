"""Quality of a bundle on the two public test sets, as a Markdown table.

    python benchmarks/quality.py --flores DIR --tatoeba DIR [--model BUNDLE] [--trained LANGS] -o benchmarks/results/quality.md

--flores: one file per language, line i of all files the same sentence (FLORES-200 devtest), English in eng.txt; the figure is
xsim (ratio margin, k = 4) from each language to English: error in percent, lower is better.
--tatoeba: one file per language of `english<TAB>text` (LASER's Tatoeba v1); the figure is the accuracy of the nearest
neighbour by cosine, both directions, higher is better.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import subprocess
import warnings
from pathlib import Path

import numpy as np

import mexma_rt as mexma
from mexma_rt.evaluation import retrieval_accuracy

# The 36 languages of XTREME's Tatoeba task (arXiv 2003.11080) as ISO 639-3 codes.
XTREME = set(
    "ara heb vie ind jav tgl eus mal tam tel afr nld deu ell ben hin mar urd pes fra ita por spa bul rus jpn kat kor tha "  # noqa: SIM905
    "swh cmn kaz tur est fin hun".split()
)
SAME = {"srp_Cyrl": "srp", "als": "sqi"}  # FLORES spelling -> that of the corpus


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").rstrip("\n").split("\n")


def flores_errors(encoder: mexma.Encoder, folder: Path) -> dict[str, float]:
    """xsim error in percent of every language against English."""
    english = encoder.embed(lines(folder / "eng.txt"))
    files = sorted(path for path in folder.glob("*.txt") if path.stem != "eng")
    return {SAME.get(p.stem, p.stem): mexma.xsim(encoder.embed(lines(p)), english).error_rate for p in files}


def tatoeba_accuracy(encoder: mexma.Encoder, folder: Path) -> dict[str, tuple[float, float]]:
    """(to English, from English) accuracy in percent of every language."""
    out = {}
    for path in sorted(folder.glob("*.tsv")):
        english, text = zip(*(line.split("\t") for line in lines(path)), strict=True)
        out[path.stem] = retrieval_accuracy(encoder.embed(text), encoder.embed(english))
    return out


def mean(values: dict[str, float], names: set[str]) -> str:
    kept = [value for name, value in values.items() if name in names]
    return f"{np.mean(kept):.2f} (n={len(kept)})" if kept else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mexma-mini")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--flores", type=Path, required=True)
    parser.add_argument("--tatoeba", type=Path, required=True)
    parser.add_argument("--trained", default="", help="languages the model was trained on, separated by spaces")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()

    warnings.simplefilter("ignore", mexma.TruncationWarning)  # FLORES has sentences beyond 128 tokens; the default is tested
    encoder = mexma.load(args.model, precision=args.precision)
    errors = flores_errors(encoder, args.flores)
    both = tatoeba_accuracy(encoder, args.tatoeba)
    accuracy = {lang: sum(pair) / 2 for lang, pair in both.items()}
    every = set(errors) | set(accuracy)
    trained = set(args.trained.split()) or every
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()

    rows = [
        f"# Quality of `{encoder.bundle.name}` ({encoder.backend.precision}, {encoder.dimensions} dimensions)",
        "",
        f"{datetime.date.today()}, commit {commit}, {platform.machine()}; made by `python benchmarks/quality.py`.",
        "Tatoeba sentences (other ones than these) are part of the training data: an in-domain test. FLORES is not.",
        "",
        "| average over | FLORES xsim error % | Tatoeba accuracy % |",
        "|---|---|---|",
        f"| languages trained on | {mean(errors, trained)} | {mean(accuracy, trained)} |",
        f"| XTREME's 36 | {mean(errors, XTREME)} | {mean(accuracy, XTREME)} |",
        f"| all of the test set | {mean(errors, every)} | {mean(accuracy, every)} |",
        "",
        "| language | trained on | FLORES xsim error % | Tatoeba -> eng % | eng -> Tatoeba % |",
        "|---|---|---|---|---|",
    ]
    for lang in sorted(every):
        xsim = f"{errors[lang]:.2f}" if lang in errors else "-"
        to, back = (f"{value:.1f}" for value in both[lang]) if lang in both else ("-", "-")
        rows.append(f"| {lang} | {'yes' if lang in trained else 'no'} | {xsim} | {to} | {back} |")
    args.output.write_text("\n".join(rows) + "\n", encoding="utf-8")
    print("\n".join(rows[5:10]))


if __name__ == "__main__":
    main()
