"""Making a lexicon: a curated list, candidates mined from the user's own texts, variants put together. Light.

Candidates are word pairs and triples that stand together more often than their words would (Dunning's likelihood ratio,
by nltk) and, where general text is given, more often than they do there (the same ratio over the two corpora; Rayson and
Garside 2000). They are proposals: a person keeps or strikes lines of the file.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.corpus.records import Record
from engine.corpus.terms import JOINT, Lexicon

CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
TOKEN = re.compile(r"[^\W_]+(?:['’][^\W_]+)?|[.;:!?,()\[\]\n]")
EDGE_WORDS = frozenset(
    """
    a about above after again all also am an and any are as at be because been before being below between both but
    by can could did do does doing down during each either few for from further had has have having he her here
    hers him his how i if in into is it its itself just may me might more most must my no nor not of off on once
    one only or other our out over own per same she should so some such than that the their theirs them then there
    these they this those three through to too two under until up upon us very via was we were what when where
    which while who whom why will with within without would yes you your yours compared using used use well
    however among versus vs et al okay um uh yeah right like know going get got go thing things really gonna want
    """.split()  # noqa: SIM905 - a list of words reads better as a text
)
FILLERS = frozenset(
    ("gon", "na", "wan", "gonna", "wanna", "um", "uh", "yeah", "okay", "inaudible")
)  # of speech, nowhere in a term
RATIO = 10.83  # likelihood ratio with p < 0.001 at one degree of freedom


@dataclass(frozen=True)
class Candidate:
    """A mined term: how often it stands in the texts, and its two ratios (against: None without general text)."""

    term: str
    count: int
    together: float
    against: float | None


@dataclass(frozen=True)
class Usage:
    """A term in one data set: how often in sources and in summaries, and in how many summaries."""

    term: str
    in_sources: int
    in_summaries: int
    summaries: int


def canonical(term: str) -> str:
    """Lower case, single spaces: `Heart_Failure`, `heart-failure` and `HeartFailure` are "heart failure"."""
    return " ".join(word for word in re.split(JOINT, CAMEL.sub(" ", term.strip()).lower()) if word)


def merged(terms: Iterable[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """(terms without variants of each other, {variant: the term that finds it}). The first spelling of a term is kept."""
    kept = tuple(dict.fromkeys(filter(None, map(canonical, terms))))
    variants = {given: canonical(given) for given in terms if given != canonical(given)}
    for term in kept:
        for shorter in _singulars(term):
            if shorter in kept and any(span.end - span.start == len(term) for span in Lexicon((shorter,)).spans(term)):
                variants[term] = shorter
    return tuple(term for term in kept if term not in variants), variants


def _singulars(term: str) -> list[str]:
    endings = (("ies", "y"), ("es", ""), ("s", ""))
    return [term[: -len(plural)] + single for plural, single in endings if term.endswith(plural)]


def coverage(before: Sequence[str], after: Lexicon, texts: Iterable[str]) -> tuple[int, int]:
    """(occurrences of the given spellings, how many of those places the merged lexicon still finds)."""
    spellings = sorted({term.strip() for term in before if term.strip()}, key=lambda term: (-len(term), term))
    if not spellings:
        return 0, 0
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, spellings))})(?!\w)", re.IGNORECASE)
    found = kept = 0
    for text in texts:
        places = [match.span() for match in pattern.finditer(text)]
        spans = list(after.spans(text)) if places else []
        found += len(places)
        kept += sum(any(span.start < end and start < span.end for span in spans) for start, end in places)
    return found, kept


def usage(lexicon: Lexicon, records: Iterable[Record]) -> list[Usage]:
    """Terms of a data set that occur at all, the most frequent in summaries first."""
    sources, summaries, holding = Counter(), Counter(), Counter()
    for record in records:
        sources.update(span.term for span in lexicon.spans(record.source))
        terms = [span.term for span in lexicon.spans(record.summary or "")]
        summaries.update(terms)
        holding.update(set(terms))
    rows = [Usage(term, sources[term], summaries[term], holding[term]) for term in lexicon.terms]
    rows = [row for row in rows if row.in_sources or row.in_summaries]
    return sorted(rows, key=lambda row: (-row.in_summaries, -row.in_sources, row.term))


def mined(
    texts: Sequence[str], general: Sequence[str], known: Lexicon, least: int = 5, most: int = 200
) -> list[Candidate]:
    """Multi-word candidates the lexicon does not know, the strongest first.

    least: occurrences; most: candidates. Words at the edges of a term are no function words, and none is a number.
    """
    ours, theirs = _tokens(texts), _tokens(general)
    candidates = []
    for length in (2, 3):
        counts, elsewhere = _ngrams(ours, length), _ngrams(theirs, length)
        for words, together in _collocations(ours, length, least):
            against = None
            if general:
                against = likelihood_ratio(
                    counts[words], sum(counts.values()), elsewhere[words], sum(elsewhere.values())
                )
                if against < RATIO:
                    continue
            term = " ".join(words)
            if together >= RATIO and not any(span.end - span.start == len(term) for span in known.spans(term)):
                candidates.append(Candidate(term, counts[words], together, against))
    candidates.sort(key=lambda c: (-(c.against if c.against is not None else c.together), c.term))
    return candidates[:most]


def likelihood_ratio(ours: int, our_total: int, theirs: int, their_total: int) -> float:
    """Dunning's G2 of a count in two corpora; negative where it is the rarer one in ours. 0 if it is as frequent."""
    share = (ours + theirs) / (our_total + their_total)
    terms = [(ours, our_total * share), (theirs, their_total * share)]
    value = 2 * sum(seen * math.log(seen / expected) for seen, expected in terms if seen)
    return value if ours * their_total >= theirs * our_total else -value


def _tokens(texts: Sequence[str]) -> list[list[str]]:
    """Lower-case words of each text; punctuation stays, so that no term reaches over it."""
    return [TOKEN.findall(text.lower()) for text in texts]


def _fits(words: tuple[str, ...]) -> bool:
    edges = {words[0], words[-1]}
    return (
        all(word[0].isalnum() and not word.isdigit() for word in words)
        and not edges & EDGE_WORDS
        and not FILLERS.intersection(words)
        and all(len(word) > 2 for word in edges)
    )


def _ngrams(documents: list[list[str]], length: int) -> Counter:
    return Counter(words for tokens in documents for words in zip(*(tokens[n:] for n in range(length)), strict=False))


def _collocations(documents: list[list[str]], length: int, least: int) -> list[tuple[tuple[str, ...], float]]:
    """n-grams that occur often enough and fit, with the likelihood ratio of their parts standing together.

    Of three words it is the smaller of (first two, last) and (first, last two): a firm pair with any third word is no term.
    """
    from nltk.collocations import BigramAssocMeasures, BigramCollocationFinder, TrigramCollocationFinder  # a second

    ratio = BigramAssocMeasures.likelihood_ratio
    found = (BigramCollocationFinder if length == 2 else TrigramCollocationFinder).from_documents(documents)
    found.apply_freq_filter(least)
    found.apply_ngram_filter(lambda *words: not _fits(words))
    if length == 2:
        return found.score_ngrams(ratio)
    single, double = found.word_fd, found.bigram_fd
    return [
        (
            (a, b, c),
            min(
                ratio(count, (double[a, b], single[c]), found.N),
                ratio(count, (single[a], double[b, c]), found.N),
            ),
        )
        for (a, b, c), count in found.ngram_fd.items()
    ]
