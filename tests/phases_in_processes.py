"""`accelerate launch ... tests/phases_in_processes.py TINY BASE OUT`: both phases of the tiny config, in this many processes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from accelerate import PartialState  # noqa: E402

from engine import train  # noqa: E402
from engine.configs import load  # noqa: E402
from tests.conftest import make_work  # noqa: E402

GIVEN = (
    "model.dtype=float64", "lora.dropout=0", "losses.diversity=0", "losses.contrastive=0.1", "distil.documents_share=0.4",
    "curriculum.phases.phase2.mixture={papers: 0.3, videos: 0.4, pairs: 0.3}", "train.gradient_norms_steps=2",
    "train.gradient_accumulation_steps=3", "data.development_share=0.2", "evaluate.every_steps=3", "evaluate.samples=3",
)  # fmt: skip


def main(tiny: Path, base: Path, out: Path) -> None:
    settings = load(tiny / "tiny.yaml", [*GIVEN, f"data.documents={tiny}/documents.jsonl"])
    start = None
    for phase in settings.curriculum.phases:
        train.run(make_work("phase", phase.name, settings, base, out / phase.name, out, start))
        start = out / phase.name / "final"


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()  # a process that just leaves may abort on the way out
