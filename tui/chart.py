"""The one chart: several named curves with a legend, drawn by plotext, on axes that stay where they are."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style as RichStyle
from textual.color import Color
from textual.content import Content
from textual.strip import Strip
from textual.style import Style

from tui.figures import axis, number
from tui.text import DIM, PLAIN, clean, pad, shorten

# Numbers of the terminal's own palette. A letter at the end of each curve says the same without colour.
COLOURS = (15, 14, 10, 11, 13, 12, 9, 6, 2, 3, 5, 4)
GREY = 8
DECADES = 5  # a logarithmic axis reaches at most so far below its top
ANSI = re.compile(r"\x1b\[([\d;]*)m")


@dataclass(frozen=True)
class Curve:
    """Points in the order of x. shown: the last value as the legend prints it, if not the number itself."""

    name: str
    xs: tuple[float, ...]
    ys: tuple[float | None, ...]
    shown: str | None = None


@dataclass(frozen=True)
class Picture:
    """What a chart shows. Limits that are None follow the data, in nice steps.

    marks: (x, word) where something begins, named above the plot.  notes: more lines for the legend.
    """

    curves: tuple[Curve, ...] = ()
    x_limits: tuple[float, float] | None = None
    y_limits: tuple[float, float] | None = None
    marks: tuple[tuple[float, str], ...] = ()
    notes: tuple[str, ...] = ()
    log: bool = False
    x_unit: str = ""
    empty: str = "no values yet"


def draw(picture: Picture, width: int, height: int) -> list[Strip | Content]:
    """Exactly `height` lines for any size and any data: infinite, missing, single or none at all."""
    if width <= 0 or height <= 0:
        return []
    curves = [(curve, _finite(curve, picture.log)) for curve in picture.curves]
    if not any(points for _, points in curves):
        lines = [Content.styled(shorten(picture.empty, width), DIM)]
    elif width < 24 or height < 5:
        lines = _legend(picture, width)
    elif width < 56:
        legend = _one_line_legend(picture, width)
        lines = [*_plot(picture, curves, width, height - 1), legend]
    else:
        side = min(26, max(24, width // 3))
        legend = _legend(picture, side - 2)
        plot = _plot(picture, curves, width - side, height)
        if len(legend) > height:
            legend = [row for row in legend if row.plain.strip()]
        rows = [*legend, *[Content("")] * height][:height]
        lines = [_beside(left, right, width - side) for left, right in zip(plot, rows, strict=True)]
    return [*lines, *[Content("")] * height][:height]


def colour(place: int) -> Style:
    return Style(foreground=Color(0, 0, 0, ansi=COLOURS[place % len(COLOURS)]))


def letters(names: Sequence[str]) -> list[str]:
    """A letter for each curve, its own where possible: the sign that stands beside the colour."""
    taken: list[str] = []
    for name in names:
        free = [c for c in clean(name).lower() + "abcdefghijklmnopqrstuvwxyz" if c.isalnum() and c not in taken]
        taken.append(free[0] if free else "?")
    return taken


# -- axes ---------------------------------------------------------------------------------------------------------


def nice_limits(low: float, high: float, ticks: int) -> tuple[float, float, float]:
    """(first tick, last tick, step): multiples of 1, 2 or 5, so that a new point seldom moves the axis."""
    if not high > low:
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
    rough = (high - low) / max(1, ticks)
    if not (math.isfinite(rough) and rough > 1e-300):
        return low, high, high - low
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, step


def _ticks(low: float, high: float, count: int) -> list[float]:
    first, last, step = nice_limits(low, high, count)
    values = [round(first + k * step, 12) for k in range(int(round((last - first) / step)) + 1)] if step else [low]
    slack = 1e-9 * (high - low)
    return [value for value in values if low - slack <= value <= high + slack][:50]


def _with_end(ticks: list[float], high: float) -> list[float]:
    """A limit that is given means something: the memory of a card, the last step. It gets a tick if there is room."""
    return [*ticks, high] if len(ticks) > 1 and high - ticks[-1] > (ticks[1] - ticks[0]) / 3 else ticks


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten inside the limits (themselves logarithms), with 2 and 5 between where they are few."""
    whole = list(range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1))
    if len(whole) >= 3:
        return [float(power) for power in whole]
    between = [p + math.log10(f) for p in range(math.floor(low), math.ceil(high) + 1) for f in (1, 2, 5)]
    return [value for value in between if low - 1e-9 <= value <= high + 1e-9]


# -- the plot -----------------------------------------------------------------------------------------------------


def _finite(curve: Curve, log: bool) -> list[tuple[float, float]]:
    """Points that can be drawn; on a logarithmic axis their logarithm."""
    points = [
        (float(x), float(y))
        for x, y in zip(curve.xs, curve.ys, strict=False)
        if y is not None and math.isfinite(y) and math.isfinite(x) and abs(y) < 1e100
    ]
    return [(x, math.log10(y)) for x, y in points if y > 0] if log else points


def thinned(points: list[tuple[float, float]], low: float, high: float, columns: int) -> list[tuple[float, float]]:
    """The mean of the points that share a column."""
    if len(points) <= columns or not high > low:
        return points
    cells: dict[int, list[tuple[float, float]]] = {}
    for x, y in points:
        cells.setdefault(int((x - low) / (high - low) * columns), []).append((x, y))
    return [tuple(sum(v) / len(v) for v in zip(*cell, strict=True)) for _, cell in sorted(cells.items())]


