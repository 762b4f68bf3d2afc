"""Augmentation in training: from the second pass on, in new rows alone, and the same again after a resume."""

from pathlib import Path

import pytest

from engine import models, replay, train
from engine.batches import Encoder
from engine.configs import load
from engine.corpus.records import Record, write_jsonl
from engine.corpus.split import assemble
from engine.evaluation import run as evaluation
from engine.material import prepare
from engine.settings import ConfigError, Model
from tests.test_engine_evaluation import work_of
from tests.test_engine_train import in_pieces, phase, steps, weights

pytestmark = pytest.mark.engine

PROCEDURE = "Module: StockControl\nThe customer must verify the dose {n}.\n\nParameters:\n- limit: {n} mg\n- client: X-{n}\n- vendor: Y\n"
STEPS = 20  # of four records: two passes and a half over the training records


@pytest.fixture(scope="module")
def given(tiny_data, tmp_path_factory) -> list[str]:
    """Settings of a phase over procedures that are read more than twice."""
    path = tmp_path_factory.mktemp("procedures") / "papers.jsonl"
    write_jsonl(path, [Record(f"p{n}", "paper", PROCEDURE.format(n=n), f"Verify {n} mg.") for n in range(40)])
    prompt = "data.prompt='{instruction} {source}<sum>'"
    return [f"data.papers={path}", prompt, f"curriculum.phases.phase1.steps={STEPS}", "data.development_share=0.1"]


def material_of(tiny_data, tiny_base, folder, *given):
    work, _ = phase(tiny_data, tiny_base, folder, "phase1", *given)
    tokenizer = models.load_tokenizer(str(tiny_base), work.settings.model)
    return prepare(work, tokenizer, models.load_base(str(tiny_base), work.settings.model))


def test_it_acts_on_new_rows_from_the_second_pass_on_and_on_nothing_else(tiny_data, tiny_base, given, tmp_path):
    plain, reworded = (
        material_of(tiny_data, tiny_base, tmp_path / name, *given, f"data.augment={name}") for name in ("false", "true")
    )
    assert plain.pools == reworded.pools and plain.fisher == reworded.fisher and plain.corpus == reworded.corpus
    changed = 0
    for step in range(STEPS):
        draws = plain.schedule.at(step)
        rows, other = plain.rows(step), reworded.rows(step)
        assert other == reworded.rows(step)  # a pure function of the step
        assert rows[len(draws) :] == other[len(draws) :]  # replay stays as it is
        for draw, one, two in zip(draws, rows, other, strict=False):
            assert two._replace(document=one.document) == one
            assert two.document.ids[two.document.prompt :] == one.document.ids[one.document.prompt :]
            changed += one != two
            assert draw.epoch or one == two
    assert changed > 0.9 * sum(draw.epoch > 0 for step in range(STEPS) for draw in plain.schedule.at(step)) > 0


def test_a_resumed_run_ends_with_the_same_bytes(tiny_data, tiny_base, given, tmp_path):
    given, found = [*given, "ewc.lambda=0"], {}
    for name, augment, looks in (("whole", "true", 1000), ("pieces", "true", 7), ("plain", "false", 1000)):
        in_pieces(tiny_data, tiny_base, tmp_path / name, "phase1", [*given, f"data.augment={augment}"], None, looks)
        found[name] = weights(tmp_path / name / "phase1" / "final")
    assert found["whole"] == found["pieces"] != found["plain"]
    work, _ = phase(tiny_data, tiny_base, tmp_path / "whole", "phase1", *given)
    originals = {record.id: record for record in assemble(work.settings.data).papers}
    kept = replay.load_buffer(tmp_path / "whole" / "phase1" / "final")
    assert kept and all(record == originals[record.id] for record in kept)


def test_a_request_that_leaves_no_room_is_refused_before_the_first_step(tiny_data, tiny_base, given, tmp_path):
    """The plain request fits beside the longest summary that is allowed, another wording of it does not."""
    tokenizer = models.load_tokenizer(str(tiny_base), Model())

    def fits(length: int) -> bool:
        encoder = Encoder(tokenizer, load(tiny_data / "tiny.yaml", [*given, f"data.max_length={length}"]).data)
        try:
            return bool(encoder.prompts([Record("", "video", "x")], encoder.data.max_summary_length))
        except ConfigError:
            return False

    tight = [*given, f"data.max_length={next(filter(fits, range(201, 400)))}", "distil.base=0", "ewc.lambda=0"]
    work, _ = phase(tiny_data, tiny_base, tmp_path / "plain", "phase1", *tight, "curriculum.phases.phase1.steps=1")
    train.run(work)
    work, events = phase(tiny_data, tiny_base, tmp_path / "augmented", "phase1", *tight, "data.augment=true")
    with pytest.raises(ConfigError, match="nothing of the source fits"):
        train.run(work)
    assert not steps(events)


def test_an_evaluation_knows_nothing_of_it(tiny_data, tiny_base, given, tmp_path):
    found = []
    for name in ("false", "true"):
        work = work_of(tiny_data, tiny_base, tmp_path / name, *given, f"data.augment={name}")
        found.append(Path(evaluation.run(work)["path"]).read_bytes())
    assert found[0] == found[1]
