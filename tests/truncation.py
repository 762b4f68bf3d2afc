"""What of a summary can still be found in a source that was cut: `python -m tests.truncation FOLDER`.

FOLDER holds papers_medical.jsonl, video_medical.jsonl and cross_modal.jsonl. A byte-pair tokenizer of 8,000 tokens is
trained on them. Of every source that is longer than the limit each policy keeps as many tokens; counted is the share of
the summary's words, word pairs (ROUGE-1 and ROUGE-2 recall of the summary against it, without stemming) and terms of
data/medical_terms.txt that occur in what was kept, a mean over those documents. No model takes part.
"""

import math
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from engine.corpus import terms
from engine.corpus.records import Record, read
from engine.corpus.terms import Lexicon
from engine.evaluation.statistics import paired
from engine.truncation import left_out
from tests.conftest import PROJECT

FILES = ("papers_medical", "video_medical", "cross_modal")
LIMITS = (256, 512, 1024)
POLICIES = ("head", "tail", "head_tail")
FEWEST = 10  # documents in a row of the table
GAP_TOKENS = 4
WORD = re.compile(r"\w+")


def tokenizer_of(texts: list[str], size: int = 8000) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def recall(summary: str, kept: str, n: int) -> float:
    """Share of the summary's n-grams of words that occur in the kept text, each at most as often as there; 0..1."""
    wanted, there = (_grams(text, n) for text in (summary, kept))
    return sum((wanted & there).values()) / wanted.total() if wanted else 0.0


def _grams(text: str, n: int) -> Counter:
    words = WORD.findall(text.casefold())
    return Counter(zip(*(words[k:] for k in range(n)), strict=False))


def kept_text(tokenizer: Tokenizer, ids: list[int], space: int, policy: str) -> str:
    start, end = left_out(len(ids), space, policy, GAP_TOKENS)
    return f"{tokenizer.decode(ids[:start])} \n {tokenizer.decode(ids[end:])}"


def terms_kept(lexicon: Lexicon, summary: str, kept: str) -> float:
    """Share of the different terms of a summary that are in the kept text too; nan where it has none."""
    wanted, there = ({span.term for span in lexicon.spans(text)} for text in (summary, kept))
    return len(wanted & there) / len(wanted) if wanted else math.nan


def measure(tokenizer: Tokenizer, lexicon: Lexicon, records: list[Record], space: int) -> dict[str, np.ndarray]:
    """{policy: (documents, 3) share of words, pairs and terms kept} of the records that are longer than `space` tokens."""
    encoded = tokenizer.encode_batch([record.source for record in records])
    long = [(record.summary, told.ids) for record, told in zip(records, encoded, strict=True) if len(told.ids) > space]
    return {policy: np.array([_shares(tokenizer, lexicon, *row, space, policy) for row in long]) for policy in POLICIES}


def _shares(tokenizer: Tokenizer, lexicon: Lexicon, summary: str, ids: list[int], space: int, policy: str) -> tuple:
    kept = kept_text(tokenizer, ids, space, policy)
    return recall(summary, kept, 1), recall(summary, kept, 2), terms_kept(lexicon, summary, kept)


def row(name: str, records: list[Record], space: int, found: dict[str, np.ndarray]) -> str:
    cells = [" / ".join(f"{100 * value:.1f}" for value in np.nanmean(found[policy], 0)) for policy in POLICIES]
    tests = [paired(100 * (found["head_tail"] - found[other])[:, 1]) for other in ("head", "tail")]
    told = [f"{test.mean:+.1f} [{test.ci95[0]:+.1f}, {test.ci95[1]:+.1f}]" for test in tests]
    return f"| {name} | {space:,} | {len(found['head']):,} of {len(records):,} | {' | '.join([*cells, *told])} |"


def main(folder: Path) -> None:
    files = {name: read(folder / f"{name}.jsonl") for name in FILES}
    sets = {
        "papers": files["papers_medical"],
        "consultations": files["video_medical"],
        "papers of pairs": [r for r in files["cross_modal"] if r.modality == "paper"],
        "talks of pairs": [r for r in files["cross_modal"] if r.modality == "video"],
    }
    tokenizer = tokenizer_of([record.source for records in sets.values() for record in records])
    lexicon = terms.load(PROJECT / "data" / "medical_terms.txt")
    print("| documents | room | too long | head | tail | head_tail | against head | against tail |")
    print("|---|---:|---:|---:|---:|---:|---|---|")
    for name, records in sets.items():
        for space in LIMITS:
            found = measure(tokenizer, lexicon, records, space)
            if len(found["head"]) >= FEWEST:
                print(row(name, records, space, found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
