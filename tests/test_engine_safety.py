"""What a phase watches for, and how it ends: spikes, early stopping, named checkpoints, trackers."""

import json
from dataclasses import replace

import pytest
import torch

from engine import development, ewc, train
from engine import events as ev
from engine.configs import load
from engine.gradient import Gradient
from engine.settings import ConfigError, Train
from engine.watch import Watch, restored
from tests.conftest import make_work

pytestmark = pytest.mark.engine


def phase(tiny_data, tiny_base, run_folder, *overrides, name="phase1", start_from=None):
    settings, events = load(tiny_data / "tiny.yaml", ["ewc.lambda=0", *overrides]), []
    work = make_work("phase", name, settings, tiny_base, run_folder / name, run_folder, start_from, None, events)
    return work, events


def said(events):
    return [event.message for event in events if isinstance(event, ev.Warned)]


def adapter(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


def found(total: float, **figures) -> Gradient:
    return Gradient({"cross_entropy": total}, figures, {})


def test_a_spike_warns_once_and_a_row_of_them_stops():
    watch, given = Watch(), Train(spike_factor=3.0, spike_patience=3)
    for step in range(1, 12):
        assert watch.refuse_spikes(found(1.0), step, given) is None
    assert "4.0 times the median" in watch.refuse_spikes(found(4.0), 12, given)
    assert watch.refuse_spikes(found(4.0), 13, given) is None
    again = restored(json.loads(json.dumps(watch.state())))
    assert again == watch
    with pytest.raises(ConfigError, match="3th step in a row.*lower train.learning_rate"):
        again.refuse_spikes(found(4.0), 14, given)
    assert (
        watch.refuse_spikes(found(2.9), 14, given) is None and watch.spikes == 0
    )  # 2.9 is no spike: the row is broken
    assert len(watch.totals) == 12  # spikes do not move the median


def test_the_first_steps_of_a_phase_are_no_spikes():
    watch = Watch()
    assert [watch.refuse_spikes(found(value), 1, Train()) for value in (1.0, 90.0, 1.0)] == [None] * 3


def test_a_gradient_larger_than_cross_entropy_s_and_too_much_pruning_are_told_once():
    watch = Watch()
    step = Gradient(
        {"cross_entropy": 1.0, "contrastive": 1.0}, {"pruned": 0.7}, {"cross_entropy": 1.0, "contrastive": 2.0}
    )
    told = list(watch.warnings(step, 100, 200, False))
    assert len(told) == 2 and "prunes 70 %" in told[0] and "gradient of contrastive (2)" in told[1]
    assert not list(watch.warnings(step, 200, 200, False))


def test_early_stopping_ends_a_phase_with_its_best_weights(tiny_data, tiny_base, tmp_path, monkeypatch):
    """Scores are given here (3, 5, 4, 4): the best is step 4, and two evaluations without a better one end the phase."""
    given = ["data.development_share=0.3", "evaluate.every_steps=2", "evaluate.metric=nll", "evaluate.samples=3"]
    given += ["curriculum.phases.phase1.steps=20", "train.early_stopping_patience=2", "train.save_total_limit=1"]
    values = {2: 3.0, 4: 5.0, 6: 4.0, 8: 4.0}
    real, seen = development.scores, []

    def scores(*arguments):
        seen.append(real(*arguments))
        return {"papers": {"nll": -values[2 * len(seen)]}}

    monkeypatch.setattr(development, "scores", scores)
    work, events = phase(tiny_data, tiny_base, tmp_path, *given)
    train.run(work)
    assert [event.step for event in events if isinstance(event, ev.Evaluated)] == [2, 4, 6, 8]
    assert any("stopped at step 8: the weights are those of step 4" in message for message in said(events))
    assert adapter(tmp_path / "phase1" / "final") == adapter(tmp_path / "phase1" / "step-000004")
    assert json.loads((tmp_path / "phase1" / "final" / "about.json").read_text())["step"] == 8
    assert all(set(one) == {"papers", "videos"} and one["papers"]["nll"] > 0 for one in seen)


def test_evaluations_inside_a_phase_do_not_change_its_weights_and_survive_a_stop(tiny_data, tiny_base, tmp_path):
    common = ["data.development_share=0.3", "generate.max_new_tokens=3", "curriculum.phases.phase1.steps=4"]
    plain, _ = phase(tiny_data, tiny_base, tmp_path / "plain", *common)
    train.run(plain)
    given = [*common, "evaluate.every_steps=2", "evaluate.samples=2"]
    work, events = phase(tiny_data, tiny_base, tmp_path / "watched", *given)
    train.run(work)
    assert adapter(tmp_path / "watched" / "phase1" / "final") == adapter(tmp_path / "plain" / "phase1" / "final")
    evaluated = [event for event in events if isinstance(event, ev.Evaluated)]
    assert [(event.step, event.test_set) for event in evaluated] == [(2, "development"), (4, "development")]
    assert set(evaluated[0].metrics["videos"]) == {"nll", "rougeL"}


def test_settings_that_need_development_documents_say_so():
    with pytest.raises(
        ConfigError, match="evaluate.every_steps needs development documents: set data.development_share"
    ):
        load(None, ["evaluate.every_steps=5"])
    with pytest.raises(ConfigError, match="set evaluate.every_steps too"):
        load(None, ["train.early_stopping_patience=2"])
    with pytest.raises(ConfigError, match="weights lie between 0 and 1 and 1.0"):
        load(None, ["average.weights=[0.5]", "data.development_share=0.1"])


def test_a_phase_goes_on_from_a_named_checkpoint_of_another_run(tiny_data, tiny_base, tmp_path):
    work, _ = phase(tiny_data, tiny_base, tmp_path / "one")
    train.run(work)
    named = tmp_path / "one" / "phase1" / "step-000004"
    work, events = phase(tiny_data, tiny_base, tmp_path / "two", f"train.resume_from={named}")
    train.run(work)
    assert [event.step for event in events if isinstance(event, ev.Step)] == [5, 6]
    assert adapter(tmp_path / "two" / "phase1" / "final") == adapter(tmp_path / "one" / "phase1" / "final")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("final", "not a checkpoint inside a phase"),
        ("nothing", "not a checkpoint"),
        ("step-000006", "but phase1 has 3"),
    ],
)
def test_a_named_checkpoint_that_does_not_fit_is_refused(tiny_data, tiny_base, tmp_path, where, message):
    work, _ = phase(tiny_data, tiny_base, tmp_path / "one")
    train.run(work)
    given = [f"train.resume_from={tmp_path}/one/phase1/{where}", "curriculum.phases.phase1.steps=3"]
    work, _ = phase(tiny_data, tiny_base, tmp_path / "two", *given)
    with pytest.raises(ConfigError, match=message):
        train.run(work)


