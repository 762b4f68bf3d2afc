"""Scores of one document, and their means over a column. ROUGE by rouge-score, stemmer on."""

import re
import statistics
from collections.abc import Sequence
from functools import lru_cache

from engine.corpus.terms import Lexicon
from engine.evaluation.sentences import Split
from engine.evaluation.table import METRICS

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
Scores = dict[str, float | None]


def score(reference: str, output: str, source: str | None, split: Split, lexicon: Lexicon | None = None) -> Scores:
    """Every metric of one document that needs neither model nor encoder; 0..1 where METRICS has a scale of 100.

    None where a metric is undefined for this document (no term in the reference, no source, too few words): such
    documents are left out of a mean, which says how many it has.
    """
    found = rouge(reference, output, split) | form(reference, output, source)
    return found | terms(lexicon, reference, output, source) if lexicon else found


def rouge(reference: str, output: str, split: Split) -> Scores:
    """F1 of ROUGE-1, -2, -L and -Lsum, unrounded. An empty output scores 0. Lsum takes a sentence a line."""
    if not output.strip():
        return dict.fromkeys(ROUGE, 0.0)
    found = _scorer().score("\n".join(split(reference)), "\n".join(split(output)))
    return {name: float(value.fmeasure) for name, value in found.items()}


@lru_cache(maxsize=1)
def _scorer():
    from rouge_score import rouge_scorer  # nltk takes a second to import: not for a job that scores nothing

    return rouge_scorer.RougeScorer(list(ROUGE), use_stemmer=True)


def words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return re.findall(r"\w+", text.lower())


def form(reference: str, output: str, source: str | None) -> Scores:
    """What the output looks like, whatever it says: length, emptiness, repetition, and what it takes from the source."""
    written, wanted = words(output), words(reference)
    threes = _grams(written, 3)
    return {
        "length_ratio": len(written) / len(wanted) if wanted else None,
        "empty": float(not output.strip()),
        "unique_tokens": len(set(written)) / len(written) if written else None,
        "repetition": 1 - len(set(threes)) / len(threes) if threes else None,
        "novelty": _share(written, source, 2, inside=False),
        "copy": _share(written, source, 4, inside=True),
    }


def _share(written: list[str], source: str | None, n: int, inside: bool) -> float | None:
    """The share of the output's n-grams that the source has (inside), or has not."""
    grams = _grams(written, n)
    if not grams or source is None:
        return None
    known = set(_grams(words(source), n))
    return sum((gram in known) == inside for gram in grams) / len(grams)


def _grams(found: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(found[k:] for k in range(n)), strict=False))


def terms(lexicon: Lexicon, reference: str, output: str, source: str | None) -> Scores:
    """Lexicon terms as sets (METHODS, section 10): recall, precision, and support by the source."""
    wanted, written = term_set(lexicon, reference), term_set(lexicon, output)
    known = term_set(lexicon, source) if source is not None else None
    return {
        "term_recall": len(written & wanted) / len(wanted) if wanted else None,
        "term_precision": len(written & wanted) / len(written) if written else None,
        "term_support": len(written & known) / len(written) if written and known is not None else None,
    }


def term_set(lexicon: Lexicon, text: str) -> set[str]:
    return {span.term for span in lexicon.spans(text)}


def composite(f1: float, length_ratio: float | None) -> float:
    """F1 x min(r, 1/r)^0.1: half the length keeps 93 %. Our own definition (METHODS, section 10); empty is 0."""
    if not length_ratio:
        return 0.0
    return f1 * min(length_ratio, 1 / length_ratio) ** 0.1


def summarise(rows: Sequence[dict]) -> dict[str, float | None]:
    """Means of a column's rows ({scores: {...}, summary_tokens, output}) times the metric's scale, and n.

    nll is the mean over tokens, all else over documents. A metric that is undefined for some documents also gives
    NAME_n, the documents in its mean. Beside them: length_ratio_median; unique_summaries, distinct outputs in
    percent; length_spread, standard deviation of the outputs' words.
    """
    found: dict[str, float | None] = {}
    for name, metric in METRICS.items():
        if not any(name in row["scores"] for row in rows):
            continue
        given = [row for row in rows if row["scores"].get(name) is not None]
        weights = [row["summary_tokens"] if name == "nll" else 1 for row in given]
        total = sum(weight * row["scores"][name] for weight, row in zip(weights, given, strict=True))
        found[name] = metric.scale * total / sum(weights) if given else None
        if len(given) < len(rows):
            found[f"{name}_n"] = len(given)
    written = [row for row in rows if row["output"] is not None]
    return found | (_spread(written) if written else {}) | {"n": len(rows)}


def _spread(rows: Sequence[dict]) -> dict[str, float]:
    ratios = [value for row in rows if (value := row["scores"].get("length_ratio")) is not None]
    outputs = [row["output"].strip() for row in rows]
    return {
        **({"length_ratio_median": statistics.median(ratios)} if ratios else {}),
        "unique_summaries": 100 * len(set(outputs)) / len(outputs),
        "length_spread": statistics.pstdev(len(words(output)) for output in outputs),
    }
