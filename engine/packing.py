"""The rows of a micro-batch laid one after the other, without the padding between them. For a CPU.

Attention and the dropout masks of an adapter belong to a sequence, all else to a token. The former are worked out
sequence by sequence on a CPU anyway (engine/attention.py, engine/adapted.py), so there is no need for rows of one length:
ids (N, L) become (1, T), and logits, losses and gradients stay what they are. Other names for it: padding-free or
packed batches, variable-length attention. Figures: docs/benchmarks.md.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from engine.products import ROWS

MOST = 0.9  # of the padded tokens: what must be left of them at most, for sequence by sequence to pay
FEWEST_SHAPES = 32  # T is a multiple of it, and of a 64th of itself: oneDNN writes code for each T it meets

Sequences = tuple[tuple[int, int], ...]  # (first token, end) of each

_LAID: ContextVar[Sequences | None] = ContextVar("sequences of the forward pass that is running", default=None)


def sequences(rows: int, length: int) -> Sequences | None:
    """Those in (rows, length) tokens of the forward pass that is running; None: each row is one."""
    laid = _LAID.get()
    return laid if laid and (rows, length) == (1, laid[-1][1]) else None


@contextlib.contextmanager
def running(laid: "Laid") -> Iterator[None]:
    """While a model reads `laid`."""
    before = _LAID.set(laid.sequences)
    try:
        yield
    finally:
        _LAID.reset(before)


class Laid(NamedTuple):
    """Rows as a model reads them: ids (N, L) as they came, or (1, T) with the position of each token in its own row and
    the sequences; the last of these has filler behind it, which no token before it sees. first, sizes (N,): where a row
    begins, and its tokens. taken (M,): where each token but the filler was in the flattened (N, L)."""

    ids: Tensor
    shape: tuple[int, int]  # (N, L)
    position_ids: Tensor | None = None
    sequences: Sequences | None = None
    first: Tensor | None = None
    sizes: Tensor | None = None
    taken: Tensor | None = None

    def positions(self, flat: Tensor) -> Tensor:
        """Where positions (K,) of the flattened (N, L) are now."""
        if self.sequences is None:
            return flat
        return self.first[flat // self.shape[1]] + flat % self.shape[1]

    def places(self, of_rows: Tensor) -> Tensor:
        """Where places (N, S) of each row are now, among all tokens. A row's last stands for those beyond it."""
        if self.sequences is None:
            return of_rows + torch.arange(len(of_rows), device=of_rows.device)[:, None] * self.shape[1]
        return self.first[:, None] + of_rows.minimum(self.sizes[:, None] - 1)

    def spread(self, states: Tensor) -> Tensor:
        """What a model says of these tokens, (N, L, D) again; 0 where the padding was."""
        if self.sequences is None:
            return states
        rows = states.new_zeros(self.shape[0] * self.shape[1], states.shape[-1])
        return rows.index_put((self.taken,), states[0, : len(self.taken)]).unflatten(0, self.shape)


def lay(ids: Tensor, lengths: Sequence[int] | None) -> Laid:
    """ids (N, L), padded on the right, and the tokens of each row; without these, or where it saves nothing, as they are."""
    count, longest = ids.shape
    sizes = [min(length + -length % ROWS, longest) for length in lengths or ()]
    total = sum(sizes)
    filler = -total % max(FEWEST_SHAPES, 2 ** (total.bit_length() - 6))
    if not sizes or total + filler > MOST * count * longest:
        return Laid(ids, (count, longest))
    ends = list(accumulate(sizes))
    begins = [0, *ends[:-1]]
    ends[-1] += filler
    taken = torch.cat([torch.arange(n * longest, n * longest + size) for n, size in enumerate(sizes)])
    return Laid(
        ids=functional.pad(ids.flatten()[taken], (0, filler))[None],
        shape=(count, longest),
        position_ids=functional.pad(taken % longest, (0, filler))[None],
        sequences=tuple(zip(begins, ends, strict=True)),
        first=torch.tensor(begins),
        sizes=torch.tensor(sizes),
        taken=taken,
    )
