"""What a request would run, in rows a person can check before Enter. Pure; used by the form and the details."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from textual.content import Content

from tui.text import BOLD, DIM, PLAIN, YELLOW, parts, wrapped

if TYPE_CHECKING:
    from engine.settings import Ewc, Settings
    from jobs.submit import Draft, Request

MARGIN = 12
MANY_PASSES = 8  # over the same records: beyond, a model learns them by heart


@dataclass(frozen=True)
class Fact:
    """A row of the preview. warning: it needs a second look, and says so with a sign."""

    name: str
    text: str
    warning: bool = False

    def lines(self, width: int) -> list[Content]:
        style = YELLOW if self.warning else BOLD if self.name == "run" else PLAIN
        texts = wrapped(f"! {self.text}" if self.warning else self.text, max(10, width - MARGIN))
        names = [self.name, *[""] * len(texts)]
        return [parts((f"{name:<{MARGIN}}", DIM), (text, style)) for name, text in zip(names, texts, strict=False)]


def rows(request: "Request", draft: "Draft") -> list[Fact]:
    """Everything that decides what would be trained or judged."""
    from jobs.records import title

    names = [title(job) for job, _ in draft.jobs]
    after = draft.jobs[0][0].after
    facts = [
        Fact("run", draft.run),
        Fact(
            "jobs",
            f"{len(names)}: {', '.join(names)}" + (f" · after job {after}" if after and "#" not in after else ""),
        ),
    ]
    job = draft.jobs[0][1]["job"]
    if request.kind == "evaluate":
        return [*facts, Fact("checkpoint", str(job["folder"])), Fact("test set", str(job["test_set"] or "held out"))]
    if request.kind == "fisher":
        return [*facts, Fact("checkpoint", str(job["folder"]))]
    _, spec = draft.jobs[-1]
    from engine.settings import Settings

    settings = Settings.model_validate(spec["settings"])
    return [
        *facts,
        *_auto(draft.auto),
        *_phases(settings, draft),
        *_memory([job[1]["job"].get("plan") for job in draft.jobs]),
        *_data(draft),
        *_method(settings),
        *_differences(request),
    ]


def settings_rows(settings: "Settings", job: dict[str, Any], adjusted: dict[str, int]) -> list[Fact]:
    """The settings that matter of a job that is queued already, and what it made smaller to fit into memory."""
    from jobs import adjust

    phases = [phase for phase in settings.curriculum.phases if phase.name == job.get("phase")]
    lengths = [Fact(phase.name, f"{_mixture(phase)}   {_length(phase)}") for phase in phases]
    files = [
        Fact(f"data.{name}", str(path))
        for name in ("papers", "videos", "pairs", "test")
        if (path := getattr(settings.data, name))
    ]
    return [
        Fact("model", str(job.get("model") or settings.model.name_or_path or "")),
        *([Fact("adjusted", f"to fit into memory: {adjust.words(settings, adjusted)}", True)] if adjusted else []),
        *_auto(job.get("auto")),
        *lengths,
        *_memory([job.get("plan")]),
        *_method(settings),
        *files,
    ]


def _auto(found: dict[str, Any] | None) -> list[Fact]:
    """What train.auto has chosen."""
    from engine import auto

    return [Fact("auto", auto.words(**found))] if found else []


def _memory(plans: list[dict[str, Any] | None]) -> list[Fact]:
    """What the phase that needs most will take, and whether the machine has it."""
    from jobs import plan

    known = [value for value in plans if value]
    told = [value for value in known if "unknown" not in value]
    if not told:
        return [Fact("memory", f"not predicted: {value['unknown']}") for value in known[:1]]
    worst = max(told, key=lambda value: value["peak_gib"])
    warnings = [Fact("memory", line, True) for line in plan.warnings(worst)]
    return [*warnings, Fact("" if warnings else "memory", plan.brief(worst))]


def _mixture(phase) -> str:
    return "  ".join(f"{source} {100 * share:g} %" for source, share in phase.mixture.items() if share)


def _length(phase) -> str:
    return f"{phase.steps:,} steps" if phase.steps else f"{phase.epochs:g} epochs"


def _phases(settings: "Settings", draft: "Draft") -> list[Fact]:
    if draft.schedule is None:
        return []
    sizes = dict(draft.schedule.sizes)
    epoch = sizes.get("papers", 0) + sizes.get("videos", 0)
    chosen = [job.phase for job, _ in draft.jobs if job.kind == "phase"]
    facts = []
    for phase in settings.curriculum.phases:
        if phase.name in chosen:
            plan = draft.schedule.phase(phase.name)
            records = plan.steps * draft.schedule.batch_records
            epochs = f" = {records / epoch:.3g} epochs" if epoch else ""
            length = f"{plan.steps:,} steps of {draft.schedule.batch_records} records{epochs}"
            facts.append(Fact(phase.name, f"{_mixture(phase)}   {length}"))
    return facts


def _importance(ewc: "Ewc") -> str:
    return "every weight alike" if ewc.importance == "uniform" else f"Fisher of {ewc.fisher_samples} documents at most"


def _method(settings: "Settings") -> list[Fact]:
    ewc, replay, distil, train = settings.ewc, settings.replay, settings.distil, settings.train
    penalty = (
        f"lambda {ewc.lambda_:g} ({ewc.unit}), {ewc.space} space, {ewc.anchors} anchors, {_importance(ewc)}"
        if ewc.lambda_
        else "off: nothing holds earlier phases"
    )
    warm_up = f"{100 * train.warmup_ratio:g} %" if train.warmup_steps is None else f"{train.warmup_steps} steps"
    rates = (
        f"A {train.learning_rate:.3g}, B {train.learning_rate * train.loraplus_lr_ratio:.3g}, "
        f"warm-up {warm_up}, LoRA rank {settings.lora.rank}, alpha {settings.lora.alpha:g}"
    )
    losses = "  ".join(
        f"{name} {weight:g}"
        for name, weight in settings.losses
        if isinstance(weight, float)
        and weight
        and not name.endswith("_target")
        and (name != "term" or settings.data.terms)
    )
    return [
        Fact("ewc", penalty),
        Fact("replay", f"{100 * replay.batch_share:g} % of the cross-entropy from old records (buffer {100 * replay.buffer_share:g} %)" if replay.batch_share else "off"),
        Fact("distillation", f"replayed records held to the adapter of their phase, weight {distil.phase:g}" if distil.phase and replay.batch_share else "off"),
        Fact("base replay", f"weight {distil.base:g}, {100 * distil.base_share:g} % of a step's tokens" if distil.base else "off"),
        Fact("documents", f"weight {distil.documents:g}, {100 * distil.documents_share:g} % of a step's tokens" if distil.documents and settings.data.documents else "off: nothing keeps the likelihood of plain text"),
        Fact("rates", rates),
        Fact("losses", losses),
    ]  # fmt: skip


def _data(draft: "Draft") -> list[Fact]:
    if draft.corpus is None:
        return []
    passes = draft.schedule.passes() if draft.schedule else {}
    counts = [
        f"{count:,} {source}" + (f" ({passes[source]:.2g} passes)" if passes.get(source) else "")
        for source, count in draft.corpus.sizes.items()
        if count
    ]
    judged = (
        f"{len(draft.corpus.test):,} to judge ({draft.corpus.test_name}), {len(draft.corpus.fisher):,} for the Fisher"
    )
    many = [
        Fact(
            "warning", f"{source} are seen {count:.0f} times: more than {MANY_PASSES} passes are learnt by heart", True
        )
        for source, count in passes.items()
        if count > MANY_PASSES
    ]
    warnings = [Fact("warning", text, True) for text in draft.corpus.warnings]
    return [Fact("data", ", ".join(counts)), Fact("", judged), *many, *warnings]


def _differences(request: "Request") -> list[Fact]:
    """Settings that are not as the config file has them."""
    from engine.configs import differences, load

    changed = differences(request.settings, load(request.config))
    return [Fact("differs", f"{name} = {ours} (config: {theirs})") for name, ours, theirs in changed]
