"""An encoder that goes to other processes: pickled, copied, forked, and opened again from the same files only."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

import mexma_rt
from mexma_rt.backends import Backend
from mexma_rt.embedding import loading, processes

TEXTS = ["Hello world", "Bonjour le monde", "", "one two three four five six seven eight nine ten eleven twelve"]
SETTINGS: dict[str, Any] = {"device": "cpu", "precision": "fp32", "max_length": 8, "threads": 1, "deterministic": True}
PATIENCE = 120  # seconds, after which a pool counts as hung


@pytest.fixture(scope="module")
def encoder(tiny_bundle: Path) -> mexma_rt.Encoder:
    return mexma_rt.load(tiny_bundle, **SETTINGS)


@pytest.fixture
def as_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is open in this process."""
    monkeypatch.setattr(processes, "_live", type(processes._live)())
    monkeypatch.setattr(processes, "_kept", type(processes._kept)(maxlen=processes.KEPT))


def arrived(encoder: mexma_rt.Encoder) -> mexma_rt.Encoder:
    """As it comes out of the pickle in a process where it is not open."""
    content = pickle.dumps(encoder)
    processes._live.clear()
    return pickle.loads(content)


@pytest.mark.filterwarnings("ignore::mexma_rt.TruncationWarning")
def test_a_spawned_pool_gives_the_same_bits(encoder: mexma_rt.Encoder) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        parts = pool.map_async(encoder.embed, [[text] for text in TEXTS], chunksize=1).get(PATIENCE)
        report = pool.apply_async(encoder.embed_report, [TEXTS]).get(PATIENCE).report
    np.testing.assert_array_equal(np.concatenate(parts), encoder.embed(TEXTS))
    names = ("model", "max_length", "backend", "device", "precision", "deterministic", "truncated", "truncated_lengths")
    here = encoder.embed_report(TEXTS).report
    assert here.truncated == (1, 3)
    assert {name: getattr(report, name) for name in names} == {name: getattr(here, name) for name in names}


def test_other_files_are_an_error_of_the_task_and_not_a_pool_that_hangs(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_bundle, folder)
    encoder = mexma_rt.load(folder)
    shutil.copy(folder / "parity.json", folder / "more.json")
    manifest = json.loads((folder / "mexma.json").read_text())
    manifest["files"]["more.json"] = manifest["files"]["parity.json"]
    (folder / "mexma.json").write_text(json.dumps(manifest))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        with pytest.raises(mexma_rt.BundleError, match=r"in this process .* differs from the one"):
            pool.apply_async(encoder.embed, [["a"]]).get(PATIENCE)
        assert pool.apply_async(len, ["abc"]).get(PATIENCE) == 3
        shutil.rmtree(folder)
        with pytest.raises(mexma_rt.BundleError, match="There is no model"):
            pool.apply_async(encoder.embed, [["a"]]).get(PATIENCE)


@pytest.fixture(scope="module")
def prompted_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("prompted") / "model"))
    write_prompts(folder, query="query: ", passage="passage: ")
    return folder


def write_prompts(folder: Path, **prompts: str) -> None:
    manifest = json.loads((folder / "mexma.json").read_text()) | {"prompts": prompts}
    (folder / "mexma.json").write_text(json.dumps(manifest))


def test_an_encoder_with_a_prompt_goes_with_it(prompted_bundle: Path) -> None:
    encoder = mexma_rt.load(prompted_bundle, device="cpu", precision="fp32", threads=1)
    prompted = encoder.with_prompt("query")
    vectors = encoder.embed([f"query: {text}" for text in TEXTS])
    for same in (copy.copy(prompted), copy.deepcopy(prompted), pickle.loads(pickle.dumps(prompted))):
        assert same.encoder is encoder and same.prompt == "query"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_allclose(pool.apply_async(prompted.embed, [TEXTS]).get(PATIENCE), vectors, atol=1e-6)
        report = pool.apply_async(prompted.embed_report, [TEXTS]).get(PATIENCE)
        np.testing.assert_allclose(report.vectors, vectors, atol=1e-6)
        pairs = pool.apply_async(mexma_rt.score_pairs, [TEXTS, TEXTS], {"encoder": prompted, "k": 1}).get(PATIENCE)
    np.testing.assert_allclose(pairs, mexma_rt.score_pairs(TEXTS, TEXTS, encoder=prompted, k=1), atol=1e-5)


@pytest.mark.usefixtures("as_another_process")
def test_other_prompts_are_other_vectors(prompted_bundle: Path, tmp_path: Path) -> None:
    """They stand in the manifest, which the hash of the files does not cover."""
    folder = Path(shutil.copytree(prompted_bundle, tmp_path / "model"))
    there = arrived(mexma_rt.load(folder))
    write_prompts(folder, query="search: ", passage="passage: ")
    with pytest.raises(
        mexma_rt.BundleError, match=r"has the prompts .*'search: '.* comes from has .*'query: '.*same mexma\.json"
    ):
        there.embed(["a"], prompt="query")


def loky(encoder: mexma_rt.Encoder) -> list[np.ndarray]:
    joblib = pytest.importorskip("joblib", reason="one of the ways to other processes")
    return list(joblib.Parallel(n_jobs=2)(joblib.delayed(encoder.embed)([text]) for text in TEXTS))


