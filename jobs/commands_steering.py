"""Verbs that steer jobs and the line."""

import sys
from typing import Annotated

import typer

from jobs import follow, show, steer
from jobs.command_line import (
    JobId,
    Json,
    app,
    home_and_records,
    put,
)
from jobs.records import RUNNING


@app.command()
def cancel(
    job_id: JobId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    as_json: Json = False,
) -> None:
    """Stop a job; says first what that loses.

    Example: hybridsum.py cancel 3 --yes
    """
    home, records = home_and_records()
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
    home, records = home_and_records()
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
    _, records = home_and_records()
    steer.set_priority(records, job_id, number)
    put({"id": job_id, "priority": number}, f"job {job_id}: priority {number}", as_json)


@app.command()
def pause(as_json: Json = False) -> None:
    """Start nothing new; running jobs go on.

    Example: hybridsum.py pause
    """
    _, records = home_and_records()
    steer.pause(records)
    put({"paused": records.fact("paused")}, "the line is paused; running jobs go on", as_json)


@app.command()
def resume(as_json: Json = False) -> None:
    """Let the line go on after `pause` or a restart of the machine.

    Example: hybridsum.py resume
    """
    home, records = home_and_records()
    steer.resume(records)
    steer.ensure_running(home)
    put({"paused": None}, "the line goes on", as_json)
