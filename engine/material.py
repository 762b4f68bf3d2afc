"""Everything of a phase that is in tokens: what is new, what is remembered, what the Fisher sees."""

from dataclasses import dataclass, replace

from torch import nn

from engine import replay
from engine.batches import BASE, Encoded, Encoder, Row, Shares, step_rows
from engine.corpus import instructions, terms
from engine.corpus.augment import augmented
from engine.corpus.records import Record
from engine.corpus.split import MODALITIES, Corpus, assemble, group_of
from engine.events import Warned
from engine.mixture import Draw, PhasePlan, Schedule, generator, integer, schedule
from engine.settings import ConfigError, Phase, Settings
from engine.truncation import PLACES
from engine.work import Work


@dataclass(frozen=True)
class Material:
    corpus: Corpus  # without the records that cannot be trained on
    encoder: Encoder
    plan: PhasePlan
    schedule: Schedule
    documents: dict[str, list[tuple[Row, ...]]]  # per source and index: one new row, or both sides of a pair
    kept: list[Record]  # the replay buffer so far
    pools: dict[str, list[Row]]  # what is replayed: memory, the base's own answers, plain documents
    fisher: list[Encoded]
    shares: Shares
    seed: int
    augment: bool = False

    @property
    def teachers(self) -> list[str]:
        """Phases whose adapters some rows are held to."""
        rows = [*self.pools["memory"], *(row for group in self.documents.values() for rows in group for row in rows)]
        return sorted({row.teacher for row in rows} - {"", BASE})

    def rows(self, step: int) -> list[Row]:
        """Everything that optimizer step `step` (counted over the run) sees: a pure function of (seed, step)."""
        new = []
        for number, draw in enumerate(self.schedule.at(step)):
            sides = self._sides(draw)
            new += [row._replace(pair=number if len(sides) == 2 else None) for row in sides]
        return step_rows(new, self.pools, self.shares, self.seed, step)

    def _sides(self, draw: Draw) -> tuple[Row, ...]:
        """The rows of a draw; with data.augment in the wording of this pass, which follows from (seed, pass, record)."""
        rows = self.documents[draw.source][draw.index]
        if not (self.augment and draw.epoch):
            return rows
        records = self.corpus.documents(draw.source, draw.index)
        reworded = self.encoder.stream(augmented(record, self.seed, draw.epoch) for record in records)
        return tuple(row._replace(document=document) for row, document in zip(rows, reworded, strict=True))


def prepare(work: Work, tokenizer, base: nn.Module) -> Material:
    """Read, encode and divide everything work.phase needs; the base writes its answers if it has not yet."""
    settings = work.settings
    lexicon = terms.load(settings.data.terms) if settings.losses.term and settings.data.terms else None
    encoder = Encoder(tokenizer, settings.data, lexicon)
    corpus, encoded = _encode(work, encoder, assemble(settings.data))
    _warn_of_terms(work, encoded)
    if settings.data.augment:
        _demand_room(encoder)
    phase = next(p for p in settings.curriculum.phases if p.name == work.phase)
    plan = schedule(settings, corpus.sizes)
    kept = replay.load_buffer(work.start_from)
    chosen = (
        fisher_records(settings, phase, corpus)
        if hands_on(settings, phase.name) and settings.ewc.importance == "fisher"
        else []
    )
    distil = settings.distil
    return Material(
        corpus=corpus,
        encoder=encoder,
        plan=plan.phase(phase.name),
        schedule=plan,
        documents=_new_rows(work, corpus, encoded),
        kept=kept,
        pools={
            "memory": _memory(settings, encoder, kept),
            "base": _answers(work, base, encoder, corpus),
            "document": _plain(settings, encoder, corpus),
        },
        fisher=[document for document in encoder.encode(chosen) if document],
        shares=Shares(settings.replay.batch_share, distil.base_share, distil.documents_share),
        seed=settings.train.seed,
        augment=settings.data.augment,
    )


def _new_rows(
    work: Work, corpus: Corpus, encoded: dict[str, list[tuple[Encoded, ...]]]
) -> dict[str, list[tuple[Row, ...]]]:
    """Training documents as rows. What looks back at the model before the phase (learning without forgetting, the
    entropy floor) has it as teacher: the phase before, or the base."""
    settings = work.settings
    looks_back = settings.distil.new or settings.losses.floor
    teacher = "" if not looks_back else work.start_from.parent.name if work.start_from else BASE
    return {
        source: [
            tuple(
                Row(document, "new", teacher, group=integer(group_of(record)))
                for document, record in zip(documents, corpus.documents(source, index), strict=True)
            )
            for index, documents in enumerate(rows)
        ]
        for source, rows in encoded.items()
    }


def _memory(settings: Settings, encoder: Encoder, kept: list[Record]) -> list[Row]:
    if not settings.replay.batch_share:
        return []
    return [
        Row(document, "memory", replay.teacher(record) if settings.distil.phase else "")
        for record, document in zip(kept, encoder.encode(kept), strict=True)
        if document
    ]


def _answers(work: Work, base: nn.Module, encoder: Encoder, corpus: Corpus) -> list[Row]:
    if not (work.settings.distil.base and work.settings.distil.base_share):
        return []
    return [Row(answer, "base", BASE) for answer in replay.base_answers(work, base, encoder, corpus.videos)]


def _plain(settings: Settings, encoder: Encoder, corpus: Corpus) -> list[Row]:
    if not (settings.distil.documents and settings.distil.documents_share):
        return []
    return [Row(document, "document", BASE) for document in encoder.plain(corpus.plain)]


def _demand_room(encoder: Encoder) -> None:
    """Every request that augmentation may draw leaves room for a source. Raises ConfigError now, not at some step."""
    for modality in MODALITIES.values():
        asked = [Record("", modality, "", instruction=request) for request in instructions.requests(modality)]
        encoder.prompts(asked, encoder.data.max_summary_length)


def _warn_of_terms(work: Work, documents: dict[str, list[tuple[Encoded, ...]]]) -> None:
    """What the weight of the term loss means for these data: a term token counts 1 + weight * T / |K|."""
    if not work.settings.losses.term:
        return
    if not work.settings.data.terms:
        work.emit(Warned("losses.term: there is no lexicon (data.terms), so the term loss is left out"))
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
        encoded = encoder.stream(record for group in groups for record in group)
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
        work.emit(
            Warned(
                f"{cut} sources are longer than data.max_length and lost their {PLACES[work.settings.data.truncate]}"
            )
        )
    parts = {source: tuple(getattr(corpus, source)[index] for index in indices) for source, indices in kept.items()}
    return replace(corpus, **parts), documents


def hands_on(settings: Settings, phase: str) -> bool:
    """Whether a phase leaves an anchor: the last of a curriculum anchors none, so its Fisher is not worth its time."""
    return settings.ewc.lambda_ > 0 and phase != settings.curriculum.phases[-1].name


def fisher_records(settings: Settings, phase: Phase, corpus: Corpus) -> list[Record]:
    """Held-out documents in the proportions of the phase; a pair counts as half a paper and half a video."""
    chosen = []
    for column, modality in MODALITIES.items():
        share = phase.mixture.get(column, 0.0) + phase.mixture.get("pairs", 0.0) / 2
        members = [record for record in corpus.fisher if record.modality == modality]
        wanted = min(len(members), round(settings.ewc.fisher_samples * share))
        chosen += generator(settings.train.seed, "fisher documents", phase.name, modality).sample(members, wanted)
    if not chosen:
        raise ConfigError("no document is held out for the Fisher: raise data.fisher_share, or set ewc.lambda=0")
    return chosen
