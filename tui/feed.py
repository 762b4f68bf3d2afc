"""Ledger, events and logs on disk -> what can be drawn. No Textual here; each tick reads only what is new."""

import contextlib
import sqlite3
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tui.history import History, LogLine, Reading
from tui.snapshot import (
    Devices,
    Fisher,
    Forgetting,
    Log,
    Losses,
    PhaseFisher,
    PhaseMark,
    Row,
    Runner,
    Scores,
    Snapshot,
)

if TYPE_CHECKING:
    from jobs.home import Home
    from jobs.records import Job

KEPT = 48  # histories kept in memory
RECENT = 20.0  # seconds for which a reading stands for the present
LOG_SHOWN = 300
OTHER_RUNS = 6
METRICS = ("rougeL", "bertscore_f1", "rouge1", "rouge2", "nll", "term_recall")  # that the metric key goes through


class Feed:
    """Made once; `snapshot` is called on every tick, by one caller at a time."""

    def __init__(self, home: "Home"):
        # Imported here, for these take longer than the first frame may.
        from jobs.records import Records

        self.home = home
        self.records = Records(home.records)
        self._histories: dict[str, History] = {}
        self._made: dict[str, tuple[Any, Any]] = {}
        self._line = None
        self._order: list[str] = []  # of the jobs that are ready
        self._verdicts: dict[tuple, tuple[str, str]] = {}
        self.undecided: tuple | None = None  # (run, metric, when it was measured) of a table without its verdict

    def snapshot(self, selected: str | None = None, metric: str | None = None) -> Snapshot:
        """selected: the id of a job; None follows what runs. metric: of the forgetting table; None the run's own."""
        from engine.settings import ConfigError

        try:
            return self._snapshot(selected, metric)
        except (ConfigError, OSError) as error:
            return Snapshot(problem=str(error), loaded=True)

    def _snapshot(self, selected: str | None, metric: str | None) -> Snapshot:
        jobs, runner = self.records.jobs(), self._runner()
        for job in jobs.values():
            if job.state == "running":
                self._history(job.id)
        rows = tuple(self._rows(jobs))
        chosen = next((row for row in rows if row.id == selected), None) or (rows[0] if rows else None)
        snapshot = Snapshot(
            rows, chosen, runner, machine=self._machine(jobs), loaded=True,
            forgetting=self._forgetting(jobs, chosen, metric),
        )  # fmt: skip
        if chosen:
            phases = [job for job in jobs.values() if job.kind == "phase" and job.run == chosen.run]
            phases = [(job, self._history(job.id)) for job in phases]
            history = self._history(chosen.id)
            trained = [(jobs[chosen.id], history)] if jobs[chosen.id].kind == "base" else phases
            snapshot = replace(
                snapshot,
                losses=self._losses(chosen.run, trained),
                fisher=self._fisher(chosen.run, phases),
                devices=self._devices(chosen.id, history),
                log=self._log(chosen, history),
            )
        self._forget()
        return snapshot

    def history(self, job_id: str) -> History:
        """All that is known of a job, for its details."""
        return self._history(job_id)

    # -- the line -------------------------------------------------------------------------------------------------

    def _rows(self, jobs: dict[str, "Job"]) -> list[Row]:
        """What runs, then what is ready in Huey's order, then what waits, then what ended, newest first."""
        queued = [job for job in jobs.values() if job.state == "queued"]
        places = {job_id: place for place, job_id in enumerate(self._pending() if queued else [], 1)}
        running = [job for job in jobs.values() if job.state == "running"]
        ended = [job for job in jobs.values() if job.state not in ("queued", "running")]
        queued.sort(key=lambda job: (places.get(job.id, len(places) + 1), -job.priority, int(job.id)))
        ended.sort(key=lambda job: (job.state == "blocked", job.ended or 0, int(job.id)), reverse=True)
        # A blocked job stands with those that wait: it is still to be done once its parent is mended.
        blocked = sorted((job for job in ended if job.state == "blocked"), key=lambda job: int(job.id))
        ended = [job for job in ended if job.state != "blocked"]
        return [self._row(job, places.get(job.id)) for job in (*running, *queued, *blocked, *ended)]

    def _row(self, job: "Job", place: int | None) -> Row:
        from jobs.records import title

        row = Row(
            job.id, job.kind, job.run, title(job), job.state, job.phase, place=place, after=job.after,
            priority=job.priority, attempt=job.attempt, pid=job.pid, reason=job.reason, remedy=job.remedy,
            config=str(job.settings.get("config", "")),
        )  # fmt: skip
        if job.state == "running":
            progress = self._history(job.id).progress
            return replace(
                row, stage=progress.stage, done=progress.done, total=progress.total, eta=progress.eta,
                attempt=progress.attempt or job.attempt,
            )  # fmt: skip
        if job.started and job.ended:
            return replace(row, seconds=job.ended - job.started)
        return row

    def _pending(self) -> list[str]:
        from jobs.queue import Line

        if self._line is None:
            self._line = Line(self.home)
        self._line.heal()
        with contextlib.suppress(sqlite3.Error):  # another process writes to the line; the next look tells
            self._order = self._line.pending()
        return self._order

    def _runner(self) -> Runner:
        from jobs.steer import status

        found = status(self.home, self.records)
        return Runner(found["state"], found["beat_age"], found["paused"] or "")

    def _machine(self, jobs: dict[str, "Job"]) -> Reading | None:
        """The newest reading of a running job, if it is fresh."""
        running = [self._history(job.id) for job in jobs.values() if job.state == "running"]
        newest = max((h.readings[-1] for h in running if h.readings), key=lambda reading: reading.t, default=None)
        return newest if newest and time.time() - newest.t < RECENT else None

    # -- the selected run -----------------------------------------------------------------------------------------

    def _losses(self, run: str, trained: list[tuple["Job", History]]) -> Losses:
        version = (run, self._version(), tuple((job.id, history.version) for job, history in trained))
        return self._once("losses", version, lambda: losses(run, trained))

    def _fisher(self, run: str, phases: list[tuple["Job", History]]) -> Fisher:
        version = (run, tuple((job.id, history.version) for job, history in phases))
        return self._once("fisher", version, lambda: fisher(run, phases))

    def _devices(self, job_id: str, history: History) -> Devices:
        version = (job_id, len(history.readings), history.readings[-1:], len(history.stages))
        return self._once(
            "devices", version, lambda: Devices(job_id, tuple(history.readings), tuple(history.stages[-200:]))
        )

    def _log(self, row: Row, history: History) -> Log:
        def make() -> Log:
            lines = list(history.lines)[-LOG_SHOWN:]
            if row.reason and not any(row.reason in line.text for line in lines):
                lines.append(LogLine("", f"{row.state}: {row.reason}", "bad"))
            return Log(row.id, tuple(lines))

        return self._once("log", (row.id, history.version, row.reason), make)

    # -- forgetting -----------------------------------------------------------------------------------------------

    def _forgetting(self, jobs: dict[str, "Job"], chosen: Row | None, metric: str | None) -> Forgetting:
        if chosen is None:
            return Forgetting()
        version = (self._version(), chosen.run, metric, len(self._verdicts))
        made = self._once("forgetting", version, lambda: self._tables(chosen.run, metric))
        measuring = [
            (job.phase or "", self._history(job.id).progress)
            for job in jobs.values()
            if job.kind == "evaluate" and job.run == chosen.run and job.state == "running"
        ]
        words = tuple((phase, f"{_measuring(p.stage)} {p.done or 0}/{p.total or '?'}") for phase, p in measuring)
        return replace(made, measuring=words) if words else made

    def _tables(self, run: str, metric: str | None) -> Forgetting:
        from engine.settings import ConfigError

        rows = sorted(self.records.evaluations(), key=lambda row: row.get("created", 0))
        metrics = _metrics(rows)
        runs = list(dict.fromkeys(row["run"] for row in reversed(rows)))
        if run not in runs:
            return Forgetting(metrics=metrics)
        try:
            own = self._with_verdict(self._scores(run, metric), rows)
            others = [self._scores(other, own.metric) for other in runs if other != run][:OTHER_RUNS]
        except ConfigError as error:
            return Forgetting(metrics=metrics, problem=str(error))
        return Forgetting(own, tuple(o for o in others if o.columns), metrics=metrics)

    def _scores(self, run: str, metric: str | None) -> Scores:
        from jobs.results import forgetting

        table = forgetting(self.home, self.records, run, metric=metric, statistics=False)
        rows = tuple((name, tuple(values)) for name, values in zip(table["rows"], table["matrix"], strict=True))
        metric_of = tuple(table["metric_of"][column] for column in table["columns"])
        return Scores(run, table["metric"], tuple(table["columns"]), rows, metric_of=metric_of)

    def _with_verdict(self, scores: Scores, measured: list[dict]) -> Scores:
        """The verdict of the gate takes seconds, so it is asked for here and joins when `decide` has found it."""
        key = (scores.run, scores.metric, max(row.get("created", 0) for row in measured if row["run"] == scores.run))
        if key not in self._verdicts:
            self.undecided = key
            return scores
        words, tone = self._verdicts[key]
        return replace(scores, gate=words, gate_tone=tone)

    def decide(self) -> bool:
        """Find the verdict that is missing, if one is. Takes seconds; may run beside `snapshot`."""
        from engine.settings import ConfigError
        from jobs.results import forgetting

        key, self.undecided = self.undecided, None
        if key is None:
            return False
        try:
            gate = forgetting(self.home, self.records, key[0], metric=key[1])["gate"]
            self._verdicts[key] = gate_in_words(gate)
        except ConfigError as error:
            self._verdicts[key] = (f"gate: {error}", "warning")
        return True

    # -- what is kept ---------------------------------------------------------------------------------------------

    def _history(self, job_id: str) -> History:
        """The history of a job, read up to now; the one used longest ago is dropped when there are too many."""
        history = self._histories.pop(job_id, None) or History(self.home.events(job_id), self.home.log(job_id))
        self._histories[job_id] = history
        history.read()
        return history

    def _forget(self) -> None:
        while len(self._histories) > KEPT:
            del self._histories[next(iter(self._histories))]

    def _version(self) -> tuple:
        try:
            status = self.records.path.stat()
        except FileNotFoundError:
            return ()
        return (status.st_ino, status.st_mtime_ns, status.st_size)

    def _once(self, name: str, version: Any, make) -> Any:
        """The value made last time if nothing it depends on changed: panes skip what is the same object."""
        known = self._made.get(name)
        if known is None or known[0] != version:
            self._made[name] = known = (version, make())
        return known[1]


