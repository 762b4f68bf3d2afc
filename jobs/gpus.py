"""Readings of GPUs (NVML), processor and memory; one slot for each GPU."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import psutil
import pynvml

from engine.events import Device

GIB = 2**30


@dataclass(frozen=True)
class Slot:
    """A place for one job. visible: its CUDA_VISIBLE_DEVICES; None leaves that variable as it is."""

    index: int  # of the lock
    visible: str | None
    name: str


def slots(nvml: ModuleType = pynvml) -> list[Slot]:
    """One for each visible GPU; without any, one for the processor."""
    found = [Slot(i, visible, name) for i, visible, name, _ in _gpus(nvml)]
    return found or [Slot(0, None, "CPU")]


def driver(nvml: ModuleType = pynvml) -> str | None:
    """The driver's version; None without a driver."""
    try:
        nvml.nvmlInit()
        return _text(nvml.nvmlSystemGetDriverVersion())
    except nvml.NVMLError:
        return None


def read(pid: int | None = None, ours: Iterable[int] = (), nvml: ModuleType = pynvml) -> Device:
    """A reading. pid: the job whose memory counts; ours: further pids whose processes are not foreign."""
    own = _tree(pid) if pid else []
    known = {process.pid for process in own} | {p.pid for other in ours for p in _tree(other)}
    memory = psutil.virtual_memory()
    return Device(
        cpu=psutil.cpu_percent(),
        ram=_gib(memory.total - memory.available),
        ram_total=_gib(memory.total),
        job_ram=_gib(sum(_resident(process) for process in own)),
        gpus=[_reading(nvml, number, name, handle, known) for number, _, name, handle in _gpus(nvml)],
    )


def _gpus(nvml: ModuleType) -> list[tuple[int, str, str, Any]]:
    """(number, what to put into CUDA_VISIBLE_DEVICES, name, NVML handle) of each GPU this process may use.

    The order is that of the PCI bus, NVML's own; jobs are started with CUDA_DEVICE_ORDER=PCI_BUS_ID to match.
    """
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    found: list[tuple[int, str, str, Any]] = []
    try:
        nvml.nvmlInit()
        entries = map(str, range(nvml.nvmlDeviceGetCount())) if wanted is None else wanted.split(",")
        for entry in map(str.strip, entries):
            handle = _handle(nvml, entry)
            if handle is None:
                break  # CUDA too ignores what follows the first entry that names no device
            found.append((len(found), entry, _text(nvml.nvmlDeviceGetName(handle)), handle))
    except nvml.NVMLError:
        return found  # no driver, or it went away
    return found


def _handle(nvml: ModuleType, entry: str) -> Any:
    try:
        if entry.isdigit():
            return nvml.nvmlDeviceGetHandleByIndex(int(entry))
        return nvml.nvmlDeviceGetHandleByUUID(entry.encode()) if entry.startswith(("GPU-", "MIG-")) else None
    except nvml.NVMLError:
        return None


def _reading(nvml: ModuleType, number: int, name: str, handle: Any, known: set[int]) -> dict[str, Any]:
    """What one GPU says; None for what it does not tell (a MIG slice has no load of its own, say)."""

    def ask(question):
        try:
            return question()
        except nvml.NVMLError:
            return None

    memory = ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    load = ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    power = ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
    processes = ask(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle)) or []
    return {
        "index": number,
        "name": name,
        "memory": _gib(memory.used) if memory else None,
        "memory_total": _gib(memory.total) if memory else None,
        "load": load.gpu if load else None,
        "temperature": ask(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        "power": round(power / 1000, 1) if power is not None else None,
        "foreign": [[p.pid, _gib(p.usedGpuMemory or 0)] for p in processes if _is_foreign(p.pid, known)],
    }


def _is_foreign(pid: int, known: set[int]) -> bool:
    """In a container the driver may tell pids of the host, which mean nothing here: those are left out."""
    return pid not in known and psutil.pid_exists(pid)


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def _gib(count: float) -> float:
    return round(count / GIB, 3)


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
