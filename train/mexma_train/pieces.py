"""A folder as numbered compressed files of bounded size, and back to the same bytes: for the way to another machine.

    mexma-train pack shards pieces --megabytes 30     # pieces/pieces.json, pieces/piece-0000.bin, pieces/piece-0001.bin, ...
    mexma-train unpack pieces shards                  # there; again and again, while pieces arrive

Any folder of files will do: shards, a checkpoint, the states of a run. Files are cut into blocks, each block is packed alone
(squeeze.py) and lies in one piece, so that a piece is unpacked as it arrives and may then be deleted. pieces.json holds
    format, lossy (a text, or null)
    files   name, size, sha256: of what `unpack` writes
    pieces  name, size, sha256 and blocks in their order: [place in `files`, where it begins there, kind, width, packed size]
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from mexma_rt.errors import FileError, InputError, MexmaError
from mexma_rt.files.atomic import move_folder
from mexma_rt.progress import progress_bar
from mexma_train.squeeze import PLAIN, Code, code_of, decode, encode, round_rows, rows_of

FORMAT = 1
MANIFEST = "pieces.json"
TEACHER = "teacher.npy"
BLOCK = 8 << 20  # bytes of a file packed together: token ids take 1 % more in blocks of 4 MiB, 0.6 % less in 16 (measured)
BLOCKS_OF_A_PIECE = 8  # at least, even if nothing can be compressed: a piece ends when the next block does not fit
T = TypeVar("T")
R = TypeVar("R")


def pack(
    folder: str | Path,
    pieces: str | Path,
    *,
    megabytes: float = 60.0,
    teacher_bits: int | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Write all files of `folder` into the new folder `pieces`, in files of at most so many megabytes; returns the manifest.

    Lossless, but for teacher.npy where `teacher_bits` (2 to 8) rounds its numbers; the manifest then says so. The folder
    appears when it is complete. Raises FileError if it exists or cannot be written or `folder` has no files, InputError for
    teacher_bits without a teacher.
    """
    folder, pieces = Path(folder), Path(pieces)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    if not names:
        raise FileError(f"{folder} is no folder with files, so there is nothing to pack. Check the name.")
    check_new(pieces)
    if teacher_bits is not None and TEACHER not in names:
        raise InputError(f"{folder} holds no {TEACHER}, so there is nothing to round. Leave --teacher-bits out.")
    work = pieces.with_name(f".{pieces.name}.new")
    try:
        shutil.rmtree(work, ignore_errors=True)  # of a process that was killed here
        work.mkdir(parents=True)
        manifest = _write(folder, names, work, int(megabytes * 1e6), teacher_bits, progress)
        (work / MANIFEST).write_text(json.dumps(manifest, ensure_ascii=False) + "\n", encoding="utf-8")
        move_folder(work, pieces)
    except BaseException as error:
        shutil.rmtree(work, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, MexmaError):
            raise FileError(f"{pieces} cannot be written: {error.strerror or error}. Nothing is left of it.") from error
        raise
    return manifest


def check_new(folder: Path) -> None:
    """Raise FileError if the folder exists: called before the long work."""
    if folder.exists():
        raise FileError(f"{folder} exists already. Name another folder, or delete it first.")


