"""How far a job is, folded from its events. Pure, and light."""

from collections import deque
from dataclasses import dataclass, replace

from engine import events as ev

WINDOW = 40  # reports of progress that the pace is taken from


@dataclass(frozen=True)
class Progress:
    """done of total in the present stage; eta in seconds, None while the pace is unknown."""

    stage: str = ""
    done: int | None = None
    total: int | None = None
    eta: float | None = None
    attempt: int = 0
    step: int | None = None  # optimizer steps done of the job's `steps`, whatever the present stage
    steps: int | None = None
    reached: tuple = (0, 0)  # (steps saved, documents done): grows with every attempt that was worth it
    ended: str = ""


class Fold:
    """Feed it events in order; `progress` tells where the job is."""

    def __init__(self) -> None:
        self.progress = Progress()
        self._pace: deque[tuple[float, int]] = deque(maxlen=WINDOW)

    def add(self, stamped: ev.Stamped) -> None:
        event, old = stamped.event, self.progress
        saved, documents = old.reached
        if isinstance(event, ev.Started):
            self._enter("starting")
            self.progress = replace(self.progress, attempt=stamped.attempt, ended="")
        elif isinstance(event, ev.Stage):
            self._enter(event.name)
        elif isinstance(event, ev.PhaseStarted):
            self._enter("training")
            self._advance(stamped.t, event.step, event.steps)
            self.progress = replace(self.progress, step=event.step, steps=event.steps)
        elif isinstance(event, ev.Step):
            self._advance(stamped.t, event.step, event.steps)
            self.progress = replace(self.progress, step=event.step, steps=event.steps)
        elif isinstance(event, (ev.FisherProgress, ev.Scored, ev.Encoding)):
            self._advance(stamped.t, event.done, event.total)
        elif isinstance(event, ev.Generated):
            self._advance(stamped.t, event.done, event.total)
            self.progress = replace(self.progress, reached=(saved, max(documents, event.done)))
        elif isinstance(event, ev.Saved):
            self.progress = replace(self.progress, reached=(max(saved, event.step or 10**12), documents))
        elif isinstance(event, ev.Ended):
            self.progress = replace(self.progress, ended=event.outcome, eta=None)

    def _enter(self, stage: str) -> None:
        self._pace.clear()
        self.progress = replace(self.progress, stage=stage, done=None, total=None, eta=None)

    def _advance(self, t: float, done: int, total: int) -> None:
        self._pace.append((t, done))
        first_t, first = self._pace[0]
        pace = (done - first) / (t - first_t) if t > first_t and done > first else None
        self.progress = replace(self.progress, done=done, total=total, eta=(total - done) / pace if pace else None)


def of(path) -> Progress:
    """The progress that an events file tells."""
    fold = Fold()
    for stamped in ev.read(path):
        fold.add(stamped)
    return fold.progress
