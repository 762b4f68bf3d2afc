"""Every loss: a pure function of one micro-batch and its outputs, named like its weight in the settings.

The objective of a step is the sum of the dict that `mix` returns over its micro-batches, plus the EWC penalty, so what
is logged adds up to what was minimised. All of it in fp32 (fp64 where the model is), in nats.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from engine.batches import Batch
from engine.contrastive import Contrast, Sides, crossclr
from engine.settings import CrossClr, Distil, Losses
from engine.vocabulary import Divergence, TokenNll, wide


class Outputs(NamedTuple):
    """What the model says of a micro-batch.

    logits (K, V) at the K positions that predict a summary token; states (N, L, D) of the last layer, where a loss
    needs them; told {teacher: log-probabilities (K_teacher, V) at the summary tokens of its rows}, without gradient;
    embedding (V, D), frozen.
    """

    logits: Tensor
    states: Tensor | None
    told: dict[str, Tensor]
    embedding: Tensor


def cross_entropy(nll: Tensor, batch: Batch) -> Tensor:
    """Sum of weighted nll over summary tokens, in nats per token of the whole step.

    nll (K,): see `token_nll`; batch.weights holds the denominators.
    Source: METHODS, sections 2 and 4: L_CE = (1 - q) * mean(new) + q * mean(memory).
    """
    return (nll * batch.weights["cross_entropy"]).sum()


def term(nll: Tensor, batch: Batch) -> Tensor:
    """Mean nll of the summary tokens that belong to lexicon terms, new and memory; 0 where the step has none.

    A term token then weighs 1 + weight * T / |K| times a plain one. Source: METHODS, section 7.
    """
    return (nll * batch.weights["term"]).sum()


def diversity(means: Tensor, batch: Batch) -> Tensor:
    """1 - H(p_bar) / log V, in [0, 1], with p_bar = mean over new documents of the mean over a document's tokens of p.

    means (N, V): see `document_means`. It falls when documents get different outputs. Not additive: taken per
    micro-batch, then averaged (batch.part). 0 for a micro-batch without new documents. Source: METHODS, section 6.
    """
    size, total = means.shape[-1], batch.documents.sum()
    mean = batch.documents.to(means.dtype) @ means / total.clamp_min(torch.finfo().tiny)
    mean = mean + (total <= 0) / size  # without new documents: uniform, whose loss and gradient are 0
    entropy = -torch.special.xlogy(mean, mean).sum()
    return batch.part * (1 - entropy / math.log(size))


def floor(logits: Tensor, batch: Batch, told: dict[str, Tensor]) -> Tensor:
    """mean over new tokens of max(0, H_ref - H), in nats: acts only where a token's entropy fell below the reference's.

    H_ref is that of the row's teacher, the model before the phase. Source: METHODS, section 6, option floor.
    """
    reference = torch.zeros_like(batch.weights["floor"], dtype=wide(logits).dtype)
    for name, tokens in batch.tokens_of.items():
        reference = reference.index_copy(0, tokens, token_entropy(told[name]))
    short = (reference - token_entropy(wide(logits).log_softmax(-1))).clamp_min(0)
    return (short * batch.weights["floor"]).sum()


def token_entropy(log_probabilities: Tensor) -> Tensor:
    """H (K,) of each token's distribution (K, V), in nats."""
    return -(log_probabilities.exp() * log_probabilities).sum(-1)


def drift(means: Tensor, batch: Batch, embedding: Tensor, target: float) -> Tensor:
    """mean over new documents of max(0, target - cos(mean_t p_t W_E, mean_t W_E[y_t])).

    means (N, V): see `document_means`; embedding W_E (V, D), frozen. mean_t p_t W_E is the expected embedding, so the
    gradient reaches the logits; the reference side has none. A hinge, never a square: above the target it must not pull
    down. Source: METHODS, section 7.
    """
    embedding = wide(embedding.detach())
    ours = means @ embedding.to(means.dtype)
    theirs = document_means(embedding[batch.targets], batch)
    short = (target - functional.cosine_similarity(ours, theirs, dim=-1)).clamp_min(0)
    return (short * batch.documents).sum()


def contrastive(sides: Sides, batch: Batch, contrast: Contrast, settings: CrossClr) -> tuple[Tensor, dict[str, Tensor]]:
    """(CrossCLR, mean over the pairs of the step, in nats per anchor; {negatives, pruned}). See `crossclr`."""
    total, told = crossclr(sides, contrast.queue, settings)
    return total * batch.pair, told


