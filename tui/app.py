"""The dashboard: one screen over files that others write. `run` is what the command line calls."""

import os
from typing import TYPE_CHECKING

# Read by Textual when it is imported: nothing moves by itself, and changes are sent together.
os.environ.setdefault("TEXTUAL_ANIMATIONS", "none")
os.environ.setdefault("TEXTUAL_FPS", "20")

from textual.app import App  # noqa: E402

from tui.monitor import Monitor  # noqa: E402

if TYPE_CHECKING:
    from jobs.home import Home


class Dashboard(App[str]):
    """start_runner: whether to start the background runner if none is alive; False only looks."""

    CSS_PATH = "dashboard.tcss"
    TITLE = "hybridsum"
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, home: "Home", start_runner: bool = True) -> None:
        super().__init__(ansi_color=True)
        self.theme = "ansi-dark"
        self.home, self.start_runner = home, start_runner

    def get_default_screen(self) -> Monitor:
        return Monitor(self.home, self.start_runner)


def run(home: "Home") -> int:
    """Show the dashboard until the user leaves; then say which jobs go on. Returns the exit status."""
    app = Dashboard(home)
    farewell = app.run(mouse=False)  # so that the terminal's own selecting and copying works
    if farewell:
        print(farewell)
    return app.return_code or 0
