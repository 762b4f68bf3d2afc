"""Pane 6: what the job said, newest at the bottom."""

from textual.content import Content

from tui.history import LogLine
from tui.pane import Pane
from tui.snapshot import Log, Snapshot
from tui.text import DIM, GREEN, PLAIN, RED, YELLOW, parts, shorten

TONES = {"plain": ("  ", PLAIN), "good": ("✓ ", GREEN), "warning": ("! ", YELLOW), "bad": ("✗ ", RED)}


class LogPane(Pane):
    NAME = "Log"
    back = 0  # lines above the end; 0 follows what is new

    def part(self, snapshot: Snapshot) -> Log:
        if self._part and snapshot.log.job != self._part.job:
            self.back = 0
        return snapshot.log

    def title(self) -> str:
        job = f" · job {self._part.job}" if self._part and self._part.job else ""
        return f"Log{job}{f' · {self.back} lines up' if self.back else ''}"

    def move(self, rows: int) -> bool:
        lines = len(self._part.lines) if self._part else 0
        self.back = min(max(0, lines - 1), max(0, self.back - rows))
        self.redraw()
        return True

    def body(self, width: int, height: int) -> list[Content]:
        lines = self._part.lines
        if not lines:
            return [Content.styled(shorten("Nothing yet: the log begins when the job starts.", width), DIM)]
        end = len(lines) - self.back
        return [_line(line, width) for line in lines[max(0, end - height) : end]]


def _line(line: LogLine, width: int) -> Content:
    sign, style = TONES[line.tone]
    return parts((f"{line.clock:8} ", DIM), (sign, style), (shorten(line.text, width - 11), style))
