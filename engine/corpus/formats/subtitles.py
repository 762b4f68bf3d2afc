"""SubRip, WebVTT, SubViewer and SubStation files. Light.

SubRip, WebVTT and SubViewer are scanned here, since the libraries do not tell which line they could not read, and take
a cue without time for text of the cue before. SubStation is read by pysubs2, and what it leaves out is counted.
"""

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from engine.corpus.formats.cues import Cue, cleaned, transcript
from engine.corpus.formats.rows import Found, Options, Refused, Warned, name_of, text_of

_STAMP = r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
ARROW = re.compile(rf"^\s*{_STAMP}\s*-->\s*{_STAMP}(?:\s.*)?$")
COMMA = re.compile(rf"^\s*{_STAMP},{_STAMP}\s*$")  # SubViewer
NEARLY = re.compile(r"-->|^\s*\d{1,2}:\d\d:\d\d?\.\w*,\d{1,2}:\d\d:")
BLOCK = re.compile(r"^(?:NOTE|STYLE|REGION)(?:\s|$)")
LOOKS_TIMED = re.compile(rf"^\s*{_STAMP}(?:\s*-->\s*|,){_STAMP}", re.MULTILINE)
INLINE_TIME = re.compile(r"<\d[\d:.]*>")


def read(path: Path, options: Options) -> Iterator[Found]:
    """One record of a subtitle file, and a warning for every line that could not be used."""
    text = ""
    for item in text_of(path):
        if isinstance(item, str):
            text = item
        else:
            yield item
    if not text:
        return
    cues: list[Cue] = []
    for found in _scan(text):
        if isinstance(found, Cue):
            cues.append(found)
        else:
            yield found
    if path.suffix.lower() == ".vtt" and not text.startswith("WEBVTT"):
        yield Warned("line 1", "no WEBVTT header", "the cues are read all the same")
    row = transcript(name_of(path), "file", cues, options, rolling=bool(INLINE_TIME.search(text)))
    yield row or Refused("file", "no text in it", f"{len(cues)} cues, none of them with text")


def _scan(text: str) -> Iterator[Cue | Warned]:
    """The cues of a file. A cue ends at a blank line or at the next time; a line just before a time is its name."""
    lines = text.split("\n")
    number = _after_header(lines)
    loose: list[int] = []  # lines of text that belong to no cue so far
    before = 0.0
    while number < len(lines):
        line = lines[number]
        if BLOCK.match(line) and not loose:
            number = _next_blank(lines, number)
        elif NEARLY.search(line) or COMMA.match(line):
            yield from _stray(lines, loose[:-1] if loose and loose[-1] == number - 1 else loose)
            loose, first, (number, rows) = [], number, _payload(lines, number)
            for found in _cue(lines[first], first, rows, before):
                before = found.start if isinstance(found, Cue) else before
                yield found
            continue
        elif line.strip():
            loose.append(number)
        number += 1
    yield from _stray(lines, loose)


def _after_header(lines: list[str]) -> int:
    return _next_blank(lines, 0) if lines[0].startswith("WEBVTT") else 0


def _next_blank(lines: list[str], number: int) -> int:
    """The next line that is blank, or where a cue begins without a blank line before it."""
    while number < len(lines) and lines[number].strip() and not ARROW.match(lines[number]):
        number += 1
    return number


def _payload(lines: list[str], first: int) -> tuple[int, list[str]]:
    """(number of the line after the cue, its text). A number followed by a time begins the next cue."""
    number, rows = first + 1, []
    while number < len(lines) and lines[number].strip():
        line, following = lines[number], lines[number + 1] if number + 1 < len(lines) else ""
        if NEARLY.search(line) or COMMA.match(line) or (line.strip().isdigit() and ARROW.match(following)):
            break
        rows.append(line)
        number += 1
    return number, rows


def _cue(line: str, number: int, rows: list[str], before: float) -> Iterator[Cue | Warned]:
    where = f"line {number + 1}"
    match = ARROW.match(line) or COMMA.match(line)
    times = match and (_seconds(match.groups()[:4]), _seconds(match.groups()[4:]))
    if not times or None in times:
        yield Warned(where, "cue with a time that cannot be read", f"{line.strip()[:60]!r}; its text is left out")
        return
    start, end = times
    if end < start:
        yield Warned(where, "cue that ends before it starts", "its text is kept")
    if start < before:
        yield Warned(where, "cue that starts before the one above it", "its text is kept, in the order of time")
    if not cleaned("\n".join(rows))[0]:
        yield Warned(where, "cue without text")
    yield Cue(start, "\n".join(rows))


def _seconds(parts: tuple[str | None, ...]) -> float | None:
    hours, minutes, seconds = int(parts[0] or 0), int(parts[1]), int(parts[2])
    if minutes > 59 or seconds > 59:
        return None
    return 3600 * hours + 60 * minutes + seconds + int(parts[3]) / 10 ** len(parts[3])


def _stray(lines: list[str], loose: list[int]) -> Iterator[Warned]:
    for number in loose:
        if not lines[number].strip().isdigit():
            yield Warned(f"line {number + 1}", "text without a time", f"{lines[number].strip()[:60]!r} is left out")


def read_substation(path: Path, options: Options) -> Iterator[Found]:
    """One record of an ASS or SSA file, by pysubs2."""
    text = ""
    for item in text_of(path):
        if isinstance(item, str):
            text = item
        else:
            yield item
    if not text:
        return
    import pysubs2

    try:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # about margins and layers
            subtitles = pysubs2.SSAFile.from_string(text, format_="ass" if "[V4+ Styles]" in text else "ssa")
    except (pysubs2.Pysubs2Error, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
        yield Refused("file", "not a SubStation file", str(error)[:120])
        return
    cues = [
        Cue(event.start / 1000, event.plaintext, event.name)
        for event in subtitles
        if not event.is_comment and not event.is_drawing
    ]
    said = len(re.findall(r"^Dialogue:", text, re.MULTILINE))
    if said > len(subtitles):
        yield Warned("file", "cue that cannot be read", f"{said - len(subtitles)} of {said} dialogue lines")
    yield transcript(name_of(path), "file", cues, options) or Refused("file", "no text in it", f"{len(cues)} cues")


def is_timed(head: str) -> bool:
    """True if a text is subtitles, whatever its name says."""
    return head.startswith("WEBVTT") or len(LOOKS_TIMED.findall(head)) >= 1 and _begins_timed(head)


def _begins_timed(head: str) -> bool:
    rows = [row for row in head.split("\n") if row.strip()][:2]
    return any(ARROW.match(row) or COMMA.match(row) for row in rows)
