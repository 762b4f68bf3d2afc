"""Causal attention on a CPU, block by block: softmax(Q K^T * scale) V through the products of engine/products.py.

torch's own kernel computes the same in small tiles and reaches a fifth of what the processor can multiply; here a block
is as large as its second cache, and keys that come later are left out block by block. Of long rows nothing of the length
squared outlives a block: the backward pass computes the weights again, as FlashAttention does (Dao et al. 2022,
arXiv 2205.14135); those of short rows (KEPT) wait for it. Scores and softmax are float32, also where queries and keys
are bf16; then the gradients of weights are bf16 too. Figures: docs/benchmarks.md.
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
    """One sequence and one key head at a time; the queries of a block, of all heads that share these
    keys, together: (queries, heads) are the rows of its products."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, scale: float, laid: Sequences | None = None) -> Tensor:
        """laid: where the sequences are, if not each row is one."""
        kept, grows = [], any(ctx.needs_input_grad)
        query, key, value = _grouped(query, key.shape[1]), key.contiguous(), value.contiguous()
        rows, groups, length, shared, size = query.shape
        result = query.new_empty(rows, length, groups, shared, size)
        arrays = (query, wide(key) * scale, value, result.transpose(1, 2))
        for queries, keys, values, found in _parts(arrays, laid):
            keeps = grows and _keeps(values)
            for start, end in _blocks(len(values)):
                weights = _weights(queries[start:end], keys[:end], start).to(value.dtype)
                found[start:end].copy_(product(weights, values[:end].mT).view(-1, shared, size))
                if keeps:
                    kept.append(weights)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.scale, ctx.laid = scale, laid
        return result.flatten(2, 3)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        query, key, value, *weights_kept = ctx.saved_tensors
        kept, kind = iter(weights_kept), query.dtype
        rows, groups, length, shared, size = query.shape
        of_query = query.new_empty(rows, length, groups, shared, size)
        of_key, of_value = wide(torch.zeros_like(key)), wide(torch.zeros_like(value))
        given = _grouped(gradient.transpose(1, 2), groups)
        # What all values have in common changes no gradient of a score, since the weights of a row add up to 1; without it the
        # gradients of the weights are small enough for bf16: nearer to the exact ones than torch's kernel.
        apart = (wide(value) - wide(value).mean(2, keepdim=True)).to(kind)
        arrays = (query, given, key, apart, of_query.transpose(1, 2), of_key, of_value)
        for queries, told, keys, values, of_queries, of_keys, of_values in _parts(arrays, ctx.laid):
            keeps = _keeps(keys)
            scaled = None if keeps else wide(keys) * ctx.scale
            for start, end in _blocks(len(keys)):
                block, out = queries[start:end].flatten(0, 1), told[start:end].flatten(0, 1)
                weights = next(kept) if keeps else _weights(queries[start:end], scaled[:end], start).to(kind)
                of_scores = product(out, values[:end])  # of the weights; of the scores after the next line
                torch._softmax_backward_data(of_scores, weights, -1, kind, grad_input=of_scores)
                of_queries[start:end].copy_(product(of_scores, keys[:end].mT).view(-1, shared, size))
                of_keys[:end].add_(product(of_scores.mT, block.mT))
                of_values[:end].add_(product(weights.mT, out.mT))
        for found in (of_query, of_key):
            found.mul_(ctx.scale)
        return of_query.flatten(2, 3).transpose(1, 2), of_key.to(kind), of_value.to(kind), None, None


def _grouped(x: Tensor, groups: int) -> Tensor:
    """(N, H, L, D) -> (N, groups, L, heads of a group, D) without gaps."""
    return x.unflatten(1, (groups, -1)).transpose(2, 3).contiguous()


def _parts(arrays: tuple[Tensor, ...], laid: Sequences | None) -> Iterator[tuple[Tensor, ...]]:
    """Of arrays (N, G, L, ...) the parts (length of the sequence, ...) of every sequence and key head: views."""
    sequences = ([one[0, :, first:end] for first, end in laid] if laid else one.unbind() for one in arrays)
    for sequence in zip(*sequences, strict=True):
        yield from zip(*(one.unbind() for one in sequence), strict=True)


def _keeps(values: Tensor) -> bool:
    """Whether the weights of a sequence with these keys or values (L, D) wait for the backward pass."""
    return len(values) ** 2 * values.element_size() <= KEPT


def _blocks(length: int) -> list[tuple[int, int]]:
    """(first, end) of as few blocks as can be, of nearly the same size."""
    count = -(-length // QUERIES)
    size = -(-length // count)
    size += -size % ROWS
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _weights(queries: Tensor, keys: Tensor, start: int) -> Tensor:
    """Attention (B * heads, start + B) of queries (B, heads, D), which stand at `start` and after, to keys (start + B, D):
    float32 at least."""
    size, heads, _ = queries.shape
    scores = product(queries.flatten(0, 1).to(keys.dtype), keys)
    scores.view(size, heads, -1)[:, :, start:].add_(_later(size, scores.dtype)[:, None])
    return torch._softmax(scores, -1, False, out=scores)


@cache
def _later(size: int, dtype: torch.dtype) -> Tensor:
    """(size, size): minus infinity where the key comes after the query."""
    return torch.full((size, size), -torch.inf, dtype=dtype).triu(1)
