"""`evaluate --predictions FILE --references FILE`: the engine's scoring of existing outputs, in a child process."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from engine.evaluation.table import METRICS, digits
from engine.settings import ConfigError
from jobs import show
from jobs.home import PROJECT

PROGRESS = "progress: "


def score(
    predictions: Path,
    references: Path,
    out: Path | None,
    overrides: Sequence[str],
    say: Callable[[str], None] = lambda line: None,
) -> dict:
    """{metrics, documents, scored_by, out}; how far it is goes to `say`. Raises ConfigError with what the child says is
    wrong. The child ends with its caller."""
    command = [sys.executable, "-m", "engine.evaluation.given", str(predictions), str(references), str(out or "")]
    where = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": where, "PYTHONHASHSEED": "0"}  # as for a job: the same bits each time
    with tempfile.TemporaryFile("w+") as answer:
        streams = {"stdin": subprocess.DEVNULL, "stdout": answer, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen([*command, *overrides], env=environment, **streams) as child:
            lines = _heard(child, say)
        if child.returncode:
            raise ConfigError(*(lines[-10 if child.returncode == 2 else -1 :] or ["no result"]))
        answer.seek(0)
        value = json.load(answer)
    value["warnings"] = [line for line in lines if line.startswith("warning: ")]
    return value


def _heard(child: subprocess.Popen, say: Callable[[str], None]) -> list[str]:
    """What a child says on stderr, but for its progress, which is passed on as it comes."""
    lines = []
    try:
        for line in map(str.rstrip, child.stderr):
            if line.startswith(PROGRESS):
                say(line.removeprefix(PROGRESS))
            elif line:
                lines.append(line)
    except BaseException:
        child.terminate()
        raise
    return lines


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
