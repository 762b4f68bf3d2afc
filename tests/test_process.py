"""A job's own process, with a made-up engine."""

import json
import math
import subprocess
import sys
import time
import types

import psutil
import pytest
import yaml

from engine import events as ev
from engine.configs import dump
from engine.settings import ConfigError, Settings
from engine.work import Cancelled
from jobs import locks, process, show
from jobs.home import PROJECT, Home
from jobs.kinds import KINDS
from jobs.records import Records


@pytest.fixture
def home(tmp_path, monkeypatch) -> Home:
    monkeypatch.setenv("HYBRIDSUM_HOME", str(tmp_path))
    monkeypatch.delenv("HYBRIDSUM_LOCK", raising=False)
    made = Home.find()
    made.job("1").mkdir()
    return made


@pytest.fixture
def engine(home, monkeypatch):
    """Put a function in the place of the engine, for a job of any kind."""

    def install(function, kind="phase", settings=None):
        folder = str(home.phase("r", "phase1"))
        job = {"kind": kind, "run": "r", "phase": "phase1", "model": "m", "folder": folder, "run_folder": folder}
        home.spec("1").write_text(yaml.safe_dump({"job": job, "settings": dump(settings or Settings())}))
        monkeypatch.setitem(sys.modules, "made_up", types.SimpleNamespace(run=function))
        monkeypatch.setitem(KINDS, kind, ("made_up", "run"))

    return install


def result(home: Home) -> dict:
    return json.loads(home.result("1").read_bytes())


def test_done_with_facts(home, engine, capsys):
    def run(work):
        assert (work.kind, work.run, work.phase, work.start_from) == ("phase", "r", "phase1", None)
        work.emit(ev.Stage("loading"))
        work.emit(ev.Saved("x", 5, 2**20))
        return {"checkpoint": work.folder, "loss": math.nan}

    engine(run)
    assert process.main("1") == 0
    found = result(home)
    assert (found["outcome"], found["loss"], found["checkpoint"]) == ("done", None, str(home.phase("r", "phase1")))
    assert [type(s.event).__name__ for s in ev.read(home.events("1"))] == ["Started", "Stage", "Saved"]
    assert "saved x (1.0 MiB)" in capsys.readouterr().out
    engine(lambda work: pytest.fail("a finished job is not run again"))
    assert process.main("1") == 0


def test_cancelled(home, engine):
    def run(work):
        assert not work.cancelled()
        home.cancel("1").touch()
        assert work.cancelled()
        raise Cancelled

    engine(run)
    assert process.main("1") == 0
    assert result(home)["outcome"] == "cancelled"


def raising(error):
    def run(work):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "reason", "remedy"),
    [
        (ConfigError("data.papers: no", "give one"), "data.papers: no", "give one"),
        (RuntimeError("a\nb"), "RuntimeError: a", "hybridsum.py log 1"),
        (RuntimeError("CUDA error: out of memory"), "RuntimeError: CUDA error: out of memory", process.LESS_MEMORY),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), "RuntimeError: CUBLAS_STATUS_ALLOC_FAILED", process.LESS_MEMORY),
        (MemoryError(), "MemoryError: MemoryError", process.LESS_MEMORY),
    ],
)
def test_failures(home, engine, capsys, error, reason, remedy):
    engine(raising(error))
    assert process.main("1") == 1
    found = result(home)
    assert (found["outcome"], found["reason"], found["remedy"]) == ("failed", reason, remedy)
    assert ("Traceback" in capsys.readouterr().err) is not isinstance(error, ConfigError)


@pytest.mark.parametrize(
    ("kind", "stage", "read", "expected"),
    [
        ("evaluate", "evaluating", lambda s: s.evaluate.batch_size, [32, 16, 8, 4, 2, 1]),
        ("fisher", "fisher", lambda s: s.ewc.fisher_batch_size, [8, 4, 2, 1]),
        ("phase", "fisher", lambda s: s.ewc.fisher_batch_size, [8, 4, 2, 1]),
        ("phase", "loading", lambda s: s.train.per_device_train_batch_size, [3, 2, 1]),
        ("phase", "saving", lambda s: s.train.per_device_train_batch_size, [3]),
        ("base", "training", lambda s: s.train.per_device_train_batch_size, [3]),
    ],
)
def test_what_runs_out_of_memory_begins_anew_with_less_until_nothing_is_left(
    home, engine, monkeypatch, kind, stage, read, expected
):
    class BeganAnew(Exception):
        pass

    def begin_anew(home, job_id, held):
        held.close()
        raise BeganAnew

    sizes = []

    def run(work):
        work.emit(ev.Stage(stage))
        sizes.append(read(work.settings))
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    engine(run, kind)
    monkeypatch.setattr(process, "restart", begin_anew)
    for _ in expected[1:]:
        with pytest.raises(BeganAnew):
            process.main("1")
        assert not home.result("1").exists()
    assert process.main("1") == 1
    assert sizes == expected
    found = result(home)
    assert (found["outcome"], found["remedy"]) == ("failed", process.LESS_MEMORY)
    assert len(found.get("adjusted", {})) == (0 if len(expected) == 1 else 2 if stage == "loading" else 1)


