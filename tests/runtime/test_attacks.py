"""What somebody else can put into a bundle, an input, a folder or a hub: nothing is executed, followed, filled up or sent."""

from __future__ import annotations

import ast
import gzip
import hashlib
import http.server
import json
import lzma
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mexma_rt
from mexma_rt import BackendError, BundleError, FileError, InputError, MexmaError
from mexma_rt.files.lines import LONGEST_LINE

ROOT = Path(mexma_rt.__file__).parents[1]
MIB = 2**20


def run(code: str, *arguments: object, **environment: str) -> str:
    """The output of a Python process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def put(bundle: Path, name: str, content: bytes) -> None:
    """Replace a file of a bundle, and its hash in the manifest: whoever made it meant it."""
    (bundle / name).write_bytes(content)
    manifest = json.loads((bundle / "mexma.json").read_bytes())
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (bundle / "mexma.json").write_text(json.dumps(manifest))


# --- code in data -------------------------------------------------------------------------------------------------------


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["mexma.json", "tokenizer.json", "onnx/model.onnx"])
def test_a_pickle_in_a_bundle_is_not_opened(bundle: Path, tmp_path: Path, name: str) -> None:
    mark = tmp_path / "executed"
    content = pickle.dumps(Bomb(mark))
    if name == "mexma.json":
        (bundle / name).write_bytes(content)
    else:
        put(bundle, name, content)
    with pytest.raises((BundleError, BackendError)):
        mexma_rt.load(bundle, precision="fp32", device="cpu")
    assert not mark.exists()
    pickle.loads(content)
    assert mark.exists()  # it would have


def test_a_pickle_as_vectors_is_not_opened(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    np.save(tmp_path / "v.npy", np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    with pytest.raises(MexmaError):
        mexma_rt.xsim(np.frombuffer((tmp_path / "v.npy").read_bytes(), np.uint8), np.ones((2, 2)))
    with pytest.raises(MexmaError, match="object"):
        mexma_rt.xsim(np.array([[Bomb(mark)]], dtype=object), np.ones((1, 1)))
    assert not mark.exists()


def test_nothing_in_the_runtime_can_execute_data() -> None:
    forbidden = {"pickle", "cPickle", "dill", "marshal", "shelve", "joblib", "eval", "exec", "compile", "__import__", "system"}
    for file in (ROOT / "mexma_rt").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = {alias.name for alias in node.names} if isinstance(node, (ast.Import, ast.ImportFrom)) else set()
            if isinstance(node, ast.Call):
                target = node.func
                method = isinstance(target, ast.Attribute) and ast.unparse(target.value) != "os"  # re.compile and the like
                names = set() if method else {ast.unparse(target).removeprefix("os.")}
                for keyword in node.keywords:
                    off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                    assert off or keyword.arg not in ("allow_pickle", "shell", "trust_remote_code"), f"{file}:{node.lineno}"
                if ast.unparse(target) in ("np.load", "numpy.load"):
                    pass  # refuses pickles unless allow_pickle says otherwise
            assert not names & forbidden, f"{file}: {names & forbidden}"


# --- paths --------------------------------------------------------------------------------------------------------------


def graph_with_weights_in(location: str) -> bytes:
    onnx = pytest.importorskip("onnx", reason="part of mexma-rt[export]")
    helper = onnx.helper
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[32], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": "0", "length": "128"}.items():
        tensor.external_data.add(key=key, value=value)
    inputs = [helper.make_tensor_value_info(name, 7, ["B", "L"]) for name in ("input_ids", "attention_mask")]
    shape = helper.make_tensor("shape", 7, [2], [1, 32])
    nodes = [helper.make_node("Reshape", ["w", "shape"], ["sentence_embedding"])]
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_tensor_value_info("sentence_embedding", 1, [1, 32])], [tensor, shape]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@pytest.mark.parametrize("location", ["../../secret", "/etc/passwd", "unlisted.bin", "link.bin", "../tokenizer.json/../x", ""])
def test_external_data_that_the_manifest_does_not_list_is_refused(bundle: Path, location: str) -> None:
    (bundle.parent / "secret").write_bytes(bytes(128))
    (bundle / "onnx/unlisted.bin").write_bytes(bytes(128))
    (bundle / "onnx/link.bin").symlink_to(bundle.parent / "secret")
    put(bundle, "onnx/model.onnx", graph_with_weights_in(location))
    with pytest.raises(BundleError, match=r"keeps weights in .* which the manifest does not list. It could hold anything"):
        mexma_rt.load(bundle, precision="fp32", device="cpu")


def test_external_data_hidden_in_a_subgraph_is_found(bundle: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="part of mexma-rt[export]")
    inner = onnx.load_model_from_string(graph_with_weights_in("../../secret")).graph
    del inner.input[:]
    outer = onnx.load_model_from_string(graph_with_weights_in("x")).graph
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    graph = onnx.helper.make_graph([node], "g", list(outer.input), list(outer.output))
    put(bundle, "onnx/model.onnx", onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(BundleError, match=r"keeps weights in '\.\./\.\./secret'"):
        mexma_rt.load(bundle, precision="fp32", device="cpu")


def test_external_data_that_is_listed_is_read(bundle: Path) -> None:
    put(bundle, "onnx/weights.bin", np.arange(32, dtype=np.float32).tobytes())
    put(bundle, "onnx/model.onnx", graph_with_weights_in("weights.bin"))
    vector = mexma_rt.load(bundle, precision="fp32", device="cpu").embed(["a"], normalize=False)
    np.testing.assert_array_equal(vector[0], np.arange(32))


@pytest.mark.parametrize(
    "content", [b"", b"no protobuf", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\x3a\x05\x0a\x50"]
)
def test_a_graph_that_is_no_onnx(bundle: Path, content: bytes) -> None:
    put(bundle, "onnx/model.onnx", content)
    with pytest.raises((BundleError, BackendError), match=r"model\.onnx"):
        mexma_rt.load(bundle, precision="fp32", device="cpu")


def test_links_are_followed_only_to_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    """As in hub caches, where all files are links."""
    tokenizer = bundle / "tokenizer.json"
    shutil.move(tokenizer, tmp_path / "blob")
    tokenizer.symlink_to(tmp_path / "blob")
    mexma_rt.load(bundle)
    tokenizer.unlink()
    tokenizer.symlink_to("/etc/passwd")
    with pytest.raises(BundleError, match=r"tokenizer\.json (has|is missing)"):
        mexma_rt.load(bundle)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_what_never_ends_is_not_read(bundle: Path, kind: str) -> None:
    put(bundle, "config.json", b"")  # the size that a device says it has
    (bundle / "config.json").unlink()
    os.mkfifo(bundle / "config.json") if kind == "fifo" else (bundle / "config.json").symlink_to("/dev/zero")
    with pytest.raises(BundleError, match=r"config\.json is not a regular file"):
        mexma_rt.load(bundle)


def test_links_put_where_we_will_write_are_not_followed(bundle: Path, tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "shared"
    victim.write_text("precious")
    folder.mkdir()
    from mexma_rt.files.atomic import atomic_write

    (folder / f".out.{os.getpid()}.tmp").symlink_to(victim)
    with atomic_write(folder / "out") as stream:
        stream.write(b"ours")
    assert victim.read_text() == "precious" and (folder / "out").read_bytes() == b"ours"

    (tmp_path / "in.txt").write_text("a\n")
    (tmp_path / "elsewhere").mkdir()
    (folder / ".v.npy.part").symlink_to(tmp_path / "elsewhere")
    encoder = mexma_rt.load(bundle, precision="fp32")
    with pytest.raises(FileError, match="is a link or belongs to another user, so its contents cannot be trusted"):
        encoder.embed_file(tmp_path / "in.txt", folder / "v.npy")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    if os.geteuid() == 0:  # only root can give a folder away
        (folder / ".v.npy.part").unlink()
        (folder / ".v.npy.part").mkdir()
        os.chown(folder / ".v.npy.part", 12345, 12345)
        with pytest.raises(FileError, match="belongs to another user"):
            encoder.embed_file(tmp_path / "in.txt", folder / "v.npy")


# --- bombs --------------------------------------------------------------------------------------------------------------

PEAK = """
import sys
from mexma_rt.bench.worker import peak_mb
from mexma_rt.errors import MexmaError
from mexma_rt.files.texts import read_texts
import zstandard, lzma, gzip, pyarrow.parquet
before = peak_mb()
try:
    for row, text in enumerate(read_texts(sys.argv[1], sys.argv[2] or None)):
        if row == 5000:
            break
    said = f"{row} rows"