def test_a_checkpoint_of_a_phase_that_started_elsewhere_is_refused(tiny_data, tiny_base, tmp_path):
    work, _ = phase(tiny_data, tiny_base, tmp_path / "one")
    train.run(work)
    given = [f"train.resume_from={tmp_path}/one/phase1/step-000004"]
    work, _ = phase(tiny_data, tiny_base, tmp_path / "two", *given)
    with pytest.raises(ConfigError, match="started from another adapter"):
        train.run(replace(work, start_from=tmp_path / "one" / "phase1" / "final"))


def test_a_tracker_that_is_not_installed_is_named(tiny_data, tiny_base, tmp_path):
    work, _ = phase(tiny_data, tiny_base, tmp_path, "train.report_to=[clearml]")
    with pytest.raises(ConfigError, match="train.report_to: clearml is not installed here. pip install clearml"):
        train.run(work)


def test_a_tracker_gets_every_loss(tiny_data, tiny_base, tmp_path, monkeypatch):
    from accelerate import tracking

    logged = []

    class Fake(tracking.GeneralTracker):
        name, requires_logging_directory, main_process_only = "tensorboard", False, True

        def __init__(self, run_name, **kwargs):
            super().__init__()
            self.run_name = run_name

        @property
        def tracker(self):
            return self

        def store_init_configuration(self, values):
            logged.append(("config", values))

        def log(self, values, step=None, **kwargs):
            logged.append((step, values))

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Fake)
    for module in ("accelerate.tracking", "engine.trackers"):
        monkeypatch.setattr(f"{module}.get_available_trackers", lambda: [tracking.LoggerType("tensorboard")])
    work, events = phase(
        tiny_data, tiny_base, tmp_path, "train.report_to=[tensorboard]", "curriculum.phases.phase1.steps=2"
    )
    train.run(work)
    assert logged[0][0] == "config" and logged[0][1]["lora.rank"] == "4"
    assert [step for step, _ in logged[1:]] == [1, 2]
    last = [event for event in events if isinstance(event, ev.Step)][-1]
    assert {name: logged[-1][1][f"loss/{name}"] for name in last.losses} == last.losses


def test_an_l2_penalty_on_the_update_is_its_frobenius_norm(tiny_data, tiny_base):
    """ewc.importance uniform: F_ij = 1, so P = ||dW - dW*||^2 over the adapted layers."""
    from engine import models
    from engine.settings import Lora, Model

    given = load(None, ["ewc.importance=uniform", "ewc.lambda=2", "ewc.unit=per_token"]).ewc
    model = models.attach(models.load_base(str(tiny_base), Model()), Lora(rank=4, alpha=8, dropout=0), 0)
    anchors = ewc.anchored([], "phase1", ewc.uniform(model, given), model, given)
    with torch.no_grad():
        for parameter in models.trainable(model).values():
            parameter += 0.1 * torch.randn_like(parameter)
    now, then, dense = models.trainable(model), anchors[0].weights, 0.0
    for name in now:
        if "lora_B" in name:
            other = name.replace("lora_B", "lora_A")
            dense += ((2 * (now[name] @ now[other] - then[name] @ then[other])) ** 2).sum().item()
    assert ewc.penalty(model, anchors, given).item() == pytest.approx(dense, rel=1e-4)
    factors = given.model_copy(update={"space": "factor"})
    anchors = ewc.anchored([], "phase1", ewc.uniform(model, factors), model, factors)
    assert ewc.penalty(model, anchors, factors).item() == 0


def test_the_projection_is_clipped_by_itself(tiny_data, tiny_base, tmp_path):
    """A projection with an enormous gradient leaves the adapter's step as it is."""
    from engine import models
    from engine.contrastive import Contrast
    from engine.settings import Lora, Model
    from engine.train import clip

    class Both:
        model = models.attach(models.load_base(str(tiny_base), Model()), Lora(rank=4, alpha=8, dropout=0), 0)
        contrast = Contrast(32, 0)

    for parameter in models.trainable(Both.model).values():
        parameter.grad = torch.full_like(parameter, 1e-4)
    Both.contrast.projection.grad = torch.full_like(Both.contrast.projection, 1e6)
    clip(Both, 1.0)
    assert all((p.grad == 1e-4).all() for p in models.trainable(Both.model).values())
    assert Both.contrast.projection.grad.norm().item() == pytest.approx(1, rel=1e-3)
