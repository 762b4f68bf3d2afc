"""`make bench-forgetting`: train the recipes of tests/recipes.py on one base and judge each after every phase.

Resumable: what is done is on disk and is not done again; a killed training goes on from its checkpoint. A first phase that
several recipes share is trained once; an anchor that one of them needs is measured beside it by a Fisher job.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.configs import load
from engine.events import Event, Step, Warned
from engine.settings import Settings
from engine.work import Work
from tests.benchmarks import machine
from tests.conftest import PROJECT
from tests.forgetting_report import write
from tests.recipes import RECIPES, Recipe, Stage

# settings that do nothing in a first phase of papers alone, so that recipes may differ in them and share it
LATER_ONLY = ("ewc.", "replay.batch_share", "distil.phase", "losses.contrastive")


@dataclass(frozen=True)
class Bench:
    """Where it all lies, and what every recipe has in common."""

    folder: Path
    config: Path
    threads: int

    def settings(self, stages: tuple[Stage, ...], changes: tuple[str, ...], seed: int) -> Settings:
        phases = [
            {"name": f"phase{number}", "mixture": stage_mixture(stage), "steps": stage.steps}
            for number, stage in enumerate(stages, start=1)
        ]
        given = [f"curriculum.phases={json.dumps(phases)}", f"train.seed={seed}", f"train.threads={self.threads}"]
        return load(self.config, [*given, "train.logging_steps=10", "train.save_steps=100", *changes])

    def job(self, name: str) -> Path:
        return self.folder / "runs" / name


def stage_mixture(stage: Stage) -> dict[str, float]:
    return {source: getattr(stage, source) for source in ("papers", "videos", "pairs") if getattr(stage, source)}


def jobs(recipes: list[Recipe]) -> Iterator[tuple[Recipe, int]]:
    """Every (recipe, seed): first one seed of all, then the recipes of the main tables, then the rest."""
    asked = [(recipe, seed) for recipe in recipes for seed in range(recipe.seeds)]
    aside = ("sweep", "without", "beside")
    yield from sorted(asked, key=lambda job: (job[1] > 0, job[0].block in aside, job[1]))


def work(bench: Bench, settings: Settings, kind: str, run: str, phase: str, start: Path | None, emit) -> Work:
    folder = bench.job(run)
    where = folder / phase if phase == "base" or kind == "phase" else folder / phase / "final"
    base = bench.folder / "base"
    return Work(kind, run, phase, settings, str(base), where, folder, start, settings.data.test, emit, lambda: False)


def train_recipe(bench: Bench, recipe: Recipe, seed: int) -> dict:
    """All phases of a recipe, judged after each: the content of its result file."""
    from engine import consolidate, train
    from engine.evaluation import run as evaluation

    settings = bench.settings(recipe.stages, recipe.changes, seed)
    name = slug(recipe, seed)
    costs: list[dict] = []
    start = share_first(bench, recipe, seed, settings, costs)
    if settings.ewc.lambda_ and settings.ewc.importance == "fisher" and len(recipe.stages) > 1:
        consolidate.run(work(bench, settings, "fisher", name, "phase1", None, lambda event: None))
    elif settings.ewc.lambda_ and len(recipe.stages) > 1:
        anchor_uniform(bench, settings, name, start)
    for phase in settings.curriculum.phases[1:]:
        costs.append(
            measured(lambda emit, p=phase, s=start: train.run(work(bench, settings, "phase", name, p.name, s, emit)))
        )
        start = bench.job(name) / phase.name / "final"
        evaluation.run(work(bench, settings, "evaluate", name, phase.name, start, lambda event: None))
    evaluation.run(work(bench, settings, "evaluate", name, "base", None, lambda event: None))
    rows = ["base", *(phase.name for phase in settings.curriculum.phases)]
    return {
        "recipe": recipe.name, "seed": seed, "block": recipe.block, "changes": recipe.changes, "costs": costs,
        "scores": {row: scores(bench.job(name), row) for row in rows},
    }  # fmt: skip


def anchor_uniform(bench: Bench, settings: Settings, name: str, final: Path) -> None:
    """An anchor with importance 1 beside a shared first phase."""
    from engine import checkpoint, consolidate, ewc, models

    base = models.load_base(str(bench.folder / "base"), settings.model)
    model = models.load_adapter(base, final, trainable=True)
    anchors = ewc.anchored([], "phase1", ewc.uniform(model, settings.ewc), model, settings.ewc)
    checkpoint.save(bench.job(name) / "phase1" / consolidate.FOLDER, lambda folder: ewc.save(folder, anchors))


def share_first(bench: Bench, recipe: Recipe, seed: int, settings: Settings, costs: list[dict]) -> Path:
    """The first phase under the recipe's own name: trained once for all recipes that agree about it, then linked."""
    from engine import train
    from engine.evaluation import run as evaluation

    acting = sorted(change for change in recipe.changes if not change.startswith(LATER_ONLY))
    key = hashlib.sha256(repr((recipe.stages[0], acting, seed)).encode()).hexdigest()[:12]
    shared, own = f"first-{key}", bench.job(slug(recipe, seed))
    with locked(bench.folder / f"{shared}.lock"):
        alone = bench.settings(recipe.stages[:1], recipe.changes, seed)
        spent = bench.job(shared) / "cost.json"
        if not spent.exists():
            cost = measured(lambda emit: train.run(work(bench, alone, "phase", shared, "phase1", None, emit)))
            evaluation.run(work(bench, alone, "evaluate", shared, "phase1", None, lambda event: None))
            spent.write_text(json.dumps(cost))
        costs.append(json.loads(spent.read_text()))
    if not (own / "phase1").exists():
        (own / "phase1.new").parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(own / "phase1.new", ignore_errors=True)
        shutil.copytree(bench.job(shared) / "phase1", own / "phase1.new", copy_function=os.link)
        (own / "phase1.new").rename(own / "phase1")
        if (bench.job(shared) / "base").exists():
            shutil.copytree(bench.job(shared) / "base", own / "base", dirs_exist_ok=True)
    return own / "phase1" / "final"


