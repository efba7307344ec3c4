"""Model folders: how a name is resolved, what a manifest may say, and that no damaged byte passes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from mexma_rt import BundleError, InputError, load
from mexma_rt.bundle.manifest import MANIFEST, Manifest
from mexma_rt.bundle.opening import bundled_models, open_bundle

FILES = {
    "tokenizer.json": b'{"version": "1.0"}',
    "config.json": b"{}",
    "model.safetensors": b"weights" * 10,
    "onnx/model.onnx": b"fp32 graph" * 10,
    "onnx/model_int8.onnx": b"int8 graph" * 10,
    "1_Pooling/config.json": b'{"pooling_mode_cls_token": true}',
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the form of a bundle, whose files hold no model."""
    return make_bundle(tmp_path / "bundle")


def make_bundle(folder: Path, **changes: object) -> Path:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    manifest = {
        "format": "mexma-bundle",
        "format_version": 1,
        "name": "hand-made",
        "dimensions": 32,
        "max_length": 128,
        "max_length_limit": 512,
        "pooling": "cls",
        "default_precision": "int8",
        "source": {"name": "hand"},
        "graphs": {"fp32": "onnx/model.onnx", "int8": "onnx/model_int8.onnx"},
        "parity": {},
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)} for name, content in FILES.items()
        },
        **changes,
    }
    (folder / "mexma.json").write_text(json.dumps(manifest))
    return folder


def test_what_a_manifest_of_version_1_leaves_out(folder: Path) -> None:
    bundle = open_bundle(folder)
    assert (bundle.pooling, bundle.dense, bundle.normalize, bundle.prompts) == ("cls", (), True, {})
    assert (bundle.special_ids.bos, bundle.special_ids.pad, bundle.special_ids.eos) == (0, 1, 2)
    assert bundle.to_json()["format_version"] == 1
    assert not bundle.to_json().keys() & {"dense", "normalize", "prompts", "special_ids"}


def test_a_manifest_of_version_2_is_read_as_it_was_written(folder: Path) -> None:
    said = {
        "pooling": "mean",
        "normalize": False,
        "prompts": {"query": "query: "},
        "special_ids": {"bos": 101, "pad": 0, "eos": 102},
    }
    path = folder / "mexma.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | said | {"format_version": 2}))
    written = open_bundle(folder).to_json()
    assert {key: written[key] for key in said} == said and written["format_version"] == 2


def test_a_whole_bundle_opens(folder: Path) -> None:
    bundle = open_bundle(folder)
    assert (bundle.name, bundle.dimensions, bundle.max_length, bundle.max_length_limit) == ("hand-made", 32, 128, 512)
    assert bundle.graphs == {"fp32": "onnx/model.onnx", "int8": "onnx/model_int8.onnx"}
    assert open_bundle(str(folder)) == bundle


# --- damage -------------------------------------------------------------------------------------------------------------


def remove(path: Path) -> str:
    path.unlink()
    return r"is missing, but mexma\.json lists it"


def truncate(path: Path) -> str:
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    return f"has {len(content) - 1} bytes, but mexma.json says {len(content)}"


def change_one_byte(path: Path) -> str:
    content = path.read_bytes()
    changed = bytes([content[0] ^ 1]) + content[1:]
    path.write_bytes(changed)
    return f"has SHA-256 {hashlib.sha256(changed).hexdigest()}, but mexma.json says {hashlib.sha256(content).hexdigest()}"


@pytest.mark.parametrize("damage", [remove, truncate, change_one_byte])
@pytest.mark.parametrize("name", FILES)
def test_each_damaged_file_is_named_with_both_values_and_the_remedy(
    folder: Path, name: str, damage: Callable[[Path], str]
) -> None:
    message = damage(folder / name)
    with pytest.raises(BundleError, match=f"{re.escape(name)} {message}") as caught:
        open_bundle(folder)
    assert "export it again with mexma-export" in str(caught.value)
    assert "pip install --force-reinstall --no-deps mexma-rt" in str(caught.value)


