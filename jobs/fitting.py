"""What could be changed so that a config fits, and what each change saves. Light."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from engine.configs import dump
from engine.plan.shapes import Shape
from engine.settings import Settings
from jobs.adjust import smaller

LEAST = 0.005  # GiB: a change that saves less is not worth a line
STREAM_STEP = 4  # layers more, each time streaming alone does not suffice


@dataclass(frozen=True)
class Change:
    """override: as it stands on the command line; gib: saved, at the peak of all stages."""

    override: str
    gib: float


Peak = Callable[[Settings], float]


def single(settings: Settings, shape: Shape, peak: Peak, device: str) -> list[Change]:
    """Every change on its own that saves something, the largest saving first."""
    now = peak(settings)
    found = [Change(_words(change), round(now - peak(one), 3)) for change, one in candidates(settings, shape, device)]
    return sorted((change for change in found if change.gib >= LEAST), key=lambda change: -change.gib)


def together(settings: Settings, shape: Shape, peak: Peak, room: float, device: str) -> list[dict[str, Any]] | None:
    """Changes one after another, the harmless ones first, until it fits; None if nothing helps.

    Those that proved needless in the end are left out.
    """
    taken: list[dict[str, Any]] = []
    now = settings
    for _ in range(40):
        if peak(now) <= room:
            return _needed(settings, taken, peak, room)
        better = next(
            ((change, one) for change, one in candidates(now, shape, device) if peak(one) < peak(now) - LEAST),
            None,
        )
        if better is None:
            return None
        taken, now = [*taken, better[0]], better[1]
    return None


def _needed(settings: Settings, taken: list[dict[str, Any]], peak: Peak, room: float) -> list[dict[str, Any]]:
    kept = list({tuple(change): change for change in taken}.values())  # of several of one kind the last
    for change in list(kept):
        rest = [other for other in kept if other is not change]
        if _is_valid(settings, rest) and peak(changed(settings, rest)) <= room:
            kept = rest
    return kept


def _is_valid(settings: Settings, changes: list[dict[str, Any]]) -> bool:
    """Whether none of the changes hangs on one that is left out."""
    try:
        changed(settings, changes)
    except ValidationError:
        return False
    return True


def candidates(settings: Settings, shape: Shape, device: str) -> list[tuple[dict[str, Any], Settings]]:
    """(change, settings with it), first what leaves the result as it is, last what changes it."""
    train, model = settings.train, settings.model
    changes: list[dict[str, Any]] = []
    if train.gradient_norms_steps:
        changes.append({"train.gradient_norms_steps": 0})
    if settings.ewc.lambda_ and settings.ewc.fisher_batch_size > 1:
        changes.append({"ewc.fisher_batch_size": settings.ewc.fisher_batch_size // 2})
    if settings.evaluate.batch_size > 1:
        changes.append({"evaluate.batch_size": settings.evaluate.batch_size // 2})
    if not train.gradient_checkpointing:
        changes.append({"train.gradient_checkpointing": True})
    if less := smaller(train.per_device_train_batch_size, train.gradient_accumulation_steps):
        changes.append({"train.per_device_train_batch_size": less[0], "train.gradient_accumulation_steps": less[1]})
    if device == "cuda" and train.gradient_checkpointing and not train.checkpoint_offload:
        changes.append({"train.checkpoint_offload": True})
    if model.dtype == "float32":
        changes.append({"model.dtype": "bfloat16"})
    if device == "cuda" and not model.quantize and not model.stream_layers and not model.build:
        changes += [{"model.quantize": "int8"}, {"model.quantize": "nf4"}]
    if device == "cuda" and train.gradient_checkpointing and not model.quantize and model.stream_layers < shape.layers:
        changes.append({"model.stream_layers": min(shape.layers, model.stream_layers + STREAM_STEP)})
    if settings.lora.dropout:
        changes.append({"lora.dropout": 0.0})
    if settings.lora.rank > 8:
        changes.append({"lora.rank": settings.lora.rank // 2})
    if settings.data.max_length // 2 > settings.data.max_summary_length:
        changes.append({"data.max_length": settings.data.max_length // 2})
    return [(change, changed(settings, [change])) for change in changes]


def changed(settings: Settings, changes: list[dict[str, Any]]) -> Settings:
    """The settings with some changes, {setting: value} each; the last word on a setting counts."""
    content = dump(settings)
    for change in changes:
        for name, value in change.items():
            section, _, key = name.partition(".")
            content[section][key] = value
    return Settings.model_validate(content)


def _words(change: dict[str, Any]) -> str:
    return " ".join(
        f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in change.items()
    )


def words(changes: list[dict[str, Any]] | None) -> str:
    """A list of changes as overrides; the last word on a setting counts."""
    if changes is None:
        return ""
    merged: dict[str, Any] = {}
    for change in changes:
        merged |= change
    return _words(merged)
