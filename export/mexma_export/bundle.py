"""Exports a checkpoint to a bundle folder: graphs, tokenizer, sentence-transformers files, parity report, manifest.

The steps, in order: compare the loaded checkpoint with its owner's code; write the graphs and compare them with the checkpoint
(the export ends here if a gate fails); write the other files; open the graphs in a fresh process; hash everything; write the
manifest; sync and rename. The folder has its final name only after that.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from mexma_export.folder import new_folder
from mexma_export.golden import describe_source, golden_vectors, vector_ranges
from mexma_export.graph_format import GRAPHS, OPSET, OPSETS
from mexma_export.head import PLAIN
from mexma_export.peers import dense_weights, peer_files
from mexma_export.precisions import gate_graphs, torch_runner, write_graphs
from mexma_export.sentences import Sentence, load_sentences
from mexma_export.verdict import THRESHOLDS, Parity, Thresholds, require_passed
from mexma_rt.bundle.manifest import MANIFEST, PARITY, TOKENIZER, WEIGHTS, FileEntry, Manifest, manifest_text
from mexma_rt.bundle.safetensors_folder import write_safetensors
from mexma_rt.errors import InputError, require_extra
from mexma_rt.files.atomic import sha256_of

if TYPE_CHECKING:
    from mexma_export.checkpoint import Checkpoint
    from mexma_export.trim import Vocabulary

AUTO = ("fp32", "int8")
DEFAULT_MAX_LENGTH = 128  # tokens; MEXMA is trained on sentences, which rarely have more


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written, how well it agrees with the checkpoint, and why this precision is the default."""

    path: Path
    name: str
    default_precision: str
    reason: str
    parity: dict[str, Parity]
    bytes: dict[str, int]  # relative path -> size
    seconds: float
    vocabulary: Vocabulary | None = None  # None: not trimmed


