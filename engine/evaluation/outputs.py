"""What a checkpoint writes for a test set, kept batch by batch so that a killed job only repeats the batch it was in.

Under `accelerate launch` the processes share the batches, and each keeps its own in a file of its own.
"""

import glob
import json
import os
import resource
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn

from engine import files, models
from engine.batches import Encoded, Encoder
from engine.corpus.records import Record
from engine.corpus.split import COLUMNS
from engine.evaluation import plain
from engine.evaluation.gap import DOCUMENTS, modality_gap, representations
from engine.evaluation.generate import Output, batches, generate
from engine.evaluation.likelihood import reference_nll
from engine.events import Generated, Sample, Stage, Warned
from engine.mixture import generator
from engine.truncation import PLACES
from engine.work import Cancelled, Work

GIB = 2**30


class Written(NamedTuple):
    """rows: one per document in the order of the test set, scores holding nll alone. facts: speed and modality gap."""

    rows: list[dict]
    facts: dict


class Batch(NamedTuple):
    """A finished batch, a line of a partial file. number: its place in the order that is fixed in advance.

    seconds: of its generation, which all its documents waited.
    """

    number: int
    rows: list[dict]
    seconds: float
    peak_gib: float


def write_all(work: Work, every: list[Record], name: str, kept: str) -> Written | None:
    """Outputs and likelihoods of all records; plain documents are only read. None in all processes but the first.

    Finished batches are kept in <checkpoint>/evaluations/<kept>.<process>.partial, and those that are there, from however
    many processes, are not written again. Raises Cancelled between batches, in all processes.
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
    records = [record for record in every if record.modality != plain.MODALITY]
    order = batches(
        encoder.prompts(records, settings.generate.max_new_tokens),
        settings.evaluate.batch_size,
        settings.evaluate.batch_tokens,
        settings.generate.max_new_tokens,
    )
    read = _share(work, model, encoder, every, records, name, kept, order)
    if not PartialState().is_main_process:
        return None
    finished = [batch for _, batch in sorted(_finished(work.folder, kept).items())]
    rows = {
        index: row
        for chosen, batch in zip(order, finished, strict=True)
        for index, row in zip(chosen, batch.rows, strict=True)
    }
    facts = {"speed": _speed(finished)} if finished else {}
    if settings.evaluate.modality_gap and (gap := _gap(model, encoder, records, settings.evaluate.batch_size)):
        facts["modality_gap"] = gap
    found = {(row["modality"], row["id"]): row for row in [*read, *rows.values()]}
    return Written([found[record.modality, record.id] for record in every], facts)


def _share(
    work: Work,
    model: nn.Module,
    encoder: Encoder,
    every: list[Record],
    records: list[Record],
    name: str,
    kept: str,
    order: list[list[int]],
) -> list[dict]:
    """Write the batches that are not there yet, each process its share of them; the rows of the plain documents."""
    state, read, stopped = PartialState(), [], False
    finished = _finished(work.folder, kept)
    state.wait_for_everyone()  # all have looked before one writes, so they share the same rest
    rest = [number for number in range(len(order)) if number not in finished]
    documents = [record for record in every if record.modality == plain.MODALITY]
    try:
        read = plain.read_all(work, model, encoder, documents, state.process_index, state.num_processes)
        _write_rest(work, model, encoder, records, name, _partial(work.folder, kept, state.process_index), order, rest)
    except Cancelled:  # the others are waited for: they hear of it at their next batch
        stopped = True
    told = gather_object([(stopped, read)]) if state.num_processes > 1 else [(stopped, read)]
    if any(stopped for stopped, _ in told):
        raise Cancelled
    return [row for _, rows in told for row in rows]


def _write_rest(
    work: Work,
    model: nn.Module,
    encoder: Encoder,
    records: list[Record],
    name: str,
    partial: Path,
    order: list[list[int]],
    rest: list[int],
) -> None:
    """This process's share of the batches in `rest`, each on disk before the next begins."""
    settings, state = work.settings, PartialState()
    references = _references(work, encoder, records)
    done = len(records) - sum(len(order[number]) for number in rest)
    work.emit(Generated(done, len(records), name))
    mine = rest[state.process_index :: state.num_processes]
    writing = generate(
        model, encoder, records, settings.generate.max_new_tokens, settings.evaluate.batch_size,
        decoding=settings.generate, budget=settings.evaluate.batch_tokens, only=mine,
    )  # fmt: skip
    _cut_torn_line(partial)
    with partial.open("ab") as file:
        for turn, number in enumerate(mine):
            started = time.perf_counter()
            outputs = next(writing)
            seconds = time.perf_counter() - started
            if work.cancelled():
                raise Cancelled
            documents = [references[output.index] for output in outputs]
            nll = reference_nll(model, documents, encoder.tokenizer.pad_token_id)
            rows = [_row(records[o.index], references[o.index], o, v) for o, v in zip(outputs, nll, strict=True)]
            line = Batch(number, rows, seconds, _peak_gib())._asdict()
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            # the other processes are taken to be in the same turn
            done += sum(len(order[n]) for n in rest[turn * state.num_processes : (turn + 1) * state.num_processes])
            work.emit(Generated(done, len(records), name))
            first = rows[0]
            work.emit(Sample(first["id"], first["modality"], first["reference"][:2000], first["output"][:2000]))


