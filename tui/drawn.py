"""A widget made of strips that repaints only the cells that changed: a slow line pays for news alone."""

from collections.abc import Sequence
from itertools import takewhile

from textual.content import Content
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget


class Drawn(Widget):
    """Subclasses say what is there in `draw`; `redraw` compares it with what the terminal already shows."""

    def __init__(self, **arguments) -> None:
        super().__init__(**arguments)
        self._strips: list[Strip] = []

    def draw(self, width: int, height: int) -> Sequence[Content | Strip]:
        raise NotImplementedError

    def redraw(self) -> None:
        """Draw again, and send what is new."""
        if not (self.is_mounted and self.size.width and self.size.height):
            return
        old, self._strips = self._strips, self._drawn()
        same_size = len(old) == len(self._strips) and old[0].cell_length == self.size.width
        if not same_size:
            self.refresh()
            return
        regions = [
            Region(left, y, right - left, 1)
            for y, (before, after) in enumerate(zip(old, self._strips, strict=True))
            for left, right in [_changed(before, after)]
            if right > left
        ]
        if regions:
            self.refresh(*regions)

    def _drawn(self) -> list[Strip]:
        width, height = self.size
        lines = list(self.draw(width, height))[:height]
        lines += [Strip([])] * (height - len(lines))
        return [_strip(line, self.visual_style).adjust_cell_length(width, self.rich_style) for line in lines]

    def on_resize(self) -> None:
        self.redraw()

    def on_show(self) -> None:
        self.redraw()

    def render_line(self, y: int) -> Strip:
        if len(self._strips) != self.size.height or self._strips[0].cell_length != self.size.width:
            self._strips = self._drawn()  # the first frame comes before the first event
        return self._strips[y] if y < len(self._strips) else Strip.blank(self.size.width, self.rich_style)


def _strip(line: Content | Strip, style) -> Strip:
    return line if isinstance(line, Strip) else Strip(line.render_segments(style))


def _changed(old: Strip, new: Strip) -> tuple[int, int]:
    """The cells from the first to the last segment that differs."""
    before, after = list(old), list(new)
    if before == after:
        return 0, 0
    head = _equal(before, after)
    tail = min(_equal(before[::-1], after[::-1]), len(before) - head, len(after) - head)
    left = sum(segment.cell_length for segment in after[:head])
    kept = sum(segment.cell_length for segment in after[len(after) - tail :])
    return left, new.cell_length - kept


def _equal(first: list, second: list) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
