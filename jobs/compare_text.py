"""A comparison as text, Markdown, CSV or JSON."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine import files
from engine.evaluation.table import METRICS, digits
from engine.settings import ConfigError
from jobs import show
from jobs.compare_tests import LEVEL

STARS = ((0.001, "***"), (0.01, "**"), (LEVEL, "*"))


def stars(p: float) -> str:
    return next((signs for level, signs in STARS if p < level), "")


def label(name: str) -> str:
    """videos.rougeL -> videos ROUGE-L."""
    column, _, metric = name.rpartition(".")
    return f"{column} {METRICS[metric].label}"


def shown(value: float | None, name: str, signed: bool = False) -> str:
    """A value of COLUMN.METRIC, with its decimals."""
    if value is None:
        return "–"
    return f"{value:{'+' if signed else ''}.{digits(name.rpartition('.')[2])}f}"


def probability(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def judgement(test: dict) -> tuple[str, str]:
    """(sign, words): a difference that stands after Holm's correction, or what would have been detectable."""
    better = METRICS[test["metric"].rpartition(".")[2]].better * test["difference"]
    if test["p_holm"] >= LEVEL:
        return "·", f"no difference shown (detectable: {shown(test['detectable'], test['metric'])})"
    return ("▲", "better") if better > 0 else ("▼", "worse") if better < 0 else ("·", "differs")


def interval(test: dict) -> str:
    low, high = (shown(bound, test["metric"], signed=True) for bound in test["ci95"])
    return f"[{low}, {high}]"


def letters(count: int) -> list[str]:
    return [chr(ord("A") + k) for k in range(count)]


def metric_table(value: dict) -> list[list[str]]:
    """Head and rows: the metric, then the value on each side."""
    head = ["", *letters(len(value["checkpoints"]))]
    return [head, *([label(name), *(shown(v, name) for v in values)] for name, values in value["metrics"].items())]


def test_table(value: dict) -> list[list[str]]:
    names = {c["name"]: letter for c, letter in zip(value["checkpoints"], letters(26), strict=False)}
    rows = [["", "", "difference", "95 %", "p (Holm)", "", ""]]
    for test in worst_first(value["tests"]):
        sign, words = judgement(test)
        rows.append([
            label(test["metric"]), f"{names[test['b']]} - {names[test['a']]}",
            shown(test["difference"], test["metric"], signed=True), interval(test),
            probability(test["p_holm"]) + stars(test["p_holm"]), f"{sign} {words}", f"n {test['n']}",
        ])  # fmt: skip
    return rows


def worst_first(tests: Sequence[dict]) -> list[dict]:
    """What got worse, then what no difference was shown for, then what got better."""
    order = {"▼": 0, "·": 1, "▲": 2}
    return sorted(tests, key=lambda test: order[judgement(test)[0]])


def text(value: dict) -> str:
    """For a terminal."""
    lines = [f"{letter} {c['name']}" for letter, c in zip(letters(26), value["checkpoints"], strict=False)]
    lines += [f"test set {value['test_set']}, paired by document", "", show.table(test_table(value), right=(2, 3, 4))]
    lines += ["", show.table(metric_table(value), right=tuple(range(1, 27))), ""]
    lines += [f"{name}: {' | '.join(map(str, each))}" for name, each in value["settings_changed"].items()]
    lines += ["" if value["settings_changed"] else "no setting differs", "documents, worst first"]
    for sample in value["samples"]:
        lines += ["", *_sample_lines(sample)]
    return "\n".join([*lines, *(f"warning: {words}" for words in value["warnings"])])


def _sample_lines(sample: dict) -> list[str]:
    lines = [f"{sample['column']} {show.plain(sample['id'])}  {sample['change']:+.1f}"]
    lines += [f"  reference  {show.plain(sample['reference'])[:400]}"]
    for k, (letter, output) in enumerate(zip(letters(26), sample["outputs"], strict=False)):
        lost = ", ".join(sample["terms_lost"][k]) if sample["terms_lost"] else ""
        lines.append(f"  {letter} {show.plain(output)[:400]}" + (f"  terms lost: {lost}" if lost else ""))
    return lines


def markdown(value: dict) -> str:
    parts = [
        "# Comparison",
        "",
        f"Test set {value['test_set']}, paired by document. Family of the Holm correction: all rows.",
    ]
    parts += ["", *(f"- **{x}** {_cell(c['name'])}" for x, c in zip(letters(26), value["checkpoints"], strict=False))]
    parts += ["", "## Differences", "", *_rows(test_table(value)), "", "## Metrics", "", *_rows(metric_table(value))]
    head = ["setting", *letters(len(value["checkpoints"]))]
    settings = [[name, *map(str, each)] for name, each in value["settings_changed"].items()]
    parts += ["", "## Settings that differ", "", *(_rows([head, *settings]) if settings else ["None."])]
    parts += ["", "## Documents, worst first"]
    for sample in value["samples"]:
        parts += ["", f"### {_cell(sample['column'])} {_cell(sample['id'])}: {sample['change']:+.1f}", ""]
        parts += [f"- reference: {_cell(sample['reference'])}"]
        parts += [f"- {x}: {_cell(output)}" for x, output in zip(letters(26), sample["outputs"], strict=False)]
    return "\n".join([*parts, "", *(f"Warning: {_cell(words)}" for words in value["warnings"])]).rstrip() + "\n"


def _rows(rows: list[list[str]]) -> list[str]:
    head, *rest = rows
    lines = [head, ["---"] * len(head), *rest]
    return ["| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines]


def _cell(words: str) -> str:
    """Foreign text inside Markdown: one line, no table or markup of its own."""
    plain = show.plain(str(words))
    return "".join(f"\\{c}" if c in "\\|`*_[]<>#" else c for c in plain)


def comma_separated(value: dict) -> str:
    """One row for each metric: the value on each side, then what the tests against the first say."""
    names = [c["name"] for c in value["checkpoints"]]
    fields = ("difference", "low", "high", "p", "p_holm", "n", "effect", "detectable")
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["metric", *names, *(f"{name}: {field}" for name in names[1:] for field in fields)])
    tests = {(test["metric"], test["b"]): test for test in value["tests"]}
    for metric, values in value["metrics"].items():
        told = [_csv_test(tests.get((metric, name)), fields) for name in names[1:]]
        writer.writerow([metric, *values, *(cell for cells in told for cell in cells)])
    return file.getvalue()


def _csv_test(test: dict | None, fields: Sequence[str]) -> list[Any]:
    if test is None:
        return [""] * len(fields)
    low, high = test["ci95"]
    return [(test | {"low": low, "high": high})[field] for field in fields]


FORMATS: dict[str, Callable[[dict], str]] = {".md": markdown, ".csv": comma_separated, ".json": show.as_json}


def export(value: dict, path: Path) -> None:
    """Write a comparison in the format its suffix names. Raises ConfigError for another one, or if it cannot."""
    if path.suffix not in FORMATS:
        raise ConfigError(f"--export {path}: use a name that ends in {', '.join(FORMATS)}")
    try:
        files.replace(path, FORMATS[path.suffix](value).encode())
    except OSError as error:
        raise ConfigError(f"--export {path}: cannot be written ({error.strerror})") from None
