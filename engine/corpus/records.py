"""Records of text from JSONL and HDF5, with errors that name the line. Light: h5py is imported when it is needed."""

import json
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from engine.settings import ConfigError

FIELDS = (
    "id",
    "modality",
    "source",
    "summary",
    "title",
    "instruction",
    "domain",
    "group",
    "pair_id",
    "origin",
    "licence",
)
SHOWN_MISTAKES = 10
HDF5_SUFFIXES = (".h5", ".hdf5")
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Record:
    """A document and its reference summary. `extra` keeps unknown keys."""

    id: str
    modality: str
    source: str
    summary: str | None = None
    title: str | None = None
    instruction: str | None = None
    domain: str | None = None
    group: str | None = None
    pair_id: str | None = None
    origin: str | None = None
    licence: str | None = None
    extra: dict[str, Any] = field(default_factory=dict, compare=False)


class Place(NamedTuple):
    """Where the line of a record is in its file, in bytes. Rows of HDF5 have none."""

    offset: int
    length: int


def read(path: Path, modality: str | None = None, need_summary: bool = True) -> list[Record]:
    """All records of a file.

    modality: what every record must be; also taken for records that do not say it.
    Raises ConfigError that lists the faulty lines (all of them are counted, the first ten named): the files given to
    training are taken whole or not at all, so that nothing is dropped behind the user's back.
    """
    return [record for record, _ in located(path, modality, need_summary)]


def located(
    path: Path, modality: str | None = None, need_summary: bool = True
) -> Iterator[tuple[Record, Place | None]]:
    """The same one after the other, with their places. Raises ConfigError after the last one where any was faulty."""
    rows = _hdf5_rows(path) if is_hdf5(path) else _json_rows(path)
    good, mistakes, seen = 0, [], {}
    for where, row, place in rows:
        if isinstance(row, str):
            mistakes.append(f"{path}: {where}: {row}")
            continue
        record = _record(row, modality, need_summary)
        if isinstance(record, Record) and record.id in seen:
            record = f"id {record.id!r} was already used at {seen[record.id]}. Ids must be unique"
        if isinstance(record, str):
            mistakes.append(f"{path}: {where}: {record}")
        else:
            seen[record.id] = where
            good += 1
            yield record, place
    if mistakes:
        more = len(mistakes) - SHOWN_MISTAKES
        tail = [f"{path}: and {more} more of {len(mistakes)} faulty records; {good} are good"] if more > 0 else []
        raise ConfigError(*mistakes[:SHOWN_MISTAKES], *tail)
    if not good:
        raise ConfigError(f"{path}: no records in it. Each line is a JSON object with id, modality, source and summary")


def is_hdf5(path: Path) -> bool:
    return path.suffix.lower() in HDF5_SUFFIXES


def of_line(line: bytes, modality: str | None) -> Record:
    """The record of a line that `located` has found good."""
    row = json.loads(line.removeprefix(BOM))
    known = {name: row[name] for name in FIELDS if name in row and row[name] is not None}
    return _built({"modality": modality} | known, row)


def _built(known: dict[str, str], row: dict) -> Record:
    return Record(**known, extra={k: v for k, v in row.items() if k not in FIELDS})


def _json_rows(path: Path) -> Iterator[tuple[str, dict | str, Place]]:
    """(line n, object or complaint, its place) for every line that is not blank."""
    offset = 0
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            start, offset = offset, offset + len(line)
            place = Place(start, len(line))
            if number == 1:
                line = line.removeprefix(BOM)
                if line.strip() in (b"[", b"{") or line.lstrip().startswith(b"["):
                    complaint = "this is JSON, not JSON lines. Write one object per line: jq -c '.[]' FILE"
                    yield f"line {number}", complaint, place
                    return
            if not line.strip():
                continue
            yield f"line {number}", _json_object(line, start), place


