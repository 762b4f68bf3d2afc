"""What a run remembers: a stratified buffer of old records, and the base's own answers to video prompts."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from engine import files
from engine.batches import Encoded, Encoder
from engine.corpus.records import Record, read, write_jsonl
from engine.evaluation.generate import generate
from engine.events import Generated, Stage
from engine.mixture import generator, integer
from engine.work import Cancelled, Work

BUFFER = "replay.jsonl"
ANSWERS = "answers.json"


def load_buffer(checkpoint: Path | None) -> list[Record]:
    """The records kept by all phases so far; they lie whole beside the checkpoint, so other data files do not matter."""
    path = checkpoint / BUFFER if checkpoint else None
    return read(path) if path and path.exists() and path.stat().st_size else []


def save_buffer(folder: Path, records: Sequence[Record]) -> None:
    write_jsonl(folder / BUFFER, list(records))


def teacher(record: Record) -> str:
    """The phase that put a record into the buffer; its adapter is what the record is held to."""
    return record.extra["phase"]


def choose(records: Sequence[Record], share: float, seed: int, phase: str) -> list[Record]:
    """`share` of a phase's records, marked with the phase, stratified by modality, domain and length (terciles), by largest remainder.

    Which ones follows from (seed, phase). Keeps at least one record where share > 0.
    """
    wanted = min(len(records), max(1, round(share * len(records)))) if share and records else 0
    strata: dict[tuple, list[Record]] = {}
    for kind in sorted({(record.modality, record.domain or "") for record in records}):
        members = [record for record in records if (record.modality, record.domain or "") == kind]
        by_length = sorted(members, key=lambda record: (len(record.source), record.id))
        for tercile in range(3):
            part = by_length[len(members) * tercile // 3 : len(members) * (tercile + 1) // 3]
            if part:
                strata[(*kind, tercile)] = part
    quotas = {key: wanted * len(part) / len(records) for key, part in strata.items()}
    counts = {key: int(quota) for key, quota in quotas.items()}
    for key in sorted(quotas, key=lambda key: (counts[key] - quotas[key], key))[: wanted - sum(counts.values())]:
        counts[key] += 1
    chosen = []
    for key, part in strata.items():
        chosen += generator(seed, "buffer", phase, key).sample(part, counts[key])
    return [replace(record, extra=record.extra | {"phase": phase}) for record in chosen]


def base_answers(work: Work, base: nn.Module, encoder: Encoder, videos: Sequence[Record]) -> list[Encoded]:
    """The base's own greedy answers to video prompts, written once per run before any training.

    They are what base replay compares the model with (KL to the base at these tokens): no reference summary is needed,
    and the base cannot be taught a style that is not its own. With distil.base_texts=references it is compared on the
    reference summaries instead. Source: METHODS, section 8.
    """
    settings = work.settings
    count = min(settings.distil.base_records, len(videos))
    chosen = generator(settings.train.seed, "base answers").sample(list(videos), count)
    if settings.distil.base_texts == "references":
        return [document for document in encoder.encode(chosen) if document]
    path = work.run_folder / "base" / ANSWERS
    key = _key(work, chosen)
    if path.exists():
        stored = json.loads(path.read_bytes())
        if stored["key"] == key:
            return [encoder.answer(record, stored["answers"][record.id]) for record in chosen]
    work.emit(Stage("answers"))
    answers: dict[str, list[int]] = {}
    room = min(settings.generate.max_new_tokens, settings.data.max_summary_length)
    for batch in generate(base, encoder, chosen, room, settings.evaluate.batch_size):
        if work.cancelled():
            raise Cancelled
        answers |= {chosen[output.index].id: output.tokens for output in batch}
        work.emit(Generated(len(answers), len(chosen), "base answers"))
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace_json(path, {"key": key, "answers": answers})
    return [encoder.answer(record, answers[record.id]) for record in chosen]


def _key(work: Work, chosen: Sequence[Record]) -> str:
    settings = work.settings
    facts = [
        work.model,
        [record.id for record in chosen],
        [record.source for record in chosen],
        settings.generate.max_new_tokens,
    ]
    facts += [settings.data.prompt, settings.data.max_length, settings.data.max_summary_length, settings.data.truncate]
    return f"{integer(facts):016x}"
