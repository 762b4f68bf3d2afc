"""Heavy work of a verb in a process of its own, so that the command line and the dashboard stay light."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.settings import ConfigError
from jobs.home import PROJECT


def run(module: str, spec: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """What `python -m MODULE SPEC` writes to spec["result"]; its lines go to `say`. Raises ConfigError if it fails.

    The child ends with its caller: an exception here, Ctrl-C for one, ends it.
    """
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "errors").open("w+") as errors:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", module, json.dumps(spec | {"result": str(result)})]
        with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=errors, text=True) as child:
            try:
                for line in child.stdout:
                    say(line.rstrip())
            except BaseException:
                child.terminate()
                raise
        if child.returncode:
            errors.seek(0)
            lines = errors.read().strip().splitlines()
            raise ConfigError(
                *(lines if child.returncode == 2 else lines[-1:]) or [f"{module} ended with {child.returncode}"]
            )
        return json.loads(result.read_bytes())
