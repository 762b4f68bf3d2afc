"""Evaluation: generated text, scores worked out by hand, nothing scored twice, nothing lost."""

import json
import math
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from engine import base, checkpoint, models
from engine.batches import Encoded, Encoder
from engine.configs import dump, load
from engine.corpus.records import read, write_hdf5, write_jsonl
from engine.evaluation import bertscore, score
from engine.evaluation import run as evaluation
from engine.evaluation.generate import KeyedSampling, batches, generate
from engine.evaluation.sentences import splitter
from engine.events import Evaluated, Generated, Stamped
from engine.settings import ConfigError, Generate, Model
from engine.work import Cancelled
from jobs import gate, show
from jobs.home import Home
from jobs.progress import Fold
from jobs.records import Records
from tests.conftest import PROJECT, make_work

pytestmark = pytest.mark.engine


def work_of(tiny_data, tiny_base, folder, *overrides, events=None, stop=lambda: False):
    settings = load(tiny_data / "tiny.yaml", overrides)
    return make_work(
        "evaluate", "base", settings, tiny_base, folder / "base", folder, None, tiny_data / "test.jsonl", events, stop
    )


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


@pytest.fixture(scope="module")
def talkative_base(tiny_base, tmp_path_factory) -> Path:
    """The tiny base with noise in its weights, so that it has more than one thing to say."""
    folder = tmp_path_factory.mktemp("talkative")
    shutil.copytree(tiny_base, folder, dirs_exist_ok=True)
    model = models.load_base(str(tiny_base), Model())
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "decoding", [Generate(num_beams=3), Generate(temperature=0.9, top_p=0.8, seed=4)], ids=["beams", "sampling"]
)
def test_the_text_does_not_depend_on_the_batch(tiny_data, talkative_base, decoding):
    models.prepare(load(tiny_data / "tiny.yaml").train)
    encoder = Encoder(models.load_tokenizer(str(talkative_base), Model()), load(tiny_data / "tiny.yaml").data)
    model = models.load_base(str(talkative_base), Model()).double()
    records = read(tiny_data / "test.jsonl")
    found = [
        {o.index: o.tokens for batch in generate(model, encoder, records, 6, size, decoding=decoding) for o in batch}
        for size in (1, 3, 10)
    ]
    assert found[0] == found[1] == found[2]
    plain = {o.index: o.tokens for batch in generate(model, encoder, records, 6, 10) for o in batch}
    assert found[0] != plain  # it is not greedy after all


def test_samples_are_distributed_as_the_model_says():
    """The argmax of keyed noise over many documents against the softmax at this temperature, cut to top_p."""
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).repeat(4000, 1)
    names = [str(k) for k in range(4000)]
    picked = KeyedSampling(Generate(temperature=0.5, top_p=0.9), names, 1)(torch.zeros(4000, 1), logits).argmax(-1)
    shares = torch.bincount(picked, minlength=4) / 4000
    squares = torch.tensor([0.25, 0.09, 0.0, 0.0])  # p^(1/0.5); the first two have 0.93 of it
    assert torch.allclose(shares, squares / squares.sum(), atol=0.025)  # 3 standard errors
    again = KeyedSampling(Generate(temperature=0.5, top_p=0.9), names[7:8], 1)(torch.zeros(1, 1), logits[:1]).argmax(-1)
    assert again == picked[7]
    other = KeyedSampling(Generate(temperature=0.5, top_p=0.9, seed=1), names, 1)(torch.zeros(4000, 1), logits)
    assert not torch.equal(other.argmax(-1), picked)


def test_a_batch_keeps_to_its_tokens():
    prompts = [Encoded([0] * length, length, 0) for length in (10, 90, 30, 30, 5)]
    assert batches(prompts, 4, budget=100, room=10) == [[1], [2, 3], [0, 4]]  # 100; 2 x 40; 2 x 20
    assert batches(prompts, 4) == [[1, 2, 3, 0], [4]]
    assert batches(prompts, 4, budget=5) == [[1], [2], [3], [0], [4]]  # one always goes


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
    (left,) = (tmp_path / "y" / "cut" / "base" / "evaluations").glob(".*.partial")
    left.write_bytes(left.read_bytes() + b'[{"torn')
    events = []
    again = evaluation.run(work_of(tiny_data, tiny_base, tmp_path / "y" / "cut", events=events))
    assert [event.done for event in events if isinstance(event, Generated)] == [8, 10]
    assert Path(again["path"]).read_bytes() == Path(whole["path"]).read_bytes()
    assert not left.exists()


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


