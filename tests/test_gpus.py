"""Readings, with made-up values in the place of the driver."""

import os
from types import SimpleNamespace

import pytest

from jobs import doctor, gpus

GIB = 2**30
HERE = os.getpid()


class NoAnswer(Exception):
    pass


def nvml(cards: list[dict] | None, uuids: dict[bytes, int] | None = None) -> SimpleNamespace:
    """A stand-in for pynvml; cards None: no driver. A card's value None: the driver does not tell."""

    def start():
        if cards is None:
            raise NoAnswer("library not found")

    def by_index(index):
        if index >= len(cards):
            raise NoAnswer("no such device")
        return cards[index]

    def told(name):
        def ask(card, *_):
            if card.get(name) is None:
                raise NoAnswer("not supported")
            return card[name]

        return ask

    return SimpleNamespace(
        NVMLError=NoAnswer,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=start,
        nvmlSystemGetDriverVersion=lambda: b"580.10",
        nvmlDeviceGetCount=lambda: len(cards),
        nvmlDeviceGetHandleByIndex=by_index,
        nvmlDeviceGetHandleByUUID=lambda uuid: by_index((uuids or {}).get(uuid, 99)),
        nvmlDeviceGetName=told("name"),
        nvmlDeviceGetMemoryInfo=told("memory"),
        nvmlDeviceGetUtilizationRates=told("load"),
        nvmlDeviceGetTemperature=told("temperature"),
        nvmlDeviceGetPowerUsage=told("power"),
        nvmlDeviceGetComputeRunningProcesses=told("processes"),
    )


def card(name: str, **values) -> dict:
    return {
        "name": name,
        "memory": SimpleNamespace(used=3 * GIB // 2, total=16 * GIB),
        "load": SimpleNamespace(gpu=97),
        "temperature": 71,
        "power": 248_400,
        "processes": [],
    } | values


@pytest.fixture(autouse=True)
def no_choice(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_values_and_units():
    reading = gpus.read(nvml=nvml([card("RTX 5070 Ti")]))
    assert reading.gpus == [
        {
            "index": 0, "name": "RTX 5070 Ti", "memory": 1.5, "memory_total": 16.0, "load": 97, "temperature": 71,
            "power": 248.4, "foreign": [],
        }
    ]  # fmt: skip
    assert 0 <= reading.cpu <= 100 and 0 < reading.ram < reading.ram_total and reading.job_ram == 0


def test_no_driver_is_no_complaint():
    reading = gpus.read(HERE, nvml=nvml(None))
    assert reading.gpus == [] and reading.job_ram > 0
    assert [(slot.index, slot.visible) for slot in gpus.slots(nvml(None))] == [(0, None)]
    assert gpus.driver(nvml(None)) is None and gpus.driver(nvml([])) == "580.10"


def test_foreign_processes_are_those_that_are_not_ours():
    init = SimpleNamespace(pid=1, usedGpuMemory=2 * GIB)
    ours = SimpleNamespace(pid=HERE, usedGpuMemory=GIB)
    elsewhere = SimpleNamespace(pid=2**22 + 5, usedGpuMemory=GIB)  # a pid of another container's host
    silent = SimpleNamespace(pid=1, usedGpuMemory=None)
    driver = nvml([card("A", processes=[init, ours, elsewhere]), card("B", processes=[silent])])
    assert [gpu["foreign"] for gpu in gpus.read(HERE, nvml=driver).gpus] == [[[1, 2.0]], [[1, 0.0]]]
    assert gpus.read(None, ours=[HERE], nvml=driver).gpus[0]["foreign"] == [[1, 2.0]]


def test_what_the_driver_does_not_tell_is_none():
    slice_of_a_card = card("MIG", load=None, power=None, temperature=None, processes=None)
    reading = gpus.read(nvml=nvml([slice_of_a_card])).gpus[0]
    assert (reading["load"], reading["power"], reading["temperature"], reading["foreign"]) == (None, None, None, [])


@pytest.mark.parametrize(
    ("wanted", "visible"),
    [
        (None, ["0", "1", "2"]),
        ("2,0", ["2", "0"]),
        ("1", ["1"]),
        ("", [None]),
        ("-1", [None]),
        ("0,7,1", ["0"]),  # CUDA ignores what follows an unknown entry
        ("GPU-b", ["GPU-b"]),
    ],
)
def test_slots_are_the_visible_gpus(monkeypatch, wanted, visible):
    if wanted is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", wanted)
    found = gpus.slots(nvml([card("A"), card("B"), card("C")], {b"GPU-b": 1}))
    assert [slot.visible for slot in found] == visible
    assert [slot.index for slot in found] == list(range(len(visible)))


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((12, 0), ["sm_80", "sm_90", "sm_120"], True),
        ((12, 0), ["sm_80", "sm_90"], False),
        ((12, 0), ["sm_80", "compute_90"], True),
        ((8, 9), ["sm_80", "sm_86"], True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_90a"], True),
    ],
)
def test_whether_a_build_of_torch_has_code_for_a_card(capability, built, runs):
    assert doctor.runs_on(capability, built) is runs
