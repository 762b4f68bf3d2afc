"""Matrix products with frozen weights, at the speed the processor has.

On a CPU torch gives float32 products to MKL, which keeps to AVX2 on processors that are not Intel's; oneDNN, which is
in the same torch and which torch.compile uses, takes AVX-512 where it is and is twice as fast there. Precision is the
same (IEEE float32). Figures: docs/benchmarks.md.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

FEWEST_ROWS = 4  # below, reading the weights is all there is to do, and MKL does it faster
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., K) times weight (N, K) transposed: (..., N). To be called where no gradient is recorded."""
    alike = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    if ONEDNN and alike and x.numel() >= FEWEST_ROWS * x.shape[-1] > 0:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return functional.linear(x, weight, bias)


def products(x: Tensor, weight: Tensor) -> Tensor:
    """`product` for each n: x (N, L, K), weight (N, M, K) -> (N, L, M)."""
    if x.device.type == "cpu" and x.dtype == torch.float32:
        return torch.stack([product(part, matrix) for part, matrix in zip(x, weight, strict=True)])
    return torch.bmm(x, weight.mT)


def autocast_type(x: Tensor) -> torch.dtype | None:
    """The type autocast would compute a product of x in; None where there is no autocast."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


class _Frozen(torch.autograd.Function):
    """x W^T + bias for a W that does not learn: nothing of x is kept for the backward pass."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        kind = autocast_type(x) or x.dtype
        ctx.save_for_backward(weight)
        ctx.kind = x.dtype
        return product(x.to(kind), weight.to(kind), None if bias is None else bias.to(kind))

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (weight,) = ctx.saved_tensors
        return product(gradient, weight.to(gradient.dtype).mT).to(ctx.kind), None, None


class FrozenLinear(nn.Linear):
    """A linear layer whose weights do not learn."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad):
            return super().forward(x)
        return _Frozen.apply(x, self.weight, self.bias)


def freeze(model: nn.Module) -> nn.Module:
    """The model with requires_grad off everywhere and its linear layers as `FrozenLinear`; its weights are the same."""
    model.requires_grad_(False)
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FrozenLinear
    return model


def narrow(model: nn.Module) -> nn.Module:
    """The weights of the frozen linear layers in bf16, to which autocast would cast them at every use: half their memory,
    the same products. The embedding keeps its type, also where the head shares its weights."""
    for module in model.modules():
        if isinstance(module, FrozenLinear) and not module.weight.requires_grad:
            module.weight = nn.Parameter(module.weight.to(torch.bfloat16), requires_grad=False)
    return model
