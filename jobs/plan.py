"""What a config will take, before it runs: memory by part, whether it fits, what to change, time. No torch, no weights."""

import itertools
import os
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from engine import events
from engine.auto import automatic
from engine.corpus.records import Record
from engine.corpus.split import Corpus, assemble
from engine.mixture import Schedule, schedule
from engine.plan import flops, load, memory, shapes
from engine.plan.load import Lengths
from engine.plan.memory import Parts
from engine.plan.shapes import Shape
from engine.settings import ConfigError, Settings
from jobs import calibration, fitting
from jobs.home import Home

GIB = 2**30
CHARACTERS = {True: 3.0, False: 3.8}  # of a token: of the vocabulary of a base built here, of any other
PROMPT = 20  # tokens around a source, and its end
TIGHT = 0.93  # of what is usable: a prediction is off by a few percent
HEADROOM = 0.03  # of a GPU, which the driver and other programs take


@dataclass(frozen=True)
class Machine:
    """Where it would run. name: that of the GPU, or cpu; gib: its memory, None where unknown."""

    device: str  # cuda or cpu
    name: str
    gib: float | None

    @property
    def usable(self) -> float | None:
        return None if self.gib is None else self.gib * (1 - HEADROOM)


def machine(gib: float | None = None) -> Machine:
    """The GPU with the least memory, or this processor; gib: a GPU of that size instead, wherever it may be."""
    from jobs import gpus

    if gib is not None:
        return Machine("cuda", f"GPU of {gib:g} GiB", gib)
    reading = gpus.read()
    sized = [(gpu["memory_total"], gpu["name"]) for gpu in reading.gpus if gpu["memory_total"]]
    if sized:
        return Machine("cuda", min(sized)[1], min(sized)[0])
    return Machine("cpu", f"cpu, {len(os.sched_getaffinity(0))} cores", reading.ram_total)


# -- one phase ----------------------------------------------------------------------------------------------------


def stages(settings: Settings, shape: Shape, known: Lengths, device: str, phase: int) -> dict[str, Parts]:
    """{stage: {part: bytes}} of phase number `phase`; of each stage the larger of its loads."""
    found: dict[str, Parts] = {}
    for micro_batch in load.loads(settings, known, phase):
        for stage, parts in memory.stages(settings, shape, micro_batch, memory.place(settings, device, phase)).items():
            if stage not in found or sum(parts.values()) > sum(found[stage].values()):
                found[stage] = parts
    return found


def phase_value(home: Home, settings: Settings, known: Lengths, number: int, where: Machine) -> dict[str, Any]:
    """The prediction of one phase, as it is recorded with its job.

    counted_gib: what the job's own counter will show (on a GPU neither the driver's share nor the allocator's).
    """
    shape = shapes.of_model(settings.model)
    found = stages(settings, shape, known, where.device, number)
    stage, parts = memory.peak(found)
    outside = parts["process"] + parts["allocator"] if where.device == "cuda" else 0.0
    ratio = calibration.memory_ratio(home, where.name)
    operations = flops.of_step(settings, shape, known, number)
    speed, told = calibration.speed(home, where.name), where.device
    copying = flops.copied_bytes(settings, shape, known, number) / calibration.LINK if told == "cuda" else 0.0
    cores = 1 if told == "cuda" else settings.train.threads or len(os.sched_getaffinity(0))
    return {
        "machine": where.name,
        "device": where.device,
        "device_gib": where.gib,
        "stage": stage,
        "peak_gib": round(ratio * sum(parts.values()) / GIB, 3),
        "counted_gib": round((sum(parts.values()) - outside) / GIB, 3),
        "memory_ratio": round(ratio, 3),
        "breakdown": {name: round(size / GIB, 3) for name, size in parts.items() if size},
        "stages": {name: round(ratio * sum(part.values()) / GIB, 3) for name, part in found.items()},
        "step_operations": operations,
        "step_seconds": max(
            operations / (speed or calibration.SPEED[told] * cores), copying
        ),  # they go on side by side
        "calibrated": speed is not None,
    }


def fits(value: dict[str, Any], where: Machine) -> bool:
    return where.usable is None or value["peak_gib"] <= where.usable


# -- a whole config -----------------------------------------------------------------------------------------------


def of_config(home: Home, settings: Settings, where: Machine) -> dict[str, Any]:
    """`facts` of settings as they stand in a file. Where its data are not there yet, every document counts as long as the
    settings allow. Raises ConfigError for data that cannot be read."""
    if not settings.selected_phases():
        raise ConfigError("curriculum.phases is empty. Describe at least one phase")
    if absent := _absent(settings):
        return _without_data(home, settings, absent, where)
    corpus = assemble(settings.data, home.cache)
    if settings.train.auto:
        settings, _ = automatic(settings, sum(corpus.sizes.values()))
    return facts(home, settings, corpus, schedule(settings, corpus.sizes), where)


