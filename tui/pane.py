"""What all panes share: a frame with a title, drawn as strips, and one part of the snapshot each."""

from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.segment import Segment
from textual.content import Content
from textual.strip import Strip

from tui.drawn import Drawn
from tui.snapshot import Snapshot
from tui.text import BOLD, CYAN, DIM, shorten

THIN, HEAVY = "╭─╮│╰╯", "┏━┓┃┗┛"  # the active pane has the heavy frame, so that it shows without colour too


class Pane(Drawn):
    """A pane says which part of a snapshot it draws, and how. It draws again only when that part is another."""

    NAME = ""
    number = 0
    active = False
    framed = True  # on a small screen a rule above is all the frame there is

    def __init__(self, number: int) -> None:
        super().__init__(id=type(self).NAME.lower(), classes="pane")
        self.number = number
        self._part: Any = None

    def part(self, snapshot: Snapshot) -> Any:
        raise NotImplementedError

    def title(self) -> str:
        return self.NAME

    def body(self, width: int, height: int) -> Sequence[Content | Strip]:
        raise NotImplementedError

    def move(self, rows: int) -> bool:
        """Take an arrow key, if this pane has something to move in."""
        return False

    def show(self, snapshot: Snapshot) -> None:
        part = self.part(snapshot)
        if part is not self._part and part != self._part:
            self._part = part
            self.redraw()

    def set_frame(self, active: bool, framed: bool) -> None:
        if (active, framed) != (self.active, self.framed):
            self.active, self.framed = active, framed
            self.redraw()

    def draw(self, width: int, height: int) -> list[Content | Strip]:
        corner, rule, end, side, low, low_end = HEAVY if self.active else THIN
        style = CYAN if self.active else DIM
        if not self.framed or width < 12 or height < 4:
            lines = list(self.body(width, height - 1)) if self._part is not None else []
            return [self._top(rule, rule, rule, width, style), *lines]
        lines = list(self.body(width - 4, height - 2))[: height - 2] if self._part is not None else []
        lines += [Content("")] * (height - 2 - len(lines))
        left, right = Segment(f"{side} ", style.rich_style), Segment(f" {side}", style.rich_style)
        return [
            self._top(corner, rule, end, width, style),
            *(Strip([left, *_segments(line, width - 4), right]) for line in lines),
            Content.styled(low + rule * (width - 2) + low_end, style),
        ]

    def _top(self, corner: str, rule: str, end: str, width: int, style) -> Content:
        title = shorten(f"{self.number} {self.title()}", width - 5)
        rest = max(0, width - 5 - cell_len(title))
        return Content.assemble(
            (f"{corner}{rule} ", style), (title, BOLD + style if self.active else BOLD), (f" {rule * rest}{end}", style)
        )


def _segments(line: Content | Strip, width: int) -> list[Segment]:
    strip = line if isinstance(line, Strip) else Strip(line.render_segments())
    return list(strip.adjust_cell_length(width))
