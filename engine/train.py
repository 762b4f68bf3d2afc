"""One phase of the curriculum: the loop. State is in locals and in the checkpoint, and nowhere else."""

import json
import math
import resource
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from engine import (
    adapted,
    checkpoint,
    compiling,
    consolidate,
    development,
    ewc,
    extras,
    files,
    handover,
    models,
    trackers,
)
from engine.ahead import Ahead
from engine.auto import warmup
from engine.batches import BASE, Batch, Row
from engine.contrastive import Contrast
from engine.corpus.records import Record
from engine.events import Evaluated, PhaseStarted, Saved, Stage, Step, Warned
from engine.gradient import Learner, cut, gradient_of
from engine.material import Material, prepare
from engine.settings import ConfigError, Settings
from engine.watch import Watch, restored
from engine.work import Cancelled, Work

GIB = 2**30
STATE = "state.json"


@dataclass
class Progress:
    """Where a phase stands: steps done, and what it has been watching."""

    done: int
    watch: Watch
    start: Path | None  # the checkpoint this phase started from


def run(work: Work) -> dict:
    """Train work.phase: adapter in, adapter out, with Fisher, anchors and replay buffer for the phase after it.

    Goes on from the newest checkpoint of the phase where there is one, bit for bit on a CPU. Under `accelerate launch`
    the processes share each step; the first of them writes and reports. Raises ConfigError, or Cancelled after saving a
    checkpoint.
    """
    final = work.folder / checkpoint.FINAL
    if not checkpoint.verify(final):
        return {"checkpoint": str(final)}  # the work was done; only the word of it was lost
    settings = work.settings
    extras.demand_compiler(settings.train, torch.cuda.is_available())
    accelerator = _accelerator(work)
    work = work if accelerator.is_main_process else replace(work, emit=lambda event: None)
    work.emit(Stage("loading"))
    models.prepare(settings.train)
    tokenizer = models.load_tokenizer(work.model, settings.model)
    base = models.load_base(work.model, settings.model)
    with accelerator.main_process_first():  # the first writes the base's answers, the others read them
        material = prepare(work, tokenizer, base)
    start = checkpoint.demand(work.start_from) if work.start_from else None
    resumed = checkpoint.newest_step(work.folder) or _named_step(settings, material, start)
    learner = _learner(work, accelerator, base, material, start, resumed, tokenizer.pad_token_id)
    optimizer = models.adamw(
        models.parameter_groups(
            learner.model, settings.train, [learner.contrast.projection] if learner.contrast else []
        )
    )
    progress = Progress(0, Watch(), start)
    if resumed:
        state = torch.load(resumed[1] / "optimizer.pt", weights_only=True, map_location=accelerator.device)
        optimizer.load_state_dict(state)
        progress = Progress(resumed[0], restored(json.loads((resumed[1] / STATE).read_bytes())["watch"]), start)
    trackers.start(accelerator, work, settings)
    held = development.documents(settings, material.corpus.development, material.encoder)
    _train(work, learner, optimizer, material, progress, held)
    accelerator.wait_for_everyone()
    _take_best(work, learner, progress)
    trackers.finish(accelerator)
    return handover.conclude(work, learner, tokenizer, material, held, progress.done, start)


def _accelerator(work: Work) -> Accelerator:
    train = work.settings.train
    return Accelerator(
        mixed_precision="bf16" if train.mixed_precision == "bf16" else "no",
        log_with=trackers.demand(train.report_to),
        project_dir=work.run_folder if train.report_to else None,
        cpu=not torch.cuda.is_available(),
    )


def _learner(
    work: Work, accelerator: Accelerator, base, material: Material, start: Path | None, resumed, pad: int
) -> Learner:
    """The model with its adapter, the teachers beside it, the anchors and the projection of the contrastive term."""
    settings = work.settings
    source = resumed[1] if resumed else start
    model = (
        models.load_adapter(base, source, True) if source else models.attach(base, settings.lora, settings.train.seed)
    )
    adapted.join(model, settings.lora.dropout_mask == "sequence")
    models.checkpointing(model, settings)
    for name in material.teachers:
        before = start if start and start.parent.name == name else work.run_folder / name / checkpoint.FINAL
        models.load_teacher(model, checkpoint.demand(before), name)
    anchors = ewc.load(consolidate.anchors_folder(start), model, settings.ewc) if start and settings.ewc.lambda_ else []
    model = models.placed(model, accelerator)
    contrast = _contrast(settings, material, model, source)
    parameters = [*models.trainable(model).values(), *([contrast.projection] if contrast else [])]
    return Learner(accelerator, model, parameters, contrast, anchors, [*material.teachers, BASE], settings, pad)