def workers(encoder: mexma_rt.Encoder) -> list[np.ndarray]:
    data = pytest.importorskip("torch.utils.data", reason="one of the ways to other processes")
    return list(data.DataLoader(TEXTS, batch_size=1, num_workers=1, multiprocessing_context="spawn", collate_fn=encoder.embed))


@pytest.mark.filterwarnings("ignore::mexma_rt.TruncationWarning")
@pytest.mark.parametrize("way", [loky, workers])
def test_other_ways_to_other_processes(way: Callable[[mexma_rt.Encoder], list[np.ndarray]], encoder: mexma_rt.Encoder) -> None:
    np.testing.assert_array_equal(np.concatenate(way(encoder)), encoder.embed(TEXTS))


def test_in_its_own_process_it_stays_itself(encoder: mexma_rt.Encoder) -> None:
    assert copy.copy(encoder) is encoder
    assert copy.deepcopy({"a": [encoder]})["a"][0] is encoder
    assert pickle.loads(pickle.dumps(encoder)) is encoder
    assert replace(encoder, max_length=9).max_length == 9


@pytest.mark.usefixtures("as_another_process")
def test_it_is_opened_at_first_use_once_for_many_tasks(encoder: mexma_rt.Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    real = loading.load

    def counted(model: str, **options: Any) -> mexma_rt.Encoder:
        loads.append(model)
        return real(model, **options)

    monkeypatch.setattr(loading, "load", counted)
    content = pickle.dumps(encoder)
    processes._live.clear()
    waiting = [pickle.loads(content) for _ in range(3)]
    assert repr(waiting[0]) == "<Encoder tiny: of another process, not opened in this one yet>"
    assert (waiting[0].max_length, waiting[0].max_seq_length, waiting[0].deterministic) == (8, 8, True)
    assert pickle.dumps(waiting[0]) == content and loads == []
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        waiting[0].nothing  # noqa: B018
    vectors = encoder.embed(["a"])
    for each in waiting:
        np.testing.assert_array_equal(each.embed(["a"]), vectors)
    assert repr(waiting[0]) == repr(encoder)
    del waiting, each
    np.testing.assert_array_equal(pickle.loads(content).embed(["a"]), vectors)
    assert len(loads) == 1


@pytest.mark.usefixtures("as_another_process")
def test_what_auto_chose_is_named_and_a_path_holds_in_another_folder(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_bundle.parent)
    here = mexma_rt.load(tiny_bundle.name)
    monkeypatch.chdir(tmp_path)
    there = arrived(here)
    assert there.dimensions == 32
    assert "auto" in here.backend.reason and "precision='int8' was named" in there.backend.reason
    assert there.bundle.folder == tiny_bundle


@pytest.mark.parametrize(("cached", "offline"), [(True, True), (False, False)])
def test_a_hub_model_is_pinned_to_its_commit(
    encoder: mexma_rt.Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool, offline: bool
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(loading, "load", lambda model, **options: asked.update(options, model=model) or encoder)
    source = processes.Source.of("org/name", offline=False, threads=3)
    bundle = replace(encoder.bundle, revision="c" * 40, folder=tmp_path if cached else tmp_path / "none")
    processes.Pickled.of(replace(encoder, source=source, bundle=bundle)).open()
    chosen = {"backend": "onnxruntime", "revision": "c" * 40, "offline": offline}
    assert asked == SETTINGS | chosen | {"model": "org/name", "threads": 3}


def test_a_bundled_model_goes_by_its_name() -> None:
    assert processes.Source.of("mexma-small", offline=False, threads=None).model == "mexma-small"


def test_what_load_did_not_make_says_so(encoder: mexma_rt.Encoder) -> None:
    with pytest.raises(mexma_rt.InputError, match=r"not made by mexma_rt\.load"):
        pickle.dumps(replace(encoder, source=None, backend=cast(Backend, SimpleNamespace())))


def test_a_service_stays_where_it_is(encoder: mexma_rt.Encoder) -> None:
    with encoder.service() as service:
        with pytest.raises(mexma_rt.ServiceError, match=r"Send the encoder \(service.encoder\)"):
            pickle.dumps(service)
        np.testing.assert_array_equal(service.embed(["a"]), encoder.embed(["a"]))


FORKED = """
import multiprocessing, sys, warnings
import numpy as np
import mexma_rt
from mexma_rt.backends import onnxruntime
onnxruntime.NARROW = int(sys.argv[2])  # 0: threads of the engine, too, which do not live on in a forked process
encoder = mexma_rt.load(sys.argv[1], precision="fp32", threads=2)
texts = [f"sentence number {i} " + "of many " * (i % 9) for i in range(200)]
vectors = encoder.embed(texts)
def of_the_parent(texts):
    return encoder.embed(texts)
with multiprocessing.get_context("fork").Pool(2) as pool:
    for work in (of_the_parent, encoder.embed):
        for got in pool.map_async(work, [texts] * 3, chunksize=1).get(60):
            np.testing.assert_array_equal(got, vectors)
print("same")
"""


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="needs a safe fork")
@pytest.mark.parametrize("narrow", [0, 384])
def test_a_fork_after_loading_gives_the_same_bits(tiny_bundle: Path, narrow: int) -> None:
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED, str(tiny_bundle), str(narrow)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == "same\n", done.stderr
