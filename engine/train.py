"""One phase of the curriculum: the loop. State is in locals and in the checkpoint, and nowhere else."""

import math
import resource
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from engine import checkpoint, consolidate, ewc, files, losses, models, replay
from engine.batches import Row, micro_batches, step_rows
from engine.evaluation.run import about
from engine.events import PhaseStarted, Saved, Stage, Step, Warned
from engine.material import Material, prepare
from engine.mixture import integer
from engine.settings import ConfigError, Settings
from engine.work import Cancelled, Work

GIB = 2**30
ADAPTER_ONLY = {"save_embedding_layers": False, "selected_adapters": [models.STUDENT]}  # teachers stay where they are
PENALTY_WINDOW = (0.01, 0.1)  # of the cross-entropy; METHODS, section 9


def run(work: Work) -> dict:
    """Train work.phase: adapter in, adapter out, with Fisher, anchors and replay buffer for the phase after it.

    Goes on from the newest checkpoint of the phase where there is one, bit for bit on a CPU. Raises ConfigError, or
    Cancelled after saving a checkpoint.
    """
    final = work.folder / checkpoint.FINAL
    if not checkpoint.verify(final):
        return {"checkpoint": str(final)}  # the work was done; only the word of it was lost
    settings = work.settings
    work.emit(Stage("loading"))
    models.prepare(settings.train)
    accelerator = Accelerator(mixed_precision="bf16" if settings.train.mixed_precision == "bf16" else "no")
    if accelerator.num_processes > 1:
        raise ConfigError("a phase runs in one process here; start it without `accelerate launch`")
    tokenizer = models.load_tokenizer(work.model, settings.model)
    base = models.load_base(work.model, settings.model)
    material = prepare(work, tokenizer, base)
    start = checkpoint.demand(work.start_from) if work.start_from else None
    resumed = checkpoint.newest_step(work.folder)
    source = resumed[1] if resumed else start
    model = (
        models.load_adapter(base, source, True) if source else models.attach(base, settings.lora, settings.train.seed)
    )
    if settings.train.gradient_checkpointing:
        model.enable_input_require_grads()
        model.activation_checkpointing_enable()
    optimizer = torch.optim.AdamW(models.parameter_groups(model, settings.train))
    for name in material.teachers:
        models.load_teacher(model, checkpoint.demand(work.run_folder / name / checkpoint.FINAL), name)
    anchors = ewc.load(consolidate.anchors_folder(start), model, settings.ewc) if start and settings.ewc.lambda_ else []
    model, optimizer = accelerator.prepare(model, optimizer)
    if resumed:
        optimizer.load_state_dict(
            torch.load(resumed[1] / "optimizer.pt", weights_only=True, map_location=accelerator.device)
        )
    _train(work, accelerator, model, optimizer, material, anchors, resumed[0] if resumed else 0, tokenizer.pad_token_id)
    plain = accelerator.unwrap_model(model)
    anchors = _consolidate(work, plain, material, anchors, tokenizer.pad_token_id)
    return _finish(work, plain, tokenizer, material, anchors)


