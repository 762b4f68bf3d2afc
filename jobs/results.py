"""What came out: the forgetting table of a run. Light; scipy is imported on demand."""

import json
from collections.abc import Iterable
from typing import NamedTuple

from engine.evaluation.table import HEADLINE, METRICS, columns_in_order, digits
from engine.settings import ConfigError, Settings
from jobs import gate, matrix, scores
from jobs.home import Home
from jobs.records import Job, Records
from jobs.submit import load_about_settings, read_spec

TRUE_ZERO = ("rouge1", "rouge2", "rougeL", "rougeLsum", "term_recall", "term_precision")  # a percentage means something


class Measured(NamedTuple):
    """The evaluations of a run on one test set. names: rows in order, base first; measured: {row: evaluation}."""

    names: list[str]
    measured: dict[str, dict]
    settings: Settings | None

    @property
    def last(self) -> int:
        """The number of the last measured row."""
        return max((number for number, name in enumerate(self.names) if name in self.measured), default=0)


def measured_rows(home: Home, records: Records, run: str, test_set: str | None = None) -> Measured:
    """test_set: by default the one that most phases were judged on. Raises ConfigError for an unknown run."""
    jobs = [job for job in records.jobs().values() if job.run == run]
    rows = records.evaluations(run=run)
    if not jobs and not rows:
        known = sorted({job.run for job in records.jobs().values()})
        raise ConfigError(f"run {run}: no such run. Known: {', '.join(known) or 'none yet'}")
    settings = _settings(home, run, jobs)
    measured = _of_one_test_set([row for row in rows if test_set in (None, row["test_set"])])
    return Measured(_rows(settings, jobs, measured), measured, settings)


def forgetting(home: Home, records: Records, run: str, metric: str | None = None, statistics: bool = True) -> dict:
    """The matrix R of a run: row 0 the base, then the phases; columns papers, videos and any other that was measured.

    ROUGE, BERTScore and other shares stand as 0-100, nll in nats. A column that lacks the metric but has a likelihood
    shows that: metric_of tells. change: last measured row minus base. backward_transfer: last row minus the row in
    which a column has its largest share of the mixture; null where that is the last row. Further: forgetting,
    forward_transfer, retention, base_retention (matrix.py), and intransigence where a joint run of the same base was
    judged on the same test set. Cells not measured are null.
    statistics=False leaves out intervals, p and the gate, which take seconds. Raises ConfigError for an unknown run.
    """
    found = measured_rows(home, records, run)
    metric = metric or (found.settings.evaluate.metric if found.settings else "rougeL")
    if metric not in METRICS:
        raise ConfigError(f"--metric {metric}: unknown. Use one of {', '.join(METRICS)}")
    columns = columns_in_order({c for row in found.measured.values() for c in row["metrics"]}) or ["papers", "videos"]
    metric_of = {column: _metric_of(found.measured, column, metric) for column in columns}
    cells = [[_cell(found.measured, name, c, metric_of[c]) for c in columns] for name in found.names]
    value = {"run": run, "metric": metric, "rows": found.names, "columns": columns, "matrix": cells, "change": {}}
    value["metric_of"] = metric_of
    value |= _transfer(home, records, run, found, value) | {"gate": None}
    for k, column in enumerate(columns):
        first, final = cells[0][k], cells[found.last][k]
        if found.last and first is not None and final is not None:
            value["change"][column] = {
                "points": final - first,
                "percent": 100 * (final - first) / first if first else None,
                "n": found.measured[found.names[found.last]]["metrics"][column].get("n"),
            }
    if statistics and found.last and "base" in found.measured:
        _add_statistics(value, found)
    return value


def _metric_of(measured: dict[str, dict], column: str, metric: str) -> str:
    """The metric, or nll where a column (plain documents, say) has only that."""
    given = {name for row in measured.values() for name in row["metrics"].get(column, {})}
    return "nll" if metric not in given and "nll" in given else metric


def _cell(measured: dict[str, dict], name: str, column: str, metric: str) -> float | None:
    return measured.get(name, {}).get("metrics", {}).get(column, {}).get(metric)


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


# -- transfer -----------------------------------------------------------------------------------------------------


def _transfer(home: Home, records: Records, run: str, found: Measured, value: dict) -> dict:
    """The quantities of matrix.py for every column."""
    joint = _joint_run(home, records, run, found)
    kept = ("backward_transfer", "forgetting", "forward_transfer", "retention", "base_retention", "intransigence")
    told: dict[str, dict] = {name: {} for name in kept}
    for k, column in enumerate(value["columns"]):
        metric, values = value["metric_of"][column], [line[k] for line in value["matrix"]]
        shares = _shares(found, column)
        learning, better = matrix.learning_row(shares), METRICS[metric].better
        told["backward_transfer"][column] = matrix.backward_transfer(values, learning, found.last)
        told["forgetting"][column] = matrix.forgetting(values, learning, found.last, better)
        told["forward_transfer"][column] = matrix.forward_transfer(values, matrix.first_row(shares))
        if metric in TRUE_ZERO:
            told["retention"][column] = matrix.retention(values, learning, found.last)
            told["base_retention"][column] = matrix.base_retention(values)
        if joint:
            cell = joint["metrics"].get(column, {}).get(metric)
            told["intransigence"][column] = matrix.intransigence(values, learning, cell, better)
    return told | {"joint": f"{joint['run']}/{joint['phase']}" if joint else None}


def _shares(found: Measured, column: str) -> list[float]:
    phases = found.settings.curriculum.phases if found.settings else ()
    mixtures = {phase.name: phase.mixture for phase in phases}
    return [mixtures.get(name, {}).get(column, 0.0) for name in found.names]


