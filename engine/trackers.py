"""The losses for trackers that a user runs already (train.report_to), through accelerate. None by default."""

from collections.abc import Sequence

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from engine.configs import leaves
from engine.events import Step
from engine.settings import ConfigError, Settings
from engine.work import Work


def demand(names: Sequence[str]) -> list[str] | None:
    """The trackers, if their packages are installed. Raises ConfigError that says which is not."""
    missing = sorted(set(names) - {str(tracker) for tracker in get_available_trackers()})
    if missing:
        raise ConfigError(
            f"train.report_to: {', '.join(missing)} is not installed here. pip install {' '.join(missing)}, or set train.report_to=[]"
        )
    return list(names) or None


def start(accelerator: Accelerator, work: Work, settings: Settings) -> None:
    """Open a run named after ours, with every setting as text."""
    if settings.train.report_to:
        config = {name: str(value) for name, value in leaves(settings)}
        accelerator.init_trackers(f"{work.run}-{work.phase}", config=config)


def log(accelerator: Accelerator, step: Step, before: int) -> None:
    """One step, counted over the run: `before` steps were done by earlier phases."""
    if accelerator.trackers:
        rest = {
            "total": step.total,
            "lr": step.lr,
            "grad_norm": step.grad_norm,
            "tokens_per_second": step.tokens_per_second,
        }
        norms = {f"norm/{name}": value for name, value in step.norms.items()}
        losses = {f"loss/{name}": value for name, value in step.losses.items()}
        accelerator.log(losses | norms | step.figures | rest, step=before + step.step)


def finish(accelerator: Accelerator) -> None:
    """Close the trackers; accelerate's own end_training would close the processes' connection too."""
    for tracker in accelerator.trackers:
        tracker.finish()
