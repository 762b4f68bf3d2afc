"""What a phase hands to the next one: its adapter, Fisher and anchors, the replay buffer, and what they are."""

from itertools import chain
from pathlib import Path

from safetensors.torch import save_file

from engine import blend, checkpoint, consolidate, ewc, files, replay
from engine.corpus.records import Record
from engine.corpus.stored import Stored
from engine.evaluation.run import about
from engine.events import Saved, Stage
from engine.gradient import Learner
from engine.material import Material, hands_on
from engine.models import ADAPTER_ONLY
from engine.work import Work

CONTRAST = "contrastive.safetensors"


def conclude(
    work: Work, learner: Learner, tokenizer, material: Material, held: list[Record], stopped_at: int, start: Path | None
) -> dict:
    """Averaging where it is wanted, anchors at the weights that stay, and final/: adapter, tokenizer, anchors, replay buffer, queue of the contrastive term, about.json."""
    averaged = blend.blend(work, learner, material, held, start)
    anchors = _anchors(work, learner, material)
    fresh = _buffer(work, material)
    facts = {
        "step": material.plan.start + stopped_at,
        "trained_on": material.corpus.hashes,
        "replay_records": len(material.kept) + len(fresh),
        "ewc": [_fact(work, anchor) for anchor in anchors],
        "average": averaged,
        "processes": learner.accelerator.num_processes,
    }

    def write(folder: Path) -> None:
        learner.model.save_pretrained(folder, **ADAPTER_ONLY)
        tokenizer.save_pretrained(folder)
        replay.save_buffer(folder, chain(material.kept, fresh))
        if anchors:
            ewc.save(folder, anchors)
        if learner.contrast:
            save_file(learner.contrast.state(), folder / CONTRAST)
        files.replace_json(folder / "about.json", about(work, **facts))

    final = work.folder / checkpoint.FINAL
    if learner.accelerator.is_main_process:
        work.emit(Stage("saving"))
        size = checkpoint.save(final, write)
        checkpoint.link(work.run_folder, "latest", final)
        work.emit(Saved(str(final), 0, size))
    learner.accelerator.wait_for_everyone()
    return {"checkpoint": str(final)} | {name: facts[name] for name in ("ewc", "replay_records")}


def _anchors(work: Work, learner: Learner, material: Material) -> list[ewc.Anchor]:
    """The anchors for the next phase: the importance of the weights where this phase ended."""
    settings = work.settings
    if not hands_on(settings, work.phase):
        return learner.anchors
    if settings.ewc.importance == "uniform":
        found = ewc.uniform(learner.model, settings.ewc)
    else:
        found = consolidate.measure(work, learner.model, material.fisher, learner.pad, learner.accelerator)
    return ewc.anchored(learner.anchors, material.plan.name, found, learner.model, settings.ewc)


def _buffer(work: Work, material: Material) -> list[Record]:
    """A share of what this phase has seen, without what was kept before."""
    settings, plan = work.settings, material.plan
    if not settings.replay.buffer_share:
        return []
    seen = Stored()
    for source, _ in plan.counts:
        places = material.schedule.seen(plan, source)
        seen = sum((side.chosen(places) for side in material.corpus.sides(source)), seen)
    fresh = replay.choose(seen, settings.replay.buffer_share, settings.train.seed, plan.name)
    known = {record.id for record in material.kept}
    return [record for record in fresh if record.id not in known]


def _fact(work: Work, anchor: ewc.Anchor) -> dict:
    """An anchor in about.json: lambda as it was given, and what it is per token."""
    settings = work.settings.ewc
    return {
        "phase": anchor.phase,
        "lambda": settings.lambda_,
        "unit": settings.unit,
        "mean_tokens": anchor.fisher.mean_tokens,
        "lambda_per_token": ewc.lambda_per_token(settings, anchor.fisher.mean_tokens),
        "documents": anchor.fisher.documents,
        "trace": anchor.fisher.trace,
    }