def _row(record: Record, reference: Encoded, output: Output, nll: float) -> dict:
    return {
        "id": record.id,
        "modality": record.modality,
        **({"group": record.group} if record.group else {}),
        "source_tokens": reference.prompt,
        "summary_tokens": reference.summary_tokens,
        "output_tokens": len(output.tokens),
        "reference": record.summary,
        "output": output.text,
        "scores": {"nll": nll},
    }


def _partial(folder: Path, kept: str, process: int) -> Path:
    return folder / "evaluations" / f"{kept}.{process}.partial"


def _finished(folder: Path, kept: str) -> dict[int, Batch]:
    """{number: batch} of the whole batches that are there. A torn last line does not count."""
    found = {}
    for partial in sorted((folder / "evaluations").glob(f"{glob.escape(kept)}.*.partial")):
        for line in _whole_lines(partial.read_bytes()).splitlines():
            batch = Batch(**json.loads(line))
            found[batch.number] = batch
    return found


def _whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def _cut_torn_line(partial: Path) -> None:
    """What a killed process has half written goes, so that appending goes on cleanly."""
    content = partial.read_bytes() if partial.exists() else b""
    if _whole_lines(content) != content:
        files.replace(partial, _whole_lines(content))


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
        place = PLACES[work.settings.data.truncate]
        work.emit(Warned(f"{cut} of {len(records)} sources are longer than data.max_length and lost their {place}"))
    if long:
        work.emit(Warned(f"{long} references are longer than {limit} tokens; their nll is that of the first {limit}"))
    return encoded


def _peak_gib() -> float:
    """The most memory so far: of torch on the GPU, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def _speed(finished: list[Batch]) -> dict:
    """Seconds that a document waited for its batch (p50, p95); tokens written a second and peak GiB, of one process."""
    waited = [batch.seconds for batch in finished for _ in batch.rows]
    tokens = sum(row["output_tokens"] for batch in finished for row in batch.rows)
    p50, p95 = np.percentile(waited, [50, 95])
    return {
        "latency_p50": float(p50),
        "latency_p95": float(p95),
        "tokens_per_second": tokens / max(1e-9, sum(batch.seconds for batch in finished)),
        "peak_gib": max(batch.peak_gib for batch in finished),
    }


def _gap(model: nn.Module, encoder: Encoder, records: list[Record], size: int) -> dict | None:
    """The modality gap of a sample of the test set; None where it has one modality only."""
    sides = []
    for modality in COLUMNS:
        members = [record for record in records if record.modality == modality]
        chosen = generator("gap", modality).sample(members, min(DOCUMENTS, len(members)))
        if modality in ("paper", "video"):
            sides.append(chosen)
    if not all(sides):
        return None
    place = {record.pair_id: k for k, record in enumerate(sides[1]) if record.pair_id}
    pairs = [(k, place[record.pair_id]) for k, record in enumerate(sides[0]) if record.pair_id in place]
    x, y = (representations(model, encoder.prompts(side, 1), size) for side in sides)
    return modality_gap(x, y, pairs) | {"documents": [len(x), len(y)]}
