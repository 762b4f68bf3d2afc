"""Every judged checkpoint with its scores: space marks, c compares what is marked."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.binding import Binding
from textual.content import Content
from textual.screen import Screen

from engine.evaluation.table import METRICS
from tui import compared
from tui.compare import Compare, Hint, Sheet
from tui.text import BOLD, DIM, parts

if TYPE_CHECKING:
    from jobs.home import Home
    from jobs.records import Records

HINT = "space mark  c compare  s sort  m metric  j k move  esc back"


class Checkpoints(Screen[list]):
    """Dismisses with the names that are marked, RUN/PHASE."""

    BINDINGS = [
        Binding("escape,q", "back", "back"),
        Binding("space", "mark", "mark, or not"),
        Binding("c,enter", "compare", "compare what is marked"),
        Binding("s", "sort", "best first in the next column, or newest first"),
        Binding("m", "metric", "next metric"),
        Binding("down,j", "move(1)", "next"),
        Binding("up,k", "move(-1)", "previous"),
        Binding("pagedown", "move(10)", "ten on"),
        Binding("pageup", "move(-10)", "ten back"),
    ]
    AUTO_FOCUS = None

    def __init__(self, home: "Home", records: "Records", marks: Sequence[str]) -> None:
        super().__init__()
        self.home, self.records, self.marks = home, records, list(marks)
        self._rows: list[dict] | None = None
        self._place, self._metric, self._column = 0, "rougeL", ""

    def compose(self) -> ComposeResult:
        self._sheet = Sheet(self._lines)
        yield self._sheet
        yield Hint(HINT)

    def on_mount(self) -> None:
        self.run_worker(self._load())

    async def _load(self) -> None:
        from jobs.checkpoints import comparable

        self._rows = await asyncio.to_thread(comparable, self.home)
        self._sheet.redraw()

    @property
    def _sorted(self) -> list[dict]:
        from jobs.checkpoints import score_of

        if not self._column:
            return self._rows or []
        better = METRICS[self._metric].better or 1
        scored = [(score_of(row, self._column, self._metric), row) for row in self._rows or ()]
        return [row for _, row in sorted(scored, key=lambda s: (s[0] is None, -better * (s[0] or 0.0)))]

    def _lines(self, width: int, height: int) -> list[Content]:
        if self._rows is None:
            return [Content.styled("reading the checkpoints…", DIM)]
        order = f"best {self._column} first" if self._column else "newest first"
        title = parts(
            ("Checkpoints", BOLD), (f"  {METRICS[self._metric].label}, {order}, {len(self.marks)} marked", DIM)
        )
        rows = compared.checkpoint_rows(self._sorted, self.marks, self._place, self._metric, width, height - 1)
        return [title, *rows]

    def action_move(self, step: int) -> None:
        self._place = max(0, min(self._place + step, len(self._rows or ()) - 1))
        self._sheet.redraw()

    def action_mark(self) -> None:
        if self._rows:
            name = self._sorted[self._place]["name"]
            self.marks = [m for m in self.marks if m != name] if name in self.marks else [*self.marks, name]
            self._sheet.redraw()

    def action_sort(self) -> None:
        columns = ["", *dict.fromkeys(c for row in self._rows or () for m in row["metrics"].values() for c in m)]
        self._column = columns[(columns.index(self._column) + 1) % len(columns)] if self._column in columns else ""
        self._place = 0
        self._sheet.redraw()

    def action_metric(self) -> None:
        means = [m for row in self._rows or () for columns in row["metrics"].values() for m in columns.values()]
        names = [name for name in METRICS if any(name in given for given in means)] or ["rougeL"]
        self._metric = names[(names.index(self._metric) + 1) % len(names)] if self._metric in names else names[0]
        self._sheet.redraw()

    def action_compare(self) -> None:
        if len(self.marks) < 2:
            self.notify("mark two or more with space, then c", markup=False)
        else:
            self.app.push_screen(Compare(self.home, self.records, self.marks))

    def action_back(self) -> None:
        self.dismiss(self.marks)
