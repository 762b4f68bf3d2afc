"""Everything of a phase that is in tokens: what is new, what is remembered, what the Fisher sees."""

import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

from torch import nn

from engine import replay, tokens
from engine.batches import BASE, Encoded, Encoder, Row, Shares, step_rows
from engine.corpus import instructions, terms
from engine.corpus.augment import augmented
from engine.corpus.records import Record
from engine.corpus.split import MODALITIES, Corpus, assemble
from engine.corpus.stored import Stored
from engine.events import Warned
from engine.lazy import Lazy
from engine.mixture import Draw, PhasePlan, Schedule, generator, schedule
from engine.settings import ConfigError, Phase, Settings
from engine.tokens import Source, Tokens, usable
from engine.truncation import PLACES
from engine.work import Work

SHOWN = 3  # records that are named where some are left out


@dataclass(frozen=True)
class Material:
    corpus: Corpus  # without the records that cannot be trained on
    encoder: Encoder
    plan: PhasePlan
    schedule: Schedule
    documents: dict[str, Sequence[tuple[Row, ...]]]  # per source and index: one new row, or both sides of a pair
    kept: Stored  # the replay buffer so far
    pools: dict[str, Sequence[Row]]  # what is replayed: memory, the base's own answers, plain documents
    fisher: list[Encoded]
    shares: Shares
    seed: int
    teachers: tuple[str, ...]  # phases whose adapters some rows are held to
    plain_tokens: float  # mean length of a plain document
    augment: bool = False

    def rows(self, step: int) -> list[Row]:
        """Everything that optimizer step `step` (counted over the run) sees: a pure function of (seed, step)."""
        new = []
        for number, draw in enumerate(self.schedule.at(step)):
            sides = self._sides(draw)
            new += [row._replace(pair=number if len(sides) == 2 else None) for row in sides]
        return step_rows(new, self.pools, self.shares, self.seed, step, self.plain_tokens)

    def _sides(self, draw: Draw) -> tuple[Row, ...]:
        """The rows of a draw; with data.augment in the wording of this pass, which follows from (seed, pass, record)."""
        rows = self.documents[draw.source][draw.index]
        if not (self.augment and draw.epoch):
            return rows
        records = self.corpus.documents(draw.source, draw.index)
        reworded = self.encoder.encode([augmented(record, self.seed, draw.epoch) for record in records])
        # as the rows from the cache hold them: four bytes a token
        documents = [document._replace(ids=array("i", document.ids)) for document in reworded]
        return tuple(row._replace(document=document) for row, document in zip(rows, documents, strict=True))


def prepare(work: Work, tokenizer, base: nn.Module) -> Material:
    """Read, encode and divide everything work.phase needs; the base writes its answers if it has not yet."""
    settings = work.settings
    lexicon = terms.load(settings.data.terms) if settings.losses.term and settings.data.terms else None
    encoder = Encoder(tokenizer, settings.data, lexicon)
    made = tokens.source(work, encoder)
    corpus, encoded = _encode(work, made, assemble(settings.data, work.cache))
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
    memory, phases = _memory(settings, made, kept)
    plain, plain_tokens = _plain(settings, made, corpus)
    new_teacher = _new_teacher(work)
    distil = settings.distil
    return Material(
        corpus=corpus,
        encoder=encoder,
        plan=plan.phase(phase.name),
        schedule=plan,
        documents={source: _new_rows(corpus, source, sides, new_teacher) for source, sides in encoded.items()},
        kept=kept,
        pools={"memory": memory, "base": _answers(work, base, encoder, corpus), "document": plain},
        fisher=[document for document in encoder.encode(chosen) if document],
        shares=Shares(settings.replay.batch_share, distil.base_share, distil.documents_share),
        seed=settings.train.seed,
        teachers=tuple(sorted({*phases, new_teacher} - {"", BASE})),
        plain_tokens=plain_tokens,
        augment=settings.data.augment,
    )


def _new_teacher(work: Work) -> str:
    """What looks back at the model before the phase (learning without forgetting, the entropy floor) has it as teacher:
    the phase before, or the base."""
    looks_back = work.settings.distil.new or work.settings.losses.floor
    return "" if not looks_back else work.start_from.parent.name if work.start_from else BASE


