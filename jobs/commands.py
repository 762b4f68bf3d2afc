"""The verbs of the command line. Thin: each asks a module of jobs/ and prints a text or one JSON value."""

import logging
import os
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from engine import auto
from engine.configs import load
from engine.settings import ConfigError
from jobs import demo as demonstration
from jobs import doctor as health
from jobs import follow, show, steer, submit
from jobs.home import Home
from jobs.records import RUNNING, Job, Records, title

app = typer.Typer(
    name="hybridsum.py",
    help="Fine-tune summarisers phase by phase, watch them learn, and measure what they forget. "
    "Without a verb it opens the dashboard. --log-level LEVEL works with every verb.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)
runner_app = typer.Typer(help="The background runner.", rich_markup_mode=None, no_args_is_help=True)
app.add_typer(runner_app, name="runner")

Config = Annotated[Path, typer.Argument(help="YAML file, such as configs/pocket.yaml")]
Overrides = Annotated[list[str] | None, typer.Argument(help="settings to change: section.name=value ...")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="number of the job")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON value on stdout")]
RunName = Annotated[str | None, typer.Option("--run", help="name of the run")]
PhaseName = Annotated[str | None, typer.Option("--phase", help="name, or number from 1, of the one phase to run")]
After = Annotated[str | None, typer.Option("--after", metavar="ID", help="wait until this job is done")]
Priority = Annotated[int, typer.Option("--priority", help="higher goes first")]


def main(arguments: list[str], dashboard: Callable[[Home], None]) -> int:
    """Run one verb; the exit status: 0 done, 1 failed, 2 a mistake of the user, named in one line each."""
    try:
        arguments = _log_level(arguments)
        status = app(arguments, prog_name="hybridsum.py", standalone_mode=False, obj=dashboard)
        sys.stdout.flush()
        return status or 0
    except ConfigError as error:
        for line in error.lines:
            say(line)
        return 2
    except typer.TyperException as error:
        say(f"hybridsum.py: {error.format_message()} (see `hybridsum.py --help`)")
        return 2
    except (typer.Abort, KeyboardInterrupt):
        say("stopped")
        return 1
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        say(f"{error.filename or 'hybridsum.py'}: {error.strerror or error}")
        return 1


def _log_level(arguments: list[str]) -> list[str]:
    """Take --log-level LEVEL out of the arguments, wherever it stands, and heed it."""
    rest, level = [], "WARNING"
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name == "--log-level":
            level = value if equals else next(words, "")
        else:
            rest.append(word)
    if level.upper() not in logging.getLevelNamesMapping():
        raise ConfigError(f"--log-level {level}: use debug, info, warning or error")
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return rest


def say(text: str) -> None:
    """A line for a person, on stderr."""
    print(show.plain(text), file=sys.stderr, flush=True)


def put(value: Any, text: str, as_json: bool) -> None:
    """The answer of a verb, on stdout."""
    print(show.as_json(value) if as_json else text)


def _home() -> tuple[Home, Records]:
    home = Home.find()
    return home, Records(home.records)


# -- queueing ---------------------------------------------------------------------------------------------------


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
    home, records = _home()
    (naive, naive_jobs), (curriculum, curriculum_jobs) = demonstration.queue(home, records, seed)
    ids = [job.id for job in (*naive_jobs, *curriculum_jobs)]
    steer.ensure_running(home)
    if detach:
        put({"jobs": ids, "run": curriculum}, f"queued jobs {', '.join(ids)} of {naive} and {curriculum}", as_json)
    elif headless or as_json:
        _follow(home, records, ids)
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
    home, records = _home()
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
    _follow(*_queue(request, as_json))


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
    _follow(*_queue(request, as_json))


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
    value = given.score(predictions, references, out, overrides)
    put(value, given.text(value), as_json)


# -- looking ----------------------------------------------------------------------------------------------------


def _follow(home: Home, records: Records, ids: list[str]) -> None:
    """Watch jobs on stderr; exit status 1 unless all end well. Ctrl-C leaves them running."""
    try:
        done = follow.watch(home, records, ids, say)
    except KeyboardInterrupt:
        _detach(records, ids)
    if not done:
        raise typer.Exit(1)


def _detach(records: Records, ids: list[str]) -> None:
    going = [job_id for job_id in ids if records.job(job_id).state in follow.UNENDED]
    if going:
        say(f"detached; still to come: {', '.join(going)}. They go on without you: hybridsum.py watch {going[0]}")
    raise typer.Exit(0)


@app.command()
def jobs(as_json: Json = False) -> None:
    """List all jobs.

    Example: hybridsum.py jobs --json
    """
    home, records = _home()
    if as_json:
        print(show.as_json(show.job_values(home, records)))
    else:
        print(show.job_table(home, records))


@app.command("show")
def show_job(job_id: JobId, as_json: Json = False) -> None:
    """Everything about one job: state, settings, checkpoint, scores.

    Example: hybridsum.py show 3
    """
    value = show.full_value(*_home(), job_id)
    put(value, show.details(value), as_json)


@app.command()
def log(
    job_id: JobId,
    goes_on: Annotated[bool, typer.Option("-f", "--follow", help="go on to the job's end")] = False,
) -> None:
    """Print what a job wrote to its log.

    Example: hybridsum.py log 3 -f
    """
    home, records = _home()
    try:
        for text in follow.log_text(home, records, job_id, goes_on):
            print(text, end="", flush=True)
    except KeyboardInterrupt:
        _detach(records, [job_id])


@app.command()
def watch(job_id: JobId, as_json: Json = False) -> None:
    """Follow a job to its end. Ctrl-C detaches, the job goes on. Exit status 1 if it does not end well.

    Example: hybridsum.py watch 3
    """
    home, records = _home()
    try:
        done = follow.watch(
            home, records, [job_id], say if as_json else lambda text: print(show.plain(text), flush=True)
        )
    except KeyboardInterrupt:
        _detach(records, [job_id])
    if as_json:
        print(show.as_json(show.job_value(home, records.job(job_id))))
    if not done:
        raise typer.Exit(1)


@app.command()
def wait(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="numbers of jobs")],
    as_json: Json = False,
) -> None:
    """Return when all these jobs have ended; exit status 1 if one did not end well.

    Example: hybridsum.py wait 3 4 5
    """
    home, records = _home()
    try:
        done = follow.wait(home, records, ids, say)
    except KeyboardInterrupt:
        _detach(records, ids)
    if as_json:
        print(show.as_json([show.job_value(home, records.job(job_id)) for job_id in ids]))
    if not done:
        raise typer.Exit(1)


