"""Imports go down only, and what must start fast imports nothing heavy."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.home import PROJECT

LAYERS = ("engine", "jobs", "tui")  # from the bottom up
HEAVY = {"torch", "transformers", "peft", "accelerate", "optuna", "pandas", "bert_score"}
LIGHT_ENGINE = (
    "bundled",
    "truncation",
    "settings",
    "configs",
    "auto",
    "events",
    "files",
    "columns",
    "lazy",
    "mixture",
    "work",
    "plan",
    "extras",
    "corpus",
    "__init__",
)


def modules() -> list[Path]:
    return [path for layer in LAYERS for path in sorted((PROJECT / layer).rglob("*.py"))] + [PROJECT / "hybridsum.py"]


def name_of(path: Path) -> str:
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_light(path: Path) -> bool:
    layer, *rest = path.relative_to(PROJECT).with_suffix("").parts
    return layer != "engine" or rest[0] in LIGHT_ENGINE


def imports(path: Path) -> Iterator[str]:
    """Every imported module, at whatever depth it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_go_down_only(path):
    layer = name_of(path).partition(".")[0]
    above = LAYERS[LAYERS.index(layer) + 1 :] if layer in LAYERS else ()
    for name in imports(path):
        top = name.partition(".")[0]
        assert top not in above, f"{name_of(path)} imports {name}, which lies above it"
        assert top != "hybridsum", f"{name_of(path)} imports the program"
        assert top != "huey" or name_of(path) == "jobs.queue", f"only jobs/queue.py imports huey, not {name_of(path)}"
        if is_light(path):
            assert top not in HEAVY, f"{name_of(path)} imports {name}, which is heavy"


@pytest.mark.parametrize("path", [p for p in modules() if p.name == "__init__.py"], ids=name_of)
def test_package_files_are_empty(path):
    assert path.read_text() == ""


def loaded_by(names: list[str]) -> set[str]:
    code = "import importlib, sys; [importlib.import_module(n) for n in sys.argv[1:]]; print('\\n'.join(sys.modules))"
    child = subprocess.run(
        [sys.executable, "-c", code, *names], cwd=PROJECT, capture_output=True, text=True, timeout=60
    )
    assert child.returncode == 0, child.stderr
    return {name.partition(".")[0] for name in child.stdout.split()}


def test_light_modules_load_nothing_heavy():
    assert not loaded_by([name_of(path) for path in modules() if is_light(path)]) & HEAVY


def test_the_dashboard_starts_without_typer_and_huey():
    """Before its first frame: the program, and what steers jobs."""
    assert not loaded_by(["hybridsum", "jobs.steer", "jobs.records"]) & {*HEAVY, "typer", "huey", "psutil", "pynvml"}


def test_a_training_job_imports_nothing_that_only_scoring_needs():
    """They take a second of its start: nltk brings scikit-learn and pandas along where they are installed."""
    assert not loaded_by(["engine.train"]) & {"nltk", "rouge_score", "bert_score", "sklearn", "pandas"}
