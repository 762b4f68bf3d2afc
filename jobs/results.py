"""What came out: the forgetting table of a run, and the checkpoints on disk. Light; scipy is imported on demand."""

import json
from collections.abc import Iterable
from pathlib import Path

from engine.settings import ConfigError, Settings
from jobs.home import Home
from jobs.records import Job, Records
from jobs.submit import load_about_settings, read_spec

METRICS = {"rougeL": "ROUGE-L", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "nll": "NLL per token"}
LOWER_IS_BETTER = ("nll",)
COLUMNS = ("papers", "videos", "general")


def forgetting(home: Home, records: Records, run: str, metric: str | None = None, statistics: bool = True) -> dict:
    """The matrix R of a run: row 0 the base, then the phases; columns papers and videos; ROUGE 0-100, nll in nats.

    change: last measured row minus base.  backward_transfer: last row minus the row in which a column has its largest
    share of the mixture; null where that is the last row (learnt last).  Cells not measured are null.
    statistics=False leaves out intervals, p and the gate, which take seconds. Raises ConfigError for an unknown run.
    """
    jobs = [job for job in records.jobs().values() if job.run == run]
    rows_of_run = [row for row in records.evaluations() if row["run"] == run]
    if not jobs and not rows_of_run:
        known = sorted({job.run for job in records.jobs().values()})
        raise ConfigError(f"run {run}: no such run. Known: {', '.join(known) or 'none yet'}")
    settings = _settings(home, run, jobs)
    metric = metric or (settings.evaluate.metric if settings else "rougeL")
    if metric not in METRICS:
        raise ConfigError(f"--metric {metric}: unknown. Use one of {', '.join(METRICS)}")
    measured = _of_one_test_set(rows_of_run)
    names = _rows(settings, jobs, measured)
    columns = [c for c in COLUMNS if any(metric in row["metrics"].get(c, {}) for row in measured.values())]
    columns = columns or ["papers", "videos"]
    matrix = [[measured.get(name, {}).get("metrics", {}).get(c, {}).get(metric) for c in columns] for name in names]
    last = max((number for number, name in enumerate(names) if name in measured), default=0)
    value = {"run": run, "metric": metric, "rows": names, "columns": columns, "matrix": matrix, "change": {}}
    value["backward_transfer"] = {
        column: _backward_transfer(settings, names, [line[k] for line in matrix], column, last)
        for k, column in enumerate(columns)
    }
    value["gate"] = None
    for k, column in enumerate(columns):
        first, final = matrix[0][k], matrix[last][k]
        if last and first is not None and final is not None:
            value["change"][column] = {
                "points": final - first,
                "percent": 100 * (final - first) / first if first else None,
                "n": measured[names[last]]["metrics"][column]["n"],
            }
    if statistics and last and "base" in measured:
        _add_statistics(value, measured["base"], measured[names[last]], names[last], settings)
    return value


def _of_one_test_set(rows: list[dict]) -> dict[str, dict]:
    """{phase: evaluation} for the test set that most phases were judged on; the newest of these."""
    if not rows:
        return {}
    sets: dict[str, list[dict]] = {}
    for row in rows:
        sets.setdefault(row["test_set"], []).append(row)
    chosen = max(sets.values(), key=lambda members: (len(members), max(row["created"] for row in members)))
    return {row["phase"]: row for row in chosen}


def _settings(home: Home, run: str, jobs: Iterable[Job]) -> Settings | None:
    """The settings of a run, from its newest checkpoint or its first job."""
    for path in [home.run(run) / "latest" / "about.json", home.run(run) / "base" / "about.json"]:
        if path.exists():
            return load_about_settings(json.loads(path.read_bytes()), path.parent)

    specs = [home.spec(job.id) for job in jobs]
    return next((read_spec(path)[1] for path in specs if path.exists()), None)


def _rows(settings: Settings | None, jobs: list[Job], measured: dict[str, dict]) -> list[str]:
    planned = [phase.name for phase in settings.curriculum.phases] if settings else []
    known = {job.phase for job in jobs if job.kind in ("phase", "evaluate")} | set(measured)
    others = sorted(known - set(planned) - {"base", None})
    return ["base", *(name for name in planned if name in known), *others]


def _backward_transfer(
    settings: Settings | None, names: list[str], values: list[float | None], column: str, last: int
) -> float | None:
    shares = {phase.name: phase.mixture.get(column, 0.0) for phase in settings.curriculum.phases} if settings else {}
    learning = max(range(1, len(names)), key=lambda number: shares.get(names[number], 0.0), default=0)
    if not shares.get(names[learning], 0.0) or learning >= last:
        return None
    return None if None in (values[last], values[learning]) else values[last] - values[learning]