def facts(home: Home, settings: Settings, corpus: Corpus, planned: Schedule, where: Machine) -> dict[str, Any]:
    """The value of `plan --json`: that of the phase that needs most, and what the config takes as a whole."""
    known, cut = read_through(settings, corpus)
    steps = {phase.name: planned.phase(phase.name).steps for phase in settings.selected_phases()}
    value = _whole(home, settings, known, steps, where)
    told = {
        "records": corpus.sizes, "truncated": cut, "label_share": known.mean_summary / known.mean,
    }  # fmt: skip
    return value | told | {"warnings": [*corpus.warnings, *value["warnings"]]}


def _absent(settings: Settings) -> list[str]:
    """The files of records that a config names and that do not exist."""
    data = settings.data
    named = {"papers": data.papers, "videos": data.videos, "pairs": data.pairs, "documents": data.documents}
    return [f"data.{name} {path}" for name, path in named.items() if path and not path.exists()]


def _without_data(home: Home, settings: Settings, absent: list[str], where: Machine) -> dict[str, Any]:
    """The most that a config can take: every document as long as the settings allow. Epochs have no length in steps yet."""
    steps = {phase.name: phase.steps for phase in settings.selected_phases()}
    value = _whole(home, settings, load.longest_possible(settings), steps, where)
    told = f"no data yet ({', '.join(absent)}): every document is counted at data.max_length {settings.data.max_length}"
    return value | {"records": {}, "truncated": {}, "label_share": None, "warnings": [told, *value["warnings"]]}


def _whole(
    home: Home, settings: Settings, known: Lengths, steps: dict[str, int | None], where: Machine
) -> dict[str, Any]:
    """All selected phases, and of the one that needs most whatever is said of a single phase."""
    phases = [phase.name for phase in settings.curriculum.phases]
    values = {name: phase_value(home, settings, known, phases.index(name), where) for name in steps}
    name, worst = max(values.items(), key=lambda item: item[1]["peak_gib"])
    number, ok, counted = phases.index(name), fits(worst, where), None not in steps.values()
    return {
        "fits": ok, "phase": name, **worst,
        "steps": sum(steps.values()) if counted else None,
        "seconds": sum(steps[name] * value["step_seconds"] for name, value in values.items()) if counted else None,
        "phases": {name: {"steps": steps[name], "peak_gib": v["peak_gib"], "step_seconds": v["step_seconds"]} for name, v in values.items()},
        "changes": [vars(change) for change in _changes(home, settings, known, number, where)],
        "remedy": fitting.words(_remedy(home, settings, known, number, where)) if not ok else "",
        "warnings": warnings(worst),
    }  # fmt: skip


def _peak_of(home: Home, known: Lengths, number: int, where: Machine):
    """A function of settings: GiB at the peak of a phase."""
    ratio = calibration.memory_ratio(home, where.name)

    def peak(settings: Settings) -> float:
        found = stages(settings, shapes.of_model(settings.model), known.cut(settings), where.device, number)
        return ratio * sum(memory.peak(found)[1].values()) / GIB

    return peak


def _changes(home: Home, settings: Settings, measured: Lengths, number: int, where: Machine):
    return fitting.single(
        settings, shapes.of_model(settings.model), _peak_of(home, measured, number, where), where.device
    )


def _remedy(home: Home, settings: Settings, measured: Lengths, number: int, where: Machine):
    shape, peak = shapes.of_model(settings.model), _peak_of(home, measured, number, where)
    return fitting.together(settings, shape, peak, where.usable or 0.0, where.device)


def warnings(value: dict[str, Any]) -> list[str]:
    """What a person must know before queueing: that it will not fit, or hardly. Nothing where no prediction was made."""
    if not value.get("device_gib"):
        return []
    peak, usable = value["peak_gib"], value["device_gib"] * (1 - HEADROOM)
    room = f"{value['device_gib']:.1f} GiB ({value['machine']})"
    if peak > usable:
        return [f"DOES NOT FIT: {peak:.1f} GiB are needed while {value['stage']}, of {room}"]
    if peak > TIGHT * usable:
        return [f"fits tightly: {peak:.1f} GiB are needed while {value['stage']}, of {room}"]
    return []


# -- lengths ------------------------------------------------------------------------------------------------------


def read_through(settings: Settings, corpus: Corpus) -> tuple[Lengths, dict[str, int]]:
    """(tokens of all documents, {source: documents that will be cut}), told from their characters: an estimate where they
    are shorter than data.max_length. Every record is read once."""
    per_token = CHARACTERS[settings.model.build is not None]
    most = settings.data.max_length
    learnt, cut = [], dict.fromkeys(corpus.sizes, 0)
    for source, record in _records(corpus):
        words = record.summary or ""
        summary = min(settings.data.max_summary_length, _tokens(words, per_token))
        learnt.append((min(most, _tokens(record.source, per_token) + summary + PROMPT), summary))
        cut[source] += len(record.source) + len(words) > most * per_token
    plain = [min(most, _tokens(record.source, per_token)) for record in corpus.plain]
    return load.lengths(learnt, plain), cut