def _joint_run(home: Home, records: Records, run: str, found: Measured) -> dict | None:
    """The newest evaluation, on this test set, of another run that learns papers and videos together in one phase."""
    if not found.measured or not found.settings:
        return None
    test_set = next(iter(found.measured.values()))["test_set"]
    rows = [row for row in records.evaluations() if row["run"] != run and row["test_set"] == test_set]
    for row in sorted(rows, key=lambda row: -row["created"]):
        about = home.final(row["run"], row["phase"]) / "about.json"
        if row["phase"] == "base" or not about.exists():
            continue
        try:
            settings = load_about_settings(json.loads(about.read_bytes()), about.parent)
        except ConfigError:
            continue  # a run of another version is no joint run of this one
        phases = settings.curriculum.phases
        same_base = settings.model.model_dump(exclude={"adapter"}) == found.settings.model.model_dump(
            exclude={"adapter"}
        )
        if len(phases) == 1 and same_base and all(phases[0].mixture.get(c, 0) > 0 for c in ("papers", "videos")):
            return row
    return None


# -- statistics ---------------------------------------------------------------------------------------------------


def _add_statistics(value: dict, found: Measured) -> None:
    name = found.names[found.last]
    old, new = (scores.documents(found.measured[row]["path"]) for row in ("base", name))
    for column, change in value["change"].items():
        metric = value["metric_of"][column]
        if not any(key[0] == column for key in new):
            continue  # only its mean was stored
        told = scores.compared(old, new, column, metric)
        change |= {"ci95": list(told.ci95), "p": told.p, "n": told.n, "detectable": told.detectable}
    value["gate"] = gate.verdict(found.measured, found.names, name, found.settings)


# -- for a terminal -----------------------------------------------------------------------------------------------


def forgetting_text(value: dict) -> str:
    """The forgetting table for a terminal: signed changes against base, and what they are worth."""
    columns, metric_of = value["columns"], value["metric_of"]
    width = max([len(name) for name in value["rows"]] + [5])
    lower = METRICS[value["metric"]].better < 0
    lines = [f"{value['run']} · {METRICS[value['metric']].label}" + (" (lower is better)" if lower else "")]
    heads = [column if metric_of[column] == value["metric"] else f"{column} nats" for column in columns]
    lines.append(" " * width + "".join(f"{head:>12}{'':10}" for head in heads).rstrip())
    for name, row in zip(value["rows"], value["matrix"], strict=True):
        cells = [
            _text_cell(cell, None if name == "base" else base, metric_of[column])
            for cell, base, column in zip(row, value["matrix"][0], columns, strict=True)
        ]
        lines.append(f"{name:<{width}}" + "".join(cells).rstrip())
    lines += [_change_text(column, change, metric_of[column]) for column, change in value["change"].items()]
    lines += _transfer_text(value)
    if value["gate"]:
        lines.append(f"gate: {value['gate']['verdict'].upper()} ({'; '.join(value['gate']['reasons'])})")
    return "\n".join(lines)


def report(home: Home, records: Records, value: dict) -> str:
    """The table of `forgetting`, and below it that of BERTScore F1 where it was measured and is not the first."""
    other = HEADLINE[1] if value["metric"] != HEADLINE[1] else HEADLINE[0]
    second = forgetting(home, records, value["run"], other)
    measured = any(
        cell is not None and second["metric_of"][c] == other
        for row in second["matrix"]
        for c, cell in zip(second["columns"], row, strict=True)
    )
    text = forgetting_text(value)
    return f"{text}\n\n{forgetting_text(second | {'gate': None})}" if measured else text


def _text_cell(cell: float | None, base: float | None, metric: str) -> str:
    places = digits(metric)
    change = ""
    if cell is not None and base is not None:
        change = f" {cell - base:+.{places}f} {judged(cell - base, metric)}"
    return f"{'–' if cell is None else f'{cell:.{places}f}':>12}{change:10}"


def _change_text(column: str, change: dict, metric: str) -> str:
    places = digits(metric)
    percent = "" if change["percent"] is None else f" ({change['percent']:+.0f} %)"
    text = f"{column}: {change['points']:+.{places}f}{percent} against base"
    if "ci95" in change:
        low, high = change["ci95"]
        text += f", 95 % [{low:+.{places}f}, {high:+.{places}f}], p {change['p']:.4f}, {change['n']} documents"
        if low <= 0 <= high:
            text += f"; no difference shown (detectable: {change['detectable']:.{places}f})"
    return text


def _transfer_text(value: dict) -> list[str]:
    """One line for each quantity that has a value in some column."""
    names = {
        "backward_transfer": "backward transfer",
        "forgetting": "forgetting (final row excluded)",
        "forward_transfer": "forward transfer",
        "intransigence": f"short of joint training ({value['joint']})",
    }
    lines = []
    for key, words in names.items():
        told = [
            f"{column} {cell:+.{digits(value['metric_of'][column])}f}"
            for column, cell in value[key].items()
            if cell is not None
        ]
        lines += [f"{words}: {', '.join(told)}"] if told else []
    kept = [f"{column} {cell:.1f} %" for column, cell in value["retention"].items() if cell is not None]
    return lines + ([f"retention: {', '.join(kept)}"] if kept else [])


def sign(change: float, lower_is_better: bool = False, tolerance: float = 0.05) -> str:
    """▲ better, ▼ worse, · neither: a sign beside every colour."""
    better = -change if lower_is_better else change
    return "▲" if better > tolerance else "▼" if better < -tolerance else "·"


def judged(change: float, metric: str) -> str:
    """The sign of a change of a metric; one that has no better direction gets a dot."""
    better = METRICS[metric].better
    tolerance = 0.05 if METRICS[metric].scale == 100 else 0.005
    return sign(change, better < 0, tolerance) if better else "·"
