"""The likelihood of reference summaries: what greedy text does not show."""

from collections.abc import Sequence

import torch
from torch import nn

from engine import models
from engine.batches import Encoded, plain_batch
from engine.losses import token_nll


@torch.inference_mode()
def reference_nll(model: nn.Module, documents: Sequence[Encoded], pad: int) -> list[float]:
    """Mean negative log-likelihood of each reference summary, in nats per token, end-of-text included."""
    was_training = model.training
    model.eval()
    batch = plain_batch(documents, pad)
    batch = batch.to(next(model.parameters()).device)
    values = token_nll(models.summary_logits(model, batch, packed=True), batch.targets)
    model.train(was_training)
    return [part.mean().item() for part in values.split([document.summary_tokens for document in documents])]
