"""JSON lines, JSON arrays, keyed objects and pretty-printed objects, streamed. Light."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from engine.corpus.formats import transcripts
from engine.corpus.formats.rows import LARGEST_LINE, MIB, Found, Options, Refused, Row, Warned, name_of, whole

BOM = b"\xef\xbb\xbf"
WORDS = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
KEYED = 2  # objects under as many keys make a keyed object of records, {"17": {...}, "18": {...}}


class _Complaint(str):
    """Why a line is no value, as "reason: detail"."""


class _Unique(dict):
    """A JSON object that remembers keys that stand in it twice."""

    twice: tuple[str, ...] = ()

    def __setitem__(self, key, value):
        if key in self:
            self.twice = (*self.twice, str(key))
        super().__setitem__(key, value)


def read(path: Path, options: Options) -> Iterator[Found]:
    """Rows of a JSON file of any arrangement; the content decides, not the name."""
    with path.open("rb") as file:
        head = file.read(MIB)
    start = head.removeprefix(BOM).lstrip()
    if not start:
        yield Refused("file", "no records in it", "the file is empty")
    elif start.startswith(b"["):
        yield from _array(path, options)
    elif start.startswith(b"{") and not _is_lines(head, path):
        yield from _objects(path, options)
    else:
        yield from _lines(path, options)


def _is_lines(head: bytes, path: Path) -> bool:
    """True for JSON lines. One object on one line may hold a file of records, so it is looked into."""
    lines = [line for line in head.removeprefix(BOM).split(b"\n") if line.strip()]
    named = path.suffix.lower() != ".json"
    if len(lines) == 1:
        return named and isinstance(_value(lines[0]), _Complaint)
    whole_line = not isinstance(_value(lines[0]), _Complaint)
    return whole_line or (lines[1].lstrip()[:1] == b"{" and lines[0].strip() != b"{")


def _lines(path: Path, options: Options) -> Iterator[Found]:
    with path.open("rb") as file:
        number, offset, rows = 0, 0, 0
        while line := file.readline(LARGEST_LINE + 1):
            number, start, offset = number + 1, offset, offset + len(line)
            if len(line) > LARGEST_LINE and not line.endswith(b"\n"):
                offset += _skip_line(file)
                yield Refused(f"line {number}", "line too long", f"more than {LARGEST_LINE // MIB} MiB")
                continue
            line = line.removeprefix(BOM) if number == 1 else line
            if not line.strip():
                continue
            rows += 1
            yield from _line(line, number, start, path, options, last=not line.endswith(b"\n"))
        if not rows:
            yield Refused("file", "no records in it", "only blank lines")


def _skip_line(file) -> int:
    skipped = 0
    while piece := file.readline(MIB):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped


def _line(line: bytes, number: int, start: int, path: Path, options: Options, last: bool) -> Iterator[Found]:
    where = f"line {number}"
    if line.lstrip()[:1] == b"#" or line.lstrip()[:2] == b"//":
        yield Refused(where, "a comment, not a record", line.strip()[:40].decode("utf-8", "replace"))
        return
    value = _value(line)
    if isinstance(value, UnicodeDecodeError):
        yield Refused(where, "not UTF-8", f"byte {start + value.start} of the file (0x{line[value.start]:02x})")
    elif isinstance(value, _Complaint):
        yield Refused(where, value.partition(":")[0], value.partition(": ")[2] + (". Is the line cut?" if last else ""))
    elif isinstance(value, dict) and number == 1 and transcripts.is_transcript(value):
        yield from transcripts.read(name_of(path), value, options)
    else:
        yield row(where, value)


def _value(line: bytes) -> Any:
    """The value of a line, or a complaint, or the error of its decoding."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return error
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=lambda name: None)
    except RecursionError:
        return _Complaint("nested too deeply")
    except ValueError as error:
        place = f"at column {getattr(error, 'colno', '?')}"
        return _Complaint(f"not valid JSON: {getattr(error, 'msg', str(error))[:60]} {place}")


def _unique(pairs: list[tuple[str, Any]]) -> dict:
    content = dict(pairs)
    if len(content) < len(pairs):
        content = _Unique()
        for key, value in pairs:
            content[key] = value
    return content


def row(where: str, value: Any) -> Row | Refused:
    """A row of a value that should be an object."""
    if not isinstance(value, dict):
        return Refused(where, "not an object", f"{WORDS.get(type(value), 'a number')}; a record is an object with keys")
    if twice := getattr(value, "twice", ()):
        return Refused(where, "key twice in one object", ", ".join(sorted(set(twice))))
    return Row(where, value)


def _array(path: Path, options: Options) -> Iterator[Found]:
    """Entries of an array; an array of cues is one transcript."""
    import ijson

    entries = _streamed(path, lambda file: ijson.items(file, "item", use_float=True, map_type=_Unique))
    first = next(entries, None)
    if first is None:
        yield Refused("file", "no records in it", "an empty array")
    elif isinstance(first, Refused):
        yield first
    elif transcripts.is_cue(first):
        cues = []
        for item in chain([first], entries):
            if isinstance(item, Refused):
                yield Warned(item.where, "cue list cut", item.detail)
            else:
                cues.append(item)
        yield from transcripts.read(name_of(path), cues, options)
    else:
        for number, item in enumerate(chain([first], entries), 1):
            yield (
                item._replace(where=f"after entry {number - 1}")
                if isinstance(item, Refused)
                else row(f"entry {number}", item)
            )


def _streamed(path: Path, items) -> Iterator[Any]:
    """What ijson finds, and a Refused at the end where the file is broken; what stands before it is kept."""
    import ijson

    with path.open("rb") as file:
        if file.read(3) != BOM:
            file.seek(0)
        try:
            yield from items(file)
        except (ijson.JSONError, UnicodeDecodeError, ValueError, OverflowError, RecursionError) as error:
            yield Refused("file", "not valid JSON", " ".join(str(error).split())[:100])


def _objects(path: Path, options: Options) -> Iterator[Found]:
    """Objects that span lines: one document, records under keys, or several objects one after another."""
    import ijson

    peek = _streamed(path, lambda file: ijson.kvitems(file, "", use_float=True, map_type=_Unique))
    pairs = [pair for pair, _ in zip(peek, range(KEYED), strict=False) if not isinstance(pair, Refused)]
    if pairs and all(isinstance(value, dict) for _, value in pairs):
        keyed = _streamed(path, lambda file: ijson.kvitems(file, "", use_float=True, map_type=_Unique))
        yield from _keyed(keyed)
        return
    data = whole(path)
    if isinstance(data, Refused):
        yield data._replace(detail="one JSON object of many MiB. Write one record a line: jq -c . FILE")
        return
    values = _streamed(path, lambda file: ijson.items(file, "", use_float=True, map_type=_Unique, multiple_values=True))
    for number, value in enumerate(values, 1):
        if isinstance(value, Refused):
            yield value._replace(where=f"after object {number - 1}")
        elif isinstance(value, dict) and transcripts.is_transcript(value):
            yield from transcripts.read(name_of(path), value, options)
        else:
            yield row(f"object {number}", value)


def _keyed(pairs: Iterator[Any]) -> Iterator[Found]:
    last = "the beginning"
    seen: set[str] = set()
    for pair in pairs:
        if isinstance(pair, Refused):
            yield pair._replace(where=f"after key {last}")
            continue
        last, value = pair
        if last in seen:
            yield Refused(f"key {last[:60]}", "key twice in one object", last[:60])
            continue
        seen.add(last)
        found = row(f"key {last[:60]}", value)
        yield found._replace(content={"id": last, **found.content}) if isinstance(found, Row) else found
