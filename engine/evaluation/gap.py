"""The modality gap: how far apart a model holds papers and videos. A diagnostic, never a target (METHODS, section 10)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from engine.batches import Encoded

DOCUMENTS = 64  # of each modality, at most


def modality_gap(x: np.ndarray, y: np.ndarray, pairs: Sequence[tuple[int, int]] = ()) -> dict[str, float | None]:
    """x (n, d), y (m, d): representations of the two sides; pairs: (row of x, row of y) on the same subject.

    gap: |mean(x) - mean(y)| of normalised rows, 0..2.  probe: share of rows nearer to the mean of their own side,
    themselves left out of it; 0.5 is chance.  recall_at_1: share of the pairs' x rows whose nearest row of y, by
    cosine, is their own; None without pairs.
    """
    x, y = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (x, y))
    gap = float(np.linalg.norm(x.mean(0) - y.mean(0)))
    right = np.concatenate([_nearer(x, y), _nearer(y, x)])
    found = [int(np.argmax(x[row] @ y.T)) == match for row, match in pairs]
    return {"gap": gap, "probe": float(right.mean()), "recall_at_1": float(np.mean(found)) if found else None}


def _nearer(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """For each row: is the mean of the others of its side nearer than the mean of the other side?"""
    if len(own) < 2:
        return np.zeros(0, bool)
    rest = (own.sum(0) - own) / (len(own) - 1)
    return np.linalg.norm(own - rest, axis=1) < np.linalg.norm(own - other.mean(0), axis=1)


@torch.inference_mode()
def representations(model: nn.Module, prompts: Sequence[Encoded], size: int) -> np.ndarray:
    """(n, d): the last layer's states, averaged over the tokens of each prompt."""
    device, found = next(model.parameters()).device, []
    for first in range(0, len(prompts), size):
        chosen = prompts[first : first + size]
        longest = max(len(prompt.ids) for prompt in chosen)
        ids = torch.zeros((len(chosen), longest), dtype=torch.long)
        mask = torch.zeros((len(chosen), longest))
        for row, prompt in enumerate(chosen):  # padded on the right, where causal attention never looks
            ids[row, : len(prompt.ids)] = torch.tensor(prompt.ids)
            mask[row, : len(prompt.ids)] = 1
        told = model(input_ids=ids.to(device), output_hidden_states=True, use_cache=False, logits_to_keep=1)
        states, mask = told.hidden_states[-1].float(), mask.to(device)
        found.append(((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).cpu().numpy())
    return np.concatenate(found)
