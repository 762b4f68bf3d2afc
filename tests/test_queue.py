"""The line: JSON messages only, and Huey's own order."""

import pickle

import pytest
from huey.registry import Message

from jobs.home import Home
from jobs.queue import JsonMessages, Line


@pytest.fixture
def home(tmp_path) -> Home:
    made = Home(tmp_path)
    made.jobs.mkdir(parents=True)
    return made


def run_all(line: Line) -> None:
    while task := line._huey.dequeue():
        line._huey.execute(task)


def test_pending_is_the_order_of_execution(home):
    performed = []
    line = Line(home, performed.append)
    for job_id, priority in (("1", 0), ("2", 5), ("3", 0), ("4", -1), ("5", 5)):
        line.enqueue(job_id, priority)
    order = line.pending()
    assert order == ["2", "5", "1", "3", "4"]
    run_all(line)
    assert performed == order and line.pending() == []


def test_flush_and_reopening(home):
    Line(home).enqueue("1")
    line = Line(home)
    assert line.pending() == ["1"]
    line.flush()
    assert line.pending() == []
    assert home.queue.stat().st_mode & 0o777 == 0o600


def test_message_holds_the_id_as_json(home):
    line = Line(home)
    line.enqueue("7", 3)
    stored = bytes(line._huey.storage.enqueued_items()[0])
    assert b'"args": ["7"]' in stored and b"jobs.queue.perform" in stored


class Trap:
    """Would raise a flag if it were ever unpickled."""

    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


def test_pickles_and_objects_are_refused(home):
    messages = JsonMessages()
    with pytest.raises(ValueError):
        messages.deserialize(pickle.dumps(Trap()))
    with pytest.raises(TypeError):
        messages.serialize(object())
    with pytest.raises(TypeError):
        messages.serialize(Message("id", "name", args=(object(),), kwargs={}))
    for content in (b"[]", b'"x"', b'{"args": 3}', b"null"):
        with pytest.raises(ValueError):
            messages.deserialize(content)
    assert not Trap.sprung


def test_a_foreign_message_in_the_file_runs_nothing_and_blocks_nothing(home):
    performed = []
    line = Line(home, performed.append)
    line._huey.storage.enqueue(pickle.dumps(Trap()), 9)
    line.enqueue("1")
    assert line.pending() == ["1"]
    with pytest.raises(ValueError):
        line._huey.dequeue()  # a worker logs this and goes on
    run_all(line)
    assert performed == ["1"] and not Trap.sprung


def test_a_deleted_file_is_made_again(home):
    performed = []
    line = Line(home, performed.append)
    viewer = Line(home)
    line.enqueue("1")
    assert viewer.pending() == ["1"]
    home.queue.unlink()
    viewer.heal()
    assert not home.queue.exists()  # who only looks leaves that to the runner
    line.heal()
    assert line.pending() == []
    line.enqueue("2")
    viewer.heal()
    assert viewer.pending() == ["2"] and home.queue.stat().st_mode & 0o777 == 0o600
    run_all(line)
    assert performed == ["2"]
