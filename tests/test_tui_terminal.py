"""The dashboard in a real terminal: what it imports, what it sends, and how it ends when the line drops."""

import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from pathlib import Path

import pytest
from recorded.run import device, record, step_at

from engine import events as ev
from jobs.records import Records

PROJECT = Path(__file__).resolve().parent.parent
OPEN = (
    "import sys; from pathlib import Path; from jobs.home import Home; from tui.app import Dashboard\n"
    "print(Dashboard(Home(Path(sys.argv[1])), start_runner=False).run())"
)
HEAVY = ("torch", "transformers", "peft", "accelerate", "scipy", "optuna", "pandas", "bert_score")
BUDGET = 25_000  # bytes a second while a job trains


class Terminal:
    """A dashboard behind a pseudo-terminal of 160 x 45."""

    def __init__(self, home: Path):
        self.pid, self.line = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may have been started with nohup
            os.chdir(PROJECT)
            # Given by name: readline, if it is loaded here, has put COLUMNS and LINES into the inherited environment.
            ours = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor", "PYTHONPATH": str(PROJECT)}
            environment = {name: value for name, value in ours.items() if name not in ("COLUMNS", "LINES")}
            os.execve(sys.executable, [sys.executable, "-c", OPEN, str(home)], environment)
        ioctl(self.line, termios.TIOCSWINSZ, struct.pack("HHHH", 45, 160, 0, 0))

    def read(self, seconds: float, until: bytes | None = None) -> bytes:
        """What was sent in so many seconds, or until some bytes were among it."""
        found, deadline = b"", time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and (until is None or until not in found):
            if select.select([self.line], [], [], left)[0]:
                try:
                    found += os.read(self.line, 65536)
                except OSError:  # the other end is closed
                    break
        return found

    def ended(self, seconds: float = 10.0) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if os.waitpid(self.pid, os.WNOHANG) != (0, 0):
                self.pid = 0
                return True
            time.sleep(0.05)
        return False

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


@pytest.fixture
def home(tmp_path):
    return record(tmp_path, steps=400)


@pytest.fixture
def terminal(home):
    opened = Terminal(home.root)
    first = opened.read(15, until=b"penalty/ce")
    assert b"penalty/ce" in first, first.decode(errors="replace")
    if b"gate PASSED" not in first:  # a thread works it out while the rest is on the screen already
        first += opened.read(30, until=b"gate PASSED")
    assert b"gate PASSED" in first, first.decode(errors="replace")
    yield opened
    opened.close()


def test_a_training_job_costs_little_and_a_quiet_one_nothing(home, terminal):
    terminal.read(2.5)  # the rest of the first picture
    assert len(terminal.read(2.5)) < 200  # the minute may turn
    write, sent, started = ev.Writer(home.events("7"), 1), 0, time.monotonic()
    for number in range(8):
        write(step_at(165 + number, 400, 0.04))
        if number % 4 == 0:
            write(device(number, False))
        with home.log("7").open("a") as log:
            log.write(f"14:06:{number:02} step {165 + number}/400\n")
        sent += len(terminal.read(0.5))
    rate = sent / (time.monotonic() - started)
    assert 0 < rate < BUDGET, f"{rate:,.0f} bytes a second"
    print(f"{rate:,.0f} bytes a second")


def test_q_leaves_and_says_what_goes_on(terminal):
    os.write(terminal.line, b"q")
    assert b"Going on: job 7 (medical-7 phase2). 3 in the line." in terminal.read(5, until=b"at any time.")
    assert terminal.ended()


def test_a_dropped_line_ends_the_dashboard_and_no_job(home, terminal):
    os.close(terminal.line)
    assert terminal.ended()
    assert Records(home.records).job("7").state == "running"


def test_nothing_heavy_is_imported(home):
    code = (
        "import sys; from pathlib import Path; from jobs.home import Home\n"
        "import tui.app, tui.forms, tui.details, tui.menus, tui.feed, tui.preview, jobs.steer, jobs.queue\n"
        "from tui.feed import Feed; Feed(Home(Path(sys.argv[1]))).snapshot()\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(home.root)]
    assert subprocess.run(command, cwd=PROJECT, capture_output=True, text=True).stdout == "[]\n"


def test_the_first_frame_waits_for_no_queue_and_no_plots():
    code = "import sys, tui.app; print([n for n in ('huey', 'plotext', 'tinydb', 'typer', 'pydantic') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True).stdout == "[]\n"
