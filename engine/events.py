"""Everything a job can report, and the append-only file it reports to: one JSON object a line."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Event:
    pass


@dataclass(frozen=True)
class Queued(Event):
    """The job entered the line."""


@dataclass(frozen=True)
class Started(Event):
    """A process began an attempt at the job."""

    pid: int
    device: str = ""


@dataclass(frozen=True)
class Stage(Event):
    """What the job does from here on: loading, encoding, training, fisher, answers, evaluating, scoring, bertscore, saving."""

    name: str


@dataclass(frozen=True)
class PhaseStarted(Event):
    """Training of a phase begins, or goes on, at `step` of `steps`."""

    phase: str
    steps: int
    step: int = 0
    mixture: dict[str, float] = field(default_factory=dict)
    records: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Step(Event):
    """One optimizer step. losses: {component: weighted value, nats per token}; total is their sum."""

    step: int  # 1-based: steps done
    steps: int
    losses: dict[str, float]
    total: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    memory_gib: float
    figures: dict[str, float] = field(
        default_factory=dict
    )  # beside the losses: negatives, pruned, token_entropy, distance
    norms: dict[str, float] = field(default_factory=dict)  # {component: norm of its own gradient}, where measured


@dataclass(frozen=True)
class FisherProgress(Event):
    """Held-out documents whose gradients are in the Fisher; trace per token; share of the trace per kind of layer."""

    done: int
    total: int
    trace: float = 0.0
    shares: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Generated(Event):
    """Documents written so far. what: the test set's name, or `base answers`."""

    done: int
    total: int
    what: str


@dataclass(frozen=True)
class Scored(Event):
    """Documents scored so far in the present stage: `scoring` for the metrics of words, then `bertscore`."""

    done: int
    total: int


@dataclass(frozen=True)
class Encoding(Event):
    """Records in tokens so far. what: papers, videos, pairs, documents, or replay."""

    done: int
    total: int
    what: str


@dataclass(frozen=True)
class Evaluated(Event):
    """Scores of one evaluation: {column: {metric: value}}; ROUGE 0-100, nll in nats per summary token.

    step: inside a phase, on development documents; 0: of a finished checkpoint.
    """

    checkpoint: str
    test_set: str
    metrics: dict[str, dict[str, float]]
    step: int = 0


@dataclass(frozen=True)
class Sample(Event):
    """One generated summary, as it appears."""

    id: str
    modality: str
    reference: str
    output: str


@dataclass(frozen=True)
class Saved(Event):
    """A checkpoint is complete on disk. step 0: a final one."""

    path: str
    step: int
    bytes: int


@dataclass(frozen=True)
class Device(Event):
    """Readings by the runner, every few seconds. memory in GiB, load and cpu in percent, power in watts.

    gpus: [{index, name, memory, memory_total, load, temperature, power, foreign: [[pid, GiB], ...]}], empty without one.
    """

    cpu: float
    ram: float
    ram_total: float
    job_ram: float = 0.0
    gpus: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Warned(Event):
    """Something the user should know that does not stop the job."""

    message: str


@dataclass(frozen=True)
class Ended(Event):
    """outcome: done, failed, cancelled, or requeued (the process was killed and the job goes back into the line).

    stops: it is done, but its gate failed, and the jobs after it do not start.
    """

    outcome: str
    reason: str = ""
    remedy: str = ""
    stops: bool = False


KINDS = {kind.__name__: kind for kind in Event.__subclasses__()}
_NAMES = {kind: {f.name for f in fields(kind)} for kind in KINDS.values()}


@dataclass(frozen=True)
class Stamped:
    """An event with its time (unix seconds) and the attempt it belongs to."""

    t: float
    attempt: int
    event: Event


def encode(event: Event, attempt: int, t: float | None = None) -> bytes:
    """One line. Values that are not finite are written as null, since NaN is not JSON."""
    head = {"t": round(time.time() if t is None else t, 3), "attempt": attempt, "event": type(event).__name__}
    return json.dumps(head | _finite(asdict(event)), allow_nan=False, ensure_ascii=True).encode() + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def decode(line: bytes) -> Stamped | None:
    """The event of a line; None for a line this version does not know or that is not whole."""
    try:
        content = json.loads(line)
        kind = KINDS[content["event"]]
        return Stamped(
            content["t"], content["attempt"], kind(**{k: v for k, v in content.items() if k in _NAMES[kind]})
        )
    except (ValueError, KeyError, TypeError):
        return None


class Writer:
    """Appends events with one write each, so that the job and its runner never mix their lines."""

    def __init__(self, path: Path, attempt: int):
        self.path, self.attempt = path, attempt

    def __call__(self, event: Event) -> None:
        line = encode(event, self.attempt)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


class Tail:
    """Reads a growing file of events: each call gives the events of the whole lines that are new."""

    def __init__(self, path: Path):
        self.path, self.offset = path, 0

    def __call__(self) -> list[Stamped]:
        try:
            with self.path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self.offset:
                    self.offset = 0  # the file was replaced
                file.seek(self.offset)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self.offset += len(whole)
        return [event for line in whole.splitlines() if (event := decode(line))]


def read(path: Path) -> Iterator[Stamped]:
    """All events of a file."""
    return iter(Tail(path)())


Emit = Callable[[Event], None]
