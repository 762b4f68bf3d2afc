"""At the end of a phase: how much of it to keep. The adapters before and after it are averaged as updates, by a weight
chosen on development documents. Source: METHODS, section 8."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from engine import development, models
from engine.averaging import average_all
from engine.corpus.records import Record
from engine.evaluation.table import METRICS
from engine.events import Evaluated, Stage, Warned
from engine.gradient import Learner
from engine.material import Material
from engine.settings import Settings
from engine.work import Work

HUNDREDTH = 0.01  # of a nat: the unit of average.margin where the metric is nll
Scores = dict[str, dict[str, float]]


def blend(work: Work, learner: Learner, material: Material, held: Sequence[Record], start: Path | None) -> dict:
    """Leave the chosen average in the model; {weight, error, scores: {weight: development scores}} for about.json.

    Nothing happens, and {} is returned, without average.weights or in a first phase.
    """
    settings = work.settings
    if not settings.average.weights or start is None:
        return {}
    work.emit(Stage("averaging"))
    before, after, scales = _adapter(start), _factors(learner), models.scales(learner.model)
    candidates, tried = {}, {}
    for weight in sorted({0.0, *settings.average.weights}):
        candidates[weight] = average_all(before, after, weight, scales) if weight < 1 else (after, 0.0)
        _put(learner, candidates[weight][0])
        tried[weight] = development.scores(learner.accelerator, learner.model, material.encoder, held, settings)
        work.emit(
            Evaluated(f"{work.run}/{work.phase} x {weight:g}", development.NAME, tried[weight], material.plan.steps)
        )
    chosen = choose(tried, old_columns(settings, work.phase), settings)
    factors, error = candidates[chosen]
    _put(learner, factors)
    if chosen < 1:
        said = f"the adapter is {chosen:g} of this phase's and {1 - chosen:g} of that before it, chosen on development documents"
        work.emit(Warned(f"{said}; rank {settings.lora.rank} loses {100 * error:.1f} % of that update"))
    return {"weight": chosen, "error": error, "scores": {f"{weight:g}": found for weight, found in tried.items()}}


def old_columns(settings: Settings, phase: str) -> list[str]:
    """Columns that a phase before this one has trained."""
    earlier = []
    for other in settings.curriculum.phases:
        if other.name == phase:
            break
        earlier += [source for source, share in other.mixture.items() if share]
    return [column for column in ("papers", "videos") if column in earlier or "pairs" in earlier]


def choose(tried: dict[float, Scores], old: Sequence[str], settings: Settings) -> float:
    """The weight with the best development score among those under which no old column falls more than the margin below
    the model before the phase (weight 0); if there is none, the one under which the worst of them falls least."""
    metric = settings.evaluate.metric
    sign, unit = METRICS[metric].better, HUNDREDTH if metric == "nll" else 1.0

    def worst_fall(weight: float) -> float:
        falls = [sign * (tried[0.0][c][metric] - tried[weight][c][metric]) for c in old if c in tried[0.0]]
        return max(falls, default=0.0)

    weights = sorted(settings.average.weights)
    allowed = [weight for weight in weights if worst_fall(weight) <= settings.average.margin * unit]
    if allowed:
        return max(allowed, key=lambda weight: (development.overall(tried[weight], metric), weight))
    return min(weights, key=worst_fall)


def _adapter(folder: Path) -> dict[str, torch.Tensor]:
    """The factors of a checkpoint under the names they have in the model."""
    stored = load_file(folder / "adapter_model.safetensors")
    return {f"{name.removesuffix('.weight')}.{models.STUDENT}.weight": value for name, value in stored.items()}


def _factors(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in models.trainable(learner.model).items()}


def _put(learner: Learner, factors: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in models.trainable(learner.model).items():
            parameter.copy_(factors[name])
