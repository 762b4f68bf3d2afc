"""An evaluation job: a checkpoint writes summaries of a test set and each one is scored, once."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from engine import checkpoint, files, models
from engine.batches import Encoded, Encoder, plain_batch
from engine.configs import dump
from engine.corpus.records import Record
from engine.corpus.split import COLUMNS, assemble, read_test
from engine.evaluation import metrics
from engine.evaluation.generate import batches, generate
from engine.events import Evaluated, Generated, Sample, Stage, Warned
from engine.losses import token_nll
from engine.mixture import generator, integer
from engine.settings import ConfigError
from engine.work import Cancelled, Work

SCORING_VERSION = 2  # counts up when the same checkpoint would get other scores


def run(work: Work) -> dict:
    """Evaluate the checkpoint in work.folder (or the base, for phase `base`) on work.test_set or the held-out documents.

    Writes <checkpoint>/evaluations/<test set>.jsonl, one line per document, and <test set>.json with the means. Batches
    are fixed in advance and kept as they are finished, so a killed evaluation only repeats the batch it was in.
    """
    records, name = test_records(work)
    folder = work.folder / "evaluations"
    folder.mkdir(parents=True, exist_ok=True)
    is_base = work.phase == "base"
    if is_base and not (work.folder / "about.json").exists():
        files.replace_json(work.folder / "about.json", about(work))
    if not is_base:
        checkpoint.demand(work.folder)
    key = fingerprint(work, records)
    summary, scores = folder / f"{name}.json", folder / f"{name}.jsonl"
    if is_base:
        _reuse_base(work, name, key)
    stored = json.loads(summary.read_bytes()) if summary.exists() and scores.exists() else {}
    if stored.get("fingerprint") != key:
        rows = _score_all(work, records, name, folder / f".{name}.{key}.partial")
        columns = {c: _means([r for r in rows if COLUMNS[r["modality"]] == c], c) for c in _columns(records)}
        stored = {"fingerprint": key, "metrics": columns, "created": time.time()}
        files.replace(scores, b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
        files.replace_json(summary, stored)
        for left_over in folder.glob(f".{name}.*.partial"):
            left_over.unlink()
    work.emit(Evaluated(f"{work.run}/{work.phase}", name, stored["metrics"]))
    return {"checkpoint": str(work.folder), "test_set": name, "path": str(scores)} | stored


def _reuse_base(work: Work, name: str, key: str) -> None:
    """Copy the scores that another run has of the same base on the same documents, if there are any."""
    for summary in sorted(work.run_folder.parent.glob(f"*/base/evaluations/{name}.json")):
        scores = summary.with_suffix(".jsonl")
        if scores.exists() and json.loads(summary.read_bytes())["fingerprint"] == key:
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
        corpus = assemble(settings.data)
        records, name = list(corpus.test), corpus.test_name
    if not records:
        raise ConfigError("there is no test document: raise data.test_share or give data.test=FILE")
    if limit := settings.evaluate.samples:
        kept = []
        for modality in COLUMNS:
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
    """The same weights, documents and decoding give the same scores."""
    settings = work.settings
    weights = work.folder / "adapter_model.safetensors"
    facts = [SCORING_VERSION, work.model, files.sha256(weights) if weights.exists() else "base"]
    facts += [(record.id, record.modality, record.source, record.summary) for record in records]
    facts += [
        settings.generate.model_dump(),
        settings.evaluate.batch_size,
        settings.model.dtype,
        settings.model.revision,
    ]
    facts += [
        settings.data.prompt,
        settings.data.chat_template,
        settings.data.max_length,
        settings.data.max_summary_length,
    ]
    return f"{integer(facts):016x}"


def _columns(records: Sequence[Record]) -> list[str]:
    present = {record.modality for record in records}
    return [column for modality, column in COLUMNS.items() if modality in present]


def _means(rows: list[dict], column: str) -> dict[str, float]:
    return metrics.likelihood(rows) if column == COLUMNS["document"] else metrics.summarise(rows)


def _score_all(work: Work, every: list[Record], name: str, partial: Path) -> list[dict]:
    """One row per document, in the order of the test set; finished batches are appended to `partial` and read back.

    Plain documents are only read: their likelihood is the third column of the forgetting table.
    """
    settings = work.settings
    models.prepare(settings.train)
    work.emit(Stage("loading"))
    tokenizer = models.load_tokenizer(work.model, settings.model)
    encoder = Encoder(tokenizer, settings.data)
    model = models.load_base(work.model, settings.model)
    if work.phase != "base":
        model = models.load_adapter(model, work.folder, trainable=False)
    work.emit(Stage("evaluating"))
    room = settings.generate.max_new_tokens
    size = settings.evaluate.batch_size
    plain = _read_plain(work, model, encoder, [record for record in every if record.modality == "document"])
    records = [record for record in every if record.modality != "document"]
    references = _references(work, encoder, records)
    order = batches(encoder.prompts(records, room), size)
    finished = _finished(partial, order)
    rows = {
        index: row
        for chosen, batch in zip(order, finished, strict=False)
        for index, row in zip(chosen, batch, strict=True)
    }
    work.emit(Generated(len(rows), len(records), name))
    with partial.open("ab") as file:
        for batch in generate(model, encoder, records, room, size, skip=len(finished)):
            if work.cancelled():
                raise Cancelled
            indices = [output.index for output in batch]
            nll = reference_nll(model, [references[index] for index in indices], tokenizer.pad_token_id)
            fresh = []
            for output, value in zip(batch, nll, strict=True):
                record, reference = records[output.index], references[output.index]
                fresh.append({
                    "id": record.id,
                    "modality": record.modality,
                    "source_tokens": reference.prompt,
                    "summary_tokens": reference.summary_tokens,
                    "reference": record.summary,
                    "output": output.text,
                    "scores": metrics.rouge(record.summary or "", output.text) | {"nll": value},
                })  # fmt: skip
            file.write(json.dumps(fresh, ensure_ascii=False).encode() + b"\n")
            file.flush()
            rows |= zip(indices, fresh, strict=True)
            first = fresh[0]
            work.emit(Generated(len(rows), len(records), name))
            work.emit(Sample(first["id"], first["modality"], first["reference"][:2000], first["output"][:2000]))
    written = {(row["modality"], row["id"]): row for row in [*plain, *rows.values()]}
    return [written[record.modality, record.id] for record in every]


def _read_plain(work: Work, model: nn.Module, encoder: Encoder, records: list[Record]) -> list[dict]:
    """Rows of plain documents: the mean nll of every token, nothing is generated."""
    documents, size, rows = encoder.plain(records), work.settings.evaluate.batch_size, []
    for first in range(0, len(records), size):
        if work.cancelled():
            raise Cancelled
        batch = documents[first : first + size]
        values = reference_nll(model, batch, encoder.tokenizer.pad_token_id)
        for record, document, value in zip(records[first : first + size], batch, values, strict=True):
            rows.append({
                "id": record.id,
                "modality": record.modality,
                "source_tokens": len(document.ids),
                "summary_tokens": document.summary_tokens,
                "reference": None,
                "output": None,
                "scores": {"nll": value},
            })  # fmt: skip
    return rows


def _finished(partial: Path, order: list[list[int]]) -> list[list[dict]]:
    """The whole batches an earlier attempt has left; a torn last line is cut off, so that appending goes on cleanly."""
    if not partial.exists():
        return []
    content = partial.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        files.replace(partial, whole)
    return [json.loads(line) for line in whole.splitlines()][: len(order)]


def _references(work: Work, encoder: Encoder, records: list[Record]) -> list[Encoded]:
    """Prompt and reference of each document; a reference that is too long counts with its first tokens only."""
    limit = work.settings.data.max_summary_length
    encoded, long = [], 0
    for record, document in zip(records, encoder.encode(records), strict=True):
        if document is None:
            long += 1
            tokens = encoder.tokenizer(record.summary, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            prompt = encoder.prompts([record], limit)[0]
            document = Encoded(prompt.ids + tokens[:limit], prompt.prompt, prompt.cut)
        encoded.append(document)
    cut = sum(document.cut > 0 for document in encoded)
    if cut:
        work.emit(Warned(f"{cut} of {len(records)} sources are longer than data.max_length and were cut at their end"))
    if long:
        work.emit(Warned(f"{long} references are longer than {limit} tokens; their nll is that of the first {limit}"))
    return encoded


@torch.inference_mode()
def reference_nll(model: nn.Module, documents: Sequence[Encoded], pad: int) -> list[float]:
    """Mean negative log-likelihood of each reference summary, in nats per token, end-of-text included."""
    was_training = model.training
    model.eval()
    batch = plain_batch(documents, pad)
    batch = batch.to(next(model.parameters()).device)
    values = token_nll(models.summary_logits(model, batch), batch.targets)
    model.train(was_training)
    return [part.mean().item() for part in values.split([document.summary_tokens for document in documents])]
