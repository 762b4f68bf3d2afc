"""Matrix products with frozen weights, at the speed the processor has.

On a CPU torch gives float32 products to MKL, which keeps to AVX2 on processors that are not Intel's; oneDNN, which is
in the same torch and which torch.compile uses, takes AVX-512 where it is and is twice as fast there. Precision is the
same (IEEE float32). Figures: docs/benchmarks.md.

oneDNN writes machine code for each shape it meets, about a millisecond and half a megabyte of it, so shapes should be few:
rows come in multiples of ROWS (engine/batches.py pads to it). The code of CODES shapes is kept: that of some forty lengths.
"""

import os

import torch
from torch import Tensor, nn
from torch.nn import functional

ROWS = 16
CODES = 2048
FEWEST_ROWS = 32  # below, reading the weights is most of the work, and MKL does it as fast
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def prepare() -> None:
    """To be called before the first product: how many shapes oneDNN keeps code for."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(CODES))


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., K) times weight (N, K) transposed: (..., N). To be called where no gradient is recorded."""
    if not (ONEDNN and x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"):
        return functional.linear(x, weight, bias)
    rows = x.numel() // x.shape[-1]
    # torch.compile makes its own choice, and knows this operation only for weights that it packed itself
    if torch.compiler.is_compiling() or rows < FEWEST_ROWS:
        return functional.linear(x, weight, bias)
    if not rows % ROWS:
        return _onednn(x, weight, bias)
    padded = functional.pad(x.reshape(rows, x.shape[-1]), (0, 0, 0, -rows % ROWS))
    return _onednn(padded, weight, bias)[:rows].view(*x.shape[:-1], len(weight))


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(_dense(x), _dense(weight), bias, "none", [], "")


def _dense(matrix: Tensor) -> Tensor:
    """A matrix without gaps between its rows or its columns: with gaps oneDNN is a hundred times slower."""
    return (
        matrix if matrix.is_contiguous() or (matrix.dim() == 2 and matrix.mT.is_contiguous()) else matrix.contiguous()
    )


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
    embedded = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        if isinstance(module, FrozenLinear) and not module.weight.requires_grad:
            values = module.weight.data.to(torch.bfloat16)
            if module.weight in embedded:
                module.weight = nn.Parameter(values, requires_grad=False)
            else:
                module.weight.data = values  # still the same parameter: engine/streaming.py knows its weights by it
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.dtype == torch.float32 and parameter.device.type == "cpu":
            parameter.data = (
                parameter.data.clone()
            )  # or the file it is mapped from would stay, with all that was narrowed
    return model
