"""`python -m tests.step_cost`: what the full recipe costs per step on a 60 M model, against plain cross-entropy. CPU time.

With `--mixed` every second document is a long one, and the full recipe runs with its rows padded and one after the other.
"""

import argparse
import copy
import os
import resource
import statistics
import time
from collections.abc import Callable

import torch
from accelerate import Accelerator
from transformers import MistralConfig, MistralForCausalLM

from engine import ewc, models, packing
from engine.batches import BASE, Encoded, Row
from engine.contrastive import Contrast, Sides
from engine.gradient import Learner, cut, gradient
from engine.mixture import generator
from engine.settings import Settings
from tests.benchmarks import as_a_job

WORDS = 32_000
RECORDS = 18  # 3 x 6
ROUNDS = 3
FULL = {
    "losses": {"contrastive": 0.3, "diversity": 0.2, "term": 0.4, "drift": 0.03},
    "ewc": {"lambda": 3.0, "unit": "per_token"},
    "lora": {"dropout": 0.0},
}
PLAIN = {
    "losses": {"contrastive": 0.0, "diversity": 0.0, "term": 0.0},
    "ewc": {"lambda": 0.0}, "distil": {"phase": 0.0, "base": 0.0, "documents": 0.0}, "replay": {"batch_share": 0.0},
    "lora": {"dropout": 0.0},
}  # fmt: skip


def document(chance, prompt: tuple[int, int], summary: tuple[int, int], words: int) -> Encoded:
    """Random tokens: documents of 190-510 with 40-90 label tokens; every tenth label token is a term's."""
    before, after = chance.randint(*prompt), chance.randint(*summary)
    ids = [chance.randrange(5, words) for _ in range(before + after)]
    return Encoded(ids, before, 0, tuple(range(0, after, 10)))


def step_rows(chance, words: int = WORDS, second: tuple[int, int] = (150, 420)) -> tuple[list[Row], list[Row]]:
    """(new rows, two pairs among them; memory 10 % and base 5 % of the label tokens, and a plain document). second: tokens
    of every second source."""
    sources = [second if n % 2 else (150, 420) for n in range(RECORDS)]
    new = [Row(document(chance, source, (40, 90), words), "new", group=n) for n, source in enumerate(sources)]
    for pair in (0, 1):
        new[2 * pair] = new[2 * pair]._replace(pair=pair)
        new[2 * pair + 1] = new[2 * pair + 1]._replace(pair=pair)
    old = [Row(document(chance, (150, 420), (60, 70), words), "memory", "phase1") for _ in range(2)]
    old += [Row(document(chance, (150, 420), (55, 65), words), "base", BASE)]
    old += [
        Row(document(chance, (1, 1), (130, 130), words), "document", BASE)
    ]  # a third of a document: one in three steps
    return new, old


def base_model() -> MistralForCausalLM:
    config = MistralConfig(
        vocab_size=WORDS, hidden_size=512, intermediate_size=1792, num_hidden_layers=12, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=1024, sliding_window=None, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return MistralForCausalLM(config)


def perturb(model) -> None:
    """B is not zero, as in training."""
    with torch.no_grad():
        for name, parameter in models.trainable(model).items():
            if "lora_B" in name:
                parameter.normal_(std=0.01)


def learner(model, settings: Settings) -> Learner:
    """What the settings ask for: a teacher beside the student, an anchor, a full queue of the contrastive term."""
    if settings.distil.phase and "phase1" not in model.peft_config:
        model.add_adapter("phase1", copy.deepcopy(model.peft_config[models.STUDENT]))
        model.set_adapter(models.STUDENT)
    anchors = []
    if settings.ewc.lambda_:
        anchors = ewc.anchored([], "phase1", ewc.uniform(model, settings.ewc), model, settings.ewc)
    contrast = filled(model.get_input_embeddings().weight.shape[1]) if settings.losses.contrastive else None
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if settings.train.mixed_precision == "bf16" else "no")
    model = models.placed(model, accelerator)
    parameters = [*models.trainable(model).values(), *([contrast.projection] if contrast else [])]
    return Learner(accelerator, model, parameters, contrast, anchors, ["phase1", BASE], settings, 0)


