"""The same recipe with several seeds: what it changed against the base, with the spread over seeds in the interval."""

from collections.abc import Sequence

from engine.evaluation.table import METRICS, digits
from engine.settings import ConfigError
from jobs import scores
from jobs.home import Home
from jobs.records import Records
from jobs.results import measured_rows


def over_seeds(home: Home, records: Records, runs: Sequence[str], metric: str) -> dict[str, dict]:
    """{column: {points, ci95, p, n, seeds, each: {run: points}}}: last row minus base, by two-level bootstrap.

    Raises ConfigError unless two or more runs were judged on the same documents, base and last row.
    """
    if len(set(runs)) < 2:
        raise ConfigError("--with: give one or more other runs of the same recipe")
    sides = {run: _first_and_last(home, records, run) for run in dict.fromkeys(runs)}
    columns = {column for _, new in sides.values() for column, _ in new}
    return {column: _column(sides, column, metric) for column in sorted(columns)}


def _first_and_last(home: Home, records: Records, run: str) -> tuple[scores.Documents, scores.Documents]:
    found = measured_rows(home, records, run)
    if "base" not in found.measured or not found.last:
        raise ConfigError(f"run {run}: the base and a phase must be judged before seeds are compared")
    last = found.measured[found.names[found.last]]
    return scores.documents(found.measured["base"]["path"]), scores.documents(last["path"])


def _column(sides: dict[str, tuple], column: str, metric: str) -> dict:
    from engine.evaluation.statistics import by_group, two_level

    values, units = {}, {}
    for run, (old, new) in sides.items():
        told, groups = scores.differences(old, new, column, metric)
        values[run], units[run] = by_group(told, groups), list(dict.fromkeys(groups))
    if len({tuple(names) for names in units.values()}) > 1:
        raise ConfigError(
            f"--with: {', '.join(sides)} were not judged on the same documents. Evaluate them on one test set"
        )
    found = two_level(values)
    each = {run: sum(told) / len(told) for run, told in values.items()}
    return {
        "points": found.mean,
        "ci95": list(found.ci95),
        "p": found.p,
        "n": found.n,
        "seeds": len(each),
        "detectable": found.detectable,
        "each": each,
    }


def text(found: dict[str, dict], metric: str) -> str:
    """A line for each column: mean over seeds, interval, and every seed."""
    places = digits(metric)
    lines = [f"{METRICS[metric].label}, last row against base, over seeds (two-level bootstrap)"]
    for column, told in found.items():
        low, high = told["ci95"]
        each = ", ".join(f"{run} {value:+.{places}f}" for run, value in told["each"].items())
        lines.append(
            f"{column}: {told['points']:+.{places}f}, 95 % [{low:+.{places}f}, {high:+.{places}f}], p {told['p']:.4f}, "
            f"{told['seeds']} seeds x {told['n']} documents ({each})"
        )
    return "\n".join(lines)
