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
