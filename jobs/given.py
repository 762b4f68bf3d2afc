"""`evaluate --predictions FILE --references FILE`: the engine's scoring of existing outputs, in a child process."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.evaluation.table import METRICS, digits
from engine.settings import ConfigError
from jobs import show
from jobs.home import PROJECT


def score(predictions: Path, references: Path, out: Path | None, overrides: Sequence[str]) -> dict:
    """{metrics, documents, scored_by, out}. Raises ConfigError with what the child says is wrong."""
    command = [sys.executable, "-m", "engine.evaluation.given", str(predictions), str(references), str(out or "")]
    where = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": where, "PYTHONHASHSEED": "0"}  # as for a job: the same bits each time
    child = subprocess.run(
        [*command, *overrides], env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if child.returncode:
        raise ConfigError(*(child.stderr.strip().splitlines()[-10 if child.returncode == 2 else -1 :] or ["no result"]))
    value = json.loads(child.stdout)
    value["warnings"] = [line for line in child.stderr.splitlines() if line.startswith("warning: ")]
    return value


def text(value: dict) -> str:
    """A table: metrics down, columns across."""
    columns = list(value["metrics"])
    names = [name for name in METRICS if any(name in value["metrics"][column] for column in columns)]
    rows = [["", *columns]]
    for name in names:
        cells = [value["metrics"][column].get(name) for column in columns]
        rows.append([METRICS[name].label, *("–" if cell is None else f"{cell:.{digits(name)}f}" for cell in cells)])
    rows.append(["documents", *(str(value["metrics"][column]["n"]) for column in columns)])
    by = value["scored_by"]
    judges = f"BERTScore by {by['bertscore'] or 'nobody'}; sentences by {by['sentences']}"
    return "\n".join([show.table(rows, right=tuple(range(1, 1 + len(columns)))), judges, *value["warnings"]])
