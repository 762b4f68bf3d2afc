"""Verbs of the background runner."""

from typing import Annotated

import typer

from jobs import steer
from jobs.command_line import (
    Json,
    home_and_records,
    put,
    runner_app,
    say,
)
from jobs.home import Home
from jobs.records import Records


@runner_app.command("start")
def runner_start(as_json: Json = False) -> None:
    """Start the runner in the background, if none is alive.

    Example: hybridsum.py runner start
    """
    home, records = home_and_records()
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
    home, records = home_and_records()
    going_on = steer.stop(home, jobs=cancel_jobs)
    if not as_json and going_on:
        say(f"still running: {', '.join(going_on)}; the next runner adopts them")
    _put_status(home, records, as_json)


@runner_app.command("status")
def runner_status(as_json: Json = False) -> None:
    """LIVE, STALE, LOST or STOPPED; which jobs run; whether the line is paused.

    Example: hybridsum.py runner status --json
    """
    _put_status(*home_and_records(), as_json)


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
