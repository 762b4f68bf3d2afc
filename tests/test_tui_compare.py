"""The comparison in the dashboard, driven by keys at 80 x 24."""

import json

import pytest
from textual.pilot import Pilot

from engine import events as ev
from engine.corpus.split import read_test
from jobs.home import Home
from jobs.records import Job, Records
from tests.stored import POCKET, judge
from tests.test_tui_app import SMALL, WIDE, dashboard, press, settle, text
from tui.checkpoints import Checkpoints
from tui.compare import Compare
from tui.monitor import Monitor


@pytest.fixture
def home(tmp_path) -> Home:
    """Two finished phases, one of which cuts the summaries of videos short."""
    made = Home(tmp_path)
    made.jobs.mkdir(parents=True)
    videos = [record for record in read_test(POCKET / "test.jsonl") if record.modality == "video"]
    judge(made, "good", "phase1", {})
    short = {r.id: " ".join(r.summary.split()[: 20 - k // 6]) for k, r in enumerate(videos)}
    judge(made, "bad", "phase1", short, ["train.seed=4"])
    records = Records(made.records)
    records.add([Job("", "phase", "good", "phase1"), Job("", "phase", "bad", "phase1"), Job("", "base", "bases")])
    for job_id, total in (("1", 1.0), ("2", 2.0)):
        made.job(job_id).mkdir()
        records.change(job_id, ["queued"], state="done", ended=float(job_id))
        write = ev.Writer(made.events(job_id), 1)
        for step in range(1, 9):
            write(ev.Step(step, 8, {"cross_entropy": total / step}, total / step, 1e-4, 1.0, 1.0, 0.0))
    return made


async def opened(pilot: Pilot) -> str:
    """Mark both finished phases in the line and compare them: job 1 is A."""
    await settle(pilot)
    return await press(pilot, "end", "space", "k", "space", "c")


async def test_marked_checkpoints_are_compared_at_80_by_24(home):
    async with dashboard(home, SMALL) as pilot:
        await settle(pilot)
        shown = await press(pilot, "end", "space")
        assert shown.count("◆") == 1
        assert (await press(pilot, "space")).count("◆") == 0  # and not
        shown = await press(pilot, "space", "k", "space", "c")
        assert isinstance(pilot.app.screen, Compare)
        assert "A good/phase1   B bad/phase1" in shown and "1 differences" in shown and "test set test" in shown
        rows = [row for row in shown.splitlines() if "ROUGE-L" in row]
        assert "videos ROUGE-L" in rows[0] and "B-A" in rows[0] and "0.001**" in rows[0] and "▼ worse" in rows[0]
        assert any("videos NLL" in row and "· detectable 0.000" in row for row in shown.splitlines())
        head = next(row for row in shown.splitlines() if "p (Holm)" in row)
        assert head.index("95 %") == rows[0].index("[-")
        assert all(len(row) == 80 for row in shown.splitlines())
        shown = await press(pilot, "pagedown", "pagedown")
        assert "copy rate" in shown
        await press(pilot, "escape")
        assert isinstance(pilot.app.screen, Monitor)
        assert text(pilot).count("◆") == 2


async def test_settings_losses_and_documents(home):
    async with dashboard(home, SMALL) as pilot:
        await opened(pilot)
        shown = await press(pilot, "2")
        assert "train.seed" in shown and "distil" not in shown
        shown = await press(pilot, "3")
        assert "A good/phase1" in shown and any("\u2801" <= character <= "\u28ff" for character in shown)  # braille
        shown = await press(pilot, "tab")
        assert "by ROUGE-L, worst first: 1 of 200" in shown and "▼" in shown
        heads, first = shown.splitlines()[2:4]
        assert [heads.index(f" {side} ") + 1 for side in "AB"] == [
            first.rindex(score) + len(score) - 1 for score in ends(first)
        ]
        first = pilot.app.screen._rows[0]
        assert first.id in shown and "reference" in shown and "✗ lost:" in shown
        shown = await press(pilot, "end")
        assert "200 of 200" in shown and "✗ lost:" not in shown
        await press(pilot, "home", "enter")
        whole = text(pilot)
        assert "source" in whole and first.id in whole
        await press(pilot, "escape")
        shown = await press(pilot, "m")
        assert "by ROUGE-1" in shown or "by NLL" in shown


def ends(line: str) -> list[str]:
    """The two scores of a document's line."""
    return line.split()[2:4]


def take(screen: Compare, place: int) -> dict:
    screen._place = place
    return screen._sample()


async def test_kept_terms_are_underlined_and_lost_ones_named(home):
    async with dashboard(home, WIDE) as pilot:
        await opened(pilot)
        await press(pilot, "4")
        screen = pilot.app.screen
        places = range(len(screen._rows))
        screen._place = next(
            k for k in places if (s := take(screen, k))["terms_lost"][1] and s["terms_lost"][1] != s["terms"]
        )
        shown = await press(pilot, "k", "j")
        found = screen._sample()
        kept = set(found["terms"]) - set(found["terms_lost"][1])
        strips = screen._compositor.render_strips()
        marked = {s.text.lower() for strip in strips for s in strip if s.style and s.style.underline}
        assert kept and kept <= marked
        assert f"✗ lost: {', '.join(found['terms_lost'][1])}" in shown


async def test_the_comparison_leaves_as_three_files(home):
    async with dashboard(home, SMALL) as pilot:
        await opened(pilot)
        shown = await press(pilot, "e")
        assert "written:" in " ".join(shown.split())
    files = sorted(path.suffix for path in (home.root / "comparisons").iterdir())
    assert files == [".csv", ".json", ".md"]
    value = json.loads(next((home.root / "comparisons").glob("*.json")).read_text())
    assert {test["metric"] for test in value["tests"]} >= {"videos.rougeL", "papers.nll"} and len(
        value["samples"]
    ) == 10


async def test_all_checkpoints_are_listed_sorted_and_marked(home):
    async with dashboard(home, SMALL) as pilot:
        await settle(pilot)
        shown = await press(pilot, "c")
        assert isinstance(pilot.app.screen, Checkpoints)
        assert "good/phase1" in shown and "bad/phase1" in shown and "ROUGE-L, newest first" in shown
        shown = await press(pilot, "s", "s")
        assert "best videos first" in shown
        rows = [row for row in shown.splitlines() if "/phase1" in row]
        assert "good" in rows[0] and "100.0" in rows[0] and "bad" in rows[1]
        assert "mark two or more" in await press(pilot, "c")
        assert "2 marked" in await press(pilot, "space", "j", "space")
        await press(pilot, "c")
        assert isinstance(pilot.app.screen, Compare) and pilot.app.screen.given == ["good/phase1", "bad/phase1"]
        await press(pilot, "escape", "escape")
        assert text(pilot).count("◆") == 2  # the marks stand in the line too


async def test_what_was_not_judged_says_so(home):
    (home.final("bad", "phase1") / "evaluations" / "test.json").unlink()
    async with dashboard(home, SMALL) as pilot:
        shown = " ".join((await opened(pilot)).split())
        assert "✗ compare: no test set that all were judged on" in shown
        await press(pilot, "1", "2", "3", "4", "j", "enter", "m", "e")
        assert pilot.app.is_running
        await press(pilot, "escape", "home", "space")  # the base has no phase
        assert "job 3 makes no checkpoint that could" in " ".join(text(pilot).split())


async def test_hostile_outputs_are_shown_as_they_are(home):
    path = home.final("bad", "phase1") / "evaluations" / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0] |= {
        "output": "[/oops] \x1b]0;owned\x07[@click=app.quit]x[/]",
        "scores": rows[0]["scores"] | {"rougeL": 0.0},
    }
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    async with dashboard(home, SMALL) as pilot:
        await opened(pilot)
        shown = await press(pilot, "4")
        assert "[/oops] [@click=app.quit]x[/]" in shown and "owned" not in shown
        await press(pilot, "enter")
        assert "[/oops]" in text(pilot) and pilot.app.is_running
