"""A tiny world for tests: pocket records, a two-layer base built by the project itself, a home of its own."""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

PROJECT = Path(__file__).resolve().parent.parent
SHARED = PROJECT.parent / "shared"

TINY = """
model:
  build: {{hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 1, vocab_size: 400, steps: 6, batch_size: 4}}
lora: {{rank: 4, alpha: 8, dropout: 0.1}}
data:
  papers: {folder}/papers.jsonl
  videos: {folder}/videos.jsonl
  pairs: {folder}/pairs.jsonl
  test: {folder}/test.jsonl
  fisher_share: 0.2
  max_length: 400
  max_summary_length: 200
  prompt: "{{source}}<sum>"
curriculum:
  phases:
    - {{name: phase1, mixture: {{papers: 1.0}}, steps: 6}}
    - {{name: phase2, mixture: {{papers: 0.5, videos: 0.4, pairs: 0.1}}, steps: 5}}
ewc: {{lambda: 1.0, unit: per_token, fisher_samples: 8, fisher_batch_size: 3}}
distil: {{base_records: 6}}
train: {{learning_rate: 1.0e-2, per_device_train_batch_size: 2, gradient_accumulation_steps: 2, save_steps: 2, threads: 1}}
evaluate: {{batch_size: 4, bertscore_model: none}}
generate: {{max_new_tokens: 8}}
"""


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """A folder with tiny.yaml and the records it names."""
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def write_tiny(folder: Path) -> Path:
    from engine.corpus import pocket
    from engine.corpus.records import write_jsonl

    write_jsonl(folder / "papers.jsonl", pocket.papers(40, "tiny"))
    write_jsonl(folder / "videos.jsonl", pocket.videos(40, "tiny"))
    write_jsonl(folder / "pairs.jsonl", pocket.pairs(6, "tiny"))
    write_jsonl(folder / "documents.jsonl", pocket.documents(12, "tiny"))
    test = pocket.papers(5, "tiny-test") + pocket.videos(5, "tiny-test")
    write_jsonl(folder / "test.jsonl", test)
    write_jsonl(folder / "test_general.jsonl", test[3:7] + pocket.documents(3, "tiny-test"))
    (folder / "tiny.yaml").write_text(TINY.format(folder=folder))
    return folder


@pytest.fixture(scope="session")
def tiny_base(tiny_data, tmp_path_factory) -> Path:
    """A base model folder, built once by the project's own code."""
    from engine import base
    from engine.configs import load

    folder = tmp_path_factory.mktemp("bases") / "tiny"
    base.run(make_work("base", None, load(tiny_data / "tiny.yaml"), folder, folder, folder.parent))
    return folder


def make_work(
    kind, phase, settings, model, folder, run_folder, start_from=None, test_set=None, events=None, stop=lambda: False
):
    """A job of the engine whose events land in a list."""
    from engine.work import Work

    sink = [] if events is None else events
    return Work(
        kind, run_folder.name, phase, settings, str(model), folder, run_folder, start_from, test_set, sink.append, stop
    )


def shared(*parts: str) -> Path:
    """A file of the shared folder beside the checkout; the test is skipped where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is not here: this test reads real or awkward files that are not part of the project")
    return path
