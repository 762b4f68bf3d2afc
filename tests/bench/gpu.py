"""All checks that need a GPU; see gpu.sh. Each runs in a process of its own, so that one's memory is not another's.

They stand in the order of their importance: when the time is over, those that are left are cut off, and the table says so.
"""

import argparse
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from engine import extras
from engine.settings import ConfigError, Train
from tests.bench.gpu_checks import LIMIT_GIB, VARIANTS, cases
from tests.conftest import PROJECT

WHOLE = 570  # seconds of all parts together
SMOKE = 1500  # of tiny shapes on a processor that others use too
TRL = "trl==1.16.0 datasets==5.2.0"


class Part(NamedTuple):
    """One process. limit: seconds it may take. missing: why it is left out, if it is."""

    name: str
    check: str
    number: int
    limit: int
    cells: Callable[[dict], tuple[str, str]]
    missing: str | None = None


def parts(smoke: bool) -> list[Part]:
    nf4, nf4_long, streamed, *resident = [
        Part(one["name"], "step", number, 150 if number < 3 else 50, _peak, _quantised(one))
        for number, one in enumerate(cases(smoke))
    ]
    ours, *others = [
        Part(f"0.8 B in bf16, plain, {name}", "speed", number, 150 if number == 1 else 50, _pace, _variant(name, smoke))
        for number, (name, _) in enumerate(VARIANTS)
    ]
    return [
        nf4,
        ours,
        Part("the same with transformers.Trainer + PEFT", "peer", 0, 60, _pace),
        Part("the same with TRL's SFTTrainer + PEFT", "peer", 1, 60, _pace, _package("trl", TRL)),
        Part("gradient, fp32, dropout 0", "agreement", 0, 40, _cosine),
        Part("Fisher, eight documents a pass", "fisher", 0, 60, _fisher),
        streamed,
        *others,
        *resident,
        nf4_long,
    ]


def _package(module: str, wheels: str) -> str | None:
    return None if importlib.util.find_spec(module) else f"left out: pip install {wheels}"


def _quantised(one: dict) -> str | None:
    return _package("bitsandbytes", extras.BITSANDBYTES) if one["settings"].get("model", {}).get("quantize") else None


def _variant(name: str, smoke: bool) -> str | None:
    if name == "model.liger":
        return "left out: needs a GPU" if smoke else _package("liger_kernel", extras.LIGER)
    try:
        extras.demand_compiler(Train(compile=name == "train.compile"), not smoke)
    except ConfigError as error:
        return f"left out: {error}"
    return None


def _pace(found: dict) -> tuple[str, str]:
    first = f", first step {found['first']:.1f} s" if "first" in found else ""
    return f"{found['pace']:,.0f} tokens/s, {found['seconds']:.2f} s a step{first}", f"peak {found['gib']:.2f} GiB"


def _peak(found: dict) -> tuple[str, str]:
    told, real = found["predicted"], found["gib"]
    pace = f"{found['tokens'] / found['seconds']:,.0f} tokens/s, {found['seconds']:.2f} s a step"
    return pace, f"peak {real:.2f} GiB, predicted {told:.2f} ({100 * (told / real - 1):+.1f} %)"


def _cosine(found: dict) -> tuple[str, str]:
    return f"cosine {found['cosine']:.7f}", "the model's own loss over every position"


def _fisher(found: dict) -> tuple[str, str]:
    pace = f"{found['batched']:.2f} s for {found['documents']} documents"
    alone = f"one at a time {found['loop']:.2f} s, ratio {found['loop'] / found['batched']:.2f}"
    return pace, f"{alone}, largest relative difference {found['difference']:.1e}"


def rows(smoke: bool, whole: float) -> Iterator[str]:
    """The table, line by line. Paces are told beside that of the second part: this project as it is."""
    yield "| check | figure | beside it |\n|---|---|---|"
    ends, ours = time.monotonic() + whole, None
    with tempfile.TemporaryDirectory() as bases:
        for part in parts(smoke):
            left = ends - time.monotonic()
            if part.missing:
                figure, beside = part.missing, ""
            elif left < 1:
                figure, beside = f"cut off: the {whole:.0f} s were over before it began", ""
            else:
                found = child(part, smoke, bases, left if smoke else min(part.limit, left))
                figure, beside = _told(found, part)
                if part.check in ("speed", "peer") and "pace" in found:
                    beside += f", ours is {ours / found['pace']:.2f} times as fast" if ours else ""
                    ours = ours or found["pace"]
            yield f"| {part.name} | {figure} | {beside} |"


def _told(found: dict, part: Part) -> tuple[str, str]:
    if "failed" in found:
        return f"FAILED: {found['failed']}", ""
    return (found["cut"], "") if "cut" in found else part.cells(found)


def child(part: Part, smoke: bool, bases: str, seconds: float) -> dict:
    """What a check found, or {failed: why} or {cut: when}. A check that takes too long ends with all it started."""
    command = [sys.executable, "-m", "tests.bench.gpu_checks", part.check, str(part.number), bases]
    alone = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} if smoke else {}
    process = subprocess.Popen(
        [*command, *(["--smoke"] if smoke else [])], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | alone, start_new_session=True, cwd=PROJECT,
    )  # fmt: skip
    try:
        said, wrong = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return {"cut": f"cut off after {seconds:.0f} s"}
    if process.returncode:
        return {"failed": (wrong.strip().splitlines() or [f"status {process.returncode}"])[-1][:150].replace("|", "/")}
    return json.loads(said.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes on a CPU")
    parser.add_argument("--seconds", type=float, help=f"for all parts together ({WHOLE})")
    parser.add_argument("--out", type=Path, default=PROJECT / ".hybridsum" / "gpu_bench.md", help="file for the table")
    given = parser.parse_args()
    import torch

    if not given.smoke and not torch.cuda.is_available():
        raise SystemExit("no GPU here, or torch cannot use it. --smoke runs the same code with tiny shapes on the CPU")
    device = "CPU, tiny shapes" if given.smoke else f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "accelerate"))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    before, failed = time.monotonic(), False
    with given.out.open("w") as file:
        _say(f"{device}; Python {platform.python_version()}, {versions}; limit {LIMIT_GIB} GiB\n", file)
        for row in rows(given.smoke, given.seconds if given.seconds is not None else SMOKE if given.smoke else WHOLE):
            failed |= "FAILED" in row
            _say(row, file)
        _say(f"\n{time.monotonic() - before:.0f} s in all", file)
    print(f"the table is in {given.out}")
    raise SystemExit(int(failed))


def _say(line: str, file) -> None:
    print(line, flush=True)
    print(line, file=file, flush=True)


if __name__ == "__main__":
    main()
