"""What training will see: counts against the encoder itself, leaks by construction, samples split where the mask ends."""

import json

import pytest
from test_tui_app import dashboard, press, recorded, settle, text  # noqa: F401 - a fixture too

from engine.configs import load
from engine.corpus import leaks
from engine.corpus.records import Record, write_jsonl
from jobs import preflight
from jobs.home import Home
from tests.test_cli import hybridsum
from tests.test_prepare import document
from tui.preflight import Preflight, shown


def test_leaks_between_parts_are_found_whatever_the_case():
    def rows(name, *sources):
        return [Record(f"{name}{n}", "paper", source) for n, source in enumerate(sources)]

    parts = {
        "training": rows("t", document(1, 100), document(2, 100), document(3, 100)),
        "fisher": rows("f", document(4, 100)),
        "test": rows(
            "x", document(2, 100).upper() + ".", document(5, 100), document(4, 100).replace("knee", "knees", 1)
        ),
    }
    assert leaks.between(parts) == [
        {"parts": ["training", "test"], "count": 1, "examples": [["t1", "x0"]]},
        {"parts": ["fisher", "test"], "count": 1, "examples": [["f0", "x2"]]},
    ]
    assert leaks.between({"a": [], "b": []}) == []


def test_bars_are_as_long_as_their_counts():
    assert preflight.bars({"edges": [10, 20], "counts": [1, 4]}) == [
        f"  up to      10 {'█' * 10:<40} 1",
        f"  up to      20 {'█' * 40} 4",
    ]
    assert preflight.bars({"edges": [], "counts": []}) == []


@pytest.mark.engine
def test_histograms_count_everything_once():
    from engine.preflight import histogram

    assert histogram([1, 5, 10, 95, 100]) == {
        "edges": [10, 20, 30, 40, 50, 60, 70, 80, 90, 100],
        "counts": [3, 0, 0, 0, 0, 0, 0, 0, 0, 2],
    }
    assert histogram([]) == {"edges": [], "counts": []} and sum(histogram([1, 2, 3, 3])["counts"]) == 4


@pytest.mark.engine
def test_the_facts_are_what_the_encoder_makes(tiny_data, tiny_base, tmp_path):
    from transformers import AutoTokenizer

    from engine.batches import Encoder
    from engine.corpus.split import assemble

    words = [
        f"model.name_or_path={tiny_base}",
        "model.build=null",
        "data.max_length=180",
        "data.max_summary_length=75",
    ]
    settings = load(tiny_data / "tiny.yaml", words)
    value = preflight.facts(Home(tmp_path), settings, lambda line: None)
    corpus = assemble(settings.data)
    encoder = Encoder(AutoTokenizer.from_pretrained(tiny_base), settings.data)
    rows = [row for row in encoder.encode(corpus.papers) if row]
    papers = value["sources"]["papers"]
    assert papers["records"] == len(corpus.papers) and papers["counted"] == len(corpus.papers)
    assert papers["truncated"] == sum(row.cut > 0 for row in rows) and papers["cut_tokens"] == sum(
        row.cut for row in rows
    )
    assert papers["truncated"] > 0 and any("from the middle of the source" in line for line in value["warnings"])
    too_long = [r.id for r, row in zip(corpus.papers, encoder.encode(corpus.papers), strict=True) if row is None]
    assert rows and too_long and papers["summaries_too_long"] == too_long
    tokens = sum(part["tokens"] for part in value["sources"].values())
    assert value["label_share"] == pytest.approx(sum(p["summary_tokens"] for p in value["sources"].values()) / tokens)
    records = {
        record.id: record
        for source, n in corpus.sizes.items()
        for i in range(n)
        for record in corpus.documents(source, i)
    }
    assert len(value["samples"]) == 3
    for sample in value["samples"]:
        assert (
            records[sample["id"]].summary in sample["learnt"] and records[sample["id"]].summary not in sample["masked"]
        )
    assert "masked | " in preflight.text(value)


