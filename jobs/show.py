"""Ledger and events as JSON objects, tables and lines for a terminal."""

import json
import math
import re
import time
import unicodedata
from pathlib import Path
from typing import Any

import yaml

from engine import auto
from engine import events as ev
from jobs import adjust, plan, progress
from jobs.home import Home
from jobs.records import BLOCKED, DONE, QUEUED, RUNNING, Job, Records, title

ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_].*?(?:\x07|\x1b\\|$)|[ -/]*[0-~])", re.DOTALL)
FREQUENT = (ev.Step, ev.FisherProgress, ev.Generated, ev.Scored, ev.Encoding)
WIDEST = 48  # characters of the last column of the job table


def plain(text: str) -> str:
    """Foreign text made safe for a terminal: no escape sequences, control or invisible characters; one line."""
    text = ESCAPES.sub("", text).replace("\n", " ").replace("\t", " ")
    return "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp"))


def plain_lines(text: str) -> str:
    """The same for a text of many lines; of a line that was redrawn (a progress bar) the last state counts."""
    return "\n".join(plain(line.rstrip("\r").rpartition("\r")[2]) for line in text.split("\n"))


def stamp(t: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(t))


def as_json(value: Any) -> str:
    return json.dumps(finite(value), allow_nan=False, indent=1)


def finite(value: Any) -> Any:
    """Facts as plain JSON: null for what is not finite, text for paths."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


# -- events as lines --------------------------------------------------------------------------------------------


def line(event: ev.Event) -> str | None:
    """One line for a person who follows a job; None for events that only charts want."""
    match event:
        case ev.Started():
            return f"started, pid {event.pid}" + (f", {event.device}" if event.device else "")
        case ev.Stage():
            return event.name
        case ev.PhaseStarted():
            mixture = " ".join(f"{source} {share:.0%}" for source, share in event.mixture.items() if share)
            return f"{event.phase}: {mixture}, {event.steps} steps" + (f", from {event.step}" if event.step else "")
        case ev.Step():
            parts = " ".join(f"{name} {_number(value)}" for name, value in event.losses.items())
            return f"step {event.step}/{event.steps}  {_number(event.total)}  {parts}  {_number(event.tokens_per_second, 0)} tokens/s"
        case ev.FisherProgress():
            return f"fisher {event.done}/{event.total}  trace {_number(event.trace, 4)}"
        case ev.Generated():
            return f"{event.what}: {event.done}/{event.total} documents"
        case ev.Scored():
            return f"scored {event.done}/{event.total}"
        case ev.Encoding():
            return f"encoding {event.what}: {event.done:,} of {event.total:,} records"
        case ev.Evaluated():
            return f"{event.checkpoint} on {event.test_set}: " + "; ".join(
                f"{column} {_scores(metrics)}" for column, metrics in event.metrics.items()
            )
        case ev.Saved():
            where = "/".join(Path(event.path).parts[-3:])  # run, phase, step
            return f"saved {where} ({event.bytes / 2**20:.1f} MiB)"
        case ev.Warned():
            return f"warning: {event.message}"
        case ev.Ended():
            return f"{event.outcome}: {event.reason}" if event.reason else event.outcome
    return None


def is_last(event: ev.Event) -> bool:
    """The last report of a stage, which no line of text should miss."""
    if isinstance(event, ev.Step):
        return event.step >= event.steps
    return isinstance(event, (ev.FisherProgress, ev.Generated, ev.Scored, ev.Encoding)) and event.done >= event.total


def _scores(metrics: dict[str, Any]) -> str:
    """The scores of a column that a line of text has room for."""
    names = {"rougeL": "ROUGE-L {:.1f}", "bertscore_f1": "BERTScore F1 {:.1f}", "nll": "nll {:.3f}"}
    told = [form.format(metrics[name]) for name, form in names.items() if metrics.get(name) is not None]
    return " ".join([*told, f"({metrics['n']:.0f} documents)"] if "n" in metrics else told)


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


# -- jobs as values ---------------------------------------------------------------------------------------------


def job_value(home: Home, job: Job) -> dict[str, Any]:
    """The object that `jobs --json` prints."""
    done = progress.Progress() if job.state == DONE else progress.of(home.events(job.id))
    steps = done.steps or job.settings.get("steps")
    step = steps if job.state == DONE else done.step
    if job.kind in ("evaluate", "fisher"):
        step, steps = done.done, done.total
    return {
        "id": job.id,
        "kind": job.kind,
        "run": job.run,
        "phase": job.phase,
        "state": job.state,
        "attempt": job.attempt,
        "step": step,
        "steps": steps,
        "eta": round(done.eta, 1) if job.state == RUNNING and done.eta is not None else None,
        "pid": job.pid if job.state == RUNNING else None,
        "priority": job.priority,
        "after": job.after,
        "created": job.created,
        "started": job.started,
        "ended": job.ended,
        "reason": job.reason,
    }


def job_values(home: Home, records: Records) -> list[dict[str, Any]]:
    return [job_value(home, job) for job in records.jobs().values()]


def full_value(home: Home, records: Records, job_id: str) -> dict[str, Any]:
    """The object that `show ID --json` prints. settings: as queued; auto: what of them train.auto chose, and from
    how many examples; adjusted: {setting: value in force instead}; plan: what was predicted, and once it has run the truth
    beside it.  Raises ConfigError for an unknown id.
    """
    job = records.job(job_id)
    result, spec = _read_json(home.result(job_id)), _read_spec(home.spec(job_id))
    saved, metrics = None, None
    for stamped in ev.read(home.events(job_id)):
        if isinstance(stamped.event, ev.Saved):
            saved = stamped.event.path
        elif isinstance(stamped.event, ev.Evaluated):
            metrics = stamped.event.metrics
    return job_value(home, job) | {
        "remedy": job.remedy,
        "settings": spec.get("settings"),
        "auto": (spec.get("job") or {}).get("auto"),
        "adjusted": adjust.read(home.adjusted(job_id)),
        "plan": result.get("plan") or (spec.get("job") or {}).get("plan"),
        "checkpoint": result.get("checkpoint", saved),
        "metrics": result.get("metrics", metrics),
        "folder": str(home.job(job_id)),
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_spec(path: Path) -> dict[str, Any]:
    """spec.yaml as it stands; empty if it cannot be read."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


