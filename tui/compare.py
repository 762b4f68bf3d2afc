"""Two or more checkpoints side by side: what changed, by how much, whether it counts, and in which documents."""

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual.app import ComposeResult
from textual.binding import Binding
from textual.content import Content
from textual.screen import Screen

from engine.evaluation.table import HEADLINE, METRICS
from tui import compared
from tui.drawn import Drawn
from tui.menus import Box, problem
from tui.text import DIM, clean, parts, shorten

if TYPE_CHECKING:
    from jobs.compare import Comparison
    from jobs.home import Home
    from jobs.records import Records

HINT = "1-4 tab views  j k move  enter whole document  m metric  e export  esc back"
SAMPLE_LINES = 14  # of a document below the list


class Sheet(Drawn):
    """The whole of the screen but its last line."""

    def __init__(self, draw) -> None:
        super().__init__(id="sheet")
        self._of = draw

    def draw(self, width: int, height: int) -> list:
        return self._of(width, height)


class Hint(Drawn):
    def __init__(self, text: str) -> None:
        super().__init__(id="foot")
        self._text = text

    def draw(self, width: int, height: int) -> list[Content]:
        return [Content.styled(shorten(self._text, width), DIM)]


class Compare(Screen):
    """given: RUN/PHASE names. The metrics come at once, the documents with the next thread, the tests from a child."""

    BINDINGS = [
        Binding("escape,q", "app.pop_screen", "back"),
        *(Binding(str(number), f"view({number - 1})", compared.VIEWS[number - 1]) for number in range(1, 5)),
        Binding("tab", "turn(1)", "next view"),
        Binding("shift+tab", "turn(-1)", "view before"),
        Binding("down,j", "move(1)", "next"),
        Binding("up,k", "move(-1)", "previous"),
        Binding("pagedown", "move(10)", "ten on"),
        Binding("pageup", "move(-10)", "ten back"),
        Binding("home,g", "move(-1000000)", "first"),
        Binding("end,G", "move(1000000)", "last"),
        Binding("enter", "open", "the whole document"),
        Binding("m", "metric", "next metric that documents are ordered by"),
        Binding("e", "export", "write Markdown, CSV and JSON"),
    ]
    AUTO_FOCUS = None

    def __init__(self, home: "Home", records: "Records", given: Sequence[str]) -> None:
        super().__init__()
        self.home, self.records, self.given = home, records, list(given)
        self._view = self._place = self._top = 0
        self._found: Comparison | None = None
        self._value: dict[str, Any] | None = None
        self._tests: list[dict] | None = None
        self._curves: dict | None = None
        self._rows: list | None = None
        self._texts: dict[str, str] = {}
        self._lexicon = None
        self._metric = HEADLINE[0]
        self._problem: tuple[str, ...] = ()

    def compose(self) -> ComposeResult:
        self._sheet = Sheet(self._lines)
        yield self._sheet
        yield Hint(HINT)

    # -- what is read -------------------------------------------------------------------------------------------------

    def on_mount(self) -> None:
        self.run_worker(self._load())

    async def _load(self) -> None:
        from engine.settings import ConfigError
        from jobs import compare

        try:
            self._found = await asyncio.to_thread(compare.load, self.home, self.given)
            self._value = await asyncio.to_thread(compare.overview, self._found)
            self._metric = next((m for _, m in compare.tested(self._found)), HEADLINE[0])
            self._sheet.redraw()
            self.run_worker(self._test(), group="tests")
            await self._rank()
            self._curves = await asyncio.to_thread(compare.curves, self.home, self.records, self._found)
        except (ConfigError, OSError) as error:
            self._problem = tuple(str(error).splitlines())
        else:
            await self._read_texts()
        self._sheet.redraw()

    async def _read_texts(self) -> None:
        """Sources and terms; what is gone is said, the rest stands."""
        from engine.settings import ConfigError
        from jobs import compare

        try:
            self._lexicon = await asyncio.to_thread(compare.lexicon, self._found)
            self._texts = await asyncio.to_thread(compare.sources, self._found)
        except (ConfigError, OSError) as error:
            self._value["warnings"].append(str(error).splitlines()[0])

    async def _rank(self) -> None:
        from jobs.compare import ranked

        self._rows = await asyncio.to_thread(ranked, self._found, self._metric)
        self._place = 0
        self._sheet.redraw()

    async def _test(self) -> None:
        """The tests, from a child that does not outlive this screen."""
        from jobs.compare_tests import child_command
        from jobs.home import PROJECT

        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(
            *child_command(self._found), cwd=PROJECT, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )
        try:
            out, errors = await child.communicate()
        finally:
            if child.returncode is None:
                child.kill()
        if child.returncode:
            said = errors.decode(errors="replace").strip().splitlines() or ["the process ended without a word"]
            self._value["warnings"].append(f"no tests: {said[-1]}")
            self._tests = []
        else:
            self._tests = json.loads(out)
        self._sheet.redraw()

    # -- what is drawn ------------------------------------------------------------------------------------------------

    def _lines(self, width: int, height: int) -> list:
        if self._problem:
            return problem(self._problem)
        if self._value is None:
            return [Content.styled("reading the evaluations…", DIM)]
        head = compared.head(self._value, self._view, width)
        room = max(1, height - len(head))
        return [*head, *self._body(width, room)]

    def _body(self, width: int, room: int) -> list:
        if self._view == 2:
            return compared.losses(self._curves, self._found.names, width, room)
        if self._view == 3:
            return self._documents(width, room)
        lines = (
            compared.differences(self._value, self._tests, width)
            if self._view == 0
            else compared.settings(self._value, width)
        )
        self._top = max(0, min(self._top, len(lines) - room))
        return lines[self._top : self._top + room]

    def _documents(self, width: int, room: int) -> list:
        if self._rows is None:
            return [Content.styled("reading the documents…", DIM)]
        below = min(SAMPLE_LINES, room // 2)
        page = compared.documents(self._rows, self._place, self._metric, width, room - below)
        page += [Content("")] * (room - below - len(page))
        sample = self._sample()
        return page + (compared.sample(sample, self._lexicon, width)[:below] if sample else [])

    def _sample(self) -> dict | None:
        from jobs.compare import sample

        if not self._rows:
            return None
        return sample(self._found, self._rows[self._place], self._texts, self._lexicon)

    # -- keys ---------------------------------------------------------------------------------------------------------

    def action_view(self, number: int) -> None:
        self._view, self._top = number, 0
        self._sheet.redraw()

    def action_turn(self, step: int) -> None:
        self.action_view((self._view + step) % len(compared.VIEWS))

    def action_move(self, step: int) -> None:
        if self._view == 3:
            self._place = max(0, min(self._place + step, len(self._rows or ()) - 1))
        else:
            self._top = max(0, self._top + step)
        self._sheet.redraw()

    def action_metric(self) -> None:
        """The next metric that every side has for each document."""
        from jobs.compare import tested

        if self._value is None:
            return
        names = list(dict.fromkeys(metric for _, metric in tested(self._found, list(METRICS))))
        self._metric = names[(names.index(self._metric) + 1) % len(names)] if self._metric in names else names[0]
        self.run_worker(self._rank(), group="rank", exclusive=True)

    def action_open(self) -> None:
        if self._view == 3 and (found := self._sample()):
            lines = compared.sample(found, self._lexicon, min(106, self.size.width - 6), full=True)
            title = parts((f"{clean(found['id'], 200)}  {found['change']:+.1f}", DIM))
            self.app.push_screen(Box([title, Content(""), *lines]))

    def action_export(self) -> None:
        if self._tests is None:
            self._tell("the tests are not finished yet")
            return
        self.run_worker(self._export(), group="export", exclusive=True)

    async def _export(self) -> None:
        from engine.settings import ConfigError

        try:
            stem = await asyncio.to_thread(self._write)
        except (ConfigError, OSError) as error:
            self._tell(str(error), "error")
        else:
            self._tell(f"written: {stem}.md, .csv and .json")

    def _write(self) -> Path:
        from jobs import compare, compare_text

        samples, warnings = compare.samples(self._found, self._metric)
        value = self._value | {"tests": self._tests, "samples": samples}
        value["warnings"] = list(dict.fromkeys([*self._value["warnings"], *warnings]))
        folder = self.home.root / "comparisons"
        folder.mkdir(exist_ok=True)
        names = "-vs-".join(name.replace("/", "-") for name in self._found.names)
        stem = folder / f"{names[:100]}-{time.strftime('%Y%m%d-%H%M%S')}"
        for suffix in compare_text.FORMATS:
            compare_text.export(value, stem.with_name(stem.name + suffix))
        return stem

    def _tell(self, text: str, severity: str = "information") -> None:
        self.notify(clean(text, 600), severity=severity, markup=False, timeout=8)