@pytest.mark.engine
def test_all_summaries_that_are_too_long_are_found_and_not_those_of_a_sample_only(tiny_base, monkeypatch):
    from transformers import AutoTokenizer

    from engine import preflight as counting
    from engine.batches import Encoder

    monkeypatch.setattr(counting, "SAMPLE", 3)
    monkeypatch.setattr(counting, "CHUNK", 4)
    encoder = Encoder(AutoTokenizer.from_pretrained(tiny_base), load(None, ["data.max_summary_length=9"]).data)
    texts = ["short", "ä", "knee pain and more of it, for weeks", "漢" * 40, "ok", "knee " * 30]
    records = [Record(f"r{n}", "paper", "source", texts[n % 6]) for n in range(60)]
    found = counting._counted(encoder, records, 0, "papers")
    expected = [record.id for record, row in zip(records, encoder.encode(records), strict=True) if row is None]
    assert found["counted"] == 3 and found["summaries_too_long"] == expected and 20 <= len(expected) < 60


@pytest.mark.engine
def test_the_verb_and_a_leak(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRIDSUM_HOME", str(tmp_path))
    (tmp_path / "d").mkdir()
    write_jsonl(tmp_path / "d" / "papers.jsonl", [Record(f"p{n}", "paper", document(n, 80), "s") for n in range(40)])
    write_jsonl(tmp_path / "d" / "test.jsonl", [Record("x", "paper", document(7, 80) + " more", "s")])
    names = [f"data.{name}={tmp_path}/d/{name}.jsonl" for name in ("papers", "test")]
    done = hybridsum("data", str(tiny_data / "tiny.yaml"), *names, "--json")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert [leak["count"] for leak in value["leaks"] if leak["parts"][1] == "test"] == [1]
    failed = hybridsum("data", str(tiny_data / "tiny.yaml"), "data.papers=none.jsonl")
    assert failed.returncode == 2 and "none.jsonl: no such file" in failed.stderr and "Traceback" not in failed.stderr


VALUE = {
    "sources": {"papers": {"records": 3, "counted": 3, "longest": 20, "truncated": 1, "histogram": {"edges": [10, 20], "counts": [1, 2]}}},
    "max_length": 16, "label_share": 0.25, "warnings": ["[bold]careful\x1b[2J"],
    "samples": [{"source": "papers", "id": "[/]id", "masked": "read \x1b]0;x\x07this", "learnt": "say [red]that", "cut": 1200, "cut_after": 7, "cut_text": "[@click=quit]lost"}],
}  # fmt: skip


def test_foreign_text_is_shown_and_never_obeyed():
    plain = "\n".join(line.plain for line in shown(VALUE))
    assert "[bold]careful" in plain and "[/]id" in plain and "say [red]that" in plain and "\x1b" not in plain
    assert "left out 1,200 tokens after the first 7: [@click=quit]lost" in plain


def test_long_texts_are_shown_with_both_ends():
    long = VALUE | {"samples": [VALUE["samples"][0] | {"masked": "first " + "x" * 9000 + " last"}]}
    told = "\n".join(line.plain for line in shown(long))
    assert "masked first x" in told and "x last" in told and len(told) < 3000
    assert "left out the first 5 tokens: lost" in "\n".join(
        line.plain
        for line in shown(VALUE | {"samples": [VALUE["samples"][0] | {"cut": 5, "cut_after": 0, "cut_text": "lost"}]})
    )


async def test_the_key_opens_the_data_of_a_job(tmp_path, recorded, monkeypatch):  # noqa: F811
    import shutil

    shutil.copytree(recorded, tmp_path / "h")
    monkeypatch.setattr(preflight, "facts", lambda home, settings, say: VALUE)
    async with dashboard(Home(tmp_path / "h"), (120, 36)) as pilot:
        await settle(pilot)
        screen = await press(pilot, "d")
        assert isinstance(pilot.app.screen, Preflight)
        assert "3 documents, longest 20 tokens, 33.3% longer than 16" in screen and "masked read this" in screen
        await press(pilot, "escape")
        assert not isinstance(pilot.app.screen, Preflight)
