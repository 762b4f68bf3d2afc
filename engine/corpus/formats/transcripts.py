"""JSON documents that are one transcript: YouTube json3, transcript lists, Whisper. Light."""

from collections.abc import Iterator
from typing import Any

from engine.corpus.formats.cues import Cue, transcript
from engine.corpus.formats.rows import Found, Options, Refused, Warned


def is_cue(item: Any) -> bool:
    """An entry of a transcript list, as youtube-transcript-api and others write it."""
    return isinstance(item, dict) and "text" in item and "start" in item and ("duration" in item or "end" in item)


def is_transcript(document: dict) -> bool:
    return _events(document) is not None or _segments(document) is not None


def read(name: str, document: dict | list, options: Options) -> Iterator[Found]:
    """One record of a document for which `is_transcript` (or `is_cue` of its entries) holds."""
    if isinstance(document, list):
        found = [_entry(item, n, "start") for n, item in enumerate(document, 1)]
    elif (events := _events(document)) is not None:
        found = [_event(item, n) for n, item in enumerate(events, 1)]
    else:
        found = [_entry(item, n, "start") for n, item in enumerate(_segments(document), 1)]
    cues = [item for item in found if isinstance(item, Cue)]
    yield from (item for item in found if isinstance(item, Warned))
    yield transcript(name, "file", cues, options) or Refused("file", "no text in it", f"{len(cues)} cues")


def _events(document: dict) -> list | None:
    events = document.get("events")
    return events if isinstance(events, list) and any(isinstance(e, dict) and "tStartMs" in e for e in events) else None


def _segments(document: dict) -> list | None:
    segments = document.get("segments")
    known = isinstance(segments, list) and any(isinstance(s, dict) and "text" in s and "start" in s for s in segments)
    return segments if known else None


def _entry(item: Any, number: int, start: str) -> Cue | Warned:
    text = item.get("text") if isinstance(item, dict) else None
    seconds = _seconds(item.get(start)) if isinstance(item, dict) else None
    if not isinstance(text, str) or seconds is None:
        return Warned(f"entry {number}", "cue that cannot be read", "it needs a text and a start in seconds")
    speaker = item.get("speaker")
    return Cue(seconds, text.strip(), speaker if isinstance(speaker, str) else "")


def _event(item: Any, number: int) -> Cue | Warned | None:
    """An event of json3; one without segs only opens a window, and one of a line end only scrolls."""
    if not isinstance(item, dict) or not isinstance(item.get("segs", []), list):
        return Warned(f"event {number}", "cue that cannot be read", "it is no event with segs")
    pieces = [seg.get("utf8") for seg in item.get("segs", []) if isinstance(seg, dict)]
    seconds = _seconds(item.get("tStartMs", 0))
    if seconds is None or not all(isinstance(piece, str | None) for piece in pieces):
        return Warned(f"event {number}", "cue that cannot be read", "its time or a segment is no number or text")
    text = "".join(piece for piece in pieces if piece)
    return Cue(seconds / 1000, text) if text.strip() else None


def _seconds(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        return None
    return seconds if abs(seconds) < 1e12 else None
