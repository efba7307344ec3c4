"""Make the CPU files of results again, one benchmark after another.

    python benchmarks/all.py --quick [--flores DIR --tatoeba DIR] [--only embed,service] [--out OUT]
    python benchmarks/all.py --list
    python benchmarks/all.py --smoke --model tests/tiny_bundle [...]

--quick is meant for less than an hour on two cores: fewer rows, rounds and languages, so its figures are for a look, and do not
belong in benchmarks/results/. --smoke is a test of the scripts, in minutes: its figures mean nothing. Without either every
benchmark has the size of the published file. Those that need test sets are left out, and said so, unless --flores (LANG.txt)
and --tatoeba (LANG.tsv) name them. OUT, a new folder, gets the files of results and all.json: which command ran when, for how
long, on which machine, with which versions and commit. Benchmarks of training, of GPUs and of corpora that are not shipped are
not here: their scripts say how they are called.
"""

from __future__ import annotations

import argparse
import datetime
import inspect
import json
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mexma_rt

ROOT = Path(__file__).parents[1]
MODEL = inspect.signature(mexma_rt.load).parameters["model"].default
PACKAGES = ("numpy", "onnxruntime", "tokenizers", "torch", "sentence-transformers", "faiss-cpu")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One file of results: the commands that make it, after `python`, in full size, and the words that --quick and --smoke add.

    --smoke runs the last command alone, with the model in place of a bundle that the others make.
    """

    commands: tuple[str, ...]
    quick: str = ""  # added to the last command
    smoke: str = ""
    needs: tuple[str, ...] = ()  # names of test sets


JOBS = {
    "quality": Job(
        commands=("-m mexma_train eval --suite {model} --flores {flores} --tatoeba {tatoeba} --out {out}/quality",),
        smoke="--trained all",
        needs=("flores", "tatoeba"),
    ),
    "mining_f1": Job(
        commands=("benchmarks/mining_f1.py {flores} {tatoeba} --model {model} -o {out}/mining_f1.md",),
        quick="--languages deu,tur,jpn --pairs 300",
        smoke="--languages deu --pairs 40",
        needs=("flores", "tatoeba"),
    ),
    "align_documents": Job(
        commands=("benchmarks/align_documents.py {flores} --model {model} -o {out}/align_documents.md",),
        quick="--languages deu --sentences 100 --sizes 1000",
        smoke="--languages deu --sentences 30 --sizes 100",
        needs=("flores",),
    ),
    "embed": Job(
        commands=(
            "-m mexma_export.rebuild {model} {out}/checkpoint",
            "-m mexma_export {out}/checkpoint {out}/bundle --precision fp32,fused,mixed --force",
            "benchmarks/embed.py {bundle} examples/french.txt examples/english.txt --peers st-fp32,st-128 "
            "--keep {out}/embed.jsonl -o {out}/embed.md",
        ),
        quick="--rounds 2 --singles 20",
        smoke="--rounds 1 --singles 2",
    ),
    "service": Job(
        commands=("benchmarks/service.py examples/french.txt -o {out}/service.md",),
        quick="--rounds 3 --texts 50",
        smoke="--rounds 1 --texts 4",
    ),
    "mining_speed": Job(
        commands=("benchmarks/mining_speed.py --out {out}/mining_speed.md",),
        quick="--rows 20000 --dimensions 384 --k 4 --rounds 2",
        smoke="--rows 2000 --dimensions 64 --k 4 --rounds 1",
    ),
    "mining_disk": Job(
        commands=("benchmarks/mining_disk.py --memory 2GB --out {out}/mining_disk.md",),
        quick="--rows 200000 --seconds 60",
        smoke="--rows 5000 --seconds 5",
    ),
    "plan": Job(
        commands=("benchmarks/plan.py -o {out}/plan.md",),
        quick="--rows 20000 30000 40000 --queries 2000",
        smoke="--rows 10000 11000 12000 --queries 100 --dimensions 64",
    ),
}


def commands_of(job: Job, *, quick: bool = False, smoke: bool = False, **places: str) -> list[list[str]]:
    """The command lines of a job, as words after `python`."""
    bundle = places["model"] if smoke else f"{places['out']}/bundle"
    lines = [line.format(bundle=bundle, **places) for line in (job.commands[-1:] if smoke else job.commands)]
    lines[-1] += f" {job.smoke}" if smoke else f" {job.quick}" if quick else ""
    return [line.split() for line in lines]


def facts() -> dict[str, object]:
    """The machine and what is installed."""
    versions = {"python": platform.python_version(), "mexma-rt": mexma_rt.__version__}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "missing"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {"machine": platform.machine(), "system": platform.platform(), "versions": versions, "commit": commit.stdout.strip()}


def run(job: Job, *, quick: bool, smoke: bool, **places: str) -> list[dict[str, object]]:
    """Run a job's commands until one fails; returns what ran."""
    done: list[dict[str, object]] = []
    for words in commands_of(job, quick=quick, smoke=smoke, **places):
        started, date = time.perf_counter(), datetime.datetime.now(datetime.timezone.utc)
        print(f"$ python {' '.join(words)}", flush=True)
        status = subprocess.run([sys.executable, *words], cwd=ROOT, check=False).returncode
        command = f"python {' '.join(words)}"
        done.append({"command": command, "date": f"{date:%Y-%m-%d %H:%M}", "seconds": round(time.perf_counter() - started)})
        done[-1]["status"] = status
        if status:
            break
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_true")
    sizes.add_argument("--smoke", action="store_true")
    parser.add_argument("--flores", type=Path)
    parser.add_argument("--tatoeba", type=Path)
    parser.add_argument("--only", default=",".join(JOBS), help="comma-separated")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--out", type=Path, default=ROOT / f"runs/benchmarks-{datetime.datetime.now():%Y%m%d-%H%M%S}")
    parser.add_argument("--list", action="store_true", help="show the commands, run nothing")
    options = parser.parse_args()
    if unknown := [name for name in options.only.split(",") if name not in JOBS]:
        parser.error(f"{unknown[0]!r} is no benchmark: {', '.join(JOBS)}")
    given = {name: str(path.resolve()) for name in ("flores", "tatoeba") if (path := getattr(options, name))}
    size = {"quick": options.quick, "smoke": options.smoke}
    places = {"model": options.model, "out": str(options.out.resolve()), **given}
    report: dict[str, object] = {**facts(), **size, "jobs": {}, "left_out": []}
    failed = False
    if not options.list:
        options.out.mkdir(parents=True)
    for name in options.only.split(","):
        if lacking := [need for need in JOBS[name].needs if need not in given]:
            print(f"{name}: left out, give --{' and --'.join(lacking)}", flush=True)
            report["left_out"] += [name]  # type: ignore[operator]
        elif options.list:
            for words in commands_of(JOBS[name], **size, **places):
                print(f"python {' '.join(words)}")
        else:
            done = run(JOBS[name], **size, **places)
            report["jobs"][name] = done  # type: ignore[index]
            (options.out / "all.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            failed |= any(each["status"] for each in done)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
