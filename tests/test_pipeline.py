"""The whole line with real processes and a real (tiny) engine: killed or not, the result is the same to the last byte."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine import events as ev
from jobs.home import Home
from jobs.records import DONE, Records
from tests.conftest import PROJECT

pytestmark = [pytest.mark.engine, pytest.mark.processes]
DEADLINE = 240


class Box:
    """A home of its own, driven through the command line as a person would."""

    def __init__(self, root: Path):
        self.home = Home(root)
        self.environment = os.environ | {"HYBRIDSUM_HOME": str(root), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}

    def run(self, *arguments: str, status: int = 0) -> str:
        command = [sys.executable, str(PROJECT / "hybridsum.py"), *arguments]
        ended = subprocess.run(
            command, env=self.environment, cwd=PROJECT, capture_output=True, text=True, timeout=DEADLINE
        )
        assert ended.returncode == status, (arguments, ended.stdout, ended.stderr)
        return ended.stdout

    def json(self, *arguments: str, status: int = 0):
        return json.loads(self.run(*arguments, "--json", status=status))

    @property
    def records(self) -> Records:
        return Records(self.home.records)

    def reached(self, job_id: str, kind: type, count: int) -> None:
        """Wait until a job has reported `count` events of a kind."""
        deadline = time.monotonic() + DEADLINE
        while sum(isinstance(s.event, kind) for s in ev.read(self.home.events(job_id))) < count:
            assert time.monotonic() < deadline, self.home.log(job_id).read_text()
            time.sleep(0.02)

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    def weights(self, run: str, phase: str) -> bytes:
        return (self.home.final(run, phase) / "adapter_model.safetensors").read_bytes()


@pytest.fixture
def box(tmp_path):
    made = Box(tmp_path / "home")
    yield made
    made.run("runner", "stop", "--jobs")


@pytest.fixture(scope="module")
def undisturbed(tiny_data, tmp_path_factory):
    made = Box(tmp_path_factory.mktemp("undisturbed"))
    jobs = made.json("queue", "pipeline", str(tiny_data / "tiny.yaml"), "--run", "calm")["jobs"]
    made.run("wait", *jobs)
    yield made
    made.run("runner", "stop", "--jobs")


def test_a_pipeline_is_base_and_evaluations_and_phases_in_order(undisturbed):
    jobs = undisturbed.json("jobs")
    assert [(job["kind"], job["phase"], job["state"]) for job in jobs] == [
        ("base", None, DONE), ("evaluate", "base", DONE), ("phase", "phase1", DONE), ("evaluate", "phase1", DONE),
        ("phase", "phase2", DONE), ("evaluate", "phase2", DONE),
    ]  # fmt: skip
    ended = [job["ended"] for job in jobs]
    assert ended == sorted(ended)
    table = undisturbed.json("forgetting", "calm")
    assert table["rows"] == ["base", "phase1", "phase2"] and None not in sum(table["matrix"], [])
    assert len(undisturbed.json("checkpoints")) == 2
    shown = undisturbed.json("show", jobs[2]["id"])
    assert shown["checkpoint"].endswith("calm/phase1/final") and shown["settings"]["lora"]["rank"] == 4
    evaluated = undisturbed.json("show", jobs[3]["id"])
    assert evaluated["metrics"]["papers"]["n"] == 5


def test_checkpoints_are_judged_and_measured_alone(undisturbed, tiny_data):
    final = undisturbed.home.final("calm", "phase2")
    (job,) = undisturbed.json("evaluate", "--checkpoint", str(final), "--test-set", str(tiny_data / "papers.jsonl"))[
        "jobs"
    ]
    assert (
        undisturbed.json("show", job)["metrics"]["papers"]["n"] == 40
        and (final / "evaluations" / "papers.jsonl").exists()
    )
    (job,) = undisturbed.json("queue", "fisher", "--checkpoint", str(final))["jobs"]
    undisturbed.run("wait", job)
    assert (final.parent / "fisher" / "anchors.safetensors").exists()
    assert undisturbed.json("forgetting", "calm")["matrix"][2][0] is not None


def test_runner_and_jobs_killed_in_the_middle_change_nothing(undisturbed, box, tiny_data):
    jobs = box.json("queue", "pipeline", str(tiny_data / "tiny.yaml"), "--run", "calm")["jobs"]
    phase1, phase2 = jobs[2], jobs[4]
    box.reached(phase1, ev.Step, 2)
    box.kill(box.records.job(phase1).pid)  # the job: queued again, resumes
    box.reached(phase2, ev.Step, 1)
    box.kill(box.json("runner", "status")["pid"])  # the runner: its job goes on
    box.run("runner", "start")
    box.run("wait", *jobs)
    assert {job["state"] for job in box.json("jobs")} == {DONE}
    assert box.records.job(phase1).attempt >= 2
    for phase in ("phase1", "phase2"):
        assert box.weights("calm", phase) == undisturbed.weights("calm", phase)


def test_runner_and_job_killed_together(undisturbed, box, tiny_data):
    jobs = box.json("queue", "pipeline", str(tiny_data / "tiny.yaml"), "--run", "calm")["jobs"]
    box.reached(jobs[4], ev.Step, 2)
    pid = box.records.job(jobs[4]).pid
    box.kill(box.json("runner", "status")["pid"])
    box.kill(pid)
    box.run("runner", "start")
    box.run("wait", *jobs)
    assert box.weights("calm", "phase2") == undisturbed.weights("calm", "phase2")


def test_cancel_keeps_a_checkpoint_and_retry_goes_on_from_it(undisturbed, box, tiny_data):
    jobs = box.json("queue", "pipeline", str(tiny_data / "tiny.yaml"), "--run", "calm")["jobs"]
    box.reached(jobs[2], ev.Step, 1)
    pid = box.records.job(jobs[2]).pid
    os.kill(pid, signal.SIGSTOP)  # these steps take no time; the job must not be over before it is cancelled
    box.run("cancel", jobs[2], "--yes")
    os.kill(pid, signal.SIGCONT)
    box.run("wait", jobs[2], status=1)
    states = {job["id"]: job["state"] for job in box.json("jobs")}
    assert states[jobs[2]] == "cancelled" and states[jobs[3]] == states[jobs[4]] == "blocked"
    box.run("retry", jobs[2])
    box.run("wait", *jobs)
    assert box.weights("calm", "phase2") == undisturbed.weights("calm", "phase2")
    steps = [s.event.step for s in ev.read(box.home.events(jobs[2])) if isinstance(s.event, ev.Step)]
    assert len(steps) == len(set(steps)) == 6  # no step was done twice


def test_a_phase_alone_goes_on_from_its_run_or_names_what_makes_it(undisturbed, box, tiny_data):
    config = str(tiny_data / "tiny.yaml")
    command = [sys.executable, str(PROJECT / "hybridsum.py"), "queue", "phase", config, "--phase", "2", "--run", "r"]
    refused = subprocess.run(command, env=box.environment, cwd=PROJECT, capture_output=True, text=True)
    assert refused.returncode == 2
    assert f"Make it: hybridsum.py queue phase {config} --phase phase1 --run r" in refused.stderr
    assert box.json("jobs") == []
    jobs = box.json("queue", "phase", config, "--phase", "1", "--run", "r")["jobs"]
    jobs += box.json("queue", "phase", config, "--phase", "2", "--run", "r")["jobs"]
    box.run("wait", *jobs)
    assert box.weights("r", "phase2") == undisturbed.weights("calm", "phase2")