def _contrast(settings: Settings, material: Material, model, source: Path | None) -> Contrast | None:
    """The projection and the queue, as the checkpoint before left them; None in a phase without pairs."""
    wanted = settings.losses
    if not wanted.contrastive or (
        wanted.crossclr.pairs == "cross_modal" and not dict(material.plan.counts).get("pairs")
    ):
        return None
    embedding = model.get_input_embeddings().weight
    dtype = torch.promote_types(embedding.dtype, torch.float32)
    contrast = Contrast(embedding.shape[1], settings.train.seed, embedding.device, dtype)
    if source and (source / handover.CONTRAST).exists():
        contrast.restore(load_file(source / handover.CONTRAST))
    return contrast


def _named_step(settings: Settings, material: Material, start: Path | None) -> tuple[int, Path] | None:
    """train.resume_from, as (steps done, folder). Raises ConfigError if it is no such checkpoint of this phase, or was
    trained from another adapter: its anchors and teachers would be others than those of the steps already done."""
    folder = settings.train.resume_from
    if folder is None:
        return None
    checkpoint.demand(folder)
    number = folder.name.removeprefix("step-")
    if not number.isdigit() or not (folder / "optimizer.pt").exists():
        raise ConfigError(f"train.resume_from: {folder}: not a checkpoint inside a phase. Give a folder step-N")
    if int(number) > material.plan.steps:
        raise ConfigError(
            f"train.resume_from: {folder}: {int(number)} steps are done there, but {material.plan.name} has {material.plan.steps}"
        )
    if json.loads((folder / STATE).read_bytes())["start"] != _origin(start):
        raise ConfigError(
            f"train.resume_from: {folder}: its phase started from another adapter than this one "
            f"({start or 'a fresh one'}). Give the same as model.adapter, and start that phase alone"
        )
    return int(number), folder


def _origin(start: Path | None) -> str | None:
    """What tells one adapter to start from from another: the hash of its weights. None: a fresh one."""
    return files.sha256(start / "adapter_model.safetensors") if start else None


def _train(work: Work, learner: Learner, optimizer, material: Material, progress: Progress, held: list[Record]) -> None:
    """The steps of the phase that are still to do, their micro-batches made ahead."""

    def make(step: int) -> tuple[list[Row], list[Batch]]:
        rows = material.rows(step)
        return rows, cut(learner, rows)

    plan = material.plan
    to_do = range(plan.start + progress.done, plan.start + plan.steps)
    train = work.settings.train
    with Ahead(make, to_do, train.prefetch) as ahead, compiling.compiled(learner.model, train.compile):
        _steps(work, learner, optimizer, material, progress, held, ahead)


