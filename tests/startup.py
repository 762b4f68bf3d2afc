"""Where the start of a phase job goes, from the first instruction of its process to its first step: `python -m tests.startup`.

The pocket demo's first phase and a 67 M Mistral on the same texts, each start in a process of its own with one thread; the
second start of each has the records in tokens and the base's answers of the first. Seconds of CPU.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from jobs.home import PROJECT

MODELS = ("pocket", "67M")
TIMES = 3  # starts with everything kept, of which the median counts
GIB = 2**30


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--start", nargs=2, metavar=("MODEL", "FOLDER"), help="one start in this process, told as JSON")
    asked = given.parse_args()
    if asked.start:
        print(json.dumps(start(asked.start[0], Path(asked.start[1]))))
        return
    found = {}
    for model in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            write(model, Path(folder))
            found[f"{model}, first"] = child(model, folder)
            found[f"{model}, again"] = middle([child(model, folder) for _ in range(TIMES)])
    print(f"| part | {' | '.join(found)} |\n|---|{'---:|' * len(found)}")
    for part in next(iter(found.values())):
        print(f"| {part} | {' | '.join(f'{told[part]:.2f}' for told in found.values())} |")


def child(model: str, folder: str) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.startup", "--start", model, folder]
    told = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    if told.returncode:
        sys.exit(told.stderr)
    return json.loads(told.stdout.splitlines()[-1])


def middle(found: list[dict[str, float]]) -> dict[str, float]:
    return {part: statistics.median(told[part] for told in found) for part in found[0]}


def write(model: str, folder: Path) -> None:
    """A base with random weights and the pocket vocabulary, as a job finds it on disk."""
    from engine import base
    from engine.configs import load
    from engine.corpus.split import assemble
    from tests import contestant

    settings = load(PROJECT / "configs" / "pocket.yaml")
    tokenizer = base.train_tokenizer(assemble(settings.data), settings.model.build)
    contestant.base(model).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")


class Marks:
    """Seconds of CPU of this process by part; what is measured inside another part is not counted twice."""

    def __init__(self):
        self.found: dict[str, float] = {}
        self.since = 0.0  # of the process's own clock, so the interpreter's start counts

    def __call__(self, part: str) -> None:
        now = time.process_time()
        self.found[part] = self.found.get(part, 0.0) + now - self.since
        self.since = now

    def around(self, module, name: str, before: str, part: str) -> None:
        """Let the time up to a function's call count as `before` and that of the call as `part`."""
        plain: Callable = getattr(module, name)

        def marked(*args, **kwargs):
            self(before)
            try:
                return plain(*args, **kwargs)
            finally:
                self(part)

        setattr(module, name, marked)


class FirstStep(Exception):
    """The first step is done; there is nothing more to measure."""


def start(model: str, folder: Path) -> dict[str, float]:
    mark = Marks()
    import jobs.process  # noqa: F401, PLC0415

    mark("interpreter, jobs")
    import torch

    mark("import torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer, MistralForCausalLM  # noqa: F401

    mark("import transformers")
    import peft  # noqa: F401

    mark("import peft")
    from engine import material, models, train

    mark("import the engine")
    torch.set_num_threads(1)
    rest = "all else"
    mark.around(models, "load_tokenizer", rest, "tokenizer")
    mark.around(models, "load_base", rest, "model from disk")
    mark.around(material, "assemble", rest, "records read and divided")
    mark.around(material, "_encode", rest, "training records in tokens")
    mark.around(material.replay, "base_answers", rest, "the base's answers")
    mark.around(train, "prepare", rest, "all else")
    mark.around(train, "_learner", rest, "adapter, anchors")
    with peaks(models) as memory:
        try:
            train.run(work(folder))
        except FirstStep:
            mark("first step")
    mark.found.pop(rest, 0.0)
    known = sum(mark.found.values())
    return mark.found | {rest: time.process_time() - known, "together": time.process_time(), **memory}


@contextmanager
def peaks(models):
    """{what: ratio}: memory at the peak of loading the model, by the bytes of its weights on disk."""
    found: dict[str, float] = {}
    plain = models.load_base

    def measured(path, settings):
        before = resident("VmRSS")
        loaded = plain(path, settings)
        size = sum(each.stat().st_size for each in Path(path).glob("*.safetensors"))
        found["peak of loading / weights"] = (resident("VmHWM") - before) / size
        return loaded

    models.load_base = measured
    yield found


def resident(name: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most so far."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def work(folder: Path):
    from engine import events as ev
    from engine.configs import load
    from engine.work import Work

    def emit(event: ev.Event) -> None:
        if isinstance(event, ev.Step):
            raise FirstStep

    settings = load(PROJECT / "configs" / "pocket.yaml", ["train.logging_steps=1", "train.threads=1"])
    return Work(
        "phase", "run", "phase1", settings, str(folder / "base"), folder / "phase1", folder, None, None, emit,
        lambda: False, folder / "cache",
    )  # fmt: skip


if __name__ == "__main__":
    main()
