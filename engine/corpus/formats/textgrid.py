"""Praat TextGrids, long and short. Light.

Praat itself reads such a file as a list of values (quoted texts, numbers, flags) and takes everything else for remarks;
so does this. Files of one recording, one speaker each (`visit_doctor`, `visit_patient`), are merged by time.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from engine.corpus.formats.cues import Cue, transcript
from engine.corpus.formats.rows import Found, Options, Refused, Warned, name_of, text_of

VALUE = re.compile(r'"((?:[^"]|"")*)"|<(\w+)>|(?<![\w\[.:+-])([+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)(?![\w\].:])')


class _Values:
    """The values of a file, taken one by one. Raises ValueError that names the line where another kind stands."""

    def __init__(self, text: str):
        self._text, self._found, self._at = text, VALUE.finditer(text), 0

    def text(self) -> str:
        return self._next(1, "a text in quotes").replace('""', '"')

    def number(self) -> float:
        return float(self._next(3, "a number"))

    def flag(self) -> str:
        return self._next(2, "<exists>")

    @property
    def line(self) -> int:
        return self._text.count("\n", 0, self._at) + 1

    def _next(self, group: int, wanted: str) -> str:
        match = next(self._found, None)
        if match is None:
            self._at = len(self._text)
            raise ValueError(f"line {self.line}: the file ends where {wanted} is expected")
        self._at = match.start()
        if match.group(group) is None:
            raise ValueError(f"line {self.line}: {wanted} is expected, not {match.group()[:40]!r}")
        return match.group(group)


def read(paths: list[Path], options: Options) -> Iterator[Found]:
    """One record of the TextGrids of one recording."""
    cues: list[Cue] = []
    for path in paths:
        for item in text_of(path):
            if not isinstance(item, str):
                yield item._replace(where=f"{path.name} {item.where}" if len(paths) > 1 else item.where)
            else:
                yield from _tiers(item, path, cues)
    if not cues:
        yield Refused("file", "no text in it", "no interval with text")
        return
    name = name_of(paths[0]) if len(paths) == 1 else recording(paths[0])
    yield transcript(name, "file", cues, options) or Refused("file", "no text in it", f"{len(cues)} empty intervals")


def recording(path: Path) -> str:
    """What the files of one recording have in common: the name up to its last underscore."""
    return name_of(path).rpartition("_")[0] or name_of(path)


def _tiers(text: str, path: Path, cues: list[Cue]) -> Iterator[Found]:
    values = _Values(text)
    try:
        kind = values.text(), values.text()
        if kind != ("ooTextFile", "TextGrid"):
            raise ValueError("line 1: the file does not begin as a TextGrid")
        values.number(), values.number()
        if values.flag() != "exists":
            return
        for _ in range(int(values.number())):
            _tier(values, cues)
    except (ValueError, OverflowError) as error:
        place, _, why = str(error).partition(": ")
        yield Warned(
            place if why else "file",
            "TextGrid that cannot be read to its end",
            f"{path.name}: {why or error}; {len(cues)} intervals before it are kept",
        )


def _tier(values: _Values, cues: list[Cue]) -> None:
    points = values.text() == "TextTier"
    speaker = values.text()
    values.number(), values.number()
    for _ in range(int(values.number())):
        start = values.number()
        if not points:
            values.number()
        if text := values.text().strip():
            cues.append(Cue(start, text, speaker))
