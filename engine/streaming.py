"""Frozen layers that wait in host memory and visit the device when it is their turn.

A frozen weight never changes, so its copy on the device can be dropped after the layer's forward pass and brought back
when the gradient of the layer's output arrives. Losses and gradients are those of a resident model, to the last bit.
Needs layers that recompute their activations (what autograd would keep of a dropped weight would be empty), and module
hooks that stay outside the recomputed part, as in transformers 5. On a GPU the copies come from pinned memory on a
stream of their own, and the copy of the next layer goes on while a layer computes: see `Lane`. Without a GPU a layer is
copied when it is its turn.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn

from engine.settings import ConfigError

ALIGNED = 256  # bytes; where a weight may start within a place


class Lane:
    """Two places on a GPU that the streamed layers take in turns, and the stream that fills them.

    A place is asked for while the layer that had it last is done with: all its work is queued. So the copy waits for what
    is queued by then, and goes on beside what is queued after.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.layers: list[_Streamed] = []
        self.places: list[Tensor] = []
        self.holds: list[_Streamed | None] = [None, None]
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def fetch(self, layer: _Streamed) -> None:
        """Start to copy a layer into its place, unless it is there."""
        place = layer.number % 2
        if self.holds[place] is layer:
            return
        self.holds[place] = layer
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            layer.copy_to(self.views(layer))

    def wait(self) -> None:
        """What is queued from now on waits for the copies."""
        torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def views(self, layer: _Streamed) -> dict[nn.Parameter, Tensor]:
        """The weights of a layer as parts of its place, in the types that its parameters have by now."""
        if not self.places:
            largest = max(sum(one.sizes().values()) for one in self.layers)
            self.places = [torch.empty(largest, dtype=torch.uint8, device=self.device) for _ in range(2)]
        views, start = {}, 0
        for weight, room in layer.sizes().items():
            size = weight.element_size() * layer.masters[weight].numel()
            part = self.places[layer.number % 2][start : start + size]
            views[weight] = part.view(weight.dtype).view(layer.masters[weight].shape)
            start += room
        return views


class _Streamed:
    """One layer: the host copies of its frozen weights are the masters. A copy on the device has the type that its
    parameter has by then, which engine.products.narrow may have changed. number: its place in the order of the layers;
    before, after: its neighbours among those that are streamed."""

    before: _Streamed | None = None
    after: _Streamed | None = None

    def __init__(self, layer: nn.Module, device: torch.device, number: int, lane: Lane | None):
        self.device, self.number, self.lane = device, number, lane
        self.masters = {weight: _host(weight.data, device) for weight in layer.parameters() if not weight.requires_grad}
        self.drop()
        layer.register_forward_pre_hook(self._before)
        layer.register_forward_hook(self._after)

    @property
    def is_present(self) -> bool:
        return any(weight.numel() for weight in self.masters)

    def bring(self, following: _Streamed | None = None) -> None:
        """The weights on the device. following: the layer whose turn is next; its copy starts now."""
        if self.lane:
            self.lane.fetch(self)
            self.lane.wait()
            for weight, view in self.lane.views(self).items():
                weight.data = view
            if following:
                self.lane.fetch(following)
        elif not self.is_present:
            for weight, master in self.masters.items():
                weight.data = master.to(self.device, weight.dtype, copy=True)

    def sizes(self) -> dict[nn.Parameter, int]:
        """Bytes that each weight takes of a place."""
        exact = {weight: master.numel() * weight.element_size() for weight, master in self.masters.items()}
        return {weight: size + -size % ALIGNED for weight, size in exact.items()}

    def copy_to(self, views: dict[nn.Parameter, Tensor]) -> None:
        """Masters in another type than the weights are changed once: what is converted on the way is waited for."""
        for weight, view in views.items():
            if self.masters[weight].dtype != view.dtype:
                self.masters[weight] = _host(self.masters[weight].to(view.dtype), self.device)
            view.copy_(self.masters[weight], non_blocking=True)

    def drop(self) -> None:
        for weight in self.masters:
            weight.data = torch.empty(0, dtype=weight.dtype, device=self.device)

    def _before(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.bring(self.after)
        if torch.is_grad_enabled() and inputs[0].requires_grad:
            inputs[0].register_hook(lambda gradient: self.drop())  # the layer's backward pass is done

    def _after(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.drop()
        if torch.is_grad_enabled() and output.requires_grad:
            output.register_hook(lambda gradient: self.bring(self.before))  # the recomputation is about to start


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
    lane = Lane(device) if device.type == "cuda" else None
    streamed = [
        _Streamed(layers[which], device, number, lane) for number, which in enumerate(chosen(len(layers), count))
    ]
    if lane:
        lane.layers = streamed
    for one, other in pairwise(streamed):
        one.after, other.before = other, one
    return streamed


def chosen(layers: int, count: int) -> Iterable[int]:
    """Numbers of `count` layers, evenly spread over all."""
    count = min(count, layers)
    return sorted({number * layers // count for number in range(count)}) if count else []


def _host(values: Tensor, device: torch.device) -> Tensor:
    return values.cpu().pin_memory() if device.type == "cuda" else values.cpu()
