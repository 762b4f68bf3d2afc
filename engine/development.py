"""Scores of a model in training on development documents: what early stopping and averaging choose by."""

from collections.abc import Sequence
from itertools import islice

from accelerate import Accelerator
from accelerate.utils import gather_object

from engine.batches import Encoder
from engine.corpus import terms
from engine.corpus.records import Record
from engine.corpus.split import COLUMNS
from engine.evaluation import bertscore, plain, score
from engine.evaluation.generate import generate
from engine.evaluation.likelihood import reference_nll
from engine.evaluation.table import METRICS
from engine.mixture import generator
from engine.settings import Settings

NAME = "development"  # of the set, in events


def documents(settings: Settings, held: Sequence[Record], encoder: Encoder) -> list[Record]:
    """`evaluate.samples` development documents of each modality at most, that fit into data.max_summary_length."""
    chosen = []
    for modality in COLUMNS:
        members = [k for k, record in enumerate(held) if record.modality == modality]
        limit = settings.evaluate.samples or len(members)
        drawn = generator("development", modality).sample(members, len(members))
        records = (held[k] for k in drawn)
        chosen += islice((record for record in records if modality == "document" or _fits(encoder, record)), limit)
    return chosen


def _fits(encoder: Encoder, record: Record) -> bool:
    return encoder.encode([record])[0] is not None


def scores(
    accelerator: Accelerator, model, encoder: Encoder, records: Sequence[Record], settings: Settings
) -> dict[str, dict[str, float]]:
    """{column: {metric: mean}}: nll in nats per token, and evaluate.metric of greedy summaries unless it is nll.

    The processes share the documents; every one of them gets the whole result.
    """
    mine = [records[index] for index in range(accelerator.process_index, len(records), accelerator.num_processes)]
    rows = _write(model, encoder, mine, settings)
    rows = gather_object(rows) if accelerator.num_processes > 1 else rows
    metric = settings.evaluate.metric
    if metric != "nll":
        judge = bertscore.judge(settings.evaluate.bertscore_model) if metric.startswith("bertscore") else None
        lexicon = terms.load(settings.data.terms) if settings.data.terms else None
        rows, _ = score.rows(rows, [row.pop("source") for row in rows], judge, lexicon)
    found = score.columns(rows)
    return {column: {m: means[m] for m in ("nll", metric) if m in means} for column, means in found.items()}


def _write(model, encoder: Encoder, records: list[Record], settings: Settings) -> list[dict]:
    """Rows as an evaluation has them, scores holding nll alone; outputs only where a metric wants them."""
    size = settings.evaluate.batch_size
    texts = [record for record in records if record.modality != plain.MODALITY]
    read = [record for record in records if record.modality == plain.MODALITY]
    rows = _with_nll(model, encoder, texts, encoder.encode(texts), size)
    if settings.evaluate.metric != "nll":
        for batch in generate(model, encoder, texts, settings.generate.max_new_tokens, size):
            for output in batch:
                rows[output.index]["output"] = output.text
    return rows + _with_nll(model, encoder, read, encoder.plain(read), size)


def _with_nll(model, encoder: Encoder, records: list[Record], encoded: list, size: int) -> list[dict]:
    rows = []
    for first in range(0, len(records), size):
        batch = encoded[first : first + size]
        values = reference_nll(model, batch, encoder.tokenizer.pad_token_id)
        for record, document, value in zip(records[first : first + size], batch, values, strict=True):
            rows.append({
                "modality": record.modality,
                "source": record.source,
                "reference": record.summary,
                "output": None,
                "summary_tokens": document.summary_tokens,
                "scores": {"nll": value},
            })  # fmt: skip
    return rows


def overall(found: dict[str, dict[str, float]], metric: str) -> float:
    """One number, higher is better: the mean of a metric over the columns that have it (negated where lower is better)."""
    values = [column[metric] for column in found.values() if metric in column]
    return METRICS[metric].better * sum(values) / len(values)