def _records(corpus: Corpus) -> Iterable[tuple[str, Record]]:
    for source, count in corpus.sizes.items():
        for index in range(count):
            for record in corpus.documents(source, index):
                yield source, record


def _tokens(text: str, per_token: float) -> int:
    return max(1, round(len(text) / per_token))


# -- after a run --------------------------------------------------------------------------------------------------


def compared(home: Home, job_id: str, predicted: dict[str, Any]) -> dict[str, Any]:
    """Prediction and truth side by side, for the job's result; the truth joins the calibration of its machine.

    Truth: the largest memory and the median pace that the job's own events tell; nothing of a phase without a step.
    """
    peak, seconds = _measured(home, job_id)
    if "unknown" in predicted or not peak:
        return predicted
    row = {"predicted_gib": predicted["counted_gib"], "measured_gib": peak}
    if seconds:
        row["flops_per_second"] = predicted["step_operations"] / seconds
    calibration.add(home, predicted["machine"], row)
    told = predicted["counted_gib"] * predicted["memory_ratio"]
    truth = {"counted_gib": round(told, 3), "measured_gib": peak, "error_percent": round(100 * (told / peak - 1), 1)}
    return predicted | truth | {"measured_step_seconds": seconds}


def _measured(home: Home, job_id: str) -> tuple[float, float | None]:
    """(largest memory of the job's steps in GiB, median seconds a step)."""
    told = [(stamped.t, stamped.event) for stamped in events.read(home.events(job_id))]
    steps = [(t, event) for t, event in told if isinstance(event, events.Step)]
    pairs = [(now - before, event.step - last.step) for (before, last), (now, event) in itertools.pairwise(steps)]
    paces = [elapsed / count for elapsed, count in pairs if count > 0]
    peak = max((event.memory_gib for _, event in steps), default=0.0)
    return round(peak, 3), statistics.median(paces) if paces else None


def words(value: dict[str, Any]) -> str:
    """Prediction and truth in a line."""
    if "unknown" in value:
        return f"not predicted: {value['unknown']}"
    if "measured_gib" not in value:
        return f"{brief(value)}, {value['step_seconds']:.2g} s a step"
    line = (
        f"predicted {value['counted_gib']:.2f} GiB, took {value['measured_gib']:.2f} ({value['error_percent']:+.0f} %)"
    )
    if value.get("measured_step_seconds"):
        line += f"; predicted {value['step_seconds']:.2g} s a step, took {value['measured_step_seconds']:.2g}"
    return line


# -- for a person -------------------------------------------------------------------------------------------------


def text(value: dict[str, Any]) -> str:
    """`plan` for a person."""
    room = f" of {value['device_gib']:.1f}" if value["device_gib"] else ""
    known = "calibrated by earlier jobs" if value["calibrated"] else "a guess: no job has run here yet"
    lines = [
        f"{'fits' if value['fits'] else 'DOES NOT FIT'}: {value['peak_gib']:.2f}{room} GiB ({value['machine']}), at most in {value['phase']}, while {value['stage']}"
    ]
    lines += [f"  {name:<16} {_size(gib)}" for name, gib in value["breakdown"].items()]
    others = ", ".join(f"{name} {gib:.2f}" for name, gib in value["stages"].items() if name != value["stage"])
    lines += [f"  other stages: {others} GiB"] if others else []
    if value["memory_ratio"] != 1:
        lines.append(
            f"  corrected by {value['memory_ratio']:.2f}: what earlier jobs here took against what was predicted"
        )
    if value["steps"] is None:
        lines.append(f"{span(value['step_seconds'])} a step ({known})")
    else:
        lines.append(f"{value['steps']:,} steps, {span(value['seconds'])} without evaluations ({known})")
    lines += [f"! {line}" for line in value["warnings"]]
    if value["remedy"]:
        lines.append(f"it would fit with {value['remedy']}")
    if value["changes"]:
        lines.append("each of these alone saves")
        lines += [f"  {_size(change['gib'])}  {change['override']}" for change in value["changes"]]
    return "\n".join(lines)


def _size(gib: float) -> str:
    return f"{gib:6.2f} GiB" if gib >= 0.05 else f"{1024 * gib:6.0f} MiB"


def span(seconds: float) -> str:
    """0.4 s, 40 s, 12 min, 5.5 h, 3.2 days."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"


def brief(value: dict[str, Any]) -> str:
    """One line for the form: peak and room, where it comes from, time."""
    room = f" of {value['device_gib']:.1f}" if value.get("device_gib") else ""
    parts = sorted(value["breakdown"].items(), key=lambda item: -item[1])[:3]
    told = ", ".join(f"{name} {gib:.1f}" for name, gib in parts)
    return f"{value['peak_gib']:.1f}{room} GiB while {value['stage']} ({told})"
