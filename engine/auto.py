"""train.auto: rank, length, batch and room chosen by the number of examples. Pure and light.

The table is for one round on one set of data (METHODS, section 3). It fills in what the user left open: a setting given
in the config or on the command line stays, together with its partner, and is told.
"""

import math
from typing import Any, NamedTuple

from engine.settings import ConfigError, Section, Settings, Train


class Choice(NamedTuple):
    """A row of the table: for fewer than `below` examples."""

    below: float
    rank: int
    alpha: float
    epochs: float
    micro_batch: int
    accumulation: int
    max_length: int


TABLE = (
    Choice(100, 8, 16, 10, 2, 4, 512),
    Choice(500, 16, 32, 5, 2, 4, 640),
    Choice(math.inf, 32, 64, 3, 4, 2, 768),
)
WARMUP_SHARE, WARMUP_MOST = 10, 50  # one step for ten examples, at most fifty


def automatic(settings: Settings, examples: int) -> tuple[Settings, dict[str, Any]]:
    """(settings with what the table chooses for this many training records, {setting: value chosen}).

    What was given explicitly is not touched. Raises ConfigError for a curriculum of several phases, and where the room
    chosen is smaller than a given data.max_summary_length.
    """
    chosen: dict[str, Any] = {}
    for wanted, given in _groups(settings, examples):
        chosen |= {} if given else wanted
    chosen |= _summary_room(settings, examples, chosen.get("data.max_length"))
    return _filled(settings, chosen), chosen


def kept(settings: Settings, examples: int) -> dict[str, Any]:
    """{setting: value} where the table would choose otherwise, had the user not given it. settings: as given."""
    return {
        name: value
        for wanted, given in _groups(settings, examples)
        for name, value in given.items()
        if value != wanted.get(name)
    }


def words(examples: int, chosen: dict[str, Any], kept: dict[str, Any]) -> str:
    """For a person: `106 examples: lora.rank 16, ...; kept as given: data.max_length 320`."""
    listed = ", ".join(f"{name} {value:g}" for name, value in chosen.items()) or "nothing left to choose"
    stays = ", ".join(f"{name} {value:g}" for name, value in kept.items())
    return f"{examples:,} examples: {listed}" + (f"; kept as given: {stays}" if stays else "")


def warmup(train: Train, steps: int) -> int:
    """Warm-up steps of a phase of `steps`: warmup_steps, or the share warmup_ratio rounded up; always fewer than steps."""
    wanted = math.ceil(train.warmup_ratio * steps) if train.warmup_steps is None else train.warmup_steps
    return min(wanted, max(0, steps - 1))


def _groups(settings: Settings, examples: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(what the table says, what the user gave instead) of settings that mean something only together."""
    phases, train = settings.curriculum.phases, settings.train
    if len(phases) > 1:
        names = ", ".join(phase.name for phase in phases)
        raise ConfigError(
            f"train.auto: the epochs it chooses are for one round, and curriculum.phases holds {names}. "
            "Keep one phase, or set train.auto=false and give rank, epochs and batch yourself"
        )
    row = next(row for row in TABLE if examples < row.below)
    batch = {
        "train.per_device_train_batch_size": row.micro_batch,
        "train.gradient_accumulation_steps": row.accumulation,
    }
    length = [
        (
            {f"curriculum.phases.{phase.name}.epochs": row.epochs},
            _given(f"curriculum.phases.{phase.name}", phase, "epochs", "steps"),
        )
        for phase in phases
    ]
    return [
        ({"lora.rank": row.rank, "lora.alpha": row.alpha}, _given("lora", settings.lora, "rank", "alpha")),
        *length,
        (batch, _given("train", train, "per_device_train_batch_size", "gradient_accumulation_steps")),
        ({"data.max_length": row.max_length}, _given("data", settings.data, "max_length")),
        (
            {"train.warmup_steps": min(examples // WARMUP_SHARE, WARMUP_MOST)},
            _given("train", train, "warmup_ratio" if train.warmup_steps is None else "warmup_steps"),
        ),
    ]


def _given(prefix: str, section: Section, *names: str) -> dict[str, Any]:
    """{setting: value} of settings of which the user gave at least one; empty if none."""
    values = {name: value for name in names if (value := getattr(section, name)) is not None}
    if not values.keys() & section.model_fields_set:
        return {}
    return {f"{prefix}.{name}": value for name, value in values.items()}


def _summary_room(settings: Settings, examples: int, room: int | None) -> dict[str, int]:
    """A default data.max_summary_length that would leave nothing for the source is halved to fit."""
    data = settings.data
    if room is None or data.max_summary_length < room:
        return {}
    if "max_summary_length" in data.model_fields_set:
        raise ConfigError(
            f"train.auto: {examples} examples get data.max_length {room}, and data.max_summary_length "
            f"{data.max_summary_length} leaves nothing of it for the source. Lower it, or give data.max_length too"
        )
    return {"data.max_summary_length": room // 2}


def _filled(settings: Settings, chosen: dict[str, Any]) -> Settings:
    changes: dict[str, dict[str, Any]] = {}
    for name, value in chosen.items():
        section, *_, key = name.split(".")
        if section == "curriculum":  # its one phase
            key, value = "phases", tuple(phase.model_copy(update={key: value}) for phase in settings.curriculum.phases)
        changes.setdefault(section, {})[key] = value
    update = {name: getattr(settings, name).model_copy(update=values) for name, values in changes.items()}
    return settings.model_copy(update=update)
