"""What a job hands to the engine: settings, folders, and two ways to talk back. Light."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.events import Emit
from engine.settings import Settings


class Cancelled(Exception):
    """The user asked the job to stop. It was raised after everything worth keeping was saved."""


@dataclass(frozen=True)
class Work:
    """One job of the engine.

    folder: where its product goes: checkpoints/RUN/PHASE for a phase, checkpoints/bases/FINGERPRINT for a base, the
    checkpoint itself for an evaluation.  run_folder: checkpoints/RUN.  start_from: final checkpoint of the phase before.
    cache: where what follows from the data alone is kept for later jobs (tokens, indices of records); None: nowhere.
    """

    kind: str
    run: str
    phase: str | None
    settings: Settings
    model: str  # name on the Hub, or folder of the base
    folder: Path
    run_folder: Path
    start_from: Path | None
    test_set: Path | None
    emit: Emit
    cancelled: Callable[[], bool]
    cache: Path | None = None
