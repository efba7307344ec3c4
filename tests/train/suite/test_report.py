"""What the suite writes, from results made by hand: tables cell by cell, bars one by one, and earlier files that do not fit."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from mexma_rt.errors import FileError, InputError
from mexma_train.suite import report

MINED = {"pairs": 80, "precision": 90.0, "recall": 72.0, "f1": 80.0, "best_f1": 82.0, "best_threshold": 1.03}
NONE = {"pairs": 3, "auc": None, "auc_of_spelling": None, "reason": "pairs in this data: 3; a figure needs 10"}


def results(deu: float = 2.0, jpn: float = 8.0, both: float = 80.0) -> dict[str, Any]:
    return {
        "format": "mexma-suite",
        "format_version": 1,
        "date": "2026-01-02",
        "model": {
            "name": "toy", "kind": "checkpoint", "dimensions": 4, "sha256": "0123456789abcdef", "embedded_with": "mexma_train",
            "device": "cpu", "precision": "fp32", "max_tokens": 200, "threads": 1,
        },
        "versions": {"mexma_rt": "9.9"},
        "machine": "x86_64",
        "settings": {"margin": "ratio", "k": 4, "mining_noise": [0.0, 0.3]},
        "trained": ["deu", "jpn", "fra"],
        "truncated": {"english": 0, "flores": 5, "tatoeba": 0},
        "languages": {
            "deu": {"trained": True, "flores_sentences": 10, "flores_xsim": deu},
            "jpn": {"trained": True, "flores_sentences": 10, "flores_xsim": jpn, "tatoeba_pairs": 9, "tatoeba_accuracy": both},
            "tlh": {"trained": False, "flores_sentences": 10, "flores_xsim": 95.0},
        },
        "mining": {"jpn": {"0": MINED, "0.3": MINED | {"f1": 70.0}}},
        "paraphrases": {"english": {"pairs": 12, "auc": 97.5, "auc_of_spelling": 90.0}, "trained": NONE, "all": NONE},
        "word_alignment": {"measured": None, "reason": "a bundle gives sentence vectors only"},
    }  # fmt: skip


def test_the_page_of_one_model() -> None:
    page = report.tables(results())
    assert page.startswith("# Quality of `toy`\n\n- 2026-01-02: checkpoint `toy`, 4 dimensions, weights 0123456789ab, embedded")
    for line in (
        "- Trained on, but without a test file here: fra.",
        "- Sentences cut at 200 tokens: 5 in flores.",
        "| measure | over | of | figure |",
        "| FLORES xsim error % | languages trained on | 2 languages | 5.00 |",
        "| FLORES xsim error % | multilingual USE's 14 | 2 languages | 5.00 |",
        "| FLORES xsim error % | all tested | 3 languages | 35.00 |",
        "| Tatoeba accuracy % | all tested | 1 languages | 80.00 |",
        "| Mining F1 %, noise 0 | jpn | 1 languages | 80.00 |",
        "| Mining F1 %, noise 0.3 | jpn | 1 languages | 70.00 |",
        "| Paraphrases, AUC % | English | 12 pairs | 97.50 |",
        "| Paraphrases, AUC % of spelling | English | 12 pairs | 90.00 |",
        "Paraphrases, languages trained on: no figure, pairs in this data: 3; a figure needs 10.",
        "Pieces aligned: no figure, a bundle gives sentence vectors only.",
        "| language | trained on | FLORES xsim error % | Tatoeba accuracy % |",
        "| jpn | yes | 8.00 | 80.00 |",
        "| tlh | no | 95.00 | - |",
        "| jpn | 0 | 80 | 90.00 | 72.00 | 80.00 | 82.00 | 1.03 |",
    ):
        assert line in page.splitlines()
    assert "difference" not in page and "before" not in page.lower()


def test_earlier_figures_stand_beside_with_the_difference() -> None:
    earlier = results(deu=3.0, jpn=7.5, both=82.25)
    del earlier["languages"]["tlh"]
    earlier["mining"]["jpn"]["0"] = MINED | {"pairs": 84}
    page = report.tables(results(), earlier).splitlines()
    for line in (
        "| measure | over | of | figure | before | difference |",
        "| FLORES xsim error % | languages trained on | 2 languages | 5.00 | 5.25 | -0.25 |",
        "| FLORES xsim error % | all tested | 3 languages | 35.00 | 5.25 | - |",  # Klingon was not there
        "| Tatoeba accuracy % | all tested | 1 languages | 80.00 | 82.25 | -2.25 |",
        "| Paraphrases, AUC % | English | 12 pairs | 97.50 | 97.50 | +0.00 |",
        "| deu | yes | 2.00 | 3.00 | -1.00 | - | - | - |",
        "| jpn | yes | 8.00 | 7.50 | +0.50 | 80.00 | 82.25 | -2.25 |",
        "| tlh | no | 95.00 | - | - | - | - | - |",
        "| jpn | 0 | 80 | 84 | -4 | 90.00 | 90.00 | +0.00 | 72.00 | 72.00 | +0.00 | 80.00 | 80.00 | +0.00 "
        "| 82.00 | 82.00 | +0.00 | 1.03 | 1.03 | +0.00 |",
    ):
        assert line in page
    assert not any("Measured differently" in line for line in page)


def test_the_earlier_average_is_over_the_languages_trained_on_now() -> None:
    earlier = results(deu=3.0)
    earlier["trained"] = ["tlh"]
    page = report.tables(results(), earlier)
    assert "| FLORES xsim error % | languages trained on | 2 languages | 5.00 | 5.50 | -0.50 |" in page


def test_what_was_not_measured_alike_is_said() -> None:
    earlier = results()
    earlier["model"]["max_tokens"] = 128
    earlier["settings"]["k"] = 8
    earlier["languages"]["jpn"]["tatoeba_pairs"] = 1000
    page = report.tables(results(), earlier)
    assert (
        "- **Measured differently**: max_tokens 200 (earlier 128); k 4 (earlier 8); jpn tatoeba_pairs 9 (earlier 1000)." in page
    )


def test_three_files_are_written_and_read_back(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="part of mexma-rt[train]")
    report.check_out(tmp_path / "new" / "out", None)
    report.write(results(), tmp_path / "new" / "out")
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == ["results.json", "suite.md", "suite.png"]
    assert report.read_results(tmp_path / "new" / "out" / "results.json") == results()
    assert (tmp_path / "new" / "out" / "suite.md").read_text(encoding="utf-8") == report.tables(results())
    assert (tmp_path / "new" / "out" / "suite.png").read_bytes().startswith(b"\x89PNG")


def test_an_earlier_file_that_is_something_else(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(FileError, match=r"results\.json does not exist\. Give --before the results\.json of an earlier --out"):
        report.read_results(path)
    with pytest.raises(FileError, match=r"is a folder\. Type: --before .*results\.json"):
        report.read_results(tmp_path)
    path.write_text("# Quality")
    with pytest.raises(InputError, match=r"results\.json is not JSON"):
        report.read_results(path)
    for content, form in (
        ('{"fra": {"xsim": 1}}', "None"),
        ("[1]", "'list'"),
        ('{"format": "mexma-bundle"}', "'mexma-bundle'"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=f"the format is {form}, not 'mexma-suite'"):
            report.read_results(path)
    path.write_text(json.dumps(results() | {"format_version": 2}))
    with pytest.raises(InputError, match=r"has format version 2, but this mexma-train reads 1\. Measure that model again"):
        report.read_results(path)


@pytest.mark.parametrize("lost", ["languages", "mining", "model", "settings", "machine", "paraphrases", "trained"])
def test_an_earlier_file_that_lacks_something_is_refused_before_the_work(tmp_path: Path, lost: str) -> None:
    damaged = copy.deepcopy(results())
    del damaged[lost]
    (tmp_path / "results.json").write_text(json.dumps(damaged))
    with pytest.raises(InputError, match=rf"damaged or incomplete \(KeyError\('{lost}'\)\)\. Copy it again"):
        report.read_results(tmp_path / "results.json")


def test_outputs_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="part of mexma-rt[train]")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"file is a file, but --out is a folder for results\.json, suite\.md and suite\.png"):
        report.check_out(tmp_path / "file", None)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(InputError, match=r"results\.json is both an input and the output"):
        report.check_out(tmp_path, tmp_path / "results.json")


def drawn(*files: dict[str, Any]) -> list[Any]:
    """The axes of the picture, as Any: matplotlib's types do not know that the patches are bars."""
    pytest.importorskip("matplotlib", reason="part of mexma-rt[train]")
    from mexma_train.suite.plot import figure

    return [*figure(*files).axes]


def test_bars_are_sorted_best_first_and_only_languages_trained_on() -> None:
    now = results(deu=9.0, jpn=8.0)
    now["languages"]["deu"]["tatoeba_accuracy"] = 85.0
    errors, accuracies = drawn(now)
    assert [label.get_text() for label in errors.get_yticklabels()] == ["jpn", "deu"]  # fewest errors first
    assert [label.get_text() for label in accuracies.get_yticklabels()] == ["deu", "jpn"]
    assert errors.get_ylim()[0] > errors.get_ylim()[1]  # first is on top
    assert [bar.get_width() for bar in errors.patches] == [8.0, 9.0]
    assert "mean 8.50 over 2 languages" in errors.get_legend().get_texts()[0].get_text()

    earlier = results(deu=3.0)
    del earlier["languages"]["jpn"]
    errors, _ = drawn(now, earlier)
    assert [bar.get_width() for bar in errors.patches] == [8.0, 9.0, 3.0]  # German has two bars, Japanese one
    assert errors.get_legend().get_texts()[1].get_text() == "before, mean 3.00 over 1 languages"
    above, below = errors.patches[1], errors.patches[2]
    assert above.get_y() + above.get_height() <= below.get_y() + 1e-9
