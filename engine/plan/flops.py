"""Arithmetic of a phase, from which time follows once a machine's speed is known. Light."""

from engine.plan.load import Lengths, old_rows, step_tokens
from engine.plan.shapes import Shape
from engine.settings import Settings


def of_step(settings: Settings, shape: Shape, found: Lengths, phase: int) -> float:
    """Floating point operations of an optimizer step.

    A token costs 2 operations a weight forward and 2 backward (frozen weights have no gradient of their own), 2 more where
    activations are recomputed; attention adds 2 (forward) x 2 products x half the length x width a layer. A replayed row
    with a teacher has one forward more. Logits are made at scored tokens only and left out.
    """
    passes = 3 if settings.train.gradient_checkpointing else 2
    rows = settings.batch_records + old_rows(settings, found, phase)
    told = old_rows(settings, found, phase) / rows
    tokens = step_tokens(settings, found, phase)
    layer = 2 * shape.layer_weights + 2 * (tokens / rows) * shape.queries
    return tokens * shape.layers * layer * (passes + told)
