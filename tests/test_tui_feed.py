"""From files on disk to frozen values: a live job, a finished one and one from last month by the same code."""

import time

import pytest
from recorded.run import device, record, step_at, train

from engine import events as ev
from jobs.home import Home
from jobs.queue import Line
from jobs.records import Job, Records
from tui.feed import Feed
from tui.history import LOG_BYTES, POINTS, History, logged


@pytest.fixture
def home(tmp_path) -> Home:
    return record(tmp_path, steps=50)


def test_rows_tell_state_progress_and_why(home):
    rows = {row.id: row for row in Feed(home).snapshot().rows}
    assert list(rows) == ["7", "8", "9", "10", "2", "1", "6", "5", "4", "3"]  # runs, waits, blocked, ended
    running = rows["7"]
    assert (running.state, running.stage, running.done, running.total) == ("running", "training", 20, 50)
    assert running.eta == pytest.approx(30 * 50, rel=0.01)  # a step takes 2500 / 50 seconds
    assert rows["1"].reason.startswith("data/medical/papers.jsonl line 4127")
    assert rows["1"].remedy.endswith("hybridsum.py retry 1")
    assert rows["2"].state == "blocked" and "job 1" in rows["2"].reason
    assert rows["8"].after == "7"
    assert rows["5"].seconds == pytest.approx(3060)


def test_queued_jobs_stand_in_huey_s_order(tmp_path):
    home = Home(tmp_path)
    home.jobs.mkdir(parents=True)
    Records(home.records).add([Job("", "phase", f"run-{k}", "phase1") for k in range(3)])
    line = Line(home)
    for job_id, priority in (("1", 0), ("3", 5), ("2", 0)):
        line.enqueue(job_id, priority)
    rows = Feed(home).snapshot().rows
    assert [(row.id, row.place) for row in rows] == [("3", 1), ("1", 2), ("2", 3)]


def test_losses_run_over_all_phases(home):
    losses = Feed(home).snapshot().losses
    assert [(phase.name, phase.start, phase.steps) for phase in losses.phases] == [
        ("phase1", 0, 50),
        ("phase2", 50, 50),
        ("phase3", 100, 50),
    ]
    xs, ys = losses.series["sum"]
    assert xs == tuple(range(1, 71))
    assert ys[-1] == pytest.approx(step_at(20, 50, 0.04).total, abs=1e-6)
    parts = [series[1][-1] for name, series in losses.series.items() if name != "sum"]
    assert sum(parts) == pytest.approx(ys[-1])
    assert (losses.phase, losses.step, losses.lr) == ("phase2", 20, pytest.approx(8e-5))


def test_only_new_bytes_are_read_and_unchanged_parts_stay_the_same_objects(home):
    feed = Feed(home)
    first, second = feed.snapshot(), feed.snapshot()
    assert second.losses is first.losses
    assert second.devices is first.devices
    assert second.log is first.log
    ev.Writer(home.events("7"), 1)(step_at(21, 50))
    third = feed.snapshot()
    assert third.losses.step == 21
    assert len(third.losses.series["sum"][0]) == 71


def test_half_a_line_waits_for_its_end(home):
    feed = Feed(home)
    line = ev.encode(step_at(21, 50), 1)
    with home.events("7").open("ab") as file:
        file.write(line[:30])
        file.flush()
        assert feed.snapshot().losses.step == 20
        file.write(line[30:])
    assert feed.snapshot().losses.step == 21


def history(tmp_path, *events) -> History:
    path = tmp_path / "events.jsonl"
    for event in events:
        ev.Writer(path, 1)(event)
    found = History(path, tmp_path / "log.txt")
    found.read()
    return found


def test_a_step_that_comes_again_replaces_its_first_record(tmp_path):
    lost = [step_at(k, 50) for k in range(1, 31)]
    again = [ev.Step(k, 50, {"cross_entropy": 9.0}, 9.0, 1e-4, 1.0, 10, 1.0) for k in range(21, 24)]
    points = history(tmp_path, *lost, ev.Started(1), ev.PhaseStarted("phase1", 50, 20), *again).points
    assert [point.step for point in points] == list(range(1, 24))
    assert [point.values["sum"] for point in points[-3:]] == [9.0] * 3


def test_values_that_are_not_finite_are_gaps(tmp_path):
    broken = ev.Step(1, 5, {"cross_entropy": float("nan")}, float("inf"), 1e-4, float("nan"), 10, 1.0)
    assert history(tmp_path, broken).points[0].values == {"sum": None, "cross_entropy": None}


def test_long_runs_are_thinned_to_a_bound(tmp_path):
    found = History(tmp_path / "events.jsonl", tmp_path / "log.txt")
    with (tmp_path / "events.jsonl").open("wb") as file:
        for step in range(1, 40_001):
            file.write(ev.encode(ev.Step(step, 100_000, {"ce": float(step)}, float(step), 1, 1, 1, 1), 1, 1.0))
        for reading in range(12_000):
            file.write(ev.encode(device(reading, True), 1, float(reading)))
    found.read()
    assert len(found.points) <= 2 * POINTS
    assert len(found.readings) <= 2 * POINTS
    assert found.points[-1].step == 40_000
    middle = min(found.points, key=lambda point: abs(point.step - 20_000))
    assert middle.values["ce"] == pytest.approx(middle.step, abs=16)  # the mean of the steps it stands for
    assert max(r.device.gpus[0]["memory"] for r in found.readings) == 14.1  # peaks stay


