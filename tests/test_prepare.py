"""The way from files to records: what is counted, kept together, divided and written."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from engine.corpus import duplicates
from engine.corpus.prepare import Report, Request, run
from engine.corpus.records import read
from engine.corpus.split import assemble
from engine.settings import ConfigError
from tests.conftest import shared
from tests.test_cli import hybridsum

WORDS = [
    "knee",
    "ankle",
    "wrist",
    "elbow",
    "pain",
    "splint",
    "bandage",
    "exercise",
    "week",
    "trial",
    "patient",
    "group",
    "dose",
    "relief",
    "swelling",
    "heat",
    "cold",
    "rest",
    "walk",
    "lift",
]


def document(number: int, length: int = 60) -> str:
    chance = np.random.default_rng(number)
    return " ".join(chance.choice(WORDS, length))


def lines(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def good(number: int, **more) -> dict:
    return {"id": f"r{number}", "modality": "paper", "source": document(number), "summary": f"s {number}"} | more


def prepare(*inputs: Path, kind: str = "papers", out: Path, **options) -> tuple[Report, list[str]]:
    said: list[str] = []
    return run(Request(inputs, kind, out, **options), said.append), said


def test_counts_add_up_and_every_refusal_is_kept(tmp_path):
    path = lines(
        tmp_path / "a.jsonl",
        [good(1), good(1), {"id": "x"}, good(2, summary=[1]), good(3, title=4), good(4, modality="video")],
    )
    report, said = prepare(path, out=tmp_path / "o.jsonl")
    assert (report.read, report.written) == (6, 2)
    assert report.refused == {"id used twice": 1, "no source": 1, "summary is not text": 1, "another modality": 1}
    assert report.warnings == {"title is not text": 1}
    log = rows_of(tmp_path / "o.report.jsonl")
    assert [entry["where"] for entry in log if entry["what"] == "refused"] == ["line 2", "line 3", "line 4", "line 6"]
    assert all(str(path) in line for line in said)
    assert [record.id for record in read(tmp_path / "o.jsonl")] == ["r1", "r3"]


def test_strict_stops_at_the_first_refusal_and_writes_nothing(tmp_path):
    report, _ = prepare(lines(tmp_path / "a.jsonl", [good(1), {}, 5]), out=tmp_path / "o.jsonl", strict=True)
    assert "line 2: no source" in report.failed and sum(report.refused.values()) == 1
    assert not (tmp_path / "o.jsonl").exists()


def test_a_share_of_refusals_above_the_limit_fails(tmp_path):
    path = lines(tmp_path / "a.jsonl", [good(1), {}, {}])
    assert "66.7% of 3 were refused" in prepare(path, out=tmp_path / "o.jsonl", max_refused=0.5)[0].failed
    assert not prepare(path, out=tmp_path / "o.jsonl", max_refused=0.7)[0].failed
    assert "nothing is written" in prepare(lines(tmp_path / "b.jsonl", [{}]), out=tmp_path / "p.jsonl")[0].failed


def test_mistakes_in_the_call_are_named_together(tmp_path):
    with pytest.raises(ConfigError) as caught:
        prepare(tmp_path / "none", kind="poems", out=tmp_path / "o.txt", split=(0.5, 0.6))
    assert len(caught.value.lines) == 4
    path = lines(tmp_path / "a.jsonl", [good(1)])
    with pytest.raises(ConfigError, match="would be overwritten"):
        prepare(path, out=path)


def test_control_characters_and_line_ends_are_unified(tmp_path):
    row = good(1, source="a\r\nb\x1b[31mred\x1b[0m\x00\x07", title="\x1b]0;owned\x07title", id=" r\x1b[1m1 ")
    report, _ = prepare(lines(tmp_path / "a.jsonl", [row]), out=tmp_path / "o.jsonl")
    (record,) = read(tmp_path / "o.jsonl")
    assert (record.source, record.title, record.id) == ("a\nbred", "title", "r1")
    assert report.warnings["control characters removed"] == 1


def test_hdf5_and_json_lines_hold_the_same(tmp_path):
    rows = [good(n, title="ü" if n % 2 else None, year=n) for n in range(1100)]
    prepare(lines(tmp_path / "a.jsonl", rows), out=tmp_path / "a.h5")
    prepare(tmp_path / "a.h5", out=tmp_path / "b.jsonl")
    expected = [{key: value for key, value in row.items() if value is not None} for row in rows]
    assert rows_of(tmp_path / "b.jsonl") == expected
    records = read(tmp_path / "a.h5")
    assert records == read(tmp_path / "b.jsonl") and records[7].extra == {"year": 7}


def test_near_duplicates_and_groups_lie_in_one_part(tmp_path):
    rows = []
    for number in range(200):
        text = document(number, 120)
        changed = text.replace(text.split()[60], "CHANGED.", 1)
        rows += [
            good(number, source=text),
            good(number + 1000, source=changed),
            good(number + 2000, source=document(number + 5000), group=f"g{number % 40}"),
        ]
    report, _ = prepare(lines(tmp_path / "a.jsonl", rows), out=tmp_path / "o.jsonl", split=(0.8, 0.1, 0.1))
    parts = {name: rows_of(tmp_path / f"o_{name}.jsonl") for name in ("train", "val", "test")}
    assert sum(map(len, parts.values())) == report.written == 600 and len(parts["val"]) and len(parts["test"])
    where = {row["id"]: name for name, part in parts.items() for row in part}
    assert all(where[f"r{n}"] == where[f"r{n + 1000}"] for n in range(200))
    for group in range(40):
        assert len({where[f"r{n + 2000}"] for n in range(group, 200, 40)}) == 1
    assert report.warnings["near-duplicate or shared group"] == 400
    assert 0.65 < len(parts["train"]) / 600 < 0.95


def test_documents_that_share_words_only_are_not_near_duplicates(tmp_path):
    report, _ = prepare(lines(tmp_path / "a.jsonl", [good(n) for n in range(300)]), out=tmp_path / "o.jsonl")
    assert not report.warnings


def test_a_split_is_the_same_again_and_stays_when_records_are_added(tmp_path):
    first = lines(tmp_path / "a.jsonl", [good(n) for n in range(200)])
    prepare(first, out=tmp_path / "o.jsonl", split=(0.7, 0.3))
    before = (tmp_path / "o_train.jsonl").read_bytes(), (tmp_path / "o_val.jsonl").read_bytes()
    prepare(first, out=tmp_path / "o.jsonl", split=(0.7, 0.3))
    assert before == ((tmp_path / "o_train.jsonl").read_bytes(), (tmp_path / "o_val.jsonl").read_bytes())
    more = lines(tmp_path / "b.jsonl", [good(n) for n in range(250, 200, -1)])
    prepare(more, first, out=tmp_path / "o.jsonl", split=(0.7, 0.3))
    assert set(before[1].splitlines()) <= set((tmp_path / "o_val.jsonl").read_bytes().splitlines())


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (2, [2]), (3, [1, 1, 1]), (10, [8, 1, 1])])
def test_small_sets_have_no_empty_part(tmp_path, count, sizes):
    report, _ = prepare(
        lines(tmp_path / "a.jsonl", [good(n) for n in range(count)]), out=tmp_path / "o.jsonl", split=(0.8, 0.1, 0.1)
    )
    assert sorted(report.files.values(), reverse=True) == sizes
    assert str(tmp_path / "o_train.jsonl") in report.files


def test_groups_of_prepare_hold_in_training_too(tmp_path):
    """assemble() divides by `group`; near-duplicates must not lie on both sides of that division either."""
    from engine.configs import load

    rows = [good(n, source=document(n % 50, 120) + (" changed" if n >= 50 else ""), id=f"r{n}") for n in range(100)]
    prepare(lines(tmp_path / "a.jsonl", rows), out=tmp_path / "o.jsonl")
    corpus = assemble(load(None, [f"data.papers={tmp_path}/o.jsonl", "data.test_share=0.3"]).data)
    test = {int(record.id[1:]) % 50 for record in corpus.test}
    assert test and not test & {int(record.id[1:]) % 50 for record in corpus.papers}


def test_pairs_are_whole_or_listed(tmp_path):
    rows = [
        good(n, pair_id=pair, modality=side)
        for n, (pair, side) in enumerate(
            [("a", "paper"), ("b", "paper"), ("a ", "video"), ("c", "paper"), ("c", "paper"), ("", "video")]
        )
    ]
    report, said = prepare(lines(tmp_path / "a.jsonl", rows), kind="pairs", out=tmp_path / "o.jsonl")
    assert (report.read, report.written) == (6, 2)
    assert report.refused == {"no whole pair": 3, "no side of a pair": 1}
    assert any("'b': only a paper" in line for line in said) and any(
        "'c': papers: 2, videos: 0" in line for line in said
    )


def test_drop_duplicates_keeps_the_first(tmp_path):
    rows = [good(1), good(2, source=document(1).upper()), good(3)]
    report, _ = prepare(lines(tmp_path / "a.jsonl", rows), out=tmp_path / "o.jsonl", drop_duplicates=True)
    assert report.written == 2 and report.refused == {"text of an earlier record": 1}


def test_the_estimate_of_similarity_is_near_the_true_one():
    """Jaccard similarity of shingles, counted by hand, against 64 permutations (standard error 0.06)."""
    differences = []
    for number in range(40):
        words = document(number, 200).split()
        other = [*words]
        other[number * 4] = "another"
        sets = [{tuple(text[n : n + 5]) for n in range(196)} for text in (words, other)]
        true = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        one, two = (duplicates.signature(" ".join(text)) for text in (words, other))
        differences.append((one == two).mean() - true)
    assert abs(np.mean(differences)) < 0.03 and np.std(differences) < 0.08
    assert (duplicates.signature("Left, knee: PAIN now!") == duplicates.signature("left knee pain now")).all()


def test_seen_is_a_set():
    seen, plain = duplicates.Seen(), set()
    for number in np.random.default_rng(0).integers(1, 5000, 10_000).tolist():
        assert seen.add(number) == (number not in plain)
        plain.add(number)


def test_the_verb_prints_counts_that_are_true(tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRIDSUM_HOME", str(tmp_path))
    path = lines(tmp_path / "a.jsonl", [good(1), {}, good(2, text="x")])
    done = hybridsum("prepare", str(path), "--as", "papers", "--out", str(tmp_path / "o.jsonl"), "--json")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert (value["read"], value["written"], value["refused"]) == (3, 2, {"no source": 1})
    assert value["read"] == value["written"] + sum(value["refused"].values())
    assert len(rows_of(tmp_path / "o.jsonl")) == 2
    assert "a.jsonl: line 2: no source" in done.stderr
    failed = hybridsum("prepare", str(path), "--as", "papers", "--out", str(tmp_path / "p.jsonl"), "--strict")
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    assert hybridsum("prepare", str(path), "--out", str(tmp_path / "p.jsonl"), "--map", "x").returncode == 2


def test_real_files_counts_and_a_second_run(tmp_path):
    folder = shared("awkward", "real")
    reports = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        report, _ = prepare(folder, kind="documents", out=tmp_path / name / "o.jsonl", split=(0.8, 0.1, 0.1))
        assert report.read == report.written + sum(report.refused.values())
        assert {path: len(rows_of(Path(path))) for path in report.files} == report.files
        reports.append(report)
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    assert reports[0].refused == {"no text in it": 7} and reports[0].written == 241


HANDMADE = {  # written, and refusals by reason
    "02_wrong_types": (4, {"source is not text": 2, "summary is not text": 1, "id is not text": 1, "another modality": 1, "not an object": 4}),
    "04_duplicate_ids": (2, {"id used twice": 4}),
    "05_empty_or_missing": (2, {"source is empty": 3, "no source": 3, "no id": 1, "summary is empty": 1, "no summary": 1}),
    "06_two_megabyte_line": (2, {"another modality": 1}),
    "10_control_ansi_escaped": (4, {}),
    "12_rich_markup": (7, {}),
    "13_rtl_bidi_wide": (6, {}),
    "26_summary_longer_than_source": (3, {}),
    "27_all_records_same_text": (40, {}),
    "28_single_record": (1, {}),
    "29_hundred_thousand_char_word": (4, {}),
    "32_other_key_names": (4, {}),
    "33_instructions_in_text": (3, {}),
    "34_special_tokens_only": (4, {}),
}  # fmt: skip


BROKEN_PAIRS = "20_broken_pairs"


def test_awkward_pairs_are_listed_one_by_one(tmp_path):
    report, said = prepare(
        shared("awkward", "handmade", f"{BROKEN_PAIRS}.jsonl"), kind="pairs", out=tmp_path / "o.jsonl"
    )
    assert (report.read, report.written) == (9, 0) and "no whole pair" in report.failed
    log = rows_of(tmp_path / "o.report.jsonl")
    refused = {entry["where"]: entry["detail"] for entry in log if entry["what"] == "refused"}
    assert refused == {
        "line 1": "'p1': only a paper",
        "line 2": "'p2': papers: 2, videos: 0",
        "line 3": "'p2': papers: 2, videos: 0",
        "line 4": "'p3': papers: 1, videos: 2",
        "line 5": "'p3': papers: 1, videos: 2",
        "line 6": "'p3': papers: 1, videos: 2",
        "line 7": "no pair_id",
        "line 8": "'p4': only a paper",
        "line 9": "'P4': only a video",
    }


@pytest.mark.parametrize("name", HANDMADE)
def test_awkward_records(tmp_path, name):
    report, said = prepare(shared("awkward", "handmade", f"{name}.jsonl"), out=tmp_path / "o.jsonl")
    assert (report.written, dict(report.refused)) == HANDMADE[name]
    assert all(re.search(r"(line|file|object) ?\d*: |nearly equal", line) or ": " in line for line in said)
    written = (tmp_path / "o.jsonl").read_text()
    assert not re.search(r"\\u001b|\\u0000|\x1b", written)


def test_awkward_texts_are_kept_letter_by_letter(tmp_path):
    for name in ("12_rich_markup", "13_rtl_bidi_wide", "33_instructions_in_text"):
        path = shared("awkward", "handmade", f"{name}.jsonl")
        prepare(path, out=tmp_path / "o.jsonl")
        before, after = rows_of(path), rows_of(tmp_path / "o.jsonl")
        assert [row["source"] for row in after] == [row["source"] for row in before]
