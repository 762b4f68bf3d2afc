"""Elastic weight consolidation in factor space: Fisher per sequence, anchors, penalty.

Unit: F_tok = sum_n (grad of sum_t log p(y_nt))^2 / sum_n T_n, per summary token. Every squared gradient is that of one
whole sequence; squaring the gradient of a batch would give a number that depends on the batch size.
Source: METHODS section 9; Kirkpatrick et al. 2017 (arXiv 1612.00796).
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from engine.batches import Encoded, Row, collate
from engine.mixture import integer
from engine.models import summary_logits, trainable
from engine.settings import ConfigError, Ewc

FILE = "anchors.safetensors"


@dataclass(frozen=True)
class Fisher:
    """Diagonal Fisher information of the trainable weights, per summary token, and what it was measured on."""

    values: dict[str, Tensor]  # {parameter name: same shape as the parameter, fp32}
    documents: int
    tokens: int

    @property
    def trace(self) -> float:
        return sum(value.sum().item() for value in self.values.values())

    @property
    def mean_tokens(self) -> float:
        """Mean supervised tokens of a sequence, the T-bar of the unit token_mean_sequence."""
        return self.tokens / self.documents

    def shares(self) -> dict[str, float]:
        """Part of the trace in each kind of layer (q_proj, down_proj, ...)."""
        trace, shares = self.trace, {}
        for name, value in self.values.items():
            kind = name.split(".lora_")[0].rpartition(".")[2]
            shares[kind] = shares.get(kind, 0.0) + (value.sum().item() / trace if trace else 0.0)
        return shares


@dataclass(frozen=True)
class Anchor:
    """Weights to stay near, and how much each of them mattered."""

    phase: str
    fisher: Fisher
    weights: dict[str, Tensor]


def fisher(
    model: nn.Module,
    documents: list[Encoded],
    settings: Ewc,
    seed: int,
    pad: int,
    progress: Callable[[int, Fisher], None] = lambda done, so_far: None,
    stop: Callable[[], bool] = lambda: False,
) -> Fisher | None:
    """The Fisher of the trainable weights on held-out documents; None if `stop` asked to.

    Eval mode, fp32 squares, labels drawn from the model on the reference prefix (settings.labels: empirical takes the
    reference). Several documents share a backward pass, but each one's gradient is squared alone, so the batch size
    changes the speed and not the result. Raises ConfigError if the trace is 0: the penalty would hold nothing.
    """
    factors = {f"{name}.weight": module for name, module in model.named_modules() if _is_factor(name)}
    sums = {name: torch.zeros_like(module.weight, dtype=torch.float32) for name, module in factors.items()}
    order = sorted(range(len(documents)), key=lambda index: len(documents[index].ids))
    was_training, tokens = model.training, 0
    model.eval()
    for first in range(0, len(order), settings.fisher_batch_size):
        if stop():
            model.train(was_training)
            return None
        chosen = order[first : first + settings.fisher_batch_size]
        batch = collate([Row(documents[index], "new") for index in chosen], {"new": (1.0, 0.0)}, pad)
        batch = batch.to(next(model.parameters()).device)
        counts = [documents[index].summary_tokens for index in chosen]
        tokens += sum(counts)
        with _watching(factors) as seen:
            logits = summary_logits(model, batch).float()
            labels = batch.targets if settings.labels == "empirical" else _sampled(logits, counts, chosen, seed)
            functional.cross_entropy(logits, labels, reduction="sum").backward()
        model.zero_grad(set_to_none=True)
        for name, (values, gradient) in seen.items():
            sums[name] += torch.einsum("bto,bti->boi", gradient.float(), values.float()).square().sum(0)
        done = first + len(chosen)
        progress(done, Fisher({name: value / tokens for name, value in sums.items()}, done, tokens))
    model.train(was_training)
    found = Fisher({name: value / tokens for name, value in sums.items()}, len(documents), tokens)
    if found.trace == 0:
        raise ConfigError(
            "the Fisher information is 0 everywhere, so EWC would hold nothing. Has the phase trained at all?"
        )
    return found


def _is_factor(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


@contextmanager
def _watching(modules: dict[str, nn.Module]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Collects {name: (input (batch, length, in), gradient of the output (batch, length, out))} of a backward pass."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def forward_hook_for(name: str):
        def forward_hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            values = inputs[0].detach()
            if output.requires_grad:  # not in the no-gradient pass of activation checkpointing
                output.register_hook(lambda gradient: seen.update({name: (values, gradient)}))

        return forward_hook

    handles = [module.register_forward_hook(forward_hook_for(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _sampled(logits: Tensor, counts: list[int], indices: list[int], seed: int) -> Tensor:
    """A label for each position, drawn from the model with a generator of each document's own."""
    drawn = []
    for part, index in zip(logits.detach().softmax(-1).cpu().split(counts), indices, strict=True):
        chance = torch.Generator().manual_seed(integer(seed, "fisher", index))
        drawn.append(torch.multinomial(part, 1, generator=chance)[:, 0])
    return torch.cat(drawn).to(logits.device)


