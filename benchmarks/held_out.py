"""Make train/mexma_train/held_out.bin.xz again: the hashes of the test sentences that `mexma-train prepare` drops.

    python benchmarks/held_out.py --flores DIR --tatoeba DIR [-o FILE]

--flores: the devtest of FLORES-200, a file LANG.txt for each language, one sentence a line. --tatoeba: the Tatoeba test set of
LASER, a file LANG.tsv for each language, lines english<TAB>text; both sides are listed. The same folders give the same bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from mexma_rt.errors import InputError
from mexma_rt.files.atomic import atomic_write
from mexma_rt.files.lines import byte_lines
from mexma_train.data.held_out import LIST, encode_list, load_held_out


def sentences(folder: Path, suffix: str, columns: int) -> Iterator[str]:
    """Every tab-separated column of the files with this suffix, file by file in the order of their names."""
    paths = sorted(folder.glob(f"*{suffix}"))
    if not paths:
        raise SystemExit(f"{folder} holds no {suffix} file")
    for path in paths:
        for number, line in enumerate(byte_lines(str(path)), start=1):
            parts = line.decode().split("\t")
            if len(parts) != columns:
                raise InputError(f"{path}, line {number}: {len(parts)} columns, not {columns}")
            yield from parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flores", type=Path, required=True)
    parser.add_argument("--tatoeba", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, default=LIST)
    args = parser.parse_args()
    sets = {
        "FLORES-200 devtest": list(sentences(args.flores, ".txt", 1)),
        "Tatoeba test set of LASER": list(sentences(args.tatoeba, ".tsv", 2)),
    }
    with atomic_write(args.output) as stream:
        stream.write(encode_list(sets))
    listed = load_held_out(args.output)
    print(
        f"{args.output}: {len(listed.hashes):,} hashes, {args.output.stat().st_size:,} bytes; lines read: {dict(listed.sets)}"
    )


if __name__ == "__main__":
    main()
