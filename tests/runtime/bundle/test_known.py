"""Known models: what is said of them, and that what a user is told to type is what mexma-export takes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click
import huggingface_hub
import pytest
from click.testing import CliRunner

from mexma_rt import BundleError, load
from mexma_rt.bundle.known import KNOWN, KnownModel, export_command, find_known, how_to_convert, model_type
from mexma_rt.cli import main


def parse(line: str) -> dict:
    """The arguments as mexma-export's own command sees them."""
    pytest.importorskip("torch", reason="mexma-export needs torch: pip install 'mexma-rt[export]'")
    from mexma_export.cli import main as command

    program, *words = shlex.split(line)
    assert program == "mexma-export"
    context: click.Context = command.commands["export"].make_context(program, words)
    return context.params


@pytest.fixture(autouse=True)
def _no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("the hub was asked"))


@pytest.mark.parametrize("name", ["facebook/MEXMA", "Facebook/mexma"])
@pytest.mark.parametrize("offline", [False, True])
def test_loading_a_known_checkpoint_says_what_to_type_and_fetches_nothing(name: str, offline: bool) -> None:
    with pytest.raises(BundleError) as caught:
        load(name, offline=offline)
    assert str(caught.value) == (
        "facebook/MEXMA is not a bundle but a checkpoint (XLM-R large, 2.2 GB), whose PyTorch weights this runtime does not "
        "read. Nothing was downloaded. Download and convert it once. Type:\n"
        "    pip install 'mexma-rt[export]'\n"
        "    mexma-export facebook/MEXMA MEXMA-bundle\n"
        "and load the folder that it writes:\n"
        "    mexma_rt.load('MEXMA-bundle')"
    )


def test_a_revision_is_passed_on() -> None:
    with pytest.raises(BundleError, match=r"    mexma-export facebook/MEXMA MEXMA-bundle --revision v2\n"):
        load("facebook/MEXMA", revision="v2")


def test_a_folder_of_that_name_comes_first(tmp_path: Path) -> None:
    (tmp_path / "facebook" / "MEXMA").mkdir(parents=True)
    with pytest.raises(BundleError, match=r"it has no mexma\.json\. Nor is it a checkpoint"):
        load("facebook/MEXMA")


@pytest.mark.parametrize("model", KNOWN, ids=lambda model: model.name)
def test_the_command_of_every_known_model_is_one_that_mexma_export_takes(model: KnownModel) -> None:
    arguments = parse(export_command(model.name))
    assert arguments["checkpoint"] == model.name
    assert arguments["bundle"] == Path(f"{model.name.split('/')[1]}-bundle")
    assert arguments["revision"] is None
    assert parse(export_command(model.name, "abc"))["revision"] == "abc"


def test_paths_that_a_shell_would_split(tmp_path: Path) -> None:
    folder = tmp_path / "my run's" / "best one"
    arguments = parse(export_command(str(folder)))
    assert (arguments["checkpoint"], arguments["bundle"]) == (str(folder), Path("best one-bundle"))
    assert "mexma_rt.load('best one-bundle')" in how_to_convert(str(folder))


def test_the_table() -> None:
    """Parameters by XLM-R's own arithmetic: words, positions, type, norm; four products, two norms and the FFN of a layer."""
    mexma = find_known("facebook/MEXMA")
    assert mexma is not None and find_known("facebook/other") is None
    d, ffn = mexma.dimensions, 4 * mexma.dimensions
    layer = 4 * (d * d + d) + 2 * d + (d * ffn + ffn) + (ffn * d + d) + 2 * d
    assert mexma.parameters == (250_002 + 514 + 1) * d + 2 * d + mexma.layers * layer
    assert 0 < mexma.bytes - 4 * mexma.parameters < 100_000  # fp32, and the header of the file
    assert len(mexma.languages) == len(set(mexma.languages)) == 81 and mexma.languages[0] == "eng"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ('{"model_type": "xlm-roberta"}', "xlm-roberta"),
        ("{}", ""),
        ("[]", None),
        ("{", None),
        ("\xff", None),
        ("[" * 10_000, None),
    ],
)
def test_model_type(tmp_path: Path, content: str, kind: str | None) -> None:
    assert model_type(tmp_path) is None
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    assert model_type(tmp_path) == kind


def test_mexma_models_lists_them_beside_the_bundled_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    text = CliRunner().invoke(main, ["models"]).stdout
    assert "facebook/MEXMA: 1024 dimensions, XLM-R large of 24 layers, 559 M parameters, 2.2 GB in fp32" in text
    assert "80 languages and English; licence MIT; Janeiro et al., ACL 2025" in text
    assert "xsim error 0.06 %, xsim++ error 9.60 % (the authors' figures, not measured here)" in text
    assert "\n  mexma-export facebook/MEXMA MEXMA-bundle    # then: --model MEXMA-bundle\n" in text
    assert "which needs: pip install 'mexma-rt[export]'" in text
    assert "\n  113 languages and English: aeb afr amh " in text
    result = json.loads(CliRunner().invoke(main, ["models", "--json"]).stdout)
    assert len(result["models"][0]["languages"]) == 114
    (known,) = result["known"]
    assert known["name"] == "facebook/MEXMA" and known["licence"] == "MIT" and "deu" in known["languages"]
    assert parse(known["command"])["bundle"] == Path(known["bundle"])
    monkeypatch.setattr("mexma_rt.bundle.opening.bundled_models", dict)
    assert "facebook/MEXMA: " in CliRunner().invoke(main, ["models"]).stdout
    assert json.loads(CliRunner().invoke(main, ["models", "--json"]).stdout)["models"] == []
