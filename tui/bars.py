"""The first and the last line of the screen: what runs and on what, and the keys."""

import time

from rich.cells import cell_len
from textual.content import Content

from tui import figures
from tui.drawn import Drawn
from tui.panes.memory import in_words
from tui.snapshot import Runner, Snapshot
from tui.text import BOLD, CYAN, DIM, GREEN, PLAIN, RED, YELLOW, parts, shorten

RUNNERS = {
    "LIVE": ("●", GREEN),
    "STALE": ("◐", YELLOW),
    "LOST": ("✗", RED),
    "STOPPED": ("○", DIM),
    "PAUSED": ("=", YELLOW),
}
# The first are kept longest when the line is short.
KEYS = (
    ("n", "queue"), ("?", "help"), ("q", "leave"), ("tab", "next pane"), ("enter", "open"), ("x", "cancel"), ("r", "retry"),
    ("1-6", "panes"), ("z", "zoom"), ("/", "filter"), ("p", "pause"), ("m", "metric"), ("c", "compare"), ("l", "log scale"), ("+ -", "priority"),
)  # fmt: skip
ORDER = ("n", "enter", "x", "r", "p", "+ -", "/", "1-6", "tab", "z", "m", "c", "l", "?", "q")


class Head(Drawn):
    def __init__(self) -> None:
        super().__init__(id="head")
        self._snapshot = Snapshot()

    def show(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self.redraw()

    def draw(self, width: int, height: int) -> list[Content]:
        snapshot = self._snapshot
        runner = _runner(snapshot.runner, width >= 110)
        clock = Content.styled(figures.clock(time.time())[:5], BOLD)
        rest = width - 11 - runner.cell_length - 2 - 7
        what = shorten(_running(snapshot), max(0, min(rest, 44)))
        machine = shorten(in_words(snapshot.machine), max(0, rest - cell_len(what) - 2)) if snapshot.machine else ""
        gap = max(0, rest - cell_len(what) - cell_len(machine))
        return [parts(("hybridsum  ", BOLD), what, " " * gap, machine, "  ", runner, "  ", clock)]


def _running(snapshot: Snapshot) -> str:
    running = [row for row in snapshot.rows if row.state == "running"]
    if not running:
        return ""
    row = running[0]
    far = f" {100 * row.done // row.total}%" if row.done is not None and row.total else ""
    more = f" and {len(running) - 1} more" if len(running) > 1 else ""
    return f"{row.run} {row.what}{far}{more}"


def _runner(runner: Runner, word: bool) -> Content:
    """The state in a sign, a colour and a word. A line that is paused says so instead of LIVE."""
    state = "PAUSED" if runner.paused and runner.state == "LIVE" else runner.state
    if not state:
        return Content("")
    sign, style = RUNNERS.get(state, ("?", PLAIN))
    age = f" {figures.duration(runner.age)}" if state == "STALE" and runner.age is not None else ""
    return parts(("runner " if word else "", DIM), (f"{sign} {state}{age}", style))


class Foot(Drawn):
    def __init__(self) -> None:
        super().__init__(id="foot")

    def draw(self, width: int, height: int) -> list[Content]:
        shown, used = set(), -2
        for key, word in KEYS:
            used += len(key) + len(word) + 3
            if used > width:
                break
            shown.add(key)
        words = dict(KEYS)
        pieces = [
            piece for key in ORDER if key in shown for piece in ((key, CYAN + BOLD), (f" {words[key]}", PLAIN), "  ")
        ]
        return [parts(*pieces[:-1])]
