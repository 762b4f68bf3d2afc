"""Everything about one job: state, reason, remedy, folder, the settings that matter, its last lines."""

import asyncio
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from tui import figures
from tui.history import History
from tui.menus import CLOSE, problem
from tui.panes.log import TONES
from tui.snapshot import Row
from tui.text import BOLD, DIM, parts, safe

if TYPE_CHECKING:
    from jobs.home import Home

LINES = 40


class Details(ModalScreen):
    BINDINGS = [CLOSE, Binding("enter", "dismiss", "close"), Binding("j", "scroll(1)"), Binding("k", "scroll(-1)")]

    def __init__(self, home: "Home", row: Row, history: History) -> None:
        super().__init__()
        self.home, self.row, self.history = home, row, history

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="box"):
            yield Static(_join(self._facts()), id="facts")
            yield Static(Content.styled("reading the settings…", DIM), id="settings")
            yield Static(_join(self._last_lines()), id="lines")

    async def on_mount(self) -> None:
        self.run_worker(self._load())

    async def _load(self) -> None:
        from engine.settings import ConfigError
        from jobs import adjust
        from jobs.submit import read_spec
        from tui.preview import settings_rows

        try:
            job, settings = await asyncio.to_thread(read_spec, self.home.spec(self.row.id))
            adjusted = adjust.read(self.home.adjusted(self.row.id))
        except ConfigError as error:
            lines = problem(str(error).splitlines())
        else:
            width = self.query_one("#settings").size.width
            lines = [line for fact in settings_rows(settings, job, adjusted) for line in fact.lines(width)]
        self.query_one("#settings", Static).update(_join([Content(""), *lines]))

    def action_scroll(self, rows: int) -> None:
        self.query_one(VerticalScroll).scroll_relative(y=rows, animate=False)

    def _facts(self) -> list[Content]:
        row, progress = self.row, self.history.progress
        far = f"{progress.stage} {progress.done}/{progress.total}" if progress.total else progress.stage
        place = f"place {row.place} in the line" if row.place else f"after job {row.after}" if row.after else ""
        facts = [
            ("state", " · ".join(word for word in (row.state, place if row.state == "queued" else "", far) if word)),
            ("reason", row.reason),
            ("remedy", row.remedy),
            ("attempt", str(row.attempt or "")),
            ("process", str(row.pid or "") if row.state == "running" else ""),
            ("took", figures.duration(row.seconds)),
            ("priority", str(row.priority or "")),
            ("config", row.config),
            ("folder", str(self.home.job(row.id))),
        ]
        title = Content.styled(f"Job {row.id} · ", BOLD) + safe(f"{row.what} of {row.run}", BOLD)
        return [title, *(parts((f"{name:<10}", DIM), safe(text)) for name, text in facts if text)]

    def _last_lines(self) -> list[Content]:
        lines = list(self.history.lines)[-LINES:]
        shown = [
            parts(
                (f"{line.clock:8} ", DIM),
                (TONES[line.tone][0], TONES[line.tone][1]),
                safe(line.text, TONES[line.tone][1]),
            )
            for line in lines
        ]
        sample = self.history.sample
        if sample:
            shown += [
                Content(""), parts(("sample    ", DIM), safe(sample.id)),
                parts(("reference ", DIM), safe(sample.reference)), parts(("output    ", DIM), safe(sample.output)),
            ]  # fmt: skip
        return [Content(""), Content.styled("last lines", BOLD), *shown] if shown else []


def _join(lines: list[Content]) -> Content:
    return Content("\n").join(lines)
