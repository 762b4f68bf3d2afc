"""What a phase keeps an eye on while it trains: infinities, spikes, the penalty's window, and when to stop early."""

import math
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from engine.gradient import Gradient
from engine.settings import ConfigError, Train

PENALTY_WINDOW = (0.01, 0.1)  # of the cross-entropy; METHODS, section 9
RECENT = 50  # steps whose median a spike is measured by
ENOUGH = 10  # steps before a median says anything


@dataclass
class Watch:
    """Its fields lie in every step checkpoint, so that a resumed phase watches as if nothing had happened."""

    totals: list[float] = field(default_factory=list)
    spikes: int = 0  # in a row
    told: list[str] = field(default_factory=list)  # warnings that are given once
    scores: list[tuple[int, float]] = field(default_factory=list)  # (step, development score, higher is better)

    def state(self) -> dict:
        return asdict(self)

    def refuse_infinite(self, found: Gradient, step: int) -> None:
        """Stop before the weights are touched; the last checkpoint stays good. Raises ConfigError."""
        bad = [name for name, value in found.losses.items() if not math.isfinite(value)]
        if bad:
            raise ConfigError(
                f"step {step}: {' and '.join(bad)} is {found.losses[bad[0]]}. The weights are those of the step before; "
                "lower train.learning_rate (or ewc.lambda) and retry"
            )

    def refuse_spikes(self, found: Gradient, step: int, train: Train) -> str | None:
        """A warning at the first spike of a row. Raises ConfigError at the last that is borne, before the weights are
        touched."""
        total = sum(found.losses.values())
        usual = statistics.median(self.totals) if len(self.totals) >= ENOUGH else math.inf
        if total <= train.spike_factor * max(usual, 0.0):
            self.totals = [*self.totals, total][-RECENT:]
            self.spikes = 0
            return None
        self.spikes += 1
        said = f"step {step}: the total loss is {total:.3g}, {total / usual:.1f} times the median of the last steps ({usual:.3g})"
        if self.spikes >= train.spike_patience:
            raise ConfigError(
                f"{said}, for the {self.spikes}th step in a row. The last checkpoint is from before or within the spike; "
                "lower train.learning_rate, or raise train.spike_patience, and retry"
            )
        return f"{said}; the phase stops after {train.spike_patience} such steps in a row" if self.spikes == 1 else None

    def warnings(self, found: Gradient, step: int, steps: int, anchored: bool) -> Iterator[str]:
        """What the figures of a step say, each thing once."""
        if anchored and step == max(1, steps // 10):
            yield from penalty_warning(found.losses)
        pruned = found.figures.get("pruned", 0.0)
        if pruned > 0.5:
            yield from self._once(
                "pruned",
                f"CrossCLR prunes {100 * pruned:.0f} % of its samples as influential: raise losses.crossclr.prune_above",
            )
        reference = found.norms.get("cross_entropy")
        for name, norm in found.norms.items():
            if reference and norm > reference:
                yield from self._once(
                    f"norm {name}",
                    f"step {step}: the gradient of {name} ({norm:.2g}) is larger than that of cross_entropy ({reference:.2g}): "
                    "consider a lower weight",
                )

    def _once(self, key: str, message: str) -> Iterator[str]:
        if key not in self.told:
            self.told.append(key)
            yield message

    @property
    def best(self) -> int | None:
        """The step with the best development score; the first of equals."""
        return max(self.scores, key=lambda item: item[1])[0] if self.scores else None

    def is_over(self, train: Train) -> bool:
        """True once `early_stopping_patience` evaluations in a row brought nothing better."""
        if not train.early_stopping_patience or not self.scores:
            return False
        position = [step for step, _ in self.scores].index(self.best)
        return len(self.scores) - 1 - position >= train.early_stopping_patience


def restored(state: dict) -> Watch:
    """The watch of a step checkpoint."""
    return Watch(**state | {"scores": [tuple(item) for item in state["scores"]]})


def penalty_warning(values: dict[str, float]) -> Iterator[str]:
    """After a tenth of a phase (the penalty starts at 0): is lambda in the window where it does something, and not all?"""
    share = values["ewc"] / values["cross_entropy"] if values.get("cross_entropy") else math.inf
    low, high = PENALTY_WINDOW
    if not low <= share <= high:
        remedy = "raise ewc.lambda if the old phase is forgotten"
        if share > high:
            remedy = "lower ewc.lambda if the new one is not learnt"
        yield f"the EWC penalty is {100 * share:.2g} % of the cross-entropy (1-10 % is usual): {remedy}"
