"""Foreign text is shown letter by letter, whatever it holds, in every widget that shows any."""

import asyncio
import unicodedata

import pytest
from rich.cells import cell_len
from textual.app import App, ComposeResult
from textual.widgets import DataTable, Static

from tui import figures
from tui.menus import Confirm
from tui.text import clean, line, pad, safe, shorten, wrapped

HOSTILE = {
    "closing tag": "see [/oops] end",
    "open bracket": "text [/",
    "action": "[@click=app.quit]click me[/]",
    "style": "[bold red]loud[/bold red]",
    "colours": "\x1b[31mred\x1b[0m",
    "window title": "a\x1b]0;owned\x07b",
    "clipboard": "a\x1b]52;c;cm0gLXJm\x1b\\b",
    "cursor": "a\x1b[2Jb\x1b[H",
    "eight bit": "a\x9b2Jb\x85c",
    "controls": "abc\x08\x08\x00\x07",
    "direction": "\u202egnp.exe\u2066",
    "separators": "a\u2028b\u2029c",
    "surrogate": "a\udcffb",
    "wide": "日本語の要約 [/b]",
    "long": "[/x]" + "y" * 100_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_nothing_that_steers_a_terminal_is_left(text):
    plain = clean(text)
    assert not [c for c in plain if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    plain.encode()


def test_what_is_left_is_the_text():
    assert clean("\x1b[31mred\x1b[0m and [/b]") == "red and [/b]"
    assert clean("a\x1b]0;owned\x07b") == "ab"
    assert clean("a\x00b\u202ec") == "a\ufffdb\ufffdc"
    assert clean("soft\u00adhyphen") == "softhyphen"
    assert clean("x" * 9000) == "x" * 4000 + "…"
    assert line("two\nlines\r\n") == "two lines"


def test_widths_are_counted_in_cells():
    assert cell_len(shorten("日本語の要約", 7)) <= 7
    assert shorten("日本語", 6) == "日本語"
    assert pad("ab", 4) == "ab  "
    assert pad("ab", 4, right=True) == "  ab"
    assert all(cell_len(pad(text, 9)) == 9 for text in HOSTILE.values())
    assert shorten("anything", 0) == ""


def test_wrapping_keeps_every_letter_and_the_width():
    rows = wrapped("a long sentence with averyveryverylongword and 日本語の要約", 10)
    assert all(cell_len(row) <= 10 for row in rows)
    assert "".join(rows).replace(" ", "") == "alongsentencewithaveryveryverylongwordand日本語の要約"
    assert len(wrapped("one two three four", 5, 2)) == 2
    assert wrapped("日", 1) == ["日"]  # too wide for the cell, but it must come to an end
    assert wrapped("text", 0) == []


class Widgets(App):
    """All the ways in which foreign text is shown."""

    def __init__(self, text: str):
        super().__init__()
        self.text = text

    def compose(self) -> ComposeResult:
        content = safe(self.text, limit=60)
        framed = Static(content, id="static")
        framed.border_title = safe(line(self.text), limit=40)
        framed.styles.border = ("solid", "white")
        yield framed
        yield DataTable(id="table")

    def on_mount(self) -> None:
        table = self.query_one(DataTable)
        table.add_column(safe("column [/b]"), key="c")
        table.add_row(safe(line(self.text), limit=60))
        self.notify(clean(self.text, 60), markup=False, timeout=60)


def screen_text(app: App) -> str:
    strips = app.screen._compositor.render_strips()  # private, for this check only
    return "\n".join("".join(segment.text for segment in strip) for strip in strips)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
async def test_every_widget_shows_it_literally(text):
    app = Widgets(text)
    async with app.run_test(size=(120, 24), notifications=True) as pilot:
        await pilot.pause()
        shown = screen_text(app)
        head = line(text)[:12].rstrip()
        assert shown.count(head) >= 3  # title, table and toast at least
        assert not [c for c in shown if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs")]
        app.push_screen(Confirm(text[:50], text[:200]))
        await pilot.pause()
        assert head in screen_text(app)
        await pilot.press("n")
        await asyncio.sleep(0)
        assert app.is_running


def test_numbers_are_short():
    assert [figures.duration(s) for s in (0, 45, 130, 2300, 7800, 200_000, None)] == [
        "0s", "45s", "2m", "38m", "2h10", "2d07", "",
    ]  # fmt: skip
    assert [figures.number(v) for v in (0, 1.306, 0.0312, 8.1e-05, 1842, 24.94, 3.1e5, None, float("inf"))] == [
        "0", "1.31", "0.0312", "8.1e-05", "1,842", "24.9", "3.1e+05", "not finite", "not finite",
    ]  # fmt: skip
    assert figures.bar(1, 4, 8) == "██░░░░░░"
    assert figures.bar(None, None, 3) == "░░░"
    assert figures.size(168e6) == "168 MB"
