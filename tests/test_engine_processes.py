"""Two processes give what one gives: weights, Fisher, queue, evaluations; and go on after a kill, or with another number."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from engine.corpus.records import read, write_jsonl
from tests.conftest import PROJECT

pytestmark = [pytest.mark.engine, pytest.mark.processes]


def launch(count: int, *arguments: object, script: str = "phases_in_processes.py") -> None:
    started = start(count, *arguments, script=script)
    told = started.communicate()[1]
    assert started.returncode == 0, told[-3000:]


def start(count: int, *arguments: object, script: str) -> subprocess.Popen:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *(["--multi_gpu"] if count > 1 else ["--cpu"]),
        "--num_processes",
        str(count),
    ]
    command += [
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        str(port),
    ]
    command += [str(PROJECT / "tests" / script), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=PROJECT, env=environment, **quiet)


def test_two_processes_train_the_same_weights_as_one(tiny_data, tiny_base, tmp_path):
    launch(1, tiny_data, tiny_base, tmp_path / "one")
    launch(2, tiny_data, tiny_base, tmp_path / "two")
    for name in ("phase1", "phase2"):
        finals = [tmp_path / run / name / "final" for run in ("one", "two")]
        for file in ("adapter_model.safetensors", "anchors.safetensors", "contrastive.safetensors"):
            if name == "phase1" and file.startswith("contrastive"):
                continue
            one, two = (load_file(final / file) for final in finals)
            assert one.keys() == two.keys()
            for key in one:
                assert torch.allclose(one[key].double(), two[key].double(), rtol=1e-5, atol=1e-5), (file, key)
        said = [json.loads((final / "about.json").read_text()) for final in finals]
        assert [fact["processes"] for fact in said] == [1, 2]
        states = [
            json.loads(next((tmp_path / run / name).glob("step-*/state.json")).read_text())["watch"]
            for run in ("one", "two")
        ]
        assert states[0]["scores"][0][1] == pytest.approx(states[1]["scores"][0][1], abs=1e-5)
        assert states[0]["totals"] == pytest.approx(states[1]["totals"], rel=1e-5)


@pytest.fixture
def given(tiny_data, tiny_base, tmp_path) -> tuple[Path, Path, Path]:
    """Test set of 10 summaries and 7 plain documents, that are read and not summarised."""
    documents = read(tiny_data / "documents.jsonl", need_summary=False)[:7]
    write_jsonl(tmp_path / "test.jsonl", [*read(tiny_data / "test.jsonl"), *documents])
    return tiny_data, tiny_base, tmp_path / "test.jsonl"


def scores(folder: Path) -> bytes:
    return (folder / "base" / "evaluations" / "test.jsonl").read_bytes()


def evaluate(count: int, *arguments: object) -> None:
    launch(count, *arguments, script="evaluation_in_processes.py")


def kill(started: subprocess.Popen) -> None:
    """The launcher and its workers, which are sessions of their own, all at once as a power cut does it."""
    everyone = [*psutil.Process(started.pid).children(recursive=True), psutil.Process(started.pid)]
    for process in everyone:
        process.kill()
    psutil.wait_procs(everyone)
    started.communicate()


def partials(folder: Path) -> list[Path]:
    return list((folder / "base" / "evaluations").glob(".test.*.partial"))


def test_two_processes_write_the_same_scores_file_as_one(given, tmp_path):
    evaluate(1, *given, tmp_path / "one" / "run")
    evaluate(2, *given, tmp_path / "two" / "run")
    assert scores(tmp_path / "one" / "run") == scores(tmp_path / "two" / "run")
    assert b'"modality": "document"' in scores(tmp_path / "one" / "run")  # plain documents are shared too
    assert not partials(tmp_path / "two" / "run")
    summaries = [json.loads((tmp_path / n / "run/base/evaluations/test.json").read_text()) for n in ("one", "two")]
    for name in ("metrics", "fingerprint", "outputs", "documents"):
        assert summaries[0][name] == summaries[1][name]
    before = (tmp_path / "two" / "run/base/evaluations/test.json").read_bytes()
    evaluate(2, *given, tmp_path / "two" / "run")  # nothing to do
    assert (tmp_path / "two" / "run/base/evaluations/test.json").read_bytes() == before


def test_a_killed_evaluation_goes_on_with_another_number_of_processes(given, tmp_path):
    evaluate(1, *given, tmp_path / "one" / "run")
    folder = tmp_path / "cut" / "run"
    for count, wanted in ((2, 2), (3, 4)):  # killed when so many batches are on disk
        started = start(count, *given, folder, "slow", script="evaluation_in_processes.py")
        while started.poll() is None and sum(path.read_bytes().count(b"\n") for path in partials(folder)) < wanted:
            time.sleep(0.005)
        assert started.poll() is None, started.stderr.read()[-3000:]
        kill(started)
    kept = {line for path in partials(folder) for line in path.read_bytes().splitlines()}
    assert len(partials(folder)) >= 2 and 4 <= len(kept) < 10
    partials(folder)[0].open("ab").write(b'{"number": 9, "ro')  # and one was in the middle of a line
    evaluate(2, *given, folder, "count")
    written = int((folder / "written").read_text())
    assert written == 10 - len(kept)  # nothing that was on disk was written again
    assert scores(folder) == scores(tmp_path / "one" / "run")


def test_processes_that_are_asked_to_stop_all_leave(given, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "cancel").touch()
    evaluate(2, *given, tmp_path / "run", "cancelled")
    assert (tmp_path / "run" / "cancelled").read_text() == "cancelled"
