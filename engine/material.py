"""Everything of a phase that is in tokens: what is new, what is remembered, what the Fisher sees."""

from dataclasses import dataclass, replace

from torch import nn

from engine import replay
from engine.batches import Encoded, Encoder, Row, Shares
from engine.corpus import terms
from engine.corpus.records import Record
from engine.corpus.split import COLUMNS, Corpus, assemble
from engine.events import Warned
from engine.mixture import PhasePlan, Schedule, generator, schedule
from engine.settings import ConfigError, Phase, Settings
from engine.work import Work


@dataclass(frozen=True)
class Material:
    corpus: Corpus  # without the records that cannot be trained on
    plan: PhasePlan
    schedule: Schedule
    documents: dict[str, list[tuple[Encoded, ...]]]  # per source and index: one document, or both sides of a pair
    kept: list[Record]  # the replay buffer so far
    memory: list[Row]  # the same in tokens
    answers: list[Row]  # the base's own answers
    fisher: list[Encoded]
    shares: Shares

    @property
    def teachers(self) -> list[str]:
        """Phases whose adapters the memory is held to."""
        return sorted({row.teacher for row in self.memory if row.teacher})

    def new(self, step: int) -> list[Encoded]:
        """The new documents of a step counted over the run."""
        return [document for draw in self.schedule.at(step) for document in self.documents[draw.source][draw.index]]


def prepare(work: Work, tokenizer, base: nn.Module) -> Material:
    """Read, encode and divide everything work.phase needs; the base writes its answers if it has not yet."""
    settings = work.settings
    lexicon = terms.load(settings.data.terms) if settings.losses.term and settings.data.terms else None
    encoder = Encoder(tokenizer, settings.data, lexicon)
    corpus, documents = _encode(work, encoder, assemble(settings.data))
    _warn_of_terms(work, documents)
    phase = next(p for p in settings.curriculum.phases if p.name == work.phase)
    plan = schedule(settings, corpus.sizes)
    kept = replay.load_buffer(work.start_from)
    memory = [
        Row(document, "memory", replay.teacher(record) if settings.distil.phase else "")
        for record, document in zip(kept, encoder.encode(kept), strict=True)
        if document
    ]
    answers = replay.base_answers(work, base, encoder, corpus.videos) if settings.distil.base else []
    chosen = fisher_records(settings, phase, corpus) if _needs_fisher(settings, phase) else []
    return Material(
        corpus=corpus,
        plan=plan.phase(phase.name),
        schedule=plan,
        documents=documents,
        kept=kept,
        memory=memory if settings.replay.batch_share else [],
        answers=[Row(answer, "base") for answer in answers],
        fisher=[document for document in encoder.encode(chosen) if document],
        shares=Shares(settings.replay.batch_share, settings.distil.base_share if settings.distil.base else 0.0),
    )


def _warn_of_terms(work: Work, documents: dict[str, list[tuple[Encoded, ...]]]) -> None:
    """What the weight of the term loss means for these data: a term token counts 1 + weight * T / |K|."""
    if not work.settings.losses.term:
        return
    rows = [document for group in documents.values() for row in group for document in row]
    tokens, found = sum(row.summary_tokens for row in rows), sum(len(row.terms) for row in rows)
    if not found:
        work.emit(Warned("losses.term: no summary holds a term of the lexicon, so the term loss is 0"))
    else:
        times = 1 + work.settings.losses.term * tokens / found
        work.emit(
            Warned(
                f"{100 * found / tokens:.1f} % of the summary tokens are term tokens; each weighs {times:.1f} plain ones"
            )
        )


def _encode(work: Work, encoder: Encoder, corpus: Corpus) -> tuple[Corpus, dict[str, list[tuple[Encoded, ...]]]]:
    """The training data in tokens, and the corpus without the records that cannot be trained on."""
    for warning in corpus.warnings:
        work.emit(Warned(warning))
    kept, documents, cut, long = {}, {}, 0, []
    for source, size in corpus.sizes.items():
        groups = [corpus.documents(source, index) for index in range(size)]
        encoded = iter(encoder.encode([record for group in groups for record in group]))
        rows = [tuple(next(encoded) for _ in group) for group in groups]
        long += [group[0].id for group, row in zip(groups, rows, strict=True) if None in row]
        kept[source] = [index for index, row in enumerate(rows) if None not in row]
        documents[source] = [rows[index] for index in kept[source]]
        cut += sum(document.cut > 0 for row in documents[source] for document in row)
    limit = work.settings.data.max_summary_length
    if long:
        shown = ", ".join(long[:3]) + (", ..." if len(long) > 3 else "")
        work.emit(Warned(f"{len(long)} records left out: their summary is longer than {limit} tokens ({shown})"))
    if cut:
        work.emit(Warned(f"{cut} sources are longer than data.max_length and were cut at their end"))
    parts = {source: tuple(getattr(corpus, source)[index] for index in indices) for source, indices in kept.items()}
    return replace(corpus, **parts), documents


def _needs_fisher(settings: Settings, phase: Phase) -> bool:
    """The last phase of a curriculum is anchored by none, so its Fisher is not worth its time."""
    return settings.ewc.lambda_ > 0 and phase is not settings.curriculum.phases[-1]


def fisher_records(settings: Settings, phase: Phase, corpus: Corpus) -> list[Record]:
    """Held-out documents in the proportions of the phase; a pair counts as half a paper and half a video."""
    shares = {
        column: phase.mixture.get(column, 0.0) + phase.mixture.get("pairs", 0.0) / 2 for column in COLUMNS.values()
    }
    chosen = []
    for modality, column in COLUMNS.items():
        members = [record for record in corpus.fisher if record.modality == modality]
        wanted = min(len(members), round(settings.ewc.fisher_samples * shares[column]))
        chosen += generator(settings.train.seed, "fisher documents", phase.name, modality).sample(members, wanted)
    if not chosen:
        raise ConfigError("no document is held out for the Fisher: raise data.fisher_share, or set ewc.lambda=0")
    return chosen