def export_bundle(
    checkpoint: str | Path,
    target: str | Path,
    *,
    precisions: Sequence[str] | None = None,
    max_length: int | None = None,
    name: str | None = None,
    weights: bool = True,
    default_precision: str | None = None,
    sentences: Sequence[Sentence] | None = None,
    thresholds: Mapping[str, Thresholds] = THRESHOLDS,
    trim_vocab: Sequence[str | Path] = (),
    pieces: int | None = None,
    languages: Sequence[str] = (),
    opset: int = OPSET,
    force: bool = False,
    revision: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> ExportReport:
    """Export a checkpoint folder or hub name (at `revision`) to the bundle folder `target`; returns a report.

    precisions: the graphs to write, out of "fp32", "fused", "int8", "mixed", "w8", "w4" and "fp16"; if one fails its gate, the
    export fails. None writes fp32 and int8, or mixed instead of int8 if that fails, as the report and parity.json then say.
    max_length: the bundle's default, in tokens including `<s>` and `</s>`. None: that of a sentence-transformers folder, else
    128, but at most the position table's limit.
    name: of the bundle. None: that of the checkpoint.
    weights: False leaves out model.safetensors; sentence-transformers then cannot load the bundle.
    default_precision: what the runtime loads on CPU. None: the first of int8, w8, w4, mixed, fused, fp32 that was exported.
    sentences: replace the gate's 562 shipped ones. thresholds: what the gate demands of each precision.
    trim_vocab: text files (plain, .gz, .xz); the vocabulary keeps only the pieces that they and the `languages` use (ISO 639-3;
    see mexma_export.usage). The gate still compares with the untrimmed model (see mexma_export.trim).
    pieces: keep this many pieces, the most useful ones by those files and the tokenizer's own scores.
    opset: of the standard graphs fp32 and fp16, 18 to 23.
    force: replace an existing bundle.
    progress: is called with (stage, done, total).

    Raises ParityError (the gate failed), InputError (an argument), FileError and BundleError (the checkpoint), and
    MissingExtraError (torch or onnx not installed). After an error, `target` is as it was before.
    """
    started, target = time.perf_counter(), Path(target)
    chosen: Sequence[str] = AUTO if precisions is None else precisions
    _check_precisions(chosen, default_precision, named=precisions is not None)
    _check_opset(opset, chosen)
    require_extra("export", "torch", "transformers", "safetensors", "onnx", "onnxscript")
    from mexma_export.checkpoint import load_checkpoint
    from mexma_export.owner import compare_with_owner
    from mexma_export.reopen import check_in_fresh_process
    from mexma_export.trim import write_weights

    tell = progress or (lambda stage, done, total: None)
    with new_folder(target, force=force) as folder:
        tell("load checkpoint", 0, 1)
        source = load_checkpoint(checkpoint, revision=revision)
        length = _length(max_length, source.max_length_limit, source.pipeline.max_length)
        name = name or source.name.rsplit("/", 1)[-1]
        shipped = sentences is None
        sentences = load_sentences() if sentences is None else list(sentences)
        tell("owner's code", 0, 1)
        reference = compare_with_owner(source, sentences, length)
        vocabulary = None
        if trim_vocab or languages or pieces is not None:
            tell("trim vocabulary", 0, 1)
            source, vocabulary = _trim(source, trim_vocab, languages, pieces, sentences)
        gate: dict[str, Any] = {"sentences": sentences, "thresholds": thresholds}
        forms = write_graphs(source, folder, chosen, tell, opset=opset, **gate)
        vectors = np.empty((len(sentences), source.dimensions), np.float32)
        results = gate_graphs(source, folder, chosen, sentences, length, thresholds, vectors, tell)
        refused: dict[str, Parity] = {}
        if precisions is None and not results["int8"].passed:
            refused["int8"] = results.pop("int8")
            (folder / GRAPHS["int8"]).unlink()
            chosen = ("fp32", "mixed")
            write_graphs(source, folder, ["mixed"], tell, **gate)
            results |= gate_graphs(source, folder, ["mixed"], sentences, length, thresholds, vectors, tell)
        require_passed(results)
        default, reason = _default_precision(chosen, default_precision, refused)

        tell("write files", 0, 1)
        if weights:
            write_weights(source, folder / WEIGHTS)
        if (source.folder / "README.md").is_file():
            shutil.copyfile(source.folder / "README.md", folder / "README.md")
        # tokenizer.save would raise a plain Exception on a full disk
        (folder / TOKENIZER).write_bytes(source.tokenizer.to_str(pretty=False).encode())
        peers = peer_files(source, max_length=length, length_limit=source.max_length_limit)
        for path, content in peers.items():
            _write_json(folder / path, content)
        for path, tensors in dense_weights(source.pipeline).items():
            write_safetensors(folder / path, tensors)
        report = {"max_length": length, "reference": reference.to_json()} | {p: r.full() for p, r in results.items()}
        if forms:
            report["products"] = forms
        if refused:
            report["refused"] = {p: r.full() for p, r in refused.items()}
        _write_json(folder / PARITY, report)

        plain = source.pipeline.head == PLAIN
        tell("fresh process", 0, 1)
        check_in_fresh_process(folder)
        tell("hash files", 0, 1)
        files = _hash_files(folder)
        manifest = Manifest(
            name=name,
            dimensions=source.dimensions,
            max_length=length,
            max_length_limit=source.max_length_limit,
            pooling=source.pipeline.head.pooling,
            dense=tuple(path.partition("/")[0] for path in dense_weights(source.pipeline)),
            normalize=source.pipeline.normalize,
            prompts=source.pipeline.prompts,
            special_ids=source.special_ids,
            default_precision=default,
            languages=tuple(source.languages),
            source={"name": source.name, "sha256": source.sha256},
            graphs={precision: GRAPHS[precision] for precision in chosen},
            parity={precision: result.summary() for precision, result in results.items()},
            golden=golden_vectors(torch_runner(source), source.tokenizer, length, what="<s> states" if plain else "vectors"),
            ranges=vector_ranges(vectors, describe_source(sentences, shipped)),
            files=files,
            created={p.replace("-", "_"): installed_version(p) for p in ("mexma-rt", "torch", "onnx", "onnxruntime")},
            vocabulary=asdict(vocabulary) if vocabulary else None,
        )
        _write_json(folder / MANIFEST, manifest.to_json())
    return ExportReport(
        path=target,
        name=name,
        default_precision=default,
        reason=reason,
        parity=results,
        bytes={path: entry.bytes for path, entry in files.items()},
        seconds=time.perf_counter() - started,
        vocabulary=vocabulary,
    )


def _check_precisions(precisions: Sequence[str], default: str | None, *, named: bool) -> None:
    if isinstance(precisions, str) or not precisions or len(set(precisions)) != len(precisions):
        given = precisions if isinstance(precisions, str) else ",".join(precisions)
        raise InputError(
            f"Precisions must be a list without duplicates from {', '.join(GRAPHS)}, not {given!r}. "
            f"Type --precision {','.join(AUTO)}"
        )
    if unknown := [p for p in precisions if p not in GRAPHS]:
        raise InputError(
            f"Unknown precision {unknown[0]!r}: choose from {', '.join(GRAPHS)}. Type --precision {','.join(AUTO)}"
        )
    if default is not None and default not in (precisions if named else GRAPHS):
        raise InputError(
            f"The default precision {default!r} is not among the exported ones ({', '.join(precisions)}). "
            f"Type --precision {','.join([*precisions, default])}"
        )


def _check_opset(opset: int, precisions: Sequence[str]) -> None:
    if type(opset) is not int or opset not in OPSETS:
        raise InputError(
            f"Opset {opset!r} is outside {OPSETS[0]} to {OPSETS[-1]}, which this export can write. Omit --opset to get "
            f"{OPSET}, which TensorRT supports too."
        )
    if opset != OPSET and not {"fp32", "fp16"} & set(precisions):
        raise InputError(f"Opset {opset} applies to the fp32 and fp16 graphs, but neither is exported. Omit --opset.")


def _default_precision(
    precisions: Sequence[str], wanted: str | None, refused: Mapping[str, Parity] = MappingProxyType({})
) -> tuple[str, str]:
    """Return (precision, why). Every gate must have passed."""
    if wanted is not None and wanted not in precisions:
        why = "; ".join(refused[wanted].failures) if wanted in refused else "it was not needed, since int8 passed its gate"
        raise InputError(f"The default precision {wanted!r} is not in the bundle: {why}. Name it: --precision fp32,{wanted}")
    if wanted is not None:
        return wanted, "asked for"
    if "int8" in refused:
        return "mixed", f"instead of int8, which failed its parity gate: {'; '.join(refused['int8'].failures)}"
    fastest = "fastest on CPU of those exported, and its parity gate passed"
    reasons = {
        "int8": "fastest on CPU, and its parity gate passed",
        "w8": fastest,
        "w4": fastest,
        "mixed": "smallest of those exported, and its parity gate passed",
        "fused": fastest,
        "fp32": "no graph made for the CPU was exported",
        "fp16": "the only one exported; onnxruntime on CPU runs it slower than fp32",
    }
    return next((precision, why) for precision, why in reasons.items() if precision in precisions)


def _length(wanted: int | None, limit: int, owner: int | None) -> int:
    if wanted is None:
        return min(owner or DEFAULT_MAX_LENGTH, limit)
    if not 3 <= wanted <= limit:
        raise InputError(
            f"max length {wanted} is outside 3 to {limit}: the position table has rows for {limit} tokens. "
            f"Type --max-length {limit} or less."
        )
    return wanted


def _trim(
    source: Checkpoint,
    corpus: Sequence[str | Path],
    languages: Sequence[str],
    pieces: int | None,
    sentences: Sequence[Sentence],
) -> tuple[Checkpoint, Vocabulary]:
    """Trim the checkpoint's tokenizer and configuration; its model stays untrimmed, as the reference of the gate."""
    from mexma_export.trim import describe, trim_vocabulary
    from mexma_export.usage import parse_languages

    corpus = [corpus] if isinstance(corpus, str | Path) else corpus
    languages = parse_languages(languages) if isinstance(languages, str) else languages
    trim = trim_vocabulary(source.tokenizer, corpus, languages, pieces=pieces)
    rows = source.config["vocab_size"]
    vocabulary = describe(source.tokenizer, trim, sentences, source_rows=rows, dimensions=source.dimensions)
    config = source.config | {"vocab_size": len(trim.kept)}
    return replace(source, tokenizer=trim.tokenizer, config=config, kept=trim.kept), vocabulary


def _hash_files(folder: Path) -> dict[str, FileEntry]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {p.relative_to(folder).as_posix(): FileEntry(sha256=sha256_of(p), bytes=p.stat().st_size) for p in paths}


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(manifest_text(content), encoding="utf-8", newline="\n")


def installed_version(package: str) -> str | None:
    """Return the version of a distribution, None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
