"""What the verbs of the command line share: the program, their options, the answer and how a job is watched.

A verb (commands_*.py) is thin: it asks a module of jobs/ and prints a text or one JSON value.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs import follow, show
from jobs.home import Home
from jobs.records import Records

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


def say(text: str) -> None:
    """A line for a person, on stderr."""
    print(show.plain(text), file=sys.stderr, flush=True)


def put(value: Any, text: str, as_json: bool) -> None:
    """The answer of a verb, on stdout."""
    print(show.as_json(value) if as_json else text)


def home_and_records() -> tuple[Home, Records]:
    home = Home.find()
    return home, Records(home.records)


def watch_to_end(home: Home, records: Records, ids: list[str]) -> None:
    """Watch jobs on stderr; exit status 1 unless all end well. Ctrl-C leaves them running."""
    try:
        with follow.interruptible():
            done = follow.watch(home, records, ids, say)
    except KeyboardInterrupt:
        detach(records, ids)
    if not done:
        raise typer.Exit(1)


def detach(records: Records, ids: list[str]) -> None:
    going = [job_id for job_id in ids if records.job(job_id).state in follow.UNENDED]
    if going:
        say(f"detached; still to come: {', '.join(going)}. They go on without you: hybridsum.py watch {going[0]}")
    raise typer.Exit(0)
