"""Pane 1: every job, what runs, what waits for what, and why something failed."""

from textual.content import Content
from textual.message import Message

from tui import figures
from tui.pane import Pane
from tui.snapshot import Row, Snapshot
from tui.text import BOLD, CURSOR, CYAN, DIM, GREEN, PLAIN, RED, YELLOW, pad, parts, shorten, wrapped

SIGNS = {"running": "▶", "queued": "·", "done": "✓", "failed": "✗", "cancelled": "○", "blocked": "!"}
STYLES = {"running": CYAN, "queued": PLAIN, "done": GREEN, "failed": RED, "cancelled": DIM, "blocked": YELLOW}
EMPTY = (
    "No jobs yet.",
    "",
    "n, then a   queue all phases, with evaluations",
    "n           everything else that can be queued",
    "?           all keys",
)


class LinePane(Pane):
    NAME = "Line"

    class Moved(Message):
        """The cursor stands on another job."""

        def __init__(self, job_id: str) -> None:
            super().__init__()
            self.job_id = job_id

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.filter = ""
        self.marks: list[str] = []  # RUN/PHASE
        self.cursor: str | None = None

    def part(self, snapshot: Snapshot):
        self.cursor = snapshot.selected.id if snapshot.selected else None
        return snapshot.rows, self.cursor, snapshot.problem, snapshot.loaded, snapshot.runner.paused

    def set_filter(self, text: str) -> None:
        self.filter = text
        self.redraw()
        rows = self.rows
        if rows and self.cursor not in [row.id for row in rows]:
            self._go(rows[0].id)

    def set_marks(self, marks: list[str]) -> None:
        self.marks = marks
        self.redraw()

    @property
    def rows(self) -> list[Row]:
        every = self._part[0] if self._part else ()
        words = self.filter.casefold().split()
        return [row for row in every if all(word in _searched(row) for word in words)]

    def move(self, rows: int) -> bool:
        ids = [row.id for row in self.rows]
        if ids:
            place = ids.index(self.cursor) if self.cursor in ids else 0
            self._go(ids[min(len(ids) - 1, max(0, place + rows))])
        return True

    def _go(self, job_id: str) -> None:
        """Move at once; the other panes follow with the next snapshot."""
        if job_id != self.cursor:
            self.cursor = job_id
            self.redraw()
            self.post_message(self.Moved(job_id))

    def title(self) -> str:
        rows = self._part[0] if self._part else ()
        states = ("running", "queued", "blocked", "failed")
        counts = [(sum(row.state == state for row in rows), state) for state in states]
        words = ", ".join(f"{count} {state}" for count, state in counts if count)
        shown = f" · /{self.filter}" if self.filter else ""
        return f"Line{' · ' if words else ''}{words}{shown}"

    def body(self, width: int, height: int) -> list[Content]:
        _, _, problem, loaded, paused = self._part
        if problem:
            return [Content.styled(text, RED) for text in wrapped(f"✗ {problem}", width, height)]
        if not loaded:
            return []
        rows = self.rows
        if not rows:
            lines = (f"No job matches /{self.filter}.", "esc shows all") if self.filter else EMPTY
            return [Content(shorten(text, width) if text else "") for text in lines]
        if paused and height > 3:
            words = Content.styled(shorten(f"= paused: {paused} (p lets the line go on)", width), YELLOW)
            return [words, *self._line(rows, width, height - 1)]
        return self._line(rows, width, height)

    def _line(self, rows: list[Row], width: int, height: int) -> list[Content]:
        """The rows around the cursor, and below them the selected job in full words."""
        current = next((row for row in rows if row.id == self.cursor), rows[0])
        below = _about(current, width, min(4, height // 3))
        room = max(1, height - len(below))
        place = rows.index(current)
        first = min(max(0, place - room + 1 + (place < len(rows) - 1)), max(0, len(rows) - room))
        columns = _columns(rows, width)
        lines = [
            drawn.stylize(CURSOR) if row is current else drawn
            for row in rows[first : first + room]
            for drawn in [_line(row, columns, width, f"{row.run}/{row.phase}" in self.marks)]
        ]
        return [*lines, *[Content("")] * (room - len(lines)), *below]


def _searched(row: Row) -> str:
    return f"{row.id} {row.run} {row.what} {row.kind} {row.state}".casefold()


def _columns(rows: list[Row], width: int) -> tuple[int, int, int, int]:
    """Widths of id, run, what and state, so that the rest of the line can say how far or why."""
    longest = [
        max(len(text) for text in column)
        for column in zip(*((r.id, r.run, r.what, r.state) for r in rows), strict=True)
    ]
    most = (5, 20, 18, 9) if width >= 66 else (4, 10, 11, 9)
    return tuple(min(a, b) for a, b in zip(longest, most, strict=True))


def _line(row: Row, columns: tuple[int, int, int, int], width: int, marked: bool) -> Content:
    number, run, what, state = columns
    style = STYLES.get(row.state, PLAIN)
    rest = width - sum(columns) - 6
    fitted = pad(row.what if len(row.what) <= what else row.what.replace("evaluate ", "eval "), what)
    return parts(
        (SIGNS.get(row.state, "?"), style),
        ("◆", CYAN) if marked else " ",
        pad(row.id, number, right=True) + " ",
        pad(row.run, run) + " ",
        fitted + " ",
        (pad(row.state, state) + " ", style),
        (pad(_rest(row, rest), rest), DIM if row.state in ("done", "cancelled") else PLAIN),
    )


def _rest(row: Row, cells: int) -> str:
    """What matters most of a job in this state."""
    if row.state == "running":
        return _progress(row, cells)
    if row.state == "queued":
        turn = "next" if row.place == 1 else f"{row.place}. in line" if row.place else "" if row.after else "ready"
        waits = f"after {row.after}" if row.after and not row.place else ""
        urgency = f"priority {row.priority}" if row.priority else ""
        return "  ".join(word for word in (turn or waits, urgency) if word)
    if row.state == "done":
        return figures.duration(row.seconds)
    return row.reason.partition("\n")[0]


def _progress(row: Row, cells: int) -> str:
    if row.done is None or not row.total:
        return row.stage or "starting"
    percent = f"{min(100, 100 * row.done // row.total):3d}%"
    stage = pad(row.stage, 11) if cells >= 36 else ""
    length = max(0, min(24, cells - len(stage) - 11))
    return f"{stage}{figures.bar(row.done, row.total, length)} {percent} {figures.duration(row.eta):>5}"


def _about(row: Row, width: int, height: int) -> list[Content]:
    """The selected job in full words below the line: reason and remedy, or what a running one is at."""
    if height < 2:
        return []
    if row.state == "running":
        far = f" {row.done}/{row.total}" if row.total else ""
        return [Content.styled(shorten(f"{row.stage}{far}, attempt {row.attempt}, process {row.pid}", width), DIM)]
    if not row.reason:
        return []
    warned = row.state == "done"  # and yet there is a reason: its gate stopped the line
    sign, style = ("!", YELLOW) if warned else (SIGNS.get(row.state, "?"), STYLES.get(row.state, PLAIN))
    remedy = wrapped(f"→ {row.remedy}", width, 1) if row.remedy else []
    reason = wrapped(f"{sign} {row.reason}", width, height - len(remedy))
    return [*(Content.styled(text, style) for text in reason), *(Content.styled(text, BOLD) for text in remedy)]