def anchored(old: list[Anchor], phase: str, new: Fisher, model: nn.Module, settings: Ewc) -> list[Anchor]:
    """The anchors after a phase: all of them (separate), or one at the present weights with F = gamma * F_old + F_new."""
    weights = {name: parameter.detach().float().clone() for name, parameter in trainable(model).items()}
    if settings.anchors == "separate":
        return [*old, Anchor(phase, new, weights)]
    values = dict(new.values)
    for anchor in old:
        values = {name: value + settings.gamma * anchor.fisher.values[name] for name, value in values.items()}
    return [Anchor(phase, Fisher(values, new.documents, new.tokens), weights)]


def lambda_per_token(settings: Ewc, mean_tokens: float) -> float:
    """lambda in units of F_tok. token_mean_sequence: its Fisher is F_tok / T-bar, so lambda / T-bar gives the same penalty
    (exact for sequences of equal length). Source: METHODS, section 9."""
    return settings.lambda_ / mean_tokens if settings.unit == "token_mean_sequence" else settings.lambda_


def penalty(model: nn.Module, anchors: list[Anchor], settings: Ewc) -> Tensor:
    """lambda_tok / 2 * sum_k F_k (theta_k - theta*_k)^2 over the entries of A and B, summed over the anchors; nats."""
    weights, total = trainable(model), None
    for anchor in anchors:
        factor = 0.5 * lambda_per_token(settings, anchor.fisher.mean_tokens)
        for name, value in anchor.fisher.values.items():
            term = factor * (value * (weights[name].float() - anchor.weights[name]).square()).sum()
            total = term if total is None else total + term
    if total is None:
        raise ValueError("no anchors: there is nothing to be penalized")
    return total


def save(folder: Path, anchors: list[Anchor]) -> None:
    """anchors.safetensors: Fisher and weights of every anchor."""
    tensors, facts = {}, []
    for number, anchor in enumerate(anchors):
        facts.append({"phase": anchor.phase, "documents": anchor.fisher.documents, "tokens": anchor.fisher.tokens})
        for name in anchor.weights:
            tensors[f"{number}/fisher/{name}"] = anchor.fisher.values[name].cpu().contiguous()
            tensors[f"{number}/weights/{name}"] = anchor.weights[name].cpu().contiguous()
    save_file(tensors, folder / FILE, metadata={"anchors": json.dumps(facts)})


def load(folder: Path, model: nn.Module) -> list[Anchor]:
    """The anchors of a checkpoint, on the model's device; none where it has none. Raises ConfigError if they do not fit."""
    if not (folder / FILE).exists():
        return []
    weights = trainable(model)
    where = next(iter(weights.values())).device
    with safe_open(folder / FILE, "pt", device=str(where)) as file:
        facts = json.loads(file.metadata()["anchors"])
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    anchors = []
    for number, fact in enumerate(facts):
        try:
            values = {name: stored[f"{number}/fisher/{name}"] for name in weights}
            centre = {name: stored[f"{number}/weights/{name}"] for name in weights}
        except KeyError as error:
            raise ConfigError(
                f"{folder}/{FILE}: has no {error} for this adapter. Were lora.target_modules changed?"
            ) from None
        if any(values[name].shape != parameter.shape for name, parameter in weights.items()):
            raise ConfigError(f"{folder}/{FILE}: other shapes than this adapter. Was lora.rank changed?")
        anchors.append(Anchor(fact["phase"], Fisher(values, fact["documents"], fact["tokens"]), centre))
    return anchors