def _steps(
    work: Work,
    learner: Learner,
    optimizer,
    material: Material,
    progress: Progress,
    held: list[Record],
    ahead: Ahead[tuple[list[Row], list[Batch]]],
) -> None:
    """Batch, dropout and rate of a step follow from (seed, step) alone."""
    settings, plan = work.settings, material.plan
    train, watch, accelerator = settings.train, progress.watch, learner.accelerator
    clock, tokens = time.perf_counter(), 0
    mixture = {source: count / plan.block for source, count in plan.counts}
    work.emit(PhaseStarted(plan.name, plan.steps, progress.done, mixture, material.schedule.draws(plan)))
    learner.model.train()
    while progress.done < plan.steps and not watch.is_over(train):
        if _cancelled(work, accelerator):
            _save_step(work, learner, optimizer, progress)
            raise Cancelled
        index = progress.done
        rows, batches = ahead.take(plan.start + index)
        measure = train.gradient_norms_steps > 0 and (index + 1) % train.gradient_norms_steps == 0
        with compiling.paused(train.compile and measure):
            found = gradient_of(learner, batches, plan.start + index, measure)
        watch.refuse_infinite(found, index + 1)
        if message := watch.refuse_spikes(found, index + 1, train):
            work.emit(Warned(message))
        for message in watch.warnings(found, index + 1, plan.steps, bool(learner.anchors)):
            work.emit(Warned(message))
        norm = clip(learner, train.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * rate_factor(index, plan.steps, warmup(train, plan.steps))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.done = index + 1

        tokens += sum(len(row.document.ids) for row in rows)
        if progress.done % train.logging_steps == 0 or progress.done == plan.steps or measure:
            elapsed, clock = time.perf_counter() - clock, time.perf_counter()
            lr, total, pace = optimizer.param_groups[0]["lr"], sum(found.losses.values()), tokens / elapsed
            step = Step(
                progress.done, plan.steps, found.losses, total, lr, float(norm), pace, peak_memory(),
                found.figures, found.norms,
            )  # fmt: skip
            work.emit(step)
            trackers.log(accelerator, step, plan.start)
            tokens = 0
        if settings.evaluate.every_steps and progress.done % settings.evaluate.every_steps == 0:
            ahead.rest()
            with compiling.paused(train.compile):
                _evaluate(work, learner, material, progress, held)
            _save_step(work, learner, optimizer, progress)
        elif progress.done % train.save_steps == 0 or progress.done == plan.steps:
            _save_step(work, learner, optimizer, progress)


def _cancelled(work: Work, accelerator: Accelerator) -> bool:
    """Whether any process has been asked to stop: they must all leave at the same step."""
    asked = work.cancelled()
    if accelerator.num_processes == 1:
        return asked
    return bool(accelerator.reduce(torch.tensor(float(asked), device=accelerator.device), "sum"))


def _evaluate(work: Work, learner: Learner, material: Material, progress: Progress, held: list[Record]) -> None:
    """Score the model as it is on the development documents, for the eye and for early stopping."""
    settings = work.settings
    work.emit(Stage("evaluating"))
    found = development.scores(learner.accelerator, learner.model, material.encoder, held, settings)
    progress.watch.scores.append((progress.done, development.overall(found, settings.evaluate.metric)))
    work.emit(Evaluated(f"{work.run}/{work.phase}", development.NAME, found, progress.done))
    work.emit(Stage("training"))
    learner.model.train()


def _take_best(work: Work, learner: Learner, progress: Progress) -> None:
    """With early stopping a phase ends with the weights of its best evaluation."""
    watch = progress.watch
    if not work.settings.train.early_stopping_patience or watch.best in (None, progress.done):
        return
    folder = checkpoint.demand(checkpoint.step_folder(work.folder, watch.best))
    set_peft_model_state_dict(
        learner.model, load_file(folder / "adapter_model.safetensors"), adapter_name=models.STUDENT
    )
    work.emit(
        Warned(f"stopped at step {progress.done}: the weights are those of step {watch.best}, the best on development")
    )


def clip(learner: Learner, most: float) -> torch.Tensor:
    """Scale the adapter's gradient to a norm of `most` at the most and return what it was.

    The projection is clipped by itself: at tau = 0.03 its gradient is many times the adapter's, and a common norm would
    scale everything else down to nothing.
    """
    if learner.contrast:
        torch.nn.utils.clip_grad_norm_([learner.contrast.projection], most)
    return torch.nn.utils.clip_grad_norm_(list(models.trainable(learner.model).values()), most)


def rate_factor(index: int, steps: int, warmup_steps: int) -> float:
    """Warm-up to 1 over warmup_steps, then a cosine towards 0; a pure function of the step."""
    if index < warmup_steps:
        return (index + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (index - warmup_steps) / max(1, steps - warmup_steps)))


def peak_memory() -> float:
    """Peak memory of this process in GiB: allocated on the GPU, or resident without one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _save_step(work: Work, learner: Learner, optimizer, progress: Progress) -> None:
    """A checkpoint inside the phase, from which training goes on exactly."""
    if not progress.done or not learner.accelerator.is_main_process:
        return

    def write(folder: Path) -> None:
        models.save_training_state(folder, learner.model, optimizer, **models.ADAPTER_ONLY)
        files.replace_json(folder / STATE, {"start": _origin(progress.start), "watch": progress.watch.state()})
        if learner.contrast:
            save_file(learner.contrast.state(), folder / handover.CONTRAST)

    folder = checkpoint.step_folder(work.folder, progress.done)
    if checkpoint.verify(folder):
        size = checkpoint.save(folder, write)
        kept = [checkpoint.step_folder(work.folder, progress.watch.best)] if progress.watch.best else []
        checkpoint.prune(work.folder, work.settings.train.save_total_limit, kept)
        work.emit(Saved(str(folder), progress.done, size))
