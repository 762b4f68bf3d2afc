"""The checkpoints on disk, with the scores that lie beside them. Light."""

import json
from pathlib import Path

from engine.evaluation.table import HEADLINE, METRICS, digits
from engine.settings import ConfigError
from jobs import show
from jobs.home import Home


def checkpoints(home: Home, sort: str | None = None) -> list[dict]:
    """Every finished checkpoint: {path, run, phase, step, created, metrics, bytes, parent}, oldest first.

    sort: METRIC or COLUMN.METRIC, the best first and those without it last. Raises ConfigError for an unknown metric.
    """
    found = []
    for path in home.checkpoints.glob("*/*/final/about.json"):
        about, folder = json.loads(path.read_bytes()), path.parent
        listed = json.loads((folder / "manifest.json").read_bytes())
        found.append({
            "path": str(folder),
            "run": about["run"],
            "phase": about["phase"],
            "step": about["step"],
            "created": about["created"],
            "metrics": stored_metrics(folder),
            "bytes": sum(entry["bytes"] for entry in listed.values()),
            "parent": about["parent"],
        })  # fmt: skip
    found.sort(key=lambda row: (row["created"], row["path"]))
    return _sorted(found, sort) if sort else found


def stored_metrics(folder: Path) -> dict[str, dict]:
    """{test set: {column: {metric: value}}} of the evaluations beside a checkpoint."""
    summaries = {path.stem: json.loads(path.read_bytes()) for path in sorted((folder / "evaluations").glob("*.json"))}
    return {name: summary["metrics"] for name, summary in summaries.items()}


def _sorted(found: list[dict], wanted: str) -> list[dict]:
    column, _, metric = wanted.rpartition(".")
    if metric not in METRICS:
        raise ConfigError(f"--sort {wanted}: unknown metric. Use METRIC or COLUMN.METRIC, of {', '.join(METRICS)}")

    def key(row: dict) -> tuple[bool, float]:
        value = score_of(row, column, metric)
        return value is None, -(METRICS[metric].better or 1) * (value or 0.0)

    return sorted(found, key=key)


def score_of(row: dict, column: str, metric: str) -> float | None:
    """A metric of a listed checkpoint: of its last test set; without a column the mean over those that have it."""
    for columns in reversed(row["metrics"].values()):
        values = [m[metric] for c, m in columns.items() if column in ("", c) and m.get(metric) is not None]
        if values:
            return sum(values) / len(values)
    return None


def checkpoint_table(found: list[dict], sort: str | None = None) -> str:
    """A line for each checkpoint, with the scores of its last test set, or the metric it is sorted by."""
    column, _, metric = (sort or "").rpartition(".")
    names = [metric] if sort else list(HEADLINE[:2])
    rows = [["checkpoint", "run", "phase", "step", "MiB", *(sort or METRICS[name].label for name in names)]]
    for row in found:
        scored = [score_of(row, column, name) for name in names]
        cells = [
            "" if value is None else f"{value:.{digits(name)}f}" for value, name in zip(scored, names, strict=True)
        ]
        size = f"{row['bytes'] / 2**20:.1f}"
        rows.append([row["path"], row["run"], row["phase"] or "", str(row["step"] or ""), size, *cells])
    return show.table(rows, right=tuple(range(3, 5 + len(names))))


def comparable(home: Home) -> list[dict]:
    """Everything that was judged, bases included, newest first: {name: RUN/PHASE, path, created, metrics}."""
    found = []
    for about in [*home.checkpoints.glob("*/*/final/about.json"), *home.checkpoints.glob("*/base/about.json")]:
        metrics = stored_metrics(about.parent)
        if metrics:
            told = json.loads(about.read_bytes())
            name = f"{told['run']}/{told['phase']}"
            found.append(
                {"name": name, "path": str(about.parent), "created": about.stat().st_mtime, "metrics": metrics}
            )
    return sorted(found, key=lambda row: (-row["created"], row["name"]))
