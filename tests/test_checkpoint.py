"""Checkpoints: whole or absent, and a damaged one is never taken for a good one."""

import pytest

from engine import checkpoint
from engine.settings import ConfigError


def write(text: str):
    return lambda folder: (folder / "weights").write_text(text)


def test_a_saved_folder_verifies_and_a_changed_one_does_not(tmp_path):
    folder = tmp_path / "phase1" / "final"
    assert checkpoint.save(folder, write("abc")) == 3
    assert checkpoint.verify(folder) == ""
    (folder / "weights").write_text("abd")
    assert "changed since it was saved" in checkpoint.verify(folder)
    (folder / "weights").unlink()
    assert "missing" in checkpoint.verify(folder)
    with pytest.raises(ConfigError, match="Train the phase again"):
        checkpoint.demand(folder)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path):
    folder = tmp_path / "final"
    checkpoint.save(folder, write("old"))

    def broken(inside):
        (inside / "weights").write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(folder, broken)
    assert checkpoint.verify(folder) == "" and (folder / "weights").read_text() == "old"
    checkpoint.save(folder, write("new"))
    assert (folder / "weights").read_text() == "new"


def test_the_newest_whole_checkpoint_is_taken(tmp_path):
    for step in (50, 100, 150):
        checkpoint.save(checkpoint.step_folder(tmp_path, step), write(str(step)))
    (tmp_path / ".step-000200.tmp").mkdir()
    (tmp_path / "step-000150" / "weights").write_text("torn")
    assert checkpoint.newest_step(tmp_path) == (100, tmp_path / "step-000100")
    checkpoint.prune(tmp_path, 1)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-000150"]
    assert checkpoint.newest_step(tmp_path) is None


def test_links_are_relative_and_replaced(tmp_path):
    for name in ("phase1", "phase2"):
        checkpoint.save(tmp_path / name / "final", write(name))
        checkpoint.link(tmp_path, "latest", tmp_path / name / "final")
    assert (tmp_path / "latest" / "weights").read_text() == "phase2"
    assert not (tmp_path / "latest").readlink().is_absolute()
