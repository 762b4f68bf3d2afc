"""A stand-in for jobs.process: counts steps, saves its position, obeys a cancel request.

It notices if another job runs at the same time: with one slot that must never be, so it ends with a wrong result.
Its spec.yaml holds JSON: {"steps": 8, "fails": false, "stubborn": false, "dies": false, "outcome": "done"}.
"""

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine import events as ev
from engine import files

STEP_SECONDS = 0.05


def is_alone(file) -> bool:
    for _ in range(20):  # one that is just being killed lets go of this a moment after it let go of the GPU
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.01)
    return False


def main(folder: Path) -> int:
    if (folder / "result.json").exists():
        return 0
    alone = (folder.parent / "alone.lock").open("a")
    if not is_alone(alone):
        files.replace_json(folder / "result.json", {"outcome": "failed", "reason": "collision"})
        return 1
    spec = {"steps": 8} | json.loads((folder / "spec.yaml").read_text())
    if spec.get("stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    emit = ev.Writer(folder / "events.jsonl", int(os.environ["HYBRIDSUM_ATTEMPT"]))
    checkpoint = folder / "checkpoint.json"
    step = json.loads(checkpoint.read_text()) if checkpoint.exists() else 0
    print(f"start at step {step}", flush=True)
    emit(ev.Started(os.getpid()))
    while step < spec["steps"]:
        time.sleep(STEP_SECONDS)
        step += 1
        emit(ev.Step(step, spec["steps"], {"cross_entropy": 1.0}, 1.0, 1e-4, 1.0, 1.0, 0.0))
        if spec.get("dies"):
            os.kill(os.getpid(), signal.SIGKILL)
        if spec.get("fails"):
            raise RuntimeError("asked to fail")
        if step % 5 == 0:
            files.replace_json(checkpoint, step)
            emit(ev.Saved(str(checkpoint), step, 1))
        if (folder / "cancel").exists() and not spec.get("stubborn"):
            files.replace_json(folder / "result.json", {"outcome": "cancelled", "reason": f"at step {step}"})
            return 0
    files.replace_json(
        folder / "result.json",
        {
            "outcome": spec.get("outcome", "done"),
            "reason": spec.get("reason", ""),
            "stops": spec.get("stops", False),
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(os.environ["HYBRIDSUM_HOME"]) / ".hybridsum" / "jobs" / sys.argv[1]))
