#!/usr/bin/env python3
"""The program: without arguments the dashboard, else a verb of the command line (`--help` lists them)."""

import os
import sys

from engine.settings import ConfigError
from jobs.home import Home


def main() -> int:
    if sys.argv[1:]:
        from jobs import commands  # typer takes a while to load, and the dashboard's first frame does not wait for it

        return commands.main(sys.argv[1:], dashboard)
    try:
        dashboard(Home.find())
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def dashboard(home: Home) -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("hybridsum.py: the dashboard needs a terminal. `hybridsum.py --help` lists what needs none")
    os.environ.setdefault("TEXTUAL_ANIMATIONS", "none")  # read when textual is imported; nothing here moves by itself
    os.environ.setdefault("TEXTUAL_FPS", "20")  # spares an SSH line
    from tui import app

    app.run(home)


if __name__ == "__main__":
    sys.exit(main())
