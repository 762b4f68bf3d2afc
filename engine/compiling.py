"""The decoder layers through torch.compile while a phase trains (train.compile)."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from engine.settings import ConfigError


@contextlib.contextmanager
def compiled(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Each decoder layer by itself, so that one graph serves them all; lengths are dynamic, so that it serves every batch.

    Dropout then draws from torch.compile's own stream: as random, and again the same for the same (seed, step), but other
    masks than without. Undone at the end, since a compiled layer does not see the hooks of the Fisher. Raises ConfigError
    for a model whose layers are not found.
    """
    if not wanted:
        yield
        return
    layers = getattr(model.get_base_model().get_decoder(), "layers", None)
    if layers is None:
        raise ConfigError("train.compile: this model does not list its layers. Set it to false")
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # that of its class is there again


def paused(wanted: bool = True):
    """Compiled layers as they are written: for what has other shapes (generation), or goes backward more than once."""
    return torch.compiler.set_stance("force_eager") if wanted else contextlib.nullcontext()
