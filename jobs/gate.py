"""The gate: did a phase lose no more than was declared beforehand? A non-inferiority test for each column."""

from engine.evaluation.table import METRICS, digits
from engine.settings import ConfigError, Settings
from jobs import scores
from jobs.home import Home
from jobs.records import Records

FAILED_WORD = "failed"


def verdict(measured: dict[str, dict], names: list[str], row: str, settings: Settings | None) -> dict | None:
    """{verdict, margins, against, metric, row, columns, reasons} of a measured row; None without a declared margin.

    measured: {phase: evaluation}; names: the rows in their order. Passed if the one-sided 95 % lower bound of the change
    lies above the margin in every column (of a likelihood in nats the sign is turned first, so that down is worse); failed if the upper bound lies below it in one; else not enough documents.
    Raises ConfigError if the scores of the documents are gone or lack the metric.
    """
    gate = settings.evaluate.gate if settings else None
    margins = {c: m for c in ("papers", "videos") if gate and (m := getattr(gate, c)) is not None}
    reference = _reference(measured, names, row, gate.against) if gate else None
    margins = {column: margin for column, margin in margins.items() if reference and _has(measured, row, column)}
    if not margins:
        return None
    old, new = scores.documents(measured[reference]["path"]), scores.documents(measured[row]["path"])
    columns = {c: _column(old, new, c, gate.metric, margin) for c, margin in margins.items()}
    verdicts = [column["verdict"] for column in columns.values()]
    return {
        "verdict": _worst(verdicts),
        "margins": margins,
        "against": reference,
        "metric": gate.metric,
        "row": row,
        "columns": columns,
        "reasons": [_reason(name, column, gate.metric, reference) for name, column in columns.items()],
    }


def _reference(measured: dict[str, dict], names: list[str], row: str, against: str) -> str | None:
    """The row that `row` is held to: the base, or the measured one before it."""
    before = [name for name in names[: names.index(row)] if name in measured]
    if against == "base":
        before = [name for name in before if name == "base"]
    return before[-1] if before else None


def _has(measured: dict[str, dict], row: str, column: str) -> bool:
    return column in measured[row]["metrics"]


def _column(old: scores.Documents, new: scores.Documents, column: str, metric: str, margin: float) -> dict:
    from engine.evaluation.statistics import non_inferior

    found = scores.compared(old, new, column, metric, METRICS[metric].better)
    return {
        "points": found.mean,
        "lower": found.lower,
        "upper": found.upper,
        "margin": margin,
        "detectable": found.detectable,
        "n": found.n,
        "verdict": non_inferior(found, margin),
    }


def _worst(verdicts: list[str]) -> str:
    from engine.evaluation.statistics import FAILED, PASSED, UNDECIDED

    return next(word for word in (FAILED, UNDECIDED, PASSED) if word in verdicts)


def _reason(name: str, column: dict, metric: str, reference: str) -> str:
    label = f"{'-' if METRICS[metric].better < 0 else ''}{METRICS[metric].label}"
    places = digits(metric) + (METRICS[metric].scale == 100)
    points, lower, upper, margin = (f"{column[key]:+.{places}f}" for key in ("points", "lower", "upper", "margin"))
    return (
        f"{name}: {points} {label} against {reference}, 95 % bounds {lower} and {upper}, margin {margin}, "
        f"detectable {column['detectable']:.{places}f}, {column['n']} documents: {column['verdict']}"
    )


def after_evaluation(
    home: Home,
    records: Records,
    run: str,
    phase: str,
    settings: Settings | None = None,
    test_set: str | None = None,
) -> dict | None:
    """The verdict on a phase that was evaluated; None for the base, or where nothing is declared or to be held against.

    settings: of the job that evaluated it; by default those of the run. test_set: by default the one that most phases
    were judged on.
    """
    from jobs.results import measured_rows

    if phase == "base":
        return None
    found = measured_rows(home, records, run, test_set)
    if phase not in found.measured:
        return None
    return verdict(found.measured, found.names, phase, settings or found.settings)


def demand_passed(home: Home, records: Records, run: str, phase: str, regardless: bool = False) -> None:
    """For what hands a checkpoint on: raises ConfigError if its gate failed, unless `regardless`."""
    if regardless:
        return
    found = after_evaluation(home, records, run, phase)
    if found and found["verdict"] == FAILED_WORD:
        raise ConfigError(
            f"{run}/{phase}: its gate failed ({'; '.join(found['reasons'])}). Train it again with more protection, or say "
            "--regardless"
        )
