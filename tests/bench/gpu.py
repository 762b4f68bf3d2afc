"""All checks that need a GPU; see gpu.sh. Each runs in a process of its own, so that one's memory is not another's."""

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version

from engine.configs import dump, load
from engine.settings import Settings
from tests import plan_error
from tests.plan_error import PLAIN, case

LIMIT_GIB = 16
MISTRAL = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 32768, "tie_word_embeddings": False}  # fmt: skip
MIDDLE = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 16, "num_attention_heads": 32,
          "num_key_value_heads": 4, "vocab_size": 32000, "tie_word_embeddings": True}  # fmt: skip
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 500, "tie_word_embeddings": False}  # fmt: skip
BF16 = {"model": {"dtype": "bfloat16"}, "train": {"mixed_precision": "bf16"}}
SMALL = ["lora.rank=4", "data.max_summary_length=30", "train.threads=1"]


def of_config(name: str, config: str, length: int, smoke: bool, *changes: str) -> dict:
    """A case from a config file, as tests/plan_error.py measures them."""
    told = load(config, [f"data.max_length={length}", *changes, *(SMALL if smoke else [])])
    return {"name": name, "config": TINY if smoke else MISTRAL, "length": length, "settings": dump(told)}


def cases(smoke: bool) -> list[dict]:
    """Five configs whose predicted and real peak are compared; the first three are those of a card of 16 GB."""
    short, long = (64, 128) if smoke else (1024, 4096)
    middle = TINY if smoke else MIDDLE
    nf4, bf16 = "configs/mistral_16gb.yaml", "configs/mistral_16gb_bf16.yaml"
    return [
        of_config(f"Mistral-7B NF4, 3x6, {short} tokens, full recipe", nf4, short, smoke),
        of_config(f"Mistral-7B NF4, 3x6, {long} tokens, offload", nf4, long, smoke, "train.checkpoint_offload=true"),
        of_config(f"Mistral-7B bf16, layers streamed, {short} tokens", bf16, short, smoke),
        case("0.8 B in bf16, 3x6, plain, all resident", middle, "3x6", short, PLAIN, **BF16),
        case("0.8 B in bf16, 6x3, checkpointing, dropout 0.1", middle, "6x3", short, PLAIN,
             model=BF16["model"], train={**BF16["train"], "gradient_checkpointing": True}),
    ]  # fmt: skip


def rows(smoke: bool):
    yield "| check | figure | beside it |\n|---|---|---|"
    for number, one in enumerate(cases(smoke)):
        if one["settings"].get("model", {}).get("quantize") and not importlib.util.find_spec("bitsandbytes"):
            yield f"| {one['name']} | left out: bitsandbytes is not installed | |"
            continue
        found = child("step", number, smoke)
        if "failed" in found:
            yield f"| {one['name']} | FAILED: {found['failed']} | |"
            continue
        pace = f"{found['tokens'] / found['seconds']:,.0f} tokens/s, {found['seconds']:.2f} s a step"
        told, real = found["predicted"], found["gib"]
        yield f"| {one['name']} | {pace} | peak {real:.2f} GiB, predicted {told:.2f} ({100 * (told / real - 1):+.1f} %) |"
    found = child("fisher", 0, smoke)
    yield f"| Fisher of {found['documents']} documents | {found['batched']:.2f} s | one at a time {found['loop']:.2f} s, ratio {found['loop'] / found['batched']:.2f}, largest relative difference {found['difference']:.1e} |"
    found = child("agreement", 0, smoke)
    yield f"| gradient, fp32, dropout 0 | cosine {found['cosine']:.7f} | the model's own loss over every position |"
    found = child("peer", 0, smoke)
    yield f"| 0.8 B in bf16, plain, {found['rows']} rows | {found['ours']:,.0f} tokens/s | transformers.Trainer + PEFT {found['trainer']:,.0f}, ratio {found['ours'] / found['trainer']:.2f} |"


def child(check: str, number: int, smoke: bool) -> dict:
    command = [sys.executable, "-m", "tests.bench.gpu", "--check", check, "--number", str(number)]
    environment = (
        os.environ | {"HF_HUB_OFFLINE": "1"} | ({"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} if smoke else {})
    )
    done = subprocess.run([*command, *(["--smoke"] if smoke else [])], capture_output=True, text=True, env=environment)
    if done.returncode and check == "step":
        return {"failed": done.stderr.strip().splitlines()[-1][:150]}
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


# -- the checks ---------------------------------------------------------------------------------------------------


def step(number: int, smoke: bool) -> dict:
    """A step of the whole recipe within the limit; prediction and truth."""
    import torch

    if torch.cuda.is_available():
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, LIMIT_GIB * 2**30 / whole))
    one = cases(smoke)[number]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return plan_error.measured(one) | {"predicted": plan_error.predicted(one, device)}


def fisher(number: int, smoke: bool) -> dict:
    """256 documents in batches of 8 against one at a time."""
    from engine import ewc
    from engine.batches import Encoded

    learner = _learner(smoke, {"ewc": {"lambda": 1.0, "unit": "per_token"}})
    learnt, _ = plan_error.documents(64 if smoke else 512, 6 if smoke else 256, 500)
    documents = [Encoded(ids, prompt, 0) for ids, prompt in learnt]
    seconds, values = [], []
    for size in (8, 1):
        told = learner.settings.ewc.model_copy(update={"fisher_batch_size": size, "labels": "empirical"})
        ewc.fisher(learner.model, documents[:size], told, 0, 0)  # warms up
        before = time.perf_counter()
        values.append(ewc.fisher(learner.model, documents, told, 0, 0).values)
        seconds.append(time.perf_counter() - before)
    apart = max(((values[0][n] - values[1][n]).norm() / values[1][n].norm()).item() for n in values[0])
    return {"documents": len(documents), "batched": seconds[0], "loop": seconds[1], "difference": apart}