@pytest.mark.parametrize("damage", [remove, truncate, change_one_byte])
def test_load_refuses_every_damaged_file_of_a_real_bundle(
    tiny_bundle: Path, tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    names = json.loads((tiny_bundle / "mexma.json").read_bytes())["files"]
    assert {"tokenizer.json", "onnx/model.onnx", "onnx/model_int8.onnx"} <= set(names)
    copy = shutil.copytree(tiny_bundle, tmp_path / "copy")
    for name in names:
        message = damage(copy / name)
        with pytest.raises(BundleError, match=f"{re.escape(name)} {message}"):
            load(copy)
        shutil.copy2(tiny_bundle / name, copy / name)
    assert load(copy).dimensions == 32


def test_a_folder_in_the_place_of_a_file(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    with pytest.raises(BundleError, match=r"config\.json is not a regular file"):
        open_bundle(folder)


# --- the manifest -------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_neither_bundle_nor_checkpoint(tmp_path: Path) -> None:
    message = (
        f"{tmp_path} is not a bundle: it has no mexma.json. Nor is it a checkpoint that could be converted: "
        "it has no readable config.json. "
        "To convert a checkpoint, type:\n    mexma-export CHECKPOINT NEW_FOLDER\nAccepted are a bundled name"
    )
    with pytest.raises(BundleError, match=re.escape(message)):
        open_bundle(tmp_path)


def test_a_checkpoint_says_how_to_make_a_bundle_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "xlm-roberta"}')
    message = (
        f"{tmp_path} is not a bundle: it has no mexma.json. It is an XLM-R checkpoint, whose PyTorch weights this runtime "
        "does not read. Convert it once. Type:\n    pip install 'mexma-rt[export]'\n"
        f"    mexma-export {tmp_path} {tmp_path.name}-bundle\n"
        f"and load the folder that it writes:\n    mexma_rt.load('{tmp_path.name}-bundle')"
    )
    with pytest.raises(BundleError, match=re.escape(message)):
        load(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match=re.escape(f"    mexma-export . {tmp_path.name}-bundle\n")):
        load(".")


def test_a_checkpoint_of_another_architecture(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    message = "Its config.json says model_type 'bert', but mexma-export converts only 'xlm-roberta' checkpoints"
    with pytest.raises(BundleError, match=message):
        open_bundle(tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"format": ', b"\xff\xfe\x00", b"[" * 100_000])
def test_a_manifest_that_is_no_json(folder: Path, content: bytes) -> None:
    (folder / "mexma.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"mexma\.json cannot be read as JSON"):
        open_bundle(folder)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": "other"}'])
def test_a_manifest_of_another_format(folder: Path, content: str) -> None:
    (folder / "mexma.json").write_text(content)
    with pytest.raises(BundleError, match=r"the format is .*, not 'mexma-bundle': this is not a mexma-rt bundle"):
        open_bundle(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format_version": 3},
            "format version 3, but this mexma-rt reads up to 2. Type:\n    pip install --upgrade mexma-rt",
        ),
        ({"format_version": 0}, "format_version is 0, not 1 or more"),
        ({"format_version": True}, "format_version is True, not of type int"),
        ({"name": 3}, "name is 3, not of type str"),
        ({"dimensions": "32"}, "dimensions is '32', not of type int"),
        ({"dimensions": 0}, "dimensions is 0, not 1 or more"),
        ({"max_length": 600}, "max_length 600 is not between 3 and max_length_limit 512"),
        ({"max_length": 2}, "max_length 2 is not between 3 and max_length_limit 512"),
        ({"max_length_limit": None}, "max_length_limit is None, not of type int"),
        ({"pooling": "max"}, "pooling is 'max', but only cls and mean are known"),
        ({"dense": ["2_Dense"]}, "2_Dense/config.json is needed but not listed under files"),
        ({"dense": ["../2_Dense"]}, "the path '../2_Dense' does not stay inside the bundle folder"),
        ({"normalize": "no"}, "normalize is 'no', not of type bool"),
        ({"prompts": ["query"]}, "prompts is ['query'], not a mapping of names to texts"),
        ({"special_ids": {"bos": 101, "cls": 101}}, "special_ids is {'bos': 101, 'cls': 101}, not ids of bos, eos, pad"),
        ({"special_ids": {"pad": -1}}, "special_ids is {'pad': -1}, not ids of bos, eos, pad"),
        ({"default_precision": "fp16"}, "default_precision 'fp16' has no graph (graphs: fp32, int8)"),
        ({"graphs": {}}, "default_precision 'int8' has no graph (graphs: none)"),
        ({"graphs": {"int8": "onnx/other.onnx"}}, "onnx/other.onnx is needed but not listed under files"),
        ({"files": {}}, "tokenizer.json is needed but not listed under files"),
        ({"files": {"a": {"sha256": "xyz", "bytes": 1}}}, "the entry of a under files is {'sha256': 'xyz', 'bytes': 1}"),
        ({"files": {"a": {"sha256": "0" * 64}}}, "not a sha256 and a number of bytes"),
        ({"files": {"a": None}}, "the entry of a under files is None"),
        ({"parity": []}, "parity is [], not of type dict"),
        ({"source": "x"}, "source is 'x', not of type dict"),
        ({"languages": "deu"}, "languages is 'deu', not a list of language codes"),
        ({"languages": ["deu", 3]}, "languages is ['deu', 3], not a list of language codes"),
    ],
)
def test_each_field_is_checked(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=re.escape(message)):
        open_bundle(make_bundle(tmp_path, **changes))


@pytest.mark.parametrize(
    "path",
    ["../outside.onnx", "/etc/passwd", "onnx/../../outside", "onnx\\model.onnx", "C:/model", "./a", "a//b", "", "a\0b"],
)
@pytest.mark.parametrize("where", ["files", "graphs"])
def test_paths_that_leave_the_folder_are_refused(tmp_path: Path, path: str, where: str) -> None:
    entry = {"sha256": "0" * 64, "bytes": 0} if where == "files" else path
    changes = {where: {path if where == "files" else "int8": entry}}
    with pytest.raises(BundleError, match=re.escape(f"the path {path!r} does not stay inside the bundle folder")):
        open_bundle(make_bundle(tmp_path, **changes))


# --- names --------------------------------------------------------------------------------------------------------------


def test_bundled_names_come_first_and_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bundle(tmp_path / "models" / "mini-test")
    monkeypatch.setattr("mexma_rt.bundle.opening.MODELS", tmp_path / "models")
    assert open_bundle("mini-test").folder == tmp_path / "models" / "mini-test"
    message = (
        "There is no model 'mini-tset'. Accepted are a bundled name (mini-test), the path of a bundle folder "
        '(made by mexma-export), or a hub name of the form "org/name".'
    )
    with pytest.raises(BundleError, match=re.escape(message)):
        open_bundle("mini-tset")


@pytest.mark.parametrize("model", ["./nothing", "a/b/c", "/nothing/here", "org/na me", "org/nàme"])
def test_what_looks_like_no_hub_name_never_asks_the_hub(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("the hub was asked"))
    with pytest.raises(BundleError, match=re.escape(f"There is no model {model!r}. Accepted are")):
        open_bundle(model)


def test_a_model_that_is_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="model must be a name or a path, not NoneType"):
        open_bundle(None)  # type: ignore[arg-type]


def test_revision_is_for_hub_names_only(folder: Path) -> None:
    with pytest.raises(InputError, match=r"revision='main' is for hub names \(org/name\)"):
        open_bundle(folder, revision="main")


# --- the hub, played by a folder ----------------------------------------------------------------------------------------


Hub = tuple[Path, Path, list[dict[str, Any]]]  # the remote folder, the cache, the calls


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """snapshot_download that copies the files matching the patterns from a folder; the list of its calls."""
    remote, cache, calls = make_bundle(tmp_path / "remote"), tmp_path / "cache", list[dict[str, Any]]()

    def snapshot_download(repo_id: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool) -> str:
        calls.append({"repo_id": repo_id, "revision": revision, "offline": local_files_only})
        present = [path.relative_to(remote).as_posix() for path in remote.rglob("*") if path.is_file()]
        for name in huggingface_hub.utils.filter_repo_objects(present, allow_patterns=allow_patterns):
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(remote / name, cache / name)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return remote, cache, calls


def test_a_hub_model_is_fetched_without_the_source_weights_and_verified(hub: Hub) -> None:
    remote, cache, calls = hub
    assert open_bundle("org/name", revision="v1").folder == cache
    assert calls == [{"repo_id": "org/name", "revision": "v1", "offline": False}] * 2
    fetched = {path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file()}
    assert fetched == {"mexma.json", *FILES} - {"model.safetensors"}

    change_one_byte(remote / "onnx/model.onnx")
    with pytest.raises(BundleError, match=r"model\.onnx has SHA-256"):
        open_bundle("org/name")


def test_offline_reaches_the_hub_client(hub: Hub) -> None:
    _, _, calls = hub
    open_bundle("org/name", offline=True)
    assert [call["offline"] for call in calls] == [True, True]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            b'{"model_type": "xlm-roberta"}',
            "It is an XLM-R checkpoint, whose PyTorch weights this runtime does not read. Convert it once. Type:\n"
            "    pip install 'mexma-rt[export]'\n    mexma-export org/name name-bundle --revision v1\n",
        ),
        (b'{"model_type": "bert"}', "Its config.json says model_type 'bert', but mexma-export converts only 'xlm-roberta'"),
        (b"{}", "Its config.json says model_type ''"),
        (None, "Nor is it a checkpoint that could be converted: it has no readable config.json."),
    ],
)
def test_a_hub_repository_that_is_no_bundle_is_told_apart_by_a_small_file(hub: Hub, config: bytes | None, message: str) -> None:
    remote, cache, calls = hub
    (remote / "mexma.json").unlink()
    (remote / "config.json").unlink()
    if config:
        (remote / "config.json").write_bytes(config)
    with pytest.raises(BundleError, match=re.escape(f"org/name is not a bundle: it has no mexma.json. {message}")):
        open_bundle("org/name", revision="v1")
    assert len(calls) == 1
    assert {path.name for path in cache.rglob("*") if path.is_file()} == ({"config.json"} if config else set())


