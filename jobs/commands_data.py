"""Verbs that make and examine data sets."""

from pathlib import Path
from typing import Annotated

import typer

from engine.configs import load
from engine.settings import ConfigError
from jobs import show
from jobs.command_line import (
    Config,
    Json,
    Overrides,
    app,
    put,
    say,
)
from jobs.home import Home


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
