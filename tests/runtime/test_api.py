"""The small promise: the public names, their signatures, one version, and the bundled default model."""

from __future__ import annotations

import dataclasses
import inspect
import pydoc
import re
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import mexma_rt
from mexma_rt.embedding import DEFAULT_MODEL, EmbedSettings
from mexma_rt.embedding import loading as pipeline

PROMISE = [
    *(
        "BackendError",
        "Bead",
        "BundleError",
        "Calibration",
        "EmbedReport",
        "Embedded",
        "Encoder",
        "FileError",
        "FileReport",
        "InputError",
    ),
    *("MexmaError", "MissingExtraError", "Pair", "Service", "ServiceBusyError", "ServiceError"),
    *(
        "ThresholdWarning",
        "TokenVectors",
        "TruncationWarning",
        "WordAlignment",
        "XsimResult",
        "__version__",
        "align_documents",
        "align_words",
        "calibrate",
    ),
    *("embed", "embed_file", "knn", "load", "mine", "score_pairs", "xsim"),
]


def test_the_promise_is_frozen() -> None:
    assert mexma_rt.__all__ == PROMISE


@pytest.mark.parametrize("name", PROMISE)
def test_every_promised_name_is_there_and_documented(name: str) -> None:
    assert name in dir(mexma_rt)
    value = getattr(mexma_rt, name)
    assert name == "__version__" or len(inspect.getdoc(value) or "") > 30


def test_a_star_import_and_help_work() -> None:
    namespace: dict[str, object] = {}
    exec("from mexma_rt import *", namespace)
    assert set(PROMISE) <= set(namespace)
    assert "Embed n sentences with the bundled default model" in pydoc.render_doc(mexma_rt.embed, renderer=pydoc.plaintext)  # type: ignore[attr-defined]


def test_other_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="module 'mexma_rt' has no attribute 'embde'"):
        mexma_rt.embde  # noqa: B018


def test_the_version_is_that_of_the_package() -> None:
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall('^version = "(.*)"$', pyproject, re.MULTILINE) == [mexma_rt.__version__]


def test_the_functions_and_the_methods_have_the_same_keywords() -> None:
    def parameters(function: Callable[..., object], skip: tuple[str, ...] = ()) -> list[tuple[str, object, object]]:
        return [
            (name, parameter.default, parameter.kind)
            for name, parameter in inspect.signature(function).parameters.items()
            if name not in skip
        ]

    for method in (mexma_rt.Encoder.embed, mexma_rt.Encoder.embed_report):
        assert parameters(mexma_rt.embed, skip=("model",)) == parameters(method, skip=("self",))
    file = parameters(mexma_rt.embed_file, skip=("model",))
    assert file == parameters(mexma_rt.Encoder.embed_file, skip=("self",))
    settings = {one.name: one.default for one in dataclasses.fields(EmbedSettings)}
    for function in (mexma_rt.embed, mexma_rt.embed_file, mexma_rt.Encoder.aembed):
        assert settings.items() <= {name: default for name, default, _ in parameters(function)}.items()
    for opening in (mexma_rt.load, mexma_rt.embed, mexma_rt.embed_file):
        assert inspect.signature(opening).parameters["model"].default == DEFAULT_MODEL


def test_every_error_is_a_mexma_error_and_a_builtin() -> None:
    for name, builtin in {
        "InputError": ValueError,
        "FileError": OSError,
        "BundleError": ValueError,
        "BackendError": RuntimeError,
        "MissingExtraError": ImportError,
        "ServiceBusyError": TimeoutError,
        "ServiceError": RuntimeError,
    }.items():
        assert issubclass(getattr(mexma_rt, name), (mexma_rt.MexmaError, builtin))
        assert issubclass(getattr(mexma_rt, name), builtin)
    assert issubclass(mexma_rt.TruncationWarning, UserWarning)


def test_embed_loads_the_default_model_once_for_all_threads(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads, results = [], []
    real = pipeline.load

    def slow_load(model: str) -> mexma_rt.Encoder:
        loads.append(model)
        return real(tiny_bundle)

    monkeypatch.setattr(pipeline, "_shared", {})
    monkeypatch.setattr(pipeline, "load", slow_load)
    threads = [threading.Thread(target=lambda: results.append(mexma_rt.embed(["Hello"]))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == ["mexma-small"] and len(results) == 8
    for result in results:
        np.testing.assert_array_equal(result, results[0])


def test_embed_takes_another_model_and_keeps_it(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_shared", {})
    expected = mexma_rt.load(tiny_bundle).embed(["Hello"])
    for model in (tiny_bundle, str(tiny_bundle)):
        np.testing.assert_array_equal(mexma_rt.embed(["Hello"], model=model), expected)
    assert list(pipeline._shared) == [str(tiny_bundle)]
    with pytest.raises(mexma_rt.BundleError, match="mexma-export facebook/MEXMA MEXMA-bundle"):
        mexma_rt.embed(["Hello"], model="facebook/MEXMA")


def test_embed_warns_at_the_line_of_the_caller(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_shared", {"mexma-small": pipeline.load(tiny_bundle, max_length=3)})
    with pytest.warns(mexma_rt.TruncationWarning, match="1 of 1 texts were longer than max_length=3") as caught:
        mexma_rt.embed(["Hello world, how are you?"])
    assert caught[0].filename == __file__


# --- the bundled default model: these need the folder mexma_rt/models/mexma-small ----------------------------------------


def test_the_bundled_model_embeds_translations_close_to_each_other() -> None:
    vectors = mexma_rt.embed(["The cat is sleeping.", "Le chat dort.", "Wo ist der Bahnhof?", "Where is the station?"])
    assert vectors.shape == (4, mexma_rt.load().dimensions) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    similar = vectors @ vectors.T
    assert min(similar[0, 1], similar[2, 3]) > similar[:2, 2:].max()


def test_the_bundled_model_takes_at_most_45_mb() -> None:
    files = [path for path in mexma_rt.load().bundle.folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 45_000_000
