"""The catalogue of evaluations, made anew from what lies beside the checkpoints."""

import json
from pathlib import Path

from engine.settings import first_line
from jobs.home import Home
from jobs.records import Records

KEPT = ("fingerprint", "metrics", "created", "scored_by", "speed", "modality_gap", "test_file")


def reindex(home: Home, records: Records) -> tuple[int, list[str]]:
    """Put every stored evaluation into the catalogue, and nothing else; (how many, which files were passed over, why).

    Jobs are not touched. Two places of the same run, phase and test set cannot be: the path is made of them.
    """
    rows, complaints = [], []
    for summary in sorted(
        [*home.checkpoints.glob("*/*/final/evaluations/*.json"), *home.checkpoints.glob("*/base/evaluations/*.json")]
    ):
        try:
            rows.append(_row(summary))
        except (OSError, ValueError, KeyError, TypeError) as error:
            complaints.append(f"{summary}: passed over ({type(error).__name__}: {first_line(error)}). Evaluate again")
    records.replace_evaluations(rows)
    return len(rows), complaints


def _row(summary: Path) -> dict:
    about = json.loads((summary.parent.parent / "about.json").read_bytes())
    told = json.loads(summary.read_bytes())
    path = summary.with_suffix(".jsonl")
    path.stat()
    names = {"run": about["run"], "phase": about["phase"], "test_set": summary.stem, "path": str(path)}
    return names | {"metrics": told["metrics"], "created": told["created"]} | {k: told[k] for k in KEPT if k in told}
