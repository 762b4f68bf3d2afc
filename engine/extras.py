"""What only some settings need: packages and a compiler. Light: nothing is imported here."""

import importlib.util
import os
import shutil

from engine.settings import ConfigError, Model, Train

BITSANDBYTES = "bitsandbytes==0.50.2"
LIGER = "liger-kernel==0.8.5"
LIGER_KNOWS = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
)  # model types whose functions take the arguments of engine/models.py
COMPILERS = ("g++", "clang++", "c++")


def demand(model: Model) -> None:
    """Raises ConfigError if a setting of the base needs a package that is not installed."""
    _demand(f"model.quantize: {model.quantize}", model.quantize, "bitsandbytes", BITSANDBYTES)
    _demand("model.liger", model.liger, "liger_kernel", LIGER)


def demand_compiler(train: Train, on_gpu: bool = False) -> None:
    """Raises ConfigError if train.compile finds no C++ compiler, or on a GPU no Triton."""
    if not train.compile:
        return
    if not any(shutil.which(name) for name in (os.environ.get("CXX") or "", *COMPILERS)):
        raise ConfigError(
            "train.compile: torch.compile needs a C++ compiler, and there is none here. Install g++, or set train.compile=false"
        )
    _demand("train.compile", on_gpu, "triton", "triton")


def _demand(setting: str, wanted: object, module: str, package: str) -> None:
    if wanted and importlib.util.find_spec(module) is None:
        raise ConfigError(f"{setting} needs a package that is not installed: .venv/bin/pip install {package}")
