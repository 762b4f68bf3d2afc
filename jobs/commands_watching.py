"""Verbs that look at jobs."""

from typing import Annotated

import typer

from jobs import follow, show
from jobs.command_line import (
    JobId,
    Json,
    app,
    detach,
    home_and_records,
    put,
    say,
)


@app.command()
def jobs(as_json: Json = False) -> None:
    """List all jobs.

    Example: hybridsum.py jobs --json
    """
    home, records = home_and_records()
    if as_json:
        print(show.as_json(show.job_values(home, records)))
    else:
        print(show.job_table(home, records))


@app.command("show")
def show_job(job_id: JobId, as_json: Json = False) -> None:
    """Everything about one job: state, settings, checkpoint, scores.

    Example: hybridsum.py show 3
    """
    value = show.full_value(*home_and_records(), job_id)
    put(value, show.details(value), as_json)


@app.command()
def log(
    job_id: JobId,
    goes_on: Annotated[bool, typer.Option("-f", "--follow", help="go on to the job's end")] = False,
) -> None:
    """Print what a job wrote to its log.

    Example: hybridsum.py log 3 -f
    """
    home, records = home_and_records()
    try:
        with follow.interruptible():
            for text in follow.log_text(home, records, job_id, goes_on):
                print(text, end="", flush=True)
    except KeyboardInterrupt:
        detach(records, [job_id])


@app.command()
def watch(job_id: JobId, as_json: Json = False) -> None:
    """Follow a job to its end. Ctrl-C detaches, the job goes on. Exit status 1 if it does not end well.

    Example: hybridsum.py watch 3
    """
    home, records = home_and_records()
    try:
        with follow.interruptible():
            done = follow.watch(
                home, records, [job_id], say if as_json else lambda text: print(show.plain(text), flush=True)
            )
    except KeyboardInterrupt:
        detach(records, [job_id])
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
    home, records = home_and_records()
    try:
        with follow.interruptible():
            done = follow.wait(home, records, ids, say)
    except KeyboardInterrupt:
        detach(records, ids)
    if as_json:
        print(show.as_json([show.job_value(home, records.job(job_id)) for job_id in ids]))
    if not done:
        raise typer.Exit(1)
