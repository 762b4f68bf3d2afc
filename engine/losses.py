"""Every loss: a pure function of one micro-batch and its outputs, named like its weight in the settings.

The objective of a step is the sum of the dict that `mix` returns over its micro-batches, plus the EWC penalty, so what
is logged adds up to what was minimised. All of it in fp32, in nats.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from engine.batches import Batch
from engine.settings import Distil, Losses


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Sum of weighted nll over summary tokens, in nats per token of the whole step.

    logits (K, V) at the K positions that predict a summary token; batch.nll_weight holds the denominators.
    Source: METHODS, sections 2 and 4: L_CE = (1 - q) * mean(new) + q * mean(memory).
    """
    return (token_nll(logits, batch.targets) * batch.nll_weight).sum()


def term(logits: Tensor, batch: Batch) -> Tensor:
    """Mean nll of the summary tokens that belong to lexicon terms, new and memory; 0 where the step has none.

    A term token then weighs 1 + weight * T / |K| times a plain one. Source: METHODS, section 7.
    """
    return (token_nll(logits, batch.targets) * batch.term_weight).sum()


def diversity(logits: Tensor, batch: Batch) -> Tensor:
    """1 - H(p_bar) / log V, in [0, 1], with p_bar = mean over new documents of the mean over a document's tokens of p.

    It falls when documents get different outputs. Not additive: taken per micro-batch, then averaged (batch.part).
    0 for a micro-batch without new documents. Source: METHODS, section 6.
    """
    new = batch.documents > 0
    if not new.any():
        return logits.sum() * 0.0
    mean = _document_means(logits.float().softmax(-1), batch)[new].mean(0)
    entropy = -torch.special.xlogy(mean, mean).sum()
    return batch.part * (1 - entropy / math.log(logits.shape[-1]))


def drift(logits: Tensor, batch: Batch, embedding: Tensor, target: float) -> Tensor:
    """mean over new documents of max(0, target - cos(mean_t p_t W_E, mean_t W_E[y_t])).

    embedding W_E (V, D), frozen. p_t W_E is the expected embedding, so the gradient reaches the logits; the reference
    side has none. A hinge, never a square: above the target it must not pull down. Source: METHODS, section 7.
    """
    embedding = embedding.detach().float()
    ours = _document_means(logits.float().softmax(-1) @ embedding, batch)
    theirs = _document_means(embedding[batch.targets], batch)
    short = (target - functional.cosine_similarity(ours, theirs, dim=-1)).clamp_min(0)
    return (short * batch.documents).sum()


def distil_base(logits: Tensor, batch: Batch, teachers: dict[str, Tensor]) -> Tensor:
    """KL(base || model) at the base-replay tokens of the step, their mean. See `divergence`."""
    tokens = batch.tokens_of(batch.rows_of["base"])
    return (divergence(logits[tokens], teachers["base"]) * batch.base_weight[tokens]).sum()


def distil_phase(logits: Tensor, batch: Batch, teachers: dict[str, Tensor]) -> Tensor:
    """KL(phase adapter || model) at the memory tokens of the step, their mean; each record has the teacher of its phase."""
    parts = []
    for name, rows in batch.rows_of.items():
        if name != "base":
            tokens = batch.tokens_of(rows)
            parts.append((divergence(logits[tokens], teachers[name]) * batch.memory_weight[tokens]).sum())
    return torch.stack(parts).sum()


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) at each token (K,): teacher first, full vocabulary, temperature 1.

    logits (K, V) of the student; teacher (K, V) log-probabilities, no gradient. The order of arguments is that of torch:
    kl_div(log p_student, log p_teacher). Source: METHODS, section 8.
    """
    student = functional.log_softmax(logits.float(), dim=-1)
    return functional.kl_div(student, teacher, log_target=True, reduction="none").sum(-1)


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p of each target (K,), in nats, fp32."""
    return functional.cross_entropy(logits.float(), targets, reduction="none")


def _document_means(values: Tensor, batch: Batch) -> Tensor:
    """(K, D) values at tokens -> (N, D) mean over the tokens of each row."""
    sums = values.new_zeros(len(batch.documents), values.shape[-1]).index_add(0, batch.rows, values)
    return sums / torch.bincount(batch.rows, minlength=len(batch.documents)).clamp_min(1)[:, None]


def mix(
    logits: Tensor, batch: Batch, teachers: dict[str, Tensor], embedding: Tensor, losses: Losses, distil: Distil
) -> dict[str, Tensor]:
    """{name: weighted scalar} of one micro-batch. A weight of 0, or nothing to apply it to, skips the computation."""
    parts = {}
    if losses.cross_entropy:
        parts["cross_entropy"] = losses.cross_entropy * cross_entropy(logits, batch)
    if losses.term:
        parts["term"] = losses.term * term(logits, batch)
    if losses.diversity:
        parts["diversity"] = losses.diversity * diversity(logits, batch)
    if losses.drift:
        parts["drift"] = losses.drift * drift(logits, batch, embedding, losses.drift_target)
    if distil.phase and teachers.keys() - {"base"}:
        parts["distil_phase"] = distil.phase * distil_phase(logits, batch, teachers)
    if distil.base and "base" in teachers:
        parts["distil_base"] = distil.base * distil_base(logits, batch, teachers)
    return parts or {"cross_entropy": logits.sum() * 0.0}
