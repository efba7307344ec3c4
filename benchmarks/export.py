"""What an export costs and how well its graphs agree: the bundled model's checkpoint, and random XLM-R-base and -large.

    python benchmarks/export.py WORK --tokenizer tokenizer.json.xz --report REPORT.md [--cases mini,base,large]

The bundled model's checkpoint is rebuilt from its mixed graph (mexma_export.rebuild). The random ones have XLM-R's sizes, seed
0, and the real XLM-R tokenizer (plain or .xz); their vectors mean nothing, so their parity is that of the arithmetic alone, on
every 8th of the shipped sentences. Every export is a `mexma-export` process of its own, whose time and peak memory are given.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

EVERY = 8  # of the 562 sentences, for the random models
PRECISIONS = {"mini": "fp32,fused,int8,mixed,fp16", "base": "fp32,fused,int8,mixed,fp16", "large": "fp32,int8,mixed,fp16"}


def make_checkpoint(case: str, folder: Path, tokenizer: Path | None) -> None:
    if folder.exists():
        return
    if case == "mini":
        subprocess.run([sys.executable, "-m", "mexma_export.rebuild", "mexma-small", str(folder)], check=True)
        return
    if tokenizer is None:
        sys.exit("--tokenizer: base and large need XLM-R's tokenizer.json")
    script = Path(__file__).with_name("random_checkpoint.py")
    subprocess.run([sys.executable, str(script), str(folder), "--tokenizer", str(tokenizer), "--size", case], check=True)


def some_sentences(path: Path) -> Path:
    from mexma_export import load_sentences

    lines = [f"{sentence.lang}\t{sentence.text}\n" for sentence in load_sentences()[::EVERY]]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def export(case: str, precision: str, checkpoint: Path, target: Path, verify: Path | None) -> dict[str, object]:
    """One process; wait4 gives its peak memory (the child's children are short and smaller)."""
    main = "from mexma_export.cli import main; main()"
    command = [sys.executable, "-c", main, str(checkpoint), str(target), "--precision", precision, "--no-weights", "--json"]
    command += ["--verify", str(verify)] if verify else []
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    row = {"case": case, "precision": precision, "seconds": round(time.perf_counter() - started, 1)}
    row |= {"cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1), "peak_gb": round(usage.ru_maxrss / 1e6, 2)}
    report = json.loads(said.splitlines()[-1])
    if process.returncode:
        failures = report["message"].partition("no bundle was written: ")[2].partition(". Worst")[0]
        return row | {"refused": failures or report["message"]}
    graphs = {name: size for name, size in report["bytes"].items() if name.startswith("onnx/")}
    full = json.loads((target / "parity.json").read_text(encoding="utf-8"))[precision]
    kept = ("sentences", "min_cosine", "mean_cosine", "min_centred_cosine", "max_abs_error", "min_token_cosine")
    return row | {"mb": round(sum(graphs.values()) / 1e6, 1), "files": len(graphs)} | {key: full[key] for key in kept}


def table(rows: list[dict[str, object]]) -> str:
    head = "| checkpoint | precision | s | CPU s | peak GB | MB | files | sentences | lowest cosine | mean | centred | token |"
    lines = [head, "|---" * 12 + "|"]
    for row in rows:
        first = f"| {row['case']} | {row['precision']} | {row['seconds']} | {row['cpu_seconds']} | {row['peak_gb']} |"
        if "refused" in row:
            lines.append(f"{first} refused by the gate: {row['refused']} |||||||")
            continue
        cosines = [f"{row[key]:.6f}" for key in ("min_cosine", "mean_cosine", "min_centred_cosine", "min_token_cosine")]
        lines.append(f"{first} {row['mb']} | {row['files']} | {row['sentences']} | {' | '.join(cosines)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for checkpoints and bundles (large: 2.3 GB and up to 2.3 GB a bundle)")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--cases", default="mini,base,large")
    parser.add_argument("--precisions", help="instead of all of a case")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    few, log = some_sentences(arguments.work / "sentences.tsv"), arguments.work / "export.jsonl"
    for case in arguments.cases.split(","):
        checkpoint = arguments.work / case
        make_checkpoint(case, checkpoint, arguments.tokenizer)
        for precision in (arguments.precisions or PRECISIONS[case]).split(","):
            target = arguments.work / f"{case}-{precision}"
            shutil.rmtree(target, ignore_errors=True)
            row = export(case, precision, checkpoint, target, None if case == "mini" else few)
            shutil.rmtree(target, ignore_errors=True)
            print(json.dumps(row), flush=True)
            with log.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "onnx", "onnxruntime"))
    cases = " ".join(dict.fromkeys(str(row["case"]) for row in rows))
    when = f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, {libraries}"
    text = f"Made by `benchmarks/export.py` ({cases}), {when}.\n\n{table(rows)}\n"
    print(text)
    if arguments.report:
        arguments.report.write_text(f"# What an export costs, and how well its graphs agree\n\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