def test_the_log_tells_how_long_the_start_took(home, engine, capsys):
    engine(lambda work: work.emit(ev.PhaseStarted("phase1", 5)))
    began = time.time()
    process.main("1")
    (told,) = [line for line in capsys.readouterr().out.splitlines() if "ready after" in line]
    seconds = float(told.split()[-2])
    assert began - psutil.Process().create_time() - 0.1 <= seconds <= time.time() - psutil.Process().create_time() + 0.1


def test_records_in_tokens_are_kept_in_the_home(home, engine):
    found = []
    engine(lambda work: found.append(work.cache))
    process.main("1")
    assert found == [home.root / ".hybridsum" / "cache"]


def test_evaluation_enters_the_catalogue(home, engine):
    facts = {"checkpoint": "c", "test_set": "t", "fingerprint": "f", "metrics": {"papers": {"nll": 1.5}}, "path": "p"}
    engine(lambda work: facts, kind="evaluate")
    assert process.main("1") == 0
    row = Records(home.records).evaluations()[0]
    assert (row["run"], row["phase"], row["metrics"]) == ("r", "phase1", {"papers": {"nll": 1.5}})


@pytest.mark.parametrize(("stop", "stops"), [(True, True), (False, False)])
def test_a_failed_gate_stops_the_line_or_not(home, engine, capsys, stop, stops):
    rows = {"base": 0.5, "phase1": 0.3}
    for phase, score in rows.items():
        home.run("r").mkdir(parents=True, exist_ok=True)
        lines = [
            {"id": str(n), "modality": "video", "scores": {"rougeL": score + n / 1000}, "summary_tokens": 1}
            for n in range(9)
        ]
        (home.run("r") / phase).write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = {"videos": {"rougeL": 1.0}}
    base = {"run": "r", "phase": "base", "test_set": "t", "metrics": metrics, "path": str(home.run("r") / "base")}
    Records(home.records).add_evaluation(base | {"created": 1.0})
    facts = {"test_set": "t", "fingerprint": "f", "metrics": metrics, "path": str(home.run("r") / "phase1")}
    gate = {"videos": -1.0, "stop": stop}
    engine(lambda work: facts, kind="evaluate", settings=Settings.model_validate({"evaluate": {"gate": gate}}))
    assert process.main("1") == 0
    found = result(home)
    assert found["outcome"] == "done" and found["gate"]["verdict"] == "failed" and found.get("stops", False) is stops
    assert ("the gate of phase1 failed: videos: -20.00 ROUGE-L against base" in found["reason"]) is stops
    assert "gate FAILED: videos: -20.00" in capsys.readouterr().out


def test_a_gate_that_cannot_be_judged_leaves_the_evaluation_done(home, engine, capsys):
    metrics = {"videos": {"rougeL": 1.0}}
    row = {"test_set": "t", "fingerprint": "f", "metrics": metrics, "path": "/gone.jsonl"}
    Records(home.records).add_evaluation(row | {"run": "r", "phase": "base", "created": 1.0})
    settings = Settings.model_validate({"evaluate": {"gate": {"videos": -1.0}}})
    engine(lambda work: row, kind="evaluate", settings=settings)
    assert process.main("1") == 0
    assert result(home)["outcome"] == "done" and "gate" not in result(home)
    assert "the gate has no verdict: /gone.jsonl" in capsys.readouterr().err


def test_a_second_process_of_the_same_job_is_refused(home, engine, capsys):
    engine(lambda work: {})
    with locks.locked(home.job_lock("1")):
        assert process.main("1") == 2
    assert "another process" in capsys.readouterr().err
    assert not home.result("1").exists()
    assert process.main("1") == 0


@pytest.mark.processes
def test_an_inherited_lock_is_accepted_and_lives_as_long_as_the_child(home):
    code = "import os, sys; from jobs import process; from jobs.home import Home;"
    code += "print(process.hold(Home.find(), '1'), flush=True); sys.stdin.read()"
    with locks.locked(home.job_lock("1")) as lock:
        child = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=PROJECT,
            env={"HYBRIDSUM_HOME": str(home.root), "HYBRIDSUM_LOCK": str(lock.fileno())},
            pass_fds=[lock.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert child.stdout.readline().strip() == str(lock.fileno()).encode()
    assert locks.is_held(home.job_lock("1")) and locks.leader(home.job_lock("1")) == child.pid
    assert process.hold(home, "1") is None
    child.communicate()
    assert not locks.is_held(home.job_lock("1"))


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07x\x1b]8;;http://a\x1b\\y", "xy"),
        ("a\x00b\x9bc\u202ed\u200be\r", "abcde"),
        ("[/oops] [@click=quit]", "[/oops] [@click=quit]"),
        ("zwei\nZeilen", "zwei Zeilen"),
    ],
)
def test_foreign_text_is_made_safe(text, safe):
    assert show.plain(text) == safe


def test_of_a_redrawn_line_the_last_state_counts():
    assert show.plain_lines("10%\r50%\r100%\nnext\r\n") == "100%\nnext\n"
