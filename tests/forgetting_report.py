"""The results of `make bench-forgetting` as tables in docs/benchmarks.md: what prevents forgetting, and at what price."""

import json
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import plotext

from engine.evaluation.statistics import Difference, paired, two_level
from tests.recipes import LAMBDAS, RECIPES

START, END = "<!-- make bench-forgetting: start -->", "<!-- make bench-forgetting: end -->"
FULL, SEQUENTIAL, BARE = "full recipe", "sequential", "curriculum only"
PAPER_DRAWS, ALL_DRAWS = "naive papers, as many paper draws", "naive papers, as many draws"
Results = dict[str, dict[int, dict]]  # recipe -> seed -> content of its result file


def read(folder: Path) -> Results:
    found: Results = {}
    for path in sorted((folder / "results").glob("*.json")):
        content = json.loads(path.read_bytes())
        found.setdefault(content["recipe"], {})[content["seed"]] = content
    return found


def rouge(result: dict, row: str, column: str) -> float:
    """Mean ROUGE-L x 100 of a column after a phase."""
    return 100 * statistics.fmean(result["scores"][row][column]["rougeL"])


def nats(result: dict, row: str, column: str) -> float:
    """Nats per token."""
    cell = result["scores"][row][column]
    return sum(v * n for v, n in zip(cell["nll"], cell["tokens"], strict=True)) / sum(cell["tokens"])


def phases(result: dict) -> list[str]:
    return [row for row in result["scores"] if row != "base"]


def last(result: dict) -> str:
    return phases(result)[-1]


def mean_of(seeds: dict[int, dict], value: Callable[[dict], float]) -> float:
    return statistics.fmean(value(result) for result in seeds.values())


def change(seeds: dict[int, dict], column: str, since: str = "base", metric: str = "rougeL") -> Difference:
    """The change of a column at the end of a recipe, over its seeds and documents."""
    differences = {}
    for seed, result in seeds.items():
        now, then = (result["scores"][row][column] for row in (last(result), since))
        scale = [100.0] * len(now[metric])
        if metric == "nll":
            scale = [n * len(now["tokens"]) / sum(now["tokens"]) for n in now["tokens"]]
        differences[str(seed)] = [s * (a - b) for s, a, b in zip(scale, now[metric], then[metric], strict=True)]
    return two_level(differences) if len(differences) > 1 else paired(next(iter(differences.values())))


def worst_videos(seeds: dict[int, dict]) -> tuple[float, str]:
    """(lowest change of the videos after any phase of any seed, where that was)."""
    found = [
        (rouge(result, row, "videos") - rouge(result, "base", "videos"), f"{row}, seed {seed}")
        for seed, result in seeds.items()
        for row in phases(result)
    ]
    return min(found)


def gain(result: dict) -> float:
    return rouge(result, last(result), "papers") - rouge(result, "base", "papers")


def share_of(results: Results, recipe: str, naive: str) -> str:
    """The papers' gain as a share of a naive run's, seeds matched: mean and the lowest seed."""
    both = sorted(results[recipe].keys() & results.get(naive, {}).keys())
    shares = [100 * gain(results[recipe][seed]) / gain(results[naive][seed]) for seed in both]
    if not shares:
        return ""
    total = 100 * sum(gain(results[recipe][s]) for s in both) / sum(gain(results[naive][s]) for s in both)
    return f"{total:.1f} % ({min(shares):.1f})"


def seconds_per_step(result: dict) -> float | None:
    """CPU seconds of an optimizer step after the first phase; None where the training was interrupted."""
    whole = [
        cost
        for cost in result["costs"][1:] or result["costs"]
        if cost["steps"] and cost["seconds"] / cost["steps"] > 0.01
    ]
    return sum(c["seconds"] for c in whole) / sum(c["steps"] for c in whole) if whole else None


def price(results: Results, recipe: str, plain: str) -> str:
    """Median ratio of the CPU time of a step to that of plain cross-entropy on the same seed."""
    ratios = []
    for seed, result in results[recipe].items():
        mine, theirs = seconds_per_step(result), seconds_per_step(results.get(plain, {}).get(seed, {"costs": []}))
        if mine and theirs:
            ratios.append(mine / theirs)
    return f"{statistics.median(ratios):.2f}" if ratios else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" + "---:|" * (len(head) - 1)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def cells(seeds: dict[int, dict], row: str) -> str:
    parts = [f"{mean_of(seeds, lambda r, c=c: rouge(r, row, c)):.1f}" for c in ("papers", "videos")]
    return " / ".join([*parts, f"{mean_of(seeds, lambda r: nats(r, row, 'general')):.2f}"])


