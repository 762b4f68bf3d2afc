"""What a job makes smaller when its memory does not suffice, and the file beside its spec that says so. Light.

adjusted.yaml maps settings to the values in force, such as train.per_device_train_batch_size: 2; spec.yaml stays frozen.
"""

from pathlib import Path

import yaml

from engine import files
from engine.configs import dump
from engine.settings import ConfigError, Settings, first_line

MICRO, ACCUMULATION = "train.per_device_train_batch_size", "train.gradient_accumulation_steps"
EVALUATE, FISHER = "evaluate.batch_size", "ewc.fisher_batch_size"
SIZES = {
    "training": MICRO,
    "fisher": FISHER,
    "answers": EVALUATE,
    "evaluating": EVALUATE,
}  # what fills memory in a stage
LOADING = {"phase": "training", "fisher": "fisher", "evaluate": "evaluating"}  # what loading is for, per kind of job
NO_MEMORY = (  # as CUDA, cuBLAS, cuDNN, Triton, torch on a CPU, C++ and Linux say it
    "out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "can't allocate memory",
    "cannot allocate memory",
    "bad_alloc",
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, says that memory ran out. Knows torch's error by its name."""
    if error is None:
        return False
    named = isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    told = not isinstance(error, ConfigError) and any(words in str(error).lower() for words in NO_MEMORY)
    return named or told or is_out_of_memory(error.__cause__)


def smaller(batch: int, accumulation: int) -> tuple[int, int] | None:
    """The next smaller micro-batch with the same effective batch: 3 x 6 gives 2 x 9, then 1 x 18; None after 1."""
    effective = batch * accumulation
    size = next((size for size in range(batch - 1, 0, -1) if effective % size == 0), None)
    return (size, effective // size) if size else None


def step_down(kind: str, stage: str, settings: Settings) -> dict[str, int]:
    """{setting: smaller value} for a job that ran out of memory in a stage; empty if nothing can be made smaller.

    Training keeps its effective batch. The other two are halved: the Fisher does not depend on how its documents are
    batched, and summaries are written one by one in any batch.
    """
    size = SIZES.get(LOADING.get(kind, "") if stage == "loading" else stage)
    if kind not in LOADING or size is None:
        return {}
    if size == MICRO:
        found = smaller(settings.train.per_device_train_batch_size, settings.train.gradient_accumulation_steps)
        return dict(zip((MICRO, ACCUMULATION), found, strict=True)) if found else {}
    half = _value(settings, size) // 2
    return {size: half} if half else {}


def apply(settings: Settings, adjusted: dict[str, int]) -> Settings:
    content = dump(settings)
    for name, value in adjusted.items():
        section, _, key = name.partition(".")
        content[section][key] = value
    return Settings.model_validate(content) if adjusted else settings


def read(path: Path) -> dict[str, int]:
    """What was adjusted; empty where nothing was. Raises ConfigError for a file that says something else."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.keys() - {MICRO, ACCUMULATION, EVALUATE, FISHER}:
            raise ValueError("it holds something else than sizes of batches")
        return {name: int(value) for name, value in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {first_line(error)}. Delete it, and retry the job") from None


def write(path: Path, adjusted: dict[str, int]) -> None:
    files.replace(path, yaml.safe_dump(adjusted, sort_keys=False).encode())


def words(settings: Settings, adjusted: dict[str, int]) -> str:
    """What was adjusted, for a person: `NAME 2 (instead of 3)`. settings: those the values replace."""
    return ", ".join(f"{name} {value} (instead of {_value(settings, name)})" for name, value in adjusted.items())


def warning(stage: str, settings: Settings, adjusted: dict[str, int]) -> str:
    """What is now different, when memory has run out in a stage. settings: those it ran out with."""
    text = f"out of memory while {stage}: goes on in a fresh process with {words(settings, adjusted)}"
    if MICRO in adjusted:
        text += f"; a step still has {settings.batch_records} records"
        if settings.losses.diversity:
            text += ", but losses.diversity is taken over a micro-batch, so its value changes"
    return text


def _value(settings: Settings, name: str) -> int:
    section, _, key = name.partition(".")
    return getattr(getattr(settings, section), key)
