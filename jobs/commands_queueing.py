"""Verbs that enter jobs into the line."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from engine import auto
from engine.configs import load
from engine.settings import ConfigError
from jobs import demo as demonstration
from jobs import show, steer, submit
from jobs.command_line import (
    After,
    Config,
    Json,
    Overrides,
    PhaseName,
    Priority,
    RunName,
    app,
    home_and_records,
    put,
    say,
    watch_to_end,
)
from jobs.home import Home
from jobs.records import Job, Records, title


@app.command()
def demo(
    context: typer.Context,
    headless: Annotated[bool, typer.Option(help="no dashboard: wait, then print both tables")] = False,
    detach: Annotated[bool, typer.Option(help="only queue the jobs")] = False,
    seed: Annotated[int, typer.Option(min=0, help="train.seed of both runs")] = 0,
    as_json: Json = False,
) -> None:
    """Show forgetting on the bundled corpus: an unprotected run beside the curriculum.

    Example: hybridsum.py demo --headless --seed 1
    """
    started = time.monotonic()
    home, records = home_and_records()
    (naive, naive_jobs), (curriculum, curriculum_jobs) = demonstration.queue(home, records, seed)
    ids = [job.id for job in (*naive_jobs, *curriculum_jobs)]
    steer.ensure_running(home)
    if detach:
        put({"jobs": ids, "run": curriculum}, f"queued jobs {', '.join(ids)} of {naive} and {curriculum}", as_json)
    elif headless or as_json:
        watch_to_end(home, records, ids)
        _put_demo(home, records, naive, curriculum, time.monotonic() - started, as_json)
    else:
        context.obj(home)


def _put_demo(home: Home, records: Records, naive: str, curriculum: str, seconds: float, as_json: bool) -> None:
    from jobs import results  # scipy comes with it, and only tables of results need it

    tables = {
        name: results.forgetting(home, records, run) for name, run in (("naive", naive), ("curriculum", curriculum))
    }
    text = "\n\n".join(results.report(home, records, table) for table in tables.values())
    put(tables | {"seconds": round(seconds, 1)}, f"{text}\n\n{show.duration(seconds)}", as_json)


@app.command()
def queue(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=" | ".join(submit.KINDS))],
    config: Annotated[Path | None, typer.Argument(help="YAML file; none for evaluate and fisher")] = None,
    overrides: Overrides = None,
    run: RunName = None,
    phase: PhaseName = None,
    checkpoint: Annotated[Path | None, typer.Option(help="evaluate, fisher: the checkpoint's folder")] = None,
    test_set: Annotated[Path | None, typer.Option(help="evaluate: JSONL or HDF5")] = None,
    after: After = None,
    priority: Priority = 0,
    as_json: Json = False,
) -> None:
    """Queue a job, or the jobs of a pipeline, and print their ids.

    Example: hybridsum.py queue pipeline configs/pocket.yaml train.seed=3 --run pocket-3
    """
    if kind not in submit.KINDS:
        raise ConfigError(f"{kind}: unknown kind of job. Use one of {', '.join(submit.KINDS)}")
    if config is None and kind not in submit.ON_CHECKPOINT:
        raise ConfigError(f"queue {kind}: CONFIG is missing. Give a file such as configs/pocket.yaml")
    settings = load(config, overrides or [])
    request = submit.Request(
        kind, settings, str(config or ""), run=run, phase=phase, checkpoint=checkpoint, test_set=test_set,
        after=after, priority=priority,
    )  # fmt: skip
    _queue(request, as_json)


def _queue(request: submit.Request, as_json: bool) -> tuple[Home, Records, list[str]]:
    """Check, enter, announce on stdout, and see to it that a runner lives."""
    home, records = home_and_records()
    drafted = submit.draft(home, records, request)
    for warning in drafted.corpus.warnings if drafted.corpus else ():
        say(f"warning: {warning}")
    _warn_of_memory(request, drafted)
    if drafted.auto:
        say(f"auto: {auto.words(**drafted.auto)}")
    jobs = submit.enter(home, records, drafted)
    ids = [job.id for job in jobs]
    put({"jobs": ids, "run": drafted.run}, _queued_text(jobs, drafted.run), as_json)
    sys.stdout.flush()
    steer.ensure_running(home)
    if paused := records.fact("paused"):
        say(f"the line is paused ({paused}): hybridsum.py resume")
    return home, records, ids


def _warn_of_memory(request: submit.Request, drafted: submit.Draft) -> None:
    """Loudly, and before it waits its turn for hours: what a phase needs and the machine has not."""
    from jobs import plan as planning

    found = [(job.phase, w) for job, spec in drafted.jobs for w in planning.warnings(spec["job"].get("plan") or {})]
    for phase, warning in found:
        say(f"warning: {phase} {warning}")
    if found:
        say(f"`hybridsum.py plan {request.config}` says what each change would save")


def _queued_text(jobs: list[Job], run: str) -> str:
    return f"run {run}: " + ", ".join(f"{job.id} {title(job)}" for job in jobs)


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    run: RunName = None,
    phase: PhaseName = None,
    after: After = None,
    priority: Priority = 0,
    as_json: Json = False,
) -> None:
    """Queue what a config describes (all its phases with evaluations, or its one phase) and watch. Ctrl-C detaches.

    Example: hybridsum.py train configs/pocket.yaml train.learning_rate=2e-4
    """
    settings = load(config, overrides or [])
    several = phase is None and len(settings.selected_phases()) > 1
    kind = "pipeline" if several else "phase"
    request = submit.Request(kind, settings, str(config), run=run, phase=phase, after=after, priority=priority)
    watch_to_end(*_queue(request, as_json))


@app.command()
def evaluate(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="with --predictions: evaluate.bertscore_model=..., data.terms=FILE")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="folder such as checkpoints/RUN/PHASE/final")] = None,
    test_set: Annotated[Path | None, typer.Option(help="JSONL or HDF5; default: the run's own")] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="score these outputs instead: JSONL with id, or .txt")
    ] = None,
    references: Annotated[Path | None, typer.Option(help="with --predictions: records, or .txt, a line each")] = None,
    out: Annotated[Path | None, typer.Option(help="with --predictions: write the scores of each document here")] = None,
    after: After = None,
    priority: Priority = 0,
    as_json: Json = False,
) -> None:
    """Judge a checkpoint and watch (Ctrl-C detaches), or score outputs that exist already, without a model.

    Example: hybridsum.py evaluate --checkpoint checkpoints/pocket-1/phase1/final --test-set data/pocket/test.h5
    """
    if predictions or references:
        _score_given(predictions, references, out, overrides or [], checkpoint or test_set, as_json)
        return
    if overrides:
        raise ConfigError(f"evaluate: {overrides[0]}: a checkpoint is judged by the settings it was trained with")
    request = submit.Request(
        "evaluate", load(None), checkpoint=checkpoint, test_set=test_set, after=after, priority=priority
    )
    watch_to_end(*_queue(request, as_json))


def _score_given(
    predictions: Path | None,
    references: Path | None,
    out: Path | None,
    overrides: list[str],
    other: Path | None,
    as_json: bool,
) -> None:
    from jobs import given

    if not (predictions and references) or other:
        raise ConfigError("evaluate: give --predictions and --references together, or --checkpoint")
    value = given.score(predictions, references, out, overrides, say)
    put(value, given.text(value), as_json)
