"""From settings to jobs in the line. Everything is checked here: what enters the ledger can run."""

import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from engine import extras, files
from engine.auto import automatic, kept
from engine.configs import dump, load
from engine.corpus.split import Corpus, assemble, read_test
from engine.events import Queued, Writer
from engine.mixture import Schedule, schedule
from engine.settings import ConfigError, Phase, Settings, first_line
from jobs import plan as prediction
from jobs.home import PROJECT, Home
from jobs.records import DONE, QUEUED, RUNNING, Job, Records

NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
BASE_VERSION = 1  # counts up when engine/base.py trains differently from the same settings
KINDS = ("base", "phase", "pipeline", "evaluate", "fisher")
ON_CHECKPOINT = ("evaluate", "fisher")  # kinds that take --checkpoint instead of a config


@dataclass(frozen=True)
class Request:
    """What a person asks for with `queue`, a menu or a form."""

    kind: str  # one of KINDS
    settings: Settings
    config: str = ""  # name of the config file, for display and for the default run name
    run: str | None = None
    phase: str | None = None  # kind phase: which one, where the config holds several
    checkpoint: Path | None = None  # kinds evaluate and fisher
    test_set: Path | None = None  # kind evaluate
    after: str | None = None
    priority: int = 0


@dataclass(frozen=True)
class Draft:
    """A checked request: the jobs it would become. Nothing is written yet."""

    run: str
    jobs: tuple[tuple[Job, dict], ...]  # (ledger row, content of spec.yaml)
    corpus: Corpus | None = None
    schedule: Schedule | None = None
    auto: dict | None = None  # train.auto: {examples, chosen: {setting: value}, kept: {setting: value}}


def draft(home: Home, records: Records, request: Request) -> Draft:
    """Check a request down to the last record of its data and expand it. Raises ConfigError, with nothing queued."""
    if request.after is not None:
        records.job(request.after)
    if request.kind in ON_CHECKPOINT:
        return _draft_on_checkpoint(home, request)
    given = _with_phase(request)
    extras.demand(given.model)
    extras.demand_compiler(given.train)
    corpus = assemble(given.data, home.cache)
    if not given.train.auto:
        return _draft_training(home, records, request, given, corpus)
    examples = sum(corpus.sizes.values())
    settings, chosen = automatic(given, examples)
    drafted = _draft_training(home, records, request, settings, corpus)
    auto = {"examples": examples, "chosen": chosen, "kept": kept(given, examples)}
    for _, spec in drafted.jobs:
        spec["job"]["auto"] = auto
    return replace(drafted, auto=auto)


def _draft_training(home: Home, records: Records, request: Request, settings: Settings, corpus: Corpus) -> Draft:
    if request.kind == "base":
        return _draft_base(home, records, request, settings, corpus)
    if settings.ewc.lambda_ and not corpus.fisher:
        raise ConfigError(
            f"{request.config}: no document is held out for the Fisher: raise data.fisher_share, or set ewc.lambda=0"
        )
    plan = schedule(settings, corpus.sizes)
    if not settings.selected_phases():
        raise ConfigError(f"{request.config}: curriculum.phases is empty. Describe at least one phase")
    if request.kind == "pipeline":
        return _predicted(home, settings, corpus, _draft_pipeline(home, records, request, settings, corpus, plan))
    if request.kind == "phase":
        return _predicted(home, settings, corpus, _draft_phase(home, records, request, settings, corpus, plan))
    raise ConfigError(f"{request.kind}: unknown kind of job. Use one of {', '.join(KINDS)}")


def _predicted(home: Home, settings: Settings, corpus: Corpus, drafted: Draft) -> Draft:
    """The same, with what each phase will take beside its spec; where nothing can tell, with the reason (`unknown`)."""
    where, known = prediction.machine(), prediction.read_through(settings, corpus)[0]
    names = [phase.name for phase in settings.curriculum.phases]
    for job, spec in drafted.jobs:
        if job.kind == "phase":
            try:
                found = prediction.phase_value(home, settings, known, names.index(job.phase), where)
            except ConfigError as error:
                found = {"unknown": first_line(error)}
            spec["job"]["plan"] = found
    return drafted


def submit(home: Home, records: Records, request: Request) -> list[Job]:
    """Enter the jobs of a request into the ledger, each with its folder and frozen spec. Raises ConfigError."""
    return enter(home, records, draft(home, records, request))


