"""A job's own process as it is (jobs.process), with an engine that takes real memory for each record of a micro-batch.

The limit is real too (RLIMIT_AS), so Python itself says when there is no more. The job's name says what fits:
`fits-1` leaves room for one record at a time, `fits-0` for none.
"""

import json
import os
import resource
import sys
import time
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine import events as ev
from engine import files
from jobs import process
from jobs.kinds import KINDS

RECORD = 256 * 2**20  # bytes
STEPS = 6


def run(work) -> dict:
    work.emit(ev.Stage("loading"))
    work.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = work.folder / "checkpoint.json"
    step = json.loads(checkpoint.read_text()) if checkpoint.exists() else 0
    left_open = os.open(work.folder / "driver", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(left_open, True)  # as a careless driver does
    work.emit(ev.PhaseStarted("phase1", STEPS, step))
    limit_memory(float(work.run.removeprefix("fits-")))
    micro, train = work.settings.train.per_device_train_batch_size, work.settings.train
    while step < STEPS:
        if step % 2:  # the even steps are short
            bytearray(micro * RECORD)
        step += 1
        files.replace_json(checkpoint, step)
        work.emit(ev.Step(step, STEPS, {"cross_entropy": 1.0}, 1.0, 1e-4, 1.0, 1.0, 0.0))
    while not (work.folder / "go").exists():
        time.sleep(0.02)
    return {"batch": [micro, train.gradient_accumulation_steps], "open": open_files()}


def limit_memory(records: float) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = int((records + 0.5) * RECORD)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, hard))


def open_files() -> list[str]:
    return sorted(str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink())


if __name__ == "__main__":
    sys.modules["hungry"] = types.SimpleNamespace(run=run)
    KINDS["phase"] = ("hungry", "run")
    sys.stdout.reconfigure(line_buffering=True)
    sys.exit(process.main(sys.argv[1]))
