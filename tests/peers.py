"""`make bench-peers`: a training step here beside Hugging Face Trainer and TRL's SFTTrainer, both with PEFT.

The same model, documents, order, dropout rate, precision and optimizer; every side a process of its own with one thread;
they take turns step by step, so that a busy machine hurts all alike. Speeds are medians of the ratios of a step's times to
Trainer's at the same step; tokens a second are those of all counted steps together. The first steps are not counted: in
them every side's heap grows, and oneDNN writes code for each length it has not met, which a run of hundreds of steps does
once.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from jobs.environment import of_job
from tests.benchmarks import machine
from tests.conftest import PROJECT

PAGE = PROJECT / "docs" / "benchmarks.md"
START, END = "<!-- make bench-peers: start -->", "<!-- make bench-peers: end -->"
SIDES = ("Trainer", "Trainer, memory kept", "SFTTrainer", "plain", "ours, masks per token", "full")
PEERS = ("Trainer", "SFTTrainer")  # as their users start them; all others as the runner does (jobs/environment.py)
CONTESTANTS = {"Trainer, memory kept": "Trainer"}  # where it is not the side's name
NAMES = {
    "Trainer": "Trainer + PEFT", "Trainer, memory kept": "the same, in the environment of our jobs", "SFTTrainer": "TRL SFTTrainer + PEFT", "plain": "ours, plain cross-entropy",
    "ours, masks per token": "the same, lora.dropout_mask=token", "full": "ours, full recipe",
}  # fmt: skip


class Side:
    """A contestant's process."""

    def __init__(self, side: str, **given):
        order = json.dumps({"side": CONTESTANTS.get(side, side), "keep": "", **given})
        environment = os.environ if side in PEERS else of_job(os.environ)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.contestant", order], cwd=PROJECT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**environment, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"},
        )  # fmt: skip
        self.steps: list[dict] = []
        self._hear()

    def step(self, number: int, counts: bool = True) -> None:
        self._say(str(number))
        told = self._hear()
        if counts:
            self.steps.append(told)

    def end(self) -> float:
        """Lets the process end; its peak memory in GiB."""
        self._say("")
        peak = self._hear()["peak"]
        self.process.wait()
        return peak

    def _say(self, text: str) -> None:
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def _hear(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a contestant ended early with status {self.process.wait()}: {self.process.args}")
        return json.loads(line)

    def median(self, what: str) -> float:
        return statistics.median(step[what] for step in self.steps)

    def total(self, what: str) -> float:
        return sum(step[what] for step in self.steps)

    def speed(self, what: str, other: "Side") -> float:
        """How many times as fast as another it was, at the same steps."""
        return statistics.median(
            theirs[what] / ours[what] for ours, theirs in zip(self.steps, other.steps, strict=True)
        )


def race(size: str, bf16: bool, given: argparse.Namespace, folder: str) -> list[str]:
    """Rows of the table for one model and one precision."""
    steps = given.warm_up + given.rounds
    order = {"size": size, "bf16": bf16, "dropout": given.dropout, "steps": steps + 1, "folder": folder}
    sides = {side: Side(side, **order) for side in given.sides}
    for number in range(steps):
        for side in sides.values():
            side.step(number, counts=number >= given.warm_up)
    peaks = {name: side.end() for name, side in sides.items()}
    first, rows = sides["Trainer"], []
    for name, side in sides.items():
        print(name, "CPU s of each step:", *(f"{step['cpu']:.2f}" for step in side.steps), flush=True)
        rows.append(
            f"| {size}, {'bf16 autocast' if bf16 else 'fp32'} | {NAMES[name]} | {side.median('cpu'):.2f} | {side.median('wall'):.2f} | "
            f"{side.total('tokens') / side.total('cpu'):.0f} | {side.speed('cpu', first):.2f} | {side.speed('wall', first):.2f} | {peaks[name]:.2f} | {peaks[name] / peaks['Trainer']:.2f} |"
        )
        print(rows[-1], flush=True)
    return rows


def agreement(size: str, folder: str) -> str:
    """Cosine of the gradients of one step in fp32 without dropout, before clipping."""
    import torch

    found = {}
    for name in ("Trainer", "SFTTrainer", "plain"):
        keep = str(Path(folder) / f"{name}.pt")
        side = Side(name, size=size, bf16=False, dropout=0.0, steps=1, folder=folder, keep=keep)
        side.step(0)
        side.process.kill()
        side.process.wait()
        found[name] = torch.load(keep, weights_only=True)
    ours = found.pop("plain")
    cosines = {n: torch.nn.functional.cosine_similarity(ours, value, dim=0).item() for n, value in found.items()}
    text = f"{size}: " + ", ".join(f"{name} {value:.8f}" for name, value in cosines.items())
    print(text, flush=True)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="steps that count")
    parser.add_argument("--warm-up", type=int, default=4, help="steps before them")
    parser.add_argument("--sizes", nargs="+", default=["pocket", "67M"])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="Trainer must be among them")
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        agreed = [agreement(size, folder) for size in given.sizes if {"SFTTrainer", "plain"} <= {*given.sides}]
        rows = [
            row
            for size in given.sizes
            for precision in given.precisions
            for row in race(size, precision == "bf16", given, folder)
        ]
    if given.write:
        write(given, rows, agreed)


def write(given, rows: list[str], agreed: list[str]) -> None:
    table = "\n".join([
        "| model | side | CPU s / step | wall s / step | tokens / CPU s | speed, CPU time | speed, wall | peak GiB | peak / Trainer |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
        *rows,
    ])  # fmt: skip
    text = (
        f"{START}\n`make bench-peers` on {machine()}, one thread each, {datetime.date.today()}. Medians of {given.rounds} steps in turn, "
        f"after {given.warm_up} that do not count; LoRA dropout {given.dropout}.\n\n{table}\n\nCosine of our gradient with theirs, fp32, no dropout: {'; '.join(agreed)}.\n{END}"
    )
    page = PAGE.read_text()
    before, found, rest = page.partition(START)
    PAGE.write_text(before + text + (rest.partition(END)[2] if found else "\n"))


if __name__ == "__main__":
    main()
