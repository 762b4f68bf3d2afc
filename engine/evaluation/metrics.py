"""Scores of one document, and their means over a column. ROUGE by rouge-score, stemmer on."""

from collections.abc import Sequence
from functools import lru_cache

from rouge_score import rouge_scorer

ROUGE = ("rouge1", "rouge2", "rougeL")


@lru_cache(maxsize=1)
def _scorer() -> rouge_scorer.RougeScorer:
    return rouge_scorer.RougeScorer(list(ROUGE), use_stemmer=True)


def rouge(reference: str, output: str) -> dict[str, float]:
    """F1 of ROUGE-1, -2 and -L, each 0..1, unrounded. An empty output scores 0."""
    if not output.strip():
        return dict.fromkeys(ROUGE, 0.0)
    return {name: score.fmeasure for name, score in _scorer().score(reference, output).items()}


def summarise(rows: Sequence[dict]) -> dict[str, float]:
    """Means of a column's rows ({scores: {...}, summary_tokens}): ROUGE x 100, nll in nats per summary token, n."""
    tokens = sum(row["summary_tokens"] for row in rows)
    means = {name: 100 * sum(row["scores"][name] for row in rows) / len(rows) for name in ROUGE}
    nll = sum(row["scores"]["nll"] * row["summary_tokens"] for row in rows) / tokens
    empty = 100 * sum(not row["output"].strip() for row in rows) / len(rows)
    return means | {"nll": nll, "empty": empty, "n": len(rows)}


def likelihood(rows: Sequence[dict]) -> dict[str, float]:
    """nll of plain documents in nats per token, and n."""
    tokens = sum(row["summary_tokens"] for row in rows)
    return {"nll": sum(row["scores"]["nll"] * row["summary_tokens"] for row in rows) / tokens, "n": len(rows)}
