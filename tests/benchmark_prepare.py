"""Cost of `prepare` at 10,000 and at 1,000,000 records: processor time per record and peak memory of the process.

`python -m tests.benchmark_prepare [FOLDER]`; needs 3 GB of disk and some minutes. The limits are part of it: it fails
above 500 MB, or above 1.3 times the cost per record of the small set.
"""

import json
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from engine.mixture import generator

SMALL, LARGE = 10_000, 1_000_000
MOST_MB, MOST_RATIO = 500, 1.3


def synthetic(path: Path, count: int) -> None:
    """Records of 1 kB: made-up words; every hundredth repeats an earlier text, every fiftieth shares a group."""
    chance = generator("prepare", "benchmark")
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(3, 9))) for _ in range(20_000)]
    text = ""
    with path.open("w") as file:
        for number in range(count):
            text = text if number % 100 == 99 else _text(chance, words, 130)
            row = {"id": f"s{number}", "modality": "paper", "source": text, "summary": _text(chance, words, 15)}
            file.write(json.dumps(row | ({"group": f"g{number // 500}"} if number % 50 == 0 else {})) + "\n")


def _text(chance: random.Random, words: list[str], length: int) -> str:
    return " ".join(chance.choices(words, k=length))


def measure(source: Path, out: Path) -> dict:
    """{read, written, seconds of processor, megabytes at the peak} of a run in a process of its own."""
    code = (
        "import sys, json, resource, time; from pathlib import Path; from engine.corpus.prepare import Request, run\n"
        "report = run(Request((Path(sys.argv[1]),), 'papers', Path(sys.argv[2]), split=(.8, .1, .1)), lambda line: None)\n"
        "print(json.dumps({'read': report.read, 'written': report.written, 'seconds': time.process_time(),\n"
        "  'megabytes': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))"
    )
    done = subprocess.run([sys.executable, "-c", code, source, out], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main(folder: Path) -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    costs = []
    for count in (SMALL, LARGE):
        source = folder / f"{count}.jsonl"
        synthetic(source, count)
        found = measure(source, folder / f"out{count}.jsonl")
        costs.append(found["seconds"] / count)
        print(
            f"{count:>9,} records, {source.stat().st_size / 1e6:,.0f} MB: {1e6 * costs[-1]:.0f} µs a record, "
            f"{found['megabytes']:.0f} MB at the peak, {found['written']:,} written",
            flush=True,
        )
    ratio = costs[1] / costs[0]
    print(f"cost per record, large against small: {ratio:.2f} (limit {MOST_RATIO}); memory limit {MOST_MB} MB")
    return int(ratio > MOST_RATIO or found["megabytes"] > MOST_MB)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if sys.argv[1:] else None) as temporary:
        sys.exit(main(Path(temporary)))