# -- steering ---------------------------------------------------------------------------------------------------


@app.command()
def cancel(
    job_id: JobId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    as_json: Json = False,
) -> None:
    """Stop a job; says first what that loses.

    Example: hybridsum.py cancel 3 --yes
    """
    home, records = _home()
    loss = steer.what_is_lost(home, records, job_id)
    if not yes and sys.stdin.isatty() and records.job(job_id).state in follow.UNENDED:
        typer.confirm(f"{show.plain(loss)} Cancel job {job_id}?", abort=True, err=True)
    state = steer.cancel(home, records, job_id)
    text = f"job {job_id}: asked to stop" if state == RUNNING else f"job {job_id}: {state}"
    put({"id": job_id, "state": state}, text, as_json)


@app.command()
def retry(job_id: JobId, as_json: Json = False) -> None:
    """Queue a job that ended badly again, and those it had blocked. It goes on from its last checkpoint.

    Example: hybridsum.py retry 3
    """
    home, records = _home()
    ids = steer.retry(home, records, job_id)
    put({"jobs": ids, "run": records.job(job_id).run}, f"queued again: {', '.join(ids)}", as_json)
    steer.ensure_running(home)


@app.command(context_settings={"ignore_unknown_options": True})  # or -5 would be taken for an option
def priority(
    job_id: JobId,
    number: Annotated[int, typer.Argument(metavar="N", help="higher goes first; 0 is usual")],
    as_json: Json = False,
) -> None:
    """Change the place of a waiting job in the line.

    Example: hybridsum.py priority 7 10
    """
    _, records = _home()
    steer.set_priority(records, job_id, number)
    put({"id": job_id, "priority": number}, f"job {job_id}: priority {number}", as_json)


@app.command()
def pause(as_json: Json = False) -> None:
    """Start nothing new; running jobs go on.

    Example: hybridsum.py pause
    """
    _, records = _home()
    steer.pause(records)
    put({"paused": records.fact("paused")}, "the line is paused; running jobs go on", as_json)


@app.command()
def resume(as_json: Json = False) -> None:
    """Let the line go on after `pause` or a restart of the machine.

    Example: hybridsum.py resume
    """
    home, records = _home()
    steer.resume(records)
    steer.ensure_running(home)
    put({"paused": None}, "the line goes on", as_json)


