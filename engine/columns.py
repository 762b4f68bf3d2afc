"""A file of typed columns: written once, checked when it is opened, read through the page cache. Light.

One column after the other, each at a multiple of ALIGNMENT bytes, then a description in JSON, then the tail: the length of
the description, the SHA-256 of everything before the tail, MAGIC. Numbers stand in the byte order of the machine.
"""

import contextlib
import hashlib
import json
import mmap
import os
import struct
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from engine import files
from engine.settings import ConfigError

SUFFIX = ".columns"
MAGIC = b"columns1"
ALIGNMENT = 8
TAIL = struct.Struct("=Q32s8s")
ABANDONED = 24 * 3600.0  # seconds without a change after which a half-written file has no writer any more

Piece = array | bytes | bytearray
Column = tuple[str, str, Iterable[Piece]]  # name, type code of module array, its content in pieces
Columns = dict[str, memoryview]


class Damaged(Exception):
    """The file is cut off or was changed; the text says what is wrong with it."""


def write(path: Path, columns: Iterable[Column]) -> Columns:
    """Write a file in one step (write, fsync, rename) and return it as `read` does. Of two writers the last one wins.

    Columns are taken one after the other, so the pieces of the first may still be made while later ones are unknown.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            _fill(file, columns)
            file.flush()
            os.fsync(file.fileno())
        found = read(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    files.sync_folder(path.parent)
    return found


def _fill(file, columns: Iterable[Column]) -> None:
    checksum, position, parts = hashlib.sha256(), 0, []

    def put(content: Piece) -> None:
        nonlocal position
        position += file.write(content)
        checksum.update(content)

    for name, code, pieces in columns:
        put(bytes(-position % ALIGNMENT))
        start = position
        for piece in pieces:
            put(piece)
        parts.append([name, code, start, position])
    description = json.dumps(parts).encode()
    put(description)
    file.write(TAIL.pack(len(description), checksum.digest(), MAGIC))


def read(path: Path) -> Columns:
    """{name: column} of a file, mapped into memory. Raises FileNotFoundError, or Damaged.

    Everything is read once to be checked; what is in use afterwards is the page cache's business.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < TAIL.size:
            raise Damaged("cut off")
        length, checksum, magic = TAIL.unpack(os.pread(file.fileno(), TAIL.size, size - TAIL.size))
        if magic != MAGIC or length > size - TAIL.size:
            raise Damaged("cut off, or of another kind")
        if _checksum(file, size - TAIL.size) != checksum:
            raise Damaged("its content is not what was written")
        parts = json.loads(os.pread(file.fileno(), length, size - TAIL.size - length))
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return {name: content[start:end].cast(code) for name, code, start, end in parts}


def _checksum(file, size: int) -> bytes:
    found, left = hashlib.sha256(), size
    while left and (piece := file.read(min(left, 1 << 20))):
        found.update(piece)
        left -= len(piece)
    return found.digest()


def kept(folder: Path | None, name: str, make: Callable[[], Iterable[Column]]) -> tuple[Columns, str]:
    """The columns of a name: read where `folder` has them, made and written there where not; without a folder, in memory.

    The text says what was wrong with a file that had to be made anew. Raises ConfigError where it cannot be written.
    """
    if folder is None:
        return in_memory(make()), ""
    path, remark = folder / f"{name}{SUFFIX}", ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            found = read(path)
            os.utime(path)  # used now, for `prune`
            return found, remark
    except Damaged as error:
        remark = f"{path}: damaged ({error}), and made anew"
    except OSError as error:
        raise _unusable(path, error) from None
    try:
        return write(path, make()), remark
    except OSError as error:
        raise _unusable(path, error) from None


def _unusable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{path}: cannot be used ({error.strerror}). Make room there, or keep nothing there: data.token_cache_gib=0"
    )


def in_memory(columns: Iterable[Column]) -> Columns:
    """The same columns where no file is wanted."""
    found = {}
    for name, code, pieces in columns:
        content = bytearray()
        for piece in pieces:
            content += memoryview(piece).cast("B")
        found[name] = memoryview(content).cast(code)
    return found


def prune(folder: Path, most: float) -> list[Path]:
    """Remove the files that were used longest ago until those left take no more than `most` bytes; which ones they were.

    A process that has one of them mapped keeps what it has. What killed writers have left goes too.
    """
    removed, total = [], 0
    for abandoned in folder.glob(f".*{SUFFIX}.*.tmp"):
        if (status := _status(abandoned)) and time.time() - status.st_mtime > ABANDONED:
            abandoned.unlink(missing_ok=True)
    for status, path in sorted(_stored(folder), key=lambda stored: stored[0].st_mtime, reverse=True):
        total += status.st_size
        if total > most:
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def _stored(folder: Path) -> Iterator[tuple[os.stat_result, Path]]:
    return ((status, path) for path in folder.glob(f"*{SUFFIX}") if (status := _status(path)))


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:  # another job has removed it
        return None
