"""Which records step s sees: a pure function of (seed, s). No iterator state, so a resume sees exact data.

METHODS: draws are cut in blocks of the smallest length that makes all shares whole; a block is that multiset,
shuffled by a generator keyed (seed, phase, block). The j-th draw of a source over the whole run is position j mod N
of a permutation keyed (seed, source, j div N); j follows in closed form from complete blocks.
"""

import hashlib
import math
import random
from array import array
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from engine.settings import SOURCES, ConfigError, Phase, Settings


class Draw(NamedTuple):
    source: str  # papers, videos or pairs
    index: int  # position in the training records (or pairs) of that source
    epoch: int = 0  # passes over that source before this one


def generator(*key) -> random.Random:
    """A generator of its own for a key; keys are hashed, never added, so neighbours share nothing."""
    return random.Random(integer(*key))


def integer(*key) -> int:
    """63 bits that follow from the key, for seeding torch too."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class PhasePlan:
    name: str
    start: int  # first step of the phase, counted over the run
    steps: int
    counts: tuple[tuple[str, int], ...]  # records of each source in a block

    @property
    def block(self) -> int:
        return sum(count for _, count in self.counts)

    @property
    def end(self) -> int:
        return self.start + self.steps


@dataclass(frozen=True)
class Schedule:
    """All phases of a run over training data of known size."""

    seed: int
    batch_records: int  # S, records in an optimizer step
    sizes: tuple[tuple[str, int], ...]  # training records per source; pairs count once
    phases: tuple[PhasePlan, ...]

    def phase(self, name: str) -> PhasePlan:
        return next(phase for phase in self.phases if phase.name == name)

    def at(self, step: int) -> list[Draw]:
        """The S draws of a step counted over the run. Raises IndexError past the last phase."""
        phase = next((p for p in self.phases if p.start <= step < p.end), None)
        if phase is None:
            raise IndexError(f"step {step} lies in no phase")
        first = (step - phase.start) * self.batch_records
        return [self._draw(phase, n) for n in range(first, first + self.batch_records)]

    def draws(self, phase: PhasePlan, records: int | None = None) -> dict[str, int]:
        """How often each source is drawn in the first `records` draws of a phase (all of them by default)."""
        records = phase.steps * self.batch_records if records is None else records
        complete, rest = divmod(records, phase.block)
        partial = _block(self.seed, phase, complete)[:rest]
        return {source: complete * count + partial.count(source) for source, count in phase.counts}

    def passes(self) -> dict[str, float]:
        """How often each record of a source is seen over the run."""
        totals = {source: sum(self.draws(phase).get(source, 0) for phase in self.phases) for source, _ in self.sizes}
        return {source: totals[source] / size for source, size in self.sizes if size}

    def seen(self, phase: PhasePlan, source: str) -> list[int]:
        """Distinct record indices of a source drawn in a phase, ascending."""
        start, count = self._drawn_before(phase, source), self.draws(phase).get(source, 0)
        return sorted({self._index(source, j) for j in range(start, start + count)})

    def _draw(self, phase: PhasePlan, n: int) -> Draw:
        block, position = divmod(n, phase.block)
        source = _block(self.seed, phase, block)[position]
        j = self._drawn_before(phase, source) + self.draws(phase, n)[source]
        return Draw(source, self._index(source, j), j // dict(self.sizes)[source])

    def _drawn_before(self, phase: PhasePlan, source: str) -> int:
        return sum(self.draws(earlier).get(source, 0) for earlier in self.phases if earlier.start < phase.start)

    def _index(self, source: str, j: int) -> int:
        size = dict(self.sizes)[source]
        return _permutation(self.seed, source, j // size, size)[j % size]


@lru_cache(maxsize=4096)
def _block(seed: int, phase: PhasePlan, number: int) -> tuple[str, ...]:
    members = [source for source, count in phase.counts for _ in range(count)]
    generator(seed, "block", phase.name, number).shuffle(members)
    return tuple(members)


@lru_cache(maxsize=16)
def _permutation(seed: int, source: str, number: int, size: int) -> array:
    order = array("q", range(size))
    generator(seed, "pass", source, number).shuffle(order)
    return order


def block_counts(phase: Phase) -> tuple[tuple[str, int], ...]:
    """Whole numbers of records per source in the shortest block with exact shares: 50/40/10 gives 5, 4, 1."""
    shares = {s: Fraction(phase.mixture[s]).limit_denominator(1000) for s in SOURCES if phase.mixture.get(s)}
    length = math.lcm(*(share.denominator for share in shares.values()))
    return tuple((source, int(share * length)) for source, share in shares.items())


def schedule(settings: Settings, sizes: dict[str, int]) -> Schedule:
    """The steps of every phase. One epoch is E = papers + videos records; phase p starts at ceil(start_p * E / S).

    sizes: training records per source. Raises ConfigError if a phase mixes a source that has none.
    """
    batch = settings.batch_records
    epoch_records = sizes.get("papers", 0) + sizes.get("videos", 0)
    plans, start, position = [], 0, Fraction(0)  # position in records
    for phase in settings.curriculum.phases:
        empty = [s for s, share in phase.mixture.items() if share and not sizes.get(s)]
        selected = phase in settings.selected_phases()
        if empty and selected:
            raise ConfigError(
                f"phase {phase.name} mixes {', '.join(empty)}, but no training record of that source is left"
            )
        if phase.steps:
            position += phase.steps * batch
        else:
            if not epoch_records:
                raise ConfigError(f"phase {phase.name}: epochs count papers and videos, and there are none. Give steps")
            position += Fraction(phase.epochs).limit_denominator(10**6) * epoch_records
        end = max(start + 1, math.ceil(position / batch))
        plans.append(PhasePlan(phase.name, start, end - start, block_counts(phase)))
        start = end
    return Schedule(settings.train.seed, batch, tuple(sorted(sizes.items())), tuple(plans))
