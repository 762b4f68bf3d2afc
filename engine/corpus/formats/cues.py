"""From timed cues (subtitles, recogniser output) to a text that says everything once. Light."""

import html
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from engine.corpus.formats.rows import Options, Row

TAG = re.compile(r"</?[A-Za-z][^<>\n]{0,200}>|<\d[\d:.]*>|\{\\[^{}\n]{0,200}\}")
VOICE = re.compile(r"^\s*<v(?:\.[^ >]+)?\s+([^<>]{1,100})>")
INAUDIBLE = re.compile(r"<UN(?:IN|K)[^<>]{0,20}/>", re.IGNORECASE)
NAMED = re.compile(r"^([A-Z][\w.'-]{0,30}(?: [A-Z][\w.'-]{0,30}){0,3}):\s")
ROLLING_SHARE = 0.3  # of cues that begin with the end of the cue before
OVERLAP_WORDS = 3  # fewer repeated words are how people talk


class Cue(NamedTuple):
    """start in seconds; text with its line ends; speaker, where the file says who."""

    start: float
    text: str
    speaker: str = ""


def cleaned(text: str, speaker: str = "") -> tuple[str, str]:
    """(text without tags and entities, speaker): `<v Ann>Hi</v>` is ("Hi", "Ann")."""
    if voice := VOICE.match(text):
        speaker = voice.group(1).strip()
    plain = html.unescape(TAG.sub("", INAUDIBLE.sub("[inaudible]", text))).replace("\u200b", "").replace("\xa0", " ")
    rows = (" ".join(row.split()) for row in plain.split("\n"))
    return "\n".join(row for row in rows if row), speaker


def transcript(name: str, where: str, cues: Iterable[Cue], options: Options, rolling: bool = False) -> Row | None:
    """One record of all cues in the order of time, or None if nobody says anything.

    rolling: the file is known to repeat lines, as live captions do; else that is found out.
    """
    spoken = [Cue(cue.start, *cleaned(cue.text, cue.speaker)) for cue in sorted(cues, key=lambda cue: cue.start)]
    spoken = [cue for cue in spoken if cue.text]
    if rolling or _is_rolling(spoken):
        spoken = _said_once(spoken)
    if not spoken:
        return None
    return Row(where, {"id": name, "source": _joined(spoken, options), "group": name}, ready=True)


def _is_rolling(cues: Sequence[Cue]) -> bool:
    repeats = sum(_repeated(a.text.split("\n"), b.text.split("\n")) > 0 for a, b in zip(cues, cues[1:], strict=False))
    return len(cues) > 3 and repeats >= ROLLING_SHARE * len(cues)


def _repeated(before: list[str], rows: list[str]) -> int:
    """How many of the first rows are the last ones of what came before."""
    return next((n for n in range(min(len(before), len(rows)), 0, -1) if before[-n:] == rows[:n]), 0)


def _said_once(cues: Sequence[Cue]) -> list[Cue]:
    """Cut from every cue what the screen still shows of the cue before: whole rows, or a run of words."""
    shown, words, found = [], [], []
    for cue in cues:
        rows = cue.text.split("\n")
        fresh = rows[_repeated(shown, rows) :]
        new = " ".join(fresh).split()
        overlap = next((n for n in range(min(len(words), len(new), 60), 0, -1) if words[-n:] == new[:n]), 0)
        if fresh and (overlap >= OVERLAP_WORDS or overlap and overlap == len(words)):
            new = new[overlap:]
        shown, words = rows, (new or words)
        if new:
            found.append(cue._replace(text=" ".join(new)))
    return found


def _joined(cues: Sequence[Cue], options: Options) -> str:
    """Turns on lines of their own where speakers or times are kept, else one flow."""
    turns: list[tuple[str, str, list[str]]] = []
    for cue in cues:
        speaker = cue.speaker if options.speakers else ""
        flow = " ".join(cue.text.split("\n")) if "\n- " not in f"\n{cue.text}" else cue.text
        starts = options.times or not turns or turns[-1][0] != speaker or NAMED.match(flow) or flow.startswith("- ")
        if not starts:
            turns[-1][2].append(flow)
        else:
            turns.append((speaker, f"[{clock(cue.start)}] " if options.times else "", [flow]))
    return "\n".join(f"{time}{f'{who}: ' if who else ''}{' '.join(texts)}" for who, time, texts in turns)


def clock(seconds: float) -> str:
    whole = int(min(max(seconds, 0), 360_000_000))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
