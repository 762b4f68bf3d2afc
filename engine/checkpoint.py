"""Checkpoints that are whole or absent: written beside, synced, listed in a manifest, renamed. Light.

checkpoints/RUN/PHASE/step-000120/   to go on exactly where training stopped
checkpoints/RUN/PHASE/final/         the phase's product; loads with PeftModel.from_pretrained
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from engine import files
from engine.settings import ConfigError

MANIFEST = "manifest.json"
FINAL = "final"


def save(folder: Path, write: Callable[[Path], None]) -> int:
    """Make `folder` by `write(temporary folder)`; returns its size in bytes.

    A folder of that name either does not exist or is complete: files are synced before the rename, the rename after.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    listed = {}
    for path in sorted(temporary.rglob("*")):
        if path.is_file():
            files.sync_file(path)
            listed[str(path.relative_to(temporary))] = {"sha256": files.sha256(path), "bytes": path.stat().st_size}
    files.replace_json(temporary / MANIFEST, listed)
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)
    files.sync_folder(folder.parent)
    return sum(entry["bytes"] for entry in listed.values())


def verify(folder: Path) -> str:
    """Empty if every file of the manifest is there, unchanged; else what is wrong, in one sentence."""
    try:
        listed = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return f"{folder}: not a checkpoint, {MANIFEST} is missing"
    except ValueError:
        return f"{folder}/{MANIFEST}: not readable"
    for name, entry in listed.items():
        path = folder / name
        if not path.exists():
            return f"{path}: missing"
        if path.stat().st_size != entry["bytes"] or files.sha256(path) != entry["sha256"]:
            return f"{path}: changed since it was saved"
    return ""


def demand(folder: Path) -> Path:
    """The folder, if it holds a whole checkpoint. Raises ConfigError."""
    if complaint := verify(folder):
        raise ConfigError(f"{complaint}. Train the phase again, or restore the folder from a copy")
    return folder


def newest_step(phase_folder: Path) -> tuple[int, Path] | None:
    """The latest whole checkpoint inside a phase, as (steps done, folder); damaged ones are passed over."""
    for folder in sorted(phase_folder.glob("step-*"), reverse=True):
        if not verify(folder):
            return int(folder.name.removeprefix("step-")), folder
    return None


def step_folder(phase_folder: Path, step: int) -> Path:
    return phase_folder / f"step-{step:06d}"


def prune(phase_folder: Path, keep: int, spare: Sequence[Path] = ()) -> None:
    """Remove all but the newest `keep` checkpoints inside a phase, and those to `spare`."""
    for folder in sorted(phase_folder.glob("step-*"), reverse=True)[keep:]:
        if folder not in spare:
            shutil.rmtree(folder)


def link(run_folder: Path, name: str, target: Path) -> None:
    """Point checkpoints/RUN/<name> at a checkpoint, in one step."""
    temporary = run_folder / f".{name}.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.relative_to(run_folder))
    temporary.replace(run_folder / name)
    files.sync_folder(run_folder)