def _add_statistics(value: dict, base: dict, final: dict, name: str, settings: Settings | None) -> None:
    from engine.evaluation.statistics import FAILED, PASSED, UNDECIDED, non_inferior, paired

    for column, change in value["change"].items():
        found = paired(_differences(base, final, column, value["metric"]))
        change |= {"ci95": list(found.ci95), "p": found.p, "n": found.n}
    gate = settings.evaluate.gate if settings else None
    margins = {c: m for c in value["columns"] if gate and (m := getattr(gate, c, None)) is not None}
    if not gate or not margins:
        return
    verdicts, reasons = [], []
    for column, margin in margins.items():
        found = paired(_differences(base, final, column, gate.metric))
        verdict = non_inferior(found, margin)
        verdicts.append(verdict)
        reasons.append(
            f"{column}: {found.mean:+.2f} {METRICS[gate.metric]} against base, 95 % bounds {found.lower:+.2f} and "
            f"{found.upper:+.2f}, margin {margin:+.2f}, {found.n} documents: {verdict}"
        )
    worst = next(v for v in (FAILED, UNDECIDED, PASSED) if v in verdicts)
    value["gate"] = {
        "verdict": worst,
        "margins": margins,
        "against": "base",
        "metric": gate.metric,
        "row": name,
        "reasons": reasons,
    }


def _differences(base: dict, final: dict, column: str, metric: str) -> list[float]:
    """Per document, final minus base; scaled so that the mean is the difference of the two cells."""
    old, new = _documents(base), _documents(final)
    shared = [key for key in new if key in old and key[0] == column]
    if not shared:
        raise ConfigError(
            f"{final['path']}: shares no document with {base['path']}. Evaluate both on the same test set"
        )
    if metric in LOWER_IS_BETTER:
        tokens = {key: new[key]["summary_tokens"] for key in shared}
        scale = {key: count * len(shared) / sum(tokens.values()) for key, count in tokens.items()}
    else:
        scale = dict.fromkeys(shared, 100.0)
    return [scale[key] * (new[key]["scores"][metric] - old[key]["scores"][metric]) for key in shared]


def _documents(evaluation: dict) -> dict[tuple[str, str], dict]:
    """{(column, document id): row} of a stored evaluation."""
    from engine.corpus.split import COLUMNS

    path = Path(evaluation["path"])
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: the scores of the documents are gone ({error.strerror}). Evaluate again") from None
    rows = [json.loads(line) for line in lines]
    return {(COLUMNS[row["modality"]], row["id"]): row for row in rows}


def forgetting_text(value: dict) -> str:
    """The forgetting table for a terminal: signed changes against base, and what they are worth."""
    columns, lower = value["columns"], value["metric"] in LOWER_IS_BETTER
    digits = 3 if lower else 1
    width = max([len(name) for name in value["rows"]] + [5])
    lines = [f"{value['run']} · {METRICS[value['metric']]}" + (" (lower is better)" if lower else "")]
    lines.append(" " * width + "".join(f"{column:>12}{'':10}" for column in columns).rstrip())
    for name, row in zip(value["rows"], value["matrix"], strict=True):
        cells = []
        for cell, base in zip(row, value["matrix"][0], strict=True):
            change = (
                ""
                if None in (cell, base) or name == "base"
                else f" {cell - base:+.{digits}f} {sign(cell - base, lower)}"
            )
            cells.append(f"{'not measured' if cell is None else f'{cell:.{digits}f}':>12}{change:10}")
        lines.append(f"{name:<{width}}" + "".join(cells).rstrip())
    for column, change in value["change"].items():
        percent = "" if change["percent"] is None else f" ({change['percent']:+.0f} %)"
        text = f"{column}: {change['points']:+.{digits}f}{percent} against base"
        if "ci95" in change:
            low, high = change["ci95"]
            text += f", 95 % [{low:+.{digits}f}, {high:+.{digits}f}], p {change['p']:.4f}, {change['n']} documents"
        lines.append(text)
    if value["gate"]:
        lines.append(f"gate: {value['gate']['verdict'].upper()} ({'; '.join(value['gate']['reasons'])})")
    return "\n".join(lines)


def sign(change: float, lower_is_better: bool = False, tolerance: float = 0.05) -> str:
    """▲ better, ▼ worse, · neither: a sign beside every colour."""
    better = -change if lower_is_better else change
    return "▲" if better > tolerance else "▼" if better < -tolerance else "·"


def checkpoints(home: Home) -> list[dict]:
    """Every finished checkpoint: {path, run, phase, step, created, metrics, bytes, parent}, oldest first."""
    found = []
    for path in home.checkpoints.glob("*/*/final/about.json"):
        about, folder = json.loads(path.read_bytes()), path.parent
        listed = json.loads((folder / "manifest.json").read_bytes())
        summaries = [
            json.loads(p.read_bytes()) | {"test_set": p.stem} for p in sorted((folder / "evaluations").glob("*.json"))
        ]
        found.append({
            "path": str(folder),
            "run": about["run"],
            "phase": about["phase"],
            "step": about["step"],
            "created": about["created"],
            "metrics": {summary["test_set"]: summary["metrics"] for summary in summaries},
            "bytes": sum(entry["bytes"] for entry in listed.values()),
            "parent": about["parent"],
        })  # fmt: skip
    return sorted(found, key=lambda row: row["created"])