def heads(learner: Learner) -> list[torch.nn.Parameter]:
    return [learner.contrast.projection] if learner.contrast else []


def filled(features: int) -> Contrast:
    """A projection with a queue of 256 pairs."""
    contrast = Contrast(features, 0)
    size = len(contrast.projection)
    states, unit = torch.randn(2, 256, features), torch.nn.functional.normalize(torch.randn(2, 256, size), dim=-1)
    groups = torch.arange(1000, 1256)
    contrast.push([Sides(unit[0], unit[1], states[0], states[1], groups, groups + 1000)], 256)
    return contrast


def peak_gib(action: Callable[[], object]) -> float:
    """The most memory of a process of its own that does one step."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        action()
        os.write(writer, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return int(os.read(reader, 64)) / 2**20


def timed(sides: dict[str, Callable[[], object]], model) -> dict[str, float]:
    """Median CPU seconds of each; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(ROUNDS + 1):  # the first round warms up
        for name, action in sides.items():
            model.train()
            before = time.process_time()
            action()
            model.zero_grad()
            if number:
                seconds[name].append(time.process_time() - before)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mixed", action="store_true")
    given = parser.parse_args()
    as_a_job()
    models.prepare(Settings.model_validate({"train": {"threads": 1}}).train)
    base = models.frozen(base_model())
    model = models.attach(base, Settings.model_validate(FULL).lora, 0)
    perturb(model)
    parameters = sum(p.numel() for p in base.parameters()) / 1e6
    print(f"{parameters:.0f} M parameters, {RECORDS} new records", end="")
    mixed(model) if given.mixed else recipes(model)


def mixed(model) -> None:
    """The rows of a micro-batch with padding between them, and without."""
    new, old = step_rows(generator("step cost"), second=(660, 930))
    whole = learner(model, Settings.model_validate(FULL))
    most = packing.MOST

    def step(share: float) -> None:
        packing.MOST = share
        gradient(whole, [*new, *old], 1)

    batches = cut(whole, [*new, *old])
    laid = [packing.lay(batch.ids, batch.lengths).ids.numel() for batch in batches]
    print(f", {sum(batch.ids.numel() for batch in batches)} tokens with padding, {sum(laid)} as rows are laid")
    medians = timed({"padded": lambda: step(0.0), "one after the other": lambda: step(most)}, model)
    for name, value in medians.items():
        print(f"{name:24} {value:7.2f} s CPU   {value / medians['padded']:.4f}")


def recipes(model) -> None:
    full, plain = Settings.model_validate(FULL), Settings.model_validate(PLAIN)
    alone = Settings.model_validate({**PLAIN, "ewc": FULL["ewc"]})
    new, old = step_rows(generator("step cost"))
    as_new = [row._replace(stream="new", teacher="") for row in [*new, *old]]
    whole, bare, held = (learner(model, settings) for settings in (full, plain, alone))
    sides: dict[str, Callable[[], object]] = {
        "plain, new records": lambda: gradient(bare, new, 1),
        "plain, as many tokens": lambda: gradient(bare, as_new, 1),
        "EWC, new records": lambda: gradient(held, new, 1),
        "full recipe": lambda: gradient(whole, [*new, *old], 1),
    }
    peaks = {name: peak_gib(action) for name, action in sides.items()}
    sides["EWC penalty alone"] = lambda: ewc.penalty(model, held.anchors, full.ewc).backward()
    medians = timed(sides, model)
    tokens = [sum(len(row.document.ids) for row in rows) for rows in (new, [*new, *old])]
    print(f" ({tokens[0]} tokens), {len(old)} old ones ({tokens[1]} in all)")
    for name, value in medians.items():
        peak = f"   peak {peaks[name]:.2f} GiB" if name in peaks else ""
        print(f"{name:24} {value:7.2f} s CPU   {value / medians['plain, new records']:.4f}{peak}")
    print(f"full / plain at the same tokens: {medians['full recipe'] / medians['plain, as many tokens']:.3f}")


if __name__ == "__main__":
    main()
