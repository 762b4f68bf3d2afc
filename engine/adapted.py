"""A linear layer with its LoRA update in one node of the graph: x W^T + scale * dropout(x) A^T B^T.

PEFT's own layer computes the same in seven operations and keeps a dropped copy of x for each adapted layer. Here nothing
but x itself is kept, and dropout falls on A instead of x: features of the layer's input are dropped for a whole
sequence, so a mask has (sequences, d_in) entries instead of (sequences, tokens, d_in), and the mask's cost is gone.
Each entry of x is dropped as often as before, and mean and variance of the update at every token are the same; masks at
two tokens of one sequence, independent before, are now one. Source: Gal & Ghahramani 2016 (arXiv 1512.05287), who drop
so in recurrent networks. lora.dropout_mask=token gives PEFT's masks back. Figures: docs/benchmarks.md.
"""

import torch
from peft.tuners import lora
from torch import Tensor, nn

from engine import packing
from engine.packing import Sequences
from engine.products import FrozenLinear, autocast_type, product, products


class _Adapted(torch.autograd.Function):
    """x W^T + bias + scale * (x * mask) A^T B^T, with W and its bias frozen.

    x (N, L, d_in), weight (d_out, d_in), a (r, d_in), b (d_out, r) -> (N, L, d_out). mask (sequences, d_in) or None;
    laid: where its sequences are, if not each row is one.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, mask, laid):
        base = autocast_type(x) or x.dtype
        kind = autocast_type(x) or a.dtype  # PEFT's choice: float32 adapters on a bf16 base are computed in float32
        result = product(x.to(base), weight.to(base), None if bias is None else bias.to(base))
        narrow = _narrow(x.to(kind), _masked(a.to(kind), mask), laid).mul_(scale)
        ctx.save_for_backward(x, weight, a, b, mask, narrow)
        ctx.scale, ctx.kind, ctx.laid = scale, kind, laid
        return _add(result, narrow, b.to(kind), laid)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, weight, a, b, mask, narrow = ctx.saved_tensors
        g = gradient.to(ctx.kind)
        of_narrow = product(g, b.to(ctx.kind).mT).mul_(ctx.scale)  # (N, L, r)
        of_x = of_a = of_b = None
        if ctx.needs_input_grad[0]:
            of_x = product(gradient, weight.to(gradient.dtype).mT)
            of_x = _add(of_x, of_narrow, _masked(a.to(ctx.kind), mask).mT, ctx.laid).to(x.dtype)
        if ctx.needs_input_grad[3]:
            of_a = _of_a(of_narrow, x.to(ctx.kind), mask, ctx.laid).to(a.dtype)
        if ctx.needs_input_grad[4]:
            of_b = product(_flat(g).mT, _flat(narrow).mT).to(b.dtype)
        return of_x, None, None, of_a, of_b, None, None, None


def _add(result: Tensor, narrow: Tensor, wide: Tensor, laid: Sequences | None) -> Tensor:
    """result (N, L, M) plus narrow (N, L, r) times wide (M, r) transposed, or that of each sequence, in place."""
    if result.dtype != narrow.dtype:
        return result.add_(_narrow(narrow, wide, laid))
    if wide.dim() == 2:
        result.view(-1, result.shape[-1]).addmm_(_flat(narrow), wide.mT)
    elif laid is None:
        result.baddbmm_(narrow, wide.mT)
    else:
        for (first, end), matrix in zip(laid, wide, strict=True):
            result[0, first:end].addmm_(narrow[0, first:end], matrix.mT)
    return result


def _flat(values: Tensor) -> Tensor:
    return values.reshape(-1, values.shape[-1])


def _masked(a: Tensor, mask: Tensor | None) -> Tensor:
    """A of each sequence (n, r, d_in), or A itself without a mask."""
    return a if mask is None else a * mask[:, None].to(a.dtype)


def _narrow(x: Tensor, weight: Tensor, laid: Sequences | None) -> Tensor:
    """x times one weight (M, K), or each sequence times its own (n, M, K)."""
    if weight.dim() == 2:
        return product(x, weight)
    if laid is None:
        return products(x, weight)
    parts = (product(x[0, first:end], matrix) for (first, end), matrix in zip(laid, weight, strict=True))
    return torch.cat(list(parts))[None]


def _of_a(of_narrow: Tensor, x: Tensor, mask: Tensor | None, laid: Sequences | None) -> Tensor:
    if mask is None:
        return product(_flat(of_narrow).mT, _flat(x).mT)
    if laid is None:
        each = products(of_narrow.mT, x.mT)
    else:
        each = torch.stack([product(of_narrow[0, first:end].mT, x[0, first:end].mT) for first, end in laid])
    return (each * mask[:, None].to(x.dtype)).sum(0)


class AdaptedLinear(lora.Linear):
    """PEFT's layer; what is not plain LoRA with one active adapter goes PEFT's own way."""

    per_sequence = True  # whether dropout has one mask for all tokens of a sequence

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        if args or kwargs or not self._is_plain():
            return super().forward(x, *args, **kwargs)
        base, name = self.base_layer, self.active_adapters[0]
        if self.disable_adapters:
            return base(x)
        rate = getattr(self.lora_dropout[name], "p", 0.0) if self.training else 0.0
        if rate and not (self.per_sequence and x.dim() == 3):
            return super().forward(x)
        laid = mask = None
        if rate:
            laid = packing.sequences(*x.shape[:2])
            mask = sequence_mask(x, rate, len(laid or x))
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        return _Adapted.apply(x, base.weight, base.bias, a, b, self.scaling[name], mask, laid)

    def _is_plain(self) -> bool:
        """Whether this is x W^T and one update: no merged, mixed or other kind of adapter, and a base that is frozen."""
        names, base = self.active_adapters, self.base_layer
        one = len(names) == 1 and names[0] in self.lora_A and not self.lora_variant and not self.merged
        return one and type(base) in (nn.Linear, FrozenLinear) and not base.weight.requires_grad


def sequence_mask(x: Tensor, rate: float, sequences: int) -> Tensor:
    """(sequences, d_in) for x (N, L, d_in): 0 with chance `rate`, else 1 / (1 - rate)."""
    keep = torch.rand(sequences, x.shape[-1], device=x.device) >= rate
    return keep.to(torch.float32) / (1 - rate)


def join(model: nn.Module, per_sequence: bool = True) -> nn.Module:
    """The adapted layers of a model as `AdaptedLinear`; their weights and names stay. Quantised ones too keep PEFT's way."""
    for module in model.modules():
        if type(module) is lora.Linear and not any(bias for bias in module.lora_bias.values()):
            module.__class__ = AdaptedLinear
        if type(module) is AdaptedLinear:
            module.per_sequence = per_sequence
    return model