def enter(home: Home, records: Records, drafted: Draft) -> list[Job]:
    """Write the jobs of a draft: ledger rows, then folders. A job without its spec yet is not ready to run."""
    jobs = records.add([job for job, _ in drafted.jobs])
    for job, (_, spec) in zip(jobs, drafted.jobs, strict=True):
        folder = home.job(job.id)
        if folder.exists():
            shutil.rmtree(folder)  # left over from a ledger that was lost
        folder.mkdir(parents=True, mode=0o700)
        Writer(home.events(job.id), 0)(Queued())
        files.replace(home.spec(job.id), yaml.safe_dump(spec, sort_keys=False, allow_unicode=True).encode())
    return jobs


def fingerprint(settings: Settings, corpus: Corpus) -> str:
    """Names a base built here: the same settings and data give the same base. Pairs and documents play no part in it."""
    build, data = settings.model.build, settings.data
    if build is None:
        raise ValueError("without model.build there is no base to name")
    hashes = {name: value for name, value in corpus.hashes.items() if name not in ("pairs", "documents")}
    names = (
        "test_share",
        "fisher_share",
        "development_share",
        "max_length",
        "max_summary_length",
        "prompt",
        "truncate",
    )
    facts = [BASE_VERSION, build.model_dump(mode="json"), hashes, *(getattr(data, name) for name in names)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def is_complete_base(folder: Path) -> bool:
    return (folder / "config.json").exists() and (folder / "manifest.json").exists()


def next_run_name(home: Home, records: Records, stem: str) -> str:
    """stem-1, stem-2, ...: the first that neither a folder nor a job uses."""
    used = {job.run for job in records.jobs().values()}
    used |= {path.name for path in home.checkpoints.glob("*") if path.is_dir()}
    number = 1
    while f"{stem}-{number}" in used:
        number += 1
    return f"{stem}-{number}"


def _with_phase(request: Request) -> Settings:
    """The settings, with `request.phase` (a name, or a number from 1) selected."""
    settings, wanted = request.settings, request.phase
    if wanted is None:
        return settings
    names = [phase.name for phase in settings.curriculum.phases]
    if wanted not in names and wanted.isdigit() and 1 <= int(wanted) <= len(names):
        wanted = names[int(wanted) - 1]
    if wanted not in names:
        raise ConfigError(f"phase {wanted}: not in {request.config}. It has {', '.join(names) or 'none'}")
    # A copy, since validating a dump anew would forget which settings the user gave.
    return settings.model_copy(update={"curriculum": settings.curriculum.model_copy(update={"phase": wanted})})


def _run_name(home: Home, records: Records, request: Request, continues: bool) -> str:
    if request.run is None:
        return next_run_name(home, records, Path(request.config).stem or "run")
    if not NAME.match(request.run) or request.run in ("bases", "base"):
        raise ConfigError(f"--run {request.run}: use letters, digits, dot, dash and underscore; not 'base' or 'bases'")
    known = home.run(request.run).exists() or any(job.run == request.run for job in records.jobs().values())
    if known and not continues:
        fresh = next_run_name(home, records, request.run)
        raise ConfigError(f"--run {request.run}: this run exists. Choose another name ({fresh} is free)")
    return request.run


def _base(home: Home, records: Records, settings: Settings, corpus: Corpus) -> tuple[str, str | None, bool]:
    """(model to load, job that is making it, whether a job for it must be queued)."""
    if settings.model.name_or_path:
        path = Path(settings.model.name_or_path).expanduser()
        if path.is_dir() and not (path / "config.json").exists():
            raise ConfigError(f"model.name_or_path: {path}: not a model folder, config.json is missing")
        return (str(path.absolute()) if path.is_dir() else settings.model.name_or_path), None, False
    if not settings.model.build:
        raise ConfigError("model.name_or_path: missing. Give a Hugging Face name, a folder, or a model.build section")
    name = fingerprint(settings, corpus)
    folder = home.base(name)
    if is_complete_base(folder):
        return str(folder), None, False
    for job in records.jobs().values():
        if job.kind == "base" and job.state in (QUEUED, RUNNING) and job.settings.get("fingerprint") == name:
            return str(folder), job.id, False
    return str(folder), None, True


def _spec(request: Request, settings: Settings, **job) -> dict:
    paths = {key: str(value) if isinstance(value, Path) else value for key, value in job.items()}
    return {"job": paths, "config": request.config, "revision": _revision(), "settings": dump(settings)}


def _revision() -> str:
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=PROJECT, capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip()


def _base_job(request: Request, settings: Settings, corpus: Corpus, run: str, model: str) -> tuple[Job, dict]:
    facts = {"fingerprint": Path(model).name, "config": request.config}
    job = Job("", "base", run, None, priority=request.priority, after=request.after, settings=facts)
    spec = _spec(request, settings, kind="base", run=run, phase=None, model=model, folder=model, run_folder=model)
    return job, spec


def _draft_base(home: Home, records: Records, request: Request, settings: Settings, corpus: Corpus) -> Draft:
    model, making, missing = _base(home, records, settings, corpus)
    if not settings.model.build:
        raise ConfigError(f"{request.config}: model.build is missing, so there is no base to build")
    if not missing:
        raise ConfigError(f"{model}: this base {f'is being made by job {making}' if making else 'exists already'}")
    return Draft("bases", (_base_job(request, settings, corpus, "bases", model),), corpus)


def _phase_job(
    home: Home,
    request: Request,
    settings: Settings,
    run: str,
    phase: Phase,
    previous: Phase | None,
    model: str,
    plan: Schedule,
) -> tuple[Job, dict]:
    start_from = home.final(run, previous.name) if previous else settings.model.adapter
    facts = {"steps": plan.phase(phase.name).steps, "config": request.config}
    job = Job("", "phase", run, phase.name, priority=request.priority, settings=facts)
    spec = _spec(
        request, settings, kind="phase", run=run, phase=phase.name, model=model,
        folder=home.phase(run, phase.name), run_folder=home.run(run), start_from=start_from,
    )  # fmt: skip
    return job, spec


def _evaluate_job(
    home: Home, request: Request, settings: Settings, run: str, phase: str, model: str, test_set: Path | None
) -> tuple[Job, dict]:
    facts = {"config": request.config, "test_set": test_set.stem if test_set else "heldout"}
    job = Job("", "evaluate", run, phase, priority=request.priority, settings=facts)
    spec = _spec(
        request, settings, kind="evaluate", run=run, phase=phase, model=model,
        folder=home.final(run, phase), run_folder=home.run(run), test_set=test_set,
    )  # fmt: skip
    return job, spec


def _draft_pipeline(
    home: Home, records: Records, request: Request, settings: Settings, corpus: Corpus, plan: Schedule
) -> Draft:
    phases = settings.curriculum.phases
    selected = settings.selected_phases()
    first = phases.index(selected[0])
    continues = first > 0
    run = _run_name(home, records, request, continues)
    model, making, missing = _base(home, records, settings, corpus)
    rows: list[tuple[Job, dict]] = []
    after = request.after

    def add(row: tuple[Job, dict]) -> None:
        nonlocal after
        rows.append((replace(row[0], after=after), row[1]))
        after = f"#{len(rows) - 1}"

    if missing:
        add(_base_job(request, settings, corpus, run, model))
    elif making:
        after = making
    if continues:
        after = _previous(home, records, request, run, phases[first - 1]) or after
    else:
        add(_evaluate_job(home, request, settings, run, "base", model, settings.data.test))
    for number, phase in enumerate(phases):
        if phase in selected:
            _refuse_existing(home, records, run, phase)
            previous = phases[number - 1] if number else None
            add(_phase_job(home, request, settings, run, phase, previous, model, plan))
            add(_evaluate_job(home, request, settings, run, phase.name, model, settings.data.test))
    return Draft(run, tuple(rows), corpus, plan)


def _draft_phase(
    home: Home, records: Records, request: Request, settings: Settings, corpus: Corpus, plan: Schedule
) -> Draft:
    selected = settings.selected_phases()
    if len(selected) > 1:
        names = ", ".join(phase.name for phase in selected)
        raise ConfigError(f"{request.config}: holds the phases {names}. Choose one with --phase")
    phase = selected[0]
    number = settings.curriculum.phases.index(phase)
    previous = settings.curriculum.phases[number - 1] if number else None
    if previous and request.run is None:
        raise ConfigError(f"{phase.name} goes on from {previous.name} of a run. Name the run with --run NAME")
    run = _run_name(home, records, request, continues=previous is not None)
    after = _previous(home, records, request, run, previous) if previous else None
    _refuse_existing(home, records, run, phase)
    model, making, missing = _base(home, records, settings, corpus)
    rows = [_base_job(request, settings, corpus, run, model)] if missing else []
    job, spec = _phase_job(home, request, settings, run, phase, previous, model, plan)
    rows.append((replace(job, after="#0" if missing else after or making or request.after), spec))
    return Draft(run, tuple(rows), corpus, plan)


def _previous(home: Home, records: Records, request: Request, run: str, previous: Phase) -> str | None:
    """The job whose end a phase waits for; None if the checkpoint it goes on from is there."""
    if (home.final(run, previous.name) / "manifest.json").exists():
        return None
    for job in records.jobs().values():
        if (job.kind, job.run, job.phase) == ("phase", run, previous.name) and job.state in (QUEUED, RUNNING):
            return job.id
    raise ConfigError(
        f"run {run}: {previous.name}/final does not exist, and the next phase goes on from it. Make it: "
        f"hybridsum.py queue phase {request.config} --phase {previous.name} --run {run}"
    )


def _refuse_existing(home: Home, records: Records, run: str, phase: Phase) -> None:
    if (home.final(run, phase.name) / "manifest.json").exists():
        raise ConfigError(f"run {run}: {phase.name} is already trained. Use another --run, or evaluate it")
    for job in records.jobs().values():
        if (job.kind, job.run, job.phase) == ("phase", run, phase.name) and job.state != DONE:
            hint = (
                f"hybridsum.py retry {job.id}" if job.state not in (QUEUED, RUNNING) else f"hybridsum.py watch {job.id}"
            )
            raise ConfigError(f"run {run}: job {job.id} for {phase.name} is {job.state}: {hint}")


def _draft_on_checkpoint(home: Home, request: Request) -> Draft:
    """An evaluation, or the Fisher, of a finished checkpoint, by the settings it was made with."""
    if request.checkpoint is None:
        raise ConfigError(
            "--checkpoint: missing. Give a folder such as checkpoints/RUN/PHASE/final or checkpoints/RUN/base"
        )
    folder = request.checkpoint.absolute()
    about = read_about(folder)
    settings = load_about_settings(about, folder)
    draft_one = _draft_evaluate if request.kind == "evaluate" else _draft_fisher
    job, spec = draft_one(home, request, settings, about)
    spec["job"]["folder"] = str(folder)
    return Draft(about["run"], ((replace(job, after=request.after), spec),))


def _draft_evaluate(home: Home, request: Request, settings: Settings, about: dict) -> tuple[Job, dict]:
    test_set = request.test_set.absolute() if request.test_set else settings.data.test
    if request.test_set:
        read_test(request.test_set)
    else:
        assemble(settings.data, home.cache)
    return _evaluate_job(home, request, settings, about["run"], about["phase"], about["model"], test_set)


def _draft_fisher(home: Home, request: Request, settings: Settings, about: dict) -> tuple[Job, dict]:
    run, phase = about["run"], about["phase"]
    if phase == "base":
        raise ConfigError(
            f"{request.checkpoint}: a base has no adapter whose Fisher could be measured. Give PHASE/final"
        )
    if not assemble(settings.data, home.cache).fisher:
        raise ConfigError(f"{request.checkpoint}: its settings hold out no document for the Fisher (data.fisher_share)")
    job = Job("", "fisher", run, phase, priority=request.priority, settings={"config": request.config})
    spec = _spec(
        request, settings, kind="fisher", run=run, phase=phase, model=about["model"],
        folder=home.final(run, phase), run_folder=home.run(run), start_from=about["parent"],
    )  # fmt: skip
    return job, spec


def read_about(folder: Path) -> dict:
    """about.json of a checkpoint: {run, phase, model, settings, ...}. Raises ConfigError if the folder is not one."""
    try:
        return json.loads((folder / "about.json").read_bytes())
    except FileNotFoundError:
        inside = folder / "final"
        hint = (
            f"Did you mean {inside}?" if (inside / "about.json").exists() else "`hybridsum.py checkpoints` lists them"
        )
        what = "not a checkpoint, about.json is missing" if folder.is_dir() else "no such folder"
        raise ConfigError(f"{folder}: {what}. {hint}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}/about.json: cannot be read: {str(error).splitlines()[0]}") from None


def load_about_settings(about: dict, folder: Path) -> Settings:
    """The settings a checkpoint was made with. Raises ConfigError if this version does not know them."""
    try:
        return Settings.model_validate(about["settings"])
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"{folder}/about.json: its settings are not known to this version ({str(error).splitlines()[0]}). "
            "Correct them in about.json, or use the version that wrote it"
        ) from None


def read_spec(path: Path) -> tuple[dict, Settings]:
    """(paths and names of the job, settings) from a job's spec.yaml. Raises ConfigError if it cannot be read."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return content["job"], Settings.model_validate(content["settings"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {str(error).splitlines()[0]}. Queue the job again") from None


def from_file(kind: str, config: Path, overrides: list[str], **fields) -> Request:
    """A request from a config file and overrides. Raises ConfigError."""
    return Request(kind, load(config, overrides), str(config), **fields)
