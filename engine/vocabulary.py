"""What a loss asks of a token's distribution over the vocabulary, as one node of the graph each.

torch's own way keeps two or three arrays of (tokens, vocabulary) in float32 for a loss; here only the logits are kept, in
the type they came in, and softmax is computed again in the backward pass, some rows at a time. All arithmetic is float32
(float64 where the logits are). The same idea as in Hsu et al. 2024 (Liger kernels, arXiv 2410.10989).
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

PIECE = 2**18  # entries worked on at a time: a float32 megabyte, about the second cache of a core
PIECE_ON_A_GPU = 2**24


def wide(values: Tensor) -> Tensor:
    """fp32, or fp64 where it is that already."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _pieces(logits: Tensor) -> Iterator[slice]:
    rows = max(1, (PIECE if logits.device.type == "cpu" else PIECE_ON_A_GPU) // logits.shape[-1])
    return (slice(start, start + rows) for start in range(0, len(logits), rows))


def _of_tokens(logits: Tensor, value: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """What `value` makes of the log-probabilities (k, V) of each piece of the tokens: (K,), float32 at least."""
    found = wide(logits.new_empty(len(logits)))
    for piece in _pieces(logits):
        found[piece] = value(wide(logits[piece]).log_softmax(-1), piece)
    return found


def _less(logits: Tensor, gradient: Tensor, subtract: Callable[[Tensor, slice], object]) -> Tensor:
    """(softmax of the logits - what `subtract` takes from a piece of it) * gradient of the token.

    torch's softmax takes half as long as its exp, on processors that are not Intel's.
    """
    found = torch.empty_like(logits)
    for piece in _pieces(logits):
        part = torch.softmax(wide(logits[piece]), -1)
        subtract(part, piece)
        found[piece] = part.mul_(gradient[piece, None])
    return found


class TokenNll(torch.autograd.Function):
    """-log p of each target: logits (K, V), targets (K,) -> (K,), in nats."""

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        return _of_tokens(logits, lambda ours, piece: -ours.gather(-1, targets[piece, None])[:, 0])

    @staticmethod
    def backward(ctx, gradient: Tensor):
        """(p - 1 at the target) * gradient of the token."""
        logits, targets = ctx.saved_tensors

        def one_at_the_target(part: Tensor, piece: slice) -> None:
            part.scatter_add_(-1, targets[piece, None], part.new_full((len(part), 1), -1.0))

        return _less(logits, gradient, one_at_the_target), None


class Divergence(torch.autograd.Function):
    """KL(teacher || model) of each token: logits (K, V), teacher's log-probabilities (K, V) -> (K,), in nats."""

    @staticmethod
    def forward(ctx, logits: Tensor, teacher: Tensor) -> Tensor:
        ctx.save_for_backward(logits, teacher)

        def apart(ours: Tensor, piece: slice) -> Tensor:
            told = teacher[piece].to(ours.dtype)
            return told.softmax(-1).mul_(told - ours).sum(-1)

        return _of_tokens(logits, apart)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        """(p of the model - p of the teacher) * gradient of the token."""
        logits, teacher = ctx.saved_tensors
        return _less(logits, gradient, lambda part, piece: part.sub_(teacher[piece].to(part.dtype).softmax(-1))), None
