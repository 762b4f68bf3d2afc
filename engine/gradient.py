"""The gradient of one optimizer step: forward, losses and backward of its micro-batches, shared among the processes."""

from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from engine import ewc, losses, models
from engine.batches import BASE, Batch, Row, micro_batches
from engine.contrastive import Contrast, Sides
from engine.ewc import Anchor
from engine.losses import Outputs
from engine.mixture import integer
from engine.settings import Settings

COMPONENTS = (
    "cross_entropy", "contrastive", "diversity", "term", "drift", "floor",
    "distil_phase", "distil_base", "distil_documents", "distil_new", "ewc",
)  # fmt: skip


class Learner(NamedTuple):
    """Everything that takes part in a step and outlives it."""

    accelerator: Accelerator
    model: nn.Module
    parameters: list[nn.Parameter]  # all that learns: adapter and projection
    contrast: Contrast | None
    anchors: list[Anchor]
    teachers: list[str]  # adapters beside the student's, and base
    settings: Settings
    pad: int


class Gradient(NamedTuple):
    """What a step's gradient was made of. losses: {component: weighted value}; their sum was minimised.

    figures: what is worth knowing beside the losses. norms: {component: norm of its own gradient}, where measured.
    """

    losses: dict[str, float]
    figures: dict[str, float]
    norms: dict[str, float]


def gradient(learner: Learner, rows: list[Row], step: int, measure: bool = False) -> Gradient:
    """Leave the gradient of a step's rows in the parameters."""
    return gradient_of(learner, cut(learner, rows), step, measure)


def cut(learner: Learner, rows: list[Row]) -> list[Batch]:
    """A step's rows as micro-batches on the host, as for one process; pinned where a GPU fetches them."""
    settings = learner.settings
    if learner.contrast is None:  # then the two sides of a pair need not meet, and rows pack better by length
        rows = [row._replace(pair=None) for row in rows]
    batches = micro_batches(
        rows, settings.train.per_device_train_batch_size, settings.replay.batch_share, learner.pad,
        settings.losses.crossclr.pairs, settings.train.micro_batch_tokens,
    )  # fmt: skip
    return [batch.pinned() for batch in batches] if learner.accelerator.device.type == "cuda" else batches


def gradient_of(learner: Learner, batches: list[Batch], step: int, measure: bool = False) -> Gradient:
    """Leave the gradient of a step's micro-batches in the parameters. A GPU is waited for once, at the end.

    n processes take every n-th micro-batch and add their gradients up, so weights do not depend on n. The dropout of a
    micro-batch follows from (seed, step, its number).
    """
    settings, accelerator = learner.settings, learner.accelerator
    tally = _Tally(learner, measure)
    fresh: list[tuple[int, Sides]] = []
    for number in range(accelerator.process_index, len(batches), accelerator.num_processes):
        torch.manual_seed(integer(settings.train.seed, "dropout", step, number))
        sides = _backward(learner, batches[number].to(accelerator.device), tally)
        fresh += [(number, sides)] if sides else []
    if learner.anchors and accelerator.is_main_process:  # once a step, whatever the accumulation
        if measure:
            tally.note({"distance": ewc.distance(learner.model, learner.anchors[-1])})
        tally.backward({"ewc": ewc.penalty(learner.model, learner.anchors, settings.ewc)})
    if learner.contrast is not None:
        _push(learner, fresh)
    _add_up(accelerator, learner.parameters)
    return tally.result()


def _backward(learner: Learner, batch: Batch, tally: "_Tally") -> Sides | None:
    """Forward and backward of one micro-batch; the sides of its pairs, without gradient."""
    settings, contrast = learner.settings, learner.contrast
    told = models.teacher_log_probabilities(learner.model, batch, learner.teachers)
    paired = contrast is not None and len(batch.pairs) > 0
    logits, states = (
        models.logits_and_states(learner.model, batch, settings.losses.crossclr.pairs == "document_summary")
        if paired
        else (models.summary_logits(learner.model, batch, packed=True), None)
    )
    outputs = Outputs(logits, states, told, learner.model.get_input_embeddings().weight)
    parts, sides = losses.mix(outputs, batch, settings.losses, settings.distil), None
    if paired:
        sides = losses.sides_of(outputs, batch, contrast, settings.losses.crossclr)
        value, figures = losses.contrastive(sides, batch, contrast, settings.losses.crossclr)
        parts["contrastive"] = settings.losses.contrastive * value
        tally.note(figures)
        sides = sides.detach()
    if tally.measure and "floor" not in parts:
        tally.note({"token_entropy": losses.token_entropy(losses.wide(logits.detach()).log_softmax(-1)).mean()})
    tally.backward(parts)
    return sides


