"""Every loss: a pure function of one micro-batch and its outputs, named like its weight in the settings.

The objective of a step is the sum of the dict that `mix` returns over its micro-batches, plus the EWC penalty, so what
is logged adds up to what was minimised.
"""

import torch
from torch import Tensor
from torch.nn import functional

from engine.batches import Batch
from engine.settings import Distil, Losses


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Sum of weighted nll over summary tokens, in nats per token of the whole step.

    logits (K, V) at the K positions that predict a summary token; batch.nll_weight holds the denominators.
    Source: METHODS, sections 2 and 4: L_CE = (1 - q) * mean(new) + q * mean(memory). Computed in fp32.
    """
    return (token_nll(logits, batch.targets) * batch.nll_weight).sum()


def distil_base(logits: Tensor, batch: Batch, teacher: Tensor) -> Tensor:
    """KL(base || model), teacher first, full vocabulary, temperature 1: mean over the base-replay tokens of the step.

    teacher (K_base, V): log-probabilities of the base at the tokens marked by batch.base_tokens, no gradient.
    Source: METHODS, section 8. The order of arguments is that of torch: kl_div(log p_student, log p_teacher).
    """
    student = functional.log_softmax(logits[batch.base_tokens].float(), dim=-1)
    divergence = functional.kl_div(student, teacher, log_target=True, reduction="none").sum(-1)
    return (divergence * batch.kl_weight[batch.base_tokens]).sum()


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p of each target (K,), in nats, fp32."""
    return functional.cross_entropy(logits.float(), targets, reduction="none")


def mix(logits: Tensor, batch: Batch, teacher: Tensor | None, losses: Losses, distil: Distil) -> dict[str, Tensor]:
    """{name: weighted scalar} of one micro-batch. A weight of 0 skips the computation."""
    parts = {}
    if losses.cross_entropy:
        parts["cross_entropy"] = losses.cross_entropy * cross_entropy(logits, batch)
    if distil.base and teacher is not None:
        parts["distil_base"] = distil.base * distil_base(logits, batch, teacher)
    return parts or {"cross_entropy": torch.zeros((), device=logits.device)}
