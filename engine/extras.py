"""Packages that only some settings need. Light: nothing is imported here."""

import importlib.util

from engine.settings import ConfigError, Model

BITSANDBYTES = "bitsandbytes==0.50.2"


def demand(model: Model) -> None:
    """Raises ConfigError if a setting of the base needs a package that is not installed."""
    if model.quantize and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"model.quantize: {model.quantize} needs a package that is not installed: .venv/bin/pip install {BITSANDBYTES}"
        )
