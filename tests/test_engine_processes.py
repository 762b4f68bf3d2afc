"""Two processes give what one gives: weights, Fisher, queue, evaluations."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import PROJECT

pytestmark = [pytest.mark.engine, pytest.mark.processes]


def launch(count: int, *arguments: object) -> None:
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
    script = [str(PROJECT / "tests" / "phases_in_processes.py"), *map(str, arguments)]
    told = subprocess.run(
        [*command, *script], cwd=PROJECT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr[-3000:]


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