def losses(run: str, trained: list[tuple["Job", History]]) -> Losses:
    """The series of all phases of a run, one after the other, also of those not begun; or those of a base."""
    marks, series, start, current = [], {}, 0, None
    for job, history in trained:
        begun = history.phase
        steps = int((history.step.steps if history.step else 0) or (begun.steps if begun else 0))
        steps = steps or int(job.settings.get("steps") or 0)
        marks.append(PhaseMark(job.phase or job.kind, start, steps))
        if history.points:
            current = (marks[-1], history)
            for point in history.points:
                for name, value in point.values.items():
                    xs, ys = series.setdefault(name, ([], []))
                    xs.append(start + point.step)
                    ys.append(value)
        start += steps
    frozen = {name: (tuple(xs), tuple(ys)) for name, (xs, ys) in series.items()}
    if current is None:
        return Losses(run, tuple(marks), frozen)
    mark, history = current
    step = history.step
    return Losses(
        run, tuple(marks), frozen, mark.name, step.step, mark.steps, step.lr, step.grad_norm, step.tokens_per_second
    )


def fisher(run: str, phases: list[tuple["Job", History]]) -> Fisher:
    found, ratios, penalty = [], [], None
    for job, history in phases:
        if event := history.fisher:
            shares = sorted(event.shares.items(), key=lambda item: -(item[1] or 0))
            found.append(PhaseFisher(job.phase or "phase", event.done, event.total, event.trace or None, tuple(shares)))
        for point in history.points:
            ewc, entropy = point.values.get("ewc"), point.values.get("cross_entropy")
            if ewc is not None and entropy:
                ratios.append(ewc / entropy)
                penalty = ewc
    return Fisher(run, tuple(found), tuple(ratios), penalty)


def _measuring(stage: str) -> str:
    return stage if stage in ("scoring", "bertscore") else "measuring"


def gate_in_words(gate: dict | None) -> tuple[str, str]:
    if not gate:
        return "", "plain"
    tone = {"passed": "good", "failed": "bad"}.get(gate["verdict"], "warning")
    return f"gate {gate['verdict'].upper()}: {'; '.join(gate['reasons'])}", tone


def _metrics(rows: list[dict]) -> tuple[str, ...]:
    """Names of the metrics that were measured, the usual ones first."""
    names = {name for row in rows for column in (row.get("metrics") or {}).values() for name in column}
    return tuple(name for name in METRICS if name in names)