def sides_of(outputs: Outputs, batch: Batch, contrast: Contrast, settings: CrossClr) -> Sides:
    """Mean last-layer states of both sides of each pair and their projections: (paper, talk), or (source, summary)."""
    states = wide(outputs.states)
    of_summary = _masked_means(states, batch.predicts)
    if settings.pairs == "document_summary":
        of_source = _masked_means(states, batch.predicts.long().cumsum(1) == 0)
        hx, hy = of_source[batch.pairs[:, 0]], of_summary[batch.pairs[:, 1]]
    else:
        hx, hy = of_summary[batch.pairs[:, 0]], of_summary[batch.pairs[:, 1]]
    groups = batch.groups[batch.pairs]
    return Sides(contrast.project(hx), contrast.project(hy), hx, hy, groups[:, 0], groups[:, 1])


def _masked_means(states: Tensor, mask: Tensor) -> Tensor:
    """(N, L, D) -> (N, D): mean over the positions of a mask (N, L); 0 where it is empty."""
    weights = mask.to(states.dtype)
    return torch.einsum("nl,nld->nd", weights, states) / weights.sum(1, keepdim=True).clamp_min(1)


def divergences(logits: Tensor, batch: Batch, told: dict[str, Tensor]) -> Tensor:
    """(K,): KL(teacher || model) at the tokens of rows that have a teacher, 0 elsewhere."""
    found = wide(logits.new_zeros(len(logits)))
    for name, tokens in batch.tokens_of.items():
        found = found.index_copy(0, tokens, divergence(logits[tokens], told[name]))
    return found


def distil_base(apart: Tensor, batch: Batch) -> Tensor:
    """KL(base || model) at the tokens of the base's own answers, their mean. apart (K,): see `divergences`."""
    return (apart * batch.weights["distil_base"]).sum()


def distil_documents(apart: Tensor, batch: Batch) -> Tensor:
    """KL(base || model) at every token of the plain documents of the step, their mean."""
    return (apart * batch.weights["distil_documents"]).sum()


def distil_phase(apart: Tensor, batch: Batch) -> Tensor:
    """KL(phase adapter || model) at the memory tokens of the step, their mean; each record has the teacher of its phase."""
    return (apart * batch.weights["distil_phase"]).sum()


def distil_new(apart: Tensor, batch: Batch) -> Tensor:
    """KL(model before the phase || model) at the new tokens, their mean. Source: Li & Hoiem 2016 (arXiv 1606.09282)."""
    return (apart * batch.weights["distil_new"]).sum()


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) at each token (K,): teacher first, full vocabulary, temperature 1.

    logits (K, V) of the student; teacher (K, V) log-probabilities, no gradient. Source: METHODS, section 8.
    """
    return Divergence.apply(logits, teacher)


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p of each target (K,), in nats."""
    return TokenNll.apply(logits, targets)


def document_means(values: Tensor, batch: Batch) -> Tensor:
    """(K, D) values at tokens -> (N, D) mean over the tokens of each row."""
    member = (batch.rows == torch.arange(len(batch.documents), device=values.device)[:, None]).to(values.dtype)
    return member @ values / member.sum(1, keepdim=True).clamp_min(1)


def mix(outputs: Outputs, batch: Batch, losses: Losses, distil: Distil) -> dict[str, Tensor]:
    """{name: weighted scalar} of one micro-batch, but for the contrastive term, which has a state of its own.

    A weight of 0, or nothing to apply it to, skips the computation.
    """
    logits, told = outputs.logits, outputs.told
    parts = {}
    nll = token_nll(logits, batch.targets)
    if losses.cross_entropy:
        parts["cross_entropy"] = losses.cross_entropy * cross_entropy(nll, batch)
    if losses.term and "term" in batch.weights:
        parts["term"] = losses.term * term(nll, batch)
    if losses.diversity or losses.drift:
        means = document_means(wide(logits).softmax(-1), batch)  # one pass over the vocabulary for both
    if losses.diversity:
        parts["diversity"] = losses.diversity * diversity(means, batch)
    if losses.drift:
        parts["drift"] = losses.drift * drift(means, batch, outputs.embedding, losses.drift_target)
    if losses.floor and "floor" in batch.weights:
        parts["floor"] = losses.floor * floor(logits, batch, told)
    if told:
        apart = divergences(logits, batch, told)
        for name in ("phase", "base", "documents", "new"):
            weight, loss = getattr(distil, name), f"distil_{name}"
            if weight and loss in batch.weights:
                parts[loss] = weight * DISTILLATION[loss](apart, batch)
    return parts or {"cross_entropy": logits.sum() * 0.0}


DISTILLATION = {loss.__name__: loss for loss in (distil_phase, distil_base, distil_documents, distil_new)}
