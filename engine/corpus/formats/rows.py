"""What a reader yields: rows, refusals and warnings, each with its place in the file. Light."""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

MIB = 1 << 20
LARGEST_LINE = 64 * MIB  # a line above it is refused: memory stays bounded
LARGEST_DOCUMENT = 256 * MIB  # a file that must be read whole (a transcript, an article)


class Row(NamedTuple):
    """A record as the file has it. ready: the keys are ours already, and a summary is not expected."""

    where: str
    content: dict[str, Any]
    ready: bool = False


class Refused(NamedTuple):
    """What is no record, and why. reason: a few words that are counted; detail: what helps to find and mend it."""

    where: str
    reason: str
    detail: str = ""


class Warned(NamedTuple):
    """Something about a record that is kept. Its reason is counted once a record."""

    where: str
    reason: str
    detail: str = ""


Found = Row | Refused | Warned


class Options(NamedTuple):
    """How transcripts become text. times: keep the start of every turn as [h:mm:ss]. speakers: keep `Name:`."""

    times: bool = False
    speakers: bool = True


def whole(path: Path) -> bytes | Refused:
    """The content of a file that cannot be read in pieces."""
    if (size := path.stat().st_size) > LARGEST_DOCUMENT:
        return Refused(
            "file",
            "file too large",
            f"{size / MIB:.0f} MiB in one piece; {LARGEST_DOCUMENT // MIB} is the limit. Split it",
        )
    return path.read_bytes()


def decoded(data: bytes) -> Iterator[Warned | Refused | str]:
    """Warnings, then the text (or a refusal): UTF-8, UTF-16 with its mark, else Windows-1252, said aloud.

    Line ends become \\n. A file with NUL bytes is no text.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            yield _lines(data.decode("utf-16"))
        except UnicodeDecodeError as error:
            yield Refused("file", "not readable as text", f"UTF-16 by its mark, but broken at byte {error.start}")
        return
    if (nul := data.find(0)) >= 0:
        yield Refused("file", "not text", f"NUL at byte {nul}: a binary file")
        return
    try:
        yield _lines(data.decode("utf-8-sig"))
        return
    except UnicodeDecodeError as error:
        start = error.start
    lines_before = data.count(b"\n", 0, start)
    where = f"line {lines_before + 1}"
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError as error:
        yield Refused(
            where,
            "not UTF-8",
            f"byte {start} (0x{data[start]:02x}), nor Windows-1252 (byte {error.start}). Convert it: iconv -t utf-8",
        )
        return
    yield Warned(where, "read as Windows-1252", f"byte {start} (0x{data[start]:02x}) is not UTF-8")
    yield _lines(text)


def _lines(text: str) -> str:
    return re.sub(r"\r\n?|\u2028", "\n", text)


def text_of(path: Path) -> Iterator[Warned | Refused | str]:
    """`decoded` of a whole file; a refusal if there is nothing in it."""
    data = whole(path)
    if isinstance(data, Refused):
        yield data
    elif not data.strip(b"\x00\xef\xbb\xbf \t\r\n"):
        yield Refused("file", "no text in it", "the file is empty")
    else:
        yield from decoded(data)


def name_of(path: Path) -> str:
    """An id for the one record of a file: its name without folder and suffix."""
    return path.name[: -len(path.suffix)] if path.suffix else path.name
