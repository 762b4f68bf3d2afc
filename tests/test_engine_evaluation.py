"""Evaluation: generated text, scores worked out by hand, nothing scored twice, nothing lost."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from engine import models
from engine.batches import Encoder
from engine.configs import load
from engine.corpus.records import read
from engine.evaluation import metrics
from engine.evaluation import run as evaluation
from engine.evaluation.generate import batches, generate
from engine.events import Evaluated, Generated
from engine.settings import ConfigError, Model
from engine.work import Cancelled
from tests.conftest import make_work

pytestmark = pytest.mark.engine


def work_of(tiny_data, tiny_base, folder, *overrides, events=None, stop=lambda: False):
    settings = load(tiny_data / "tiny.yaml", overrides)
    return make_work(
        "evaluate", "base", settings, tiny_base, folder / "base", folder, None, tiny_data / "test.jsonl", events, stop
    )


def test_rouge_by_hand():
    scores = metrics.rouge("the cat sat on the mat", "the cat lay on a mat")
    assert scores["rouge1"] == pytest.approx(2 * (4 / 6) * (4 / 6) / (4 / 6 + 4 / 6))  # the, cat, on, mat
    assert scores["rouge2"] == pytest.approx(1 / 5)  # the cat
    assert scores["rougeL"] == pytest.approx(4 / 6)
    assert metrics.rouge("x", " ") == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}
    assert metrics.rouge("studies", "study")["rouge1"] == 1.0  # stemmed


def test_means_of_a_column_by_hand():
    rows = [
        {"scores": {"rouge1": 1.0, "rouge2": 0.5, "rougeL": 0.2, "nll": 1.0}, "summary_tokens": 1, "output": "a"},
        {"scores": {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0, "nll": 3.0}, "summary_tokens": 3, "output": ""},
    ]
    assert metrics.summarise(rows) == {"rouge1": 50, "rouge2": 25, "rougeL": 10, "nll": 2.5, "empty": 50, "n": 2}


def test_batched_generation_writes_what_each_prompt_gets_alone(tiny_data, tiny_base):
    models.prepare(load(tiny_data / "tiny.yaml").train)
    settings = load(tiny_data / "tiny.yaml")
    encoder = Encoder(models.load_tokenizer(str(tiny_base), Model()), settings.data)
    model = models.load_base(str(tiny_base), Model()).double()
    records = read(tiny_data / "test.jsonl")
    together = {o.index: o.tokens for batch in generate(model, encoder, records, 6, 4) for o in batch}
    for index, prompt in enumerate(encoder.prompts(records, 6)):
        ids, written = torch.tensor([prompt.ids]), []
        for _ in range(6):
            token = int(model(input_ids=ids, use_cache=False).logits[0, -1].argmax())
            written.append(token)
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
            if token == encoder.tokenizer.eos_token_id:
                break
        assert together[index] == written


def test_reference_nll_equals_pytorch(tiny_data, tiny_base):
    settings = load(tiny_data / "tiny.yaml")
    encoder = Encoder(models.load_tokenizer(str(tiny_base), Model()), settings.data)
    model = models.load_base(str(tiny_base), Model())
    encoded = encoder.encode(read(tiny_data / "test.jsonl"))[3:7]
    for value, document in zip(evaluation.reference_nll(model, encoded, 0), encoded, strict=True):
        logits = model(input_ids=torch.tensor([document.ids]), use_cache=False).logits[0, document.prompt - 1 : -1]
        plain = functional.cross_entropy(logits, torch.tensor(document.ids[document.prompt :]))
        assert value == pytest.approx(plain.item(), abs=1e-4)


def test_batches_are_fixed_longest_first(tiny_data, tiny_base):
    encoder = Encoder(models.load_tokenizer(str(tiny_base), Model()), load(tiny_data / "tiny.yaml").data)
    prompts = encoder.prompts(read(tiny_data / "test.jsonl"), 8)
    made = batches(prompts, 4)
    lengths = [len(prompts[index].ids) for batch in made for index in batch]
    assert lengths == sorted(lengths, reverse=True) and sorted(i for b in made for i in b) == list(range(10))


def test_an_evaluation_is_stored_once_and_reused(tiny_data, tiny_base, tmp_path):
    events = []
    result = evaluation.run(work_of(tiny_data, tiny_base, tmp_path / "run1", events=events))
    rows = [json.loads(line) for line in Path(result["path"]).read_text().splitlines()]
    assert [row["id"] for row in rows] == [record.id for record in read(tiny_data / "test.jsonl")]
    assert all(math.isfinite(row["scores"]["nll"]) and row["source_tokens"] > 0 for row in rows)
    papers = [row for row in rows if row["modality"] == "paper"]
    assert result["metrics"]["papers"]["rougeL"] == pytest.approx(100 * sum(r["scores"]["rougeL"] for r in papers) / 5)
    assert [event.done for event in events if isinstance(event, Generated)] == [0, 4, 8, 10]
    for folder in ("run1", "run2"):  # again, and from another run with the same base
        events = []
        again = evaluation.run(work_of(tiny_data, tiny_base, tmp_path / folder, events=events))
        assert again["metrics"] == result["metrics"]
        assert not [event for event in events if isinstance(event, Generated)]
        assert [event for event in events if isinstance(event, Evaluated)]
    changed = []
    evaluation.run(work_of(tiny_data, tiny_base, tmp_path / "run1", "generate.max_new_tokens=5", events=changed))
    assert [event for event in changed if isinstance(event, Generated)]


def test_a_stopped_evaluation_goes_on_and_gives_the_same_file(tiny_data, tiny_base, tmp_path):
    whole = evaluation.run(work_of(tiny_data, tiny_base, tmp_path / "x" / "whole"))
    calls = []

    def stop():
        calls.append(1)
        return len(calls) > 2

    with pytest.raises(Cancelled):
        evaluation.run(work_of(tiny_data, tiny_base, tmp_path / "y" / "cut", stop=stop))
    (partial,) = (tmp_path / "y" / "cut" / "base" / "evaluations").glob(".*.partial")
    partial.write_bytes(partial.read_bytes() + b'[{"torn')
    events = []
    again = evaluation.run(work_of(tiny_data, tiny_base, tmp_path / "y" / "cut", events=events))
    assert [event.done for event in events if isinstance(event, Generated)] == [8, 10]
    assert Path(again["path"]).read_bytes() == Path(whole["path"]).read_bytes()
    assert not partial.exists()


def test_samples_limit_each_modality(tiny_data, tiny_base, tmp_path):
    result = evaluation.run(work_of(tiny_data, tiny_base, tmp_path / "run", "evaluate.samples=2"))
    assert {column: values["n"] for column, values in result["metrics"].items()} == {"papers": 2, "videos": 2}


def test_a_checkpoint_that_is_none_is_refused(tiny_data, tiny_base, tmp_path):
    settings = load(tiny_data / "tiny.yaml")
    work = make_work(
        "evaluate", "phase1", settings, tiny_base, tmp_path / "final", tmp_path, None, tiny_data / "test.jsonl"
    )
    with pytest.raises(ConfigError, match="not a checkpoint"):
        evaluation.run(work)