def _limits(picture: Picture, curves, height: int) -> tuple[float, float, float, float]:
    points = [point for _, found in curves for point in found]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    left, right = picture.x_limits or nice_limits(min(xs), max(xs), 4)[:2]
    if picture.log:
        top = max(ys)
        bottom = max(min(ys), top - DECADES)
        low, high = math.floor(bottom * 2) / 2, math.ceil(top * 2 + 1e-9) / 2
    elif picture.y_limits:
        low, high = picture.y_limits
    else:
        low, high, _ = nice_limits(min(ys), max(ys), max(2, height // 4))
    return left, right if right > left else left + 1, low, high if high > low else low + 1


def _plot(picture: Picture, curves, width: int, height: int) -> list[Strip]:
    """The curves in their frame: a line for the marks if there are any, the plot, the line of x."""
    from plotext._figure import _figure_class  # private, so plotext is pinned; imported after the first frame

    marks = bool(picture.marks) and height >= 6
    rows = height - marks
    left, right, low, high = _limits(picture, curves, rows)
    ticks = _log_ticks(low, high) if picture.log else _ticks(low, high, max(2, rows // 4))
    if picture.y_limits and not picture.log:
        ticks = _with_end(ticks, high)
    words = [axis(10**tick if picture.log else tick) for tick in ticks]
    margin = max((len(word) for word in words), default=0)
    columns = width - margin - 1
    figure = _figure_class()
    figure._set_size(width, rows)
    figure.canvas_color("default")
    figure.axes_color("default")
    figure.ticks_color(GREY)
    figure.xaxes(True, False)
    figure.yaxes(True, False)
    figure.xlim(left, right)
    figure.ylim(low, high)
    figure.yticks(ticks, [word.rjust(margin) for word in words])
    figure.xticks(*_x_ticks(picture, left, right, columns))
    for x, _ in picture.marks:
        if left < x < right:
            figure.vline(x, color=GREY)
    for place, (_, points) in enumerate(curves):
        # A point at both ends of a column would be two dots of braille, hence twice the columns.
        shown = [(x, max(y, low)) for x, y in thinned(points, left, right, 2 * columns)]
        if shown:
            figure.plot(*zip(*shown, strict=True), marker="braille", color=COLOURS[place % len(COLOURS)])
    for place, ((_, points), letter) in enumerate(zip(curves, letters([c.name for c, _ in curves]), strict=True)):
        if points:
            x, y = points[-1]
            figure.text(letter, x=x, y=max(y, low), color=COLOURS[place % len(COLOURS)])
    strips = [_from_ansi(row).adjust_cell_length(width) for row in figure.build().split("\n")[:rows]]
    if marks:
        strips = [_mark_line(picture.marks, left, right, margin + 1, width), *strips]
    return [*strips, *[Strip.blank(width)] * (height - len(strips))]


def _x_ticks(picture: Picture, left: float, right: float, columns: int) -> tuple[list[float], list[str]]:
    values = _ticks(left, right, max(1, columns // 9))
    if picture.x_limits:
        values = _with_end(values, right)
    words = [axis(value) for value in values]
    if words and picture.x_unit:
        words[-1] = f"{words[-1]} {picture.x_unit}"
    return values, words


def _mark_line(marks, left: float, right: float, margin: int, width: int) -> Strip:
    """The words of the marks, each above its place; one that has no room is left out."""
    row = [" "] * width
    free = margin
    for x, word in sorted(marks, key=lambda mark: mark[0]):
        start = max(free, margin + round((x - left) / (right - left) * (width - margin - 1)))
        text = clean(word)
        if start + len(text) <= width and pad(text, len(text)) == text:
            row[start : start + len(text)] = text
            free = start + len(text) + 1
    return Strip([Segment("".join(row), DIM.rich_style)])


def _from_ansi(row: str) -> Strip:
    """A line of plotext's as segments. Its only escapes are those of a colour and of its end."""
    segments, style = [], None
    for number_, piece in enumerate(ANSI.split(row)):
        if number_ % 2:
            style = RichStyle(color=f"color({piece.rpartition(';')[2]})") if piece.startswith("38;5;") else None
        elif piece:
            segments.append(Segment(piece, style))
    return Strip(segments)


# -- the legend ---------------------------------------------------------------------------------------------------


def last_value(curve: Curve) -> str:
    if curve.shown is not None:
        return curve.shown
    return number(curve.ys[-1]) if curve.ys else ""


def _legend(picture: Picture, width: int) -> list[Content]:
    rows = []
    signs = letters([curve.name for curve in picture.curves])
    values = [last_value(curve) for curve in picture.curves]
    room = max((len(clean(value)) for value in values), default=0)
    for place, (curve, sign, value) in enumerate(zip(picture.curves, signs, values, strict=True)):
        text = pad(f"{sign} {pad(curve.name, width - 3 - room)} {pad(value, room, right=True)}", width)
        rows.append(Content.styled(text, colour(place)))
    return [*rows, *(Content.styled(shorten(note, width), PLAIN) for note in picture.notes)]


def _one_line_legend(picture: Picture, width: int) -> Content:
    """Curves and notes one after the other, as many as fit."""
    signs = letters([curve.name for curve in picture.curves])
    texts = [
        (f"{sign} {shorten(curve.name, 14)} {shorten(last_value(curve), 12)}  ", colour(place))
        for place, (curve, sign) in enumerate(zip(picture.curves, signs, strict=True))
    ]
    texts += [(f"{shorten(note, width)}  ", PLAIN) for note in picture.notes if note]
    shown, used = [], 0
    for text, style in texts:
        used += cell_len(text)
        if used > width + 2:
            break
        shown.append((text, style))
    return Content.assemble(*shown)


def _beside(left: Strip, right: Content, width: int) -> Strip:
    return Strip.join([left.adjust_cell_length(width), Strip([Segment("  "), *right.render_segments()])])
