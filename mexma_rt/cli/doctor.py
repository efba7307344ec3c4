"""`mexma doctor`: what is installed, what runs where, and why."""

from __future__ import annotations

import platform
import re
import time
import warnings
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from mexma_rt.cli.common import echo_json, is_verbose, model_options

PACKAGES = ("numpy", "onnxruntime", "tokenizers", "click", "tqdm", "huggingface_hub", "threadpoolctl")
MAIN = ("mexma-rt", "python", "onnxruntime", "numpy")  # those shown without --verbose
SENTENCE = "Hello world"


@click.command(short_help="Verify the model, and report what runs where and why.", epilog="Example: mexma doctor --verbose")
@model_options
def doctor(as_json: bool, **options: Any) -> None:
    """Load the model, verify its files, report what runs where and why, and compare its vectors with the bundle's golden ones.

    The exit status is 1 if the back end that would be used computes wrong vectors.
    """
    import mexma_rt
    from mexma_rt import BackendError
    from mexma_rt.backends import describe_choices
    from mexma_rt.backends.onnxruntime_packages import clash_of_packages
    from mexma_rt.embedding.proof import prove

    batch_tokens = options.pop("batch_tokens")
    versions = {"mexma-rt": mexma_rt.__version__, "python": platform.python_version()}
    versions |= {name: _version(name) for name in PACKAGES}
    if not as_json:  # before the model is loaded, so that it is shown even if loading fails
        shown = versions if is_verbose() else {name: versions[name] for name in MAIN}
        click.echo("  ".join(f"{name} {number}" for name, number in shown.items()) + f"  {platform.system()}")
        if is_verbose():
            click.echo(platform.platform())

    clash = clash_of_packages()
    if clash and not as_json:
        click.echo(clash)
        warnings.filterwarnings("ignore", message=re.escape(clash))  # loading warns of it too

    started = time.perf_counter()
    encoder = mexma_rt.load(**options)
    load_seconds = time.perf_counter() - started
    encoder.embed_report([SENTENCE], batch_tokens=batch_tokens)  # the first run also sets up the engine
    report = encoder.embed_report([SENTENCE], batch_tokens=batch_tokens).report
    bundle = encoder.bundle
    choices = [asdict(choice) for choice in describe_choices(bundle, partial(prove, bundle, encoder.tokenizer))]
    try:
        proof, wrong = prove(bundle, encoder.tokenizer, encoder.backend), None
    except BackendError as error:
        proof, wrong = str(error), error
    megabytes = sum(entry.bytes for entry in bundle.files.values()) / 1e6
    if as_json:
        model = {"name": bundle.name, "folder": str(bundle.folder), "dimensions": bundle.dimensions}
        model |= {"max_length": encoder.max_length, "max_length_limit": bundle.max_length_limit}
        model |= {"revision": bundle.revision}
        model |= {"files": len(bundle.files), "megabytes": megabytes, "parity": dict(bundle.parity)}
        runs = {name: getattr(report, name) for name in ("backend", "device", "precision", "reason")}
        runs |= {"proof": proof, "proved": wrong is None and bundle.golden is not None}
        times = {"load_seconds": load_seconds, "sentence_milliseconds": 1000 * report.seconds}
        echo_json(
            {
                "versions": versions,
                "platform": platform.platform(),
                "model": model,
                "runs": runs,
                "choices": choices,
                "clash": clash,
            }
            | times
        )
        if wrong is not None:
            raise wrong
        return
    click.echo(
        f"model {bundle.name}: {bundle.dimensions} dimensions, {encoder.max_length} of at most "
        f"{bundle.max_length_limit} tokens, {len(bundle.files)} files, {megabytes:.1f} MB, sizes and hashes correct\n"
        f"  {bundle.folder}{f', commit {bundle.revision}' if bundle.revision else ''}\n"
        f"runs {report.precision} on {report.device} by {report.backend}"
        f"{f', because {report.reason}' if is_verbose() else ''}\n  loaded in {load_seconds:.2f} s, one sentence takes "
        f"{1000 * report.seconds:.1f} ms\n  {proof}"
    )
    for line in _listed(choices):
        click.echo(line)
    if wrong is not None:
        raise wrong


def _listed(choices: list[dict[str, Any]]) -> list[str]:
    """One line per way to run the model; without --verbose, failures are grouped by the first sentence of the reason."""
    lines, refused = [], dict[str, list[str]]()
    for choice in choices:
        way = f"{choice['backend']} {choice['device']:<4} {choice['precision']:<4}"
        if choice["usable"] or is_verbose():
            lines.append(f"  {'works' if choice['usable'] else 'no   '}  {way}  {choice['reason']}")
        else:
            why = re.split(r"\n|(?<=\.) | \(", choice["reason"])[0].removesuffix(".")
            refused.setdefault(why, []).append(" ".join(way.split()))
    lines += [f"  no     {', '.join(ways)}: {why}" for why, ways in refused.items()]
    return lines + (["  (what to type for these: mexma doctor --verbose)"] if refused else [])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