def test_what_is_stored_is_what_the_libraries_say(tiny_data, talkative_base, tmp_path):
    """ROUGE against rouge-score, BERTScore against bert_score, both called directly on the stored outputs."""
    import bert_score
    from rouge_score import rouge_scorer

    overrides = ("evaluate.bertscore_model=bundled", f"data.terms={PROJECT}/data/pocket/terms.txt")
    result = evaluation.run(work_of(tiny_data, talkative_base, tmp_path / "run", *overrides))
    rows = [json.loads(line) for line in Path(result["path"]).read_text().splitlines()]
    direct = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for row in rows:
        for name, value in direct.score(row["reference"], row["output"]).items():
            assert row["scores"][name] == pytest.approx(value.fmeasure, abs=1e-9)
    records = read(tiny_data / "test.jsonl")
    split, name = splitter([text for record in records for text in (record.summary, record.source)])
    assert result["scored_by"]["sentences"] == name
    by_sentence = rouge_scorer.RougeScorer(["rougeLsum"], use_stemmer=True)
    for row in rows:
        found = by_sentence.score("\n".join(split(row["reference"])), "\n".join(split(row["output"])))
        assert row["scores"]["rougeLsum"] == pytest.approx(found["rougeLsum"].fmeasure, abs=1e-9)
    full = [row for row in rows if row["output"].strip()]
    folder = bertscore.judge("bundled").model
    parts = bert_score.score(
        [r["output"] for r in full], [r["reference"] for r in full], model_type=folder, num_layers=6
    )
    for name, values in zip(("precision", "recall", "f1"), parts, strict=True):
        assert [row["scores"][f"bertscore_{name}"] for row in full] == pytest.approx(values.tolist(), abs=1e-9)
    assert result["metrics"]["papers"]["bertscore_f1"] > 0 and "term_recall" in result["metrics"]["papers"]
    assert result["scored_by"]["bertscore"] == "all-MiniLM-L6-v2, layer 6"
    assert result["speed"]["tokens_per_second"] > 0 and result["speed"]["latency_p95"] >= result["speed"]["latency_p50"]
    assert 0 <= result["modality_gap"]["gap"] <= 2 and result["modality_gap"]["documents"] == [5, 5]


def test_scoring_tells_how_far_it_is(tiny_data, tmp_path, monkeypatch):
    """Each second for the metrics of words, after each chunk of documents for BERTScore; a cancel is heeded between."""
    monkeypatch.setattr(score, "REPORT_EVERY", 0.0)
    monkeypatch.setattr(score, "CHUNK", 4)
    records = read(tiny_data / "test.jsonl")
    rows = [{"reference": r.summary, "output": r.summary, "scores": {}, "modality": r.modality} for r in records]
    events = []
    given = (rows, [record.source for record in records], bertscore.judge("bundled"), None)
    score.rows(*given, emit=events.append)
    fold, told = Fold(), []
    for second, event in enumerate(events):
        fold.add(Stamped(float(second), 1, event))
        told.append((fold.progress.stage, fold.progress.done, fold.progress.eta))
    assert [stage for stage, done, _ in told if done is None] == ["scoring", "bertscore"]
    assert [done for stage, done, _ in told if stage == "scoring"] == [None, *range(11)]
    assert [done for stage, done, _ in told if stage == "bertscore"] == [None, 0, 4, 8, 10]
    assert ("scoring", 5, 5.0) in told and ("bertscore", 8, 0.5) in told  # seconds left at the pace so far
    assert show.line(events[-1]) == "scored 10/10" and show.is_last(events[-1])
    with pytest.raises(Cancelled):
        score.rows(*given, cancelled=lambda: True)


def test_a_change_of_scoring_writes_nothing_again(tiny_data, talkative_base, tmp_path):
    first = evaluation.run(work_of(tiny_data, talkative_base, tmp_path / "run"))
    events = []
    overrides = [f"data.terms={PROJECT}/data/pocket/terms.txt"]
    again = evaluation.run(work_of(tiny_data, talkative_base, tmp_path / "run", *overrides, events=events))
    assert not [event for event in events if isinstance(event, Generated)]
    assert again["fingerprint"] != first["fingerprint"] and again["outputs"] == first["outputs"]
    assert again["metrics"]["papers"]["term_recall"] is not None and "term_recall" not in first["metrics"]["papers"]
    assert again["metrics"]["papers"]["nll"] == first["metrics"]["papers"]["nll"]


