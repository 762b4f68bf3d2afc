"""Verbs about checkpoints and what was measured on them; and the doctor."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from jobs import doctor as health
from jobs.command_line import (
    Json,
    app,
    home_and_records,
    put,
    say,
)


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
        for row in listed.checkpoints(home_and_records()[0], sort)
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

    value = compare_tests.full(home_and_records()[0], given, test_set, metric or [], count)
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

    home, records = home_and_records()
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

    value = promotion.promote(*home_and_records(), checkpoint, regardless)
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
    home, records = home_and_records()
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
