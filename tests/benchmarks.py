"""`make bench-quick`: measure what the documents claim, side by side in one run, and write it into docs/benchmarks.md."""

import datetime
import os
import platform
import pty
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from jobs.environment import of_job
from tests.conftest import PROJECT

PAGE = PROJECT / "docs" / "benchmarks.md"
START, END = "<!-- make bench-quick: start -->", "<!-- make bench-quick: end -->"


def as_a_job() -> None:
    """Start this benchmark again as the runner starts a job, unless it is that already."""
    if any(name not in os.environ for name in of_job({})):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], of_job(os.environ))


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def alternating(rounds: int, **actions: Callable[[], object]) -> dict[str, float]:
    """The median seconds of each action; they take turns, so that a busy machine hurts all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            times[name].append(seconds(action))
    return {name: statistics.median(values) for name, values in times.items()}


def first_frame(home: Path) -> float:
    """From the start of the process to the first painted frame, in a pseudo-terminal of 120 x 36."""
    started = time.perf_counter()
    child, terminal = pty.fork()
    if child == 0:
        os.environ |= {"HYBRIDSUM_HOME": str(home), "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "36"}
        os.chdir(PROJECT)
        os.execv(sys.executable, [sys.executable, "hybridsum.py"])
    seen, taken = b"", 0.0
    while select.select([terminal], [], [], 10)[0]:
        seen += os.read(terminal, 65536)
        if b"Line" in seen:
            taken = time.perf_counter() - started
            break
    os.write(terminal, b"q")
    os.kill(child, 15)
    os.close(terminal)
    os.waitpid(child, 0)
    return taken


def dashboard() -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        first_frame(Path(folder))  # warms the file cache
        frames = [first_frame(Path(folder)) for _ in range(7)]
        subprocess.run(
            [sys.executable, "hybridsum.py", "runner", "stop"],
            cwd=PROJECT,
            env=os.environ | {"HYBRIDSUM_HOME": folder},
            capture_output=True,
        )
        bare = alternating(
            5,
            python=lambda: subprocess.run([sys.executable, "-c", "pass"]),
            textual=lambda: subprocess.run([sys.executable, "-c", "import textual.app"]),
        )
    return [
        f"| dashboard: process start to first painted frame | {statistics.median(frames):.2f} s (best {min(frames):.2f}) | "
        f"`import textual.app` alone: {bare['textual']:.2f} s; an empty Python: {bare['python']:.2f} s |"
    ]


def ledger() -> list[str]:
    from jobs.records import Job, Records

    with tempfile.TemporaryDirectory() as folder:
        records = Records(Path(folder) / "records.json")
        records.add([Job("", "phase", "run", f"phase{n}") for n in range(100)])
        changing = alternating(
            20, change=lambda: records.change("50", ["queued"], priority=1), read=lambda: Records(records.path).jobs()
        )
    return [
        f"| ledger with 100 jobs: one durable change | {1000 * changing['change']:.1f} ms | reading all of it: {1000 * changing['read']:.1f} ms |"
    ]


def engine() -> list[str]:
    import torch
    from torch.nn import functional

    from engine import ewc, models
    from engine.base import new_model, train_tokenizer
    from engine.batches import Encoder, plain_batch
    from engine.configs import load
    from engine.corpus import pocket
    from engine.corpus.split import assemble
    from engine.settings import Ewc, Lora

    torch.set_num_threads(1)
    settings = load(PROJECT / "configs" / "pocket.yaml", ["data.papers=data/pocket/papers.jsonl"])
    corpus = assemble(settings.data)
    tokenizer = train_tokenizer(corpus, settings.model.build)
    base = new_model(settings.model.build, tokenizer, settings.data.max_length).requires_grad_(False)
    model = models.attach(base, Lora(dropout=0.0), 0)
    with torch.no_grad():
        for name, parameter in models.trainable(model).items():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    documents = [d for d in Encoder(tokenizer, settings.data).encode(pocket.papers(64, "bench")) if d]
    weights = list(models.trainable(model).values())

    def loop() -> None:
        model.eval()
        for document in documents:
            batch = plain_batch([document], 0)
            loss = functional.cross_entropy(models.summary_logits(model, batch), batch.targets, reduction="sum")
            for gradient in torch.autograd.grad(loss, weights):
                gradient.square()

    given = Ewc(**{"lambda": 1, "unit": "per_token", "labels": "empirical", "fisher_batch_size": 16})
    fisher = alternating(3, loop=loop, batched=lambda: ewc.fisher(model, documents, given, 0, 0))
    batch = plain_batch(documents[:16], 0)

    def label_only() -> None:
        functional.cross_entropy(models.summary_logits(model, batch), batch.targets).backward()
        model.zero_grad()

    def all_logits() -> None:
        logits = model(input_ids=batch.ids, use_cache=False).logits
        functional.cross_entropy(logits[batch.predicts], batch.targets).backward()
        model.zero_grad()

    model.train()
    step = alternating(7, label_only=label_only, all_logits=all_logits)
    return [
        f"| Fisher of 64 documents, one thread | {fisher['batched']:.2f} s | loop over single documents: {fisher['loop']:.2f} s, ratio {fisher['loop'] / fisher['batched']:.2f} |",
        f"| forward and backward of 16 papers, one thread | {1000 * step['label_only']:.0f} ms | with logits at every position: {1000 * step['all_logits']:.0f} ms, ratio {step['all_logits'] / step['label_only']:.2f} |",
    ]


def evaluation() -> list[str]:
    """Summaries of 200 documents as an evaluation writes them, against transformers' generate one document at a time."""
    import torch

    from engine.base import new_model, train_tokenizer
    from engine.batches import Encoder
    from engine.configs import load
    from engine.corpus import pocket
    from engine.corpus.split import assemble
    from engine.evaluation.generate import generate

    torch.set_num_threads(1)
    settings = load(PROJECT / "configs" / "pocket.yaml", ["data.papers=data/pocket/papers.jsonl"])
    tokenizer = train_tokenizer(assemble(settings.data), settings.model.build)
    model = new_model(settings.model.build, tokenizer, settings.data.max_length).eval()
    encoder, room = Encoder(tokenizer, settings.data), settings.generate.max_new_tokens
    records = pocket.papers(100, "bench") + pocket.videos(100, "bench")
    prompts = encoder.prompts(records, room)
    stop = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}

    def batched() -> None:
        for _ in generate(
            model, encoder, records, room, settings.evaluate.batch_size, budget=settings.evaluate.batch_tokens
        ):
            pass

    def one_by_one() -> None:
        with torch.inference_mode():
            for prompt in prompts:
                model.generate(input_ids=torch.tensor([prompt.ids]), max_new_tokens=room, do_sample=False, **stop)

    took = alternating(3, batched=batched, one_by_one=one_by_one)
    rates = {name: len(records) / value for name, value in took.items()}
    return [
        f"| evaluation: summaries of 200 documents of {room} tokens, one thread | {rates['batched']:.1f} documents/s | "
        f"one document at a time: {rates['one_by_one']:.1f}, ratio {took['one_by_one'] / took['batched']:.1f} |"
    ]


