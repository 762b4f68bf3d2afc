"""Writes a home as the engine and the runner leave it: a ledger, events and logs of a run that is half done."""

import json
import math
import time
from pathlib import Path

import yaml

from engine import events as ev
from engine.configs import dump, load
from jobs.home import PROJECT, Home
from jobs.records import Job, Records

PARTS = ("cross_entropy", "contrastive", "diversity", "term", "ewc", "distil_base")
STAGES = ((0, "loading"), (4, "training"), (40, "fisher"), (46, "saving"))


def record(
    root: Path, run: str = "medical-7", config: str = "configs/pocket.yaml", steps: int = 1000, gpus: bool = False
) -> Home:
    """Phase 1 and its evaluation done, phase 2 running, the rest queued; an older run failed, another was naive."""
    home = Home(root)
    home.jobs.mkdir(parents=True, exist_ok=True, mode=0o700)
    records = Records(home.records)
    now = time.time()
    facts = {"config": config}
    phase = facts | {"steps": steps}
    jobs = records.add(
        [
            Job("", "phase", "medical-6", "phase1", settings=phase),
            Job("", "evaluate", "medical-6", "phase1", after="#0", settings=facts),
            Job("", "phase", "naive", "phase1", settings=phase),
            Job("", "evaluate", run, "base", settings=facts),
            Job("", "phase", run, "phase1", settings=phase),
            Job("", "evaluate", run, "phase1", after="#4", settings=facts),
            Job("", "phase", run, "phase2", after="#5", settings=phase),
            Job("", "evaluate", run, "phase2", after="#6", settings=facts),
            Job("", "phase", run, "phase3", after="#7", settings=phase),
            Job("", "evaluate", run, "phase3", after="#8", settings=facts),
        ]
    )
    for job in jobs:
        home.job(job.id).mkdir()
        _spec(home, job, config)
        ev.Writer(home.events(job.id), 0)(ev.Queued())
    failed, blocked, naive, base, phase1, judged1, phase2, *_ = [job.id for job in jobs]
    reason = "data/medical/papers.jsonl line 4127: summary: missing. Add it, or leave the record out"
    _started(records, failed, now - 9000)
    _begin(home, failed, now - 9000, "phase1", steps)
    ev.Writer(home.events(failed), 1)(ev.Ended("failed", reason, "mend the file, then hybridsum.py retry 1"))
    records.end(failed, ["running"], "failed", reason, "mend the file, then hybridsum.py retry 1")
    for job_id, start, length in ((naive, 8000, 2400), (base, 5500, 130), (phase1, 5300, 3060), (judged1, 2200, 130)):
        _started(records, job_id, now - start)
        records.change(job_id, ["running"], state="done", ended=now - start + length)
    train(home, naive, "phase1", steps, steps, now - 8000, ewc=0.0, gpus=gpus)
    train(home, phase1, "phase1", steps, steps, now - 5300, ewc=0.0, gpus=gpus)
    _fisher(home, phase1, 500, 500, now - 2300)
    _started(records, phase2, now - 1052)
    train(home, phase2, "phase2", steps, int(0.412 * steps), now - 1052, ewc=0.04, gpus=gpus)
    _log(home, phase2)
    for name, phase_name, papers, videos in (
        (run, "base", 31.42, 38.21),
        (run, "phase1", 36.9, 37.8),
        ("naive", "base", 31.42, 38.21),
        ("naive", "phase1", 37.1, 29.6),
    ):
        metrics = {"papers": _metrics(papers), "videos": _metrics(videos)}
        row = {"run": name, "phase": phase_name, "test_set": "test", "metrics": metrics, "created": now}
        records.add_evaluation(
            row | {"fingerprint": "f", "path": str(_documents(home, name, phase_name, papers, videos))}
        )
    assert blocked in records.jobs()
    return home


def _documents(home: Home, run: str, phase: str, papers: float, videos: float) -> Path:
    """Scores of each document, from which the gate is judged; their means are those of the table."""
    folder = home.final(run, phase) / "evaluations"
    folder.mkdir(parents=True)
    rows = [
        {"id": f"{modality}-{k}", "modality": modality, "summary_tokens": 40, "scores": _scores(mean, k)}
        for modality, mean in (("paper", papers), ("video", videos))
        for k in range(100)
    ]
    path = folder / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _scores(mean: float, k: int) -> dict[str, float]:
    return {name: value / 100 + 0.02 * math.sin(k) for name, value in _metrics(mean).items() if name != "n"}


