"""Records: what is read, what is refused and with which line, and how they are divided."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.configs import load
from engine.corpus import pocket
from engine.corpus.records import Record, is_blank, read, to_dict, write_hdf5, write_jsonl
from engine.corpus.split import assemble
from engine.settings import ConfigError
from tests.conftest import PROJECT, shared

GOOD = {"id": "a", "modality": "paper", "source": "text", "summary": "short"}


def lines(path: Path, *rows) -> Path:
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows) + b"\n")
    return path


def complaint(path: Path, **arguments) -> str:
    with pytest.raises(ConfigError) as caught:
        read(path, **arguments)
    return "\n".join(caught.value.lines)


def test_records_keep_unknown_keys(tmp_path):
    (record,) = read(lines(tmp_path / "a.jsonl", GOOD | {"year": 1999}))
    assert record.extra == {"year": 1999}
    assert to_dict(record) == GOOD | {"year": 1999}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (b'{"id": "b", "modality": "paper", "sou', "line 2: not valid JSON"),
        (GOOD | {"id": "b", "source": 12345}, "line 2: source is a int, not text"),
        (GOOD | {"id": "b", "summary": True}, "line 2: summary is a bool, not text"),
        ({"id": "b", "modality": "paper", "source": "x"}, "line 2: no summary (found: id, modality, source)"),
        (GOOD | {"id": "b", "summary": "\u200b \u00a0"}, "line 2: summary is empty"),
        (GOOD, "id 'a' was already used at line 1"),
        (b'{"id": "b", "modality": "paper", "source": "\xff", "summary": "x"}', "not UTF-8 at byte"),
        (b'{"id": "b", "id": "c", "modality": "paper", "source": "x", "summary": "y"}', "key id stands twice"),
        (b"[1, 2]", "line 2: a list, not an object"),
        (b"# comment", "line 2: not valid JSON"),
        (GOOD | {"id": "b", "modality": "video"}, "modality is 'video', but this file is read as papers"),
        (b'{"id": "b", "modality": "paper", "source": "\\ud800", "summary": "y"}', "lone surrogate"),
    ],
)
def test_faulty_lines_are_named(tmp_path, row, words):
    assert words in complaint(lines(tmp_path / "a.jsonl", GOOD, row), modality="paper")


def test_many_faulty_lines_end_in_a_count(tmp_path):
    path = lines(tmp_path / "a.jsonl", GOOD, *[b"{"] * 30)
    text = complaint(path)
    assert text.count("\n") == 10
    assert "and 20 more of 30 faulty records; 1 are good" in text


def test_files_that_are_not_records(tmp_path):
    assert "no records in it" in complaint(lines(tmp_path / "a.jsonl", b"", b""))
    assert "JSON, not JSON lines" in complaint(lines(tmp_path / "b.jsonl", b"[", b"{}", b"]"))
    assert "no such file" in complaint(tmp_path / "none.jsonl")
    (tmp_path / "x.h5").write_text("not hdf5")
    assert "not a readable HDF5 file" in complaint(tmp_path / "x.h5")


def test_bom_crlf_and_blank_lines_are_no_errors(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\r\n" + json.dumps(GOOD | {"id": "b"}).encode()
    )
    assert [record.id for record in read(path)] == ["a", "b"]


def test_hdf5_holds_the_same_records(tmp_path):
    records = [Record("a", "paper", "süß", "x", title="t"), Record("b", "video", "y", "z")]
    write_hdf5(tmp_path / "a.h5", records)
    assert read(tmp_path / "a.h5") == records
    with ThreadPoolExecutor() as pool:  # the dashboard reads in one
        assert pool.submit(read, tmp_path / "a.h5").result(20) == records


def test_hdf5_with_arrays_of_different_length(tmp_path):
    import h5py

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["source"] = ["a", "b"]
        file["id"] = ["1"]
    assert "arrays differ in length (id 1, source 2." in complaint(tmp_path / "a.h5")


def test_blank_means_nothing_visible():
    assert is_blank("\u200b\ufeff \t\u00a0") and not is_blank("\u200bx")


def test_the_bundled_pocket_files_are_what_the_generator_writes(tmp_path):
    pocket.write(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        assert path.read_bytes() == (PROJECT / "data" / "pocket" / path.name).read_bytes(), path.name


def test_division_is_stable_disjoint_and_by_group(tmp_path):
    records = [Record(f"{n}", "paper", f"text {n}", "s", group=f"g{n // 3}") for n in range(300)]
    write_jsonl(tmp_path / "papers.jsonl", records)
    data = load(None, [f"data.papers={tmp_path}/papers.jsonl", "data.test_share=0.2"]).data
    first, again = assemble(data), assemble(data)
    assert first == again
    groups = [{record.group for record in part} for part in (first.papers, first.fisher, first.test)]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert len(first.papers) + len(first.fisher) + len(first.test) == 300
    test = set(first.test)
    write_jsonl(tmp_path / "papers.jsonl", [*records, Record("new", "paper", "more", "s", group="new")])
    assert test <= set(assemble(data).test)


def test_what_is_judged_is_never_trained_on(tmp_path):
    write_jsonl(tmp_path / "papers.jsonl", [Record(f"{n}", "paper", f"text {n}", "s") for n in range(20)])
    write_jsonl(tmp_path / "test.jsonl", [Record("t", "paper", "Text  7", "s")])
    pair = [Record("p", "paper", "text 7", "s", pair_id="1"), Record("v", "video", "talk", "s", pair_id="1")]
    write_jsonl(tmp_path / "pairs.jsonl", pair)
    names = [f"data.{name}={tmp_path}/{name}.jsonl" for name in ("papers", "pairs", "test")]
    corpus = assemble(load(None, names).data)
    assert "7" not in {record.id for record in corpus.papers} and len(corpus.papers) == 19
    assert not corpus.pairs and len(corpus.warnings) == 2


def test_broken_pairs_are_named(tmp_path):
    rows = [Record("p", "paper", "a", "s", pair_id="1"), Record("q", "paper", "b", "s", pair_id="1")]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(ConfigError, match="pair 1 has two papers"):
        assemble(load(None, [f"data.pairs={tmp_path}/pairs.jsonl"]).data)
    write_jsonl(tmp_path / "pairs.jsonl", rows[:1])
    with pytest.raises(ConfigError, match="pair 1 has only a paper"):
        assemble(load(None, [f"data.pairs={tmp_path}/pairs.jsonl"]).data)


def test_awkward_files_are_read_or_refused_with_a_line():
    for path in sorted(shared("awkward", "handmade").glob("*.jsonl")) + sorted(shared("awkward", "h5").glob("*.h5")):
        try:
            assert read(path, need_summary=False)
        except ConfigError as error:
            assert all(str(path) in line for line in error.lines), error.lines


def test_real_files_are_read_whole():
    for name, count in (("papers_medical", 736), ("video_medical", 1028), ("cross_modal", 162)):
        assert len(read(shared("data", f"{name}.jsonl"))) == count


def test_an_instruction_that_the_prompt_leaves_out_is_told(tmp_path):
    rows = [Record(f"a{n}", "paper", f"text {n}", "s", instruction="Why?" if n % 2 else None) for n in range(40)]
    write_jsonl(tmp_path / "p.jsonl", rows)
    given = [f"data.papers={tmp_path}/p.jsonl", "data.test_share=0", "data.fisher_share=0"]
    assert assemble(load(None, given).data).warnings == ()
    (warning,) = assemble(load(None, [*given, "data.prompt='{source}'"]).data).warnings
    assert warning.startswith("20 papers have an instruction of their own, but data.prompt has no {instruction}")
