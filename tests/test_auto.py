"""train.auto: the table at its edges, what the user gave, and what a queued job says about it."""

import json

import pytest

from engine import auto
from engine.configs import differences, dump, load
from engine.settings import ConfigError, Settings, Train
from jobs import show
from jobs.commands import main
from jobs.home import Home
from jobs.records import Records
from jobs.submit import Request, draft, enter, read_spec
from tests.conftest import PROJECT
from tui import preview

ONE_PHASE = """
model: {{build: {{hidden_size: 32, num_attention_heads: 2, num_key_value_heads: 1, vocab_size: 400}}}}
data: {{papers: {0}/papers.jsonl, videos: {0}/videos.jsonl, pairs: {0}/pairs.jsonl, test: {0}/test.jsonl}}
curriculum: {{phases: [{{name: round1, mixture: {{papers: 0.5, videos: 0.4, pairs: 0.1}}}}]}}
train: {{auto: true}}
"""


@pytest.fixture
def config(tmp_path, tiny_data):
    path = tmp_path / "auto.yaml"
    path.write_text(ONE_PHASE.format(tiny_data))
    return path


@pytest.mark.parametrize(
    ("examples", "rank", "alpha", "epochs", "batch", "tokens", "warm_up"),
    [
        (3, 8, 16, 10, (2, 4), 512, 0),
        (99, 8, 16, 10, (2, 4), 512, 9),
        (100, 16, 32, 5, (2, 4), 640, 10),
        (106, 16, 32, 5, (2, 4), 640, 10),
        (499, 16, 32, 5, (2, 4), 640, 49),
        (500, 32, 64, 3, (4, 2), 768, 50),
        (5000, 32, 64, 3, (4, 2), 768, 50),
    ],
)
def test_the_table(config, examples, rank, alpha, epochs, batch, tokens, warm_up):
    found, chosen = auto.automatic(load(config), examples)
    assert (found.lora.rank, found.lora.alpha) == (rank, alpha)
    assert (found.curriculum.phases[0].epochs, found.curriculum.phases[0].steps) == (epochs, None)
    assert (found.train.per_device_train_batch_size, found.train.gradient_accumulation_steps) == batch
    assert (found.data.max_length, found.train.warmup_steps) == (tokens, warm_up)
    assert (chosen["lora.rank"], chosen["curriculum.phases.round1.epochs"]) == (rank, epochs)
    assert auto.kept(load(config), examples) == {}
    changed = {name for name, *_ in differences(found, load(config))}
    assert changed - chosen.keys() == {"curriculum.phases"}  # nothing else


def test_what_the_user_gave_stays_with_its_partner_and_is_told(config):
    given = load(
        config, ["lora.rank=4", "data.max_length=1024", "curriculum.phases.round1.steps=7", "warmup_ratio=0.2"]
    )
    found, chosen = auto.automatic(given, 106)
    assert (found.lora.rank, found.lora.alpha) == (4, 64)  # alpha 32 belongs to rank 16, not to 4
    assert (found.data.max_length, found.train.warmup_steps, found.train.warmup_ratio) == (1024, None, 0.2)
    assert (found.curriculum.phases[0].steps, found.curriculum.phases[0].epochs) == (7, None)
    assert chosen == {"train.per_device_train_batch_size": 2, "train.gradient_accumulation_steps": 4}
    kept = auto.kept(given, 106)
    assert kept == {
        "lora.rank": 4, "lora.alpha": 64.0, "curriculum.phases.round1.steps": 7, "data.max_length": 1024,
        "train.warmup_ratio": 0.2,
    }  # fmt: skip
    assert auto.words(106, chosen, kept).startswith("106 examples: train.per_device_train_batch_size 2, ")
    assert "kept as given: lora.rank 4, lora.alpha 64, " in auto.words(106, chosen, kept)


def test_what_was_chosen_once_is_not_chosen_again(config):
    """A frozen spec gives every setting, so a job repeated from it stays as it was, whatever the data are by then."""
    frozen = Settings.model_validate(dump(auto.automatic(load(config), 106)[0]))
    assert auto.automatic(frozen, 5000) == (frozen, {})
    assert "nothing left to choose; kept as given: lora.rank 16" in auto.words(5000, {}, auto.kept(frozen, 5000))


def test_several_phases_are_refused():
    pocket = load(PROJECT / "configs" / "pocket.yaml", ["train.auto=true"])
    with pytest.raises(ConfigError, match=r"holds phase1, phase2, phase3. Keep one phase, or set train.auto=false"):
        auto.automatic(pocket, 106)


