"""The form behind `n`: fields on top, and below them what Enter would queue, checked down to the last record."""

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Label, OptionList, Static, TextArea
from textual.widgets.option_list import Option

from engine.settings import ConfigError, Settings
from jobs.home import PROJECT, Home
from jobs.submit import Draft, Request, draft, enter, from_file
from tui.menus import problem
from tui.preview import rows
from tui.text import BOLD, DIM, GREEN, YELLOW, parts, safe

if TYPE_CHECKING:
    from jobs.records import Records

PAUSE = 0.35  # seconds of quiet typing before the data are read again
TITLES = {
    "phase": "Queue phase {}",
    "pipeline": "Queue all phases, with evaluations",
    "evaluate": "Evaluate a checkpoint",
    "fisher": "Fisher of a checkpoint",
}
ON_CHECKPOINT = ("evaluate", "fisher")
HINT = "enter queues (ctrl+s too)  tab next  ctrl+n next config  pgdn more  esc back"


class Form(ModalScreen[list]):
    """Dismisses with the jobs it queued."""

    BINDINGS = [
        Binding("escape", "dismiss", "back"),
        Binding("ctrl+s", "queue", "queue", priority=True),
        Binding("ctrl+n", "next_config", "next config", priority=True),
        Binding("pagedown", "scroll(8)", "more", priority=True),
        Binding("pageup", "scroll(-8)", "back", priority=True),
    ]

    def __init__(self, home: Home, records: "Records", kind: str, phase: str | None) -> None:
        super().__init__()
        self.home, self.records, self.kind, self.phase = home, records, kind, phase
        self._checkpoints = checkpoints(home, kind) if kind in ON_CHECKPOINT else []
        self._ready: Draft | None = None  # what Enter queues; None while it is checked, or wrong
        self._wanted = False  # Enter was pressed while it was checked
        self._checking = False

    # -- the fields -----------------------------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        with Vertical(classes="box"):
            yield Label(Content.styled(TITLES[self.kind].format(self.phase or ""), BOLD))
            with Vertical(id="fields"):
                yield from self._on_checkpoint() if self.kind in ON_CHECKPOINT else self._training()
                with Horizontal(classes="row"):
                    yield Label("priority")
                    yield Input("0", id="priority")
                    yield Label("after job")
                    yield Input(placeholder="none", id="after")
            with VerticalScroll(id="preview", can_focus=False):
                yield Static(id="shown")
            yield Label(HINT, classes="hint")

    def _training(self) -> ComposeResult:
        yield from _row("config", Input(last_config(self.records), id="config"))
        yield from _row("run", Input(self._last_run(), placeholder="a new name is made", id="run"))
        with Horizontal(classes="row", id="changes_row"):
            yield Label("changes")
            yield TextArea(id="changes", tab_behavior="focus", placeholder="section.name=value, one a line")

    def _on_checkpoint(self) -> ComposeResult:
        names = [safe(f"{folder.relative_to(self.home.checkpoints)}") for folder in self._checkpoints]
        yield OptionList(*(Option(name) for name in names), id="checkpoint")
        if self.kind == "evaluate":
            yield from _row("test set", Input(placeholder="the run's own", id="test"))

    def _last_run(self) -> str:
        """A later phase goes on from the run that was trained last."""
        if self.kind != "phase" or self.phase == "1":
            return ""
        return next((job.run for job in reversed(self.records.jobs().values()) if job.kind == "phase"), "")

    def on_mount(self) -> None:
        self.query_one("#checkpoint" if self.kind in ON_CHECKPOINT else "#run").focus()
        self._check()

    def _value(self, name: str) -> str:
        return self.query_one(f"#{name}", Input).value.strip()

    def _request(self) -> Request:
        """The request that the fields spell. Raises ConfigError."""
        priority, after = self._value("priority") or "0", self._value("after") or None
        if not priority.lstrip("-").isdigit():
            raise ConfigError(f"priority: {priority}: not a whole number. 0 is usual; higher goes first")
        common = {"priority": int(priority), "after": after}
        if self.kind not in ON_CHECKPOINT:
            changes = [line.strip() for line in self.query_one("#changes", TextArea).text.splitlines() if line.strip()]
            run = self._value("run") or None
            return from_file(self.kind, Path(self._value("config")), changes, run=run, phase=self.phase, **common)
        chosen = self.query_one("#checkpoint", OptionList).highlighted
        if chosen is None:
            raise ConfigError("no checkpoint yet: one appears in checkpoints/ when a phase ends")
        test = Path(self._value("test")) if self.kind == "evaluate" and self._value("test") else None
        return Request(self.kind, Settings(), checkpoint=self._checkpoints[chosen], test_set=test, **common)

    # -- checking, and queueing -----------------------------------------------------------------------------------

    @on(Input.Changed)
    @on(TextArea.Changed)
    @on(OptionList.OptionHighlighted)
    def _check(self) -> None:
        self._ready, self._wanted, self._checking = None, False, True
        self.run_worker(self._checked, group="check", exclusive=True)

    async def _checked(self) -> None:
        await asyncio.sleep(PAUSE if self.query_one("#shown", Static).content else 0)
        self._show([Content.styled("checking the settings and every record of the data…", DIM)])
        try:
            request = self._request()
            drafted = await asyncio.to_thread(draft, self.home, self.records, request)
            facts = await asyncio.to_thread(rows, request, drafted)
        except ConfigError as error:
            self._checking = False
            self._show([*problem(error.lines), Content.styled("Nothing is queued until this is mended.", DIM)])
            return
        self._ready, self._checking = drafted, False
        width = self.query_one("#preview").size.width - 1
        lines = [line for fact in facts for line in fact.lines(width)]
        self._show([parts(("✓ ", GREEN), "checked: Enter queues this"), *lines])
        if self._wanted:
            self.action_queue()

    def _show(self, lines: list[Content]) -> None:
        self.query_one("#shown", Static).update(Content("\n").join(lines))

    @on(Input.Submitted)
    @on(OptionList.OptionSelected)
    def action_queue(self) -> None:
        if self._ready is not None:
            drafted, self._ready = self._ready, None  # once, also if Enter is pressed twice
            self.run_worker(self._enter(drafted), group="enter")
        elif self._checking:
            self._wanted = True
            self._show([Content.styled("checking; it will be queued if nothing is wrong…", YELLOW)])

    async def _enter(self, drafted: Draft) -> None:
        try:
            jobs = await asyncio.to_thread(enter, self.home, self.records, drafted)
        except (ConfigError, OSError) as error:
            self._show(problem(str(error).splitlines()))
        else:
            self.dismiss(jobs)

    def action_scroll(self, rows: int) -> None:
        self.query_one("#preview").scroll_relative(y=rows, animate=False)

    def action_next_config(self) -> None:
        if self.kind not in ON_CHECKPOINT:
            known, now = configs(), self._value("config")
            if known:
                self.query_one("#config", Input).value = known[
                    (known.index(now) + 1) % len(known) if now in known else 0
                ]


def _row(name: str, field: Input) -> ComposeResult:
    with Horizontal(classes="row"):
        yield Label(name)
        yield field


def configs() -> list[str]:
    """The config files of the project, as one would type them here."""
    return [_as_typed(path) for path in sorted((PROJECT / "configs").glob("*.yaml"))]


def _as_typed(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def last_config(records: "Records") -> str:
    """The config of the job queued last; the bundled one at first."""
    used = [str(job.settings.get("config") or "") for job in records.jobs().values()]
    return next(
        (name for name in reversed(used) if name and Path(name).exists()), _as_typed(PROJECT / "configs/pocket.yaml")
    )


def checkpoints(home: Home, kind: str) -> list[Path]:
    """What a kind can be queued for, newest first: finished phases, and for evaluations bases beside their runs."""
    found = [*home.checkpoints.glob("*/*/final/about.json")]
    if kind == "evaluate":
        found += home.checkpoints.glob("*/base/about.json")
    return [path.parent for path in sorted(found, key=os.path.getmtime, reverse=True)]
