"""What a large corpus costs a phase before its first step, and at each step: `python -m tests.scale [RECORDS ...]`.

Synthetic papers of 40 words with summaries of 8 and a replay buffer of a tenth as many, the vocabulary of the pocket base, a
temporary folder (4 GB for a million), every start in a process of its own with one thread. Cold: nothing is kept from before.
Warm: what the cold start has left. No model takes part: this is all that depends on the number of records.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from engine.corpus.records import Record, write_jsonl
from engine.mixture import generator
from jobs.home import PROJECT

SIZES = (1_000, 100_000, 1_000_000)
LATER = 200  # steps after the first whose rows are timed
BATCH = 16
WORDS = 40
MIB = 2**20


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("records", nargs="*", type=int, default=SIZES)
    given.add_argument("--start", type=Path, help="one start on the records of a folder, told as JSON")
    asked = given.parse_args()
    if asked.start:
        print(json.dumps(start(asked.start)))
        return
    print(
        "| records | start | s of CPU | peak, MiB | stays, MiB | rows of a step, first / later, ms | kept on disk, MiB |"
    )
    print("|---:|---|---:|---:|---:|---:|---:|")
    for size in asked.records:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), size)
            for kind in ("cold", "warm"):
                command = [sys.executable, "-m", "tests.scale", "--start", folder]
                told = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
                if told.returncode:
                    sys.exit(told.stderr)
                print(row(size, kind, json.loads(told.stdout.splitlines()[-1])), flush=True)


def row(size: int, kind: str, found: dict) -> str:
    return (
        f"| {size:,} | {kind} | {found['cpu']:.1f} | {found['peak']:,.0f} | {found['stays']:,.0f} | "
        f"{found['first']:.1f} / {found['later']:.2f} | {found['disk']:,.0f} |"
    )


def write(folder: Path, size: int) -> None:
    """papers.jsonl, and start/replay.jsonl with a tenth as many."""
    (folder / "start").mkdir()
    write_jsonl(folder / "papers.jsonl", (record(f"p{k}") for k in range(size)))
    old = (record(f"old{k}", {"phase": "before"}) for k in range(size // 10))
    write_jsonl(folder / "start" / "replay.jsonl", old)


def record(name: str, extra: dict | None = None) -> Record:
    chance = generator(name)
    words = [f"{chance.choice(SYLLABLES)}{chance.choice(SYLLABLES)}" for _ in range(WORDS)]
    return Record(name, "paper", " ".join(words), " ".join(words[:8]), extra=extra or {})


SYLLABLES = ("ar", "ben", "cor", "dis", "el", "fer", "gal", "hep", "in", "kar", "lum", "mor", "nep", "os", "per", "ten")


def start(folder: Path) -> dict:
    """One start in this process: everything of engine.material but the base's own answers, which need a model."""
    import torch

    from engine import base
    from engine.configs import load
    from engine.corpus.split import assemble
    from engine.material import prepare
    from engine.work import Work

    torch.set_num_threads(1)
    pocket = load(PROJECT / "configs" / "pocket.yaml")
    tokenizer = base.train_tokenizer(assemble(pocket.data), pocket.model.build)
    settings = load(
        None,
        [
            f"data.papers={folder}/papers.jsonl", "curriculum.phases=[{name: now, mixture: {papers: 1.0}, steps: 1000}]",
            "data.max_length=320", "data.max_summary_length=120", "distil.base=0", "replay.batch_share=0.1",
            f"train.per_device_train_batch_size={BATCH}", "train.gradient_accumulation_steps=1",
        ],
    )  # fmt: skip
    work = Work(
        "phase", "run", "now", settings, "", folder, folder, folder / "start", None, lambda event: None, lambda: False,
        folder / "cache",
    )  # fmt: skip
    before, resident, clock = memory("RssAnon"), memory("VmRSS"), time.process_time()
    material = prepare(work, tokenizer, None)
    cpu = time.process_time() - clock
    times = []
    for step in range(LATER + 1):
        clock = time.process_time()
        material.rows(step)
        times.append(1000 * (time.process_time() - clock))
    disk = sum(path.stat().st_size for path in (folder / "cache").iterdir())
    return {
        "cpu": cpu, "first": times[0], "later": statistics.median(times[1:]), "disk": disk / MIB,
        "peak": memory("VmHWM") - resident, "stays": memory("RssAnon") - before,
    }  # fmt: skip


def memory(name: str) -> float:
    """MiB of this process: VmRSS resident, VmHWM at most so far, RssAnon without the pages of files, which the system can
    take back at any time."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) / 1024


if __name__ == "__main__":
    main()
