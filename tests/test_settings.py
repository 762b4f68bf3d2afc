"""Settings: files, inheritance, overrides, errors in the user's words."""

from pathlib import Path

import pytest

from engine import configs as s
from engine.configs import load
from engine.settings import ConfigError
from tests.conftest import PROJECT


def mistakes(*overrides: str, path: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return list(caught.value.lines)


def test_unknown_setting_names_file_and_suggests(tmp_path):
    config = tmp_path / "x.yaml"
    config.write_text("ewc: {lamda: 400}\ntrain: {warmup: 3}\n")
    lines = mistakes(path=config)
    assert f"{config}: ewc.lamda: unknown setting. Did you mean ewc.lambda?" in lines
    assert any("train.warmup: unknown setting. Did you mean train.warmup_steps?" in line for line in lines)


def test_all_mistakes_are_told_at_once():
    lines = mistakes("lora.rank=0", "train.learning_rate=fast", "nonsense")
    assert len(lines) == 3
    assert all(line.startswith("command line: ") for line in lines)


def test_lambda_without_unit_does_not_load():
    (line,) = mistakes("ewc.lambda=400")
    assert "ewc.unit is missing. 400 has no meaning without it; use token_mean_sequence or per_token" in line


def test_numbers_that_yaml_reads_as_text(tmp_path):
    config = tmp_path / "x.yaml"
    config.write_text("train: {learning_rate: 3e-4}\n")
    assert load(config).train.learning_rate == 3e-4


def test_aliases_of_other_trainers():
    loaded = load(None, ["lora_alpha=16", "lora.lora_dropout=0", "micro_batch_size=2", "cutoff_len=700", "seed=5"])
    assert (loaded.lora.alpha, loaded.lora.dropout, loaded.data.max_length, loaded.train.seed) == (16, 0, 700, 5)
    assert loaded.train.per_device_train_batch_size == 2


def test_advice_for_names_without_a_counterpart():
    (line,) = mistakes("train.num_train_epochs=3")
    assert "epochs of each phase" in line


def test_extends_merges_and_later_wins(tmp_path):
    (tmp_path / "a.yaml").write_text("lora: {rank: 8, alpha: 16}\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\nlora: {rank: 4}\n")
    loaded = load(tmp_path / "b.yaml", ["lora.dropout=0.3"])
    assert (loaded.lora.rank, loaded.lora.alpha, loaded.lora.dropout) == (4, 16, 0.3)


def test_extends_cycle_names_the_files(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    assert "a.yaml -> b.yaml -> a.yaml" in mistakes(path=tmp_path / "a.yaml")[0]


def test_missing_and_broken_files(tmp_path):
    assert "no such config file" in mistakes(path=tmp_path / "none.yaml")[0]
    (tmp_path / "broken.yaml").write_text("lora: {rank: 8\ndata: [")
    assert "line 2" in mistakes(path=tmp_path / "broken.yaml")[0]
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert "mapping of sections" in mistakes(path=tmp_path / "list.yaml")[0]


def test_phases_are_reached_by_name_and_number():
    pocket = PROJECT / "configs" / "pocket.yaml"
    loaded = load(pocket, ["curriculum.phases.phase2.steps=7", "curriculum.phases.0.steps=9"])
    assert [phase.steps for phase in loaded.curriculum.phases] == [9, 7, 80]
    assert "no item phase9" in mistakes("curriculum.phases.phase9.steps=1", path=pocket)[0]


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("curriculum.phases=[{name: a, mixture: {papers: 0.5}, steps: 1}]", "must add up to 1"),
        ("curriculum.phases=[{name: a, mixture: {papers: 1}}]", "either epochs or steps"),
        ("curriculum.phases=[{name: a, mixture: {papers: 1}, steps: 1}]", "data.papers is missing"),
        ("curriculum.phases=[{name: base, mixture: {papers: 1}, steps: 1}]", "cannot be called base"),
        ("curriculum.phase=x", "not among the phases"),
        ("data.prompt=nothing", "exactly once"),
        ("data.max_summary_length=2000", "must be below max_length"),
    ],
)
def test_refusals(override, complaint):
    assert complaint in " ".join(mistakes(override))


