"""The term lexicon: which words of a summary must not be lost. Light.

Matching (METHODS, section 7): on the original text, case-insensitive, at word boundaries. The words of a term may be
joined by any run of spaces, hyphens or underscores; the last word may be plural. Longest match first, no overlap. The
text is not normalised before, since that would move the character offsets.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from engine.settings import ConfigError

JOINT = r"[\s\-_\u2010\u2011\u2013]+"
SHORT = 4  # words under this many letters get no plural
SINGULAR_ENDINGS = ("ss", "us", "is")


class Span(NamedTuple):
    """text[start:end] is `term`, or a variant of it."""

    start: int
    end: int
    term: str


@dataclass(frozen=True)
class Lexicon:
    """Terms in lower case, words separated by single spaces."""

    terms: tuple[str, ...]

    @cached_property
    def _pattern(self) -> re.Pattern:
        longest_first = sorted(self.terms, key=lambda term: (-len(term), term))
        numbers = {term: number for number, term in enumerate(self.terms)}
        options: dict[str, list[str]] = {}  # by first letter: most places of a text are then passed with one look
        for term in longest_first:
            options.setdefault(term[0], []).append(f"(?P<t{numbers[term]}>{_expression(term)})")
        groups = "|".join(f"(?={re.escape(first)})(?:{'|'.join(found)})" for first, found in options.items())
        return re.compile(rf"(?<!\w)(?:{groups})(?!\w)", re.IGNORECASE)

    def spans(self, text: str) -> Iterator[Span]:
        """All matches in a text, from left to right."""
        if self.terms:
            for match in self._pattern.finditer(text):
                yield Span(match.start(), match.end(), self.terms[int(match.lastgroup[1:])])


def _expression(term: str) -> str:
    """A pattern for a term and its variants: joints, and the plural of its last word."""
    *first, last = term.split(" ")
    return JOINT.join([*map(re.escape, first), _plural(last)])


def _plural(word: str) -> str:
    if len(word) < SHORT or word.endswith(SINGULAR_ENDINGS) or not word[-1].isalpha():
        return re.escape(word)
    if word.endswith("y"):
        return rf"{re.escape(word[:-1])}(?:y|ys|ies)"
    return rf"{re.escape(word)}(?:s|es)?"


def load(path: Path) -> Lexicon:
    """A lexicon file: one term a line; blank lines and lines that begin with # are no terms. Raises ConfigError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise ConfigError(f"data.terms: {path}: no such file. It holds one term a line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"data.terms: {path}: cannot be read as UTF-8 text ({error})") from None
    words = (" ".join(re.split(JOINT, line.strip().lower())) for line in lines if not line.lstrip().startswith("#"))
    terms = tuple(dict.fromkeys(term.strip() for term in words if term.strip()))
    if not terms:
        raise ConfigError(f"data.terms: {path}: no term in it. Write one a line")
    return Lexicon(terms)
