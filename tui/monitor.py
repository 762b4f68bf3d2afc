"""The screen one looks at: panes around the line of jobs, and the keys that steer it."""

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Container
from textual.geometry import Size
from textual.screen import Screen
from textual.timer import Timer

from tui.bars import Foot, Head
from tui.pane import Pane
from tui.panes.fisher import FisherPane
from tui.panes.forgetting import ForgettingPane
from tui.panes.line import LinePane
from tui.panes.log import LogPane
from tui.panes.losses import LossesPane
from tui.panes.memory import MemoryPane
from tui.snapshot import Row, Snapshot
from tui.text import clean

if TYPE_CHECKING:
    from jobs.home import Home
    from tui.feed import Feed

PANES = (LinePane, LossesPane, ForgettingPane, MemoryPane, FisherPane, LogPane)
NAMES = ", ".join(pane.NAME.lower() for pane in PANES)
DIGITS = {1: f"1-{len(PANES)}"}  # all on one line of the help
TICK = 0.7  # seconds between two looks at the files
WIDE = 110  # columns from which all panes stand side by side


class Monitor(Screen):
    BINDINGS = [
        Binding("n", "queue", "queue a phase, all phases or an evaluation"),
        Binding("enter", "open", "settings, folder, reason and events of the job"),
        Binding("d", "data", "what training sees of the job's data"),
        Binding("x", "cancel", "cancel the job, after a question that names what is lost"),
        Binding("r", "retry", "queue a job that failed or was cancelled again"),
        Binding("p", "pause", "pause the line, or let it go on"),
        Binding("plus,equals_sign", "priority(1)", "a waiting job sooner, or later", key_display="+"),
        Binding("minus", "priority(-1)", "a waiting job sooner, or later", key_display="-"),
        Binding("down,j", "move(1)", "next and previous job (in the log: lines)", key_display="↓ j"),
        Binding("up,k", "move(-1)", "next and previous job (in the log: lines)", key_display="↑ k"),
        Binding("pagedown", "move(10)", "ten at a time", key_display="pgdn"),
        Binding("pageup", "move(-10)", "ten at a time", key_display="pgup"),
        Binding("home,g", "move(-100000)", "first and last", key_display="g"),
        Binding("end,G", "move(100000)", "first and last", key_display="G"),
        Binding("f", "follow", "follow what runs: the panes change with the line"),
        Binding("slash", "filter", "show only jobs with these words; esc shows all", key_display="/"),
        *(
            Binding(str(k), f"pane({k})", "pane: " + NAMES, key_display=DIGITS.get(k, ""))
            for k in range(1, 1 + len(PANES))
        ),
        Binding("tab", "next(1)", "next pane; shift+tab the one before"),
        Binding("shift+tab", "next(-1)", "next pane; shift+tab the one before", key_display=""),
        Binding("z", "zoom", "the active pane alone, or all again"),
        Binding("m", "metric", "next metric of the forgetting table"),
        Binding("space", "mark", "mark the job's checkpoint; c compares those that are marked"),
        Binding("c", "compare", "compare the marked checkpoints, or choose from all of them"),
        Binding("l", "log_scale", "losses on a logarithmic axis"),
        Binding("question_mark", "help", "this list", key_display="?"),
        Binding("escape", "back", "out of zoom or filter", key_display="esc"),
        Binding("q,ctrl+c", "leave", "leave; jobs and the runner go on", key_display="q"),
    ]
    AUTO_FOCUS = None

    def __init__(self, home: "Home", start_runner: bool) -> None:
        super().__init__()
        self.home, self.start_runner = home, start_runner
        self.snapshot = Snapshot()
        self._panes: list[Pane] = [pane(number) for number, pane in enumerate(PANES, 1)]
        self._active, self._shown, self._zoomed = 1, 2, False
        self._selected: str | None = None  # None follows what runs
        self._metric: str | None = None
        self._marks: list[str] = []  # RUN/PHASE of the checkpoints to compare
        self._feed: Feed | None = None
        self._timer: Timer | None = None
        self._busy = self._again = False

    def compose(self) -> ComposeResult:
        yield Head()
        self._grid = Container(*self._panes, id="panes")
        self._arrange(self.app.size)  # before the first frame, or the screen would be sent twice
        yield self._grid
        yield Foot()

    # -- from files to panes --------------------------------------------------------------------------------------

    def on_mount(self) -> None:
        self.call_after_refresh(self._begin)

    def _begin(self) -> None:
        """After the first frame: what takes long to import comes now."""
        self.tick()
        self._timer = self.set_interval(TICK, self.tick)
        if self.start_runner:
            self.run_worker(self._steer("ensure_running", self.home), group="runner")

    def tick(self) -> None:
        """Look at the files, unless a look is under way (then once more after it) or another screen is on top."""
        if self._busy:
            self._again = True
        elif self.is_current:
            self.run_worker(self._read(), group="feed")

    async def _read(self) -> None:
        self._busy, self._again = True, False
        try:
            snapshot = await asyncio.to_thread(self._look, self._selected, self._metric)
        finally:
            self._busy = False
        self._show(snapshot)
        if self._feed.undecided:
            self.run_worker(self._decide(), group="verdict")
        if self._again:
            self.tick()

    async def _decide(self) -> None:
        if await asyncio.to_thread(self._feed.decide):
            self.tick()

    def _look(self, selected: str | None, metric: str | None) -> Snapshot:
        if self._feed is None:
            from tui.feed import Feed

            self._feed = Feed(self.home)
        return self._feed.snapshot(selected, metric)

    def _show(self, snapshot: Snapshot) -> None:
        before, self.snapshot = self.snapshot.runner.state, snapshot
        if self.start_runner and before in ("LIVE", "STALE") and snapshot.runner.state == "LOST":
            # once for each that is lost, so that one which dies at once is not started again and again
            said = "the runner was killed; another goes on with its jobs"
            self.run_worker(self._steer("ensure_running", self.home, said=said), group="runner")
        self.query_one(Head).show(snapshot)
        for pane in self._panes:
            pane.show(snapshot)

    def on_screen_resume(self) -> None:
        if self._timer is not None:
            self.tick()

    # -- where panes stand ----------------------------------------------------------------------------------------

    def on_resize(self) -> None:
        self._arrange(self.size)

    def _arrange(self, size: Size) -> None:
        narrow = size.width < WIDE
        self._grid.set_class(narrow and not self._zoomed, "narrow")
        self._grid.set_class(size.height < 20, "low")
        self._grid.set_class(self._zoomed, "zoom")
        shown = self._active if self._zoomed else self._shown
        for pane in self._panes:
            pane.set_class(pane.number == shown, "active")
            pane.set_frame(pane.number == self._active, not narrow)

    def action_pane(self, number: int) -> None:
        """Between the line and the log a small screen has room for one pane: the one chosen last."""
        self._active = number
        if number not in (1, len(PANES)):
            self._shown = number
        self._arrange(self.size)

    def action_next(self, step: int) -> None:
        self.action_pane((self._active - 1 + step) % len(PANES) + 1)

    def action_zoom(self) -> None:
        self._zoomed = not self._zoomed
        self._arrange(self.size)

    def action_back(self) -> None:
        line = self.query_one(LinePane)
        if line.filter:
            line.set_filter("")
        elif self._zoomed:
            self.action_zoom()
        else:
            self.action_pane(1)

    def action_move(self, rows: int) -> None:
        if not self._panes[self._active - 1].move(rows):
            self.query_one(LinePane).move(rows)

    def action_mark(self) -> None:
        if (row := self._row) is None:
            return
        if row.phase is None:
            self.tell(f"job {row.id} makes no checkpoint that could be compared")
        else:
            name = f"{row.run}/{row.phase}"
            rest = [mark for mark in self._marks if mark != name]
            self._set_marks(rest if name in self._marks else [*rest, name])

    def _set_marks(self, marks: list[str] | None) -> None:
        self._marks = marks or []
        self.query_one(LinePane).set_marks(self._marks)

    def action_compare(self) -> None:
        if self._feed is None:
            return
        if len(self._marks) > 1:
            from tui.compare import Compare

            self.app.push_screen(Compare(self.home, self._records(), self._marks))
        else:
            from tui.checkpoints import Checkpoints

            self.app.push_screen(Checkpoints(self.home, self._records(), self._marks), self._set_marks)

    def action_log_scale(self) -> None:
        self.query_one(LossesPane).toggle_log()

    def action_metric(self) -> None:
        metrics = self.snapshot.forgetting.metrics
        own = self.snapshot.forgetting.own
        if metrics:
            now = own.metric if own else None
            self._metric = metrics[(metrics.index(now) + 1) % len(metrics)] if now in metrics else metrics[0]
            self.tick()

    @on(LinePane.Moved)
    def _follow_cursor(self, message: LinePane.Moved) -> None:
        self._selected = message.job_id
        self.tick()

    def action_follow(self) -> None:
        self._selected = None
        self.tick()

    def action_filter(self) -> None:
        from tui.menus import Filter

        line = self.query_one(LinePane)
        self.action_pane(1)
        self.app.push_screen(Filter(line.filter), lambda text: line.set_filter(text or ""))

    # -- steering -------------------------------------------------------------------------------------------------

    def tell(self, text: str, severity: str = "information") -> None:
        self.notify(clean(text, 600), severity=severity, markup=False, timeout=8 if severity == "error" else 4)

    async def _steer(self, verb: str, *arguments, said: str = "") -> None:
        """Call a verb of jobs.steer beside the screen, say what came of it, and look again."""
        from engine.settings import ConfigError
        from jobs import steer

        try:
            await asyncio.to_thread(getattr(steer, verb), *arguments)
        except ConfigError as error:
            self.tell(str(error), "error")
        else:
            if said:
                self.tell(said)
        self.tick()

    def _records(self):
        return self._feed.records

    @property
    def _row(self) -> Row | None:
        return self.snapshot.selected

    def action_cancel(self) -> None:
        if self._row:
            self.run_worker(partial(self._ask_cancel, self._row), group="ask", exclusive=True)

    async def _ask_cancel(self, row: Row) -> None:
        from engine.settings import ConfigError
        from jobs.steer import what_is_lost
        from tui.menus import Confirm

        if row.state not in ("queued", "running", "blocked"):
            self.tell(f"job {row.id} has ended ({row.state}); there is nothing to cancel")
            return
        try:
            lost = await asyncio.to_thread(what_is_lost, self.home, self._records(), row.id)
        except ConfigError as error:
            self.tell(str(error), "error")
            return
        question = f"Cancel job {row.id}, {row.what} of {row.run}?"
        if await self.app.push_screen_wait(Confirm(question, lost)):
            await self._steer("cancel", self.home, self._records(), row.id, said=f"job {row.id}: asked to stop")

    def action_retry(self) -> None:
        if row := self._row:
            said = f"job {row.id} is in the line again"
            self.run_worker(self._steer("retry", self.home, self._records(), row.id, said=said), group="steer")

    def action_priority(self, change: int) -> None:
        if row := self._row:
            work = self._steer("set_priority", self._records(), row.id, row.priority + change)
            self.run_worker(work, group="steer")

    def action_pause(self) -> None:
        if self._feed is None:
            return
        if self.snapshot.runner.paused:
            work = self._steer("resume", self._records(), said="the line goes on")
        else:
            work = self._steer("pause", self._records(), said="paused: nothing new starts; what runs goes on")
        self.run_worker(work, group="steer")

    # -- other screens --------------------------------------------------------------------------------------------

    def action_help(self) -> None:
        from tui.menus import Help

        self.app.push_screen(Help(self.BINDINGS))

    def action_open(self) -> None:
        if self._row:
            from tui.details import Details

            self.app.push_screen(Details(self.home, self._row, self._feed.history(self._row.id)))

    def action_data(self) -> None:
        if self._row:
            from tui.preflight import Preflight

            self.app.push_screen(Preflight(self.home, self._row))

    def action_queue(self) -> None:
        if self._feed is not None:
            from tui.menus import QueueMenu

            self.app.push_screen(QueueMenu(), self._fill_form)

    def _fill_form(self, choice: tuple[str, str | None] | None) -> None:
        if choice is not None:
            from tui.forms import Form

            kind, phase = choice
            self.app.push_screen(Form(self.home, self._records(), kind, phase), self._queued)

    def _queued(self, jobs: list | None) -> None:
        if not jobs:
            return
        self._selected = None if self.snapshot.rows and self.snapshot.rows[0].state == "running" else jobs[0].id
        numbers = jobs[0].id if len(jobs) == 1 else f"{jobs[0].id} to {jobs[-1].id}"
        said = f"queued: job{'s' if len(jobs) > 1 else ''} {numbers}, run {jobs[-1].run}"
        if self.start_runner:
            self.run_worker(self._steer("ensure_running", self.home, said=said), group="runner")
        else:
            self.tell(f"{said}. No runner was started")
            self.tick()

    def action_leave(self) -> None:
        self.app.exit(going_on(self.snapshot))


def going_on(snapshot: Snapshot) -> str:
    """What to print when the dashboard is gone: which jobs go on without it."""
    running = [f"{row.id} ({row.run} {row.what})" for row in snapshot.rows if row.state == "running"]
    waiting = sum(row.state == "queued" for row in snapshot.rows)
    if not running and not waiting:
        return ""
    goes = f"Going on: job{'s' if len(running) > 1 else ''} {', '.join(running)}. " if running else ""
    waits = f"{waiting} in the line. " if waiting else ""
    return clean(f"{goes}{waits}The dashboard can be opened again at any time.").replace("\n", " ")