def test_dump_gives_the_same_settings_again():
    for name in ("pocket", "medical"):
        loaded = load(PROJECT / "configs" / f"{name}.yaml")
        again = s.Settings.model_validate(s.dump(loaded))
        assert s.dump(again) == s.dump(loaded)
        assert Path(s.dump(loaded)["data"]["papers"]).is_absolute()


def test_differences_name_what_changed():
    pocket = PROJECT / "configs" / "pocket.yaml"
    assert s.differences(load(pocket, ["lora.rank=4"]), load(pocket)) == [("lora.rank", 4, 32)]


def test_mistral_configs_hold_the_recipe():
    for name in ("medical", "phase1_medical", "phase2_medical", "phase3_medical"):
        loaded = load(PROJECT / "configs" / f"{name}.yaml")
        assert (loaded.lora.rank, loaded.lora.alpha, loaded.lora.dropout) == (32, 64, 0.1)
        assert loaded.lora.target_modules == (
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
        )  # fmt: skip
        assert loaded.train.learning_rate == 1e-4
        assert loaded.train.learning_rate * loaded.train.loraplus_lr_ratio == 2e-4
        assert (loaded.train.per_device_train_batch_size, loaded.train.gradient_accumulation_steps) == (3, 6)
        assert (loaded.ewc.lambda_, loaded.ewc.unit) == (400, "token_mean_sequence")
        assert loaded.replay.batch_share == loaded.replay.buffer_share == 0.1
        assert loaded.distil.base > 0 and loaded.distil.base_share == 0.05
        assert loaded.model.name_or_path.startswith("mistralai/Mistral-7B")
    mixtures = [(phase.mixture, phase.epochs) for phase in loaded.curriculum.phases]
    assert mixtures == [
        ({"papers": 1.0}, 0.5),
        ({"papers": 0.5, "videos": 0.4, "pairs": 0.1}, 1.0),
        ({"papers": 0.3, "videos": 0.6, "pairs": 0.1}, 1.0),
    ]
    for number in (1, 2, 3):
        (phase,) = load(PROJECT / "configs" / f"phase{number}_medical.yaml").selected_phases()
        assert phase.name == f"phase{number}"


def test_the_recipe_as_given_has_no_protection_of_ours():
    loaded = load(PROJECT / "configs" / "medical_as_given.yaml")
    assert (loaded.distil.base, loaded.distil.phase, loaded.replay.batch_share) == (0, 0, 0.1)
    assert (loaded.ewc.lambda_, loaded.ewc.unit, loaded.ewc.space) == (400, "token_mean_sequence", "factor")
    weights = loaded.losses.model_dump(include={"cross_entropy", "contrastive", "diversity", "term"})
    assert weights == {"cross_entropy": 1.0, "contrastive": 0.3, "diversity": 0.2, "term": 0.4}
    assert (loaded.distil.documents, loaded.distil.new, loaded.losses.floor) == (0, 0, 0)


def test_four_hundred_without_a_unit_does_not_load():
    said = mistakes("ewc.unit=null", path=PROJECT / "configs" / "medical_as_given.yaml")[0]
    assert "400 has no meaning without it; use token_mean_sequence or per_token" in said


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (
            ["losses.crossclr.queue=0", "train.per_device_train_batch_size=1"],
            "losses.contrastive has no negatives with per_device_train_batch_size 1",
        ),
        (
            ["data.videos=null", "curriculum.phases=[{name: a, mixture: {papers: 1}, steps: 1}]"],
            "distil.base answers video prompts",
        ),
    ],
)
def test_what_a_loss_needs_is_asked_for_before_anything_runs(overrides, complaint):
    assert complaint in mistakes(*overrides, path=PROJECT / "configs" / "pocket.yaml")[0]


def test_every_shipped_config_loads():
    given = ["data.papers=p.jsonl", "data.videos=v.jsonl", "data.pairs=x.jsonl"]
    for path in sorted((PROJECT / "configs").glob("*.yaml")):
        assert load(path, given).selected_phases(), path


def test_the_settings_table_is_true():
    assert s.table() in (PROJECT / "docs" / "settings.md").read_text()
