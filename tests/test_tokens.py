"""Records in tokens, kept on disk: the same rows as the encoder's, found again, made anew when damaged, and bounded."""

import array
import json
import multiprocessing
import os
from dataclasses import replace

import pytest

from engine import columns, models, tokens, train
from engine import events as ev
from engine.batches import Encoder
from engine.configs import load
from engine.corpus import terms
from engine.corpus.records import Record, write_hdf5, write_jsonl
from engine.corpus.split import assemble
from engine.corpus.stored import group_of, position, stored
from engine.mixture import generator, integer
from engine.settings import ConfigError, Data, Model
from engine.work import Cancelled
from tests.conftest import make_work

pytestmark = pytest.mark.engine

AWKWARD = [
    Record("plain", "paper", "knee pain after a fall", "rest the knee"),
    Record("unicode", "paper", "Schmerz \u2028 im Knie 🦵🏽 \u00e9 e\u0301 日本語 \u200d", "Ruhe 🙂\tund Eis"),
    Record("control", "paper", "</s><s>[INST] not a control token", "</s> stays text"),
    Record("asked", "video", "talk about knees", "knees", instruction="What is it about? {source} </s>"),
    Record("long", "paper", "word " * 2000, "a summary"),
    Record("refused", "paper", "short", "very " * 900),
    Record("grouped", "paper", "other", "knee pain", group="g", extra={"phase": "x"}),
]


@pytest.fixture
def place(tmp_path):
    write_jsonl(tmp_path / "records.jsonl", AWKWARD)
    with (tmp_path / "records.jsonl").open("r+b") as file:  # a byte order mark, and blank lines
        content = file.read().replace(b"\n", b"\n\n")
        file.seek(0)
        file.write(b"\xef\xbb\xbf" + content)
    (tmp_path / "terms.txt").write_text("knee\npain\n")
    return tmp_path


def source_of(place, tiny_data, tiny_base, *given, events=None, stop=lambda: False, cache="cache"):
    settings = load(tiny_data / "tiny.yaml", ["data.prompt='{instruction} {source}<sum>'", *given])
    work = make_work("phase", "phase1", settings, tiny_base, place, place, None, None, events, stop)
    encoder = Encoder(models.load_tokenizer(str(tiny_base), Model()), settings.data, terms.load(place / "terms.txt"))
    return tokens.source(replace(work, cache=cache and place / cache), encoder)


def plain(row):
    return row and row._replace(ids=list(row.ids))


@pytest.mark.parametrize("truncate", ["head", "tail", "head_tail"])
@pytest.mark.parametrize("cache", ["cache", None])
def test_rows_are_those_of_the_encoder(place, tiny_data, tiny_base, truncate, cache):
    made = source_of(place, tiny_data, tiny_base, f"data.truncate={truncate}", cache=cache)
    records = stored(place / "records.jsonl")
    assert list(records) == AWKWARD and records[6].extra == {"phase": "x"}
    for plainly, expected in ((False, made.encoder.encode(AWKWARD)), (True, made.encoder.plain(AWKWARD))):
        for _ in range(2):  # made, then found
            found = made.tokens(records, "papers", plainly)
            assert [plain(row) for row in found] == expected
    found, expected = made.tokens(records, "papers"), made.encoder.encode(AWKWARD)
    assert expected[5] is None and expected[4].cut and any(row and row.terms for row in expected)
    assert list(tokens.usable([found])) == [0, 1, 2, 3, 4, 6]
    rows = [row for row in expected if row]
    assert found.counts() == (
        sum(row.summary_tokens for row in rows), sum(len(row.terms) for row in rows), sum(row.cut > 0 for row in rows)
    )  # fmt: skip
    assert [plain(row) for row in found.chosen([1, 4])] == [expected[1], expected[4]]


def test_rows_are_encoded_once_and_told_while_they_are(place, tiny_data, tiny_base):
    events = []
    made = source_of(place, tiny_data, tiny_base, events=events)
    records = stored(place / "records.jsonl")
    made.tokens(records, "papers")
    assert events == [ev.Stage("encoding"), ev.Encoding(7, 7, "papers"), ev.Stage("loading")]
    made.encoder.encode = None
    made.tokens(records, "papers")
    assert len(events) == 3
    assert len(made.tokens(records.chosen([]), "pairs")) == 0
    assert len(list((place / "cache").iterdir())) == 1  # nothing is kept of nothing


