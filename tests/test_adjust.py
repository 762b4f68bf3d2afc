"""Out of memory: what becomes smaller, and that the job goes on in the same process, which starts afresh."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
import yaml

from engine import events as ev
from engine.configs import dump, load
from engine.settings import ConfigError, Settings
from jobs import adjust, locks, process, show, steer
from jobs.home import PROJECT, Home
from jobs.records import DONE, FAILED, Job, Records
from tests.test_runner import Box
from tui.preview import settings_rows


@pytest.mark.parametrize(
    ("batch", "accumulation", "chain"),
    [
        (3, 6, [(2, 9), (1, 18)]),
        (6, 3, [(3, 6), (2, 9), (1, 18)]),
        (18, 1, [(9, 2), (6, 3), (3, 6), (2, 9), (1, 18)]),
        (16, 1, [(8, 2), (4, 4), (2, 8), (1, 16)]),
        (1, 1, []),
        (1, 18, []),
        (7, 1, [(1, 7)]),
        (5, 2, [(2, 5), (1, 10)]),
        (4, 5, [(2, 10), (1, 20)]),
    ],
)
def test_the_next_smaller_micro_batch(batch, accumulation, chain):
    found = []
    while now := adjust.smaller(*(found[-1] if found else (batch, accumulation))):
        found.append(now)
    assert found == chain


class Torch:
    class OutOfMemoryError(RuntimeError):
        """As torch names it."""


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (Torch.OutOfMemoryError("no words"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA driver error: out of memory"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (caused(ConfigError("this adapter does not load"), MemoryError()), True),
        (ConfigError("data.papers: record `out of memory`: summary is missing"), False),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (caused(ValueError("x"), KeyError("y")), False),
    ],
)
def test_what_running_out_of_memory_sounds_like(error, expected):
    assert adjust.is_out_of_memory(error) is expected


MICRO_2 = {"train.per_device_train_batch_size": 2, "train.gradient_accumulation_steps": 9}


@pytest.mark.parametrize(
    ("kind", "stage", "expected"),
    [
        ("phase", "loading", MICRO_2),
        ("phase", "training", MICRO_2),
        ("phase", "answers", {"evaluate.batch_size": 16}),
        ("phase", "fisher", {"ewc.fisher_batch_size": 4}),
        ("phase", "saving", {}),
        ("phase", "", {}),
        ("evaluate", "loading", {"evaluate.batch_size": 16}),
        ("evaluate", "evaluating", {"evaluate.batch_size": 16}),
        ("fisher", "loading", {"ewc.fisher_batch_size": 4}),
        ("fisher", "fisher", {"ewc.fisher_batch_size": 4}),
        ("base", "training", {}),
    ],
)
def test_the_stage_decides_what_becomes_smaller(kind, stage, expected):
    assert adjust.step_down(kind, stage, Settings()) == expected


def test_at_the_smallest_value_there_is_nothing_left():
    smallest = load(None, ["micro_batch_size=1", "evaluate.batch_size=1", "ewc.fisher_batch_size=1"])
    for stage in ("training", "fisher", "answers", "evaluating"):
        assert adjust.step_down("phase", stage, smallest) == {}
    assert adjust.step_down("evaluate", "evaluating", load(None, ["evaluate.batch_size=5"])) == {
        "evaluate.batch_size": 2
    }


def test_what_was_adjusted_is_kept_in_a_file_and_applied(tmp_path):
    path = tmp_path / "adjusted.yaml"
    assert adjust.read(path) == {} and adjust.apply(Settings(), {}) == Settings()
    adjust.write(path, MICRO_2 | {"evaluate.batch_size": 4})
    assert yaml.safe_load(path.read_text()) == MICRO_2 | {"evaluate.batch_size": 4}
    found = adjust.apply(Settings(), adjust.read(path))
    assert (found.train.per_device_train_batch_size, found.train.gradient_accumulation_steps) == (2, 9)
    assert found.batch_records == Settings().batch_records == 18
    assert (found.evaluate.batch_size, found.ewc) == (4, Settings().ewc)


@pytest.mark.parametrize("content", ["[", "- 1", "train.per_device_train_batch_size: many", "lora.rank: 4"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "adjusted.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"adjusted.yaml: cannot be read: .* Delete it"):
        adjust.read(tmp_path / "adjusted.yaml")


def test_the_warning_is_in_the_users_words():
    text = adjust.warning("training", load(None, ["losses.diversity=0"]), MICRO_2)
    assert "out of memory while training" in text
    assert "train.per_device_train_batch_size 2 (instead of 3)" in text and "still has 18 records" in text
    assert "diversity" not in text and "diversity" in adjust.warning(
        "training", load(None, ["losses.diversity=1"]), MICRO_2
    )
    assert "records" not in adjust.warning("fisher", Settings(), {"ewc.fisher_batch_size": 4})


# -- the process ----------------------------------------------------------------------------------------------------


@pytest.fixture
def box(tmp_path, monkeypatch) -> Iterator[Box]:
    """A home whose runner starts jobs that really run out of memory."""
    monkeypatch.setenv("HYBRIDSUM_HOME", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    made = Box(tmp_path)
    made.start("hungry_job.py")
    yield made
    made.close()


def enter(box: Box, run: str, *overrides: str) -> str:
    """A phase job for hungry_job.py; it may end at once only if `go` is there."""
    job = box.records.add([Job("", "phase", run, "phase1")])[0]
    folder = box.home.phase(run, "phase1")
    spec = {"kind": "phase", "run": run, "phase": "phase1", "model": "m", "folder": str(folder)}
    settings = load(None, ["train.per_device_train_batch_size=4", "train.gradient_accumulation_steps=2", *overrides])
    box.home.job(job.id).mkdir()
    content = {"job": spec | {"run_folder": str(folder.parent)}, "settings": dump(settings)}
    box.home.spec(job.id).write_text(yaml.safe_dump(content))
    return job.id


def told(box: Box, job_id: str, kind: type) -> list:
    return [stamped.event for stamped in ev.read(box.home.events(job_id)) if isinstance(stamped.event, kind)]


@pytest.mark.processes
def test_a_job_without_memory_goes_on_with_smaller_micro_batches(box):
    job_id = enter(box, "fits-1")
    box.wait(lambda: [step.step for step in told(box, job_id, ev.Step)][-1:] == [6], seconds=40)

    pid = box.records.job(job_id).pid
    assert locks.is_held(box.home.device_lock(0)) and locks.is_held(box.home.job_lock(job_id))
    assert {started.pid for started in told(box, job_id, ev.Started)} == {pid}
    assert box.state(job_id) == "running"
    (box.home.phase("fits-1", "phase1") / "go").touch()
    box.ends(job_id, DONE, attempt=1)

    assert [step.step for step in told(box, job_id, ev.Step)] == [1, 2, 3, 4, 5, 6]  # no step was made twice
    assert [phase.step for phase in told(box, job_id, ev.PhaseStarted)] == [0, 1, 1]
    first, second = (warned.message for warned in told(box, job_id, ev.Warned))
    assert "train.per_device_train_batch_size 2 (instead of 4)" in first and "still has 8 records" in first
    assert "train.per_device_train_batch_size 1 (instead of 2)" in second
    adjusted = {"train.per_device_train_batch_size": 1, "train.gradient_accumulation_steps": 8}
    assert adjust.read(box.home.adjusted(job_id)) == adjusted
    result = json.loads(box.home.result(job_id).read_bytes())
    assert (result["batch"], result["adjusted"]) == ([1, 8], adjusted)
    opened = [name for name in result["open"] if name.startswith(str(box.home.root))]
    assert opened.count(str(box.home.phase("fits-1", "phase1") / "driver")) == 1
    assert str(box.home.device_lock(0)) in opened and str(box.home.job_lock(job_id)) in opened
    assert not locks.is_held(box.home.device_lock(0))
    text = show.details(show.full_value(box.home, box.records, job_id))
    assert "to fit into memory: train.per_device_train_batch_size 1, train.gradient_accumulation_steps 8" in text


@pytest.mark.processes
def test_a_job_that_does_not_fit_at_all_fails_with_the_remedy(box):
    job_id = enter(box, "fits-0")
    job = box.ends(job_id, FAILED, attempt=1)
    assert job.remedy == process.LESS_MEMORY and "MemoryError" in job.reason
    assert len(told(box, job_id, ev.Started)) == 3  # with 4, 2 and 1 records
    assert "Traceback" in box.home.log(job_id).read_text()
    assert box.home.adjusted(job_id).exists()
    assert steer.retry(box.home, box.records, job_id) == [job_id]
    assert not box.home.adjusted(job_id).exists()  # who retries may have made room


@pytest.mark.processes
def test_a_job_started_by_hand_takes_its_own_lock_along(tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRIDSUM_HOME", str(tmp_path))
    monkeypatch.delenv("HYBRIDSUM_LOCK", raising=False)
    by_hand = Box(tmp_path)
    job_id = enter(by_hand, "fits-1")
    folder = by_hand.home.phase("fits-1", "phase1")
    folder.mkdir(parents=True)
    (folder / "go").touch()
    child = subprocess.run([sys.executable, PROJECT / "tests" / "hungry_job.py", job_id], cwd=PROJECT, timeout=60)
    result = json.loads(by_hand.home.result(job_id).read_bytes())
    assert (child.returncode, result["outcome"], result["batch"]) == (0, "done", [1, 8])
    assert len({started.pid for started in told(by_hand, job_id, ev.Started)}) == 1
    assert result["open"].count(str(by_hand.home.job_lock(job_id))) == 1


@pytest.mark.engine
def test_torchs_own_errors_are_known():
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert adjust.is_out_of_memory(caught.value)
    assert adjust.is_out_of_memory(torch.OutOfMemoryError("x"))


def test_a_finished_job_that_is_not_retried_keeps_its_files(tmp_path):
    home = Home(tmp_path)
    home.jobs.mkdir(parents=True)
    records = Records(home.records)
    records.add([Job("", "phase", "r", "phase1", state=DONE)])
    home.job("1").mkdir()
    for path in (home.result("1"), home.adjusted("1")):
        path.write_text("{}")
    with pytest.raises(ConfigError, match="is done, and only a job that ended badly is retried"):
        steer.retry(home, records, "1")
    assert home.result("1").exists() and home.adjusted("1").exists()


def test_the_dashboard_shows_what_was_adjusted():
    facts = settings_rows(Settings(), {"model": "m"}, MICRO_2)
    (found,) = [fact for fact in facts if fact.name == "adjusted"]
    assert found.warning and "train.gradient_accumulation_steps 9 (instead of 6)" in found.text
    assert "adjusted" not in [fact.name for fact in settings_rows(Settings(), {"model": "m"}, {})]
