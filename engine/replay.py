"""What a run remembers: a stratified buffer of old records, and the base's own answers to video prompts."""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import NamedTuple

from torch import nn

from engine import files
from engine.batches import Encoded, Encoder
from engine.corpus.records import Record, write_jsonl
from engine.corpus.stored import Stored, stored
from engine.evaluation.generate import generate
from engine.events import Generated, Stage
from engine.mixture import generator, integer
from engine.work import Cancelled, Work

BUFFER = "replay.jsonl"
ANSWERS = "answers.json"


class Trait(NamedTuple):
    """What of a record decides whether it is kept."""

    modality: str
    domain: str
    length: int  # characters of the source
    id: str
    place: int  # among the records

    @property
    def kind(self) -> tuple[str, str]:
        return self.modality, self.domain


def load_buffer(checkpoint: Path | None) -> Stored:
    """The records kept by all phases so far; they lie whole beside the checkpoint, so other data files do not matter."""
    path = checkpoint / BUFFER if checkpoint else None
    return stored(path) if path and path.exists() and path.stat().st_size else Stored()


def save_buffer(folder: Path, records: Iterable[Record]) -> None:
    write_jsonl(folder / BUFFER, records)


def teacher(record: Record) -> str:
    """The phase that put a record into the buffer; its adapter is what the record is held to."""
    return record.extra["phase"]


def choose(records: Sequence[Record], share: float, seed: int, phase: str) -> list[Record]:
    """`share` of a phase's records, marked with the phase, stratified by modality, domain and length (terciles), by largest remainder.

    Which ones follows from (seed, phase). Keeps at least one record where share > 0. Records are read once, and none is
    held in memory but those that are chosen.
    """
    if not (share and len(records)):
        return []
    wanted = min(len(records), max(1, round(share * len(records))))
    strata: dict[tuple, list[Trait]] = {}
    kinds: dict[tuple, list[Trait]] = {}
    for trait in map(_trait, count(), records):
        kinds.setdefault(trait.kind, []).append(trait)
    for kind, members in sorted(kinds.items()):
        by_length = sorted(members, key=lambda trait: (trait.length, trait.id))
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
    kept = (records[trait.place] for trait in chosen)
    return [replace(record, extra=record.extra | {"phase": phase}) for record in kept]


def _trait(place: int, record: Record) -> Trait:
    return Trait(sys.intern(record.modality), sys.intern(record.domain or ""), len(record.source), record.id, place)


def base_answers(work: Work, base: nn.Module, encoder: Encoder, videos: Sequence[Record]) -> list[Encoded]:
    """The base's own greedy answers to video prompts, written once per run before any training.

    They are what base replay compares the model with (KL to the base at these tokens): no reference summary is needed,
    and the base cannot be taught a style that is not its own. With distil.base_texts=references it is compared on the
    reference summaries instead. Source: METHODS, section 8.
    """
    settings = work.settings
    places = range(len(videos))
    wanted = min(settings.distil.base_records, len(videos))
    chosen = [videos[k] for k in generator(settings.train.seed, "base answers").sample(places, wanted)]
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