def _json_object(line: bytes, start: int) -> dict | str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {start + error.start} of the file (0x{line[error.start]:02x}). Convert it: iconv -t utf-8"
    twice: list[str] = []

    def unique(pairs):
        content = dict(pairs)
        if len(content) < len(pairs):
            names = [name for name, _ in pairs]
            twice.extend({name for name in names if names.count(name) > 1})
        return content

    try:
        row = json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        return "nested too deeply"
    except ValueError as error:
        reason = getattr(error, "msg", str(error))
        return f"not valid JSON ({reason} at column {getattr(error, 'colno', '?')}). Is the line cut?"
    if twice:
        return f"key {', '.join(sorted(twice))} stands twice in one object"
    return (
        row if isinstance(row, dict) else f"a {type(row).__name__}, not an object with id, modality, source and summary"
    )


def _hdf5_rows(path: Path) -> Iterator[tuple[str, dict | str, None]]:
    """(row n, mapping or complaint, no place) of an HDF5 file with one UTF-8 string array per field, all of one length.

    Read as `prepare` reads it, in a process of its own: on some damaged files the HDF5 library never comes back.
    """
    from engine.corpus.formats import hdf5
    from engine.corpus.formats.rows import Options, Row

    with opened(path):
        pass
    for found in hdf5.read(path, Options()):
        if isinstance(found, Row):
            yield found.where, found.content, None
        elif found.where.startswith("row "):
            yield found.where, f"{found.reason} ({found.detail})", None
        else:
            place = "" if found.where == "file" else f"{found.where}: "
            raise ConfigError(
                f"{path}: {place}{found.reason} ({found.detail}). Records are string arrays id, modality, source, "
                "summary, all of one length"
            )


def opened(path: Path) -> BinaryIO:
    """A file of data, open for reading. Raises ConfigError."""
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file. Data paths are relative to the folder you are in ({Path.cwd()})"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _record(row: dict, modality: str | None, need_summary: bool) -> Record | str:
    """The record, or in one sentence why it is none."""
    known = {name: row[name] for name in FIELDS if name in row and row[name] is not None}
    wrong = [
        f"{name} is a {type(value).__name__}, not text" for name, value in known.items() if not isinstance(value, str)
    ]
    if wrong:
        return "; ".join(wrong)
    known.setdefault("modality", modality)
    needed = ("id", "modality", "source", "summary") if need_summary else ("id", "modality", "source")
    missing = [name for name in needed if known.get(name) is None]
    if missing:
        found = ", ".join(str(key)[:40] for key in list(row)[:12]) or "nothing"
        return f"no {' and no '.join(missing)} (found: {found}). Rename the keys, or add what is missing"
    blank = [name for name in needed if is_blank(known[name])]
    if blank:
        return f"{' and '.join(blank)} is empty. Remove the record or fill it"
    if modality and known["modality"] != modality:
        return f"modality is {known['modality']!r}, but this file is read as {modality}s"
    try:
        "".join(known.values()).encode()
    except UnicodeEncodeError:
        return "a lone surrogate (half of a character) in the text"
    return _built(known, row)


def is_blank(text: str) -> bool:
    """True if nothing is left after Unicode white space, control and zero-width characters are taken out."""
    return all(character.isspace() or unicodedata.category(character) in ("Cc", "Cf") for character in text)


def to_dict(record: Record) -> dict:
    """The JSON object of a record; empty fields are left out."""
    content = {name: getattr(record, name) for name in FIELDS if getattr(record, name) is not None}
    return content | record.extra


def write_jsonl(path: Path, records: Iterable[Record]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(to_dict(record), ensure_ascii=False) + "\n")


def write_hdf5(path: Path, records: list[Record]) -> None:
    """One UTF-8 string array per field that any record has; absent values are empty strings."""
    import h5py

    names = [name for name in FIELDS if any(getattr(record, name) is not None for record in records)]
    with h5py.File(path, "w") as file:
        for name in names:
            values = [getattr(record, name) or "" for record in records]
            file.create_dataset(name, data=values, dtype=h5py.string_dtype("utf-8"))