except MexmaError as error:
    said = str(error)
print(peak_mb() - before, said)
"""


def reading(path: Path, field: str = "") -> tuple[float, str]:
    """(MB that reading it adds to the peak, what was said)."""
    pytest.importorskip("zstandard", reason="part of mexma-rt[files]")
    pytest.importorskip("pyarrow", reason="part of mexma-rt[files]")
    megabytes, _, said = run(PEAK, path, field).strip().partition(" ")
    return float(megabytes), said


def zst(data: bytes) -> bytes:
    return pytest.importorskip("zstandard", reason="part of mexma-rt[files]").compress(data)


@pytest.mark.parametrize("kind", ["gz", "xz", "zst"])
def test_a_line_without_end_is_refused_in_little_memory(tmp_path: Path, kind: str) -> None:
    size = 2**30 if kind == "zst" else 2**28
    pack = {"gz": lambda data: gzip.compress(data, 1), "xz": lambda data: lzma.compress(data, preset=0), "zst": zst}[kind]
    path = tmp_path / f"bomb.{kind}"
    path.write_bytes(pack(b"a" * size))
    assert path.stat().st_size < size / 200
    peak, said = reading(path)
    assert f"line 1: more than {LONGEST_LINE:,} bytes without a line end" in said and "head -c 200" in said
    assert peak < 150, f"{peak} MB"  # a few copies of 16 MiB, and of 32 MiB unpacked at a time


def test_an_archive_that_asks_for_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "greedy.xz"
    path.write_bytes(lzma.compress(b"a\n", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 2**30}]))
    _, said = reading(path)
    assert "needs more than 256 MiB of memory to unpack" in said and "xz -dk FILE" in said


def test_streams_of_xz_are_all_read_and_a_cut_one_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "in.xz"
    whole = lzma.compress(b"a\nb\n") + bytes(8) + lzma.compress(b"c\n" * 100_000) + bytes(4)
    path.write_bytes(whole)
    from mexma_rt.files.lines import byte_lines

    assert list(byte_lines(path)) == [b"a", b"b", *[b"c"] * 100_000]
    for cut in (2, 20, len(whole) - 12):
        path.write_bytes(whole[:cut])
        with pytest.raises(FileError, match="is damaged or incomplete"):
            list(byte_lines(path))
    path.write_bytes(b"not xz at all")
    with pytest.raises(FileError, match="is damaged or incomplete"):
        list(byte_lines(path))


def test_a_column_that_repeats_a_long_text(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="part of mexma-rt[files]")
    import pyarrow.parquet as pq

    path = tmp_path / "bomb.parquet"
    indices = pa.array(np.zeros(5000, np.int32))
    column = pa.DictionaryArray.from_arrays(indices, pa.array(["a" * MIB]))
    pq.write_table(pa.table({"t": column}), path, compression="zstd", dictionary_pagesize_limit=2**24)
    assert path.stat().st_size < MIB  # for 5 GB of text
    peak, said = reading(path, "t")
    assert said == "4999 rows" and peak < 200, f"{peak} MB"
    pq.write_table(pa.table({"t": ["fine", "a" * (LONGEST_LINE + 1)]}), path)
    with pytest.raises(InputError, match=f"row 1 .counted from 0.: 't' has {LONGEST_LINE + 1:,} characters, more than"):
        list(mexma_rt.files.texts.read_texts(path, "t"))


def test_json_that_nests_without_end(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"t": ' + b"[" * MIB + b"\n")
    with pytest.raises(InputError, match="line 1 is not JSON"):
        list(mexma_rt.files.texts.read_texts(path, "t"))


# --- the host and the network -------------------------------------------------------------------------------------------

SESSION = """
import os, socket, sys
def refuse(*arguments, **keywords):
    raise AssertionError("the network was used")
