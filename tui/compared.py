"""A comparison as lines to draw. Pure; no Textual screen here."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from textual.content import Content
from textual.strip import Strip
from textual.style import Style

from jobs.compare_text import interval, judgement, label, letters, probability, shown, stars, worst_first
from tui import chart
from tui.chart import Curve, Picture
from tui.text import BOLD, CURSOR, CYAN, DIM, GREEN, PLAIN, RED, YELLOW, clean, pad, parts, shorten, wrapped

if TYPE_CHECKING:
    from engine.corpus.terms import Lexicon
    from jobs.compare import Change

VIEWS = ("differences", "settings", "losses", "documents")
TONES = {"▲": GREEN, "▼": RED, "·": DIM}
KEPT, LOST = Style(underline=True) + GREEN, RED


def head(value: dict[str, Any], view: int, width: int) -> list[Content]:
    """The checkpoints by letter, and the views with their numbers."""
    named = zip(letters(26), value["checkpoints"], strict=False)
    sides = "   ".join(f"{letter} {c['name']}" for letter, c in named)
    tabs = [
        piece
        for number, name in enumerate(VIEWS)
        for piece in ((f"{number + 1} {name}", BOLD + CYAN if number == view else DIM), "   ")
    ]
    return [
        Content.styled(shorten(sides, width), BOLD),
        parts(*tabs, (shorten(f"test set {value['test_set']}, paired", max(0, width - 57)), DIM)),
    ]


def differences(value: dict[str, Any], tests: list[dict] | None, width: int) -> list[Content]:
    """The tests worst first, then every metric side by side. tests: None while they are drawn."""
    lines = [Content.styled(text, YELLOW) for words in value["warnings"] for text in wrapped(f"! {words}", width)]
    if tests is None:
        lines.append(Content.styled("testing the differences…", YELLOW))
    else:
        lines += _tests(value, tests, width)
    return [*lines, Content(""), *_metrics(value, width)]


def _tests(value: dict[str, Any], tests: list[dict], width: int) -> list[Content]:
    """One line for each test. Where the line is short, no difference shown is told by what would have been."""
    names = {c["name"]: letter for letter, c in zip(letters(26), value["checkpoints"], strict=False)}
    rows = []
    for test in worst_first(tests):
        p = probability(test["p_holm"]) + stars(test["p_holm"])
        change = shown(test["difference"], test["metric"], signed=True)
        rows.append(
            (label(test["metric"]), f"{names[test['b']]}-{names[test['a']]}", f"{change:>6}", interval(test), p)
        )
    rows.insert(0, ("", "", "change", "95 %", "p (Holm)"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    fronts = [" ".join(map(str.ljust, row, widths)) + " " for row in rows]
    lines = [parts((fronts[0][:width], DIM))]
    for front, test in zip(fronts[1:], worst_first(tests), strict=True):
        sign, words = judgement(test)
        room = max(0, width - len(front))
        if len(words) + 2 > room and sign == "·":
            words = f"detectable {shown(test['detectable'], test['metric'])}"
        lines.append(parts(front[:width], (shorten(f"{sign} {words}", room), TONES[sign])))
    return lines


def _metrics(value: dict[str, Any], width: int) -> list[Content]:
    names = [clean(label(name)) for name in value["metrics"]]
    wide, cell = max((len(name) for name in names), default=0), 9
    heads = "".join(f"{letter:>{cell}}" for letter in letters(len(value["checkpoints"])))
    lines = [parts((f"{'':{wide}}{heads}"[:width], DIM))]
    for name, (key, values) in zip(names, value["metrics"].items(), strict=True):
        cells = "".join(f"{shown(v, key):>{cell}}" for v in values)
        lines.append(Content(shorten(f"{name:<{wide}}{cells}", width)))
    return lines


def settings(value: dict[str, Any], width: int) -> list[Content]:
    """The settings that are not the same on every side."""
    changed = value["settings_changed"]
    if not changed:
        return [Content.styled("No setting differs.", DIM)]
    wide = min(max(map(len, changed)), max(8, width // 2))
    cell = max(6, (width - wide - 2) // len(value["checkpoints"]) - 1)
    lines = [parts((pad("", wide + 2), DIM), *((f"{x:<{cell}} ", DIM) for x in letters(len(value["checkpoints"]))))]
    for name, each in changed.items():
        lines.append(parts(pad(name, wide), "  ", *(f"{pad(_plain(v), cell)} " for v in each)))
    return lines


def _plain(value: Any) -> str:
    return "–" if value is None else str(value)


def losses(curves: dict[str, tuple] | None, sides: Sequence[str], width: int, height: int) -> list[Content | Strip]:
    """The minimised sum of each side's phase over its steps, one upon the other, by the letters of the sides."""
    if curves is None:
        return [Content.styled("reading the losses…", DIM)]
    names = dict(zip(sides, letters(len(sides)), strict=True))
    drawn = tuple(Curve(f"{names[name]} {name}", tuple(xs), tuple(ys)) for name, (xs, ys) in curves.items())
    return chart.draw(
        Picture(drawn, x_unit="steps", empty="No losses: these checkpoints' jobs left no events here."), width, height
    )


