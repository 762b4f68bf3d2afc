"""The recipes that `make bench-forgetting` compares, all as overrides of one config: same base, data, steps and batches."""

from dataclasses import dataclass
from typing import NamedTuple


class Stage(NamedTuple):
    """A phase of a recipe: shares of the sources, and optimizer steps."""

    papers: float
    videos: float
    pairs: float
    steps: int


@dataclass(frozen=True)
class Recipe:
    name: str
    block: str  # the table it stands in
    stages: tuple[Stage, ...]
    changes: tuple[str, ...]  # overrides of the full recipe
    seeds: int
    says: str = ""  # what is different, for the report


FIRST, SECOND, THIRD = Stage(1.0, 0.0, 0.0, 200), Stage(0.5, 0.4, 0.1, 80), Stage(0.3, 0.6, 0.1, 80)
CURRICULUM = (FIRST, SECOND, THIRD)
SEQUENTIAL = (FIRST, Stage(0.0, 1.0, 0.0, 160))
# paper draws of the curriculum: 200 + 0.6 * 80 + 0.4 * 80 steps (a pair holds a paper too); all draws: 360 steps
PAPER_DRAWS, ALL_DRAWS = Stage(1.0, 0.0, 0.0, 280), Stage(1.0, 0.0, 0.0, 360)
JOINT = Stage(0.733, 0.222, 0.045, 360)

NO_EXTRAS = ("losses.contrastive=0", "losses.diversity=0", "losses.term=0")
NO_REPLAY = ("replay.batch_share=0",)
NO_EWC = ("ewc.lambda=0",)
NO_DISTILLATION = ("distil.phase=0",)
NO_BASE_REPLAY = ("distil.base=0",)
NO_DOCUMENTS = ("distil.documents=0",)
BARE = (*NO_EXTRAS, *NO_REPLAY, *NO_EWC, *NO_DISTILLATION, *NO_BASE_REPLAY, *NO_DOCUMENTS)
LAMBDAS = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0, 10000.0)  # per token; 0 is `sequential`
AS_GIVEN = (
    "losses.contrastive=0.3", *NO_DISTILLATION, *NO_BASE_REPLAY, *NO_DOCUMENTS,
    "ewc.lambda=400", "ewc.unit=token_mean_sequence", "ewc.space=factor",
)  # fmt: skip


def without(changes: tuple[str, ...], *dropped: str) -> tuple[str, ...]:
    return tuple(change for change in changes if change not in dropped)


def _sweep() -> list[Recipe]:
    return [
        Recipe(
            f"EWC {space}, lambda {value:g}", "sweep", SEQUENTIAL,
            (*without(BARE, *NO_EWC), f"ewc.lambda={value}", "ewc.unit=per_token", f"ewc.space={space}"), 2,
        )
        for space in ("factor", "product")
        for value in LAMBDAS
        if value
    ]  # fmt: skip


def _without_each() -> list[Recipe]:
    dropped = {
        "contrastive": ("losses.contrastive=0",),
        "diversity": ("losses.diversity=0",),
        "term": ("losses.term=0",),
        "EWC": NO_EWC,
        "replay": NO_REPLAY,
        "distillation": NO_DISTILLATION,
        "base replay": NO_BASE_REPLAY,
        "document replay": NO_DOCUMENTS,
    }
    return [Recipe(f"full without {name}", "without", CURRICULUM, changes, 2) for name, changes in dropped.items()]


MAIN = [
    Recipe("full recipe", "curriculum", CURRICULUM, (), 5, "configs/pocket.yaml"),
    Recipe("naive papers, as many paper draws", "naive", (PAPER_DRAWS,), BARE, 5),
    Recipe("naive papers, as many draws", "naive", (ALL_DRAWS,), BARE, 5),
    Recipe("curriculum only", "curriculum", CURRICULUM, BARE, 5, "the three phases, nothing else"),
    Recipe("recipe as given", "curriculum", CURRICULUM, AS_GIVEN, 5, "medical_as_given.yaml's protection"),
    Recipe("sequential", "sequential", SEQUENTIAL, BARE, 5, "papers, then videos"),
    Recipe("joint", "naive", (JOINT,), BARE, 3, "all data at once"),
    Recipe("+ replay 10 %", "sequential", SEQUENTIAL, without(BARE, *NO_REPLAY), 5),
    Recipe("+ replay 1 %", "sequential", SEQUENTIAL, (*without(BARE, *NO_REPLAY), "replay.batch_share=0.01"), 3),
    Recipe(
        "+ replay 10 % and distillation", "sequential", SEQUENTIAL,
        (*without(BARE, *NO_REPLAY, *NO_DISTILLATION), "distil.phase=1.0"), 3,
    ),
    Recipe("learning without forgetting", "sequential", SEQUENTIAL, (*BARE, "distil.new=1.0"), 3, "KL on new records"),
    Recipe(
        "L2 on the update", "sequential", SEQUENTIAL,
        (*without(BARE, *NO_EWC), "ewc.importance=uniform", "ewc.space=product", "ewc.lambda=0.1", "ewc.unit=per_token"), 3,
    ),
]  # fmt: skip
UNIFORM = [
    Recipe(
        f"L2 on the update, lambda {value:g}", "sequential", SEQUENTIAL,
        (*without(BARE, *NO_EWC), "ewc.importance=uniform", "ewc.space=product", f"ewc.lambda={value}", "ewc.unit=per_token"), 2,
    )
    for value in (0.03, 0.3)
]  # fmt: skip
MIXED = [
    Recipe(
        f"EWC product, lambda {value:g}, beside replay", "beside", SEQUENTIAL,
        (*without(BARE, *NO_EWC, *NO_REPLAY), f"ewc.lambda={value}", "ewc.unit=per_token", "ewc.space=product"), 2,
    )
    for value in (1.0, 100.0)
]  # fmt: skip
RECIPES = [*MAIN, *UNIFORM, *_sweep(), *_without_each(), *MIXED]
