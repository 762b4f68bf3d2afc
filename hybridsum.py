#!/usr/bin/env python3
"""The program: without arguments the dashboard, else a verb of the command line (`--help` lists them)."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

OWN_PYTHON = Path(__file__).resolve().parent / ".venv" / "bin" / "python"


def main() -> int:
    if find_spec("pydantic") is None:
        return _with_own_python()
    from engine.settings import ConfigError
    from jobs.home import Home

    if sys.argv[1:]:
        from jobs import commands  # typer takes a while to load, and the dashboard's first frame does not wait for it

        return commands.main(sys.argv[1:], dashboard)
    try:
        dashboard(Home.find())
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def dashboard(home) -> None:
    """Open the dashboard on a jobs.home.Home. Raises ConfigError without a terminal."""
    from engine.settings import ConfigError

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("hybridsum.py: the dashboard needs a terminal. `hybridsum.py --help` lists what needs none")
    os.environ.setdefault("TEXTUAL_ANIMATIONS", "none")  # read when textual is imported; nothing here moves by itself
    os.environ.setdefault("TEXTUAL_FPS", "20")  # spares an SSH line
    from tui import app

    app.run(home)


def _with_own_python() -> int:
    """Called with a Python that lacks the packages: go on with the one `make setup` made, or say how to make it."""
    if OWN_PYTHON.exists() and Path(sys.prefix) != OWN_PYTHON.parent.parent:
        os.execv(OWN_PYTHON, [str(OWN_PYTHON), *sys.argv])
    print(f"hybridsum.py: the packages are not installed. Run `make setup` in {OWN_PYTHON.parents[2]}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
