"""Scores of a model in training on development documents: what early stopping and averaging choose by."""

from collections.abc import Sequence

from accelerate import Accelerator
from accelerate.utils import gather_object

from engine.batches import Encoder
from engine.corpus.records import Record
from engine.corpus.split import COLUMNS
from engine.evaluation import metrics
from engine.evaluation.generate import generate
from engine.evaluation.run import reference_nll
from engine.mixture import generator
from engine.settings import Settings

NAME = "development"  # of the set, in events


def documents(settings: Settings, held: Sequence[Record], encoder: Encoder) -> list[Record]:
    """`evaluate.samples` development documents of each modality at most, that fit into data.max_summary_length."""
    chosen = []
    for modality in COLUMNS:
        members = [record for record in held if record.modality == modality]
        if modality != "document":
            rows = encoder.encode(members)
            members = [record for record, row in zip(members, rows, strict=True) if row]
        limit = settings.evaluate.samples or len(members)
        chosen += generator("development", modality).sample(members, min(limit, len(members)))
    return chosen


def scores(
    accelerator: Accelerator, model, encoder: Encoder, records: Sequence[Record], settings: Settings
) -> dict[str, dict[str, float]]:
    """{column: {metric: mean}}: nll in nats per token, and ROUGE 0-100 of greedy summaries if evaluate.metric is one.

    The processes share the documents; every one of them gets the whole result.
    """
    mine = [records[index] for index in range(accelerator.process_index, len(records), accelerator.num_processes)]
    rows = _score(model, encoder, mine, settings)
    rows = gather_object(rows) if accelerator.num_processes > 1 else rows
    found: dict[str, dict[str, float]] = {}
    for column in COLUMNS.values():
        of_column = [row for row in rows if row["column"] == column]
        for metric in sorted({name for row in of_column for name in row} - {"column", "tokens"}):
            weight = [row["tokens"] if metric == "nll" else 1 for row in of_column]
            total = sum(w * row[metric] for w, row in zip(weight, of_column, strict=True))
            found.setdefault(column, {})[metric] = total / sum(weight)
    return found


def _score(model, encoder: Encoder, records: list[Record], settings: Settings) -> list[dict]:
    metric, size = settings.evaluate.metric, settings.evaluate.batch_size
    texts = [record for record in records if record.modality != "document"]
    plain = [record for record in records if record.modality == "document"]
    rows = _with_nll(model, encoder, texts, encoder.encode(texts), size) + _with_nll(
        model, encoder, plain, encoder.plain(plain), size
    )
    if metric != "nll":
        for batch in generate(model, encoder, texts, settings.generate.max_new_tokens, size):
            for output in batch:
                rows[output.index][metric] = 100 * metrics.rouge(texts[output.index].summary, output.text)[metric]
    return rows


def _with_nll(model, encoder: Encoder, records: list[Record], encoded: list, size: int) -> list[dict]:
    rows = []
    for first in range(0, len(records), size):
        batch = encoded[first : first + size]
        values = reference_nll(model, batch, encoder.tokenizer.pad_token_id)
        for record, document, value in zip(records[first : first + size], batch, values, strict=True):
            rows.append({"column": COLUMNS[record.modality], "tokens": document.summary_tokens, "nll": value})
    return rows


def overall(found: dict[str, dict[str, float]], metric: str) -> float:
    """One number, higher is better: the mean of a metric over the columns that have it (nll negated)."""
    values = [column[metric] for column in found.values() if metric in column]
    return (-1 if metric == "nll" else 1) * sum(values) / len(values)
