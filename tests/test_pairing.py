"""Pairs: given ones first, mined ones mutual and one to one, the encoder in a process of its own."""

import json

import numpy as np
import pytest

from engine.corpus import pairing
from engine.corpus.records import Record, read, write_jsonl
from engine.corpus.terms import Lexicon
from tests.conftest import shared
from tests.test_cli import hybridsum


def unit(rows) -> np.ndarray:
    rows = np.asarray(rows, float)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_only_mutual_neighbours_above_the_threshold():
    papers, videos = unit([[1, 0], [1, 0.2], [0, 1]]), unit([[1, 0.21], [0.5, 1]])
    found = pairing.matches(papers, videos, [], 0.5)
    assert [(m.paper, m.video, m.given) for m in found] == [(1, 0, False), (2, 1, False)]
    assert found[1].score == pytest.approx(1 / 1.25**0.5)
    assert [m.paper for m in pairing.matches(papers, videos, [], 0.95)] == [1]


def test_mining_is_what_brute_force_finds(monkeypatch):
    monkeypatch.setattr(pairing, "BLOCK", 7)
    chance = np.random.default_rng(0)
    papers, videos = unit(chance.normal(size=(40, 5))), unit(chance.normal(size=(30, 5)))
    cosines = papers @ videos.T
    expected = {
        (a, b) for a in range(40) for b in range(30) if cosines[a, b] == cosines[a].max() == cosines[:, b].max() >= 0.6
    }
    found = pairing.matches(papers, videos, [], 0.6)
    assert {(m.paper, m.video) for m in found} == expected and len(expected) > 5
    assert [m.score for m in found] == sorted((m.score for m in found), reverse=True)


def test_given_pairs_come_first_and_are_not_mined_again():
    papers, videos = unit([[1, 0], [0, 1]]), unit([[1, 0], [0, 1]])
    found = pairing.matches(papers, videos, [(0, 1)], 0.5)
    assert [(m.paper, m.video, m.given) for m in found] == [(0, 1, True)]  # 1 and 0 are left, and far apart
    assert pairing.matches(papers, videos, [(0, 0), (1, 1)], 0.5)[1].given


def test_a_given_pair_has_one_record_on_each_side():
    papers = [Record(str(n), "paper", "x", pair_id=name) for n, name in enumerate(["a", "b ", "c", "c", None])]
    videos = [Record(str(n), "video", "x", pair_id=name) for n, name in enumerate(["b", "a", "c"])]
    assert pairing.given(papers, videos) == [(0, 1), (1, 0)]


def test_shared_terms_are_said_by_both():
    lexicon = Lexicon(("gout", "knee pain", "fever"))
    paper, video = (
        Record("p", "paper", "Gout and fever", "knee pains"),
        Record("v", "video", "my knee-pain", title="gout"),
    )
    assert pairing.shared_terms(lexicon, paper, video) == ["gout", "knee pain"]


@pytest.mark.engine
def test_the_verb_finds_the_pairs_of_real_talks(tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRIDSUM_HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = [r for r in read(shared("data", "cross_modal.jsonl"), need_summary=False) if r.pair_id.startswith("acl2023")]
    names = sorted({record.pair_id for record in rows})[:8]
    truth = {}
    for side in ("paper", "video"):
        chosen = [record for record in rows if record.modality == side and record.pair_id in names]
        truth |= {record.id: record.pair_id for record in chosen}
        bare = [
            Record(r.id, r.modality, r.source[:4000], r.summary, pair_id=r.pair_id if r.pair_id == names[0] else None)
            for r in chosen
        ]
        write_jsonl(tmp_path / f"{side}.jsonl", bare)
    done = hybridsum("pair", str(tmp_path / "paper.jsonl"), str(tmp_path / "video.jsonl"), "--out", str(tmp_path / "o.jsonl"), "--threshold", "0.4", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert [pair["given"] for pair in value["pairs"]] == [True] + [False] * (len(value["pairs"]) - 1)
    review = [json.loads(line) for line in (tmp_path / "o.review.jsonl").read_text().splitlines()]
    right = [truth[row["paper"]["id"]] == truth[row["video"]["id"]] for row in review]
    assert len(right) >= 6 and sum(right) / len(right) >= 0.85
    assert len(read(tmp_path / "o.jsonl", need_summary=False)) == 2 * len(review)


def test_faulty_files_are_named_without_a_traceback(tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRIDSUM_HOME", str(tmp_path))
    done = hybridsum(
        "pair", str(tmp_path / "none.jsonl"), str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "o.jsonl")
    )
    assert done.returncode == 2 and "no such file" in done.stderr and "Traceback" not in done.stderr
