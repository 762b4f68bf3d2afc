"""Root mean square normalisation with a frozen weight, as one node of the graph: x / sqrt(mean x^2 + eps) * weight.

Written out it makes four arrays as large as x; here it makes one, in the type the next product is computed in: under
autocast the linear layers behind it would round it to bf16 themselves, each for itself. Source: Zhang & Sennrich 2019
(arXiv 1910.07467).
"""

import torch
from torch import Tensor, nn

from engine.decoder import FAMILIES
from engine.products import autocast_type
from engine.vocabulary import wide

KNOWN = [f"{family}RMSNorm" for family in FAMILIES]
BEFORE_PRODUCTS = ("input_layernorm", "post_attention_layernorm")  # only linear layers read these


class Normed(torch.autograd.Function):
    """x (..., D), weight (D,) -> (..., D) of a type; arithmetic in float32 at least."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float, kind: torch.dtype) -> Tensor:
        values = wide(x)
        inverse = torch.linalg.vector_norm(values, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (values * inverse).mul_(weight).to(kind)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        """r * (g w - x * r^2 * mean(g w x)) with r = 1 / sqrt(mean x^2 + eps)."""
        x, weight, inverse = ctx.saved_tensors
        scaled = gradient.to(inverse.dtype) * weight
        mean = torch.linalg.vecdot(scaled, x.to(scaled.dtype)).unsqueeze(-1).div_(x.shape[-1])
        return (
            scaled.addcmul_(x.to(scaled.dtype), mean.mul_(inverse.square()), value=-1).mul_(inverse).to(x.dtype),
            None,
            None,
            None,
        )


def _forward(self, x: Tensor) -> Tensor:
    kind = (autocast_type(x) if self.feeds_products else None) or x.dtype
    return Normed.apply(x, self.weight, self.variance_epsilon, kind)


def join(model: nn.Module) -> nn.Module:
    """The norms of a model with this node inside; their weights and names stay."""
    for name, module in model.named_modules():
        if type(module).__name__ in KNOWN and not module.weight.requires_grad:
            module.__class__ = type(f"Joined{type(module).__name__}", (type(module),), {"forward": _forward})
            module.feeds_products = name.rpartition(".")[2] in BEFORE_PRODUCTS
    return model
