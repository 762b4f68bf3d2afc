"""Plain documents of a test set: they are only read, and their likelihood is a column of the forgetting table."""

from collections.abc import Sequence

from torch import nn

from engine.batches import Encoder
from engine.corpus.records import Record
from engine.evaluation.likelihood import reference_nll
from engine.work import Cancelled, Work

MODALITY = "document"


def read_all(
    work: Work, model: nn.Module, encoder: Encoder, records: Sequence[Record], rank: int = 0, processes: int = 1
) -> list[dict]:
    """A row for each document with the mean nll of its tokens after the first; nothing is generated. Raises Cancelled.

    Of several processes each reads every n-th batch, so that the batches stay those of one process.
    """
    documents, size, rows = encoder.plain(records), work.settings.evaluate.batch_size, []
    for first in range(rank * size, len(records), processes * size):
        if work.cancelled():
            raise Cancelled
        batch = documents[first : first + size]
        values = reference_nll(model, batch, encoder.tokenizer.pad_token_id)
        for record, document, value in zip(records[first : first + size], batch, values, strict=True):
            rows.append({
                "id": record.id,
                "modality": record.modality,
                **({"group": record.group} if record.group else {}),
                "source_tokens": len(document.ids),
                "summary_tokens": document.summary_tokens,
                "output_tokens": 0,
                "reference": None,
                "output": None,
                "scores": {"nll": value},
            })  # fmt: skip
    return rows
