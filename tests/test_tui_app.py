"""The dashboard, driven by keys, over a recorded run: what is on the screen and what enters the ledger."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from recorded.run import record, step_at
from textual.pilot import Pilot

from engine import events as ev
from jobs import steer
from jobs.home import Home
from jobs.records import Job, Records
from tui.app import Dashboard
from tui.details import Details
from tui.forms import Form
from tui.menus import Confirm, Filter, Help, QueueMenu
from tui.monitor import PANES, Monitor, going_on
from tui.panes.line import LinePane

SMALL, WIDE, LARGE = (80, 24), (120, 36), (160, 45)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, tiny_data) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    record(folder, config=str(tiny_data / "tiny.yaml"), steps=50)
    return folder


@pytest.fixture
def home(tmp_path, recorded) -> Home:
    shutil.copytree(recorded, tmp_path, dirs_exist_ok=True)
    return Home(tmp_path)


def text(pilot: Pilot) -> str:
    strips = pilot.app.screen._compositor.render_strips()  # private, for these checks only
    return "\n".join("".join(segment.text for segment in strip) for strip in strips)


async def settle(pilot: Pilot) -> None:
    """Until the workers have come back and what they found is on the screen."""
    for _ in range(2):
        await pilot.app.workers.wait_for_complete()
        await pilot.pause()


async def press(pilot: Pilot, *keys: str) -> str:
    for key in keys:
        await pilot.press(key)
        await settle(pilot)
    return text(pilot)


def dashboard(home: Home, size: tuple[int, int]):
    return Dashboard(home, start_runner=False).run_test(size=size, notifications=True)


@pytest.mark.parametrize("size", [SMALL, WIDE, LARGE, (40, 10), (20, 5)], ids=str)
async def test_every_pane_opens_on_a_recorded_run(home, size):
    async with dashboard(home, size) as pilot:
        await settle(pilot)
        for number, pane in enumerate(PANES, 1):
            await pilot.press(str(number))
            assert f"{number} {pane.NAME}" in text(pilot) or size[1] < 20
            await pilot.press("z")
            titles = [f"{k} {p.NAME}" for k, p in enumerate(PANES, 1)]
            assert [title for title in titles if title in text(pilot)] == [f"{number} {pane.NAME}"]
            await pilot.press("z")


async def test_one_glance(home):
    async with dashboard(home, LARGE) as pilot:
        await settle(pilot)
        shown = await press(pilot, "1")
        for words in (
            "1 running, 3 queued, 1 blocked, 1 failed",
            "40%",  # how far
            "25m",  # how long yet: 30 steps of 50 s
            "cross_entropy",  # is it learning
            "phase2 · step 20/50",
            "36.9  +5.5 ▲",  # is it forgetting
            "37.8  -0.4 ▼",
            "gate PASSED",
            "no GPU: CPU and RAM",  # does it fit
            "after 7",  # what is next
            "STOPPED",
            "data/medical/papers.jsonl line",  # what needs me
            "500/500",
            "penalty/ce",
            "saved checkpoints/medical-7/phase2",
        ):
            assert words in shown, words


async def test_small_screen_shows_one_pane_at_a_time_and_three_lines_of_log(home):
    async with dashboard(home, SMALL) as pilot:
        await settle(pilot)
        shown = text(pilot)
        assert "2 Losses" in shown and "3 Forgetting" not in shown and "6 Log" in shown
        assert sum(row.startswith("14:0") for row in shown.splitlines()) == 3
        await press(pilot, "tab", "tab")
        assert "3 Forgetting" in text(pilot)
        assert all(len(row) == 80 for row in text(pilot).splitlines())


async def test_the_failed_job_says_why_and_what_to_do(home):
    async with dashboard(home, LARGE) as pilot:
        await settle(pilot)
        shown = await press(pilot, "j", "j", "j", "j", "j")
        assert "✗ data/medical/papers.jsonl line 4127: summary: missing. Add it" in shown
        assert "→ mend the file, then hybridsum.py retry 1" in shown
        shown = await press(pilot, "enter")
        assert isinstance(pilot.app.screen, Details)
        assert "reason" in shown and "jobs/1" in shown
        assert "lambda 3 (per_token)" in shown
        await press(pilot, "escape")
        assert isinstance(pilot.app.screen, Monitor)


async def test_all_three_phases_are_queued_by_three_keys(home):
    before = set(Records(home.records).jobs())
    async with dashboard(home, SMALL) as pilot:
        await settle(pilot)
        await press(pilot, "n")
        assert isinstance(pilot.app.screen, QueueMenu)
        shown = await press(pilot, "a")
        assert isinstance(pilot.app.screen, Form)
        assert "checked: Enter queues this" in shown and "tiny-1" in shown and "papers 100 %" in shown
        await press(pilot, "enter")
        assert isinstance(pilot.app.screen, Monitor)
        assert "queued: jobs 11 to" in text(pilot)
    new = [job for job in Records(home.records).jobs().values() if job.id not in before]
    assert [job.kind for job in new] == ["base", "evaluate", "phase", "evaluate", "phase", "evaluate"]
    assert all(home.spec(job.id).exists() for job in new)
    assert new[1].after == new[0].id


async def test_enter_while_the_form_is_checking_queues_when_it_is_done(home):
    async with dashboard(home, SMALL) as pilot:
        await settle(pilot)
        await pilot.press("n", "a", "enter")
        await settle(pilot)
        assert isinstance(pilot.app.screen, Monitor)
    assert len(Records(home.records).jobs()) == 16


async def test_changes_are_checked_and_shown(home):
    async with dashboard(home, WIDE) as pilot:
        await settle(pilot)
        await press(pilot, "n", "a")
        form = pilot.app.screen
        form.query_one("#changes").focus()
        form.query_one("#changes").text = "ewc.lamda=3"
        await settle(pilot)
        assert "Did you mean ewc.lambda?" in text(pilot)
        await press(pilot, "ctrl+s")
        assert isinstance(pilot.app.screen, Form)  # what is wrong is not queued
        form.query_one("#changes").text = "ewc.lambda=3\ntrain.seed=7"
        await settle(pilot)
        shown = text(pilot)
        assert "ewc.lambda = 3.0 (config: 1.0)" in shown and "train.seed = 7 (config: 0)" in shown
        form.query_one("#priority").value = "x"
        await settle(pilot)
        assert "not a whole number" in text(pilot)
        form.query_one("#priority").value = "4"
        await settle(pilot)
        await press(pilot, "ctrl+s")
    assert {job.priority for job in Records(home.records).jobs().values() if job.run == "tiny-1"} == {4}


async def test_many_passes_are_warned_of(home):
    async with dashboard(home, LARGE) as pilot:
        await settle(pilot)
        await press(pilot, "n", "1")
        pilot.app.screen.query_one("#changes").text = "curriculum.phases.phase1.steps=2000"
        await settle(pilot)
        assert "more than 8 passes are learnt by heart" in text(pilot)


async def test_a_later_phase_names_the_run_it_goes_on_from(home):
    async with dashboard(home, WIDE) as pilot:
        await settle(pilot)
        shown = await press(pilot, "n", "2")
        assert "medical-7" in shown
        assert "✗ run medical-7: phase1/final does not exist" in shown
        await press(pilot, "escape")
        assert len(Records(home.records).jobs()) == 10


async def test_a_checkpoint_is_evaluated(home, tiny_data):
    import json

    from engine.configs import dump, load

    settings = dump(load(tiny_data / "tiny.yaml"))
    folder = home.final("medical-7", "phase1")
    about = {"run": "medical-7", "phase": "phase1", "model": "base", "settings": settings}
    (folder / "about.json").write_text(json.dumps(about))
    async with dashboard(home, SMALL) as pilot:
        await settle(pilot)
        shown = await press(pilot, "n", "e")
        assert "medical-7/phase1/final" in shown and "evaluate phase1" in shown
        await press(pilot, "enter")
    job = list(Records(home.records).jobs().values())[-1]
    assert (job.kind, job.run, job.phase, job.state) == ("evaluate", "medical-7", "phase1", "queued")


async def test_the_fisher_of_a_checkpoint_is_queued(home, tiny_data):
    import json

    from engine.configs import dump, load

    folder = home.final("medical-7", "phase1")
    about = {"run": "medical-7", "phase": "phase1", "model": "base", "parent": None}
    (folder / "about.json").write_text(json.dumps(about | {"settings": dump(load(tiny_data / "tiny.yaml"))}))
    async with dashboard(home, SMALL) as pilot:
        await settle(pilot)
        shown = await press(pilot, "n", "f")
        assert "medical-7/phase1/final" in shown and "fisher phase1" in shown and "test set" not in shown
        await press(pilot, "enter")
    job = list(Records(home.records).jobs().values())[-1]
    assert (job.kind, job.run, job.phase, job.state) == ("fisher", "medical-7", "phase1", "queued")


async def test_cancel_asks_and_names_what_is_lost(home):
    async with dashboard(home, SMALL) as pilot:
        await settle(pilot)
        shown = await press_open(pilot, "x")
        assert isinstance(pilot.app.screen, Confirm)
        assert "step 20 of 50" in shown and "Jobs 8, 9," in shown
        await press(pilot, "n")
        assert not home.cancel("7").exists()
        await press_open(pilot, "x")
        await press(pilot, "y")
        assert home.cancel("7").exists()
        await press(pilot, "j")
        await press_open(pilot, "x")
        await press(pilot, "y")
        assert Records(home.records).job("8").state == "cancelled"


async def press_open(pilot: Pilot, key: str, words: str = "yes, cancel it") -> str:
    """A key whose worker waits for an answer, so that it cannot be waited for; until the words are on the screen."""
    await pilot.press(key)
    for _ in range(500):
        await pilot.pause(0.02)
        if words in text(pilot):
            break
    return text(pilot)


async def test_retry_priority_and_pause(home):
    records = Records(home.records)
    async with dashboard(home, SMALL) as pilot:
        await settle(pilot)
        await press(pilot, "j", "plus", "plus", "minus")
        assert records.job("8").priority == 1
        await press(pilot, "p")
        assert records.fact("paused")
        assert "= paused: paused by hand (p lets the line go on)" in text(pilot)
        await press(pilot, "p")
        assert not records.fact("paused")
        await press(pilot, "end")
        shown = await press(pilot, "r")
        assert "badly is retried" in " ".join(shown.split())  # the last in the line is done
        await press(pilot, "home", "j", "j", "j", "j", "j", "r")
        assert records.job("1").state == "queued" and records.job("2").state == "queued"


async def test_help_lists_every_key(home):
    async with dashboard(home, (80, 40)) as pilot:
        await settle(pilot)
        shown = await press(pilot, "question_mark")
        assert isinstance(pilot.app.screen, Help)
        for binding in Monitor.BINDINGS:
            assert binding.description in shown
        await press(pilot, "escape")
        assert isinstance(pilot.app.screen, Monitor)


async def test_metric_and_log_scale(home):
    async with dashboard(home, LARGE) as pilot:
        await settle(pilot)
        assert "ROUGE-L" in text(pilot)
        shown = await press(pilot, "m")
        assert "ROUGE-1" in shown and "44.9" in shown
        shown = await press(pilot, "m", "m")
        assert "less is better" in shown and "-0.274 ▲" in shown  # fewer nats: better
        assert "· log" in await press(pilot, "l")


async def test_filter(home):
    async with dashboard(home, SMALL) as pilot:
        await settle(pilot)
        await press(pilot, "slash")
        assert isinstance(pilot.app.screen, Filter)
        await press(pilot, *"failed", "enter")
        line = pilot.app.screen.query_one(LinePane)
        assert [row.id for row in line.rows] == ["1"] and line.cursor == "1"
        assert "/failed" in text(pilot)
        await press(pilot, "escape")
        assert len(line.rows) == 10


async def test_the_panes_follow_what_runs_until_the_cursor_is_moved(home):
    records = Records(home.records)
    async with dashboard(home, SMALL) as pilot:
        await settle(pilot)
        records.change("7", ["running"], state="done", ended=1.0)
        records.change("8", ["queued"], state="running", attempt=1)
        pilot.app.screen.tick()
        await settle(pilot)
        assert pilot.app.screen.snapshot.selected.id == "8"
        await press(pilot, "j")
        assert pilot.app.screen.snapshot.selected.id == "9"
        pilot.app.screen.tick()
        await settle(pilot)
        assert pilot.app.screen.snapshot.selected.id == "9"
        await press(pilot, "f")
        assert pilot.app.screen.snapshot.selected.id == "8"


async def test_news_arrive_by_themselves(home):
    async with dashboard(home, SMALL) as pilot:
        await settle(pilot)
        ev.Writer(home.events("7"), 1)(step_at(21, 50))
        await pilot.pause(1.5)
        assert "step 21/50" in text(pilot)


async def test_the_log_can_be_scrolled_back(home):
    async with dashboard(home, SMALL) as pilot:
        await settle(pilot)
        shown = await press(pilot, "6", "k", "k")
        assert "2 lines up" in shown and "14:05:12" not in shown


async def test_leaving_says_which_jobs_go_on(home):
    async with dashboard(home, SMALL) as pilot:
        await settle(pilot)
        snapshot = pilot.app.screen.snapshot
        await pilot.press("q")
    assert "7 (medical-7 phase2)" in pilot.app.return_value
    assert pilot.app.return_value == going_on(snapshot)
    assert Records(home.records).job("7").state == "running"


async def test_an_empty_home_says_what_to_press(tmp_path):
    home = Home(tmp_path)
    home.jobs.mkdir(parents=True)
    async with dashboard(home, SMALL) as pilot:
        await settle(pilot)
        assert "No jobs yet." in text(pilot) and "n, then a" in text(pilot)
        for key in ("enter", "x", "r", "plus", "m", "j", "z", "p"):
            await press(pilot, key)
        assert pilot.app.is_running


async def test_a_damaged_ledger_is_shown_not_raised(home):
    async with dashboard(home, SMALL) as pilot:
        await settle(pilot)
        home.records.write_text("{half")
        await pilot.pause(1)
        await settle(pilot)
        assert "not valid JSON" in text(pilot)
        await press(pilot, "p")  # its error is told too
        assert pilot.app.is_running


async def test_hostile_text_is_shown_as_it_is(tmp_path):
    home = Home(tmp_path)
    home.jobs.mkdir(parents=True)
    records = Records(home.records)
    records.add(
        [
            Job("", "phase", "[/b]\x1b[31mrun", "[@click=app.quit]p", settings={"steps": 5, "config": "[/c]"}),
            Job("", "evaluate", "[/b]\x1b[31mrun", "p", after="#0"),
        ]
    )
    home.job("1").mkdir()
    records.change("1", ["queued"], state="running", attempt=1, started=1.0)
    write = ev.Writer(home.events("1"), 1)
    write(ev.Stage("[/s]\x07"))
    write(ev.PhaseStarted("[/p]", 5))
    write(ev.Step(1, 5, {"[/loss]": 1.0, "\x1b]0;x\x07ce": 2.0}, 3.0, 1e-4, 1.0, 10, 1.0))
    write(ev.FisherProgress(1, 2, 3.0, {"[/layer]": 1.0}))
    write(ev.Sample("[/id]", "paper", "[/r]", "[/o]\u202e"))
    home.log("1").write_bytes(b"[/log] \x1b[2J\x9b1m [true]\n")
    records.end("1", ["running"], "failed", "[/oops] \x1b[31m" + "z" * 500, "[@click=app.quit]mend[/]")
    for size in (SMALL, LARGE):
        async with dashboard(home, size) as pilot:
            await settle(pilot)
            shown = await press(pilot, "end")
            assert "[/log]" in shown and "[/oops]" in shown and "[@click=app.quit]m" in shown
            for key in ("2", "3", "4", "5", "6"):
                shown += await press(pilot, key)
            assert "[/loss]" in shown and "[/layer]" in shown
            shown += await press(pilot, "enter", "end")
            assert "[/id]" in shown
            await press(pilot, "escape", "x", "r")
            assert not set(shown) & set(map(chr, range(32))) - {"\n"}
            assert pilot.app.is_running
            records.end("1", ["queued", "running"], "failed", "[/oops]", "[@click=app.quit]mend[/]")


def test_every_pane_has_its_file():
    files = {path.stem for path in Path("tui/panes").glob("*.py")} - {"__init__"}
    assert files == {pane.__module__.rpartition(".")[2] for pane in PANES}


async def test_a_runner_that_is_killed_is_replaced_by_the_open_dashboard(tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRIDSUM_HOME", str(tmp_path))
    home = Home.find()
    try:
        async with Dashboard(home).run_test(size=WIDE, notifications=True) as pilot:
            await _until_shown(pilot, "LIVE")
            first = steer.status(home)["pid"]
            os.kill(first, signal.SIGKILL)
            await _until_shown(pilot, "another goes on")
            found = steer.status(home)
            assert found["state"] == steer.LIVE and found["pid"] != first
    finally:
        steer.stop(home)


async def _until_shown(pilot: Pilot, words: str) -> None:
    deadline = time.monotonic() + 30
    while words not in text(pilot):
        assert time.monotonic() < deadline, text(pilot)
        await pilot.pause(0.1)
