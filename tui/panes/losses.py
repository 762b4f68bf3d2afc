"""Pane 2: every component of the loss and their sum, over the steps of the whole run."""

from textual.content import Content
from textual.strip import Strip

from tui import figures
from tui.chart import Curve, Picture, draw
from tui.pane import Pane
from tui.snapshot import Losses, Snapshot


class LossesPane(Pane):
    NAME = "Losses"
    log = False

    def part(self, snapshot: Snapshot) -> Losses:
        return snapshot.losses

    def toggle_log(self) -> None:
        self.log = not self.log
        self.redraw()

    def title(self) -> str:
        part: Losses = self._part or Losses()
        words = ["Losses", "nats per token"]
        if part.phase:
            words = ["Losses", part.phase, f"step {part.step:,}/{part.steps:,}"]
        return " · ".join([*words, "log" if self.log else ""]).removesuffix(" · ")

    def body(self, width: int, height: int) -> list[Strip | Content]:
        part: Losses = self._part
        return draw(_picture(part, self.log), width, height)


def _picture(part: Losses, log: bool) -> Picture:
    series = part.series
    if len(series) == 2:
        series = {name: values for name, values in series.items() if name != "sum"}  # it is the only component
    total = sum(phase.steps for phase in part.phases)
    notes = []
    if part.lr is not None:
        notes = [
            f"rate {figures.number(part.lr)}",
            f"grad {figures.number(part.grad_norm)} {figures.number(part.tokens_per_second)} tok/s",
        ]
    last = max((xs[-1] for xs, _ in series.values()), default=0)
    return Picture(
        tuple(
            Curve(name, xs, ys) for name, (xs, ys) in series.items() if xs[-1] > last - part.steps or len(series) < 9
        ),
        x_limits=(0, total) if total else None,
        marks=tuple((phase.start, phase.name) for phase in part.phases),
        notes=("", *notes),
        log=log,
        empty="No losses yet: they appear with the first steps of a phase.",
    )
