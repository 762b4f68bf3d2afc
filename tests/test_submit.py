"""From settings to jobs: what a request becomes, and what is refused before anything is queued."""

import json

import pytest

from engine.configs import dump, load
from engine.settings import ConfigError
from jobs.home import Home
from jobs.records import Records
from jobs.submit import Request, draft, enter, fingerprint, read_spec


@pytest.fixture
def home(tmp_path):
    made = Home(tmp_path / "home")
    made.jobs.mkdir(parents=True)
    return made


def request(tiny_data, kind="pipeline", *overrides: str, **fields) -> Request:
    return Request(kind, load(tiny_data / "tiny.yaml", overrides), "tiny.yaml", **fields)


def kinds(drafted) -> list[tuple]:
    return [(job.kind, job.phase, job.after) for job, _ in drafted.jobs]


def test_a_pipeline_is_a_chain(home, tiny_data):
    drafted = draft(home, Records(home.records), request(tiny_data))
    assert drafted.run == "tiny-1"
    assert kinds(drafted) == [
        ("base", None, None), ("evaluate", "base", "#0"), ("phase", "phase1", "#1"), ("evaluate", "phase1", "#2"),
        ("phase", "phase2", "#3"), ("evaluate", "phase2", "#4"),
    ]  # fmt: skip
    jobs = enter(home, Records(home.records), drafted)
    assert [job.after for job in jobs] == [None, "1", "2", "3", "4", "5"]
    spec, settings = read_spec(home.spec(jobs[4].id))
    assert spec["start_from"] == str(home.final("tiny-1", "phase1")) and settings.data.papers.is_absolute()


def test_a_second_run_waits_for_the_base_of_the_first(home, tiny_data):
    records = Records(home.records)
    enter(home, records, draft(home, records, request(tiny_data)))
    second = draft(home, records, request(tiny_data))
    assert (second.run, kinds(second)[0]) == ("tiny-2", ("evaluate", "base", "1"))


def test_a_base_depends_on_what_it_is_trained_on_and_nothing_else(home, tiny_data):
    def name(*overrides: str) -> str:
        drafted = draft(home, Records(home.records), request(tiny_data, "pipeline", *overrides))
        return fingerprint(load(tiny_data / "tiny.yaml", overrides), drafted.corpus)

    papers_only = "curriculum.phases=[{name: phase1, mixture: {papers: 1}, steps: 2}]"
    assert name() == name("data.pairs=null", papers_only, "lora.rank=2", "train.seed=4")
    assert len({name(), name("model.build.steps=7"), name("data.max_length=300"), name("data.fisher_share=0.3")}) == 4


def test_a_model_by_name_or_folder_needs_no_base_job(home, tiny_data, tiny_base, tmp_path):
    for model in ("some/model-on-the-hub", str(tiny_base)):
        drafted = draft(
            home,
            Records(home.records),
            request(tiny_data, "pipeline", "model.build=null", f"model.name_or_path={model}"),
        )
        assert kinds(drafted)[0] == ("evaluate", "base", None)
        assert all(spec["job"]["model"] == model for _, spec in drafted.jobs)
    with pytest.raises(ConfigError, match="not a model folder, config.json is missing"):
        draft(
            home,
            Records(home.records),
            request(tiny_data, "pipeline", "model.build=null", f"model.name_or_path={tmp_path}"),
        )
    with pytest.raises(ConfigError, match="model.name_or_path: missing"):
        draft(home, Records(home.records), request(tiny_data, "pipeline", "model.build=null"))


@pytest.mark.parametrize(
    ("kind", "overrides", "fields", "complaint"),
    [
        ("phase", [], {"phase": "9"}, "phase 9: not in tiny.yaml. It has phase1, phase2"),
        ("phase", [], {}, "holds the phases phase1, phase2. Choose one with --phase"),
        ("phase", [], {"phase": "2"}, "goes on from phase1 of a run. Name the run with --run"),
        ("phase", [], {"phase": "2", "run": "r"}, "queue phase tiny.yaml --phase phase1 --run r"),
        ("pipeline", [], {"run": "../x"}, "use letters, digits"),
        ("pipeline", [], {"run": "bases"}, "not 'base' or 'bases'"),
        ("pipeline", [], {"after": "77"}, "job 77: no such job"),
        ("pipeline", ["data.fisher_share=0"], {}, "no document is held out for the Fisher"),
        ("evaluate", [], {}, "--checkpoint: missing"),
        ("dance", [], {}, "unknown kind of job"),
    ],
)
def test_refusals_leave_the_ledger_empty(home, tiny_data, kind, overrides, fields, complaint):
    records = Records(home.records)
    with pytest.raises(ConfigError, match=complaint):
        enter(home, records, draft(home, records, request(tiny_data, kind, *overrides, **fields)))
    assert records.jobs() == {} and not list(home.jobs.iterdir())


def test_names_of_runs_are_not_taken_twice(home, tiny_data):
    records = Records(home.records)
    enter(home, records, draft(home, records, request(tiny_data, run="mine")))
    with pytest.raises(ConfigError, match="this run exists. Choose another name .mine-1 is free"):
        draft(home, records, request(tiny_data, run="mine"))


def finished(home, tiny_data, phase: str = "phase1", **changes):
    folder = home.final("run", phase)
    folder.mkdir(parents=True)
    settings = dump(load(tiny_data / "tiny.yaml")) | changes
    about = {"run": "run", "phase": phase, "model": "m", "parent": None, "settings": settings}
    (folder / "about.json").write_text(json.dumps(about))
    return folder


def test_evaluation_and_fisher_take_their_settings_from_the_checkpoint(home, tiny_data):
    folder = finished(home, tiny_data)
    for kind in ("evaluate", "fisher"):
        ((job, spec),) = draft(home, Records(home.records), request(tiny_data, kind, checkpoint=folder)).jobs
        assert (job.kind, job.run, job.phase) == (kind, "run", "phase1")
        assert spec["job"]["folder"] == str(folder) and spec["settings"]["lora"]["rank"] == 4


def test_checkpoints_that_cannot_serve_are_refused(home, tiny_data):
    records = Records(home.records)
    base = finished(home, tiny_data, "base")
    with pytest.raises(ConfigError, match="a base has no adapter"):
        draft(home, records, request(tiny_data, "fisher", checkpoint=base))
    other = finished(home, tiny_data, "phase2", tomorrow={"x": 1})
    with pytest.raises(ConfigError, match="not known to this version"):
        draft(home, records, request(tiny_data, "evaluate", checkpoint=other))
    with pytest.raises(ConfigError, match="Did you mean .*phase2/final"):
        draft(home, records, request(tiny_data, "evaluate", checkpoint=other.parent))
