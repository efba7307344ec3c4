"""The picture of a run shows the numbers of its log, all of them, and is complete or not there."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import IO

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="part of mexma-rt[train]")

from matplotlib.figure import Figure

from mexma_rt.errors import FileError, InputError, MissingExtraError
from mexma_train.plot import figure, plot

SPEEDS = {"pairs_per_second": 4000.0, "tokens_per_second": 180_000.0, "seconds": 7.5}
TERMS = ("loss", "mlm_source", "mlm_target", "align", "koleo", "contrastive", "accuracy", "lr", "grad_norm")
MEASURES = ("xsim", "accuracy", "mlm_accuracy", "alignment", "uniformity")
UPDATES = (20, 40, 60)


def value(name: str, update: int) -> float:
    """Another number for every name and update."""
    return sum(name.encode()) / 97 + update / 7


def step(stage: str, update: int, *terms: str) -> dict:
    return {"stage": stage, "update": update, **SPEEDS, **{term: value(term, update) for term in terms}}


def evaluation(update: int, *names: str) -> dict:
    results = {name: {measure: value(name + measure, update) for measure in MEASURES} for name in names}
    return {"stage": "mexma", "update": update, "evaluation": results}


LINES = [
    *(step("warmup", update, "loss", "accuracy", "lr") for update in UPDATES),
    *(step("mexma", update, *TERMS) for update in UPDATES),
    evaluation(30, "fra", "rus", "mean"),
    evaluation(60, "fra", "rus", "mean"),
]


def panels(drawn: Figure, stage: int) -> dict[tuple[str, str], dict[str, tuple[list, list]]]:
    """(title, unit) -> curves of a stage's block: label -> (updates, values)."""
    return {
        (axes.get_title(), axes.get_ylabel()): {
            str(line.get_label()): (np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist())
            for line in axes.lines
        }
        for axes in drawn.subfigs[stage].axes
    }


def curve(term: str) -> tuple[list[int], list[float]]:
    return list(UPDATES), [value(term, update) for update in UPDATES]


FEW = [step("mexma", 20, "loss", "mlm_source", "mlm_target"), evaluation(20, r"$\a$", "b_", "mean")]  # quick to draw


def write(folder: Path, lines: list[dict]) -> Path:
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def test_the_curves_are_the_numbers_of_the_log() -> None:
    drawn = figure(LINES)
    assert [part.get_suptitle() for part in drawn.subfigs] == ["Warm start", "MEXMA"]
    speeds = {
        ("Speed in pairs", "pairs per second"): {"pairs": (list(UPDATES), [4000.0] * 3)},
        ("Speed in tokens", "tokens per second"): {"tokens": (list(UPDATES), [180_000.0] * 3)},
    }
    in_both = {
        ("Total loss", "loss"): {"total": curve("loss")},
        ("Pairs that find each other in the batch", "share"): {"accuracy": curve("accuracy")},
        ("Learning rate", "rate"): {"lr": curve("lr")},
    }
    assert panels(drawn, 0) == in_both | speeds
    measures = {
        ("xsim, text → English (less is better)", "error, %"): "xsim",
        ("Retrieval accuracy, both directions", "%"): "accuracy",
        ("Masked tokens predicted right", "%"): "mlm_accuracy",
        ("Alignment of the test pairs", "mean squared distance"): "alignment",
        ("Uniformity of the test sentences", "log of the mean potential"): "uniformity",
    }
    evaluations = {
        panel: {
            label: ([30, 60], [value(name + measure, update) for update in (30, 60)])
            for name, label in (("fra", "fra"), ("rus", "rus"), ("mean", "mean of 2 test sets"))
        }
        for panel, measure in measures.items()
    }
    assert panels(drawn, 1) == in_both | speeds | evaluations | {
        ("Masked tokens (MLM)", "cross entropy, nats"): {
            "text (source)": curve("mlm_source"),
            "English (target)": curve("mlm_target"),
        },
        ("Alignment", "loss, unweighted"): {"align": curve("align")},
        ("KoLeo", "−log distance to the nearest"): {"koleo": curve("koleo")},
        ("Contrastive (InfoNCE)", "cross entropy, nats"): {"contrastive": curve("contrastive")},
        ("Gradient norm before clipping", "L2 norm, log scale"): {"grad_norm": curve("grad_norm")},
    }


def test_panels_of_a_stage_share_the_scale_of_updates() -> None:
    drawn = figure([*LINES, step("mexma", 80, "loss")])
    for part, last in zip(drawn.subfigs, (60, 80), strict=True):
        for axes in part.axes:
            assert axes.get_xlabel() == "updates"
            assert axes.get_xlim()[0] == 0 and last <= axes.get_xlim()[1] < 1.1 * last


def test_terms_that_are_missing_take_no_room_and_new_ones_get_a_panel() -> None:
    shown = panels(figure([step("mexma", 20, "loss"), step("mexma", 40, "loss", "novel")]), 0)
    assert {title for title, _ in shown} == {"Total loss", "Speed in pairs", "Speed in tokens", "novel"}
    assert shown["novel", "novel"] == {"novel": ([40], [value("novel", 40)])}


def test_a_single_point_can_be_seen() -> None:
    (axes, *_) = figure([step("mexma", 20, "loss")]).subfigs[0].axes
    assert axes.lines[0].get_marker() == "o"


