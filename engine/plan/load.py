"""The largest micro-batches a phase will meet, from the lengths of its documents. Light."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from engine.plan.memory import PADDED, Load
from engine.settings import Settings

LONG = 0.1  # share of the documents, the longest, whose summaries stand in the largest micro-batch


class Lengths(NamedTuple):
    """Tokens of documents after cutting. whole: prompt and summary; summary_on_top: of the longest documents, on average;
    plain: documents without summaries, 0 where there are none."""

    longest: int
    mean: float
    summary_on_top: float
    longest_summary: int
    mean_summary: float
    longest_plain: int = 0
    mean_plain: float = 0.0
    different: int = 1  # lengths, in steps of PADDED tokens

    def cut(self, settings: Settings) -> "Lengths":
        """The same where data.max_length is smaller."""
        most = settings.data.max_length
        longest, plain = min(most, self.longest), min(most, self.longest_plain)
        return self._replace(
            longest=longest, mean=min(longest, self.mean), longest_plain=plain, mean_plain=min(plain, self.mean_plain)
        )


def lengths(learnt: Sequence[tuple[int, int]], plain: Sequence[int] = ()) -> Lengths:
    """Of [(prompt and summary, summary)] of what is learnt, and [length] of plain texts."""
    ordered = sorted(learnt, reverse=True)
    top = ordered[: max(1, round(LONG * len(ordered)))]
    return Lengths(
        ordered[0][0], _mean([whole for whole, _ in ordered]), _mean([summary for _, summary in top]),
        max(summary for _, summary in ordered), _mean([summary for _, summary in ordered]),
        max(plain, default=0), _mean(plain), len({-(-length // PADDED) for length in [*(whole for whole, _ in ordered), *plain]}),
    )  # fmt: skip


def longest_possible(settings: Settings) -> Lengths:
    """Where nothing is known of the data: everything as long as the settings allow."""
    data = settings.data
    plain = [data.max_length] if data.documents else []
    return lengths([(data.max_length, data.max_summary_length)], plain)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def loads(settings: Settings, found: Lengths, phase: int) -> list[Load]:
    """Candidates for the largest in a phase (0: the first): the longest documents together, one replayed among them; and
    a plain text, all of whose tokens are scored, beside as many of its length.

    Micro-batches are cut from rows sorted by length, so the longest do meet.
    """
    count = settings.batch_records + old_rows(settings, found, phase)
    rows = rows_together(settings, count, found.longest)
    distil = settings.distil
    replayed = (phase and distil.phase and settings.replay.batch_share) or (distil.base and distil.base_share)
    looks_back = distil.new or settings.losses.floor
    others, largest = (rows - 1) * found.summary_on_top, found.longest_summary
    labels = round(others + largest)
    told = labels if looks_back else largest if replayed else 0
    corpus = {"longest_labels": largest, "lengths": found.different, "mean": found.mean}
    made = [Load(rows, found.longest, labels, told, places=largest, **corpus)]
    if _reads_plain(settings, found):
        scored = found.longest_plain - 1
        rows = rows_together(settings, count, found.longest_plain)
        others = (rows - 1) * found.summary_on_top
        made.append(Load(rows, found.longest_plain, round(others + scored), scored, places=scored, **corpus))
    return made


def rows_together(settings: Settings, count: int, longest: int) -> int:
    """Rows of the largest micro-batch of a step of `count` rows: they are cut into parts of nearly equal number, which
    train.micro_batch_tokens cuts again."""
    size, tokens = settings.train.per_device_train_batch_size, settings.train.micro_batch_tokens
    rows = -(-count // -(-count // size))
    return rows if tokens is None else max(1, min(rows, tokens // (longest + -longest % PADDED)))


def old_rows(settings: Settings, found: Lengths, phase: int) -> int:
    """Replayed rows of a step: their shares are of summary tokens, and documents are drawn whole."""
    distil, new, rows = settings.distil, settings.batch_records, 0
    if phase and settings.replay.batch_share:
        rows += math.ceil(_over(settings.replay.batch_share) * new)
    if distil.base and distil.base_share:
        rows += math.ceil(_over(distil.base_share) * new)
    if _reads_plain(settings, found):
        rows += math.ceil(_over(distil.documents_share) * new * found.mean_summary / found.mean_plain)
    return rows


def step_tokens(settings: Settings, found: Lengths, phase: int) -> float:
    """Tokens of an optimizer step, on average, padding aside."""
    return (settings.batch_records + old_rows(settings, found, phase)) * found.mean


def _reads_plain(settings: Settings, found: Lengths) -> bool:
    return bool(found.longest_plain and settings.distil.documents and settings.distil.documents_share)


def _over(share: float) -> float:
    return share / (1 - share)