@pytest.mark.parametrize(
    ("offline", "state"),
    [(False, "could not be downloaded from the hub"), (True, "is not in the local hub cache (offline=True)")],
)
def test_no_network_says_what_to_type(monkeypatch: pytest.MonkeyPatch, offline: bool, state: str) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    message = (
        f"There is no folder 'org/name' on this machine, and the model of that name {state}: ConnectionError: "
        "no route to host\nCheck the name. Without a network, download it on a machine that has one, with\n"
        "    hf download org/name\nor copy the bundle folder here and pass its path."
    )
    with pytest.raises(BundleError, match=re.escape(message)):
        open_bundle("org/name", offline=offline)


def test_the_real_hub_client_offline_with_an_empty_cache(tmp_path: Path) -> None:
    code = "import mexma_rt\ntry: mexma_rt.load('org/name', offline=True)\nexcept mexma_rt.BundleError as error: print(error)"
    environment = {**os.environ, "HF_HOME": str(tmp_path)}  # read by the hub client when it is imported
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "is not in the local hub cache (offline=True): LocalEntryNotFoundError" in result.stdout


def test_a_manifest_is_written_as_it_was_read() -> None:
    """The bundled one was written before Manifest.to_json was: every key, in its order, and every value."""
    path = next(iter(bundled_models().values())) / MANIFEST
    content = json.loads(path.read_text(encoding="utf-8"))
    manifest = Manifest.from_json(content, path)
    assert json.dumps(manifest.to_json()) == json.dumps(content)
    assert Manifest.from_json(manifest.to_json(), path) == manifest


def test_what_a_manifest_does_not_know_is_not_written() -> None:
    path = next(iter(bundled_models().values())) / MANIFEST
    content = json.loads(path.read_text(encoding="utf-8"))
    earlier = {key: value for key, value in content.items() if key not in ("golden", "ranges", "created")}
    manifest = Manifest.from_json(earlier, path)
    assert manifest.golden is None and manifest.ranges is None
    assert manifest.to_json() == earlier