def comparison() -> list[str]:
    """All the tests of a comparison need for one metric of 5,000 documents, and the same with scipy's defaults."""
    import numpy as np
    from scipy.stats import bootstrap, permutation_test

    from engine.evaluation.statistics import paired

    values = np.random.default_rng(0).normal(0.01, 1, 5000)

    def plain() -> None:
        for level in (0.95, 0.90):
            bootstrap((values,), np.mean, confidence_level=level, method="BCa", rng=np.random.default_rng(0))
        permutation_test((values,), np.mean, permutation_type="samples", vectorized=True, rng=np.random.default_rng(0))

    took = alternating(3, ours=lambda: paired(values), plain=plain)
    return [
        f"| p and intervals of one metric over 5,000 documents | {took['ours']:.2f} s | scipy called plainly: {took['plain']:.2f} s |"
    ]


def machine() -> str:
    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} CPU cores, {memory:.0f} GiB, no GPU in use, Python {platform.python_version()}"


def main() -> None:
    rows = [*dashboard(), *ledger(), *engine(), *evaluation(), *comparison()]
    table = "\n".join(["| what | measured | beside it, in the same run |", "|---|---|---|", *rows])
    text = f"{START}\n`make bench-quick` on {machine()}, {datetime.date.today()}. Medians; the sides of a row took turns.\n\n{table}\n{END}"
    print(text)
    page = PAGE.read_text()
    before, _, rest = page.partition(START)
    PAGE.write_text(before + text + rest.partition(END)[2])


if __name__ == "__main__":
    main()