def main_rows(results: Results, names: Sequence[str], plain: str) -> list[str]:
    """One row a recipe: the R matrix (papers / videos ROUGE-L / general nats), and what it says."""
    rows = []
    for name in names:
        seeds = results[name]
        one = next(iter(seeds.values()))
        worst, where = worst_videos(seeds)
        videos = change(seeds, "videos")
        backward = "" if len(phases(one)) == 1 else f"{change(seeds, 'papers', 'phase1').mean:+.1f}"
        middle = cells(seeds, "phase2") if len(phases(one)) == 3 else ""
        rows.append([
            name, str(len(seeds)), cells(seeds, "phase1"), middle, cells(seeds, last(one)), f"{worst:+.1f} ({where})",
            f"{videos.mean:+.2f} [{videos.ci95[0]:+.2f}, {videos.ci95[1]:+.2f}]", backward,
            share_of(results, name, PAPER_DRAWS), share_of(results, name, ALL_DRAWS), price(results, name, plain),
        ])  # fmt: skip
    head = (
        "recipe", "seeds", "after phase 1", "after phase 2", "at the end", "videos, worst after any phase",
        "videos at the end against base", "papers since phase 1", "papers' gain / naive (paper draws)",
        "... / naive (all draws)", "CPU time of a step",
    )  # fmt: skip
    return table(head, rows)


def sweep_rows(results: Results) -> list[str]:
    """EWC alone, papers then videos: what lambda does to likelihood and to generated text."""
    rows = []
    for value in LAMBDAS:
        row = [f"{value:g}"]
        for space in ("factor", "product"):
            seeds = results.get(f"EWC {space}, lambda {value:g}" if value else SEQUENTIAL, {})
            seeds = {seed: result for seed, result in seeds.items() if seed < 2}
            if not seeds:
                row += [""] * 3
                continue
            row += [f"{mean_of(seeds, lambda r: nats(r, last(r), 'papers')):.2f}"]
            row += [f"{mean_of(seeds, lambda r, c=c: rouge(r, last(r), c)):.1f}" for c in ("papers", "videos")]
        rows.append(row)
    head = ["lambda per token"]
    for space in ("factor", "product"):
        head += [f"{space}: papers nats", "papers ROUGE-L", "videos ROUGE-L"]
    return table(head, rows)


def without_rows(results: Results) -> list[str]:
    """What each part of the full recipe is worth: the end without it minus the end with it, seeds matched."""
    rows = []
    for name in [recipe.name for recipe in RECIPES if recipe.block == "without"]:
        both = sorted(results.get(name, {}).keys() & results[FULL].keys())
        if not both:
            continue
        mine, full = ({seed: results[r][seed] for seed in both} for r in (name, FULL))
        worst, where = worst_videos(mine)

        def apart(value: Callable[[dict], float], a=mine, b=full) -> str:
            return f"{mean_of(a, value) - mean_of(b, value):+.2f}"

        rows.append([
            name, str(len(both)), apart(lambda r: rouge(r, last(r), "papers")), apart(lambda r: rouge(r, last(r), "videos")),
            apart(lambda r: nats(r, last(r), "general")), f"{worst:+.1f} ({where})", price({**results, name: mine}, name, FULL),
        ])  # fmt: skip
    head = (
        "recipe",
        "seeds",
        "papers",
        "videos",
        "general, nats",
        "videos, worst after any phase",
        "CPU time of a step / full",
    )
    return table(head, rows)


def picture(results: Results) -> list[str]:
    """Stability against plasticity: the videos' worst fall against the papers' gain."""
    plotext.clear_figure()
    plotext.plotsize(100, 24)
    shown = [r.name for r in RECIPES if r.block in ("naive", "curriculum", "sequential") and r.name in results]
    marks = dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", shown, strict=False))
    for mark, name in marks.items():
        plotext.scatter([mean_of(results[name], gain)], [worst_videos(results[name])[0]], marker=mark)
    drawn = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", plotext.build()).splitlines()]
    below = "right: points of ROUGE-L the papers gained; up: the videos' worst change after any phase"
    return ["```", *drawn, below, *(f"{mark}  {name}" for mark, name in marks.items()), "```", ""]


def report(folder: Path) -> str:
    """The whole section, of what is there; rows that have not run yet are missing."""
    results = read(folder)

    def names(*blocks: str) -> list[str]:
        return [recipe.name for recipe in RECIPES if recipe.block in blocks and recipe.name in results]

    lines = [
        "Cells are papers / videos in ROUGE-L x 100 of generated summaries, then the likelihood of plain documents in nats per "
        "token (lower is better). Intervals: two-level bootstrap over seeds and documents. Shares: all seeds, and in brackets "
        "the lowest seed. Price: CPU time of a step after phase 1 as a ratio to plain cross-entropy on the same new records.",
        "",
    ]
    base = next(iter(results.values()))
    lines += [f"Base: {cells(base, 'base')}.", "", "**Curriculum** (papers 200 steps, mixed 80, mostly videos 80)", ""]
    lines += main_rows(results, names("curriculum"), BARE)
    lines += ["**Single phases**", "", *main_rows(results, names("naive"), ALL_DRAWS)]
    lines += [
        "**Papers (200 steps), then videos alone (160)**",
        "",
        *main_rows(results, names("sequential", "beside"), SEQUENTIAL),
    ]
    lines += ["**EWC alone**, papers then videos, at the end", "", *sweep_rows(results)]
    lines += ["**The full recipe without one part**, minus the full recipe, at the end", "", *without_rows(results)]
    return "\n".join([*lines, *picture(results)])


def write(folder: Path, page: Path, machine: str) -> None:
    """Put the section between its marks."""
    before, _, rest = page.read_text().partition(START)
    page.write_text(f"{before}{START}\n{machine}\n\n{report(folder)}{END}{rest.partition(END)[2]}")