def _train(
    work: Work, accelerator: Accelerator, model, optimizer, material: Material, anchors: list, done: int, pad: int
) -> None:
    """Steps done+1 ... of the phase. Batch, dropout and rate of a step follow from (seed, step) alone."""
    settings, plan = work.settings, material.plan
    train = settings.train
    parameters = list(models.trainable(model).values())
    clock, tokens = time.perf_counter(), 0
    mixture = {source: count / plan.block for source, count in plan.counts}
    work.emit(PhaseStarted(plan.name, plan.steps, done, mixture, material.schedule.draws(plan)))
    model.train()
    for index in range(done, plan.steps):
        if work.cancelled():
            _save_step(work, model, optimizer, index)
            raise Cancelled
        step = plan.start + index
        set_seed(integer(train.seed, "dropout", step) % 2**32)
        rows = step_rows(material.new(step), material.memory, material.answers, material.shares, train.seed, step)
        parts = _backward(accelerator, model, material, rows, settings, pad)
        if anchors:
            # once a step, whatever the accumulation
            held = ewc.penalty(accelerator.unwrap_model(model), anchors, settings.ewc)
            accelerator.backward(held)
            parts["ewc"] = held.detach()
        values = {name: value.item() for name, value in parts.items()}
        _refuse_infinite(values, index + 1)
        if anchors and index + 1 == max(1, plan.steps // 10):
            _judge_penalty(work, values)
        norm = accelerator.clip_grad_norm_(parameters, train.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * rate_factor(index, plan.steps, train.warmup_ratio)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        tokens += sum(len(row.document.ids) for row in rows)
        if (index + 1) % train.logging_steps == 0 or index + 1 == plan.steps:
            elapsed, clock = time.perf_counter() - clock, time.perf_counter()
            lr, total, pace = optimizer.param_groups[0]["lr"], sum(values.values()), tokens / elapsed
            work.emit(Step(index + 1, plan.steps, values, total, lr, float(norm), pace, peak_memory()))
            tokens = 0
        if (index + 1) % train.save_steps == 0 or index + 1 == plan.steps:
            _save_step(work, model, optimizer, index + 1)


def _backward(
    accelerator: Accelerator, model, material: Material, rows: list[Row], settings: Settings, pad: int
) -> dict:
    """The gradient of a step's rows, micro-batch by micro-batch; returns {component: its value over the step}."""
    parts: dict[str, Tensor] = {}
    embedding = model.get_input_embeddings().weight
    teachers = [*material.teachers, *(["base"] if settings.distil.base else [])]
    for batch in micro_batches(rows, settings.train.per_device_train_batch_size, material.shares.memory, pad):
        batch = batch.to(accelerator.device)
        told = models.teacher_log_probabilities(model, batch, teachers)
        logits = models.summary_logits(model, batch)
        mixed = losses.mix(logits, batch, told, embedding, settings.losses, settings.distil)
        accelerator.backward(sum(mixed.values()))
        for name, value in mixed.items():
            parts[name] = parts.get(name, 0.0) + value.detach()
    return parts


def rate_factor(index: int, steps: int, warmup_ratio: float) -> float:
    """Warm-up to 1 over warmup_ratio of the steps, then a cosine towards 0; a pure function of the step."""
    warmup = math.ceil(warmup_ratio * steps)
    if index < warmup:
        return (index + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (index - warmup) / max(1, steps - warmup)))


def peak_memory() -> float:
    """Peak memory of this process in GiB: allocated on the GPU, or resident without one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _refuse_infinite(values: dict[str, float], step: int) -> None:
    """Stop before the weights are touched; the last checkpoint stays good."""
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise ConfigError(
            f"step {step}: {' and '.join(bad)} is {values[bad[0]]}. The weights are those of the step before; "
            "lower train.learning_rate (or ewc.lambda) and retry"
        )


def _consolidate(work: Work, model, material: Material, anchors: list, pad: int) -> list:
    """The anchors for the next phase: the Fisher at the weights where this phase ended."""
    if not material.fisher:
        return anchors
    found = consolidate.measure(work, model, material.fisher, pad)
    return ewc.anchored(anchors, material.plan.name, found, model, work.settings.ewc)


def _judge_penalty(work: Work, values: dict[str, float]) -> None:
    """After a tenth of a phase (the penalty starts at 0): is lambda in the window where it does something, and not all?"""
    share = values["ewc"] / values["cross_entropy"] if values.get("cross_entropy") else math.inf
    low, high = PENALTY_WINDOW
    if not low <= share <= high:
        advice = (
            "raise ewc.lambda if the old phase is forgotten"
            if share < low
            else "lower ewc.lambda if the new one is not learnt"
        )
        work.emit(Warned(f"the EWC penalty is {100 * share:.2g} % of the cross-entropy (1-10 % is usual): {advice}"))


def _save_step(work: Work, model, optimizer, done: int) -> None:
    """A checkpoint inside the phase, from which training goes on exactly."""
    if not done:
        return

    folder = checkpoint.step_folder(work.folder, done)
    if checkpoint.verify(folder):
        size = checkpoint.save(
            folder, lambda inside: models.save_training_state(inside, model, optimizer, **ADAPTER_ONLY)
        )
        checkpoint.prune(work.folder, work.settings.train.save_total_limit)
        work.emit(Saved(str(folder), done, size))


def _finish(work: Work, model, tokenizer, material: Material, anchors: list) -> dict:
    """final/: adapter, tokenizer, anchors, replay buffer and what they are."""
    settings, plan = work.settings, material.plan
    work.emit(Stage("saving"))
    seen = [
        record
        for source, _ in plan.counts
        for index in material.schedule.seen(plan, source)
        for record in material.corpus.documents(source, index)
    ]
    known = {record.id for record in material.kept}
    fresh = replay.choose(seen, settings.replay.buffer_share, settings.train.seed, plan.name)
    buffer = [*material.kept, *(record for record in fresh if record.id not in known)]
    facts = {
        "step": plan.end,
        "trained_on": material.corpus.hashes,
        "replay_records": len(buffer),
        "ewc": [
            {
                "phase": anchor.phase,
                "lambda": settings.ewc.lambda_,
                "unit": settings.ewc.unit,
                "mean_tokens": anchor.fisher.mean_tokens,
                "lambda_per_token": ewc.lambda_per_token(settings.ewc, anchor.fisher.mean_tokens),
                "documents": anchor.fisher.documents,
                "trace": anchor.fisher.trace,
            }
            for anchor in anchors
        ],
    }

    def write(folder: Path) -> None:
        model.save_pretrained(folder, **ADAPTER_ONLY)
        tokenizer.save_pretrained(folder)
        replay.save_buffer(folder, buffer)
        if anchors:
            ewc.save(folder, anchors)
        files.replace_json(folder / "about.json", about(work, **facts))

    final = work.folder / checkpoint.FINAL
    size = checkpoint.save(final, write)
    checkpoint.link(work.run_folder, "latest", final)
    work.emit(Saved(str(final), 0, size))
    return {"checkpoint": str(final), "bytes": size} | {name: facts[name] for name in ("ewc", "replay_records")}
