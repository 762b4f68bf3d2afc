"""The demonstration: an unprotected run and a curriculum on the bundled corpus, side by side."""

from pathlib import Path

from engine.settings import SOURCES
from jobs import submit
from jobs.home import PROJECT, Home
from jobs.records import Job, Records

NAIVE, CURRICULUM = "pocket_naive.yaml", "pocket.yaml"


def queue(home: Home, records: Records, seed: int) -> tuple[tuple[str, list[Job]], tuple[str, list[Job]]]:
    """((naive run, its jobs), (curriculum run, its jobs)). The base they share is built once, by the first."""
    suffix = free_suffix(home, records, seed)
    return (
        _submit(home, records, NAIVE, f"demo-naive-{suffix}", seed),
        _submit(home, records, CURRICULUM, f"demo-curriculum-{suffix}", seed),
    )


def free_suffix(home: Home, records: Records, seed: int) -> str:
    """SEED, SEED-2, SEED-3, ...: the first with which both run names are free."""
    used = {job.run for job in records.jobs().values()} | {path.name for path in home.checkpoints.glob("demo-*")}
    number, suffix = 1, str(seed)
    while {f"demo-naive-{suffix}", f"demo-curriculum-{suffix}"} & used:
        number += 1
        suffix = f"{seed}-{number}"
    return suffix


def _submit(home: Home, records: Records, config: str, run: str, seed: int) -> tuple[str, list[Job]]:
    names = [f"{name}.jsonl" for name in (*SOURCES, "documents", "test")]
    bundled = [
        f"data.{Path(name).stem}={PROJECT}/data/pocket/{name}" for name in (*names, "terms.txt")
    ]  # from any folder
    request = submit.from_file("pipeline", PROJECT / "configs" / config, [*bundled, f"train.seed={seed}"], run=run)
    return run, submit.submit(home, records, request)