def agreement(number: int, smoke: bool) -> dict:
    """Cosine of our gradient of a step with that of the model's own loss, rows padded, one micro-batch."""
    import torch

    from engine import models
    from engine.gradient import gradient

    learner = _learner(smoke, PLAIN | {"lora": {"dropout": 0.0}})
    rows = _rows(smoke)
    gradient(learner, rows, 0)
    ours = torch.cat([p.grad.flatten() for p in models.trainable(learner.model).values()])
    learner.model.zero_grad(set_to_none=True)
    ids, mask, labels = _padded(rows)
    learner.model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss.backward()
    theirs = torch.cat([p.grad.flatten() for p in models.trainable(learner.model).values()])
    return {"cosine": torch.nn.functional.cosine_similarity(ours.double(), theirs.double(), dim=0).item()}


def peer(number: int, smoke: bool) -> dict:
    """Tokens a second of plain cross-entropy in bf16: ours, and transformers' Trainer with the same model and rows."""
    import torch
    from transformers import Trainer, TrainingArguments

    from engine.gradient import gradient

    learner = _learner(smoke, PLAIN | BF16 | {"lora": {"dropout": 0.0}})
    rows, steps = _rows(smoke), 2 if smoke else 6
    tokens = sum(len(row.document.ids) for row in rows)
    optimizer = torch.optim.AdamW(learner.parameters)
    paces = []
    for index in range(steps):
        before = time.perf_counter()
        gradient(learner, rows, index)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _wait()
        paces.append(time.perf_counter() - before)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=3, gradient_accumulation_steps=6, max_steps=steps, report_to=[],
            logging_steps=1000, save_strategy="no", disable_tqdm=True, bf16=torch.cuda.is_available(), use_cpu=not torch.cuda.is_available(),
            remove_unused_columns=False,
        )  # fmt: skip
        trainer = Trainer(learner.model, arguments, train_dataset=list(rows) * steps, data_collator=_collated)
        clock = _clock()
        trainer.add_callback(clock)
        trainer.train()
    return {"rows": len(rows), "ours": tokens / min(paces[1:]), "trainer": tokens / min(clock.paces[1:] or clock.paces)}


def _learner(smoke: bool, told: dict):
    import torch

    from engine import models

    one = case("", TINY if smoke else MIDDLE, "3x6", 64 if smoke else 512, told)
    settings = Settings.model_validate(one["settings"])
    with tempfile.TemporaryDirectory() as folder:
        plan_error.in_child(plan_error.write_base, one["config"], folder)
        models.prepare(settings.train)
        learner, _ = plan_error.prepared(one, settings, folder)
        # loaded lazily: the files must not go before the weights are read
        with torch.no_grad():
            for weight in learner.model.parameters():
                weight.data = weight.data.clone()
    learner.model.train()
    return learner


def _rows(smoke: bool) -> list:
    from engine.batches import Encoded, Row

    learnt, _ = plan_error.documents(64 if smoke else 512, 18, 500)
    return [Row(Encoded(ids, prompt, 0), "new", group=number) for number, (ids, prompt) in enumerate(learnt)]


def _padded(rows: list):
    import torch

    from engine import models

    longest = max(len(row.document.ids) for row in rows)
    ids, labels = torch.zeros(len(rows), longest, dtype=torch.long), torch.full((len(rows), longest), -100)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        size, prompt = len(row.document.ids), row.document.prompt
        ids[number, :size] = torch.tensor(row.document.ids)
        mask[number, :size] = 1
        labels[number, prompt:size] = ids[number, prompt:size]
    return tuple(values.to(models.device()) for values in (ids, mask, labels))


def _collated(rows: list) -> dict:
    ids, mask, labels = _padded(rows)
    return {"input_ids": ids.cpu(), "attention_mask": mask.cpu(), "labels": labels.cpu()}


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _clock():
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """Seconds of each optimizer step."""

        def __init__(self):
            self.paces: list[float] = []

        def on_step_begin(self, *arguments, **named):
            _wait()
            self.before = time.perf_counter()

        def on_step_end(self, *arguments, **named):
            _wait()
            self.paces.append(time.perf_counter() - self.before)

    return Clock()


CHECKS = {"step": step, "fisher": fisher, "agreement": agreement, "peer": peer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes on a CPU")
    parser.add_argument("--check", choices=CHECKS, help="one check, in this process")
    parser.add_argument("--number", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.check:
        print(json.dumps(CHECKS[arguments.check](arguments.number, arguments.smoke)))
        return
    import torch

    if not arguments.smoke and not torch.cuda.is_available():
        raise SystemExit("no GPU here, or torch cannot use it. --smoke runs the same code with tiny shapes on the CPU")
    device = "CPU, tiny shapes" if arguments.smoke else torch.cuda.get_device_name()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "accelerate"))
    print(f"{device}; Python {platform.python_version()}, {versions}; limit {LIMIT_GIB} GiB\n")
    before = time.monotonic()
    for row in rows(arguments.smoke):
        print(row, flush=True)
    print(f"\n{time.monotonic() - before:.0f} s in all")


if __name__ == "__main__":
    main()