def _new_rows(corpus: Corpus, source: str, sides: tuple[Tokens, ...], teacher: str) -> Lazy[tuple[Row, ...]]:
    """Training documents as rows, made when they are drawn."""
    groups = [array("q", side.column("group")) for side in corpus.sides(source)]

    def rows(k: int) -> tuple[Row, ...]:
        return tuple(Row(side[k], "new", teacher, group=group[k]) for side, group in zip(sides, groups, strict=True))

    return Lazy(len(sides[0]), rows)


def _memory(settings: Settings, made: Source, kept: Stored) -> tuple[Sequence[Row], set[str]]:
    """The replay buffer as rows, and the phases whose adapters they are held to."""
    if not settings.replay.batch_share or not len(kept):
        return [], set()
    found = made.tokens(kept, "replay")
    places = usable([found])
    phases = [sys.intern(replay.teacher(kept[k])) if settings.distil.phase else "" for k in places]
    return Lazy(len(places), lambda k: Row(found[places[k]], "memory", phases[k])), set(phases)


def _answers(work: Work, base: nn.Module, encoder: Encoder, corpus: Corpus) -> list[Row]:
    if not (work.settings.distil.base and work.settings.distil.base_share):
        return []
    return [Row(answer, "base", BASE) for answer in replay.base_answers(work, base, encoder, corpus.videos)]


def _plain(settings: Settings, made: Source, corpus: Corpus) -> tuple[Sequence[Row], float]:
    """Plain documents as rows, and their mean length in supervised tokens."""
    if not (settings.distil.documents and settings.distil.documents_share and len(corpus.plain)):
        return [], 0.0
    found = made.tokens(corpus.plain, "documents", plain=True)
    return Lazy(len(found), lambda k: Row(found[k], "document", BASE)), found.counts().summary_tokens / len(found)


def _demand_room(encoder: Encoder) -> None:
    """Every request that augmentation may draw leaves room for a source. Raises ConfigError now, not at some step."""
    for modality in MODALITIES.values():
        asked = [Record("", modality, "", instruction=request) for request in instructions.requests(modality)]
        encoder.prompts(asked, encoder.data.max_summary_length)


def _warn_of_terms(work: Work, encoded: dict[str, tuple[Tokens, ...]]) -> None:
    """What the weight of the term loss means for these data: a term token counts 1 + weight * T / |K|."""
    if not work.settings.losses.term:
        return
    if not work.settings.data.terms:
        work.emit(Warned("losses.term: there is no lexicon (data.terms), so the term loss is left out"))
        return
    counts = [side.counts() for sides in encoded.values() for side in sides]
    summaries, found = sum(count.summary_tokens for count in counts), sum(count.term_tokens for count in counts)
    if not found:
        work.emit(Warned("losses.term: no summary holds a term of the lexicon, so the term loss is 0"))
    else:
        times = 1 + work.settings.losses.term * summaries / found
        work.emit(
            Warned(
                f"{100 * found / summaries:.1f} % of the summary tokens are term tokens; each weighs {times:.1f} plain ones"
            )
        )


def _encode(work: Work, made: Source, corpus: Corpus) -> tuple[Corpus, dict[str, tuple[Tokens, ...]]]:
    """The training data in tokens, and the corpus without the records that cannot be trained on."""
    for warning in corpus.warnings:
        work.emit(Warned(warning))
    parts, documents, refused, long = {}, {}, 0, []
    for source, size in corpus.sizes.items():
        sides = [made.tokens(side, source) for side in corpus.sides(source)]
        places = usable(sides)
        if missing := size - len(places):
            refused += missing
            long += [corpus.documents(source, k)[0].id for k in islice(_others(places, size), SHOWN + 1)]
            sides = [side.chosen(places) for side in sides]
            parts[source] = getattr(corpus, source).chosen(places)
        documents[source] = tuple(sides)
    limit = work.settings.data.max_summary_length
    if refused:
        shown = ", ".join(long[:SHOWN]) + (", ..." if refused > SHOWN else "")
        work.emit(Warned(f"{refused} records left out: their summary is longer than {limit} tokens ({shown})"))
    if cut := sum(side.counts().cut for sides in documents.values() for side in sides):
        work.emit(
            Warned(
                f"{cut} sources are longer than data.max_length and lost their {PLACES[work.settings.data.truncate]}"
            )
        )
    return replace(corpus, **parts), documents


def _others(places: Sequence[int], size: int) -> Iterator[int]:
    """The numbers below `size` that are not among the ascending `places`."""
    start = 0
    for place in chain(places, (size,)):
        yield from range(start, place)
        start = place + 1


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
