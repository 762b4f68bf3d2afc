"""The table of metrics: what each is called, its unit and which way is better. Light; the scoring is in metrics.py."""

from typing import NamedTuple


class Metric(NamedTuple):
    """scale: cells of a table are the mean of the documents' scores times this (100: percent; 1: as it is).

    better: 1 higher, -1 lower, 0 neither: a description, not a judgement.
    """

    label: str
    scale: float = 100.0
    better: int = 1
    meaning: str = ""


METRICS = {
    "rougeL": Metric("ROUGE-L", meaning="F1 of the longest common subsequence, stemmed"),
    "bertscore_f1": Metric("BERTScore F1", meaning="F1 of greedily matched contextual embeddings"),
    "rouge1": Metric("ROUGE-1", meaning="F1 of words, stemmed"),
    "rouge2": Metric("ROUGE-2", meaning="F1 of word pairs, stemmed"),
    "rougeLsum": Metric("ROUGE-Lsum", meaning="ROUGE-L by sentence: their order does not matter"),
    "bertscore_precision": Metric("BERTScore P", meaning="how much of the output stands in the reference"),
    "bertscore_recall": Metric("BERTScore R", meaning="how much of the reference stands in the output"),
    "bertscore_composite": Metric("BERTScore composite", meaning="F1 x min(length ratio, 1 / length ratio) ^ 0.1"),
    "nll": Metric("NLL per token", 1.0, -1, "negative log-likelihood of the reference, nats per token"),
    "term_recall": Metric("term recall", meaning="lexicon terms of the reference that the output has"),
    "term_precision": Metric("term precision", meaning="lexicon terms of the output that the reference has"),
    "term_support": Metric("term support", meaning="lexicon terms of the output that the source has"),
    "length_ratio": Metric("length ratio", 1.0, 0, "words of the output / words of the reference"),
    "empty": Metric("empty", 100.0, -1, "outputs without a word"),
    "unique_tokens": Metric("unique words", 100.0, 0, "distinct words / words of the output"),
    "repetition": Metric("repetition", 100.0, -1, "1 - distinct 3-grams / 3-grams of the output"),
    "novelty": Metric("novelty", 100.0, 0, "2-grams of the output that the source does not have"),
    "copy": Metric("copy rate", 100.0, 0, "4-grams of the output that the source has"),
}
HEADLINE = ("rougeL", "bertscore_f1", "nll")  # tested and shown first; term_recall joins where there is a lexicon
COLUMN_ORDER = ("papers", "videos")  # then any other column by name, `general` last


def columns_in_order(found) -> list[str]:
    """Column names as tables show them."""
    known = [column for column in COLUMN_ORDER if column in found]
    return known + sorted(set(found) - set(known), key=lambda column: (column == "general", column))


def digits(metric: str) -> int:
    """Decimals that a cell of this metric is shown with."""
    return 1 if METRICS[metric].scale == 100 else 3