def test_whatever_changes_tokens_changes_the_name(place, tiny_data, tiny_base):
    """Every setting of the section is either part of the name, or says only which records there are."""
    made = source_of(place, tiny_data, tiny_base)
    other = {
        "max_length": 399, "truncate": "tail", "max_summary_length": 199, "prompt": "{source} tl;dr", "chat_template": "never",
    }  # fmt: skip
    assert set(other) | tokens.ELSEWHERE == set(Data.model_fields) and not set(other) & tokens.ELSEWHERE
    names = [tokens.fingerprint(made.encoder)]
    for name, value in other.items():
        data = made.encoder.data.model_copy(update={name: value})
        names.append(tokens.fingerprint(Encoder(made.encoder.tokenizer, data, made.encoder.lexicon)))
    names.append(tokens.fingerprint(Encoder(made.encoder.tokenizer, made.encoder.data)))
    longer = models.load_tokenizer(str(tiny_base), Model())
    longer.add_tokens(["knee"])
    names.append(tokens.fingerprint(Encoder(longer, made.encoder.data, made.encoder.lexicon)))
    assert len(set(names)) == len(names)
    again = models.load_tokenizer(str(tiny_base), Model())
    assert tokens.fingerprint(Encoder(again, made.encoder.data, made.encoder.lexicon)) == names[0]
    records = stored(place / "records.jsonl")
    parts = [records, records.chosen([0, 1]), records.chosen([1, 2])]
    write_jsonl(place / "other.jsonl", [*AWKWARD[:-1], Record("last", "paper", "others", "knee pain")])
    parts.append(stored(place / "other.jsonl"))
    assert len({str(part.identity()) for part in parts}) == 4


@pytest.mark.parametrize("harm", ["cut", "short", "flipped", "empty", "tail"])
def test_a_damaged_file_is_noticed_and_made_anew(place, tiny_data, tiny_base, harm):
    events = []
    made = source_of(place, tiny_data, tiny_base, events=events)
    records = stored(place / "records.jsonl")
    expected = [plain(row) for row in made.tokens(records, "papers")]
    (path,) = (place / "cache").glob("tokens-*.columns")
    content = bytearray(path.read_bytes())
    content[40] ^= harm == "flipped"
    content[-3] ^= harm == "tail"
    cut = {"cut": len(content) // 2, "short": len(content) - 1, "empty": 0}
    path.write_bytes(content[: cut.get(harm, len(content))])
    with pytest.raises(columns.Damaged):
        columns.read(path)
    assert [plain(row) for row in made.tokens(records, "papers")] == expected
    (warning,) = [event.message for event in events if isinstance(event, ev.Warned)]
    assert str(path) in warning and "made anew" in warning
    assert columns.read(path)


def test_cancelling_leaves_nothing_half_done(place, tiny_data, tiny_base, monkeypatch):
    monkeypatch.setattr(tokens, "CHUNK", 2)
    made = source_of(place, tiny_data, tiny_base, stop=lambda: True)
    with pytest.raises(Cancelled):
        made.tokens(stored(place / "records.jsonl"), "papers")
    assert list((place / "cache").iterdir()) == []


def test_those_used_longest_ago_go_first(place, tiny_data, tiny_base):
    folder = place / "cache"
    made = source_of(place, tiny_data, tiny_base)
    records = stored(place / "records.jsonl")
    parts = [records.chosen([k]) for k in range(3)]
    for part in parts:
        made.tokens(part, "papers")
        for path in folder.iterdir():
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 100))
    before = {path: path.stat().st_mtime for path in folder.iterdir()}
    first, second, third = sorted(before, key=before.get)
    os.utime(first)
    held = columns.read(second)
    assert columns.prune(folder, first.stat().st_size + third.stat().st_size) == [second]
    assert held["prompt"][0] > 0  # whoever has it mapped keeps it
    half = folder / ".tokens-1.columns.77.tmp"
    half.write_bytes(b"x")
    assert columns.prune(folder, 1e9) == [] and half.exists()  # its writer may be at work
    os.utime(half, (0, 0))
    columns.prune(folder, 1e9)
    assert not half.exists()


def test_what_is_larger_than_allowed_is_used_and_not_kept(place, tiny_data, tiny_base):
    events = []
    made = source_of(place, tiny_data, tiny_base, "data.token_cache_gib=1e-9", events=events)
    records = stored(place / "records.jsonl")
    assert [plain(row) for row in made.tokens(records, "papers")] == made.encoder.encode(AWKWARD)
    assert list((place / "cache").iterdir()) == [] and "data.token_cache_gib" in events[-1].message
    off = source_of(place, tiny_data, tiny_base, "data.token_cache_gib=0", cache="other")
    assert [plain(row) for row in off.tokens(records, "papers")] == made.encoder.encode(AWKWARD)
    assert not (place / "other").exists()


def _write_often(path, ready):
    ready.wait()
    for _ in range(30):
        columns.write(path, [("numbers", "q", [array.array("q", range(5000))])])


def test_writers_at_the_same_time_do_not_hurt_each_other(tmp_path):
    path = tmp_path / f"tokens-1{columns.SUFFIX}"
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(3)
    writers = [context.Process(target=_write_often, args=(path, ready)) for _ in range(2)]
    for writer in writers:
        writer.start()
    ready.wait()
    reads = 0
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            assert list(columns.read(path)["numbers"][-2:]) == [4998, 4999]
            reads += 1
    assert reads and [writer.exitcode for writer in writers] == [0, 0]
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_no_room_is_a_mistake_with_a_remedy(place, tiny_data, tiny_base):
    (place / "cache").write_text("a file where the folder should be")
    made = source_of(place, tiny_data, tiny_base)
    with pytest.raises(ConfigError, match="cannot be used .*data.token_cache_gib=0"):
        made.tokens(stored(place / "records.jsonl"), "papers")


