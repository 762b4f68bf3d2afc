"""What earlier jobs on this machine really took, beside what was predicted: it corrects the next prediction."""

import json
import statistics
import time
from pathlib import Path
from typing import Any

from engine import files
from jobs.home import Home

KEPT, COUNTED = 50, 5  # measurements of a machine that are kept, and of them those that count
LEAST, MOST = 0.5, 2.0  # a correction beyond these says that something else is wrong
SPEED = {"cuda": 6e13, "cpu": 1.5e10}  # operations a second (of a GPU; of a core) while nothing has been measured
LINK = 2e10  # bytes a second from pinned host memory to a GPU; PCIe 4 with 16 lanes gives about 2.5e10


def path(home: Home) -> Path:
    return home.state / "calibration.json"


def read(home: Home, machine: str) -> list[dict[str, Any]]:
    """Measurements of a kind of machine, oldest first: {when, predicted_gib, measured_gib, flops_per_second}."""
    try:
        return json.loads(path(home).read_bytes()).get(machine, [])
    except (OSError, ValueError, AttributeError):
        return []  # nothing was measured yet, or the file is damaged: both are the same to a prediction


def memory_ratio(home: Home, machine: str) -> float:
    """Measured over predicted peak, the median of the last jobs; 1 where nothing was measured."""
    found = [
        row["measured_gib"] / row["predicted_gib"] for row in read(home, machine)[-COUNTED:] if row.get("predicted_gib")
    ]
    return min(MOST, max(LEAST, statistics.median(found))) if found else 1.0


def speed(home: Home, machine: str) -> float | None:
    """Operations a second, the median of the last jobs; None where nothing was measured."""
    found = [row["flops_per_second"] for row in read(home, machine)[-COUNTED:] if row.get("flops_per_second")]
    return statistics.median(found) if found else None


def add(home: Home, machine: str, row: dict[str, Any]) -> None:
    """Enter a measurement. Two jobs that end in the same moment may lose one of the two, which does no harm."""
    try:
        known = json.loads(path(home).read_bytes())
    except (OSError, ValueError):
        known = {}
    known[machine] = [*known.get(machine, []), row | {"when": time.time()}][-KEPT:]
    files.replace_json(path(home), known)
