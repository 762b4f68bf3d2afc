"""`make kill-evaluation TRANSCRIPTS="FILE..."`: 500 transcripts judged by a process that is killed five times, and by one left alone.

Four kills (SIGKILL) fall between and inside batches, the fifth into the scoring. The two scores files must be equal byte
for byte. The model is a tiny one, made here from the bundled corpus, so that what takes time is the judging.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from engine import base
from engine.configs import load
from engine.corpus.records import read, write_jsonl
from engine.evaluation import run as evaluation
from engine.events import Generated, Scored, Stage, Tail, Writer
from engine.work import Work
from tests.conftest import PROJECT, make_work, write_tiny

COUNT = 500
GIVEN = ("evaluate.batch_size=16", "evaluate.bertscore_model=bundled")
KILL_AT = (1, 100, 230, 400)  # documents written


def main(files: list[Path]) -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = write_tiny(Path(name))
        records = [record for path in files for record in read(path) if record.modality == "video"][:COUNT]
        write_jsonl(folder / "transcripts.jsonl", records)
        model = folder / "bases" / "tiny"
        base.run(make_work("base", None, load(folder / "tiny.yaml"), model, model, folder))
        whole, cut = folder / "a" / "whole", folder / "b" / "cut"
        for kill in (*(written(count) for count in KILL_AT), scoring):
            run(folder, cut, kill)
        run(folder, cut)
        run(folder, whole)
        one, two = ((run / "base" / "evaluations" / "transcripts.jsonl").read_bytes() for run in (whole, cut))
    same = "the same" if one == two else "NOT the same"
    print(f"{len(one.splitlines())} transcripts, {len(one):,} bytes: {same} after {len(KILL_AT) + 1} kills")
    return int(one != two or len(one.splitlines()) != COUNT)


def written(count: int):
    return lambda event, stage: isinstance(event, Generated) and event.done >= count


def scoring(event, stage: str) -> bool:
    return isinstance(event, Scored) and stage == "bertscore"


def run(folder: Path, out: Path, kill=lambda event, stage: False) -> None:
    """An evaluation in a process of its own; killed as soon as `kill` says so of one of its events and the stage."""
    out.mkdir(parents=True, exist_ok=True)
    events, stage = out / f"events-{time.time_ns()}.jsonl", ""
    command = [sys.executable, "-m", "tests.killed_evaluation", "--child", str(folder), str(out), str(events)]
    child, tail = subprocess.Popen(command, cwd=PROJECT), Tail(events)
    while child.poll() is None:
        for stamped in tail():
            stage = stamped.event.name if isinstance(stamped.event, Stage) else stage
            if kill(stamped.event, stage) and child.poll() is None:
                child.kill()
                child.wait()
                print(f"killed while {stage}, at {stamped.event.done}/{stamped.event.total}", flush=True)
        time.sleep(0.005)
    if child.returncode not in (0, -9):
        raise SystemExit(f"the evaluation ended with {child.returncode}")


def child(folder: Path, out: Path, events: Path) -> None:
    work = Work(
        "evaluate", out.name, "base", load(folder / "tiny.yaml", GIVEN), str(folder / "bases" / "tiny"), out / "base",
        out, None, folder / "transcripts.jsonl", Writer(events, 1), lambda: False,
    )  # fmt: skip
    evaluation.run(work)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*map(Path, sys.argv[2:]))
    elif sys.argv[1:]:
        sys.exit(main([Path(name) for name in sys.argv[1:]]))
    else:
        sys.exit('make kill-evaluation TRANSCRIPTS="FILE ...": records, JSONL, 500 of them videos')