# -- tables -----------------------------------------------------------------------------------------------------


def table(rows: list[list[str]], right: tuple[int, ...] = ()) -> str:
    """Columns of equal width, two spaces apart; the first row is the head."""
    rows = [[plain(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def job_table(home: Home, records: Records) -> str:
    """All jobs, one a line."""
    rows = [["job", "run", "what", "state", "progress", "left", "took", ""]]
    for job in records.jobs().values():
        value = job_value(home, job)
        rows.append(
            [
                job.id,
                job.run,
                title(job),
                job.state,
                f"{value['step']}/{value['steps']}" if value["step"] and value["steps"] else "",
                duration(value["eta"]),
                duration(_took(job)),
                _remark(job)[:WIDEST],
            ]
        )
    return (
        table(rows, right=(0, 4, 5, 6))
        if len(rows) > 1
        else "no jobs yet. `hybridsum.py demo` shows what they look like"
    )


def _took(job: Job) -> float | None:
    if not job.started or job.state in (QUEUED, BLOCKED):
        return None
    return (job.ended or time.time()) - job.started


def _remark(job: Job) -> str:
    if job.state == QUEUED:
        parts = [f"after {job.after}"] if job.after else []
        return ", ".join([*parts, *([f"priority {job.priority}"] if job.priority else [])])
    return job.reason


def duration(seconds: float | None) -> str:
    """3 s, 2 m 10 s, 1 h 05 m."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} m"


def details(value: dict[str, Any]) -> str:
    """`show ID` for a person: facts, then the settings as YAML."""
    facts = {name: item for name, item in value.items() if name != "settings" and item not in (None, "", {})}
    for name in ("created", "started", "ended"):
        if name in facts:
            facts[name] = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(facts[name]))
    if facts.get("metrics"):
        facts["metrics"] = json.dumps(facts["metrics"])
    if facts.get("auto"):
        facts["auto"] = auto.words(**facts["auto"])
    if facts.get("plan"):
        facts["plan"] = plan.words(facts["plan"])
    if facts.get("adjusted"):
        facts["adjusted"] = "to fit into memory: " + ", ".join(f"{name} {n}" for name, n in facts["adjusted"].items())
    width = max(map(len, facts))
    lines = [f"{name.ljust(width)}  {plain(str(item))}" for name, item in facts.items()]
    if value["settings"]:
        text = yaml.safe_dump(value["settings"], sort_keys=False, allow_unicode=True)
        lines += ["settings", *("  " + setting for setting in plain_lines(text).splitlines())]
    return "\n".join(lines)
