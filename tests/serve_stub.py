"""A real runner whose jobs are stubs. With an argument they are another script, or it dies at a moment of a start."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jobs import runner
from jobs.home import Home


def die(*_, **__) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    stub = next((name for name in sys.argv[1:] if name.endswith(".py")), "stub_job.py")
    command = [sys.executable, str(Path(__file__).with_name(stub))]
    served = runner.Runner(Home.find(), command, grace=0.5, kill_grace=0.5)
    if "die-before-process" in sys.argv:
        served._spawn = die
    if "die-before-name" in sys.argv:
        served._name = die
    runner.logging.basicConfig(level="INFO")
    sys.exit(served.serve())