for name in ("connect", "connect_ex", "sendto", "bind"):
    setattr(socket.socket, name, refuse)
socket.getaddrinfo = socket.create_connection = refuse
import asyncio, numpy
before = dict(os.environ), sorted(os.listdir())
import mexma_rt
model = sys.argv[1]
encoder = mexma_rt.load(model)
x = encoder.embed(["Hello world", "Bonjour le monde", "a", "b", "c", "d"])
asyncio.run(encoder.aembed(["Hello"]))
with encoder.service() as service:
    service.embed(["Hello"])
mexma_rt.embed(["Hello"], model=model)
encoder.embed_file("in.txt", "v.npy")
mexma_rt.mine(["a", "b", "c"], ["d", "e", "f"], k=2, encoder=encoder)
mexma_rt.score_pairs(["a", "b", "c"], ["d", "e", "f"], k=2, encoder=encoder)
mexma_rt.xsim(x, x, k=2)
os.remove("v.npy")
assert (dict(os.environ), sorted(os.listdir())) == before, (before, os.environ, os.listdir())
try:
    socket.create_connection(("localhost", 1))
except AssertionError:
    print("blocked", end="")
"""


def test_a_whole_session_uses_no_network_and_changes_nothing(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("one\ntwo\n")
    assert run(SESSION, tiny_bundle) == "blocked"


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub of one repository, org/name, whose branch main moves on after each answer about it."""

    commits: tuple[str, str]
    folders: dict[str, Path]
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:4] == ["api", "models", "org", "name"]:
            revision = parts[5] if len(parts) > 5 else "main"
            if revision == "main":
                infos = [path for path in self.asked if path.endswith("/revision/main") or path.endswith("/tree/main")]
                revision = self.commits[len(infos) > 1]
            folder = self.folders[revision]
            files = [path.relative_to(self.folders[revision]).as_posix() for path in self.folders[revision].rglob("*")]
            siblings = [{"rfilename": name} for name in files if (folder / name).is_file()]
            if parts[4:5] == ["tree"]:
                sizes = {entry["rfilename"]: (folder / entry["rfilename"]).stat().st_size for entry in siblings}
                tree = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in sizes.items()]
                self.answer(json.dumps(tree).encode(), revision)
                return
            self.answer(json.dumps({"id": "org/name", "sha": revision, "siblings": siblings}).encode(), revision)
        elif parts[:3] == ["org", "name", "resolve"]:
            revision = self.commits[1] if parts[3] == "main" else parts[3]
            self.answer((self.folders[revision] / "/".join(parts[4:])).read_bytes(), revision)
        else:
            self.send_error(404)

    def answer(self, content: bytes, commit: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(bundle: Path, tmp_path: Path) -> Iterator[tuple[str, type[Hub]]]:
    """Two commits of a bundle that differ in one file; the branch moves from the first to the second."""
    other = shutil.copytree(bundle, tmp_path / "other")
    put(other, "config.json", b'{"model_type": "xlm-roberta", "of": "the second commit"}')
    commits = ("1" * 40, "2" * 40)
    handler = type("OneHub", (Hub,), {"commits": commits, "folders": {"1" * 40: bundle, "2" * 40: other}, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", handler
        server.shutdown()


FROM_HUB = """
import json, sys, mexma_rt
bundle = mexma_rt.load("org/name", precision="fp32", **json.loads(sys.argv[1])).bundle
print(json.dumps([bundle.revision, (bundle.folder / "config.json").read_text()]))
"""


def test_hub_files_are_of_one_commit_which_is_said_and_can_be_pinned(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    address, handler = hub
    environment = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}

    def load(**keywords: object) -> tuple[str, str]:
        return tuple(json.loads(run(FROM_HUB, json.dumps(keywords), **environment)))

    commit, config = load()
    assert commit == "1" * 40 and "second" not in config  # although main moved on between our two questions
    assert not [path for path in handler.asked if path.endswith("safetensors")]
    assert load(revision="2" * 40)[0] == "2" * 40
    asked = len(handler.asked)
    assert load(revision="1" * 40, offline=True)[0] == "1" * 40
    assert len(handler.asked) == asked  # nothing was asked
