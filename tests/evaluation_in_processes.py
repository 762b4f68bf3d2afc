"""`accelerate launch ... tests/evaluation_in_processes.py TINY BASE TEST RUN [slow | count | cancelled]`: the base is judged.

slow: each batch takes 0.3 s longer, to be killed in.  count: RUN/written tells how many batches all processes wrote.
cancelled: RUN/cancelled says so if every process was stopped by the file RUN/cancel.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from accelerate import PartialState  # noqa: E402
from accelerate.utils import gather_object  # noqa: E402

from engine.configs import load  # noqa: E402
from engine.evaluation import outputs  # noqa: E402
from engine.evaluation import run as evaluation  # noqa: E402
from engine.work import Cancelled  # noqa: E402
from tests.conftest import make_work  # noqa: E402


def main(tiny: Path, base: Path, test: Path, run: Path, how: str = "") -> None:
    settings = load(tiny / "tiny.yaml", ["evaluate.batch_size=1"])
    work = make_work("evaluate", "base", settings, base, run / "base", run, None, test)
    work = replace(work, cancelled=(run / "cancel").exists)
    if how == "cancelled":
        told = gather_object([stopped(work)])
        assert all(told), told
        (run / "cancelled").write_text("cancelled")
        return
    count = Counted(outputs.reference_nll, 0.3 if how == "slow" else 0)
    outputs.reference_nll = count
    evaluation.run(work)
    if how == "count":
        (run / "written").write_text(str(sum(gather_object([count.calls]))))


class Counted:
    """A function that counts its calls and takes its time."""

    def __init__(self, function, seconds: float):
        self.function, self.seconds, self.calls = function, seconds, 0

    def __call__(self, *given):
        self.calls += 1
        time.sleep(self.seconds)
        return self.function(*given)


def stopped(work) -> bool:
    try:
        evaluation.run(work)
    except Cancelled:
        return True
    return False


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:5]), *sys.argv[5:])
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()  # a process that just leaves may abort on the way out
