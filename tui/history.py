"""One job's files folded into values to draw. Memory stays bounded however long the job was."""

import math
import os
import re
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from engine import events as ev
from jobs.progress import Fold, Progress
from tui import figures

POINTS = 4096  # kept per series; a longer one is halved by joining neighbours
LINES = 400  # of the log
LOG_BYTES = 64 * 1024  # read from the end of a log that is there already
CLOCK = re.compile(r"(\d\d:\d\d:\d\d) ")
TONES = {
    "warning": re.compile(r"(?i)warning\b|\S+:\d+: \w*warning:"),
    "bad": re.compile(r"(?i)(failed|error|traceback)\b|\w*(Error|Exception)\b"),
    "good": re.compile(r"saved\b|done\b"),
}


@dataclass(frozen=True)
class Point:
    """Losses of one step, or the means of several. None where a value was not finite."""

    step: int
    values: dict[str, float | None]


@dataclass(frozen=True)
class Reading:
    """What the device showed at a time. Memory in GiB, load in percent."""

    t: float
    device: ev.Device


@dataclass(frozen=True)
class LogLine:
    """clock: hours, minutes and seconds, or empty. tone: plain, good, warning or bad."""

    clock: str
    text: str
    tone: str = "plain"


class History:
    """Call `read` on every tick: it takes in the lines that are new and tells whether there were any."""

    def __init__(self, events: Path, log: Path):
        self._tail, self._log = ev.Tail(events), LogTail(log)
        self._fold = Fold()
        self.points: list[Point] = []
        self.readings: list[Reading] = []
        self.stages: list[tuple[float, str]] = []
        self.lines: deque[LogLine] = deque(maxlen=LINES)
        self.step: ev.Step | None = None
        self.phase: ev.PhaseStarted | None = None
        self.fisher: ev.FisherProgress | None = None
        self.sample: ev.Sample | None = None
        self.version = 0  # counts up with everything new, so that readers can keep what they made of it

    @property
    def progress(self) -> Progress:
        return self._fold.progress

    def read(self) -> bool:
        fresh = self._log()  # before the events, whose last tells how the job ended
        self.lines.extend(fresh)
        new = self._tail()
        for stamped in new:
            self._fold.add(stamped)
            self._take(stamped)
        self.version += bool(new or fresh)
        return bool(new or fresh)

    def _take(self, stamped: ev.Stamped) -> None:
        event = stamped.event
        if isinstance(event, ev.Step):
            self._take_step(event)
        elif isinstance(event, ev.Device):
            self._take_reading(Reading(stamped.t, event))
        elif isinstance(event, ev.FisherProgress):
            self.fisher = event
        elif isinstance(event, ev.PhaseStarted):
            self.phase = event
        elif isinstance(event, ev.Sample):
            self.sample = event
        elif isinstance(event, ev.Ended):
            self.lines.append(_end(stamped.t, event))
        if name := _stage(event):
            self.stages.append((stamped.t, name))

    def _take_step(self, event: ev.Step) -> None:
        """A step that comes again replaces its first record and what followed: those weights were lost."""
        place = bisect_left(self.points, event.step, key=lambda point: point.step)
        del self.points[place:]
        self.step = event
        self.points.append(Point(event.step, {"sum": event.total, **event.losses}))
        if len(self.points) > 2 * POINTS:
            self.points = [_joined(*self.points[k : k + 2]) for k in range(0, len(self.points), 2)]

    def _take_reading(self, reading: Reading) -> None:
        self.readings.append(reading)
        if len(self.readings) > 2 * POINTS:
            pairs = zip(self.readings[::2], self.readings[1::2], strict=False)
            self.readings = [max(pair, key=_memory) for pair in pairs]


class LogTail:
    """New lines of a log, which may be long already and may still be written."""

    def __init__(self, path: Path):
        self.path, self.offset, self._part = path, None, b""

    def __call__(self) -> list[LogLine]:
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if self.offset is None or size < self.offset:
                    self.offset, self._part = max(0, size - LOG_BYTES), b""
                file.seek(self.offset)
                content = file.read(size - self.offset)
        except FileNotFoundError:
            return []
        self.offset += len(content)
        *whole, self._part = (self._part + content[-LOG_BYTES:]).split(b"\n")
        self._part = self._part[-LOG_BYTES:]
        # Of a line that a progress bar wrote over again and again, only the last state counts.
        texts = (raw.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace") for raw in whole[-LINES:])
        return [logged(text) for text in texts if text.strip()]


def logged(text: str) -> LogLine:
    """A line of a log; the job writes the time at its head, libraries and tracebacks do not."""
    match = CLOCK.match(text)
    clock, words = (match[1], text[match.end() :]) if match else ("", text)
    tone = next((tone for tone, words_of in TONES.items() if words_of.match(words)), "plain")
    return LogLine(clock, words, tone)


def _end(t: float, event: ev.Ended) -> LogLine:
    tone = {"done": "good", "failed": "bad"}.get(event.outcome, "warning")
    return LogLine(figures.clock(t), f"{event.outcome}: {event.reason}" if event.reason else event.outcome, tone)


def _joined(first: Point, second: Point | None = None) -> Point:
    if second is None:
        return first
    names = [*first.values, *(name for name in second.values if name not in first.values)]
    return Point(second.step, {name: _mean(first.values.get(name), second.values.get(name)) for name in names})


def _mean(first: float | None, second: float | None) -> float | None:
    finite = [value for value in (first, second) if value is not None and math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None


def _memory(reading: Reading) -> float:
    """Of two readings that are joined the one with the higher memory stays, since peaks are what matters."""
    return sum(gpu.get("memory") or 0 for gpu in reading.device.gpus) or reading.device.ram or 0


def _stage(event: ev.Event) -> str:
    if isinstance(event, ev.Stage):
        return event.name
    if isinstance(event, ev.PhaseStarted):
        return "training"
    return "starting" if isinstance(event, ev.Started) else ""
