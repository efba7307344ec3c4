"""An encoder of yours through this runtime beside sentence-transformers on the same weights: FLORES and Tatoeba figures.

    python benchmarks/own_encoder.py FOLDER BUNDLE --flores DIR --tatoeba DIR --work WORK [--prompt query] [--report FILE]

FOLDER: the sentence-transformers folder that BUNDLE was exported from, with the precisions of --precisions. --flores: the
devtest of FLORES-200, a file LANG.txt a language, whose xsim error (margin ratio, k=4) to eng.txt is taken. --tatoeba: LASER's
test set, LANG.tsv of english<TAB>text, whose accuracy is the mean of both directions. Without --languages and --sets every file
is measured. All lines are taken. WORK keeps the vectors of each text file and way; what is there is not computed again, so an
interrupted run goes on, and --done makes the page of what every way has finished. One thread, so that a CPU may be shared:
these are figures of quality, not of speed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import mexma_rt as mexma
from mexma_rt.evaluation.measures import retrieval_accuracy

Embed = Callable[[list[str]], np.ndarray]
PEER, ENGLISH = "sentence-transformers", "eng"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--flores", type=Path, required=True)
    parser.add_argument("--tatoeba", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--precisions", default="fp32,mixed,w8,w4")
    parser.add_argument("--prompt", help="name of the prompt that every text gets")
    parser.add_argument("--languages", help="of FLORES, such as isl,jpn  [default: all]")
    parser.add_argument("--sets", help="of Tatoeba, such as heb,jpn  [default: all]")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--done", action="store_true", help="compute nothing: the page of what is there")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    languages, sets = (
        names.split(",") if names else sorted(path.stem for path in folder.glob(ending) if path.stem != ENGLISH)
        for names, folder, ending in (
            (options.languages, options.flores, "*.txt"),
            (options.sets, options.tatoeba, "*.tsv"),
        )
    )
    texts: dict[str, list[str]] = {}
    for name in sets:
        pairs = [line.split("\t") for line in lines(options.tatoeba / f"{name}.tsv")]
        texts |= {f"tatoeba-{name}-{side}": [pair[side] for pair in pairs] for side in (0, 1)}
    texts |= {f"flores-{name}": lines(options.flores / f"{name}.txt") for name in (ENGLISH, *languages)}
    ways = [PEER, *options.precisions.split(",")]
    if not options.done:
        encoders: dict[str, Embed] = {}
        for name, sentences in texts.items():  # file by file, so that what an interrupted run leaves can be compared
            for way in ways:
                path = options.work / f"{name}-{way}.npy"
                if not path.exists():
                    encoders[way] = encoders.get(way) or open_way(way, options)
                    np.save(path, encoders[way](sentences))
                    print(path.name, f"{time.process_time():.0f} CPU s so far", flush=True)
    text = page(measured(options.work, ways, languages, sets), ways, options)
    print(text)
    if options.report:
        options.report.write_text(text, encoding="utf-8")


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").rstrip("\n").split("\n")


def open_way(way: str, options: argparse.Namespace) -> Embed:
    if way != PEER:
        encoder = mexma.load(options.bundle, device="cpu", precision=way, threads=1)
        return lambda sentences: encoder.embed(sentences, prompt=options.prompt, progress=False)
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    model = SentenceTransformer(str(options.folder), device="cpu")
    return lambda sentences: model.encode(sentences, prompt_name=options.prompt, normalize_embeddings=True)


def measured(work: Path, ways: list[str], languages: list[str], sets: list[str]) -> dict[str, list[float]]:
    """For each set that every way has finished: its figure in each way, in %."""
    found: dict[str, list[float]] = {}
    for kind, names in (("flores", languages), ("tatoeba", sets)):
        for name in names:
            sides = (f"flores-{name}", f"flores-{ENGLISH}") if kind == "flores" else (f"tatoeba-{name}-1", f"tatoeba-{name}-0")
            paths = [[work / f"{side}-{way}.npy" for side in sides] for way in ways]
            if not all(path.exists() for pair in paths for path in pair):
                continue
            vectors = [[np.load(path) for path in pair] for pair in paths]
            if kind == "flores":
                found[f"FLORES {name}, xsim error"] = [mexma.xsim(x, y).error_rate for x, y in vectors]
            else:
                found[f"Tatoeba {name}, accuracy"] = [float(np.mean(retrieval_accuracy(x, y))) for x, y in vectors]
    return found


def page(found: dict[str, list[float]], ways: list[str], options: argparse.Namespace) -> str:
    head = f"| % | {' | '.join(ways)} |"
    rows = [head, "|---" * (1 + len(ways)) + "|"]
    for kind in ("FLORES", "Tatoeba"):
        own = {name: values for name, values in found.items() if name.startswith(kind)}
        rows += [f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} |" for name, values in own.items()]
        if own:
            mean = np.mean(list(own.values()), axis=0)
            rows.append(f"| **{kind}, mean of {len(own)}** | {' | '.join(f'**{value:.3f}**' for value in mean)} |")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in (PEER, "torch", "onnxruntime")]
    when = f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {', '.join(versions)}"
    prompt = f", prompt {options.prompt}" if options.prompt else ""
    what = f"({options.folder.name}{prompt}, all lines of each file)"
    return f"Made by `benchmarks/own_encoder.py` {what}, {when}.\n\n" + "\n".join([*rows, ""])


if __name__ == "__main__":
    main()
