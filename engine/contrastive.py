"""CrossCLR: pull the two sides of a pair together, push other pairs away, between the modalities and within each.

Source: Zolfaghari et al. 2021, CrossCLR (arXiv 2109.14910); METHODS, section 5. The authors' released loss lacks the
queue, the pruning and the weights, multiplies logits by the intra-modality weight and counts self-similarity as a
negative with logit 0; here all of these are as in the paper.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.mixture import integer
from engine.settings import CrossClr

DIMENSION = 256  # of the projection, at most


class Sides(NamedTuple):
    """M pairs: unit projections x, y (M, d), the features they come from hx, hy (M, D), and their groups gx, gy (M,)."""

    x: Tensor
    y: Tensor
    hx: Tensor
    hy: Tensor
    gx: Tensor
    gy: Tensor

    def detach(self) -> "Sides":
        return Sides(*(value.detach() for value in self))


class Contrast(nn.Module):
    """The projection, which learns, and the queue of earlier pairs, which does not."""

    def __init__(self, features: int, seed: int, device=None, dtype=torch.float32):
        super().__init__()
        size = min(DIMENSION, features)
        chance = torch.Generator().manual_seed(integer(seed, "projection"))
        weight = nn.init.orthogonal_(torch.empty(size, features), generator=chance)
        self.projection = nn.Parameter(weight.to(device, dtype))
        self.queue: Sides | None = None

    def project(self, features: Tensor) -> Tensor:
        """(M, D) -> (M, d), of length 1."""
        return functional.normalize(features.to(self.projection.dtype) @ self.projection.mT, dim=-1)

    def push(self, fresh: list[Sides], size: int) -> None:
        """Put the pairs of a finished step into the queue and forget the oldest beyond `size`. No gradient is kept."""
        if not size or not fresh:
            return
        parts = ([self.queue] if self.queue else []) + [sides.detach() for sides in fresh]
        self.queue = Sides(*(torch.cat(values)[-size:] for values in zip(*parts, strict=True)))

    def state(self) -> dict[str, Tensor]:
        """All of it as tensors, for a checkpoint."""
        queue = self.queue._asdict() if self.queue else {}
        return {"projection": self.projection.detach(), **{f"queue.{name}": value for name, value in queue.items()}}

    def restore(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            self.projection.copy_(state["projection"])
        if "queue.x" in state:
            self.queue = Sides(*(state[f"queue.{name}"].to(self.projection.device) for name in Sides._fields))


def crossclr(sides: Sides, queue: Sides | None, settings: CrossClr) -> tuple[Tensor, dict[str, Tensor]]:
    """(sum over the M anchors of (L_x + L_y) / 2, in nats; {negatives, pruned}).

    L_x(i) = w_i * -log[ d(x_i, y_i) / (d(x_i, y_i) + sum_inter d(x_i, y_k) + intra_weight * sum_intra d(x_i, x_k)) ],
    d(a, b) = exp(a.b / tau). Negatives are the other pairs of the micro-batch and all of the queue that are of another
    group and are not influential; no negatives give 0.
    """
    known = Sides(*(torch.cat(both) for both in zip(sides, queue, strict=True))) if queue else sides
    count = len(sides.x)
    own = (sides.gx[:, None] == known.gx) | (sides.gy[:, None] == known.gy)
    # a pair is never its own negative, whatever the groups say
    own |= torch.eye(count, len(known.x), dtype=torch.bool, device=own.device)
    strength_x, strength_y = connectivity(known.hx), connectivity(known.hy)
    kept_x, kept_y = (~own & (strength <= settings.prune_above) for strength in (strength_x, strength_y))
    positive = (sides.x * sides.y).sum(-1) / settings.temperature
    loss_x = _one_side(sides.x, positive, (known.y, kept_y), (known.x, kept_x), settings)
    loss_y = _one_side(sides.y, positive, (known.x, kept_x), (known.y, kept_y), settings)
    weighted = _weights(strength_x, settings)[:count] * loss_x + _weights(strength_y, settings)[:count] * loss_y
    pruned = (torch.cat([strength_x, strength_y]) > settings.prune_above).float().mean()
    return weighted.sum() / 2, {"negatives": (kept_x.sum() + kept_y.sum()) / count, "pruned": pruned}


def _one_side(anchors: Tensor, positive: Tensor, inter: tuple, intra: tuple, settings: CrossClr) -> Tensor:
    """-log of the pair's share (M,). inter, intra: (samples (T, d), which are negatives (M, T))."""
    across, own = (
        (anchors @ samples.mT / settings.temperature).masked_fill(~kept, -torch.inf) for samples, kept in (inter, intra)
    )
    scale = math.log(settings.intra_weight) if settings.intra_weight else -math.inf
    return torch.cat([positive[:, None], across, own + scale], dim=1).logsumexp(1) - positive


def _weights(strength: Tensor, settings: CrossClr) -> Tensor:
    weights = (strength / settings.weight_temperature).exp()
    return weights / weights.mean()


def connectivity(features: Tensor) -> Tensor:
    """C (T,): mean cosine of each sample with all others, divided by the largest; all 0 if that is not positive."""
    unit = functional.normalize(features.detach().float(), dim=-1)
    count = len(unit)
    if count < 2:
        return torch.zeros(count, device=features.device)
    mean = (unit @ unit.sum(0) - (unit * unit).sum(-1)) / (count - 1)
    largest = mean.max()
    return torch.where(largest > 0, mean / largest, torch.zeros_like(mean))
