"""A phase that goes on with smaller micro-batches: the same steps, the same weights but for rounding."""

import json

import pytest
import torch
from safetensors.torch import load_file

from engine import events as ev
from engine import train
from engine.configs import load
from engine.work import Cancelled
from jobs import adjust
from tests.conftest import make_work

pytestmark = pytest.mark.engine
CALM = (
    "lora.dropout=0",
    "losses.diversity=0",
    "ewc.lambda=0",
    "train.per_device_train_batch_size=4",
    "train.gradient_accumulation_steps=1",
)


def train_phase(tiny_data, tiny_base, run_folder, adjusted, stop=lambda: False):
    """(Step events, folder of the final checkpoint)."""
    settings = adjust.apply(load(tiny_data / "tiny.yaml", CALM), adjusted)
    events: list[ev.Event] = []
    folder = run_folder / "phase1"
    work = make_work("phase", "phase1", settings, tiny_base, folder, run_folder, events=events, stop=stop)
    try:
        train.run(work)
    except Cancelled:
        assert stop()
    return [event for event in events if isinstance(event, ev.Step)], folder / "final"


def test_training_goes_on_as_if_nothing_had_happened(tiny_data, tiny_base, tmp_path):
    whole, whole_final = train_phase(tiny_data, tiny_base, tmp_path / "whole", {})
    asked = iter([False] * 5)  # twice for the base's answers, then before each step
    first, _ = train_phase(tiny_data, tiny_base, tmp_path / "short", {}, lambda: next(asked, True))
    assert [step.step for step in first] == [1, 2, 3]
    settings = load(tiny_data / "tiny.yaml", CALM)
    half = adjust.step_down("phase", "training", settings)
    less = half | adjust.step_down("phase", "training", adjust.apply(settings, half))
    assert less == {"train.per_device_train_batch_size": 1, "train.gradient_accumulation_steps": 4}
    second, final = train_phase(tiny_data, tiny_base, tmp_path / "short", less)
    assert [step.step for step in second] == [4, 5, 6]
    for ours, expected in zip(first + second, whole, strict=True):
        assert ours.losses == pytest.approx(expected.losses, rel=1e-3, abs=1e-6)
    found, wanted = (load_file(folder / "adapter_model.safetensors") for folder in (final, whole_final))
    for name, weight in wanted.items():
        assert torch.allclose(found[name], weight, atol=2e-4), name
    settings = json.loads((final / "about.json").read_text())["settings"]["train"]
    assert (settings["per_device_train_batch_size"], settings["gradient_accumulation_steps"]) == (1, 4)