def measured(action) -> dict:
    """CPU seconds and optimizer steps of a training, its warnings and the norms of its losses' gradients."""
    told: list[Event] = []
    before = time.process_time()
    action(told.append)
    steps = [event for event in told if isinstance(event, Step)]
    norms = next((event.norms for event in reversed(steps) if event.norms), {})
    warned = [event.message for event in told if isinstance(event, Warned)]
    return {
        "seconds": time.process_time() - before,
        "steps": steps[-1].step if steps else 0,
        "norms": norms,
        "warned": warned,
    }


def scores(run: Path, row: str) -> dict:
    """{column: {"n", "rougeL": [per document], "nll": [...], "tokens": [...]}} of a stored evaluation."""
    place = run / row / ("evaluations" if row == "base" else "final/evaluations")
    (path,) = place.glob("*.jsonl")
    columns: dict[str, dict] = {}
    for line in path.read_text().splitlines():
        content = json.loads(line)
        column = columns.setdefault(
            {"paper": "papers", "video": "videos", "document": "general"}[content["modality"]], {}
        )
        for name, value in content["scores"].items():
            if name in ("rougeL", "nll"):
                column.setdefault(name, []).append(round(value, 6))
        column.setdefault("tokens", []).append(content["summary_tokens"])
    return columns


def slug(recipe: Recipe, seed: int) -> str:
    words = "".join(c if c.isalnum() else "-" for c in recipe.name.lower()).strip("-")
    return f"{words}-seed{seed}"


class locked:  # noqa: N801 (used like a function)
    """Two workers do not train the same thing."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("w")
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def __exit__(self, *_):
        self.file.close()


def claim(path: Path):
    """A lock that is held as long as the returned file is open; None if another worker has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def serve(bench: Bench, recipes: list[Recipe]) -> None:
    """Take one job after another until none is left that nobody works on."""
    from engine import base

    with locked(bench.folder / "base.lock"):
        settings = bench.settings(RECIPES[0].stages, (), 0)
        folder = bench.folder / "base"
        base.run(
            Work("base", "base", None, settings, str(folder), folder, folder, None, None, lambda e: None, lambda: False)
        )
    for recipe, seed in jobs(recipes):
        result = bench.folder / "results" / f"{slug(recipe, seed)}.json"
        held = claim(bench.folder / "locks" / slug(recipe, seed))
        if held is None:
            continue
        with held:
            if not result.exists():
                started = time.time()
                content = train_recipe(bench, recipe, seed)
                result.parent.mkdir(parents=True, exist_ok=True)
                result.with_suffix(".new").write_text(json.dumps(content))
                result.with_suffix(".new").rename(result)
                shutil.rmtree(bench.job(slug(recipe, seed)), ignore_errors=True)
                print(f"{time.time() - started:6.0f} s  {slug(recipe, seed)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=PROJECT / ".hybridsum" / "bench-forgetting")
    parser.add_argument("--config", type=Path, default=PROJECT / "configs" / "pocket.yaml")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="recipes whose name contains this")
    parser.add_argument("--report", action="store_true", help="only write the tables of what is there")
    given = parser.parse_args()
    os.chdir(PROJECT)
    if not given.report:
        serve(Bench(given.folder.absolute(), given.config, given.threads), [r for r in RECIPES if given.only in r.name])
    write(given.folder.absolute(), PROJECT / "docs" / "benchmarks.md", f"`make bench-forgetting` on {machine()}.")


if __name__ == "__main__":
    main()