def test_a_summary_must_leave_room_for_its_source(config):
    assert load(config).data.max_summary_length == 512
    assert auto.automatic(load(config), 50)[1]["data.max_summary_length"] == 256
    assert auto.automatic(load(config), 106)[0].data.max_summary_length == 512
    assert auto.automatic(load(config, ["data.max_summary_length=300"]), 50)[0].data.max_summary_length == 300
    with pytest.raises(ConfigError, match="data.max_summary_length 600 leaves nothing of it for the source"):
        auto.automatic(load(config, ["data.max_summary_length=600"]), 50)


def test_only_auto_may_leave_the_length_open(config):
    with pytest.raises(ConfigError, match="round1: give either epochs or steps"):
        load(config, ["train.auto=false"])
    with pytest.raises(ConfigError, match="give either epochs or steps, not both"):
        load(config, ["curriculum.phases.round1.steps=7", "curriculum.phases.round1.epochs=2"])


@pytest.mark.parametrize(
    ("settings", "steps", "expected"),
    [
        ({}, 100, 5),  # 0.05
        ({}, 101, 6),  # rounded up
        ({}, 1, 0),
        ({}, 2, 1),
        ({"warmup_ratio": 0.99}, 10, 9),  # 10 would be all of them
        ({"warmup_ratio": 0.0}, 10, 0),
        ({"warmup_steps": 10}, 67, 10),
        ({"warmup_steps": 10, "warmup_ratio": 0.5}, 67, 10),  # steps win
        ({"warmup_steps": 0, "warmup_ratio": 0.5}, 67, 0),
        ({"warmup_steps": 50}, 50, 49),
        ({"warmup_steps": 50}, 1, 0),
    ],
)
def test_warm_up_steps(settings, steps, expected):
    assert auto.warmup(Train(**settings), steps) == expected


# -- queueing -------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRIDSUM_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return Home.find()


def test_a_queued_job_has_the_resolved_values_and_says_so(home, config):
    records = Records(home.records)
    drafted = draft(home, records, Request("pipeline", load(config), str(config)))
    corpus = drafted.corpus
    examples = len(corpus.papers) + len(corpus.videos) + len(corpus.pairs)
    assert (
        drafted.auto["examples"] == examples < 86 - len(corpus.fisher) + 1
    )  # of 40 + 40 + 6 records some are held out
    (plan,) = drafted.schedule.phases
    assert (drafted.schedule.batch_records, plan.steps) == (8, -(-10 * (len(corpus.papers) + len(corpus.videos)) // 8))
    jobs = enter(home, records, drafted)
    for job in jobs:
        spec, settings = read_spec(home.spec(job.id))
        assert spec["auto"] == drafted.auto
        assert (settings.lora.rank, settings.data.max_length, settings.train.warmup_steps) == (8, 512, examples // 10)
    said = f"{examples} examples: lora.rank 8, lora.alpha 16, curriculum.phases.round1.epochs 10"
    value = show.full_value(home, records, jobs[-1].id)
    assert value["auto"] == drafted.auto and said in show.details(value)
    spec, settings = read_spec(home.spec(jobs[-1].id))
    for facts in (
        preview.rows(Request("pipeline", load(config), str(config)), drafted),
        preview.settings_rows(settings, spec, {}),
    ):
        assert said in next(fact.text for fact in facts if fact.name == "auto")
        assert f"warm-up {examples // 10} steps" in next(fact.text for fact in facts if fact.name == "rates")


def test_the_phase_chosen_by_number_keeps_what_was_given(home, config):
    """Selecting a phase must not make every default count as given."""
    request = Request("phase", load(config, ["lora.rank=4"]), str(config), phase="1")
    drafted = draft(home, Records(home.records), request)
    assert drafted.auto["kept"] == {"lora.rank": 4, "lora.alpha": 64.0}
    assert drafted.auto["chosen"]["data.max_length"] == 512


def test_without_auto_nothing_is_said(home, tiny_data):
    drafted = draft(home, Records(home.records), Request("pipeline", load(tiny_data / "tiny.yaml"), "tiny.yaml"))
    assert drafted.auto is None and all("auto" not in spec["job"] for _, spec in drafted.jobs)


def test_the_queue_command_prints_the_choice(home, config, monkeypatch, capsys):
    monkeypatch.setattr("jobs.steer.ensure_running", lambda home: None)
    assert main(["queue", "phase", str(config), "--json"], dashboard=None) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["run"] == "auto-1"
    assert "auto: " in printed.err and "lora.rank 8" in printed.err


def test_a_refusal_is_one_line_and_queues_nothing(home, tiny_data, monkeypatch, capsys):
    arguments = ["queue", "pipeline", str(tiny_data / "tiny.yaml"), "train.auto=true"]
    assert main(arguments, dashboard=None) == 2
    assert "train.auto: the epochs it chooses are for one round" in capsys.readouterr().err
    assert Records(home.records).jobs() == {}
