"""Records to files in one pass: JSON lines or HDF5, hidden until they are whole. Light."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engine import files
from engine.corpus.records import FIELDS, HDF5_SUFFIXES

SLICE = 512


class Writer:
    """Takes JSON objects of records; `done` puts the file in its place, `drop` leaves no trace."""

    def __init__(self, path: Path, names: Iterable[str], extra: bool) -> None:
        """names: the fields that any record has; extra: some record has other keys. Both matter to HDF5 only."""
        self.path, self.count = path, 0
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._hdf5 = path.suffix.lower() in HDF5_SUFFIXES
        self._waiting: list[dict[str, Any]] = []
        if self._hdf5:
            self._file = _arrays(self._temporary, [name for name in FIELDS if name in set(names)], extra)
        else:
            self._file = self._temporary.open("wb")

    def add(self, content: dict[str, Any]) -> None:
        self.count += 1
        content = {key: content[key] for key in FIELDS if key in content} | content  # our keys first, in one order
        if not self._hdf5:
            self._file.write(json.dumps(content, ensure_ascii=False).encode() + b"\n")
            return
        self._waiting.append(content)
        if len(self._waiting) >= SLICE:
            self._append()

    def done(self) -> None:
        if self._hdf5:
            self._append()
        self._file.close()
        files.sync_file(self._temporary)
        self._temporary.replace(self.path)
        files.sync_folder(self.path.parent)

    def drop(self) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _append(self) -> None:
        rows, self._waiting = self._waiting, []
        for name, array in self._file.items():
            array.resize(len(array) + len(rows), axis=0)
            array[len(array) - len(rows) :] = [_cell(row, name) for row in rows]


def _arrays(path: Path, names: list[str], extra: bool):
    import h5py

    file = h5py.File(path, "w")
    for name in [*names, "extra"] if extra else names:
        file.create_dataset(name, (0,), h5py.string_dtype("utf-8"), maxshape=(None,), chunks=(SLICE,))
    return file


def _cell(row: dict[str, Any], name: str) -> str:
    """A field of a record; `extra` holds all keys that are not fields, as JSON."""
    if name != "extra":
        return row.get(name, "")
    others = {key: value for key, value in row.items() if key not in FIELDS}
    return json.dumps(others, ensure_ascii=False) if others else ""
