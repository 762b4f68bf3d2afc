"""Causal attention on a CPU, block by block: softmax(Q K^T * scale) V through the products of engine/products.py.

torch's own kernel computes the same in small tiles and reaches a fifth of what the processor can multiply; here a block
is as large as its second cache, and keys that come later are left out block by block. Of long rows nothing of the length
squared outlives a block: the backward pass computes the weights again, as FlashAttention does (Dao et al. 2022,
arXiv 2205.14135); those of short rows (KEPT) wait for it. Scores and softmax are float32, also where queries and keys are bf16. Figures: docs/benchmarks.md.
"""

from functools import cache

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from engine.products import autocast_type, product
from engine.vocabulary import wide

NAME = "causal_blocks"
QUERIES = 256  # of a block
KEPT = 2**19  # bytes of a head's weights of a sequence up to which they wait for the backward pass
FEWEST = 32  # tokens of a sequence from which blocks pay


def join(model: nn.Module) -> nn.Module:
    """The model with this attention on a CPU, where it had torch's; whatever has a mask goes on using torch's."""
    if model.config._attn_implementation == "sdpa" and model.device.type == "cpu":
        AttentionInterface.register(NAME, forward)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)
    return model


def forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    dropout: float = 0.0, scaling: float | None = None, is_causal: bool | None = None, **kwargs,
) -> tuple[Tensor, None]:  # fmt: skip
    """What transformers calls: query (N, H, L, D), key and value (N, G, L, D) -> (N, L, H, D).

    No mask means plainly causal, with every window longer than the sequence.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    plain = attention_mask is None and causal and not dropout and not any(kwargs.get(n) is not None for n in STRANGE)
    if (
        plain
        and query.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and query.shape[2] == key.shape[2] >= FEWEST
    ):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        kind = autocast_type(query) or query.dtype  # torch's own is cast by autocast, too
        return _Blocks.apply(query.to(kind), key.to(kind), value.to(kind), scale), None
    given = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
    return sdpa_attention_forward(module, query, key, value, attention_mask, **given, **kwargs)


STRANGE = ("softcap", "s_aux", "position_bias", "cache")  # what other models hand over, and torch's attention knows


class _Blocks(torch.autograd.Function):
    """One sequence and one key head at a time; the queries of a block, of all heads that share these keys, together."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        keeps = any(ctx.needs_input_grad) and query.shape[2] * key.shape[2] * value.element_size() <= KEPT
        kept = []
        heads, shared = query.shape[1], query.shape[1] // key.shape[1]
        result = query.new_empty(len(query), query.shape[2], heads, value.shape[-1])
        grouped = query.unflatten(1, (-1, shared))  # (N, G, H / G, L, D)
        of_heads = result.unflatten(2, (-1, shared))  # (N, L, G, H / G, D)
        for n, group, scaled in _parts(key, scale):
            for start, end in _blocks(query.shape[2]):
                weights = _weights(_rows(grouped[n, group, :, start:end]), scaled[:end], start)
                weights = weights.to(value.dtype)
                found = product(weights, value[n, group, :end].mT)
                of_heads[n, start:end, group] = found.view(shared, end - start, -1).transpose(0, 1)
                if keeps:
                    kept.append(weights)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.scale = scale
        return result

    @staticmethod
    def backward(ctx, gradient: Tensor):
        query, key, value, *weights_kept = ctx.saved_tensors
        kept = iter(weights_kept)
        shared, kind = query.shape[1] // key.shape[1], query.dtype
        of_query = torch.empty_like(query)
        of_key, of_value = wide(torch.zeros_like(key)), wide(torch.zeros_like(value))
        grouped, of_grouped = query.unflatten(1, (-1, shared)), of_query.unflatten(1, (-1, shared))
        given = gradient.unflatten(2, (-1, shared))
        for n, group, scaled in _parts(key, ctx.scale):
            values = wide(value[n, group])
            for start, end in _blocks(query.shape[2]):
                rows = _rows(grouped[n, group, :, start:end])
                weights = next(kept, None)
                weights = _weights(rows, scaled[:end], start) if weights is None else wide(weights)
                told = _rows(given[n, start:end, group].transpose(0, 1))
                of_weights = product(told.to(values.dtype), values[:end])
                of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype).to(kind)
                found = product(of_scores, key[n, group, :end].mT).mul_(ctx.scale)
                of_grouped[n, group, :, start:end] = found.view(shared, end - start, -1)
                of_key[n, group, :end].add_(product(of_scores.mT, rows.mT), alpha=ctx.scale)
                of_value[n, group, :end] += product(weights.to(kind).mT, told.mT)
        return of_query, of_key.to(kind), of_value.to(kind), None


def _parts(key: Tensor, scale: float):
    """(n, group, scaled keys (L, D), float32 at least) of every sequence and key head."""
    for n in range(len(key)):
        for group in range(key.shape[1]):
            yield n, group, wide(key[n, group]) * scale


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + QUERIES, length)) for start in range(0, length, QUERIES)]


def _rows(part: Tensor) -> Tensor:
    """(heads, queries, D) -> (heads * queries, D) without gaps."""
    return part.reshape(-1, part.shape[-1])


def _weights(queries: Tensor, keys: Tensor, start: int) -> Tensor:
    """Attention of queries (heads * B, D), which stand at `start` and after, to keys (start + B, D): float32 at least."""
    scores = product(queries.to(keys.dtype), keys)
    size = len(keys) - start
    scores.view(-1, size, len(keys))[:, :, start:] += _later(size, scores.dtype)
    return torch.softmax(scores, -1)


@cache
def _later(size: int, dtype: torch.dtype) -> Tensor:
    """(size, size): minus infinity where the key comes after the query."""
    return torch.full((size, size), -torch.inf, dtype=dtype).triu(1)