def test_fisher_and_penalty(home):
    fisher = Feed(home).snapshot().fisher
    (phase,) = fisher.phases
    assert (phase.phase, phase.done, phase.total, phase.trace) == ("phase1", 500, 500, 310.0)
    assert phase.shares[0] == ("down_proj", 0.41)
    last = step_at(20, 50, 0.04).losses
    assert fisher.ratios[-1] == pytest.approx(last["ewc"] / last["cross_entropy"], abs=1e-6)


def test_devices_with_stages(home):
    devices = Feed(home).snapshot().devices
    assert len(devices.readings) == 20
    assert devices.readings[-1].device.gpus == []
    assert [stage for _, stage in devices.stages] == ["starting", "loading", "training"]


def test_the_present_reading_is_that_of_a_running_job_and_fresh(home):
    feed = Feed(home)
    ev.Writer(home.events("7"), 1)(device(1, False))
    assert feed.snapshot().machine.device.ram_total == 24.0
    Records(home.records).change("7", ["running"], state="done")
    assert feed.snapshot().machine is None


def test_an_old_job_is_drawn_by_the_same_code(home):
    month = 30 * 86400
    train(home, "1", "phase1", 50, 50, time.time() - month)
    snapshot = Feed(home).snapshot(selected="1")
    assert snapshot.losses.run == "medical-6"
    assert len(snapshot.losses.series["sum"][0]) == 50
    assert len(snapshot.devices.readings) == 50
    assert snapshot.log.lines[-1].tone == "bad"
    assert "line 4127" in snapshot.log.lines[-1].text


def test_forgetting_of_the_run_and_of_others(home):
    feed = Feed(home)
    table = feed.snapshot().forgetting
    assert table.own.rows[0] == ("base", (31.42, 38.21))
    assert table.own.rows[1] == ("phase1", (36.9, 37.8))
    assert [(other.run, other.rows[-1]) for other in table.others] == [("naive", ("phase1", (37.1, 29.6)))]
    assert table.metrics == ("rougeL", "rouge1", "rouge2", "nll")
    assert feed.snapshot(metric="nll").forgetting.own.metric == "nll"
    assert feed.snapshot(selected="1").forgetting.own is None


def test_the_verdict_of_the_gate_joins_later(home):
    feed = Feed(home)
    assert feed.snapshot().forgetting.own.gate == ""
    assert feed.decide() is True
    own = feed.snapshot().forgetting.own
    assert own.gate.startswith("gate PASSED: videos")
    assert own.gate_tone == "good"
    assert feed.decide() is False


def test_what_is_being_measured_is_said(home):
    records = Records(home.records)
    records.change("8", ["queued"], state="running", attempt=1)
    ev.Writer(home.events("8"), 1)(ev.Generated(212, 500, "test"))
    assert Feed(home).snapshot().forgetting.measuring == (("phase2", "measuring 212/500"),)


def test_a_log_is_read_from_its_end_and_followed(tmp_path):
    path = tmp_path / "log.txt"
    path.write_bytes(b"x" * 200 + b"\n" + b"line of a long log\n" * 20_000 + b"10%\r50%\r100% done\n")
    found = History(tmp_path / "events.jsonl", path)
    started = time.perf_counter()
    found.read()
    assert time.perf_counter() - started < 0.5
    assert found.lines[-1].text == "100% done"  # what a progress bar wrote last
    with path.open("ab") as file:
        file.write(b"half a li")
        file.flush()
        found.read()
        assert found.lines[-1].text == "100% done"
        file.write(b"ne \xff\n")
    found.read()
    assert found.lines[-1].text == "half a line \ufffd"
    path.write_bytes(b"anew\n")
    found.read()
    assert found.lines[-1].text == "anew"
    assert path.stat().st_size < LOG_BYTES


@pytest.mark.parametrize(
    ("text", "clock", "tone"),
    [
        ("14:01:59 saved checkpoints/a (1 MiB)", "14:01:59", "good"),
        ("14:02:02 warning: cut", "14:02:02", "warning"),
        ("x.py:3: UserWarning: old", "", "warning"),
        ("RuntimeError: boom", "", "bad"),
        ("Traceback (most recent call last):", "", "bad"),
        ("step 408", "", "plain"),
    ],
)
def test_lines_of_a_log_have_a_tone(text, clock, tone):
    line = logged(text)
    assert (line.clock, line.tone) == (clock, tone)


def test_a_damaged_ledger_is_told_not_raised(home):
    home.records.write_text("{half")
    snapshot = Feed(home).snapshot()
    assert "not valid JSON" in snapshot.problem
    assert snapshot.rows == ()


def test_an_empty_home(tmp_path):
    home = Home(tmp_path)
    home.jobs.mkdir(parents=True)
    snapshot = Feed(home).snapshot()
    assert snapshot.rows == () and snapshot.selected is None and snapshot.runner.state == "STOPPED"


def test_a_base_that_is_built_shows_its_own_losses(tmp_path):
    home = Home(tmp_path)
    home.jobs.mkdir(parents=True)
    records = Records(home.records)
    base, _ = records.add([Job("", "base", "run"), Job("", "phase", "run", "phase1", after="#0")])
    records.change(base.id, ["queued"], state="running")
    home.job(base.id).mkdir()
    write = ev.Writer(home.events(base.id), 1)
    write(ev.PhaseStarted("base", 100))
    write(ev.Step(5, 100, {"text": 2.0, "cross_entropy": 1.0}, 3.0, 1e-3, 0.5, 900.0, 1.0))
    shown = Feed(home).snapshot(None, None).losses
    assert (shown.phase, shown.step, [mark.name for mark in shown.phases]) == ("base", 5, ["base"])
    assert {"text", "cross_entropy"} <= set(shown.series)
