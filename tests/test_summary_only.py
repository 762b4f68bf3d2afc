"""Summaries out of a data set of several tasks: the entries, and exactly the rows that belong to them."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from engine.corpus import summary_only
from engine.settings import ConfigError
from tests.test_cli import hybridsum


def world(folder, name="train", count=10, indexed=False, entries=None):
    """Every third entry is a summary; row n of the embeddings is n, n, n, n."""
    (folder / "embeddings").mkdir(exist_ok=True)
    order = list(range(count))[::-1] if indexed else list(range(count))
    rows = entries or [
        {"task_type": "summary" if n % 3 == 0 else "qa", "text": f"t{n}"} | ({"embedding_index": order[n]} if indexed else {}) for n in range(count)
    ]  # fmt: skip
    (folder / f"{name}.jsonl").write_text(
        "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    )
    values = np.repeat(np.arange(count, dtype=np.float32)[:, None], 4, axis=1)
    save_file(
        {"embeddings": values, "mask": values[:, 0].astype(np.int64)},
        folder / "embeddings" / f"{name}_embeddings.safetensors",
    )
    return folder / f"{name}.jsonl"


def read(folder, name="train"):
    entries = [json.loads(line) for line in (folder / "synthesis" / f"{name}_synthesis.jsonl").read_text().splitlines()]
    return entries, load_file(folder / "embeddings" / f"{name}_embeddings.safetensors")


@pytest.mark.parametrize("indexed", [False, True])
def test_entries_and_rows_stay_together(tmp_path, indexed):
    (part,) = summary_only.run([world(tmp_path, indexed=indexed)], tmp_path / "embeddings", tmp_path / "out")
    entries, tensors = read(tmp_path / "out")
    wanted = [9, 6, 3, 0] if indexed else [0, 3, 6, 9]
    assert [entry["text"] for entry in entries] == ["t0", "t3", "t6", "t9"]
    assert [entry["embedding_index"] for entry in entries] == [0, 1, 2, 3]
    assert tensors["embeddings"].tolist() == [[row] * 4 for row in wanted] and tensors["mask"].tolist() == wanted
    assert part.facts() == {
        "entries": 10,
        "kept": 4,
        "tasks": {"qa": 6, "summary": 4},
        "refused": {},
        "embeddings_before": 10,
    }


def test_types_numpy_does_not_know_are_copied_byte_by_byte(tmp_path):
    head = json.dumps({"e": {"dtype": "BF16", "shape": [3, 2], "data_offsets": [0, 12]}}).encode()
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "test_embeddings.safetensors").write_bytes(
        len(head).to_bytes(8, "little") + head + bytes(range(12))
    )
    path = world(tmp_path, "test", entries=[{"task_type": t} for t in ("qa", "summary", "summary")])
    summary_only.run([path], tmp_path / "e", tmp_path / "out")
    data = (tmp_path / "out" / "embeddings" / "test_embeddings.safetensors").read_bytes()
    assert data[-8:] == bytes(range(4, 12)) and b'"shape": [2, 2]' in data


def test_what_is_no_entry_is_counted_and_keeps_its_row(tmp_path):
    rows = [{"task_type": "summary", "text": "a"}, "{broken\n", {"task_type": "summary", "text": "b"}]
    (part,) = summary_only.run([world(tmp_path, count=3, entries=rows)], tmp_path / "embeddings", tmp_path / "out")
    assert read(tmp_path / "out")[1]["mask"].tolist() == [0, 2]
    assert part.refused == {"not valid JSON": 1} and "train.jsonl: line 2" in part.refusals[0]


def test_what_cannot_be_matched_is_refused(tmp_path):
    path = world(tmp_path, count=4, entries=[{"task_type": "summary"}] * 3)
    with pytest.raises(ConfigError, match="4 rows, but .* has 3 entries"):
        summary_only.run([path], tmp_path / "embeddings", tmp_path / "out")
    assert not list((tmp_path / "out" / "synthesis").iterdir())
    with pytest.raises(ConfigError, match="no val_embeddings.safetensors"):
        path.rename(tmp_path / "dev.jsonl")
        summary_only.run([tmp_path / "dev.jsonl"], tmp_path / "embeddings", tmp_path / "out")
    rows = [{"task_type": "summary", "embedding_index": n} for n in (0, 0, 9)]
    (part,) = summary_only.run([world(tmp_path, count=3, entries=rows)], tmp_path / "embeddings", tmp_path / "out")
    assert part.refused == {"embedding used twice": 1, "no such embedding": 1}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 20,
        b"\x02\0\0\0\0\0\0\0{}",
        b"\x02\0\0\0\0\0\0\0[]",
        b'\x40\0\0\0\0\0\0\0{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}     ',
    ],
)
def test_files_that_are_no_safetensors(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match="safetensors"):
        summary_only.header(tmp_path / "a.safetensors")


def test_the_verb(tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRIDSUM_HOME", str(tmp_path))
    paths = [str(world(tmp_path, name)) for name in ("train", "val", "test")]
    done = hybridsum(
        "prepare",
        "summary",
        *paths,
        "--embeddings",
        str(tmp_path / "embeddings"),
        "--out",
        str(tmp_path / "out"),
        "--json",
    )
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert (value["read"], value["written"]) == (30, 12) and value["parts"]["val"]["tasks"] == {"qa": 6, "summary": 4}