class _Tally:
    """Adds up over the micro-batches of a step: losses, figures and, where asked for, the gradient of each loss."""

    def __init__(self, learner: Learner, measure: bool):
        self.learner, self.measure = learner, measure
        self.sums: dict[str, Tensor] = {}  # on the device, where they wait to be read together
        self.flat: dict[str, Tensor] = {}
        self.figures: dict[str, list[Tensor | float]] = {}

    def note(self, figures: dict[str, Tensor | float]) -> None:
        for name, value in figures.items():
            self.figures.setdefault(name, []).append(value.double() if isinstance(value, Tensor) else value)

    def backward(self, parts: dict[str, Tensor]) -> None:
        if self.measure:
            for name, value in parts.items():
                self._add_gradient(name, value)
        self.learner.accelerator.backward(sum(parts.values()))
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().double()

    def _add_gradient(self, name: str, value: Tensor) -> None:
        parameters = self.learner.parameters
        found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        flat = _flat(parameters, found)
        self.flat[name] = self.flat[name] + flat if name in self.flat else flat

    def result(self) -> Gradient:
        accelerator = self.learner.accelerator
        values = torch.zeros(2, len(COMPONENTS), dtype=torch.float64)  # sums, and whether a component was there
        sums, figures = self._read()
        for name, value in sums.items():
            values[:, COMPONENTS.index(name)] = torch.tensor([value, 1.0], dtype=torch.float64)
        if accelerator.num_processes > 1:
            values = accelerator.reduce(values.to(accelerator.device), "sum").cpu()
            every = [figures_of for figures_of in gather_object([figures]) if figures_of]
            names = {name for figures_of in every for name in figures_of}
            figures = {n: sum(f[n] for f in every if n in f) / sum(n in f for f in every) for n in sorted(names)}
        totals, there = values.tolist()
        parts = {name: total for name, total, seen in zip(COMPONENTS, totals, there, strict=True) if seen}
        return Gradient(parts, figures, self._norms(parts) if self.measure else {})

    def _read(self) -> tuple[dict[str, float], dict[str, float]]:
        """Sums of the losses and means of the figures: the one wait for the device in a step."""
        figures = {name: sum(values) / len(values) for name, values in self.figures.items()}
        waiting = [*self.sums.values(), *figures.values()]
        read = _floats(waiting, self.learner.accelerator.device)
        return dict(zip(self.sums, read, strict=False)), dict(zip(figures, read[len(self.sums) :], strict=True))

    def _norms(self, parts: dict[str, float]) -> dict[str, float]:
        parameters, norms = self.learner.parameters, {}
        for name in parts:
            flat = self.flat[name] if name in self.flat else _flat(parameters, [None] * len(parameters))
            norms[name] = self.learner.accelerator.reduce(flat, "sum").norm()
        return dict(zip(norms, _floats(list(norms.values()), self.learner.accelerator.device), strict=True))


def _floats(values: list[Tensor | float], device: torch.device) -> list[float]:
    wide = [torch.as_tensor(value, dtype=torch.float64, device=device) for value in values]
    return torch.stack(wide).tolist() if wide else []


def _flat(parameters: list[nn.Parameter], gradients) -> Tensor:
    pairs = zip(parameters, gradients, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])


def _add_up(accelerator: Accelerator, parameters: list[nn.Parameter]) -> None:
    """The gradients of all processes, summed: each holds its part of one sum, with the denominators of the whole step.

    A parameter that nothing reached (the projection, in a step without pairs) has a gradient of 0, not none: the
    optimizer then moves it by its momentum, whatever the number of processes.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if accelerator.num_processes == 1:
        return
    total = accelerator.reduce(torch.cat([parameter.grad.flatten() for parameter in parameters]), "sum")
    for parameter, part in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
        parameter.grad.copy_(part.view_as(parameter))


def _push(learner: Learner, fresh: list[tuple[int, Sides]]) -> None:
    """The step's pairs join the queue in the order of the micro-batches, in every process alike."""
    if learner.accelerator.num_processes > 1:
        fresh = gather_object([(number, Sides(*(value.cpu() for value in sides))) for number, sides in fresh])
        device = learner.accelerator.device
        fresh = [
            (n, Sides(*(value.to(device) for value in sides))) for n, sides in sorted(fresh, key=lambda item: item[0])
        ]
    learner.contrast.push([sides for _, sides in fresh], learner.settings.losses.crossclr.queue)


def teachers_of(settings: Settings, phases: list[str]) -> list[str]:
    """Whose word a step may need: the adapters of earlier phases, and the base."""
    return [*phases, BASE]
