"""Micro-batches made ahead of their step: in order, never more than asked for, and the same bytes whatever the number."""

import dataclasses
import threading

import pytest

from engine import train
from engine.ahead import Ahead
from engine.configs import load
from engine.material import Material
from engine.settings import ConfigError
from engine.work import Cancelled
from tests.conftest import make_work

pytestmark = pytest.mark.engine


def alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_steps_are_made_once_in_their_order_and_so_many_ahead():
    made, many = [], threading.Condition()

    def make(step: int) -> int:
        with many:
            made.append(step)
            many.notify()
        return step * step

    with Ahead(make, range(3, 8), 2) as ahead:
        assert ahead.take(3) == 9
        with many:
            assert many.wait_for(lambda: len(made) == 3, timeout=30)
        ahead.rest()
        assert made == [3, 4, 5]  # 6 is not made before 4 is asked for
        assert [ahead.take(step) for step in range(4, 8)] == [16, 25, 36, 49]
    assert made == [3, 4, 5, 6, 7]  # nothing beyond the range
    assert not alive()


def test_without_a_thread_a_step_is_made_when_it_is_asked_for():
    made = []
    with Ahead(made.append, range(5), 0) as ahead:
        ahead.take(2)
        assert made == [2] and not alive()
        ahead.rest()


def test_what_goes_wrong_is_raised_at_its_own_step():
    def make(step: int) -> int:
        if step == 1:
            raise ConfigError("record 7 is gone")
        return step

    with Ahead(make, range(3), 2) as ahead:
        assert ahead.take(0) == 0
        with pytest.raises(ConfigError, match="record 7 is gone"):
            ahead.take(1)
        assert ahead.take(2) == 2


def test_leaving_does_not_make_what_nobody_wants():
    made, go = [], threading.Event()

    def make(step: int) -> int:
        made.append(step)
        if step:
            go.wait(30)
        return step

    with Ahead(make, range(50), 40) as ahead:
        ahead.take(0)
        go.set()
    assert len(made) <= 41 and not alive()


def phase(tiny_data, tiny_base, run, *overrides, stop=lambda: False):
    settings = load(tiny_data / "tiny.yaml", ["data.augment=true", *overrides])
    return make_work("phase", "phase2", settings, tiny_base, run / "phase2", run, stop=stop)


LONG = 'curriculum.phases=[{"name": "phase2", "mixture": {"papers": 0.5, "videos": 0.4, "pairs": 0.1}, "steps": 24}]'


def test_a_phase_ends_with_the_same_bytes_whatever_is_made_ahead(tiny_data, tiny_base, tmp_path):
    """Augmented sources, pairs, evaluations in between that use the same tokenizer, and a stop with another number of steps
    ahead after it."""
    often = ["data.development_share=0.1", "evaluate.every_steps=5", LONG]
    made = {}
    for count in (0, 1, 4):
        run = tmp_path / str(count)
        train.run(phase(tiny_data, tiny_base, run, f"train.prefetch={count}", *often))
        made[count] = (run / "phase2" / "final" / "adapter_model.safetensors").read_bytes()
    assert made[0] == made[1] == made[4]

    run, asked = tmp_path / "stopped", []
    stop = lambda: asked.append(1) or len(asked) > 7  # noqa: E731
    with pytest.raises(Cancelled):
        train.run(phase(tiny_data, tiny_base, run, "train.prefetch=3", *often, stop=stop))
    assert not alive()
    train.run(phase(tiny_data, tiny_base, run, "train.prefetch=1", *often))
    assert (run / "phase2" / "final" / "adapter_model.safetensors").read_bytes() == made[0]


def test_a_mistake_found_in_the_thread_ends_the_phase_in_its_own_words(tiny_data, tiny_base, tmp_path, monkeypatch):
    rows = Material.rows

    def broken(self, step: int):
        if step == 2:
            raise ConfigError("data.max_length 16: nothing of the source fits")
        assert threading.current_thread().name.startswith("ahead")
        return rows(self, step)

    monkeypatch.setattr(Material, "rows", broken)
    work, events = phase(tiny_data, tiny_base, tmp_path / "run", LONG), []
    with pytest.raises(ConfigError, match="nothing of the source fits"):
        train.run(dataclasses.replace(work, emit=events.append))
    assert [event.step for event in events if type(event).__name__ == "Step"] == [1, 2]
    assert not alive()
