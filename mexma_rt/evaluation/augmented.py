"""The altered English lines of xsim++ (Chen et al., ACL 2023, arXiv 2306.12907), in the files that LASER publishes.

The lines: text, one altered sentence per line (eng_Latn_augmented.devtest). The error types: one JSON object, from each
altered sentence to {"src": the sentence it was made from, "errtype": how it was altered} (eng_Latn_errtype.devtest.json).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mexma_rt.errors import InputError
from mexma_rt.files.atomic import read_lines
from mexma_rt.files.lines import damage_explained

MISALIGNED = "Misaligned"


@dataclass(frozen=True, kw_only=True)
class Augmented:
    """Where an altered line comes from, and how it was altered, such as "Causality Alternation"."""

    source: str
    kind: str


def read_augmented(
    lines: str | os.PathLike[str], error_types: str | os.PathLike[str], originals: Sequence[str]
) -> tuple[list[str], dict[str, Augmented]]:
    """Return the altered lines, in the order of their file, and their origins; for `xsim`, y and text are originals + lines.

    Raises FileError or InputError for files that cannot be read or do not match: JSON of another form, or if none of the lines
    is in the JSON or was made from one of `originals` (another split of FLORES).
    """
    altered = read_lines(lines)
    if not altered:
        raise InputError(f"{lines} is empty, but the altered lines of xsim++ are needed.")
    types = _read_types(error_types)
    known = [types[line] for line in altered if line in types]
    if not known:
        raise InputError(f"None of the {len(altered):,} lines of {lines} is in {error_types}: they are of different sets.")
    if not {origin.source for origin in known} & set(originals):
        raise InputError(
            f"None of the lines of {lines} was made from a line of the target file. The altered lines that LASER publishes "
            "belong to FLORES-200 devtest in English: pass that as the target."
        )
    return altered, types


def _read_types(path: str | os.PathLike[str]) -> dict[str, Augmented]:
    form = 'an object is needed: {"altered sentence": {"src": "its origin", "errtype": "how it was altered"}, ...}'
    with damage_explained(path):
        content = Path(path).read_bytes()
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}), but {form}") from None
    if not isinstance(entries, dict):
        raise InputError(f"{path} is a JSON {type(entries).__name__}, but {form}")
    types = {}
    for line, entry in entries.items():
        source, kind = (entry.get("src"), entry.get("errtype")) if isinstance(entry, dict) else (None, None)
        if not isinstance(source, str) or not isinstance(kind, str):
            raise InputError(f"{path}: the entry of {line!r:.80} is {entry!r:.80}, but {form}")
        types[line] = Augmented(source=source, kind=kind)
    return types
