"""One check of gpu.sh in this process: `python -m tests.bench.gpu_checks CHECK NUMBER FOLDER [--smoke]`, JSON on its last line.

FOLDER holds the bases, so that each is written once.
"""

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from pathlib import Path

from engine.configs import dump, load
from engine.settings import Settings
from tests import plan_error
from tests.plan_error import PLAIN, case

LIMIT_GIB = 16
STEPS = 2  # of which the second is measured
MISTRAL = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 32768, "tie_word_embeddings": False}  # fmt: skip
MIDDLE = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 16, "num_attention_heads": 32,
          "num_key_value_heads": 4, "vocab_size": 32000, "tie_word_embeddings": True}  # fmt: skip
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 500, "tie_word_embeddings": False}  # fmt: skip
BF16 = {"model": {"dtype": "bfloat16"}, "train": {"mixed_precision": "bf16"}}
SMALL = ["lora.rank=4", "data.max_summary_length=30", "train.threads=1"]
VARIANTS = (
    ("as it is", {}),
    ("train.compile", {"train": {"compile": True}}),
    ("model.liger", {"model": {"liger": True}}),
    ("train.prefetch 0", {"train": {"prefetch": 0}}),
)


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


def step(number: int, bases: Path, smoke: bool) -> dict:
    """A step of the whole recipe; prediction and truth."""
    one = cases(smoke)[number]
    return plan_error.measured(one, base_of(one["config"], bases), STEPS) | {
        "predicted": plan_error.predicted(one, "cpu" if smoke else "cuda", STEPS)
    }


def fisher(number: int, bases: Path, smoke: bool) -> dict:
    """Many documents in batches of 8 against one at a time."""
    from engine import ewc
    from engine.batches import Encoded

    learner = learner_of(bases, smoke, {"ewc": {"lambda": 1.0, "unit": "per_token"}})
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


def agreement(number: int, bases: Path, smoke: bool) -> dict:
    """Cosine of our gradient of a step with that of the model's own loss, rows padded, one micro-batch."""
    import torch

    from engine import models
    from engine.gradient import gradient
    from tests import contestant

    learner = learner_of(bases, smoke, PLAIN | {"lora": {"dropout": 0.0}})
    rows = rows_of(smoke)
    gradient(learner, rows, 0)
    ours = torch.cat([p.grad.flatten() for p in models.trainable(learner.model).values()])
    learner.model.zero_grad(set_to_none=True)
    padded = contestant.collate([contestant.encoded(row.document) for row in rows])
    learner.model(
        **{name: value.to(models.device()) for name, value in padded.items()}, use_cache=False
    ).loss.backward()
    theirs = torch.cat([p.grad.flatten() for p in models.trainable(learner.model).values()])
    return {"cosine": torch.nn.functional.cosine_similarity(ours.double(), theirs.double(), dim=0).item()}


def speed(number: int, bases: Path, smoke: bool) -> dict:
    """Tokens a second of plain cross-entropy in bf16 with one of VARIANTS, as a phase does its steps."""
    from engine import models
    from engine.ahead import Ahead
    from engine.compiling import compiled
    from engine.gradient import cut, gradient_of

    changes = {section: dict(values) for section, values in BF16.items()}
    for section, values in VARIANTS[number][1].items():
        changes[section] = changes[section] | values
    learner = learner_of(bases, smoke, PLAIN | {"lora": {"dropout": 0.0}} | changes)
    rows, train, steps, paces = rows_of(smoke), learner.settings.train, 3 if smoke else 8, []
    optimizer = models.adamw(models.parameter_groups(learner.model, train))
    ahead = Ahead(lambda step: cut(learner, rows), range(steps), train.prefetch)
    with ahead, compiled(learner.model, train.compile):
        for index in range(steps):
            before = time.perf_counter()
            gradient_of(learner, ahead.take(index), index)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            wait()
            paces.append(time.perf_counter() - before)
    return paces_of(rows, paces) | {"first": paces[0]}


def peer(number: int, bases: Path, smoke: bool) -> dict:
    """The same base, documents, batch and precision with transformers' Trainer (0) or TRL's SFTTrainer (1), and PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    from engine.models import device
    from engine.settings import Lora
    from tests import contestant

    config, rows, steps, on_gpu = TINY if smoke else MIDDLE, rows_of(smoke), 3 if smoke else 8, not smoke
    model = AutoModelForCausalLM.from_pretrained(base_of(config, bases), dtype=torch.bfloat16).to(device())
    model.requires_grad_(False)
    lora = LoraConfig(r=32, lora_alpha=64, target_modules=list(Lora().target_modules), task_type="CAUSAL_LM")
    clock, encoded = clock_of(), [contestant.encoded(row.document) for row in rows] * steps
    with tempfile.TemporaryDirectory() as folder:
        given = {
            "output_dir": folder, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 6, "max_steps": steps,
            "report_to": [], "logging_strategy": "no", "save_strategy": "no", "disable_tqdm": True, "bf16": True,
            "use_cpu": not on_gpu, "train_sampling_strategy": "sequential",
        }  # fmt: skip
        if number:
            trainer = contestant.sft(model, lora, given, encoded, config["vocab_size"], clock)
        else:
            model = get_peft_model(model, lora)
            trainer = Trainer(model, TrainingArguments(**given), contestant.collate, encoded, callbacks=[clock])
        trainer.train()
    return paces_of(rows, clock.paces)


def learner_of(bases: Path, smoke: bool, told: dict):
    from engine import models

    one = case("", TINY if smoke else MIDDLE, "3x6", 64 if smoke else 512, told)
    settings = Settings.model_validate(one["settings"])
    models.prepare(settings.train)
    learner = plan_error.prepared(one, settings, base_of(one["config"], bases))
    learner.model.train()
    return learner


def base_of(config: dict, bases: Path) -> str:
    """The folder of a base with random weights; written by a process of its own, and whole or not at all."""
    folder = bases / hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]
    if not folder.exists():
        partial = Path(tempfile.mkdtemp(dir=bases))
        plan_error.in_child(plan_error.write_base, config, str(partial))
        partial.rename(folder)
    return str(folder)


def rows_of(smoke: bool) -> list:
    from engine.batches import Encoded, Row

    learnt, _ = plan_error.documents(64 if smoke else 512, 18, 500)
    return [Row(Encoded(ids, prompt, 0), "new", group=number) for number, (ids, prompt) in enumerate(learnt)]


def paces_of(rows: list, paces: list[float]) -> dict:
    """Medians after the first step, and the most memory of this process (of torch on a GPU)."""
    from engine.train import peak_memory

    seconds = statistics.median(paces[1:])
    return {
        "pace": sum(len(row.document.ids) for row in rows) / seconds,
        "seconds": seconds,
        "gib": peak_memory(),
    }


def wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def clock_of():
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """Seconds of each optimizer step."""

        def __init__(self):
            self.paces: list[float] = []

        def on_step_begin(self, *arguments, **named):
            wait()
            self.before = time.perf_counter()

        def on_step_end(self, *arguments, **named):
            wait()
            self.paces.append(time.perf_counter() - self.before)

    return Clock()


CHECKS = {"step": step, "fisher": fisher, "agreement": agreement, "speed": speed, "peer": peer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("check", choices=CHECKS)
    parser.add_argument("number", type=int)
    parser.add_argument("bases", type=Path)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes on a CPU")
    given = parser.parse_args()
    import torch

    if torch.cuda.is_available():
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, LIMIT_GIB * 2**30 / whole))
    print(json.dumps(CHECKS[given.check](given.number, given.bases, given.smoke)))


if __name__ == "__main__":
    main()
