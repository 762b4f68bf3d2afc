"""`make planted CHECKPOINT=checkpoints/RUN/PHASE/final`: what the gate says of a trained adapter and of copies of it.

The same adapter must pass, three times its update must fail, and the least larger update that does not pass on few
documents must be undecided. The gate is that of ROUGE-L against the phase before. The checkpoint itself is only read.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

from engine import checkpoint
from engine.evaluation import run as evaluation
from engine.evaluation.statistics import FAILED, PASSED, UNDECIDED
from engine.settings import ConfigError, Settings
from jobs import gate
from jobs.home import Home
from jobs.records import Records
from jobs.submit import load_about_settings, read_about
from tests.conftest import PROJECT, make_work

MARGIN = -1.0  # points of ROUGE-L, in both columns
FEW = 6  # documents of each modality, that a small difference is looked for in
SMALL = [1 + k / 10 for k in range(2, 16)]  # times the update, tried in this order


def main(final: Path) -> int:
    if not (final / "adapter_model.safetensors").exists():
        raise ConfigError(f"{final}: no adapter there. Give the folder of a checkpoint: checkpoints/RUN/PHASE/final")
    right = [
        told("the same", verdict(final, 1.0))["verdict"] == PASSED,
        told("three times the update", verdict(final, 3.0))["verdict"] == FAILED,
        small(final),
    ]
    print("as it should be" if all(right) else "not as it should be")
    return int(not all(right))


def told(name: str, found: dict) -> dict:
    print(f"{name}: {found['verdict'].upper()}\n  " + "\n  ".join(found["reasons"]), flush=True)
    return found


def small(final: Path) -> bool:
    """Of the least update that does not pass on few documents: is it undecided, and below what they can detect?"""
    for factor in SMALL:
        found = verdict(final, factor, FEW)
        if found["verdict"] != PASSED:
            told(f"{factor:.1f} times the update, {FEW} documents of each kind", found)
            open_ones = [column for column in found["columns"].values() if column["verdict"] == UNDECIDED]
            return found["verdict"] == UNDECIDED and all(abs(c["points"]) < c["detectable"] for c in open_ones)
    print(f"all of {SMALL[0]} to {SMALL[-1]} times the update pass on {FEW} documents of each kind")
    return False


def verdict(final: Path, factor: float, samples: int = 0) -> dict:
    """What the gate says of a copy of the checkpoint, held to the checkpoint, in a home that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        return judged(final, Home(Path(folder)), factor, samples)


def judged(final: Path, home: Home, factor: float, samples: int) -> dict:
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
    if len(sys.argv) != 2:
        sys.exit("make planted CHECKPOINT=checkpoints/RUN/PHASE/final")
    try:
        sys.exit(main(Path(sys.argv[1])))
    except ConfigError as error:
        sys.exit(str(error))