def documents(rows: Sequence["Change"], place: int, metric: str, width: int, height: int) -> list[Content]:
    """A page of the documents around the cursor, worst first."""
    from engine.evaluation.table import METRICS, digits

    if not rows:
        return [Content.styled(f"No document has {METRICS[metric].label} on every side.", DIM)]
    first = min(max(0, place - height // 2), max(0, len(rows) - height + 1))
    places = digits(metric)
    name = max(8, width - 30 - 7 * len(rows[0].values))
    title = f"by {METRICS[metric].label}, worst first: {place + 1} of {len(rows):,}"
    heads = " ".join(f"{letter:>6}" for letter in letters(len(rows[0].values)))
    head = pad(f"{pad(title, name + 9)} {heads}", max(0, width - 10)) + f" {'change':>7}"
    lines = [Content.styled(head[:width], DIM)]
    for number in range(first, min(len(rows), first + height - 1)):
        row = rows[number]
        sign = "▼" if row.change < 0 else "▲" if row.change > 0 else "·"
        values = " ".join(f"{value:>6.{places}f}" for value in row.values)
        text = f"{pad(row.id, name)} {pad(row.column, 8)} {values}"
        line = parts(pad(text, max(0, width - 10)), (f" {row.change:>+7.{places}f} {sign}", TONES[sign]))
        lines.append(line.stylize(CURSOR) if number == place else line)
    return lines


def sample(found: dict[str, Any], lexicon: "Lexicon | None", width: int, full: bool = False) -> list[Content]:
    """One document: reference and outputs, and with `full` the source. Terms of the reference that a text kept are
    underlined; those it lost follow it."""
    wanted = set(found["terms"])
    texts = [("reference", found["reference"], [])]
    lost = found["terms_lost"] or [[]] * len(found["outputs"])
    texts += [(letter, text, gone) for letter, text, gone in zip(letters(26), found["outputs"], lost, strict=False)]
    if full:
        texts.append(("source", found["source"] or "not at hand", []))
    return [line for name, text, gone in texts for line in _text(name, text, gone, wanted, lexicon, width, full)]


def _text(name: str, text: str, gone: list[str], wanted: set[str], lexicon, width: int, full: bool) -> list[Content]:
    margin = 10
    rows = [_marked(row, wanted, lexicon) for row in wrapped(text or "(empty)", width - margin, 400 if full else 3)]
    rows += (
        [Content.styled(row, LOST) for row in wrapped(f"✗ lost: {', '.join(gone)}", width - margin, 2)] if gone else []
    )
    return [parts((f"{name if number == 0 else '':<{margin}}", BOLD), row) for number, row in enumerate(rows)]


def _marked(row: str, wanted: set[str], lexicon) -> Content:
    """A line with the terms that count underlined."""
    pieces, done = [], 0
    for span in lexicon.spans(row) if lexicon else ():
        if span.term in wanted:
            pieces += [row[done : span.start], (row[span.start : span.end], KEPT)]
            done = span.end
    return parts(*(piece for piece in [*pieces, row[done:]] if piece)) if pieces else Content(clean(row))


def checkpoint_rows(
    rows: Sequence[dict], marks: Sequence[str], place: int, metric: str, width: int, height: int
) -> list[Content]:
    """Checkpoints with their scores in a metric by column; ◆ marks those to compare."""
    from engine.evaluation.table import columns_in_order, digits

    if not rows:
        return [Content.styled("No checkpoint was judged yet. n, then e, queues an evaluation.", DIM)]
    columns = columns_in_order({c for row in rows for means in row["metrics"].values() for c in means})[:4]
    name = max(8, width - 4 - 10 * len(columns))
    lines = [parts((pad("", name + 4), DIM), *((f"{pad(c, 9, right=True)} ", DIM) for c in columns))]
    first = min(max(0, place - height // 2), max(0, len(rows) - height + 1))
    for number, row in list(enumerate(rows))[first : first + height - 1]:
        means = list(row["metrics"].values())[-1]
        values = [means.get(c, {}).get(metric) for c in columns]
        cells = "".join(f"{'–' if v is None else f'{v:.{digits(metric)}f}':>9} " for v in values)
        marked = row["name"] in marks
        line = parts(("◆ " if marked else "  ", CYAN), (pad(row["name"], name + 2), BOLD if marked else PLAIN), cells)
        lines.append(line.stylize(CURSOR) if number == place else line)
    return lines
