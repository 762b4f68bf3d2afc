"""The command line as a person uses it: real processes, exit status, one-line errors, one JSON value."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from engine import events as ev
from jobs import command_line, commands, doctor, steer
from jobs.home import PROJECT, Home
from jobs.records import DONE, FAILED, QUEUED, RUNNING, Job, Records

PROGRAM = str(PROJECT / "hybridsum.py")
HOSTILE = "\x1b]0;owned\x07[/oops]\x1b[2J"


@pytest.fixture
def home(tmp_path, monkeypatch) -> Home:
    monkeypatch.setenv("HYBRIDSUM_HOME", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return Home.find()


def hybridsum(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, PROGRAM, *arguments], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, **options
    )  # fmt: skip


def refused(found: subprocess.CompletedProcess, *words: str) -> None:
    """Exit status 2 and one line that holds the words."""
    assert found.returncode == 2, found
    assert found.stdout == "" and "Traceback" not in found.stderr
    assert found.stderr.count("\n") == 1, found.stderr
    for word in words:
        assert word in found.stderr


def records_of(home: Home) -> Records:
    return Records(home.records)


@pytest.fixture
def config(tmp_path) -> Path:
    """A config with tiny data and a base folder that exists."""
    for source, modality in (("papers", "paper"), ("videos", "video")):
        rows = [
            {"id": f"{modality}{n}", "modality": modality, "source": f"{modality} text {n}", "summary": "short"}
            for n in range(40)
        ]
        (tmp_path / f"{source}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    base = tmp_path / "model"
    base.mkdir()
    (base / "config.json").write_text("{}")
    path = tmp_path / "tiny.yaml"
    content = {
        "model": {"name_or_path": str(base)},
        "data": {source: str(tmp_path / f"{source}.jsonl") for source in ("papers", "videos")},
        "curriculum": {
            "phases": [
                {"name": "phase1", "mixture": {"papers": 1.0}, "steps": 2},
                {"name": "phase2", "mixture": {"papers": 0.5, "videos": 0.5}, "steps": 2},
            ]
        },
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def paused(home) -> Iterator[Home]:
    """A home whose runner starts nothing; it is stopped afterwards."""
    steer.pause(records_of(home))
    yield home
    steer.stop(home)


# -- the user's mistakes ----------------------------------------------------------------------------------------


def test_bad_setting(home, config):
    refused(hybridsum("queue", "pipeline", str(config), "ewc.lamda=400"), "ewc.lamda", "Did you mean ewc.lambda?")
    refused(hybridsum("train", str(config), "lora.rank=0"), "lora.rank", "0")
    assert records_of(home).jobs() == {}


def test_missing_config_and_data_file(home, config):
    refused(hybridsum("queue", "phase", "nowhere.yaml"), "nowhere.yaml", "no such config file")
    refused(hybridsum("queue", "pipeline", str(config), "data.papers=gone.jsonl"), "gone.jsonl", "no such file")
    assert records_of(home).jobs() == {}


def test_record_without_a_summary_names_its_line(home, config, tmp_path):
    rows = (tmp_path / "papers.jsonl").read_text().splitlines()
    row = json.loads(rows[2])
    del row["summary"]
    row[HOSTILE] = "x"
    rows[2] = json.dumps(row)
    (tmp_path / "papers.jsonl").write_text("\n".join(rows))
    found = hybridsum("queue", "pipeline", str(config))
    refused(found, "papers.jsonl: line 3", "no summary", "[/oops]")
    assert "\x1b" not in found.stderr and "\x07" not in found.stderr
    assert records_of(home).jobs() == {}


def test_checkpoint_that_is_none(home, tmp_path):
    refused(hybridsum("evaluate", "--checkpoint", str(tmp_path)), "not a checkpoint")
    refused(hybridsum("evaluate", "--checkpoint", str(tmp_path / "no")), "no such folder")
    assert records_of(home).jobs() == {}


@pytest.mark.parametrize(
    "arguments",
    [
        "show 9",
        "log 9",
        "watch 9",
        "wait 9",
        "cancel 9",
        "retry 9",
        "priority 9 1",
        "priority 9 -1",
        "forgetting nothing",
    ],
)
def test_unknown_job_or_run(home, arguments):
    refused(hybridsum(*arguments.split()))


def test_unknown_verb_kind_and_option(home, config):
    refused(hybridsum("jbos"), "jobs")
    refused(hybridsum("queue", "phaze", str(config)), "phaze", "pipeline")
    refused(hybridsum("jobs", "--jason"), "--jason")
    refused(hybridsum("jobs", "--log-level", "loud"), "loud")
    refused(hybridsum("queue", "phase"), "CONFIG")
    refused(hybridsum(), "needs a terminal")


def test_a_home_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HYBRIDSUM_HOME", str(tmp_path / "file"))
    refused(hybridsum("jobs"), "HYBRIDSUM_HOME")


def test_no_runner_log_or_jobs_from_looking(home):
    hybridsum("jobs", "--json")
    assert steer.status(home)["state"] == steer.STOPPED


# -- help and JSON ----------------------------------------------------------------------------------------------


def verbs() -> list[list[str]]:
    named = lambda app: [c.name or c.callback.__name__ for c in app.registered_commands]  # noqa: E731
    return [[name] for name in named(command_line.app)] + [["runner", name] for name in named(command_line.runner_app)]


@pytest.mark.parametrize("verb", verbs(), ids=" ".join)
def test_every_verb_has_help_with_an_example(verb, home, capsys):
    assert commands.main([*verb, "--help"], lambda _: None) == 0
    assert f"Example: hybridsum.py {' '.join(verb)}" in " ".join(capsys.readouterr().out.split())


def test_help_of_the_program(home):
    found = hybridsum("--help")
    assert found.returncode == 0
    for verb in verbs():
        assert verb[0] in found.stdout


def told(*arguments: str, status: int = 0):
    found = hybridsum(*arguments, "--json")
    assert found.returncode == status, found
    return json.loads(found.stdout)


@pytest.mark.processes
def test_queue_and_steer_with_json(paused, config):
    queued = told("queue", "pipeline", str(config), "train.seed=3", "--run", "tiny", "--priority", "2")
    assert queued == {"jobs": ["1", "2", "3", "4", "5"], "run": "tiny"}
    rows = told("jobs")
    assert [row["state"] for row in rows] == [QUEUED] * 5 and [row["after"] for row in rows] == [
        None,
        "1",
        "2",
        "3",
        "4",
    ]
    keys = "id kind run phase state attempt step steps eta pid priority after created started ended reason"
    assert sorted(rows[0]) == sorted(keys.split())
    shown = told("show", "2")
    assert shown["settings"]["train"]["seed"] == 3 and shown["folder"] == str(paused.job("2"))
    assert shown["checkpoint"] is None and shown["metrics"] is None
    assert told("priority", "1", "-5") == {"id": "1", "priority": -5}
    assert told("cancel", "3", "--yes") == {"id": "3", "state": "cancelled"}
    assert [row["state"] for row in told("jobs")] == ["queued", "queued", "cancelled", "blocked", "blocked"]
    assert told("wait", "4", status=1)[0]["state"] == "blocked"
    assert told("watch", "3", status=1)["state"] == "cancelled"
    assert told("retry", "3")["jobs"] == ["3", "4", "5"]
    refused(hybridsum("queue", "pipeline", str(config), "--run", "tiny"), "this run exists")
    status = told("runner", "status")
    assert status["state"] == "LIVE" and status["paused"] and status["jobs"] == []
    assert told("runner", "stop")["state"] == "STOPPED"
    assert told("runner", "start")["state"] == "LIVE"
    assert told("pause")["paused"]


@pytest.mark.processes
def test_demo_takes_the_next_free_names_and_builds_one_base(paused):
    first, second = told("demo", "--detach", "--seed", "4"), told("demo", "--detach", "--seed", "4")
    assert (first["run"], second["run"]) == ("demo-curriculum-4", "demo-curriculum-4-2")
    jobs = records_of(paused).jobs().values()
    assert [job.run for job in jobs if job.kind == "phase" and "naive" in job.run] == ["demo-naive-4", "demo-naive-4-2"]
    assert [job.kind for job in jobs].count("base") == 1
    assert told("show", first["jobs"][-1])["settings"]["train"]["seed"] == 4


def test_checkpoints_and_doctor_with_json(home):
    assert told("checkpoints") == []
    found = doctor.value(doctor.examine(home))
    assert set(found) == {"ok", "checks"}
    assert all(set(check) == {"name", "ok", "found", "remedy"} for check in found["checks"])
    names = {check["name"] for check in found["checks"]}
    assert {"python", "torch", "huey", "free disk", "ledger", "runner", "gpu", "revision"} <= names


# -- what a person reads ----------------------------------------------------------------------------------------


def finished(home: Home, state: str, reason: str = "") -> str:
    records = records_of(home)
    job = records.add([Job("", "phase", "run", "phase1")])[0].id
    home.job(job).mkdir()
    emit = ev.Writer(home.events(job), 1)
    emit(ev.Step(2, 2, {"cross_entropy": 1.25}, 1.25, 1e-4, 1.0, 10.0, 0.0))
    emit(ev.Warned(f"look {HOSTILE}"))
    home.log(job).write_text(f"first {HOSTILE}\nsecond\n")
    records.change(job, [QUEUED], state=RUNNING, attempt=1, started=time.time())
    records.end(job, [RUNNING], state, reason)
    return job


def test_hostile_text_does_not_reach_the_terminal(home):
    job = finished(home, FAILED, f"because {HOSTILE}")
    for arguments in (["jobs"], ["show", job], ["log", job], ["watch", job], ["wait", job]):
        found = hybridsum(*arguments)
        assert "[/oops]" in found.stdout + found.stderr
        assert "\x1b" not in found.stdout + found.stderr and "\x07" not in found.stdout + found.stderr


def test_watch_and_wait_tell_how_it_ended(home):
    good, bad = finished(home, DONE), finished(home, FAILED, "no luck")
    found = hybridsum("watch", good)
    assert found.returncode == 0 and "step 2/2" in found.stdout
    found = hybridsum("wait", good, bad)
    assert found.returncode == 1 and "no luck" in found.stderr
    assert hybridsum("wait", good).returncode == 0


def test_job_table_is_aligned(home):
    finished(home, DONE)
    lines = hybridsum("jobs").stdout.splitlines()
    assert lines[0].split() == ["job", "run", "what", "state", "progress", "left", "took"]
    assert lines[1].index("done") == lines[0].index("state")


@pytest.mark.processes
def test_control_c_detaches_from_a_job_that_goes_on(paused):
    job = records_of(paused).add([Job("", "phase", "run", "phase1")])[0].id
    watching = subprocess.Popen(
        [sys.executable, PROGRAM, "watch", job], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert f"job {job}" in watching.stdout.readline()
    watching.send_signal(2)
    _, errors = watching.communicate(timeout=20)
    assert watching.returncode == 0 and "detached" in errors and f"watch {job}" in errors
    assert records_of(paused).job(job).state == QUEUED


def test_a_closed_pipe_is_no_error(home):
    finished(home, DONE)
    command = f"{sys.executable} {PROGRAM} show 1 | head -c 1"
    found = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, env=os.environ)
    assert "Traceback" not in found.stderr and "Exception" not in found.stderr
