"""Averaging two adapters where they mean something: in the update Delta W = scale * B * A, never in its factors.

Delta W = (1-w) Delta W_1 + w Delta W_3 has rank 2r at most. With P = [(1-w) B_1, w B_3] and Q = [A_1; A_3] it is
scale * P Q; the QR of P and of Q^T leaves a 2r x 2r core whose SVD is that of Delta W itself, so that keeping r values is
the best rank-r update there is. The factors' own mean is another function: (B+B')(A+A')/4 is not (BA + B'A')/2.
Source: METHODS, section 8.
"""

import math

import torch
from torch import Tensor

A, B = ".lora_A.", ".lora_B."  # in PEFT's names: LAYER.lora_A.default.weight
Factors = tuple[Tensor, Tensor]


def average(start: Factors, end: Factors, weight: float, scale: float) -> tuple[Tensor, Tensor, float]:
    """(A, B, error) of the best rank-r update near (1-weight) * start + weight * end.

    start, end: (A (r, d_in), B (d_out, r)).  weight: of `end`, 0 to 1.  scale: alpha / r, the same for both and for the
    result.  error: Frobenius norm of the part of Delta W that rank r cannot hold, which is the norm of the singular
    values dropped.  Returned in float32, or float64 where that was given; computed in float64.  Raises ValueError for
    factors of different shapes, a weight outside 0 to 1, and a scale that is not positive.
    """
    a, b, values = _factored(start, end, weight, scale)
    return a, b, torch.linalg.vector_norm(values[len(a) :]).item()


def average_all(
    start: dict[str, Tensor], end: dict[str, Tensor], weight: float, scales: dict[str, float]
) -> tuple[dict[str, Tensor], float]:
    """Every layer of an adapter: ({PEFT name: factor}, ||dropped||_F / ||Delta W||_F over all layers; 0 for no update).

    start, end: the same PEFT names, LAYER.lora_A... and LAYER.lora_B... .  scales: {LAYER: alpha / r}.
    Raises ValueError for parameters of other kinds, which would be lost, and for layers that one side lacks.
    """
    pairs = _pairs(start)
    if start.keys() != end.keys() or pairs.keys() != scales.keys():
        odd = sorted(start.keys() ^ end.keys()) or sorted(pairs.keys() ^ scales.keys())
        raise ValueError(f"the two adapters and the scales must name the same layers; only some of them have {odd[:3]}")
    averaged, dropped, whole = {}, 0.0, 0.0
    for layer, (name_a, name_b) in pairs.items():
        first, second = (start[name_a], start[name_b]), (end[name_a], end[name_b])
        averaged[name_a], averaged[name_b], values = _factored(first, second, weight, scales[layer])
        squares = values.square()
        dropped += squares[len(averaged[name_a]) :].sum().item()
        whole += squares.sum().item()
    return averaged, math.sqrt(dropped / whole) if whole else 0.0


def _factored(start: Factors, end: Factors, weight: float, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """(A, B, all singular values of the exact Delta W, descending)."""
    _refuse(start, end, weight, scale)
    (a1, b1), (a3, b3) = start, end
    rank, kind = len(a1), torch.promote_types(a1.dtype, torch.float32)
    left, left_core = torch.linalg.qr(torch.cat([(1 - weight) * b1.double(), weight * b3.double()], dim=1))
    right, right_core = torch.linalg.qr(torch.cat([a1, a3]).double().T)
    u, values, vt = torch.linalg.svd(scale * left_core @ right_core.T)  # at most 2r x 2r
    kept = min(rank, len(values))  # a layer narrower than r has fewer values; its other columns are 0
    root = values[:kept].sqrt()
    b = torch.zeros_like(b1, dtype=kind)
    a = torch.zeros_like(a1, dtype=kind)
    b[:, :kept] = left @ u[:, :kept] * root / scale
    a[:kept] = root[:, None] * (vt[:kept] @ right.T)
    return a, b, values


def _refuse(start: Factors, end: Factors, weight: float, scale: float) -> None:
    shapes = [tuple(factor.shape) for factor in (*start, *end)]
    (r, _), (_, r_of_b) = shapes[:2]
    if shapes[:2] != shapes[2:] or r != r_of_b:
        raise ValueError(
            f"the factors do not fit together: A {shapes[0]} and {shapes[2]}, B {shapes[1]} and {shapes[3]}"
        )
    if not 0 <= weight <= 1:
        raise ValueError(f"weight {weight:g}: must lie between 0 (start) and 1 (end)")
    if not scale > 0:
        raise ValueError(f"scale {scale:g}: must be positive; it is alpha / r")


def _pairs(weights: dict[str, Tensor]) -> dict[str, tuple[str, str]]:
    """{layer: (name of A, name of B)}."""
    pairs = {}
    for name in weights:
        if A in name:
            pairs[name.partition(A)[0]] = (name, name.replace(A, B))
        elif B not in name:
            raise ValueError(f"{name}: neither A nor B of a plain LoRA layer, so it cannot be averaged")
    lonely = weights.keys() ^ {name for pair in pairs.values() for name in pair}
    if lonely:
        raise ValueError(f"A or B of a layer is missing: {sorted(lonely)[:3]}")
    return pairs
