"""The tests behind a comparison, in a process of their own: scipy and seconds of drawing stay out of the dashboard.

    python -m jobs.compare_tests TEST_SET METRICS FOLDER FOLDER ...     METRICS: comma-separated, may be empty

prints one JSON value, the list of tests.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.settings import ConfigError
from jobs import scores
from jobs.compare import SAMPLES, Comparison, load, overview, samples, tested
from jobs.home import PROJECT, Home

LEVEL = 0.05


def run(found: Comparison, wanted: Sequence[str] = ()) -> list[dict]:
    """Every other side against the first: [{metric: COLUMN.METRIC, a, b, difference, ci95, p, p_holm, n, ...}].

    difference: b - a, in points or nats. Holm's family is all tests of the comparison. Also: effect (d_z), detectable.
    """
    from engine.evaluation.statistics import holm

    made = []
    for column, metric in tested(found, wanted):
        for k in range(1, len(found.sides)):
            told = scores.compared(found.documents[0], found.documents[k], column, metric)
            names = {"metric": f"{column}.{metric}", "a": found.names[0], "b": found.names[k]}
            numbers = {"difference": told.mean, "ci95": list(told.ci95), "p": told.p, "n": told.n}
            made.append(names | numbers | {"effect": told.effect, "detectable": told.detectable})
    adjusted = holm([test["p"] for test in made])
    return [test | {"p_holm": p} for test, p in zip(made, adjusted, strict=True)]


def child_command(found: Comparison, wanted: Sequence[str] = ()) -> list[str]:
    folders = [str(side.folder) for side in found.sides]
    return [sys.executable, "-m", "jobs.compare_tests", found.test_set, ",".join(wanted), *folders]


def in_child(found: Comparison, wanted: Sequence[str] = ()) -> list[dict]:
    """The same, from a child process. Raises ConfigError with what the child says."""
    tested(found, wanted)  # complain before a process is started
    child = subprocess.run(
        child_command(found, wanted), cwd=PROJECT, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if child.returncode:
        raise ConfigError(*(child.stderr.strip().splitlines()[-3:] or ["the tests ended without a word"]))
    return json.loads(child.stdout)


def full(
    home: Home, given: Sequence[Path | str], test_set: str | None, wanted: Sequence[str] = (), count: int = SAMPLES
) -> dict:
    """What `compare --json` prints. The documents are ranked by the first metric that is tested. Raises ConfigError."""
    found = load(home, given, test_set)
    family = tested(found, wanted)
    if not family:
        raise ConfigError(f"compare: no metric that all checkpoints have on {found.test_set}. Evaluate them again")
    shown, warnings = samples(found, family[0][1], count)
    value = overview(found)
    return value | {"tests": in_child(found, wanted), "samples": shown, "warnings": value["warnings"] + warnings}


def main(arguments: Sequence[str]) -> int:
    test_set, wanted, *folders = arguments
    try:
        found = run(load(Home.find(), folders, test_set), [name for name in wanted.split(",") if name])
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(found, allow_nan=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
