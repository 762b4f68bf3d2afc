"""Looks at everything a run needs and names the command that mends what is missing."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

from engine import bundled
from engine.settings import ConfigError, first_line
from jobs import gpus, locks, steer
from jobs.home import PROJECT, Home, file_system
from jobs.records import RUNNING, Records

NEEDED_GIB = 5.0  # free disk below which a run of a 7B model may not find room for its checkpoints
# In a process of its own: torch takes seconds and hundreds of megabytes.
LOOK_AT_TORCH = """
import json, torch
cards = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "cards": cards, "built": torch.cuda.get_arch_list()}))
"""


class Check(NamedTuple):
    name: str
    ok: bool
    found: str
    remedy: str = ""


def examine(home: Home) -> list[Check]:
    checks = [_python(), *_packages(), *_disk(home)]
    for look in (_ledger, _runner, _device_locks):
        checks.append(_guarded(look, home))
    return [*checks, *_cards(), *_judges(), _revision()]


def value(checks: list[Check]) -> dict:
    return {"ok": all(check.ok for check in checks), "checks": [check._asdict() for check in checks]}


def _guarded(look: Callable[[Home], Check], home: Home) -> Check:
    try:
        return look(home)
    except ConfigError as error:
        return Check(look.__name__.strip("_"), False, first_line(error), "see the line above")


def _python() -> Check:
    found = sys.version.split()[0]
    return Check("python", sys.version_info >= (3, 11), found, "" if sys.version_info >= (3, 11) else "use Python 3.11")


def _packages() -> list[Check]:
    checks = []
    for line in (PROJECT / "requirements.txt").read_text().splitlines():
        name, _, wanted = line.partition("#")[0].strip().partition("==")
        if name:
            checks.append(_package(name, wanted))
    return checks


def _package(name: str, wanted: str) -> Check:
    remedy = f"pip install '{name}=={wanted}'" if wanted else f"pip install {name}"
    try:
        found = importlib.metadata.version(re.split(r"[\[<>~! ]", name)[0])
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, "not installed", remedy)
    ok = not wanted or found.partition("+")[0] == wanted
    return Check(name, ok, found if ok else f"{found}, tested with {wanted}", "" if ok else remedy)


def _disk(home: Home) -> list[Check]:
    free = shutil.disk_usage(home.root).free / gpus.GIB
    writable = os.access(home.state, os.W_OK)
    return [
        Check("home", writable, str(home.root), "" if writable else "set HYBRIDSUM_HOME to a folder of yours"),
        Check("file system", True, file_system(home.state) or "unknown"),  # Home.find() refuses network ones
        Check("free disk", free > NEEDED_GIB, f"{free:.0f} GiB", "" if free > NEEDED_GIB else "remove old checkpoints"),
    ]


def _ledger(home: Home) -> Check:
    jobs = Records(home.records).jobs()
    return Check("ledger", True, f"{len(jobs)} jobs")


def _runner(home: Home) -> Check:
    found = steer.status(home)
    text = found["state"] + (f", pid {found['pid']}" if found["pid"] else "")
    if found["paused"]:
        return Check("runner", False, f"{text}, paused: {found['paused']}", "hybridsum.py resume")
    remedy = {
        steer.STALE: f"it has not moved for {found['beat_age']} s; kill -9 {found['pid']} and hybridsum.py runner start",
        steer.LOST: "it was killed; jobs go on: hybridsum.py runner start",
    }.get(found["state"], "")
    return Check("runner", not remedy, text, remedy)


def _device_locks(home: Home) -> Check:
    """A device lock that is held while no job runs: something a job started outlived it and may hold GPU memory."""
    held = [lock for lock in sorted(home.state.glob("gpu*.lock")) if locks.is_held(lock)]
    running = [job.id for job in Records(home.records).jobs().values() if job.state == RUNNING]
    names = ", ".join(lock.name for lock in held) or "none held"
    if held and not running:
        return Check("device locks", False, f"{names} held, but no job runs", f"fuser -v {held[0]}")
    return Check("device locks", True, names)


def _cards() -> list[Check]:
    driver = gpus.driver()
    if driver is None:
        return [Check("gpu", True, "no NVIDIA GPU: training runs on the CPU")]
    reading = gpus.read().gpus
    names = ", ".join(f"{gpu['name']} {gpu['memory_total'] or 0:.1f} GiB" for gpu in reading) or "none visible"
    remedy = "" if reading else "CUDA_VISIBLE_DEVICES hides them; unset it"
    return [Check("gpu", bool(reading), f"{names}; driver {driver}", remedy), _torch()]


def _torch() -> Check:
    """Whether this build of torch has code for these cards."""
    try:
        child = subprocess.run([sys.executable, "-c", LOOK_AT_TORCH], capture_output=True, text=True, timeout=120)
        found = json.loads(child.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return Check("torch and cuda", False, "torch cannot be imported", "pip install -r requirements.txt")
    text = f"torch {found['torch']}, CUDA {found['cuda']}"
    if not found["cards"]:
        remedy = "install a driver for this CUDA, or a torch for this driver: https://pytorch.org/get-started/locally"
        return Check("torch and cuda", False, f"{text}: sees no GPU", remedy)
    missing = [card for card in found["cards"] if not runs_on(tuple(card), found["built"])]
    built = " ".join(found["built"])
    if missing:
        name = "sm_{}{}".format(*missing[0])
        return Check(
            "torch and cuda", False, f"{text} has no code for {name} (it has {built})", "install a newer torch"
        )
    cards = " ".join("sm_{}{}".format(*card) for card in found["cards"])
    return Check("torch and cuda", True, f"{text}, {cards} among {built}")


def runs_on(card: tuple[int, int], built: list[str]) -> bool:
    """Binary code runs on cards of the same major version and at least its minor one; PTX on every newer card."""
    for name in built:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", name)
        if match:
            major, minor = int(match[2]), int(match[3])
            if (major, minor) <= card and (match[1] == "compute" or major == card[0]):
                return True
    return False


def _judges() -> list[Check]:
    """What the metrics need besides packages: nothing is downloaded. The encoder of BERTScore is a package too."""
    found = [_package(name, "")._replace(name=f"metrics: {name}") for name in ("rouge-score", "nltk", "bert-score")]
    there = bundled.folder() is not None
    words = f"bundled ({bundled.NAME})" if there else "not installed"
    remedy = "" if there else f"{bundled.INSTALL}, or set evaluate.bertscore_model"
    return [*found, Check("metrics: encoder", there, words, remedy)]


def _revision() -> Check:
    try:
        child = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=PROJECT, capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return Check("revision", True, "unknown (no git)")
    return Check("revision", True, child.stdout.strip() or "unknown (not a git checkout)")


def text(checks: list[Check]) -> str:
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{'ok ' if check.ok else '!! '} {check.name.ljust(width)}  {check.found}")
        if check.remedy:
            lines.append(f"    {' ' * width}  -> {check.remedy}")
    return "\n".join(lines)
