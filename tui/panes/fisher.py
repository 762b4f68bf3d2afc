"""Pane 5: what the Fisher information holds, and how hard it holds against what is learnt now."""

from textual.content import Content

from tui import figures
from tui.pane import Pane
from tui.snapshot import Fisher, PhaseFisher, Snapshot
from tui.text import BOLD, CYAN, DIM, pad, parts, shorten, wrapped

EMPTY = "None yet: it is taken when a phase ends, if ewc.lambda is above 0."
LEVELS = "▁▂▃▄▅▆▇█"


class FisherPane(Pane):
    NAME = "Fisher"

    def part(self, snapshot: Snapshot) -> Fisher:
        return snapshot.fisher

    def title(self) -> str:
        last = self._part.phases[-1:] if self._part else ()
        return f"Fisher · {last[0].phase}" if last else "Fisher"

    def body(self, width: int, height: int) -> list[Content]:
        part: Fisher = self._part
        if not part.phases and part.penalty is None:
            return [Content.styled(text, DIM) for text in wrapped(EMPTY, width, height)]
        *earlier, last = part.phases or (None,)
        before = [_earlier(phase, width) for phase in earlier]
        penalty = _penalty(part, width)
        now = _last(last, width, max(0, height - len(penalty) - len(before))) if last else []
        return [*now, *before, *penalty]


def _last(phase: PhaseFisher, width: int, height: int) -> list[Content]:
    count = f" {phase.done}/{phase.total}"
    lines = [parts((figures.bar(phase.done, phase.total, max(0, width - len(count))), CYAN), count)]
    if phase.trace is not None:
        lines.append(parts("trace ", (figures.number(phase.trace), BOLD), (" per token", DIM)))
    name_width = max((len(name) for name, _ in phase.shares), default=0)
    name_width = min(name_width, width // 2)
    if len(phase.shares) > height - len(lines) and len(lines) < height:
        words = "  ".join(f"{name} {100 * share:.0f} %" for name, share in phase.shares)
        return [*lines, *(Content(text) for text in wrapped(words, width, height - len(lines)))]
    most = max((share for _, share in phase.shares), default=1)
    for name, share in phase.shares:
        amount = f"{100 * share:3.0f} % "
        cells = max(0, width - name_width - 1 - len(amount))
        lines.append(parts(pad(name, name_width) + " ", amount, ("█" * round(cells * share / most), CYAN)))
    return lines[:height]


def _earlier(phase: PhaseFisher, width: int) -> Content:
    return Content.styled(
        shorten(f"{phase.phase}: {phase.done} documents, trace {figures.number(phase.trace)}", width), DIM
    )


def _penalty(part: Fisher, width: int) -> list[Content]:
    """The penalty as a share of the cross-entropy: now, and over the run."""
    if not part.ratios:
        return []
    words = f"penalty/ce {figures.percent(part.ratios[-1])} "
    return [
        parts(
            "penalty/ce ", (figures.percent(part.ratios[-1]), BOLD), " ", (spark(part.ratios, width - len(words)), CYAN)
        )
    ]


def spark(values: tuple[float, ...], cells: int) -> str:
    """Means of the values in so many cells, as bars of eighths; 0 is the bottom."""
    cells = min(cells, 24, len(values))
    if cells <= 0:
        return ""
    groups = [values[k * len(values) // cells : (k + 1) * len(values) // cells] for k in range(cells)]
    means = [sum(group) / len(group) for group in groups]
    top = max(means)
    return "".join(LEVELS[min(7, int(8 * mean / top))] if top > 0 and mean > 0 else LEVELS[0] for mean in means)
