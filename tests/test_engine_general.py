"""General ability: plain documents are read, not summarised; their likelihood is the third column of the table."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from engine import models
from engine.batches import Encoder
from engine.configs import load
from engine.corpus.records import Record, write_jsonl
from engine.corpus.split import assemble
from engine.evaluation import run as evaluation
from engine.settings import ConfigError, Model
from tests.conftest import make_work

pytestmark = pytest.mark.engine


def test_every_token_of_a_plain_document_is_supervised_but_the_first(tiny_data, tiny_base):
    encoder = Encoder(models.load_tokenizer(str(tiny_base), Model()), load(tiny_data / "tiny.yaml").data)
    (short, long) = encoder.plain([Record("a", "document", "knee pain"), Record("b", "document", "knee pain " * 300)])
    assert encoder.decode(short.ids) == "knee pain" and short.prompt == 1
    assert (short.ids[0], short.ids[-1]) == (encoder.tokenizer.bos_token_id, encoder.tokenizer.eos_token_id)
    assert len(long.ids) == 400 and long.cut > 0


def test_the_general_column_is_the_likelihood_of_all_tokens(tiny_data, tiny_base, tmp_path):
    settings, path = load(tiny_data / "tiny.yaml"), tiny_data / "test_general.jsonl"
    work = make_work("evaluate", "base", settings, tiny_base, tmp_path / "base", tmp_path, None, path)
    result = evaluation.run(work)
    assert set(result["metrics"]) == {"papers", "videos", "general"}
    assert set(result["metrics"]["general"]) == {"nll", "n"} and result["metrics"]["general"]["n"] == 3
    rows = [json.loads(line) for line in Path(result["path"]).read_text().splitlines()]
    row = next(row for row in rows if row["modality"] == "document")
    assert row["output"] is None and row["reference"] is None
    encoder = Encoder(models.load_tokenizer(str(tiny_base), Model()), settings.data)
    (document,) = encoder.plain([next(r for r in evaluation.test_records(work)[0] if r.id == row["id"])])
    logits = models.load_base(str(tiny_base), Model())(input_ids=torch.tensor([document.ids])).logits[0, :-1]
    plain = functional.cross_entropy(logits, torch.tensor(document.ids[1:]))
    assert row["scores"]["nll"] == pytest.approx(plain.item(), abs=1e-4)


def test_documents_are_divided_like_everything_else_and_need_no_summary(tiny_data, tmp_path):
    settings = load(
        tiny_data / "tiny.yaml",
        [f"data.documents={tiny_data}/documents.jsonl", "data.test=null", "data.test_share=0.3"],
    )
    corpus = assemble(settings.data)
    held = {record.id for record in corpus.test if record.modality == "document"}
    assert held and corpus.plain and not held & {record.id for record in corpus.plain}
    write_jsonl(tmp_path / "test.jsonl", [Record("a", "paper", "some text")])
    with pytest.raises(
        ConfigError, match="record a .1 in all.: summary is missing, and only plain documents go without"
    ):
        assemble(load(tiny_data / "tiny.yaml", [f"data.test={tmp_path}/test.jsonl"]).data)


def test_development_documents_are_used_for_nothing_else(tiny_data):
    corpus = assemble(load(tiny_data / "tiny.yaml", ["data.development_share=0.3"]).data)
    parts = [corpus.papers + corpus.videos, corpus.fisher, corpus.development, corpus.test]
    ids = [{record.id for record in part} for part in parts]
    assert all(ids) and sum(map(len, ids)) == len(set().union(*ids)) == 90
    without = assemble(load(tiny_data / "tiny.yaml").data)
    assert {r.id for r in without.fisher} == ids[1] and {r.id for r in without.papers + without.videos} == ids[0] | ids[
        2
    ]
