"""The gated activation of a feed-forward layer, silu(gate) * up, as one node of the graph.

Written as two operations it keeps silu(gate) beside gate and up; here it is computed again in the backward pass, which
costs less than writing and reading it did. Source: Shazeer 2020 (arXiv 2002.05202).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN

from engine.decoder import FAMILIES

# down(silu(gate(x)) * up(x)) is all that these do in transformers
KNOWN = [f"{family}MLP" for family in FAMILIES]


class Gated(torch.autograd.Function):
    """gate, up (..., F) -> silu(gate) * up."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        gate, up = ctx.saved_tensors
        of_gate = torch.ops.aten.silu_backward(gradient * up, gate)
        return of_gate, functional.silu(gate).mul_(gradient)


def _forward(self, x: Tensor) -> Tensor:
    return self.down_proj(Gated.apply(self.gate_proj(x), self.up_proj(x)))


def join(model: nn.Module) -> nn.Module:
    """The feed-forward layers of a model with this node inside; their weights and names stay."""
    for module in model.modules():
        if type(module).__name__ in KNOWN and isinstance(module.act_fn, (nn.SiLU, type(ACT2FN["silu"]))):
            module.__class__ = type(f"Gated{type(module).__name__}", (type(module),), {"forward": _forward})
    return model
