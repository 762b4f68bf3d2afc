"""From outputs to scores: the same function judges a checkpoint's outputs and those of any other program."""

import time
from collections.abc import Callable, Sequence

from engine import files
from engine.corpus.split import COLUMNS
from engine.corpus.terms import Lexicon
from engine.evaluation import bertscore, metrics
from engine.evaluation.sentences import model_name, splitter
from engine.evaluation.table import METRICS, columns_in_order
from engine.events import Emit, Scored, Stage
from engine.settings import Settings
from engine.work import Cancelled

CHUNK = 512  # documents that BERTScore takes at once; a cancel is heeded between two
REPORT_EVERY = 1.0  # seconds between two reports of progress


def identity(settings: Settings, judge: bertscore.Judge | None) -> list:
    """What decides the scores of given outputs, beside the outputs."""
    lexicon = files.sha256(settings.data.terms) if settings.data.terms else None
    return [judge, lexicon, model_name()]


def rows(
    written: Sequence[dict],
    sources: Sequence[str | None],
    judge: bertscore.Judge | None,
    lexicon: Lexicon | None,
    cancelled: Callable[[], bool] = lambda: False,
    emit: Emit = lambda event: None,
) -> tuple[list[dict], dict]:
    """(rows with all their scores, how they were scored). written: {reference, output, scores: {nll} or {}, ...}.

    How: {sentences, bertscore, remarks: things worth a warning}. Raises Cancelled between documents, or chunks of them.
    """
    emit(Stage("scoring"))
    texts = [text for row, source in zip(written, sources, strict=True) for text in (row["reference"], source) if text]
    split, sentences = splitter(texts)
    scored, reported = [], time.monotonic()
    for row, source in zip(written, sources, strict=True):
        if cancelled():
            raise Cancelled
        if time.monotonic() - reported >= REPORT_EVERY:
            emit(Scored(len(scored), len(written)))
            reported = time.monotonic()
        if row["output"] is None:  # a plain document: nothing was to be written
            scored.append(dict(row))
            continue
        found = metrics.score(row["reference"], row["output"], source, split, lexicon)
        given = {"nll": row["scores"]["nll"]} if "nll" in row["scores"] else {}
        scored.append(row | {"scores": given | found})
    emit(Scored(len(scored), len(written)))
    remarks = []
    summaries = [row for row in scored if row["output"] is not None]
    if judge and summaries:
        emit(Stage("bertscore"))
        _add_bertscore(summaries, judge, cancelled, emit)
        if cut := bertscore.cut(judge, [text for row in summaries for text in (row["reference"], row["output"])]):
            remarks.append(
                f"BERTScore reads {cut} of {2 * len(summaries)} texts only in part: they are too long for it"
            )
    for row in scored:
        row["scores"] = {name: row["scores"][name] for name in METRICS if name in row["scores"]}
    return scored, {"sentences": sentences, "bertscore": judge.name if judge else None, "remarks": remarks}


def _add_bertscore(scored: list[dict], judge: bertscore.Judge, cancelled: Callable[[], bool], emit: Emit) -> None:
    emit(Scored(0, len(scored)))
    for first in range(0, len(scored), CHUNK):
        if cancelled():
            raise Cancelled
        chunk = scored[first : first + CHUNK]
        found = bertscore.score(judge, [row["reference"] for row in chunk], [row["output"] for row in chunk])
        for row, (precision, recall, f1) in zip(chunk, found, strict=True):
            row["scores"] |= {
                "bertscore_precision": precision,
                "bertscore_recall": recall,
                "bertscore_f1": f1,
                "bertscore_composite": metrics.composite(f1, row["scores"]["length_ratio"]),
            }
        emit(Scored(first + len(chunk), len(scored)))


def columns(scored: Sequence[dict]) -> dict[str, dict]:
    """{column: means}; a modality without a column of its own name is a column too."""
    members: dict[str, list[dict]] = {}
    for row in scored:
        members.setdefault(COLUMNS.get(row["modality"], row["modality"]), []).append(row)
    return {column: metrics.summarise(members[column]) for column in columns_in_order(members)}
