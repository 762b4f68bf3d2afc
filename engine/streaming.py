"""Frozen layers that wait in host memory and visit the device when it is their turn.

A frozen weight never changes, so its copy on the device can be dropped after the layer's forward pass and brought back
when the gradient of the layer's output arrives. Losses and gradients are those of a resident model, to the last bit.
Needs layers that recompute their activations (what autograd would keep of a dropped weight would be empty), and module
hooks that stay outside the recomputed part, as in transformers 5. On a GPU the copies come from pinned memory on the
stream that computes: nothing is hidden behind it, and a step waits for every copy.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from engine.settings import ConfigError


class _Streamed:
    """One layer: the host copies of its frozen weights are the masters. A copy on the device has the type that its
    parameter has by then, which engine.products.narrow may have changed."""

    def __init__(self, layer: nn.Module, device: torch.device):
        self.device = device
        self.masters = {weight: _host(weight.data, device) for weight in layer.parameters() if not weight.requires_grad}
        self.drop()
        layer.register_forward_pre_hook(self._before)
        layer.register_forward_hook(self._after)

    @property
    def is_present(self) -> bool:
        return any(weight.numel() for weight in self.masters)

    def bring(self) -> None:
        if not self.is_present:
            for weight, master in self.masters.items():
                weight.data = master.to(self.device, weight.dtype, non_blocking=True, copy=True)

    def drop(self) -> None:
        for weight in self.masters:
            weight.data = torch.empty(0, dtype=weight.dtype, device=self.device)

    def _before(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.bring()
        if torch.is_grad_enabled() and inputs[0].requires_grad:
            inputs[0].register_hook(lambda gradient: self.drop())  # the layer's backward pass is done

    def _after(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.drop()
        if torch.is_grad_enabled() and output.requires_grad:
            output.register_hook(lambda gradient: self.bring())  # the recomputation is about to start


def stream(base: nn.Module, count: int, device: torch.device) -> list[_Streamed]:
    """Let `count` decoder layers of a frozen base on the host wait there; the rest may then move to the device.

    They are spread evenly, so that streamed and resident layers take turns. Raises ConfigError for a model whose layers
    are not found.
    """
    layers = getattr(base.get_decoder(), "layers", None)
    if layers is None:
        raise ConfigError(
            "model.stream_layers: this model does not list its layers. Set it to 0, or use model.quantize"
        )
    return [_Streamed(layers[number], device) for number in chosen(len(layers), count)]


def chosen(layers: int, count: int) -> Iterable[int]:
    """Numbers of `count` layers, evenly spread over all."""
    count = min(count, layers)
    return sorted({number * layers // count for number in range(count)}) if count else []


def _host(values: Tensor, device: torch.device) -> Tensor:
    return values.cpu().pin_memory() if device.type == "cuda" else values.cpu()
