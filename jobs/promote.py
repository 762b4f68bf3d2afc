"""Name the checkpoint of a run that is to be used: checkpoints/RUN/best points at it."""

from pathlib import Path

from engine import checkpoint
from engine.settings import ConfigError
from jobs import gate
from jobs.home import Home
from jobs.records import Records
from jobs.submit import read_about

BEST = "best"


def promote(home: Home, records: Records, folder: Path, regardless: bool = False) -> dict:
    """{path, run, phase, gate}. Raises ConfigError for a damaged checkpoint, or one whose gate failed unless `regardless`."""
    folder = folder.absolute()
    about = read_about(folder)
    run_folder = home.run(about["run"])
    if about["phase"] == "base" or not folder.is_relative_to(run_folder):
        raise ConfigError(f"{folder}: only a checkpoint under {run_folder} can be promoted. Give PHASE/final")
    checkpoint.demand(folder)
    gate.demand_passed(home, records, about["run"], about["phase"], regardless)
    found = gate.after_evaluation(home, records, about["run"], about["phase"])
    checkpoint.link(run_folder, BEST, folder)
    return {
        "path": str(folder),
        "run": about["run"],
        "phase": about["phase"],
        "gate": found["verdict"] if found else None,
    }
