"""`mexma-train eval`: a checkpoint on test files, or with --suite the whole quality evaluation of a model in one command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from mexma_train.suite.model import CHECKPOINT_MAX_TOKENS

PATH = click.Path(path_type=Path)
SUITE_OPTIONS = ("flores", "tatoeba", "out", "before", "trained", "mining_languages", "precision")
DEFAULT_TOKENS = f"[default: {CHECKPOINT_MAX_TOKENS}, or a bundle's own]"
NEEDED = ("flores", "tatoeba", "out")


@click.command(
    "eval",
    short_help="Measure a model on test files, or with the whole suite.",
    epilog="Example: mexma-train eval runs/mini/checkpoint fra.tsv deu.tsv",
)
@click.argument("model", type=str)
@click.argument("pairs", nargs=-1)
@click.option("--suite", is_flag=True, help="Run the whole evaluation, without PAIRS. MODEL may be a bundle too (mexma-small).")
@click.option("--flores", type=PATH, help="Suite: folder of FLORES-200 devtest, xxx.txt per language and eng.txt.")
@click.option("--tatoeba", type=PATH, help="Suite: folder of LASER's Tatoeba, xxx.tsv per language, english<TAB>text.")
@click.option("--out", type=PATH, help="Suite: folder for results.json, suite.md and suite.png.")
@click.option("--before", type=PATH, help="Suite: results.json of an earlier run, whose figures are shown beside the new ones.")
@click.option("--trained", help="Suite: languages trained on, such as deu,fra, or a shards folder, or all. [default: MODEL's]")
@click.option("--mining-languages", help="Suite: languages of --tatoeba to mine. [default: deu,jpn,tur,ara,fin, if present]")
@click.option("--precision", help="Suite: precision that a bundle computes in, such as int8. [default: the bundle's own]")
@click.option("--max-tokens", type=click.IntRange(min=3), help=f"Tokens per sentence, with <s> and </s>. {DEFAULT_TOKENS}")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads (default: torch's or onnxruntime's).")
@click.option("--device", default="cpu", show_default=True, help="Device: cpu, cuda or cuda:N.")
def evaluate(
    model: str,
    pairs: tuple[str, ...],
    suite: bool,
    max_tokens: int | None,
    threads: int | None,
    device: str,
    **options: Any,
) -> None:
    """Measure MODEL, a checkpoint folder, on PAIRS, test files of english<TAB>text; or run the whole suite with --suite.

    \b
    mexma-train eval CHECKPOINT PAIRS...
      xsim error (ratio, k=4, text -> English) and accuracy in percent, alignment and
      uniformity of Wang and Isola, as JSON on standard output.
    mexma-train eval --suite MODEL --flores DIR --tatoeba DIR --out DIR [--before RESULTS.json]
      xsim, accuracy, mining, paraphrases, aligned pieces: per language, averaged and plotted.
    """
    _check_grammar(model, pairs, suite, options)
    if suite:
        _suite(model, device=device, threads=threads, max_tokens=max_tokens, **options)
    else:
        _pairs(Path(model), pairs, device=device, threads=threads, max_tokens=max_tokens or CHECKPOINT_MAX_TOKENS)


def _check_grammar(model: str, pairs: tuple[str, ...], suite: bool, options: dict[str, Any]) -> None:
    """Raise UsageError with the line to type unless the call is one of the two grammars."""
    whole = f"mexma-train eval --suite {model} --flores DIR --tatoeba DIR --out DIR"
    given = [f"--{name.replace('_', '-')}" for name in SUITE_OPTIONS if options[name] is not None]
    if not suite and given:
        raise click.UsageError(f"{', '.join(given)}: only with --suite. Type: {whole}")
    if not suite and not pairs:
        raise click.UsageError(
            f"PAIRS are missing: test files of english<TAB>text. Type: mexma-train eval {model} PAIRS... or, for the whole "
            f"evaluation: {whole}"
        )
    if suite and pairs:
        raise click.UsageError(f"--suite takes its sentences from --flores and --tatoeba, not from {pairs[0]}. Type: {whole}")
    if suite and (missing := [f"--{name}" for name in NEEDED if options[name] is None]):
        raise click.UsageError(f"--suite needs {' and '.join(missing)} too. Type: {whole}")


def _pairs(checkpoint: Path, pairs: tuple[str, ...], *, device: str, threads: int | None, max_tokens: int) -> None:
    import torch

    from mexma_train.attention import choose_attention
    from mexma_train.data.tokenizer import load_tokenizer
    from mexma_train.encoder import load_encoder
    from mexma_train.evaluate import evaluate as measure
    from mexma_train.evaluate import read_test_sets
    from mexma_train.parallel import start_world
    from mexma_train.probe import embed_texts

    tests = read_test_sets(pairs)
    pieces = load_tokenizer(checkpoint / "tokenizer.json")
    if threads:
        torch.set_num_threads(threads)
    with start_world(device) as world:
        encoder = load_encoder(checkpoint).to(world.device)
        attention, _ = choose_attention("auto", world.device, "fp32")
        results = measure(tests, lambda texts: embed_texts(encoder, pieces, texts, max_tokens=max_tokens, attention=attention))
    click.echo(json.dumps(results, indent=1))


def _suite(
    model: str,
    *,
    flores: Path,
    tatoeba: Path,
    out: Path,
    before: Path | None,
    trained: str | None,
    mining_languages: str | None,
    device: str,
    threads: int | None,
    precision: str | None,
    max_tokens: int | None,
) -> None:
    from mexma_train.suite import report as suite_report
    from mexma_train.suite.data import choose_mining, choose_trained, named, read_flores, read_tatoeba
    from mexma_train.suite.model import open_model
    from mexma_train.suite.run import measure

    earlier = suite_report.read_results(before) if before else None
    sentences, test_sets = read_flores(flores), read_tatoeba(tatoeba)
    mining = choose_mining(named(mining_languages, "--mining-languages") if mining_languages is not None else None, test_sets)
    with open_model(model, device=device, threads=threads, precision=precision or "auto", max_tokens=max_tokens) as opened:
        said, tested = opened.languages, {*sentences.texts, *test_sets}
        languages = choose_trained(trained, said, earlier["trained"] if earlier else [], tested)
        suite_report.check_out(out, before)
        about, known = opened.about, len(set(languages) & tested)
        click.echo(
            f"{about['name']}: {about['kind']}, {about['embedded_with']}, {about['precision']} on {about['device']}; "
            f"{len(sentences.texts)} languages of FLORES and {len(test_sets)} of Tatoeba, {known} of them trained on",
            err=True,
        )
        results = measure(opened, sentences, test_sets, trained=languages, mining=mining)
    suite_report.write(results, out, earlier)
    for figure, over in (("flores_xsim", "FLORES xsim error"), ("tatoeba_accuracy", "Tatoeba accuracy")):
        if average := results["averages"][figure]["trained"]:
            click.echo(f"{over}, mean of {average['languages']} languages trained on: {average['mean']:.2f} %", err=True)
    click.echo(out / suite_report.TABLES)
