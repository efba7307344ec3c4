"""Bad input to the command: one clear error that says what to do, the right exit code, and nothing left behind.

What load_checkpoint says in detail is in test_checkpoint.py; here the whole command runs.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("torch", reason="checkpoints are loaded with torch (pip: mexma-rt[export])")

from mexma_export.cli import main
from mexma_export.folder import new_folder
from mexma_rt.errors import FileError


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def modernbert(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "modernbert", "architectures": ["ModernBertModel"], "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


class Bomb:
    """Unpickling it writes a file beside it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.target,)


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(folder / "exploded")))


def cut_weights(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def weights_of_nothing(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def header_beyond_the_file(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + weights[8:])


def other_tokenizer(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 250002}), encoding="utf-8")


DAMAGED = "The file is damaged or was not copied whole. Copy the checkpoint again"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without_config, ["config.json is missing, so this is not a checkpoint folder", "mexma-train writes them"]),
        (modernbert, ["model_type is 'modernbert': rotary positions and pre-norm", "Supported are the encoders"]),
        (pickle_only, ["only pickled weights (pytorch_model.bin)", "convert it once with safetensors.torch.save_file"]),
        (cut_weights, ["the weights do not load", DAMAGED]),
        (weights_of_nothing, ["the weights do not load", DAMAGED]),
        (header_beyond_the_file, ["the weights do not load", DAMAGED]),
        (other_tokenizer, ["tokenizer.json has 322 pieces, but config.json says vocab_size 250002", "Copy the tokenizer.json"]),
    ],
)
def test_a_bad_checkpoint_is_one_error_and_leaves_nothing(
    spoil: Callable[[Path], None], words: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(tiny_checkpoint, tmp_path / "source"))
    spoil(source)
    result = CliRunner().invoke(main, [str(source), str(tmp_path / "bundle")])
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)  # not a traceback
    assert "Error: " in result.stderr and all(word in result.stderr for word in words), result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert not (source / "exploded").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="file names there are Unicode")
def test_a_name_of_other_bytes_than_utf8_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """transformers and onnxruntime open no files below it; what was said was that the tokenizer is damaged."""
    source = Path(shutil.copytree(tiny_checkpoint, tmp_path / os.fsdecode(b"caf\xe9")))
    for words in ([source, tmp_path / "bundle"], [tiny_checkpoint, tmp_path / os.fsdecode(b"n\xe9")]):
        result = CliRunner().invoke(main, [*map(str, words), "--precision", "fp32", "--json"])
        assert result.exit_code in (1, 2) and "\\xe9 is not valid UTF-8, and onnxruntime, tokenizers" in result.stderr
        json.loads(result.stdout.encode())
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-length", "513"], ["max length 513 is outside 3 to 512", "Type --max-length 512 or less"]),
        (
            ["--precision", "int4"],
            ["Unknown precision 'int4'", "choose from fp32, fused, int8, mixed, w8, w4, fp16", "Type --precision fp32,int8"],
        ),
    ],
)
def test_a_bad_argument_is_one_error_and_leaves_nothing(
    arguments: list[str], words: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    result = CliRunner().invoke(main, [str(tiny_checkpoint), str(tmp_path / "bundle"), *arguments])
    assert result.exit_code == 2, result.output
    assert all(word in result.stderr for word in words), result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_read_only_target_is_refused_before_any_work(
    number: int, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: Path, *arguments: object, **keywords: object) -> None:
        raise OSError(number, os.strerror(number), str(self))

    def work(*arguments: object, **keywords: object) -> None:
        raise AssertionError("the checkpoint was loaded")

    monkeypatch.setattr("mexma_export.checkpoint.load_checkpoint", work)
    monkeypatch.setattr(Path, "mkdir", denied)
    result = CliRunner().invoke(main, [str(tiny_checkpoint), str(tmp_path / "bundle")])
    assert result.exit_code == 1, result.output
    assert f"{tmp_path}: cannot write there ({os.strerror(number)}). Choose another place." in result.stderr


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that this process cannot write to: root takes another user's rights for the test."""
    with tempfile.TemporaryDirectory() as name:  # not tmp_path, whose parents another user cannot enter
        folder = Path(name)
        folder.chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)  # nobody
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)


@pytest.mark.skipif(os.name != "posix", reason="folder permissions of this kind are POSIX's")
def test_a_folder_without_write_permission(read_only: Path) -> None:
    message = r"cannot write there \(Permission denied\)\. Choose another place"
    with pytest.raises(FileError, match=message), new_folder(read_only / "bundle"):
        raise AssertionError("the work began")
    assert list(read_only.iterdir()) == []
