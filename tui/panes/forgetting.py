"""Pane 3: what each phase learnt and lost, against the base and against other runs."""

from textual.content import Content
from textual.style import Style

from engine.evaluation.table import METRICS, digits
from tui.pane import Pane
from tui.snapshot import Forgetting, Scores, Snapshot
from tui.text import BOLD, DIM, GREEN, PLAIN, RED, YELLOW, pad, parts, shorten, wrapped

TONES = {"plain": PLAIN, "good": GREEN, "bad": RED, "warning": YELLOW}
EMPTY = "Nothing measured yet for this run: evaluations fill this table."


class ForgettingPane(Pane):
    NAME = "Forgetting"

    def part(self, snapshot: Snapshot) -> Forgetting:
        return snapshot.forgetting

    def title(self) -> str:
        own = self._part.own if self._part else None
        if not own:
            return "Forgetting"
        return f"Forgetting · {own.run} · {_named(own.metric)}"

    def body(self, width: int, height: int) -> list[Content]:
        part: Forgetting = self._part
        measuring = [Content.styled(shorten(f"{phase}  …{words}", width), YELLOW) for phase, words in part.measuring]
        if part.problem:
            return [Content.styled(text, RED) for text in wrapped(f"✗ {part.problem}", width, height)]
        if not part.own:
            return [*(Content.styled(text, DIM) for text in wrapped(EMPTY, width, height)), *measuring]
        own = part.own
        gate = [Content.styled(text, TONES[own.gate_tone]) for text in wrapped(own.gate, width, 3)] if own.gate else []
        names = [name for name, _ in own.rows] + [_short(other) for other in part.others]
        name_width = min(max(len(name) for name in [*names, "base"]), max(6, width // 3))
        cell = max(10, min(20, (width - name_width - 1) // max(1, len(own.columns))))
        head = parts(" " * (name_width + 1), (
            "".join(pad(_head(own, *names), cell) for names in zip(own.columns, _metrics(own), strict=True)), DIM))  # fmt: skip
        table = [_row(name, values, own.rows[0][1], own, name_width, cell) for name, values in own.rows]
        rest = [_other(other, own, name_width, cell) for other in part.others]
        room = max(0, height - 1 - len(table) - len(measuring) - len(gate))
        if rest and room > 1:
            rest = [Content.styled(shorten("other runs, last measured row", width), DIM), *rest][:room]
        return [head, *table, *measuring, *rest[:room], *gate]


def _row(name: str, values, base, scores: Scores, name_width: int, cell: int) -> Content:
    metrics = _metrics(scores)
    cells = [_cell(value, base[k], metrics[k], cell, values is base) for k, value in enumerate(values)]
    return parts(pad(name, name_width) + " ", *(piece for found in cells for piece in found))


def _other(other: Scores, own: Scores, name_width: int, cell: int) -> Content:
    """The last measured row of another run, its columns in the order of ours, its changes against its own base."""
    measured = [row for row in other.rows if any(value is not None for value in row[1])] or other.rows[:1]
    values = dict(zip(other.columns, measured[-1][1], strict=True))
    base = dict(zip(other.columns, other.rows[0][1], strict=True))
    cells = [
        _cell(values.get(column), base.get(column), metric, cell, len(measured) == 1)
        for column, metric in zip(own.columns, _metrics(own), strict=True)
    ]
    return parts((pad(_short(other), name_width) + " ", DIM), *(piece for found in cells for piece in found))


def _named(metric: str) -> str:
    return f"{METRICS[metric].label}{', less is better' if METRICS[metric].better < 0 else ''}"


def _metrics(scores: Scores) -> tuple[str, ...]:
    """The metric of each column."""
    return scores.metric_of or (scores.metric,) * len(scores.columns)


def _head(scores: Scores, column: str, metric: str) -> str:
    return column if metric == scores.metric else f"{column} nats"


def _short(other: Scores) -> str:
    return other.run


def _cell(value: float | None, base: float | None, metric: str, cells: int, is_base: bool) -> list:
    if value is None:
        return [(pad("–", cells), DIM)]
    places = digits(metric)
    shown = f"{value:.{places}f}"
    if is_base or base is None:
        return [(pad(shown, cells), BOLD)]
    change = value - base
    sign, style = judged(change, metric)
    return [f"{shown:<6}", (pad(f"{change:+.{places}f} {sign}", cells - 6), style)]


def judged(change: float, metric: str) -> tuple[str, Style]:
    """▲ better, ▼ worse, · neither; of a likelihood in nats less is better."""
    from jobs.results import judged as found_better

    found = found_better(change, metric)
    return found, {"▲": GREEN, "▼": RED}.get(found, DIM)