def test_what_was_not_finite_is_a_gap() -> None:
    lines = [step("mexma", update, "loss", "grad_norm") for update in UPDATES]
    lines[1]["grad_norm"] = None
    _, values = panels(figure(lines), 0)["Gradient norm before clipping", "L2 norm, log scale"]["grad_norm"]
    assert math.isnan(values[1]) and (values[0], values[2]) == (value("grad_norm", 20), value("grad_norm", 60))


def test_one_test_set_is_its_own_mean_and_many_are_not_named() -> None:
    one = panels(figure([evaluation(30, "fra", "mean")]), 0)["Retrieval accuracy, both directions", "%"]
    assert one == {"fra": ([30], [value("fraaccuracy", 30)])}
    names = [f"set{i}" for i in range(20)]
    axes = figure([evaluation(30, *names, "mean"), evaluation(60, *names, "mean")]).subfigs[0].axes[0]
    assert [np.asarray(line.get_ydata()).tolist() for line in axes.lines] == [
        [value(name + "xsim", update) for update in (30, 60)] for name in [*names, "mean"]
    ]
    legend = axes.get_legend()
    assert legend and [text.get_text() for text in legend.get_texts()] == ["each of 20 test sets", "mean of 20 test sets"]


@pytest.mark.parametrize("sets", [2, 3, 20])
def test_curves_differ_without_their_colour(sets: int) -> None:
    lines = [*LINES[:-2], *(evaluation(update, *(f"set{i}" for i in range(sets)), "mean") for update in (30, 60))]
    for part in figure(lines).subfigs:
        for axes in part.axes:
            named = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
            looks = {(line.get_linestyle(), line.get_linewidth()) for line in named}
            assert len(looks) == len(named), axes.get_title()


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG\r\n\x1a\n"), (".svg", b"<?xml"), (".PDF", b"%PDF")])
def test_the_suffix_chooses_the_format(tmp_path: Path, suffix: str, magic: bytes) -> None:
    run = tmp_path / r"$\run$"  # a formula to matplotlib, and a wrong one
    run.mkdir()
    write(run, FEW)  # with such names too
    plot(run, tmp_path / f"run{suffix}")
    data = (tmp_path / f"run{suffix}").read_bytes()
    assert data.startswith(magic) and len(data) > 10_000
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([run.name, f"run{suffix}"])


def test_an_older_picture_stays_until_the_new_one_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, FEW)
    target = tmp_path / "run.png"
    target.write_bytes(b"old")

    def half(self: Figure, stream: IO[bytes], **_: object) -> None:
        stream.write(b"half a picture")
        stream.flush()
        assert target.read_bytes() == b"old"
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", half)
        with pytest.raises(KeyboardInterrupt):
            plot(tmp_path, target)
    assert target.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "run.png"]
    plot(tmp_path, target)
    assert target.read_bytes().startswith(b"\x89PNG")


def test_a_run_that_is_being_written_can_be_drawn(tmp_path: Path) -> None:
    write(tmp_path, FEW)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"stage": "mexma", "upd')
    plot(tmp_path, tmp_path / "run.svg")
    assert (tmp_path / "run.svg").stat().st_size > 10_000


def test_what_cannot_be_drawn_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileError, match=r"log\.jsonl does not exist: .* is not the folder of a run"):
        plot(tmp_path, tmp_path / "run.png")
    with pytest.raises(FileError, match=r"log\.jsonl does not exist: .* is not the folder of a run"):
        plot(tmp_path / "none", tmp_path / "none" / "run.png")  # not: mkdir -p none
    write(tmp_path, [])
    with pytest.raises(InputError, match=r"log\.jsonl has no lines yet: .*run\.log_every updates\. Wait for it"):
        plot(tmp_path, tmp_path / "run.png")
    write(tmp_path, FEW)
    with pytest.raises(InputError, match=r"run\.jpg ends in \.jpg, but a plot is \.png, \.svg or \.pdf\. Type: .*run\.png"):
        plot(tmp_path, tmp_path / "run.jpg")
    with pytest.raises(InputError, match="ends in nothing"):
        plot(tmp_path, tmp_path / "run")
    with pytest.raises(FileError, match=r"no/run\.png cannot be written: the folder"):
        plot(tmp_path, tmp_path / "no" / "run.png")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(MissingExtraError, match=r"matplotlib is not installed.*\n.*mexma-rt\[train\]"):
        plot(tmp_path, tmp_path / "run.png")
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_pyplot_is_left_alone(tmp_path: Path) -> None:
    """Its global state (back end, current figure, settings) is the caller's."""
    code = (
        "import sys; from pathlib import Path; import matplotlib; from mexma_train.plot import plot\n"
        "def settings():\n"
        "    return {n: matplotlib.rcParams[n] for n in matplotlib.rcParams if n != 'backend'}\n"  # to read it is to choose it
        "before = settings(); plot(Path(sys.argv[1]), Path(sys.argv[1], 'run.png'))\n"
        "assert 'matplotlib.pyplot' not in sys.modules; assert settings() == before"
    )
    subprocess.run([sys.executable, "-c", code, str(write(tmp_path, FEW))], check=True)
    assert (tmp_path / "run.png").exists()
