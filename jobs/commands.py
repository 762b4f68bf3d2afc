"""The command line: one call of the program, and the exit status it ends with."""

import logging
import os
import sys
from collections.abc import Callable

import typer

from engine.settings import ConfigError
from jobs.command_line import app, say
from jobs.home import Home

# --help lists the verbs in the order in which their modules are imported.
# isort: off
from jobs import commands_queueing as commands_queueing
from jobs import commands_watching as commands_watching
from jobs import commands_steering as commands_steering
from jobs import commands_data as commands_data
from jobs import commands_runner as commands_runner
from jobs import commands_results as commands_results
# isort: on


def main(arguments: list[str], dashboard: Callable[[Home], None]) -> int:
    """Run one verb; the exit status: 0 done, 1 failed, 2 a mistake of the user, named in one line each."""
    try:
        arguments = _log_level(arguments)
        status = app(arguments, prog_name="hybridsum.py", standalone_mode=False, obj=dashboard)
        sys.stdout.flush()
        return status or 0
    except ConfigError as error:
        for line in error.lines:
            say(line)
        return 2
    except typer.TyperException as error:
        say(f"hybridsum.py: {error.format_message()} (see `hybridsum.py --help`)")
        return 2
    except (typer.Abort, KeyboardInterrupt):
        say("stopped")
        return 1
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        say(f"{error.filename or 'hybridsum.py'}: {error.strerror or error}")
        return 1


def _log_level(arguments: list[str]) -> list[str]:
    """Take --log-level LEVEL out of the arguments, wherever it stands, and heed it."""
    rest, level = [], "WARNING"
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name == "--log-level":
            level = value if equals else next(words, "")
        else:
            rest.append(word)
    if level.upper() not in logging.getLevelNamesMapping():
        raise ConfigError(f"--log-level {level}: use debug, info, warning or error")
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return rest
