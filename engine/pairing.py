"""Mining pairs in a process of its own: `python -m engine.pairing SPEC`. Progress on stdout, the pairs in the spec's `result`."""

import json
import os
import sys
from pathlib import Path

import torch

from engine import encoder, files
from engine.corpus import pairing, terms
from engine.corpus.records import Record, read
from engine.settings import ConfigError

EVERY = 20  # texts between two lines of progress


def main(spec: dict) -> None:
    """spec: {papers, videos, terms, threshold, result}. Raises ConfigError for files that cannot be read."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads())
    papers, videos = read(Path(spec["papers"]), "paper", False), read(Path(spec["videos"]), "video", False)
    lexicon = terms.load(Path(spec["terms"]))
    vectors = [_vectors(side, name) for side, name in ((papers, "papers"), (videos, "videos"))]
    found = pairing.matches(*vectors, pairing.given(papers, videos), spec["threshold"])
    rows = [
        {
            "paper": match.paper, "video": match.video, "score": round(match.score, 4), "given": match.given,
            "shared_terms": pairing.shared_terms(lexicon, papers[match.paper], videos[match.video]),
        }
        for match in found
    ]  # fmt: skip
    files.replace_json(Path(spec["result"]), {"papers": len(papers), "videos": len(videos), "pairs": rows})


def _vectors(records: list[Record], name: str):
    def tell(done: int, of: int) -> None:
        if done % EVERY == 0 or done == of:
            print(f"{name}: {done:,} of {of:,} read", flush=True)

    texts = [f"{record.title or ''} {record.summary or ''} {record.source}".strip() for record in records]
    return encoder.encode(texts, tell).numpy()


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]))
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
