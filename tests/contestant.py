"""One side of `make bench-peers`, in a process of its own: `python -m tests.contestant '{"side": ..., ...}'`.

It loads everything, says {"ready": ...}, and does one optimizer step for each line it is sent, answering with
{"cpu", "wall", "tokens"}; the last line it says is its peak memory. Order and documents follow from the step's number.
"""

import json
import resource
import sys
import time
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model
from transformers import MistralConfig, MistralForCausalLM, Trainer, TrainerCallback, TrainingArguments

from engine import models
from engine.batches import Encoded
from engine.gradient import gradient
from engine.mixture import generator
from engine.settings import Lora, Settings
from engine.train import clip
from tests import step_cost

SIZES = {
    "pocket": {"vocab_size": 1024, "hidden_size": 144, "intermediate_size": 432, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2},
    "67M": {"vocab_size": 32_000, "hidden_size": 512, "intermediate_size": 1792, "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 4},
}  # fmt: skip
MICRO, ACCUMULATION = 3, 6
RATE = 1e-4


def base(size: str) -> MistralForCausalLM:
    torch.manual_seed(0)
    config = MistralConfig(**SIZES[size], max_position_embeddings=1024, sliding_window=None, tie_word_embeddings=True)
    return MistralForCausalLM(config).requires_grad_(False)


def documents(size: str, step: int) -> tuple[list, list]:
    """(new rows, old rows) of a step: documents of 190-510 tokens with 40-90 label tokens."""
    return step_cost.step_rows(generator("peers", size, step), SIZES[size]["vocab_size"])


def fill(model) -> None:
    """B is not zero, so every factor has a gradient; the same numbers in every contestant."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in models.trainable(model).items():
            parameter.normal_(std=0.01 if "lora_B" in name else 0.05)


def ours(given: dict) -> Callable[[int], int]:
    """A step of the engine, with plain cross-entropy or the full recipe."""
    recipe = step_cost.FULL if given["side"] == "full" else step_cost.PLAIN
    mask = "token" if given["side"] == "ours, masks per token" else "sequence"
    lora = {"dropout": given["dropout"], "dropout_mask": mask}
    precision = "bf16" if given["bf16"] else "none"
    settings = Settings.model_validate({**recipe, "lora": lora, "train": {"threads": 1, "mixed_precision": precision}})
    model = models.attach(models.frozen(base(given["size"])), settings.lora, 0)
    fill(model)
    learner = step_cost.learner(model, settings)
    optimizer = models.adamw(models.parameter_groups(model, settings.train, step_cost.heads(learner)))

    def step(number: int) -> int:
        new, old = documents(given["size"], number)
        rows = [*new, *old] if given["side"] == "full" else new
        learner.model.train()
        gradient(learner, rows, number)
        keep_gradient(given, model)
        clip(learner, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return sum(len(row.document.ids) for row in new)

    return step


class Turns(TrainerCallback):
    """Trainer waits for its turn at the start of each step and tells the time at its end."""

    def __init__(self, given: dict, take: Callable[[], int | None], tell: Callable[[int], None]):
        self.given, self.take, self.tell, self.number = given, take, tell, 0

    def on_step_begin(self, args, state, control, **kwargs):
        number = self.take()
        self.number = self.number if number is None else number
        control.should_training_stop = number is None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        keep_gradient(self.given, model)

    def on_step_end(self, args, state, control, **kwargs):
        self.tell(sum(len(row.document.ids) for row in documents(self.given["size"], self.number)[0]))


def keep_gradient(given: dict, model) -> None:
    """For the comparison: all gradients in one file, in the order of their names."""
    if given["keep"]:
        found = {name: p.grad.double().flatten() for name, p in models.trainable(model).items()}
        torch.save(torch.cat([found[name] for name in sorted(found)]), given["keep"])


def peer(given: dict, take, tell) -> None:
    """Trainer or SFTTrainer on the same documents in the same order."""
    rows = [encoded(row.document) for number in range(given["steps"]) for row in documents(given["size"], number)[0]]
    model = base(given["size"])
    config = LoraConfig(
        r=32, lora_alpha=64, lora_dropout=given["dropout"], target_modules=list(Lora().target_modules), task_type="CAUSAL_LM"
    )  # fmt: skip
    arguments = {
        "output_dir": given["folder"], "per_device_train_batch_size": MICRO, "gradient_accumulation_steps": ACCUMULATION,
        "max_steps": given["steps"], "learning_rate": RATE, "lr_scheduler_type": "constant", "max_grad_norm": 1.0,
        "bf16": given["bf16"], "use_cpu": True, "report_to": [], "save_strategy": "no", "logging_strategy": "no",
        "disable_tqdm": True, "train_sampling_strategy": "sequential", "dataloader_pin_memory": False, "seed": 0,
    }  # fmt: skip
    turns = Turns(given, take, tell)
    if given["side"] == "Trainer":
        model = get_peft_model(model, config)
        fill(model)
        trainer = Trainer(model, TrainingArguments(**arguments), collate, rows, callbacks=[turns])
    else:
        trainer = sft(model, config, arguments, rows, SIZES[given["size"]]["vocab_size"], turns)
        fill(trainer.model)
    trainer.train()


def sft(model, config: LoraConfig, arguments: dict, rows: list[dict], vocabulary: int, turns: TrainerCallback):
    import pyarrow
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    words = {f"w{n}": n for n in range(vocabulary)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, "w1")), pad_token="w0", eos_token="w2", unk_token="w1"
    )
    settings = SFTConfig(
        **arguments, gradient_checkpointing=False, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}
    )
    return SFTTrainer(
        model, settings, train_dataset=Dataset(pyarrow.Table.from_pylist(rows), fingerprint="peers"), processing_class=tokenizer, peft_config=config,
        callbacks=[turns],
    )  # fmt: skip


def encoded(document: Encoded) -> dict[str, list[int]]:
    return {
        "input_ids": document.ids,
        "labels": [-100] * document.prompt + document.ids[document.prompt :],
        "attention_mask": [1] * len(document.ids),
    }


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Padding on the right to the longest row, as transformers' collators do."""
    pads, length = {"input_ids": 0, "labels": -100, "attention_mask": 0}, max(len(row["input_ids"]) for row in rows)
    return {n: torch.tensor([row[n] + [pad] * (length - len(row[n])) for row in rows]) for n, pad in pads.items()}


def resident() -> float:
    """Peak memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def say(**facts) -> None:
    print(json.dumps(facts), file=OUT, flush=True)


class Clock:
    """Takes a step's number from stdin, and tells how long the step took."""

    def take(self) -> int | None:
        line = sys.stdin.readline().strip()
        self.cpu, self.wall = time.process_time(), time.perf_counter()
        return int(line) if line else None

    def tell(self, tokens: int) -> None:
        say(cpu=time.process_time() - self.cpu, wall=time.perf_counter() - self.wall, tokens=tokens)


def main(given: dict) -> None:
    models.prepare(Settings.model_validate({"train": {"threads": 1}}).train)
    clock = Clock()
    if given["side"] in ("Trainer", "SFTTrainer"):
        say(ready=True)
        peer(given, clock.take, clock.tell)
    else:
        step = ours(given)
        say(ready=True)
        while (number := clock.take()) is not None:
            clock.tell(step(number))
    say(peak=resident())


if __name__ == "__main__":
    OUT, sys.stdout = sys.stdout, sys.stderr  # what libraries print does not disturb the answers
    main(json.loads(sys.argv[1]))