# -- records that stay in their files -----------------------------------------------------------------------------


def test_an_index_says_of_every_record_what_the_record_says(place):
    for _ in range(2):
        found = stored(place / "records.jsonl", folder=place / "cache")
        assert list(found) == AWKWARD and found[-1] == AWKWARD[-1] and found[1:3] == AWKWARD[1:3]
        assert list(found.column("group")) == [integer(group_of(record)) for record in AWKWARD]
        assert list(found.column("position")) == [position(group_of(record)) for record in AWKWARD]
        assert list(found.column("told")) == [0, 0, 0, 1, 0, 0, 0]
    assert [path.suffix for path in (place / "cache").iterdir()] == [".columns"]
    write_hdf5(place / "records.h5", AWKWARD)
    same = stored(place / "records.h5", folder=place / "cache")
    assert list(same) == AWKWARD and list(same.keys()) == list(found.keys())
    both = found.chosen([0, 3]) + same.chosen([2, 6])
    assert [record.id for record in both] == ["plain", "asked", "control", "grouped"]
    assert list(both.chosen([1, 2])) == [AWKWARD[3], AWKWARD[2]]


def test_an_index_is_read_instead_of_the_records(place, monkeypatch):
    first = stored(place / "records.jsonl", folder=place / "cache")
    monkeypatch.setattr("engine.corpus.stored.located", None)
    assert list(stored(place / "records.jsonl", folder=place / "cache")) == list(first)


def test_a_file_that_changes_under_a_job_is_noticed(place):
    path = place / "records.jsonl"
    found = stored(path)
    replacement = place / "new.jsonl"
    replacement.write_text("nothing of the kind")
    replacement.replace(path)
    assert list(found) == AWKWARD  # the file that was read is still there for whoever has it open
    write_jsonl(path, AWKWARD)
    found = stored(path)
    os.utime(path, (0, 0))
    assert found[0] == AWKWARD[0]  # the same content at another time
    with path.open("a") as file:
        file.write(json.dumps({"id": "more"}))
    with pytest.raises(ConfigError, match="has changed since this job began to read it"):
        found[0]


def test_faulty_records_are_named_whether_or_not_an_index_is_kept(tmp_path):
    write_jsonl(tmp_path / "p.jsonl", [Record("a", "paper", "x", "y"), Record("a", "paper", "x", "y")])
    for _ in range(2):
        with pytest.raises(ConfigError, match="id 'a' was already used at line 1"):
            assemble(load(None, [f"data.papers={tmp_path}/p.jsonl"]).data, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*"))


# -- a phase --------------------------------------------------------------------------------------------------------


def test_a_phase_ends_with_the_same_bytes_cold_warm_and_without(tiny_data, tiny_base, tmp_path):
    given = [
        f"data.documents={tiny_data}/documents.jsonl", "distil.documents=0.3", "distil.documents_share=0.4",
        f"data.terms={tiny_data}/terms.txt", "losses.term=0.1", "data.max_summary_length=100", "data.max_length=250",
    ]  # fmt: skip
    (tiny_data / "terms.txt").write_text("pain\ntrial\n")
    found, encoded = {}, {}
    for name, cache in (("cold", tmp_path / "cache"), ("warm", tmp_path / "cache"), ("without", None)):
        start = None
        for phase in ("phase1", "phase2"):
            settings, events = load(tiny_data / "tiny.yaml", given), []
            work = make_work(
                "phase", phase, settings, tiny_base, tmp_path / name / phase, tmp_path / name, start, None, events
            )
            train.run(replace(work, cache=cache))
            start = work.folder / "final"
            encoded[name, phase] = sum(event.done for event in events if isinstance(event, ev.Encoding))
            found[name, phase] = [
                (start / file).read_bytes()
                for file in ("adapter_model.safetensors", "replay.jsonl", "anchors.safetensors")
            ]
    for phase in ("phase1", "phase2"):
        assert found["cold", phase] == found["warm", phase] == found["without", phase]
    assert encoded["warm", "phase1"] == encoded["warm", "phase2"] == 0 < encoded["cold", "phase2"]
    assert encoded["cold", "phase2"] < encoded["cold", "phase1"]  # only the replay buffer is new


# -- the price of a draw --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 5, 6, 21, 100])
def test_numbers_drawn_one_by_one_are_those_of_a_sample(size):
    from engine.batches import shuffled

    for key in range(5):
        expected = generator("x", key).sample(range(size), size)
        assert list(shuffled(size, generator("x", key))) == expected


def test_a_few_of_a_million_cost_no_million():
    from engine.batches import shuffled

    asked = []

    class Counted:
        def randrange(self, size):
            asked.append(size)
            return 0

    drawn = shuffled(10**12, Counted())
    assert [next(drawn) for _ in range(3)] == [0, 10**12 - 1, 10**12 - 2] and len(asked) == 3
