"""Decoder layers of the Llama family with less to do: rotary positions as one node, and a last layer that works out only
the states somebody asks for.

What a step needs of the last layer are the states that predict a summary token, a seventh of all. Its keys and values
are those of every position; its queries, its output and its feed-forward layer are computed at the places asked for
alone. Losses and gradients are the same. Rotary positions: Su et al. 2021 (arXiv 2104.09864).
"""

from functools import cache

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from engine import attention, packing
from engine.products import autocast_type
from engine.vocabulary import wide

FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
MOST = 0.75  # of a batch's positions: with more of them asked for, the whole layer is as fast


class Rotated(torch.autograd.Function):
    """x (N, L, H, D) turned by cos, sin (N or 1, L, D), as a type: (a, b) -> (a cos - b sin, b cos + a sin) with the halves
    a, b of D. Arithmetic in float32 at least."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor, kind: torch.dtype) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.kind = x.dtype
        s, t = sin.chunk(2, -1)
        return _turned(x, cos, -s, t).to(kind)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        cos, sin = ctx.saved_tensors
        s, t = sin.chunk(2, -1)
        return _turned(gradient, cos, t, -s).to(ctx.kind), None, None, None


def _turned(x: Tensor, cos: Tensor, of_first: Tensor, of_second: Tensor) -> Tensor:
    """x cos, plus in its first half what `of_first` takes of the second, and the other way round. In float32 at least."""
    x = wide(x)
    (a, b), result = x.chunk(2, -1), x * cos.unsqueeze(2)
    first, second = result.chunk(2, -1)
    first.addcmul_(b, of_first.unsqueeze(2))
    second.addcmul_(a, of_second.unsqueeze(2))
    return result


def at(states: Tensor, places: Tensor) -> Tensor:
    """The states at places (N, S) of the flattened (B, L, D): (N, S, D)."""
    return states.flatten(0, 1).index_select(0, places.flatten()).view(*places.shape, -1)


def back(found: Tensor, places: Tensor, like: Tensor) -> Tensor:
    """found (N, S, D) at its places among (B, L, D), 0 elsewhere."""
    rows = found.new_zeros(like.shape[0] * like.shape[1], found.shape[-1])
    # not index_copy, whose backward pass would keep `found`
    return rows.index_put((places.flatten(),), found.flatten(0, 1)).view(*like.shape[:2], -1)


@cache
def _attention(known: type[nn.Module]) -> type[nn.Module]:
    class Joined(known):
        """On a CPU, and wherever only some places are asked for; with a cache of keys transformers' own."""

        def forward(
            self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], attention_mask: Tensor | None = None,
            past_key_values=None, places: Tensor | None = None, **kwargs,
        ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
            own = hidden_states.device.type == "cpu" and not torch.compiler.is_compiling()
            if past_key_values is not None or (places is None and not own):
                given = {"attention_mask": attention_mask, "past_key_values": past_key_values}
                return super().forward(hidden_states, position_embeddings=position_embeddings, **given, **kwargs)
            asked, turns = hidden_states, position_embeddings
            if places is not None:
                asked = at(hidden_states, places)
                turns = [turn[0][places % turn.shape[1]] for turn in turns]  # of one row, as the ids have no mask
            query = _heads(self, self.q_proj(asked), "q_norm", turns)
            key = _heads(self, self.k_proj(hidden_states), "k_norm", position_embeddings)
            value = self.v_proj(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
            given = {"dropout": self.attention_dropout if self.training else 0.0, "scaling": self.scaling, **kwargs}
            if places is None:
                found, _ = attend(self, query, key, value, attention_mask, **given)
            elif (laid := packing.sequences(*hidden_states.shape[:2])) is None:
                found, _ = attend(self, query, key, value, _seen(attention_mask, places, key.shape[2]), **given)
            else:
                found = torch.cat([
                    attend(self, query[n:n + 1], key[:, :, a:b], value[:, :, a:b], _seen(None, places[n:n + 1] - a, b - a), **given)[0]
                    for n, (a, b) in enumerate(laid)
                ])  # fmt: skip
            return self.o_proj(found.flatten(2)), None

    return Joined


def _seen(mask: Tensor | None, places: Tensor, length: int) -> Tensor:
    """The rows (N, 1, S, L) of a mask (N or 1, 1, L, L), or of the causal one, for queries at places (N, S) of the flattened
    (N, L)."""
    rows = (places % length)[:, None, :, None]
    if mask is None:
        return torch.arange(length, device=places.device) <= rows
    return torch.take_along_dim(mask, rows, 2)


def _heads(module: nn.Module, x: Tensor, norm: str, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys (N, L, H * D) -> (N, H, L, D), normed where the family does so, and turned."""
    x = x.unflatten(-1, (-1, module.head_dim))
    if hasattr(module, norm):
        x = getattr(module, norm)(x)
    return Rotated.apply(x, *turns, autocast_type(x) or x.dtype).transpose(1, 2)


@cache
def _last(known: type[nn.Module]) -> type[nn.Module]:
    class Joined(known):
        takes_places = True

        def forward(self, hidden_states: Tensor, *args, places: Tensor | None = None, **kwargs) -> Tensor:
            """places (N, S): where among the flattened states (B, L, D) they are wanted, those of a sequence together; they
            are 0 elsewhere. None: everywhere."""
            if places is None:
                return super().forward(hidden_states, *args, **kwargs)
            normed = self.input_layernorm(hidden_states)
            found = at(hidden_states, places) + self.self_attn(normed, *args, places=places, **kwargs)[0]
            found = found + self.mlp(self.post_attention_layernorm(found))
            return back(found, places, hidden_states)

    return Joined


def join(model: nn.Module) -> nn.Module:
    """The layers of a model with these inside; their weights and names stay. What it does not know it leaves alone."""
    layers = getattr(model.get_decoder(), "layers", [])
    known = [f"{family}DecoderLayer" for family in FAMILIES]
    if model.config._attn_implementation in ("sdpa", attention.NAME) and all(
        type(one).__name__ in known for one in layers
    ):
        for layer in layers:
            layer.self_attn.__class__ = _attention(type(layer.self_attn))
        for layer in layers[-1:]:
            layer.__class__ = _last(type(layer))
    return model


def last(model: nn.Module) -> nn.Module | None:
    """The layer that can be asked for some places alone, if the model has one."""
    layers = getattr(model.get_decoder(), "layers", [None])
    return layers[-1] if getattr(layers[-1], "takes_places", False) else None
