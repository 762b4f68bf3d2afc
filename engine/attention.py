"""Causal attention on a CPU, block by block: softmax(Q K^T * scale) V through the products of engine/products.py.

torch's own kernel computes the same in small tiles and reaches a fifth of what the processor can multiply; here a block
is as large as its second cache, and keys that come later are left out block by block. Of long rows nothing of the length
squared outlives a block: the backward pass computes the weights again, as FlashAttention does (Dao et al. 2022,
arXiv 2205.14135); those of short rows (KEPT) wait for it. Scores and softmax are float32, also where queries and keys are bf16. Figures: docs/benchmarks.md.
"""

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from engine import packing
from engine.packing import Sequences
from engine.products import ROWS, autocast_type, product
from engine.vocabulary import wide

NAME = "causal_blocks"
QUERIES = 320  # of a block, at most
KEPT = 2**19  # bytes of a head's weights of a sequence up to which they wait for the backward pass
FEWEST = 32  # tokens of a sequence from which blocks pay


def join(model: nn.Module) -> nn.Module:
    """The model with this attention on a CPU, where it had torch's; whatever has a mask goes on using torch's."""
    if model.config._attn_implementation == "sdpa" and model.device.type == "cpu":
        AttentionInterface.register(NAME, forward)
        AttentionMaskInterface.register(NAME, _mask)
        model.set_attn_implementation(NAME)
    return model


def _mask(**given) -> Tensor | None:
    """What transformers calls for a mask: none for rows that are laid one after the other, which are told apart here."""
    return None if packing.sequences(given["batch_size"], given["q_length"]) else sdpa_mask(**given)


def forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    dropout: float = 0.0, scaling: float | None = None, is_causal: bool | None = None, **kwargs,
) -> tuple[Tensor, None]:  # fmt: skip
    """What transformers calls: query (N, H, L, D), key and value (N, G, L, D) -> (N, L, H, D).

    No mask means plainly causal, with every window longer than the sequence.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    plain = attention_mask is None and causal and not dropout and not any(kwargs.get(n) is not None for n in STRANGE)
    rows, _, length, size = query.shape
    if plain and query.device.type == "cpu" and not torch.compiler.is_compiling() and length == key.shape[2] >= FEWEST:
        kind = autocast_type(query) or query.dtype  # torch's own is cast by autocast, too
        scale = size**-0.5 if scaling is None else scaling
        laid = packing.sequences(rows, length)
        return _Blocks.apply(query.to(kind), key.to(kind), value.to(kind), scale, laid), None
    given = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
    return sdpa_attention_forward(module, query, key, value, attention_mask, **given, **kwargs)


STRANGE = ("softcap", "s_aux", "position_bias", "cache")  # what other models hand over, and torch's attention knows


class _Blocks(torch.autograd.Function):
    """One sequence (row, first, end) and one key head at a time; the queries of a block, of all heads that share these
    keys, together."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, scale: float, laid: Sequences | None = None) -> Tensor:
        """laid: where the sequences are, if not each row is one."""
        kept, grows = [], any(ctx.needs_input_grad)
        sequences = [(0, *one) for one in laid] if laid else [(n, 0, query.shape[2]) for n in range(len(query))]
        heads, shared = query.shape[1], query.shape[1] // key.shape[1]
        result = query.new_empty(len(query), query.shape[2], heads, value.shape[-1])
        grouped = query.unflatten(1, (-1, shared))  # (N, G, H / G, L, D)
        of_heads = result.unflatten(2, (-1, shared))  # (N, L, G, H / G, D)
        for n, first, last, group in _parts(sequences, key.shape[1]):
            keeps = grows and _keeps(last - first, value)
            keys, values = wide(key[n, group, first:last]) * scale, value[n, group, first:last]
            for start, end in _blocks(last - first):
                weights = _weights(_rows(grouped[n, group, :, first + start : first + end]), keys[:end], start)
                weights = weights.to(value.dtype)
                found = product(weights, values[:end].mT)
                of_heads[n, first + start : first + end, group] = found.view(shared, end - start, -1).transpose(0, 1)
                if keeps:
                    kept.append(weights)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.scale, ctx.sequences = scale, sequences
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
        for n, first, last, group in _parts(ctx.sequences, key.shape[1]):
            keys, values = key[n, group, first:last], wide(value[n, group, first:last])
            of_keys, of_values = of_key[n, group, first:last], of_value[n, group, first:last]
            keeps, scaled = _keeps(last - first, value), wide(keys) * ctx.scale
            for start, end in _blocks(last - first):
                part = slice(first + start, first + end)
                rows = _rows(grouped[n, group, :, part])
                weights = wide(next(kept)) if keeps else _weights(rows, scaled[:end], start)
                told = _rows(given[n, part, group].transpose(0, 1))
                of_weights = product(told.to(values.dtype), values[:end])
                of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype).to(kind)
                found = product(of_scores, keys[:end].mT).mul_(ctx.scale)
                of_grouped[n, group, :, part] = found.view(shared, end - start, -1)
                of_keys[:end].add_(product(of_scores.mT, rows.mT), alpha=ctx.scale)
                of_values[:end] += product(weights.to(kind).mT, told.mT)
        return of_query, of_key.to(kind), of_value.to(kind), None, None


def _parts(sequences: list[tuple[int, int, int]], groups: int) -> Iterator[tuple[int, int, int, int]]:
    """(row, first, end, key head) of every sequence and key head."""
    return ((*one, group) for one in sequences for group in range(groups))


def _keeps(length: int, value: Tensor) -> bool:
    """Whether the weights of a sequence wait for the backward pass."""
    return length**2 * value.element_size() <= KEPT


def _blocks(length: int) -> list[tuple[int, int]]:
    """(first, end) of as few blocks as can be, of nearly the same size."""
    count = -(-length // QUERIES)
    size = -(-length // count)
    size += -size % ROWS
    return [(start, min(start + size, length)) for start in range(0, length, size)]


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
