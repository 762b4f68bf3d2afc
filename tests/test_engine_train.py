"""A phase from end to end on a tiny model: exact resume, refusals, and what the next phase inherits."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from engine import checkpoint, consolidate, replay, train
from engine import events as ev
from engine.configs import load
from engine.corpus.records import Record
from engine.gradient import COMPONENTS
from engine.settings import ConfigError
from engine.work import Cancelled
from tests.conftest import PROJECT, make_work

pytestmark = pytest.mark.engine


def phase(tiny_data, tiny_base, run_folder, name="phase1", *overrides, start_from=None, stop=lambda: False):
    settings = load(tiny_data / "tiny.yaml", overrides)
    events: list[ev.Event] = []
    work = make_work("phase", name, settings, tiny_base, run_folder / name, run_folder, start_from, None, events, stop)
    return work, events


def weights(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tiny_data, tiny_base, tmp_path_factory):
    """Both phases, undisturbed: (run folder, events of phase 1, events of phase 2)."""
    run_folder = tmp_path_factory.mktemp("whole")
    work, first = phase(tiny_data, tiny_base, run_folder)
    train.run(work)
    work, second = phase(tiny_data, tiny_base, run_folder, "phase2", start_from=run_folder / "phase1" / "final")
    train.run(work)
    return run_folder, first, second


def steps(events):
    return [event for event in events if isinstance(event, ev.Step)]


def test_every_component_is_reported_and_the_sum_adds_up(whole):
    _, first, second = whole
    assert [event.step for event in steps(first)] == [1, 2, 3, 4, 5, 6]
    assert set(steps(first)[0].losses) == {"cross_entropy", "diversity", "distil_base"}
    seen = {name for event in steps(second) for name in event.losses}
    assert seen == {"cross_entropy", "diversity", "contrastive", "distil_phase", "distil_base", "ewc"}
    assert steps(second)[0].losses["distil_phase"] < 1e-3  # but for dropout, the model still is its own teacher
    for event in steps(first) + steps(second):
        assert event.total == pytest.approx(sum(event.losses.values()))
    assert steps(second)[0].losses["ewc"] == 0 < steps(second)[-1].losses["ewc"]
    assert steps(first)[0].losses["distil_base"] == pytest.approx(0, abs=1e-6)  # B is 0: the model still is the base


def test_fisher_comes_after_the_first_phase_and_not_after_the_last(whole):
    _, first, second = whole
    progress = [event for event in first if isinstance(event, ev.FisherProgress)]
    assert progress[0].done == 0 and progress[-1].done == progress[-1].total > 0 and progress[-1].trace > 0
    assert not [event for event in second if isinstance(event, ev.FisherProgress)]


def test_final_tells_what_it_is_and_loads_with_peft(whole, tiny_base):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run_folder, _, _ = whole
    for name, end in (("phase1", 6), ("phase2", 11)):
        final = run_folder / name / "final"
        assert checkpoint.verify(final) == ""
        about = json.loads((final / "about.json").read_text())
        assert (about["phase"], about["step"], about["model"]) == (name, end, str(tiny_base))
        assert about["ewc"][0]["lambda_per_token"] == 1.0 and about["ewc"][0]["mean_tokens"] > 0
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), run_folder / "phase2" / "final")
    assert (run_folder / "latest").resolve() == (run_folder / "phase2" / "final").resolve()
    kept = replay.load_buffer(run_folder / "phase1" / "final")
    assert kept and {record.modality for record in kept} == {"paper"}
    assert {record.id for record in kept} <= {
        record.id for record in replay.load_buffer(run_folder / "phase2" / "final")
    }


@pytest.mark.parametrize("stop_at", [1, 3, 4])
def test_interrupted_and_resumed_equals_undisturbed_to_the_last_bit(whole, tiny_data, tiny_base, tmp_path, stop_at):
    run_folder, _, _ = whole
    count = [0]

    def stop():
        count[0] += 1
        return count[0] > stop_at + 2  # base answers ask twice

    work, events = phase(tiny_data, tiny_base, tmp_path, stop=stop)
    with pytest.raises(Cancelled):
        train.run(work)
    assert steps(events)[-1].step == stop_at
    work, events = phase(tiny_data, tiny_base, tmp_path)
    train.run(work)
    assert steps(events)[0].step == stop_at + 1
    assert weights(tmp_path / "phase1" / "final") == weights(run_folder / "phase1" / "final")
    stored = [load_file(folder / "phase1" / "final" / "anchors.safetensors") for folder in (tmp_path, run_folder)]
    assert all(torch.equal(stored[0][name], stored[1][name]) for name in stored[1])


def test_a_torn_newest_checkpoint_costs_steps_and_nothing_else(whole, tiny_data, tiny_base, tmp_path):
    run_folder, _, _ = whole
    work, _ = phase(tiny_data, tiny_base, tmp_path)
    train.run(work)
    (tmp_path / "phase1" / "final" / "manifest.json").unlink()
    (tmp_path / "phase1" / "step-000006" / "optimizer.pt").write_bytes(b"torn")
    work, events = phase(tiny_data, tiny_base, tmp_path)
    train.run(work)
    assert [event.step for event in steps(events)] == [5, 6]
    assert weights(tmp_path / "phase1" / "final") == weights(run_folder / "phase1" / "final")


def test_a_finished_phase_is_not_trained_again(whole, tiny_data, tiny_base):
    run_folder, _, _ = whole
    before = weights(run_folder / "phase1" / "final")
    work, events = phase(tiny_data, tiny_base, run_folder)
    assert train.run(work) == {"checkpoint": str(run_folder / "phase1" / "final")}
    assert not steps(events) and weights(run_folder / "phase1" / "final") == before


def test_accumulation_does_not_change_the_weights(tiny_data, tiny_base, tmp_path):
    found = []
    for micro, accumulation in ((4, 1), (2, 2), (1, 4)):
        run_folder = tmp_path / f"{micro}"
        given = [f"train.per_device_train_batch_size={micro}", f"train.gradient_accumulation_steps={accumulation}"]
        given += ["lora.dropout=0", "losses.diversity=0", "ewc.lambda=0", "curriculum.phases.phase1.steps=3"]
        work, _ = phase(tiny_data, tiny_base, run_folder, "phase1", *given)
        train.run(work)
        found.append(load_file(run_folder / "phase1" / "final" / "adapter_model.safetensors"))
    for other in found[1:]:
        assert max((other[name] - found[0][name]).abs().max().item() for name in other) < 2e-4


def test_the_penalty_counts_once_a_step_whatever_the_accumulation(whole, tiny_data, tiny_base, tmp_path):
    """Divided by the accumulation, or added for each micro-batch, it would differ (mistake 14)."""
    run_folder, _, _ = whole
    found = []
    for micro, accumulation in ((4, 1), (1, 4)):
        copy = tmp_path / f"{micro}"
        shutil.copytree(run_folder / "phase1", copy / "phase1")
        given = [f"train.per_device_train_batch_size={micro}", f"train.gradient_accumulation_steps={accumulation}"]
        given += ["lora.dropout=0", "losses.diversity=0", "losses.contrastive=0", "curriculum.phases.phase2.steps=3"]
        work, events = phase(tiny_data, tiny_base, copy, "phase2", *given, start_from=copy / "phase1" / "final")
        train.run(work)
        found.append([event.losses["ewc"] for event in steps(events)])
    assert found[0][0] == found[1][0] == 0 < found[0][2]
    assert found[0] == pytest.approx(
        found[1], rel=0.4
    )  # AdamW turns rounding into signs; a mistake would be four times


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(whole, tiny_data, tiny_base, tmp_path):
    work, events = phase(
        tiny_data,
        tiny_base,
        tmp_path,
        "phase1",
        "train.learning_rate=1e30",
        "train.warmup_ratio=0",
        "train.save_steps=1",
    )
    with pytest.raises(ConfigError, match="cross_entropy.* is nan|inf.*lower train.learning_rate"):
        train.run(work)
    assert steps(events)[-1].step == int(checkpoint.newest_step(tmp_path / "phase1")[1].name[-6:])


def test_a_start_that_is_no_checkpoint_is_refused(tiny_data, tiny_base, tmp_path):
    work, _ = phase(tiny_data, tiny_base, tmp_path, "phase2", start_from=tmp_path / "phase1" / "final")
    with pytest.raises(ConfigError, match="not a checkpoint"):
        train.run(work)


def test_records_with_too_long_summaries_are_left_out_aloud(tiny_data, tiny_base, tmp_path):
    given = ["data.max_summary_length=72", "curriculum.phases.phase1.steps=1", "ewc.lambda=0", "distil.base=0"]
    work, events = phase(tiny_data, tiny_base, tmp_path, "phase1", *given)
    train.run(work)
    warned = [event.message for event in events if isinstance(event, ev.Warned)]
    assert any("left out: their summary is longer than 72 tokens" in message for message in warned)


def test_the_rate_follows_from_the_step():
    factors = [train.rate_factor(index, 100, 10) for index in range(100)]
    assert factors[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert factors[10] == 1 and factors[55] == pytest.approx(0.5) and factors[99] < 0.001
    assert train.rate_factor(0, 1, 0) == 1


def test_the_buffer_is_stratified_and_follows_from_the_seed():
    records = [
        Record(f"{m}{n}", m, "x" * (n + 1), "s") for m, count in (("paper", 60), ("video", 30)) for n in range(count)
    ]
    chosen = replay.choose(records, 0.2, 0, "phase2")
    assert len(chosen) == 18
    assert sum(record.modality == "paper" for record in chosen) == 12
    short = sum(record.modality == "paper" and len(record.source) <= 20 for record in chosen)
    assert short == 4
    assert chosen == replay.choose(records, 0.2, 0, "phase2") != replay.choose(records, 0.2, 1, "phase2")
    assert replay.choose(records, 0.0, 0, "p") == [] and len(replay.choose(records[:3], 0.01, 0, "p")) == 1


def test_base_answers_are_written_once_and_are_the_base_s_own(whole, tiny_base):
    run_folder, first, second = whole
    stored = json.loads((run_folder / "base" / replay.ANSWERS).read_text())
    assert len(stored["answers"]) == 6
    assert [event for event in first if isinstance(event, ev.Generated)]
    assert not [event for event in second if isinstance(event, ev.Generated)]


def test_base_replay_on_references_generates_nothing(tiny_data, tiny_base, tmp_path):
    given = ["distil.base_texts=references", "curriculum.phases.phase1.steps=2", "ewc.lambda=0"]
    work, events = phase(tiny_data, tiny_base, tmp_path, "phase1", *given)
    train.run(work)
    assert not [event for event in events if isinstance(event, ev.Generated)]
    assert not (tmp_path / "base").exists() and steps(events)[1].losses["distil_base"] > 0


EVERYTHING = (
    "losses.drift=0.03", "losses.drift_target=0.99", "losses.floor=0.1", "losses.contrastive=0.1", "distil.new=0.1",
    "distil.documents=0.3", "distil.documents_share=0.4", "train.gradient_norms_steps=2",
    "curriculum.phases.phase2.mixture={papers: 0.3, videos: 0.4, pairs: 0.3}",
)  # fmt: skip


class StopAfter:
    """Asks to stop once it has been asked `looks` times."""

    def __init__(self, looks: int):
        self.left = looks

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def in_pieces(tiny_data, tiny_base, run_folder, name, given, start_from, looks) -> list[ev.Event]:
    """Train a phase, stopped after every `looks` looks, until it is done; the events of the last piece."""
    while True:
        stop = StopAfter(looks)
        work, events = phase(tiny_data, tiny_base, run_folder, name, *given, start_from=start_from, stop=stop)
        try:
            train.run(work)
            return events
        except Cancelled:
            assert stop.left < 0


def test_every_loss_at_once_adds_up_and_resumes_to_the_last_bit(tiny_data, tiny_base, tmp_path):
    given = [*EVERYTHING, f"data.terms={PROJECT}/data/pocket/terms.txt", f"data.documents={tiny_data}/documents.jsonl"]
    finals = []
    for looks in (1000, 4):
        run_folder = tmp_path / f"{looks}"
        in_pieces(tiny_data, tiny_base, run_folder, "phase1", given, None, looks)
        events = in_pieces(tiny_data, tiny_base, run_folder, "phase2", given, run_folder / "phase1" / "final", looks)
        seen = {name for event in steps(events) for name in event.losses}
        for event in steps(events):
            assert event.total == pytest.approx(sum(event.losses.values()))
            assert all(value >= 0 for value in event.losses.values())
        if looks == 1000:
            assert seen == set(COMPONENTS)
            measured = [event for event in steps(events) if event.norms]
            assert [event.step for event in measured] == [2, 4]
            assert all(event.norms.keys() == event.losses.keys() for event in measured)
        final = run_folder / "phase2" / "final"
        finals.append([weights(final), (final / "contrastive.safetensors").read_bytes()])
    assert finals[0] == finals[1]


def test_a_missing_teacher_is_named(whole, tiny_data, tiny_base, tmp_path):
    """The memory of phase1 is to be held to phase1, but the run goes on from a copy under another name."""
    run_folder, _, _ = whole
    shutil.copytree(run_folder / "phase1" / "final", tmp_path / "elsewhere" / "copied" / "final")
    start = tmp_path / "elsewhere" / "copied" / "final"
    work, _ = phase(tiny_data, tiny_base, tmp_path / "elsewhere", "phase2", start_from=start)
    with pytest.raises(ConfigError, match="elsewhere/phase1/final: not a checkpoint"):
        train.run(work)


def test_a_lexicon_without_a_match_is_told(tiny_data, tiny_base, tmp_path):
    (tmp_path / "terms.txt").write_text("xylophone\n")
    given = [
        "losses.term=0.4",
        f"data.terms={tmp_path}/terms.txt",
        "curriculum.phases.phase1.steps=1",
        "ewc.lambda=0",
        "distil.base=0",
    ]
    work, events = phase(tiny_data, tiny_base, tmp_path / "run", "phase1", *given)
    train.run(work)
    assert any("no summary holds a term" in event.message for event in events if isinstance(event, ev.Warned))
    assert "term" not in steps(events)[0].losses


def test_a_fisher_job_equals_the_phase_s_own_and_serves_the_next_phase(whole, tiny_data, tiny_base, tmp_path):
    run_folder, _, _ = whole
    shutil.copytree(run_folder, tmp_path / "copy", symlinks=True)
    final, events = tmp_path / "copy" / "phase1" / "final", []
    settings = load(tiny_data / "tiny.yaml")
    work = make_work("fisher", "phase1", settings, tiny_base, final, tmp_path / "copy", None, None, events)
    told = consolidate.run(work)["fisher"]
    own = json.loads((final / "about.json").read_text())["ewc"][0]
    assert told["trace"] == pytest.approx(own["trace"], rel=1e-5) and told["documents"] == own["documents"]
    assert sum(told["shares"].values()) == pytest.approx(1)
    progress = [event for event in events if isinstance(event, ev.FisherProgress)]
    assert progress[0].done == 0 and progress[-1].done == progress[-1].total == told["documents"]
    assert checkpoint.verify(final.parent / consolidate.FOLDER) == "" == checkpoint.verify(final)
    assert consolidate.anchors_folder(final) == final.parent / consolidate.FOLDER
    shutil.rmtree(tmp_path / "copy" / "phase2")
    work, events = phase(tiny_data, tiny_base, tmp_path / "copy", "phase2", start_from=final)
    train.run(work)
    assert steps(events)[-1].losses["ewc"] > 0


def test_a_fisher_that_was_cancelled_leaves_nothing(whole, tiny_data, tiny_base, tmp_path):
    run_folder, _, _ = whole
    shutil.copytree(run_folder, tmp_path / "copy", symlinks=True)
    final = tmp_path / "copy" / "phase1" / "final"
    work = make_work(
        "fisher", "phase1", load(tiny_data / "tiny.yaml"), tiny_base, final, tmp_path / "copy", stop=lambda: True
    )
    with pytest.raises(Cancelled):
        consolidate.run(work)
    assert consolidate.anchors_folder(final) == final


def test_a_penalty_outside_its_window_is_told_once(whole):
    _, first, second = whole
    told = [event.message for event in second if isinstance(event, ev.Warned) and "EWC penalty" in event.message]
    assert len(told) == 1 and "0 % of the cross-entropy" in told[0] and "raise ewc.lambda" in told[0]
    assert not [event for event in first if isinstance(event, ev.Warned) and "EWC penalty" in event.message]
