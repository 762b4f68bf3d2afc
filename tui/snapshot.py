"""What the panes draw: frozen values, made by the feed and read by every pane."""

from dataclasses import dataclass, field

from tui.history import LogLine, Reading


@dataclass(frozen=True)
class Runner:
    """state: LIVE, STALE, LOST or STOPPED; empty before it is known. age: seconds since its last sign of life.

    paused: why nothing new is started, or empty.
    """

    state: str = ""
    age: float | None = None
    paused: str = ""


@dataclass(frozen=True)
class Row:
    """A job in the line. place: its turn among the jobs that are ready, from 1. seconds: how long it ran."""

    id: str
    kind: str
    run: str
    what: str
    state: str
    phase: str | None = None
    stage: str = ""
    done: int | None = None
    total: int | None = None
    eta: float | None = None
    seconds: float | None = None
    place: int | None = None
    after: str | None = None
    priority: int = 0
    attempt: int = 0
    pid: int | None = None
    reason: str = ""
    remedy: str = ""
    config: str = ""


@dataclass(frozen=True)
class PhaseMark:
    """A phase of the run. start: its first step less one, counted over the run."""

    name: str
    start: int
    steps: int


@dataclass(frozen=True)
class Losses:
    """Series over the steps of the whole run: {component: (steps, values)}; `sum` is what was minimised."""

    run: str = ""
    phases: tuple[PhaseMark, ...] = ()
    series: dict[str, tuple[tuple[int, ...], tuple[float | None, ...]]] = field(default_factory=dict)
    phase: str = ""
    step: int = 0
    steps: int = 0
    lr: float | None = None
    grad_norm: float | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True)
class PhaseFisher:
    phase: str
    done: int
    total: int
    trace: float | None
    shares: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Fisher:
    """phases: those with Fisher information of their own. ratios: penalty / cross-entropy over the run's steps."""

    run: str = ""
    phases: tuple[PhaseFisher, ...] = ()
    ratios: tuple[float, ...] = ()
    penalty: float | None = None


@dataclass(frozen=True)
class Devices:
    """Readings while a job ran, and its stages: (time, name)."""

    job: str = ""
    readings: tuple[Reading, ...] = ()
    stages: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Log:
    job: str = ""
    lines: tuple[LogLine, ...] = ()


@dataclass(frozen=True)
class Scores:
    """The forgetting table of a run. gate: the verdict in words, empty until it is known.

    metric_of: the metric of each column, where one (plain documents) has only a likelihood.
    """

    run: str
    metric: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]
    gate: str = ""
    gate_tone: str = "plain"
    metric_of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Forgetting:
    """The selected run's table, those of other runs for comparison, and (phase, words) of what is being measured."""

    own: Scores | None = None
    others: tuple[Scores, ...] = ()
    measuring: tuple[tuple[str, str], ...] = ()
    metrics: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Snapshot:
    """Everything on the screen at one moment. problem: why the ledger cannot be read."""

    rows: tuple[Row, ...] = ()
    selected: Row | None = None
    runner: Runner = Runner()
    losses: Losses = Losses()
    fisher: Fisher = Fisher()
    devices: Devices = Devices()
    log: Log = Log()
    forgetting: Forgetting = Forgetting()
    machine: Reading | None = None
    problem: str = ""
    loaded: bool = False
