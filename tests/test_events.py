"""Events: one line each, readable while they are written."""

import math
from concurrent.futures import ThreadPoolExecutor

from engine import events as ev

STEP = ev.Step(3, 10, {"cross_entropy": 1.5, "ewc": 0.1}, 1.6, 1e-4, 0.7, 900.0, 1.2)


def test_an_event_comes_back_as_it_was(tmp_path):
    write = ev.Writer(tmp_path / "events.jsonl", attempt=2)
    write(STEP)
    (read,) = ev.read(tmp_path / "events.jsonl")
    assert (read.attempt, read.event) == (2, STEP)


def test_values_that_are_not_finite_become_null():
    line = ev.encode(ev.Step(1, 2, {"cross_entropy": math.nan}, math.inf, 0, 0, 0, 0), 1)
    assert b"NaN" not in line and b"Infinity" not in line
    assert ev.decode(line).event.losses == {"cross_entropy": None}


def test_encoding_is_told_with_its_progress():
    from jobs import progress, show

    fold = progress.Fold()
    for t, event in enumerate((ev.Stage("encoding"), ev.Encoding(20_000, 1_000_000, "papers"))):
        fold.add(ev.Stamped(t, 1, event))
    fold.add(ev.Stamped(3, 1, ev.Encoding(120_000, 1_000_000, "papers")))
    told = fold.progress
    assert (told.stage, told.done, told.total, told.eta) == ("encoding", 120_000, 1_000_000, 880_000 / 50_000)
    event = ev.decode(ev.encode(ev.Encoding(120_000, 1_000_000, "papers"), 1)).event
    assert show.line(event) == "encoding papers: 120,000 of 1,000,000 records"
    assert isinstance(event, show.FREQUENT) and show.is_last(ev.Encoding(5, 5, "papers")) and not show.is_last(event)


def test_unknown_events_and_fields_are_passed_over():
    assert ev.decode(b'{"t": 1, "attempt": 1, "event": "Later", "x": 1}') is None
    assert ev.decode(b'{"t": 1, "attempt": 1, "event": "Stage", "name": "a", "new": 2}').event == ev.Stage("a")
    assert ev.decode(b'{"t": 1, "att') is None


def test_tail_waits_for_the_end_of_a_line(tmp_path):
    path = tmp_path / "events.jsonl"
    tail = ev.Tail(path)
    assert tail() == []
    line = ev.encode(STEP, 1)
    path.write_bytes(line + line[:20])
    assert len(tail()) == 1
    with path.open("ab") as file:
        file.write(line[20:])
    assert [stamped.event for stamped in tail()] == [STEP]
    assert tail() == []


def test_two_writers_never_mix_their_lines(tmp_path):
    path = tmp_path / "events.jsonl"
    warning = ev.Warned("x" * 3000)

    def many(attempt: int) -> None:
        write = ev.Writer(path, attempt)
        for _ in range(200):
            write(warning)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(many, range(4)))
    assert len(list(ev.read(path))) == 800
    assert oct(path.stat().st_mode & 0o777) == "0o600"
