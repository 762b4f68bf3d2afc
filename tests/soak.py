"""`make soak [KILLS]`: kill runner, job or both at random until a pipeline is through; the weights must be those of a calm run."""

import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.conftest import PROJECT, write_tiny
from tests.test_pipeline import Box


def pipeline(box: Box, config: Path) -> list[str]:
    """The full recipe: every loss with what it carries along (queue, buffer, anchors, teachers), and evaluations inside."""
    given = ["curriculum.phases.phase1.steps=30", "curriculum.phases.phase2.steps=30"]
    given += [f"data.terms={PROJECT}/data/pocket/terms.txt", f"data.documents={config.parent}/documents.jsonl"]
    given += ["losses.drift=0.03", "losses.floor=0.1", "distil.documents_share=0.4", "distil.new=0.1"]
    given += ["curriculum.phases.phase2.mixture={papers: 0.3, videos: 0.4, pairs: 0.3}"]
    given += [
        "data.development_share=0.1",
        "evaluate.every_steps=10",
        "evaluate.samples=2",
        "average.weights=[0.5, 1.0]",
    ]
    return box.json("queue", "pipeline", str(config), *given, "--run", "calm")["jobs"]


def kill_something(box: Box, chance: random.Random) -> str:
    """Kill the runner, the running job, or both; start a runner again."""
    what = chance.choice(["runner", "job", "both"])
    running = [job for job in box.records.jobs().values() if job.state == "running" and job.pid]
    runner = box.json("runner", "status").get("pid")
    for pid in ([job.pid for job in running] if what != "runner" else []) + (
        [runner] if what != "job" and runner else []
    ):
        try:
            box.kill(pid)
        except ProcessLookupError:
            what += " (just gone)"
    box.run("runner", "start")
    return what


def product(box: Box, phase: str) -> dict[str, str]:
    """{file: sha256} of a final checkpoint: adapter, anchors, buffer, queue, tokenizer; without the files that hold the
    time of day (about.json) or the folder of this home's base (adapter_config.json and PEFT's card)."""
    listed = json.loads((box.home.final("calm", phase) / "manifest.json").read_bytes())
    told = {"about.json", "adapter_config.json", "README.md"}
    return {name: entry["sha256"] for name, entry in listed.items() if name not in told}


def keep(root: Path) -> Path:
    """Both homes moved out of the temporary folder, to be looked at."""
    return Path(shutil.move(root, tempfile.mkdtemp(prefix="soak-")))


def main(kills: int) -> None:
    chance = random.Random(0)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        (root / "data").mkdir()
        config = write_tiny(root / "data") / "tiny.yaml"
        calm = Box(root / "calm")
        calm.run("wait", *pipeline(calm, config))
        calm.run("runner", "stop", "--jobs")
        done, round_number = 0, 0
        while done < kills:
            round_number += 1
            box = Box(root / f"wild{round_number}")
            jobs = pipeline(box, config)
            while any(job.state in ("queued", "running") for job in box.records.jobs().values()) and done < kills:
                time.sleep(chance.uniform(0.5, 12))  # the moment of the kill is what is random here
                done += 1
                print(f"kill {done}: {kill_something(box, chance)}", flush=True)
            for job in [job.id for job in box.records.jobs().values() if job.state in ("failed", "blocked")]:
                print(f"job {job}: {box.records.job(job).state}: {box.records.job(job).reason}")
                if box.records.job(job).state == "failed":
                    box.run("retry", job)
            box.run("wait", *jobs)
            for phase in ("phase1", "phase2"):
                wild, undisturbed = product(box, phase), product(calm, phase)
                different = sorted(name for name in wild | undisturbed if wild.get(name) != undisturbed.get(name))
                assert not different, f"{phase}: {', '.join(different)} differ after kills, see {keep(root)}"
            box.run("runner", "stop", "--jobs")
            print(f"pipeline {round_number}: all done, weights equal to the calm run's", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
