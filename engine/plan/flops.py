"""Arithmetic of a phase, from which time follows once a machine's speed is known. Light."""

import math

from engine.plan.load import Lengths, old_rows, rows_together, step_tokens
from engine.plan.memory import layer_bytes
from engine.plan.shapes import Shape
from engine.settings import Settings


def of_step(settings: Settings, shape: Shape, found: Lengths, phase: int) -> float:
    """Floating point operations of an optimizer step.

    A token costs 2 operations a weight forward and 2 backward (frozen weights have no gradient of their own), 2 more where
    activations are recomputed; attention adds 2 (forward) x 2 products x half the length x width a layer. A replayed row
    with a teacher has one forward more. The last layer works at scored tokens only; logits are made there too, and left out.
    """
    passes = 3 if settings.train.gradient_checkpointing else 2
    rows = settings.batch_records + old_rows(settings, found, phase)
    told = old_rows(settings, found, phase) / rows
    tokens = step_tokens(settings, found, phase)
    layer = 2 * shape.layer_weights + 2 * (tokens / rows) * shape.queries
    layers = shape.layers - 1 + found.mean_summary / found.mean
    return tokens * layers * layer * (passes + told)


def copied_bytes(settings: Settings, shape: Shape, found: Lengths, phase: int) -> float:
    """What layer streaming sends to the device in an optimizer step: every streamed layer once forward and once backward in
    each micro-batch, and forward once more for the teacher of each replayed row that stands in one of its own. The last two are still there when the
    backward pass begins."""
    count = min(settings.model.stream_layers, shape.layers)
    old = old_rows(settings, found, phase)
    rows = settings.batch_records + old
    batches = math.ceil(rows / rows_together(settings, rows, math.ceil(found.mean)))
    passes = count + max(0, count - 2)
    return layer_bytes(settings, shape) * (batches * passes + min(old, batches) * count)