def _write(
    folder: Path, names: list[str], work: Path, limit: int, teacher_bits: int | None, progress: bool | None
) -> dict[str, Any]:
    sizes = [(folder / name).stat().st_size for name in names]
    digests = [hashlib.sha256() for _ in names]
    pieces: list[dict[str, Any]] = []
    piece_digest = hashlib.sha256()
    block_size = max(64, min(BLOCK, limit // BLOCKS_OF_A_PIECE) // 64 * 64)

    def blocks() -> Iterator[tuple[int, int, int, Code]]:
        for file, (name, size) in enumerate(zip(names, sizes, strict=True)):
            begin, code = code_of(folder / name)
            step = block_size
            if name == TEACHER and teacher_bits is not None:
                begin, code = rows_of(folder / name)
                step = max(1, block_size // (2 * code.width)) * 2 * code.width  # whole rows
            yield from ((file, at, min(block_size, begin - at), PLAIN) for at in range(0, begin, block_size))
            yield from ((file, at, min(step, size - at), code) for at in range(begin, size, step))

    def packed(block: tuple[int, int, int, Code]) -> tuple[int, int, Code, bytes, bytes]:
        file, at, size, code = block
        with (folder / names[file]).open("rb") as stream:
            stream.seek(at)
            data = stream.read(size)
        if len(data) != size:
            raise FileError(f"{folder / names[file]} became shorter while it was packed. Pack it when nothing writes there.")
        if code.kind == "rows":
            rounded, data = round_rows(data, code.width, teacher_bits or 8)
            return file, at, code, encode(rounded, PLAIN)[1], data
        return file, at, *encode(data, code), data

    with progress_bar(progress, total=sum(sizes), desc="pack", unit="B") as advance:
        for file, at, code, data, restored in _ahead(packed, blocks()):
            if not pieces or pieces[-1]["size"] + len(data) > limit:
                pieces.append({"name": f"piece-{len(pieces):04}.bin", "size": 0, "sha256": "", "blocks": []})
                piece_digest = hashlib.sha256()
            with (work / pieces[-1]["name"]).open("ab") as stream:
                stream.write(data)
            piece_digest.update(data)
            pieces[-1]["size"] += len(data)
            pieces[-1]["sha256"] = piece_digest.hexdigest()
            pieces[-1]["blocks"].append([file, at, *code, len(data)])
            digests[file].update(restored)
            advance(len(restored))
    lossy = f"{TEACHER} is rounded to {teacher_bits} bits a number" if teacher_bits is not None else None
    files = [{"name": n, "size": s, "sha256": d.hexdigest()} for n, s, d in zip(names, sizes, digests, strict=True)]
    return {"format": FORMAT, "lossy": lossy, "files": files, "pieces": pieces}


def unpack(sources: Sequence[str | Path], folder: str | Path, *, progress: bool | None = None) -> None:
    """Write the files that `pack` read, verified, into the new `folder`, from pieces and folders of pieces.

    Pieces that are not there yet may come in a later call: what was unpacked waits in .FOLDER.unpacking, also after a kill, and
    `folder` appears when all is there. Raises FileError if pieces are missing, damaged or of another folder, if `folder`
    exists or cannot be written.
    """
    folder = Path(folder)
    check_new(folder)
    manifest, there = _find([Path(source) for source in sources])
    work = folder.with_name(f".{folder.name}.unpacking")
    try:
        _begin(work, manifest, folder)
        with progress_bar(progress, total=sum(p["size"] for p in manifest["pieces"]), desc="unpack", unit="B") as advance:
            for piece in manifest["pieces"]:
                done = work / f"{piece['name']}.done"
                if not done.exists() and piece["name"] in there:
                    _unpack_piece(there[piece["name"]], piece, manifest, work / "files")
                    done.touch()
                    advance(piece["size"])
        missing = [piece["name"] for piece in manifest["pieces"] if not (work / f"{piece['name']}.done").exists()]
        if missing:
            raise FileError(
                f"{folder} is not there yet: {len(manifest['pieces']) - len(missing)} of {len(manifest['pieces'])} pieces are "
                f"unpacked, missing: {', '.join(missing)}. Type the same again when they have come; the others may be deleted."
            )
        if wrong := _differing(work / "files", manifest):
            shutil.rmtree(work)
            raise FileError(
                f"{folder}: {', '.join(wrong)} came out with other bytes than were packed, although every piece was whole; so "
                "the disk lost some, or they were packed by another version. Nothing is left of it; type the same again."
            )
        move_folder(work / "files", folder)
        shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        if isinstance(error, MexmaError):
            raise
        raise FileError(
            f"{folder} cannot be written: {error.strerror or error}. What is unpacked waits in {work}: make room and type the "
            "same again, or delete it."
        ) from error


def local_shards(shards: Path, out: Path | None, *, main: bool = True) -> Path:
    """The folder itself, or if it holds pieces OUT/shards, which `main` unpacks unless that was done before.

    Raises FileError if that cannot be, InputError if there is no OUT.
    """
    if not (shards / MANIFEST).is_file():
        return shards
    if out is None:
        raise InputError(f"{shards} holds pieces, and this writes nothing. Type first: mexma-train unpack {shards} SHARDS")
    target = out / "shards"
    if not main:
        return target
    if not target.exists():
        unpack([shards], target)
    elif wrong := _differing(target, _find([shards])[0]):
        raise FileError(f"{target} is not what {shards} holds: {', '.join(wrong)} differ. Delete it, or name another OUT.")
    return target


def _find(sources: list[Path]) -> tuple[dict[str, Any], dict[str, Path]]:
    """The manifest, and where each piece is that has come."""
    if absent := [str(source) for source in sources if not source.exists()]:
        raise FileError(f"{', '.join(absent)}: not there. Give pieces, or the folder in which they lie.")
    files = [path for source in sources for path in (sorted(source.iterdir()) if source.is_dir() else [source])]
    manifests = {path: _read_manifest(path) for path in files if path.name == MANIFEST}
    if not manifests:
        raise FileError(
            f"No {MANIFEST} in {', '.join(map(str, sources))}: `mexma-train pack` wrote it beside the pieces. Copy it."
        )
    first, manifest = next(iter(manifests.items()))
    if others := [str(path) for path, other in manifests.items() if other != manifest]:
        raise InputError(f"{first} and {others[0]} are of different folders. Unpack one at a time.")
    names = {piece["name"] for piece in manifest["pieces"]}
    if strange := [str(path) for path in sources if path.is_file() and path.name not in names | {MANIFEST}]:
        raise InputError(f"{', '.join(strange)}: no such piece in {first}. Give pieces, or the folder in which they lie.")
    return manifest, {path.name: path for path in files if path.name in names}


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found, names = manifest["format"], [PurePosixPath(file["name"]) for file in manifest["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(f"{path} is damaged: {error!r}. Copy it again.") from None
    if found != FORMAT:
        raise FileError(f"{path} has format {found}, this version of mexma-train reads {FORMAT}. Pack with the same version.")
    if any(name.is_absolute() or ".." in name.parts for name in names):
        raise FileError(f"{path} names files outside of the folder: it was not written by mexma-train. Delete it.")
    return manifest


def _begin(work: Path, manifest: dict[str, Any], folder: Path) -> None:
    """The folder .FOLDER.unpacking with files of full size, or as an earlier call left it."""
    if (work / MANIFEST).is_file() and (work / "files").is_dir():
        if _read_manifest(work / MANIFEST) == manifest:
            return
        raise FileError(f"{work} is a part of other pieces than these. Delete it, or name another folder than {folder}.")
    shutil.rmtree(work, ignore_errors=True)  # of a process that was killed in this function, or after the renaming
    for file in manifest["files"]:
        path = work / "files" / file["name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            stream.truncate(file["size"])
    (work / MANIFEST).write_text(json.dumps(manifest, ensure_ascii=False), encoding="utf-8")


def _unpack_piece(path: Path, piece: dict[str, Any], manifest: dict[str, Any], target: Path) -> None:
    data = path.read_bytes()
    if len(data) != piece["size"]:
        raise FileError(f"{path} is not complete: {len(data)} bytes of {piece['size']}. Copy it again.")
    if hashlib.sha256(data).hexdigest() != piece["sha256"]:
        raise FileError(
            f"{path} is damaged, or a piece of another folder: its SHA-256 is not the one in {MANIFEST}. Copy it again."
        )

    def blocks() -> Iterator[tuple[int, int, Code, bytes]]:
        end = 0
        for file, at, kind, width, size in piece["blocks"]:
            end += size
            yield file, at, Code(kind, width), data[end - size : end]

    for file, at, block in _ahead(lambda b: (b[0], b[1], decode(b[3], b[2])), blocks()):
        with (target / manifest["files"][file]["name"]).open("r+b") as stream:
            stream.seek(at)
            stream.write(block)


def _differing(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """The manifest's files that are not there with these very bytes."""

    def same(file: dict[str, Any]) -> bool:
        path, digest = folder / file["name"], hashlib.sha256()
        if not path.is_file() or path.stat().st_size != file["size"]:
            return False
        with path.open("rb") as stream:
            while data := stream.read(BLOCK):
                digest.update(data)
        return bool(digest.hexdigest() == file["sha256"])

    return [file["name"] for file, good in zip(manifest["files"], _ahead(same, manifest["files"]), strict=True) if not good]


def _ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """map(function, items) on all cores, in order and only a few items ahead: xz and SHA-256 let go of Python's lock."""
    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * cores:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
