"""`make planted CHECKPOINT=checkpoints/RUN/PHASE/final`: what the gate says of a trained adapter and of copies of it.

The same adapter must pass, three times its update must fail, and a slightly larger one on few documents must be
undecided. The gate is that of ROUGE-L against the phase before. The checkpoint itself is only read.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

from engine import checkpoint
from engine.corpus.split import read_test
from engine.evaluation import run as evaluation
from engine.evaluation.statistics import FAILED, PASSED, UNDECIDED
from engine.settings import ConfigError, Settings
from jobs import gate
from jobs.home import Home
from jobs.records import Records
from jobs.submit import load_about_settings, read_about
from tests.conftest import PROJECT, make_work

MARGIN = -1.0  # points of ROUGE-L, in both columns
CASES = (
    ("same", 1.0, 0, PASSED),
    ("three times", 3.0, 0, FAILED),
    ("slightly larger, 12 documents", 1.15, 6, UNDECIDED),
)


def main(final: Path) -> int:
    if not (final / "adapter_model.safetensors").exists():
        raise ConfigError(
            f"{final}: no adapter there. Give the folder of a checkpoint, such as checkpoints/RUN/PHASE/final"
        )
    surprises = 0
    for name, factor, samples, expected in CASES:
        with tempfile.TemporaryDirectory() as folder:
            found = verdict(final, Home(Path(folder)), factor, samples)
        print(f"{name}: {found['verdict'].upper()}\n  " + "\n  ".join(found["reasons"]), flush=True)
        surprises += found["verdict"] != expected
    print("as it should be" if not surprises else f"{surprises} verdicts are not what they should be")
    return int(surprises > 0)


def verdict(final: Path, home: Home, factor: float, samples: int) -> dict:
    """Two phases: the checkpoint, and its adapter with B times `factor`. samples: of each modality; 0: all."""
    home.jobs.mkdir(parents=True)
    about, records = read_about(final), Records(home.records)
    settings = load_about_settings(about, final).model_dump(by_alias=True)
    settings["train"]["threads"] = 1  # the machine may be busy
    settings["evaluate"] |= {
        "samples": samples,
        "bertscore_model": "none",
        "gate": {"metric": "rougeL", "papers": MARGIN, "videos": MARGIN, "against": "previous"},
    }
    settings = Settings.model_validate(settings)
    for phase, times in (("phase1", 1.0), ("phase2", factor)):
        made = home.final("planted", phase)
        checkpoint.save(made, lambda folder, times=times, phase=phase: scaled(final, folder, times, phase, settings))
        test = Path(settings.data.test or PROJECT / "data" / "pocket" / "test.jsonl")
        read_test(test)
        work = make_work("evaluate", phase, settings, about["model"], made, home.run("planted"), None, test)
        facts = evaluation.run(work)
        kept = {name: facts[name] for name in ("test_set", "metrics", "path", "created")}
        records.add_evaluation({"run": "planted", "phase": phase, **kept})
    return gate.after_evaluation(home, records, "planted", "phase2", settings)


def scaled(final: Path, folder: Path, factor: float, phase: str, settings: Settings) -> None:
    for name in ("adapter_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(final / name, folder / name)
    weights = load_file(final / "adapter_model.safetensors")
    save_file(
        {name: factor * value if "lora_B" in name else value for name, value in weights.items()},
        folder / "adapter_model.safetensors",
    )
    about = {"run": "planted", "phase": phase, "settings": settings.model_dump(mode="json", by_alias=True)}
    (folder / "about.json").write_text(json.dumps(about))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
