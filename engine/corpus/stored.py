"""Records that stay in their files: an index says where each one lies and what divides it, its text is read on demand. Light.

The index of a file is a few dozen bytes a record. It follows from the file's content, so it is kept beside the tokens and
read instead of the records when training starts again.
"""

import hashlib
import os
import weakref
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from engine import columns
from engine.corpus.records import Place, Record, is_hdf5, located, of_line, opened
from engine.lazy import Lazy
from engine.mixture import integer
from engine.settings import ConfigError

VERSION = 1  # counts up when an index of the same file would hold something else
KEY = 32  # bytes of the hash of a text
NOWHERE = Place(0, 0)


def text_key(record: Record) -> bytes:
    """The hash of a source; white space and case do not count."""
    return hashlib.sha256(" ".join(record.source.split()).casefold().encode()).digest()


def group_of(record: Record) -> str:
    """What must not be divided: the record's group, or else its text."""
    return record.group or text_key(record).hex()


def position(group: str) -> float:
    """A number in [0, 1) that follows from a group."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64


@dataclass(eq=False)
class Index:
    """The records of one file, in its order. columns: offset and length (q) of its line, group (q), position (d), key (KEY
    bytes) and told (1 byte: whether it has an instruction of its own) of each."""

    path: Path
    modality: str | None  # of records that do not say it
    sha256: str  # of the file
    columns: columns.Columns
    file: BinaryIO | None  # None: the records are in memory, for the rows of HDF5 have no place of their own
    read_at: tuple = ()  # what the file was like
    records: tuple[Record, ...] = ()
    remark: str = ""  # what was wrong with the index that was kept

    def __len__(self) -> int:
        return len(self.columns["position"])

    def record(self, k: int) -> Record:
        """Raises ConfigError if the file has changed since it was read."""
        if self.file is None:
            return self.records[k]
        line = os.pread(self.file.fileno(), self.columns["length"][k], self.columns["offset"][k])
        self._demand_unchanged()
        return of_line(line, self.modality)

    def _demand_unchanged(self) -> None:
        """A file that was only touched, or written again with the same content, is the same file."""
        now = _stamp(os.fstat(self.file.fileno()))
        if now != self.read_at:
            self.file.seek(0)
            if hashlib.file_digest(self.file, "sha256").hexdigest() != self.sha256:
                raise _changed(self.path)
            self.read_at = now

    def key(self, k: int) -> bytes:
        return bytes(self.columns["key"][KEY * k : KEY * (k + 1)])


class Stored(Lazy[Record]):
    """Some records of some files, in an order of their own. parts: (index, which of its records)."""

    def __init__(self, *parts: tuple[Index, array]):
        self.parts = [(index, members) for index, members in parts if len(members)]
        super().__init__(sum(len(members) for _, members in self.parts), self._record)

    def _record(self, k: int) -> Record:
        for index, members in self.parts:
            if k < len(members):
                return index.record(members[k])
            k -= len(members)
        raise IndexError(k)

    def __add__(self, other: "Stored") -> "Stored":
        return Stored(*self.parts, *other.parts)

    def chosen(self, wanted: Iterable[int]) -> "Stored":
        """Those at the given places; where the records are of several files, the places must ascend."""
        taken: list[array] = [array("q") for _ in self.parts]
        number = before = 0
        for k in wanted:
            while k - before >= len(self.parts[number][1]):
                before += len(self.parts[number][1])
                number += 1
            taken[number].append(self.parts[number][1][k - before])
        return Stored(*((index, members) for (index, _), members in zip(self.parts, taken, strict=True)))

    def column(self, name: str) -> Iterator:
        """A column of the index, of these records: group, position or told."""
        return chain.from_iterable(map(index.columns[name].__getitem__, members) for index, members in self.parts)

    def keys(self) -> Iterator[bytes]:
        """The hash of each text."""
        return chain.from_iterable(map(index.key, members) for index, members in self.parts)

    def identity(self) -> list:
        """What tells these records from any others: contents of files, and places in them."""
        return [[index.sha256, index.modality, hashlib.sha256(members).hexdigest()] for index, members in self.parts]


def stored(path: Path, modality: str | None = None, need_summary: bool = True, folder: Path | None = None) -> Stored:
    """All records of a file, checked as `records.read` does. folder: where indices are kept, and found again.

    Raises ConfigError for faulty records, or if the file changes while it is read.
    """
    file = opened(path)
    before = _stamp(os.fstat(file.fileno()))
    content = hashlib.file_digest(file, "sha256").hexdigest()
    make = _of_hdf5 if is_hdf5(path) else _of_lines
    index = make(path, modality, need_summary, content, file, folder)
    weakref.finalize(index, file.close)
    if _stamp(path.stat()) != before:
        raise _changed(path)
    return Stored((index, array("q", range(len(index)))))


def _of_hdf5(path: Path, modality: str | None, need_summary: bool, content: str, file: BinaryIO, _folder) -> Index:
    records = tuple(record for record, _ in located(path, modality, need_summary))
    found = columns.in_memory(_columns((record, NOWHERE) for record in records))
    return Index(path, modality, content, found, None, records=records)


def _of_lines(
    path: Path, modality: str | None, need_summary: bool, content: str, file: BinaryIO, folder: Path | None
) -> Index:
    def scan() -> Iterator[columns.Column]:
        return _columns(located(path, modality, need_summary))

    name = f"records-{integer(VERSION, content, modality, need_summary):016x}"
    found, remark = columns.kept(folder, name, scan)
    return Index(path, modality, content, found, file, _stamp(os.fstat(file.fileno())), remark=remark)


def _columns(records: Iterable[tuple[Record, Place]]) -> Iterator[columns.Column]:
    offsets, lengths, groups, positions, told = (array(code) for code in "qqqdB")

    def keys() -> Iterator[bytes]:
        for record, place in records:
            key = text_key(record)
            group = record.group or key.hex()
            offsets.append(place.offset)
            lengths.append(place.length)
            groups.append(integer(group))
            positions.append(position(group))
            told.append(bool(record.instruction))
            yield key

    yield "key", "B", keys()
    for name, column in (("offset", offsets), ("length", lengths), ("group", groups)):
        yield name, "q", [column]
    yield "position", "d", [positions]
    yield "told", "B", [told]


def _stamp(status: os.stat_result) -> tuple:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _changed(path: Path) -> ConfigError:
    return ConfigError(f"{path}: has changed since this job began to read it. Start again with the file as it is now")
