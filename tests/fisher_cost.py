"""`python -m tests.fisher_cost`: the Fisher of a 67 M model beside the loop over single documents, CPU time of one thread.

The loop is what one writes with transformers and PEFT: one document, forward, backward, square. It is given label-only
logits and the library's own logits at every position; both sides square the same quantity, and must agree. How far, is
said for float32 and, with --double, for float64, where rounding plays no part.
"""

import argparse
import statistics
import time

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch.nn import functional

from engine import ewc, models
from engine.batches import plain_batch
from engine.mixture import generator
from engine.settings import Ewc, Lora, Settings
from tests import step_cost
from tests.benchmarks import as_a_job

EIGHT = 16  # documents of a turn


def loop(model, documents: list, space: str, label_only: bool) -> dict[str, torch.Tensor]:
    """One document at a time: squared gradients of A and B, or row and column sums of those of the dense weights."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    dense = {f"{name}.base_layer.weight": module.base_layer.weight for name, module in layers.items()}
    factors = {name: weight for name, weight in model.named_parameters() if ".lora_" in name}
    wanted = factors if space == "factor" else dense
    for weight in (*factors.values(), *dense.values()):
        weight.requires_grad_(weight in {*wanted.values()})
    sums, tokens = {}, 0
    for document in documents:
        batch = plain_batch([document], 0)
        batch = batch._replace(ids=batch.ids[:, : len(document.ids)], predicts=batch.predicts[:, : len(document.ids)])
        if label_only:
            logits = models.summary_logits(model, batch)
        else:
            logits = model(input_ids=batch.ids, use_cache=False).logits[batch.predicts]
        loss = functional.cross_entropy(logits, batch.targets, reduction="sum")
        for name, gradient in zip(wanted, torch.autograd.grad(loss, list(wanted.values())), strict=True):
            square = gradient.square()
            for part, value in parts(name, square, space):
                sums[part] = sums.get(part, 0.0) + value
        tokens += document.summary_tokens
    return {name: value / tokens for name, value in sums.items()}


def parts(name: str, square: torch.Tensor, space: str) -> list[tuple[str, torch.Tensor]]:
    if space == "factor":
        return [(name, square)]
    layer = name.removesuffix(".base_layer.weight")
    return [(layer + ewc.ROWS, square.sum(1)), (layer + ewc.COLUMNS, square.sum(0))]


def race(model, plain, documents: list, space: str) -> None:
    """All sides in turn over the documents, EIGHT at a time; the median of each side's ratio to ours."""
    settings = Ewc.model_validate({"lambda": 1, "unit": "per_token", "labels": "empirical", "space": space})
    sides = {
        "ours": lambda chosen: ewc.fisher(model, chosen, settings, 0, 0).values,
        "loop, label-only logits": lambda chosen: loop(plain, chosen, space, True),
        "loop, all logits": lambda chosen: loop(plain, chosen, space, False),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    apart = 0.0
    for first in range(0, len(documents), EIGHT):
        found = {}
        for side, action in sides.items():
            before = time.process_time()
            found[side] = action(documents[first : first + EIGHT])
            seconds[side].append(time.process_time() - before)
        pairs = [(found["ours"][name], value) for name, value in found["loop, all logits"].items()]
        apart = max([apart, *(((one - other).norm() / other.norm()).item() for one, other in pairs)])
    for side, taken in seconds.items():
        ratio = statistics.median(one / ours for one, ours in zip(taken, seconds["ours"], strict=True))
        print(f"{space:8} {side:24} {sum(taken):8.1f} s CPU   {ratio:.2f} times ours", flush=True)
    print(f"{space:8} largest relative difference of a layer's Fisher: {apart:.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=256)
    parser.add_argument("--spaces", nargs="+", choices=["product", "factor"], default=["product", "factor"])
    parser.add_argument("--double", action="store_true", help="all in float64")
    given = parser.parse_args()
    as_a_job()
    models.prepare(Settings.model_validate({"train": {"threads": 1}}).train)
    config = LoraConfig(
        r=32, lora_alpha=64, lora_dropout=0.0, target_modules=list(Lora().target_modules), task_type="CAUSAL_LM"
    )
    plain = get_peft_model(step_cost.base_model().requires_grad_(False), config).eval()
    model = models.attach(models.frozen(step_cost.base_model()), Lora(), 0)
    step_cost.perturb(model)
    plain.load_state_dict(model.state_dict())
    if given.double:
        model, plain = model.double(), plain.double()
    chance = generator("fisher cost")
    documents = [step_cost.document(chance, (150, 420), (40, 90), step_cost.WORDS) for _ in range(given.documents)]
    print(f"{given.documents} documents of {sum(len(d.ids) for d in documents)} tokens")
    for space in given.spaces:
        race(model, plain, documents, space)


if __name__ == "__main__":
    main()
