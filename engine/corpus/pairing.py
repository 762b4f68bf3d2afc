"""Papers and videos on the same subject: given by pair_id, or the nearest to each other. Light; vectors come from outside."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from engine.corpus.records import Record
from engine.corpus.terms import Lexicon

BLOCK = 1024


class Match(NamedTuple):
    """A pair: positions in both lists, cosine of the two texts, whether the data said so."""

    paper: int
    video: int
    score: float
    given: bool


def given(papers: Sequence[Record], videos: Sequence[Record]) -> list[tuple[int, int]]:
    """Pairs the records name themselves: a pair_id that one paper and one video have, blanks aside."""
    sides = [_by_pair(papers), _by_pair(videos)]
    return [
        (sides[0][name][0], sides[1][name][0])
        for name in sides[0]
        if len(sides[0][name]) == 1 and len(sides[1].get(name, ())) == 1
    ]


def _by_pair(records: Sequence[Record]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for number, record in enumerate(records):
        if record.pair_id and record.pair_id.strip():
            found.setdefault(record.pair_id.strip(), []).append(number)
    return found


def matches(papers: np.ndarray, videos: np.ndarray, named: Sequence[tuple[int, int]], threshold: float) -> list[Match]:
    """Named pairs, then pairs of which each side is the other's nearest (cosine at least `threshold`), best first.

    papers (n, d), videos (m, d): unit vectors. One to one: a record of a named pair is not matched again. Of equal
    neighbours the first counts.
    """
    found = [Match(a, b, float(papers[a] @ videos[b]), True) for a, b in named]
    free = [
        np.setdiff1d(np.arange(len(side)), [pair[place] for pair in named])
        for place, side in enumerate((papers, videos))
    ]
    if not len(free[0]) or not len(free[1]):
        return found
    one, other, scores = _nearest(papers[free[0]], videos[free[1]])
    mutual = [n for n in range(len(one)) if other[one[n]] == n and scores[n] >= threshold]
    mined = [Match(int(free[0][n]), int(free[1][one[n]]), float(scores[n]), False) for n in mutual]
    return found + sorted(mined, key=lambda match: (-match.score, match.paper))


def _nearest(papers: np.ndarray, videos: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(nearest video of each paper, nearest paper of each video, cosine of each paper's), block by block."""
    one, scores = np.zeros(len(papers), int), np.zeros(len(papers))
    other, best = np.zeros(len(videos), int), np.full(len(videos), -np.inf)
    for start in range(0, len(papers), BLOCK):
        cosines = papers[start : start + BLOCK] @ videos.T
        one[start : start + BLOCK], scores[start : start + BLOCK] = cosines.argmax(axis=1), cosines.max(axis=1)
        better = cosines.max(axis=0) > best
        other[better], best[better] = start + cosines.argmax(axis=0)[better], cosines.max(axis=0)[better]
    return one, other, scores


def shared_terms(lexicon: Lexicon, paper: Record, video: Record) -> list[str]:
    """Terms of the lexicon that both sides say, in source or summary."""
    sides = [
        {span.term for span in lexicon.spans(f"{r.title or ''}\n{r.summary or ''}\n{r.source}")} for r in (paper, video)
    ]
    return sorted(sides[0] & sides[1])
