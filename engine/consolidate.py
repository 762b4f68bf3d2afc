"""A Fisher job: what mattered in a finished checkpoint, measured beside it for whatever trains on from there."""

from pathlib import Path

from accelerate import Accelerator

from engine import checkpoint, ewc, files, models
from engine.batches import Encoded, Encoder
from engine.corpus.split import assemble
from engine.events import FisherProgress, Saved, Stage
from engine.material import fisher_records
from engine.mixture import integer
from engine.settings import ConfigError
from engine.work import Cancelled, Work

FOLDER = "fisher"  # checkpoints/RUN/PHASE/fisher/, beside final/


def run(work: Work) -> dict:
    """The Fisher of the checkpoint in work.folder on the documents its phase holds out; work.start_from is its parent.

    Written to PHASE/fisher; a phase that starts from the checkpoint takes its anchors from there. Raises ConfigError
    for a folder that is no checkpoint, or where nothing is held out; Cancelled.
    """
    settings = work.settings
    final = checkpoint.demand(work.folder)
    work.emit(Stage("loading"))
    models.prepare(settings.train)
    phase = next(p for p in settings.curriculum.phases if p.name == work.phase)
    tokenizer = models.load_tokenizer(work.model, settings.model)
    records = fisher_records(settings, phase, assemble(settings.data, work.cache))
    documents = [document for document in Encoder(tokenizer, settings.data).encode(records) if document]
    if not documents:
        raise ConfigError(
            f"every held-out summary is longer than data.max_summary_length {settings.data.max_summary_length}"
        )
    model = models.load_adapter(models.load_base(work.model, settings.model), final, trainable=True)
    models.checkpointing(model, settings)
    old = ewc.load(anchors_folder(work.start_from), model, settings.ewc) if work.start_from else []
    found = measure(work, model, documents, tokenizer.pad_token_id)
    anchors = ewc.anchored(old, phase.name, found, model, settings.ewc)
    facts = {
        "phase": phase.name,
        "space": settings.ewc.space,
        "documents": found.documents,
        "tokens": found.tokens,
        "trace": found.trace,
        "shares": found.shares(),
    }

    def write(folder: Path) -> None:
        ewc.save(folder, anchors)
        files.replace_json(folder / "fisher.json", facts)

    folder = final.parent / FOLDER
    work.emit(Saved(str(folder), 0, checkpoint.save(folder, write)))
    return {"checkpoint": str(final), "fisher": facts}


def anchors_folder(final: Path) -> Path:
    """Where the anchors of a checkpoint are: in a whole Fisher folder beside it, if one was measured, else inside it."""
    beside = final.parent / FOLDER
    return final if checkpoint.verify(beside) else beside


def measure(
    work: Work, model, documents: list[Encoded], pad: int, accelerator: Accelerator | None = None
) -> ewc.Fisher:
    """The Fisher with its progress told; several processes share the documents. Raises Cancelled."""
    work.emit(Stage("fisher"))
    total = len(documents)
    work.emit(FisherProgress(0, total))
    found = ewc.fisher(
        model,
        documents,
        work.settings.ewc,
        integer(work.settings.train.seed, work.phase),
        pad,
        lambda done, so_far: work.emit(FisherProgress(done, total, so_far.trace, so_far.shares())),
        work.cancelled,
        accelerator,
    )
    if found is None:
        raise Cancelled
    return found