def _spec(home: Home, job: Job, config: str) -> None:
    """Settings of the bundled config, whichever the job says it came from."""
    content = {"kind": job.kind, "run": job.run, "phase": job.phase, "model": "base", "folder": str(home.run(job.run))}
    home.spec(job.id).write_text(
        yaml.safe_dump({"job": content, "config": config, "settings": dump(load(PROJECT / "configs/pocket.yaml"))})
    )


def _metrics(value: float) -> dict[str, float]:
    return {"rougeL": value, "rouge1": value + 8, "rouge2": value - 15, "nll": 4 - value / 20, "n": 100}


def _started(records: Records, job_id: str, t: float) -> None:
    records.change(job_id, ["queued"], state="running", attempt=1, started=t, owner=["boot", 4242, 1])


def _begin(home: Home, job_id: str, t: float, phase: str, steps: int) -> None:
    with home.events(job_id).open("ab") as file:
        file.write(ev.encode(ev.Started(4242, "CPU"), 1, t))
        file.write(ev.encode(ev.Stage("loading"), 1, t + 4))
        file.write(ev.encode(ev.PhaseStarted(phase, steps, 0, {"papers": 1.0}, {"papers": 9120}), 1, t + 20))


def train(
    home: Home, job_id: str, phase: str, steps: int, until: int, t: float, ewc: float = 0.0, gpus: bool = False
) -> None:
    """Steps with falling losses, and the readings a runner takes meanwhile."""
    _begin(home, job_id, t, phase, steps)
    pace = 2500 / steps
    with home.events(job_id).open("ab") as file:
        for step in range(1, until + 1):
            file.write(ev.encode(step_at(step, steps, ewc), 1, t + 20 + pace * step))
            if step % max(1, steps // 200) == 0:
                file.write(ev.encode(device(step, gpus), 1, t + 20 + pace * step))


def step_at(step: int, steps: int, ewc: float = 0.0) -> ev.Step:
    entropy = 1 + 1.6 * math.exp(-4 * step / steps) + 0.08 * math.sin(1.7 * step)
    values = (entropy, 0.12 + 0.1 * math.exp(-step / steps), 0.03, 0.11, ewc * (1 - math.exp(-step / 90)), 0.06)
    losses = dict(zip(PARTS, values, strict=True))
    return ev.Step(step, steps, losses, sum(values), 1e-4 * (1 - step / steps / 2), 0.71, 1842.0, 14.1)


def device(step: int, gpus: bool) -> ev.Device:
    cards = [
        {
            "index": 0,
            "name": "RTX A4000",
            "memory": min(14.1, 1 + step / 4),
            "memory_total": 16.0,
            "load": 97,
            "temperature": 71,
            "power": 248.0,
            "foreign": [[31337, 1.2]],
        }
    ]
    return ev.Device(61.0 + 8 * math.sin(step), 9.2, 24.0, 4.1, cards if gpus else [])


def _fisher(home: Home, job_id: str, done: int, total: int, t: float) -> None:
    shares = {"down_proj": 0.41, "v_proj": 0.22, "o_proj": 0.14, "up_proj": 0.13, "gate_proj": 0.06, "q_proj": 0.04}
    with home.events(job_id).open("ab") as file:
        file.write(ev.encode(ev.Stage("fisher"), 1, t))
        file.write(ev.encode(ev.FisherProgress(done, total, 310.0, shares), 1, t + 30))


def _log(home: Home, job_id: str) -> None:
    lines = [f"14:0{k // 6}:{k % 6}0 step {400 + k}/1000  1.310  cross_entropy 0.980  1842 tokens/s" for k in range(30)]
    lines += [
        "14:05:10 saved checkpoints/medical-7/phase2/step-000400 (168.0 MiB)",
        "14:05:12 warning: 3 records longer than 1,024 tokens were cut at the end",
    ]
    home.log(job_id).write_text("\n".join(lines) + "\n")
