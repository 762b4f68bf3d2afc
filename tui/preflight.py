"""Data: what training sees of a job's data, before it runs. Counted in a child; shown when it is there."""

import asyncio
from typing import TYPE_CHECKING, Any

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from tui.menus import CLOSE, problem
from tui.snapshot import Row
from tui.text import BOLD, DIM, PLAIN, YELLOW, parts, safe

if TYPE_CHECKING:
    from jobs.home import Home

SHOWN = 1500  # characters of a text
STYLES = {"masked": DIM, "learnt": BOLD, "left out": YELLOW}


class Preflight(ModalScreen):
    BINDINGS = [
        CLOSE,
        Binding("j,down", "scroll(1)"),
        Binding("k,up", "scroll(-1)"),
        Binding("pagedown", "scroll(12)"),
        Binding("pageup", "scroll(-12)"),
    ]

    def __init__(self, home: "Home", row: Row) -> None:
        super().__init__()
        self.home, self.row = home, row

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="box"):
            yield Static(
                parts((f"Data of job {self.row.id} · ", BOLD), safe(f"{self.row.what} of {self.row.run}", BOLD))
            )
            yield Static(Content.styled("reading the records and counting tokens…", DIM), id="data")

    def on_mount(self) -> None:
        self.run_worker(self._load())

    async def _load(self) -> None:
        from engine.settings import ConfigError

        try:
            lines = shown(await asyncio.to_thread(self._facts))
        except ConfigError as error:
            lines = problem(str(error).splitlines())
        self.query_one("#data", Static).update(Content("\n").join([Content(""), *lines]))

    def _facts(self) -> dict[str, Any]:
        from jobs.preflight import facts
        from jobs.submit import read_spec

        _, settings = read_spec(self.home.spec(self.row.id))
        return facts(self.home, settings, lambda line: None)

    def action_scroll(self, rows: int) -> None:
        self.query_one(VerticalScroll).scroll_relative(y=rows, animate=False)


def shown(value: dict[str, Any]) -> list[Content]:
    """The facts in lines: counts and histograms, warnings, and samples with the masked part dimmed."""
    from jobs.preflight import bars, pieces

    lines: list[Content] = []
    for source, part in value["sources"].items():
        cut = part["truncated"] / part["counted"] if part["counted"] else 0
        told = f"  {part['records']:,} documents, longest {part['longest']:,} tokens, {cut:.1%} longer than {value['max_length']:,}"
        lines += [parts((source, BOLD), told), *(Content(row) for row in bars(part["histogram"]))]
    if value["label_share"] is not None:
        lines.append(Content(f"learnt from: {value['label_share']:.1%} of the tokens"))
    lines += [safe(f"! {line}", YELLOW) for line in value["warnings"]]
    for sample in value["samples"]:
        lines += [Content(""), parts((f"{sample['source']} ", BOLD), safe(sample["id"], BOLD))]
        for name, told in pieces(sample):
            style = STYLES[name]
            lines.append(parts((f"{name} ", style), safe(_ends(told), PLAIN if name == "learnt" else style)))
    return lines


def _ends(text: str) -> str:
    """The beginning and the end of a text: of a long one the middle says least."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]}\n…\n{text[-SHOWN // 2 :]}"