def test_five_kills_leave_the_same_scores_byte_for_byte(tiny_data, talkative_base, tmp_path):
    """A process of its own, killed as soon as another batch is on disk."""
    whole = evaluation.run(work_of(tiny_data, talkative_base, tmp_path / "x" / "whole", "evaluate.batch_size=1"))
    folder = tmp_path / "y" / "cut"
    code = (
        "import sys; from pathlib import Path; from tests.test_engine_evaluation import evaluation, work_of;"
        "a = [Path(p) for p in sys.argv[1:]]; evaluation.run(work_of(*a, 'evaluate.batch_size=1'))"
    )
    command = [sys.executable, "-c", code, str(tiny_data), str(talkative_base), str(folder)]
    for kill in range(5):
        child = subprocess.Popen(command, cwd=PROJECT)
        while child.poll() is None:
            left = list((folder / "base" / "evaluations").glob(".*.partial"))
            if left and left[0].read_bytes().count(b"\n") > kill:
                child.kill()
            time.sleep(0.005)
    subprocess.run(command, cwd=PROJECT, check=True)
    assert (folder / "base" / "evaluations" / "test.jsonl").read_bytes() == Path(whole["path"]).read_bytes()


def test_other_documents_under_the_same_name_overwrite_nothing(tiny_data, tiny_base, tmp_path):
    work = work_of(tiny_data, tiny_base, tmp_path / "run")
    first = evaluation.run(work)
    write_jsonl(tmp_path / "test.jsonl", read(tiny_data / "test.jsonl")[:3])
    other = evaluation.run(replace(work, test_set=tmp_path / "test.jsonl"))
    assert other["test_set"] == f"test-{other['documents'][:6]}" and first["test_set"] == "test"
    assert len(Path(other["path"]).read_text().splitlines()) == 3
    assert len(Path(first["path"]).read_text().splitlines()) == 10
    assert evaluation.run(work)["created"] == first["created"]  # still there, and reused


def test_hdf5_and_jsonl_test_sets_give_the_same_scores(tiny_data, tiny_base, tmp_path):
    write_hdf5(tmp_path / "test.h5", read(tiny_data / "test.jsonl"))
    work = work_of(tiny_data, tiny_base, tmp_path / "x" / "run")
    plain = evaluation.run(work)
    same = evaluation.run(
        replace(work, test_set=tmp_path / "test.h5", run_folder=tmp_path / "y", folder=tmp_path / "y")
    )
    assert Path(same["path"]).read_bytes() == Path(plain["path"]).read_bytes()
    assert same["test_set"] == "test" and same["test_file"] == str(tmp_path / "test.h5")


def test_the_gate_catches_an_adapter_that_was_blown_up(tiny_data, tmp_path):
    """Three phases of one run: a small update, the same again, and the same three times as large."""
    given = [
        "evaluate.gate={metric: nll, videos: -1.0, papers: -1.0}",
        "model.build.steps=150",
        "model.build.batch_size=8",
    ]
    settings = load(tiny_data / "tiny.yaml", given)
    taught = tmp_path / "taught"  # one that has something to lose
    base.run(make_work("base", None, settings, taught, taught, tmp_path))
    model = models.attach(models.load_base(str(taught), Model()), settings.lora, 0)
    torch.manual_seed(1)
    noise = {name: torch.randn_like(p) * 0.1 for name, p in models.trainable(model).items() if "lora_B" in name}
    home = Home(tmp_path)
    home.jobs.mkdir(parents=True)
    records = Records(home.records)
    evaluation_of = partial(_evaluated, home, records, settings, tiny_data, taught)
    evaluation_of("base")
    for phase, factor in (("small", 1.0), ("same", 1.0), ("large", 3.0)):
        with torch.no_grad():
            for name, parameter in models.trainable(model).items():
                if name in noise:
                    parameter.copy_(factor * noise[name])
        checkpoint.save(home.final("run", phase), partial(_write_adapter, model, settings, phase))
        evaluation_of(phase)
    verdicts = {phase: gate.after_evaluation(home, records, "run", phase) for phase in ("small", "same", "large")}
    assert {phase: found["verdict"] for phase, found in verdicts.items()} == {
        "small": "passed", "same": "passed", "large": "failed",
    }  # fmt: skip
    assert verdicts["small"]["columns"] == verdicts["same"]["columns"]  # identical checkpoints


def _write_adapter(model, settings, phase, folder):
    model.save_pretrained(folder)
    about = {"run": "run", "phase": phase, "settings": dump(settings)}
    (folder / "about.json").write_text(json.dumps(about))


def _evaluated(home, records, settings, data, base, phase):
    work = make_work(
        "evaluate", phase, settings, base, home.final("run", phase), home.run("run"), None, data / "test.jsonl"
    )
    facts = evaluation.run(work)
    kept = {name: facts[name] for name in ("test_set", "metrics", "path", "created")}
    records.add_evaluation({"run": "run", "phase": phase, **kept})
