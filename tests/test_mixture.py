"""The mixture: exact shares, whole passes, and every step a pure function of (seed, step)."""

from collections import Counter

import pytest

from engine.configs import load
from engine.mixture import Draw, block_counts, schedule
from engine.settings import ConfigError, Phase

PHASES = (
    "curriculum.phases=["
    "{name: phase1, mixture: {papers: 1.0}, epochs: 0.5},"
    "{name: phase2, mixture: {papers: 0.5, videos: 0.4, pairs: 0.1}, epochs: 1.0},"
    "{name: phase3, mixture: {papers: 0.3, videos: 0.6, pairs: 0.1}, epochs: 1.0}]"
)
SIZES = {"papers": 70, "videos": 50, "pairs": 9}  # E = 120


def plan(seed: int = 0, sizes: dict | None = None):
    given = [PHASES, "data.papers=p", "data.videos=v", "data.pairs=x", f"train.seed={seed}"]
    batch = ["train.per_device_train_batch_size=3", "train.gradient_accumulation_steps=2"]  # S = 6
    return schedule(load(None, given + batch), sizes or SIZES)


def test_phase_starts_and_counts_of_the_method():
    made = plan()
    assert [phase.start for phase in made.phases] == [0, 10, 30]
    assert [made.draws(phase) for phase in made.phases] == [
        {"papers": 60},
        {"papers": 60, "videos": 48, "pairs": 12},
        {"papers": 36, "videos": 72, "pairs": 12},
    ]


def test_the_shortest_block_with_whole_shares():
    assert block_counts(Phase(name="a", mixture={"papers": 0.5, "videos": 0.4, "pairs": 0.1}, steps=1)) == (
        ("papers", 5), ("videos", 4), ("pairs", 1),
    )  # fmt: skip
    assert block_counts(Phase(name="a", mixture={"papers": 0.25, "videos": 0.75}, steps=1)) == (
        ("papers", 1),
        ("videos", 3),
    )


def test_steps_can_be_asked_for_in_any_order():
    forward = [plan().at(step) for step in range(50)]
    made = plan()
    backward = [made.at(step) for step in reversed(range(50))]
    assert forward == backward[::-1]
    with pytest.raises(IndexError):
        made.at(50)


def test_every_pass_of_a_source_is_a_permutation_across_phases():
    made = plan()
    drawn = [draw for step in range(50) for draw in made.at(step)]
    for source, size in SIZES.items():
        order = [draw.index for draw in drawn if draw.source == source]
        for first in range(0, len(order) - size + 1, size):
            assert sorted(order[first : first + size]) == list(range(size))


def test_seeds_differ_and_repeat():
    assert plan(1).at(20) == plan(1).at(20)
    assert plan(1).at(20) != plan(2).at(20)


def test_shares_are_exact_after_each_block():
    made = plan()
    drawn = [draw.source for step in range(10, 30) for draw in made.at(step)]
    for end in range(10, len(drawn) + 1, 10):
        assert Counter(drawn[:end]) == {"papers": end // 2, "videos": end * 2 // 5, "pairs": end // 10}


def test_seen_lists_what_a_phase_drew():
    made = plan()
    first = made.phases[0]
    drawn = {draw.index for step in range(first.start, first.end) for draw in made.at(step)}
    assert made.seen(first, "papers") == sorted(drawn)


def test_passes_over_the_run():
    assert plan().passes() == pytest.approx({"papers": 156 / 70, "videos": 120 / 50, "pairs": 24 / 9})


def test_a_source_without_records_is_refused():
    with pytest.raises(ConfigError, match="phase2 mixes pairs"):
        plan(sizes={"papers": 70, "videos": 50, "pairs": 0})


def test_draws_are_tuples_of_source_and_index():
    assert isinstance(plan().at(0)[0], Draw)
