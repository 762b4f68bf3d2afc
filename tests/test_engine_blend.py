"""How much of a phase to keep: the choice by hand, and a real phase whose average is really in the checkpoint."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from engine import blend, train
from engine import events as ev
from engine.configs import load
from tests.conftest import make_work

pytestmark = pytest.mark.engine
GIVEN = ["data.development_share=0.3", "average.weights=[0.5, 0.75, 1.0]", "evaluate.metric=nll", "evaluate.samples=3"]


def scores(**columns) -> dict:
    return {column: {"rougeL": value} for column, value in columns.items()}


def test_the_best_weight_that_keeps_the_old_columns_is_chosen():
    settings = load(None, ["average.weights=[0.5, 0.75, 1.0]", "average.margin=0.5", "data.development_share=0.1"])
    tried = {
        0.0: scores(papers=40.0, videos=20.0), 0.5: scores(papers=39.8, videos=26.0),
        0.75: scores(papers=39.5, videos=29.0), 1.0: scores(papers=38.0, videos=40.0),
    }  # fmt: skip
    assert blend.choose(tried, ["papers"], settings) == 0.75  # 1.0 scores best, but the papers fall by 2 points
    assert blend.choose(tried, [], settings) == 1.0
    tried[0.5], tried[0.75] = scores(papers=39.0, videos=26.0), scores(papers=38.5, videos=29.0)
    assert blend.choose(tried, ["papers"], settings) == 0.5  # none keeps them: the smallest fall
    nats = load(
        None, ["average.weights=[0.5, 1.0]", "average.margin=2", "data.development_share=0.1", "evaluate.metric=nll"]
    )
    losses = {w: {"papers": {"nll": value}} for w, value in ((0.0, 2.0), (0.5, 2.015), (1.0, 2.03))}
    assert blend.choose(losses, ["papers"], nats) == 0.5


def test_old_columns_are_those_of_earlier_phases():
    phases = "curriculum.phases=[{name: a, mixture: {papers: 1}, steps: 1}, {name: b, mixture: {videos: 1}, steps: 1}]"
    settings = load(None, [phases, "data.papers=x", "data.videos=y"])
    assert blend.old_columns(settings, "a") == [] and blend.old_columns(settings, "b") == ["papers"]


@pytest.fixture(scope="module")
def first(tiny_data, tiny_base, tmp_path_factory):
    run = tmp_path_factory.mktemp("first")
    train.run(make_work("phase", "phase1", load(tiny_data / "tiny.yaml", GIVEN), tiny_base, run / "phase1", run))
    return run


def second(tiny_data, tiny_base, first, run, *overrides):
    shutil.copytree(first, run, symlinks=True)
    events: list[ev.Event] = []
    settings = load(tiny_data / "tiny.yaml", [*GIVEN, *overrides])
    start = run / "phase1" / "final"
    train.run(make_work("phase", "phase2", settings, tiny_base, run / "phase2", run, start, None, events))
    return run / "phase2", events


def update(folder) -> dict[str, torch.Tensor]:
    stored = load_file(folder / "adapter_model.safetensors")
    return {n: 2 * stored[n.replace("lora_A", "lora_B")] @ stored[n] for n in stored if "lora_A" in n}


def test_a_phase_ends_with_the_average_it_chose(tiny_data, tiny_base, first, tmp_path):
    folder, events = second(
        tiny_data, tiny_base, first, tmp_path / "run", "average.weights=[0.5, 1.0]", "average.margin=0"
    )
    about = json.loads((folder / "final" / "about.json").read_text())["average"]
    assert set(about["scores"]) == {"0", "0.5", "1"} and about["weight"] in (0.5, 1.0)
    assert [event.test_set for event in events if isinstance(event, ev.Evaluated)] == ["development"] * 3
    before, after, ended = update(first / "phase1" / "final"), update(folder / "step-000005"), update(folder / "final")
    for name, value in ended.items():
        exact = (1 - about["weight"]) * before[name] + about["weight"] * after[name]
        u, s, v = torch.linalg.svd(exact)
        best = (u[:, :4] * s[:4]) @ v[:4]
        assert torch.allclose(value, best, atol=1e-6)
    assert about["error"] < 1


def test_a_first_phase_has_nothing_to_be_averaged_with(first):
    assert json.loads((first / "phase1" / "final" / "about.json").read_text())["average"] == {}