# -- data -------------------------------------------------------------------------------------------------------


@app.command()
def prepare(
    inputs: Annotated[list[Path], typer.Argument(metavar="IN...", help="files or folders of any supported format")],
    out: Annotated[Path, typer.Option("--out", help="records: .jsonl or .h5; with --split NAME_train, NAME_val, ...")],
    kind: Annotated[
        str, typer.Option("--as", help="papers, videos, pairs, documents, procedures, qa, records")
    ] = "records",
    maps: Annotated[
        list[str] | None, typer.Option("--map", metavar="OURS=THEIRS", help="source=transcript, ...")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="0.8/0.1/0.1: by group, near-duplicates together")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="stop at the first refusal")] = False,
    join: Annotated[bool, typer.Option("--join", help="make one text of a list of texts")] = False,
    make_ids: Annotated[bool, typer.Option("--make-ids", help="make ids of the text where there are none")] = False,
    without_summary: Annotated[bool, typer.Option("--without-summary", help="accept records without one")] = False,
    drop_duplicates: Annotated[
        bool, typer.Option("--drop-duplicates", help="keep only the first of equal texts")
    ] = False,
    max_refused: Annotated[float, typer.Option("--max-refused", help="fail above this share of refusals")] = 1.0,
    times: Annotated[bool, typer.Option("--times", help="keep the times of transcripts")] = False,
    no_speakers: Annotated[bool, typer.Option("--no-speakers", help="drop the names of speakers")] = False,
    embeddings: Annotated[
        Path | None, typer.Option("--embeddings", help="`prepare summary IN...`: folder of embeddings")
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn files of any supported format into records; say what was refused, and why.

    Example: hybridsum.py prepare talks/ --as videos --out data/talks.jsonl --split 0.8/0.1/0.1
    """
    from engine.corpus import prepare as work
    from engine.corpus.formats.rows import Options
    from jobs import preparing

    if str(inputs[0]) == "summary":  # only the summaries of a data set of several tasks
        value, text, refusals = preparing.summaries(inputs[1:], embeddings, out)
        for line in refusals:
            say(f"refused: {line}")
        put(value, text, as_json)
        return
    request = work.Request(
        tuple(inputs), kind, out, preparing.mapping(maps or []), preparing.shares(split), strict, join, make_ids,
        without_summary, drop_duplicates, max_refused, Options(times, not no_speakers),
    )  # fmt: skip
    report = work.run(request, say)
    put(report.facts(), show.plain_lines(preparing.text(report, inputs)), as_json)
    if report.failed:
        say(report.failed)
        raise typer.Exit(1)


@app.command()
def terms(
    inputs: Annotated[list[Path], typer.Argument(metavar="IN...", help="records: JSONL or HDF5")],
    lexicon: Annotated[Path | None, typer.Option("--lexicon", help="one term a line; default: the medical one")] = None,
    general: Annotated[
        list[Path] | None, typer.Option("--general", help="records of other text, to compare with")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="the merged lexicon, with the candidates as comments")
    ] = None,
    least: Annotated[int, typer.Option("--min-count", min=2, help="occurrences of a candidate")] = 5,
    most: Annotated[int, typer.Option("--top", min=0, help="candidates")] = 200,
    as_json: Json = False,
) -> None:
    """What a lexicon finds in data sets: terms, how often, in how many summaries; and terms it might take in.

    Example: hybridsum.py terms data/papers.jsonl --general data/talks.jsonl --out data/terms.txt
    """
    from jobs import terms as work

    value = work.report(inputs, lexicon or work.DEFAULT, general or [], out, least, most)
    put(value, show.plain_lines(work.text(value)), as_json)


@app.command()
def pair(
    papers: Annotated[Path, typer.Argument(help="records of papers: JSONL or HDF5")],
    videos: Annotated[Path, typer.Argument(help="records of videos: JSONL or HDF5")],
    out: Annotated[Path, typer.Option("--out", help="pairs: .jsonl; NAME.review.jsonl has scores and shared terms")],
    lexicon: Annotated[Path | None, typer.Option("--lexicon", help="terms to share; default: the medical ones")] = None,
    threshold: Annotated[float, typer.Option("--threshold", min=-1, max=1, help="least cosine of a mined pair")] = 0.5,
    as_json: Json = False,
) -> None:
    """Papers and videos on the same subject: given by pair_id, or nearest to each other by the bundled encoder.

    Example: hybridsum.py pair data/papers.jsonl data/talks.jsonl --out data/pairs.jsonl
    """
    from jobs import pairing

    value = pairing.run(papers, videos, out, lexicon, threshold, say)
    put(value, show.plain_lines(pairing.text(value)), as_json)


@app.command()
def collect(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="pmc, arxiv (abstracts) or subtitles")],
    wanted: Annotated[list[str], typer.Argument(metavar="ID...", help="ids or addresses, or files with one a line")],
    out: Annotated[Path, typer.Option("--out", help="folder")],
    language: Annotated[str, typer.Option("--language", help="of subtitles")] = "en",
    pause: Annotated[float | None, typer.Option("--pause", min=0, help="seconds before each request")] = None,
    place: Annotated[str, typer.Option("--place", help="another address of the service, with {id}")] = "",
    as_json: Json = False,
) -> None:
    """Fetch texts by id, politely; run it again to go on. Origin and licence are recorded. Needs a network.

    Example: hybridsum.py collect pmc ids.txt --out data/pmc
    """
    from engine.corpus import collect as work

    if kind not in work.PLACES:
        raise ConfigError(f"collect {kind}: unknown. Use one of {', '.join(work.PLACES)}")
    report = work.run(kind, work.ids(wanted, kind), out, say, place, pause, language)
    text = f"{report.fetched} fetched, {report.present} were there, {len(report.failed)} failed: {out}"
    put({"fetched": report.fetched, "present": report.present, "failed": report.failed, "out": str(out)}, text, as_json)
    if report.failed:
        raise typer.Exit(1)


@app.command()
def data(config: Config, overrides: Overrides = None, as_json: Json = False) -> None:
    """What training will see of a config's data: tokens, what is cut, what is learnt, leaks, three samples.

    Example: hybridsum.py data configs/pocket.yaml data.max_length=256
    """
    from jobs import preflight

    value = preflight.facts(Home.find(), load(config, overrides or []), say)
    put(value, show.plain_lines(preflight.text(value)), as_json)


@app.command()
def plan(
    config: Config,
    overrides: Overrides = None,
    gib: Annotated[
        float | None, typer.Option("--gib", min=1, help="plan for a GPU of this size instead of this machine")
    ] = None,
    as_json: Json = False,
) -> None:
    """What a config will take: memory by part, whether it fits, what each change would save, steps and time. Loads nothing.

    Example: hybridsum.py plan configs/medical.yaml --gib 16 lora.rank=16
    """
    from jobs import plan as planning

    value = planning.of_config(Home.find(), load(config, overrides or []), planning.machine(gib))
    put(value, show.plain_lines(planning.text(value)), as_json)


# -- the runner -------------------------------------------------------------------------------------------------


@runner_app.command("start")
def runner_start(as_json: Json = False) -> None:
    """Start the runner in the background, if none is alive.

    Example: hybridsum.py runner start
    """
    home, records = _home()
    steer.ensure_running(home)
    _put_status(home, records, as_json)


@runner_app.command("stop")
def runner_stop(
    cancel_jobs: Annotated[bool, typer.Option("--jobs", help="cancel the running jobs first")] = False,
    as_json: Json = False,
) -> None:
    """End the runner. Its running jobs go on, unless --jobs.

    Example: hybridsum.py runner stop
    """
    home, records = _home()
    going_on = steer.stop(home, jobs=cancel_jobs)
    if not as_json and going_on:
        say(f"still running: {', '.join(going_on)}; the next runner adopts them")
    _put_status(home, records, as_json)


@runner_app.command("status")
def runner_status(as_json: Json = False) -> None:
    """LIVE, STALE, LOST or STOPPED; which jobs run; whether the line is paused.

    Example: hybridsum.py runner status --json
    """
    _put_status(*_home(), as_json)


@runner_app.command("serve")
def runner_serve() -> None:
    """Be the runner, in this terminal. `runner start` does it in the background.

    Example: hybridsum.py runner serve
    """
    from jobs import runner  # huey and the readings of the GPU

    raise typer.Exit(runner.serve(Home.find()))


def _put_status(home: Home, records: Records, as_json: bool) -> None:
    found = steer.status(home, records)
    text = f"runner {found['state']}" + (f", pid {found['pid']}" if found["pid"] else "")
    text += f", runs {', '.join(found['jobs'])}" if found["jobs"] else ""
    text += f", paused: {found['paused']} (hybridsum.py resume)" if found["paused"] else ""
    put(found, text, as_json)


# -- results ----------------------------------------------------------------------------------------------------


@app.command()
def checkpoints(
    sort: Annotated[str | None, typer.Option(help="METRIC or COLUMN.METRIC, such as videos.rougeL: best first")] = None,
    run: Annotated[str | None, typer.Option("--run", help="only of this run")] = None,
    phase: Annotated[str | None, typer.Option("--phase", help="only of this phase")] = None,
    since: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="only made on this day or later")] = None,
    as_json: Json = False,
) -> None:
    """List the checkpoints of all runs.

    Example: hybridsum.py checkpoints --sort videos.rougeL
    """
    from jobs import checkpoints as listed

    found = [
        row
        for row in listed.checkpoints(_home()[0], sort)
        if run in (None, row["run"]) and phase in (None, row["phase"])
        if since is None or row["created"] >= since.timestamp()
    ]
    put(found, listed.checkpoint_table(found, sort) if found else "no checkpoints yet", as_json)


@app.command()
def compare(
    given: Annotated[list[str], typer.Argument(metavar="A B ...", help="folders, or RUN/PHASE; the others against A")],
    test_set: Annotated[
        str | None, typer.Option(help="name of the test set; default: the one all were judged on")
    ] = None,
    metric: Annotated[list[str] | None, typer.Option(help="what is tested; may be given several times")] = None,
    count: Annotated[int, typer.Option("--samples", min=0, help="documents in full, worst first")] = 10,
    export: Annotated[Path | None, typer.Option(help="also write FILE.md, FILE.csv or FILE.json")] = None,
    as_json: Json = False,
) -> None:
    """Metrics, paired tests, settings that differ and the documents that got worse.

    Example: hybridsum.py compare pocket-1/phase1 pocket-1/phase3 --export comparison.md
    """
    from jobs import compare_tests, compare_text

    value = compare_tests.full(_home()[0], given, test_set, metric or [], count)
    if export:
        compare_text.export(value, export)
    put(value, compare_text.text(value), as_json)


@app.command()
def forgetting(
    run: Annotated[str, typer.Argument(help="name of a run")],
    metric: Annotated[str | None, typer.Option(help="rougeL, bertscore_f1, nll, term_recall, ...")] = None,
    others: Annotated[
        list[str] | None, typer.Option("--with", help="the same recipe with another seed; repeatable")
    ] = None,
    as_json: Json = False,
) -> None:
    """What a run learnt and forgot: scores after each phase, and their change against the base.

    Example: hybridsum.py forgetting demo-naive-0
    """
    from jobs import results, seeds

    home, records = _home()
    value = results.forgetting(home, records, run, metric=metric)
    both = metric is None and not as_json
    text = results.report(home, records, value) if both else results.forgetting_text(value)
    if others:
        value["seeds"] = seeds.over_seeds(home, records, [run, *others], value["metric"])
        text += f"\n\n{seeds.text(value['seeds'], value['metric'])}"
    put(value, text, as_json)


@app.command()
def promote(
    checkpoint: Annotated[Path, typer.Argument(help="folder such as checkpoints/RUN/PHASE/final")],
    regardless: Annotated[bool, typer.Option("--regardless", help="also if its gate failed")] = False,
    as_json: Json = False,
) -> None:
    """Name the checkpoint of a run that is to be used: checkpoints/RUN/best. Refused if its gate failed.

    Example: hybridsum.py promote checkpoints/pocket-1/phase3/final
    """
    from jobs import promote as promotion

    value = promotion.promote(*_home(), checkpoint, regardless)
    verdict = f"gate {value['gate'].upper()}" if value["gate"] else "no gate was declared, or it was not evaluated"
    put(value, f"{value['run']}/best is now {value['phase']} ({verdict})", as_json)


@app.command()
def doctor(
    reindex: Annotated[
        bool, typer.Option("--reindex", help="first make the catalogue of evaluations anew from the checkpoints")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check versions, disk, runner, locks and GPU, with the command that mends what is wrong.

    Example: hybridsum.py doctor
    """
    home, records = _home()
    if reindex:
        from jobs import catalogue

        count, complaints = catalogue.reindex(home, records)
        for line in [*complaints, f"{count} evaluations are in the catalogue"]:
            say(line)
    checks = health.examine(home)
    value = health.value(checks)
    put(value, health.text(checks), as_json)
    if not value["ok"]:
        raise typer.Exit(1)
