"""An evaluation job: a checkpoint writes summaries of a test set and each one is scored, once."""

import glob
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import PartialState

from engine import checkpoint, files
from engine.configs import dump
from engine.corpus import terms
from engine.corpus.records import Record
from engine.corpus.split import assemble, read_test
from engine.evaluation import bertscore, score
from engine.evaluation.likelihood import reference_nll as reference_nll  # part of this module for its callers
from engine.evaluation.outputs import write_all
from engine.events import Evaluated, Warned
from engine.mixture import generator, integer
from engine.settings import ConfigError
from engine.work import Work

WRITING_VERSION = 3  # counts up when the same checkpoint would write other outputs, or rows of another shape
SCORING_VERSION = 2  # counts up when the same outputs would get other scores


class Plan(NamedTuple):
    """What is to be judged and what is there. outputs, fingerprint: of what is written, and of how it is scored."""

    records: list[Record]
    name: str
    judge: bertscore.Judge | None
    documents: str
    outputs: str
    fingerprint: str
    stored: dict


def run(work: Work) -> dict:
    """Evaluate the checkpoint in work.folder (or the base, for phase `base`) on work.test_set or the held-out documents.

    Writes <checkpoint>/evaluations/<test set>.jsonl, one line per document, and <test set>.json with the means. Batches
    are fixed in advance and kept as they are finished, so a killed evaluation only repeats the batch it was in. Outputs
    that are there already are not written again, also where only the scoring has changed. Under `accelerate launch` the
    processes share the batches; the first of them scores, writes and reports, and the others return {} before that.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    work = work if state.is_main_process else replace(work, emit=lambda event: None)
    with state.main_process_first():  # the first prepares the folder, the others find it prepared
        plan = _plan(work)
    state.wait_for_everyone()  # all have seen what is stored before the first replaces it
    folder, stored = work.folder / "evaluations", plan.stored
    if stored.get("fingerprint") != plan.fingerprint:
        stored = _judge(work, plan)
    if not state.is_main_process:
        return {}
    if stored is not plan.stored:
        files.replace_json(folder / f"{plan.name}.json", stored)
        for left_over in folder.glob(f".{glob.escape(plan.name)}.*.partial"):
            left_over.unlink()
    work.emit(Evaluated(f"{work.run}/{work.phase}", plan.name, stored["metrics"]))
    path = folder / f"{plan.name}.jsonl"
    return {"checkpoint": str(work.folder), "test_set": plan.name, "path": str(path)} | stored


def _plan(work: Work) -> Plan:
    records, given_name = test_records(work)
    documents = documents_key(records)
    judge = bertscore.judge(work.settings.evaluate.bertscore_model)  # before the model loads, for it may be missing
    folder = work.folder / "evaluations"
    folder.mkdir(parents=True, exist_ok=True)
    is_base = work.phase == "base"
    if is_base and not (work.folder / "about.json").exists():
        files.replace_json(work.folder / "about.json", about(work))
    if not is_base:
        checkpoint.demand(work.folder)
    name = _name(folder, given_name, documents)
    outputs = fingerprint(work, records)
    key = f"{integer(outputs, SCORING_VERSION, *score.identity(work.settings, judge)):016x}"
    if is_base:
        _reuse_base(work, name, outputs)
    summary, scores = folder / f"{name}.json", folder / f"{name}.jsonl"
    stored = json.loads(summary.read_bytes()) if summary.exists() and scores.exists() else {}
    return Plan(records, name, judge, documents, outputs, key, stored)


def documents_key(records: Sequence[Record]) -> str:
    """Names the documents of a test set, whatever its file is called."""
    return f"{integer([(r.id, r.modality, r.group, r.source, r.summary) for r in records]):016x}"


def _name(folder: Path, name: str, documents: str) -> str:
    """The name of the test set; with a mark of its own where other documents were judged under that name before."""
    summary = folder / f"{name}.json"
    known = json.loads(summary.read_bytes()).get("documents") if summary.exists() else None
    return name if known in (None, documents) else f"{name}-{documents[:6]}"


def _judge(work: Work, plan: Plan) -> dict | None:
    """Write what is missing, score all of it, and put the scores file in place; the content of the summary file.

    None in all processes but the first.
    """
    stored, scores = plan.stored, work.folder / "evaluations" / f"{plan.name}.jsonl"
    if stored.get("outputs") == plan.outputs:
        if not PartialState().is_main_process:
            return None
        rows = [json.loads(line) for line in scores.read_bytes().splitlines()]
        facts = {key: stored[key] for key in ("speed", "modality_gap") if key in stored}
    else:
        written = write_all(work, plan.records, plan.name, f".{plan.name}.{plan.outputs}")
        if written is None:
            return None
        rows, facts = written
    lexicon = terms.load(work.settings.data.terms) if work.settings.data.terms else None
    sources = [record.source for record in plan.records]
    rows, scored_by = score.rows(rows, sources, plan.judge, lexicon, work.cancelled, work.emit)
    for remark in scored_by.pop("remarks"):
        work.emit(Warned(remark))
    files.replace(scores, b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
    source = {"test_file": str(work.test_set.absolute())} if work.test_set else {}
    return {
        "metrics": score.columns(rows),
        "outputs": plan.outputs,
        "scored_by": scored_by,
        "created": time.time(),
        **source,
        **facts,
        "fingerprint": plan.fingerprint,
        "documents": plan.documents,
    }


def _reuse_base(work: Work, name: str, outputs: str) -> None:
    """Copy the evaluation that another run has of the same base on the same documents, if there is one."""
    for summary in sorted(work.run_folder.parent.glob(f"*/base/evaluations/{glob.escape(name)}.json")):
        scores = summary.with_suffix(".jsonl")
        if scores.exists() and json.loads(summary.read_bytes()).get("outputs") == outputs:
            for path in (scores, summary):
                target = work.folder / "evaluations" / path.name
                if not target.exists() or not target.samefile(path):
                    files.replace(target, path.read_bytes())
            return


def test_records(work: Work) -> tuple[list[Record], str]:
    """(test documents, name of the test set), `evaluate.samples` of each modality at most."""
    settings = work.settings
    if work.test_set:
        records, name = read_test(work.test_set), work.test_set.stem
    else:
        corpus = assemble(settings.data, work.cache)
        records, name = list(corpus.test), corpus.test_name
    if not records:
        raise ConfigError("there is no test document: raise data.test_share or give data.test=FILE")
    if limit := settings.evaluate.samples:
        kept = []
        for modality in dict.fromkeys(record.modality for record in records):
            members = [record for record in records if record.modality == modality]
            chosen = generator("samples", modality).sample(range(len(members)), min(limit, len(members)))
            kept += [members[index] for index in sorted(chosen)]
        records = kept
    return records, name


def about(work: Work, **facts) -> dict:
    """about.json: what a checkpoint is, and all that is needed to use it again."""
    return {
        "run": work.run,
        "phase": work.phase,
        "model": work.model,
        "parent": str(work.start_from) if work.start_from else None,
        "created": time.time(),
        "settings": dump(work.settings),
    } | facts


def fingerprint(work: Work, records: Sequence[Record]) -> str:
    """The same weights, documents and decoding give the same outputs."""
    settings = work.settings
    weights = work.folder / "adapter_model.safetensors"
    facts = [WRITING_VERSION, work.model, files.sha256(weights) if weights.exists() else "base"]
    facts += [
        documents_key(records),
        settings.generate.model_dump(),
        settings.evaluate.batch_size,
        settings.evaluate.batch_tokens,
        settings.model.dtype,
        settings.model.revision,
    ]
    facts += [
        settings.data.prompt,
        settings.data.chat_template,
        settings.data.max_length,
        settings.data.max_summary_length,
        settings.data.truncate,
        [record.instruction for record in records],
    ]
    return f"{integer(facts):016x}"
