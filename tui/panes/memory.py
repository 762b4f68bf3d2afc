"""Pane 4: memory and load of the device while a job ran; processor and RAM where there is no GPU."""

from textual.content import Content
from textual.strip import Strip

from tui.chart import Curve, Picture, draw
from tui.pane import Pane
from tui.snapshot import Devices, Snapshot
from tui.text import YELLOW, shorten


class MemoryPane(Pane):
    NAME = "Memory"

    def part(self, snapshot: Snapshot) -> Devices:
        return snapshot.devices

    def title(self) -> str:
        part: Devices = self._part or Devices()
        if not part.readings:
            return "Memory"
        device = part.readings[-1].device
        if not device.gpus:
            return "Memory · no GPU: CPU and RAM"
        return "Memory · " + ", ".join(
            f"gpu{gpu.get('index', 0)} {_gib(gpu.get('memory'))} of {_gib(gpu.get('memory_total'))} GiB"
            for gpu in device.gpus
        )

    def body(self, width: int, height: int) -> list[Strip | Content]:
        part: Devices = self._part
        warnings = [Content.styled(shorten(text, width), YELLOW) for text in _foreign(part)][: max(0, height - 5)]
        return [*draw(_picture(part), width, height - len(warnings)), *warnings]


def _picture(part: Devices) -> Picture:
    empty = Picture(empty="No readings: the runner takes them while a job runs.")
    if not part.readings:
        return empty
    start = part.readings[0].t
    unit, seconds = ("min", 60) if part.readings[-1].t - start < 6000 else ("h", 3600)
    xs = tuple((reading.t - start) / seconds for reading in part.readings)
    before = [(start, stage) for t, stage in part.stages if t <= start][-1:]
    after = [(t, stage) for t, stage in part.stages if t > start]
    marks = tuple(((t - start) / seconds, stage) for t, stage in (*before, *after))
    curves, limits, notes = _gpus(part, xs) if part.readings[-1].device.gpus else _processor(part, xs)
    return Picture(curves, y_limits=limits, marks=marks, notes=notes, x_unit=unit, empty=empty.empty)


def _processor(part: Devices, xs: tuple[float, ...]):
    devices = [reading.device for reading in part.readings]
    last = devices[-1]
    ram = tuple(100 * d.ram / d.ram_total if d.ram_total and d.ram is not None else None for d in devices)
    curves = (
        Curve("cpu", xs, tuple(d.cpu for d in devices), _words(last.cpu, "%")),
        Curve("ram", xs, ram, f"{last.ram:.1f}/{last.ram_total:.0f} GB" if last.ram_total else ""),
        Curve(
            "job", xs, tuple(100 * (d.job_ram or 0) / d.ram_total if d.ram_total else None for d in devices),
            f"{last.job_ram or 0:.1f} GB",
        ),
    )  # fmt: skip
    return curves, (0.0, 100.0), ("", "axis: percent")


def _gpus(part: Devices, xs: tuple[float, ...]):
    gpus = part.readings[-1].device.gpus
    curves, notes, top = [], [], 0.0
    for place, gpu in enumerate(gpus):
        used = tuple(_of(reading, place).get("memory") for reading in part.readings)
        top = max(top, gpu.get("memory_total") or max((value for value in used if value), default=1.0))
        name = f"gpu{gpu.get('index', place)}"
        curves.append(Curve(name, xs, used, f"{_gib(gpu.get('memory'))} GiB"))
        load = _words(gpu.get("load"), "%"), _words(gpu.get("temperature"), "°C"), _words(gpu.get("power"), "W")
        notes.append(" ".join(word for word in load if word))
    return tuple(curves), (0.0, top), tuple(notes)


def _of(reading, place: int) -> dict:
    return reading.device.gpus[place] if place < len(reading.device.gpus) else {}


def _foreign(part: Devices) -> list[str]:
    """Processes of others on our cards: why memory is short."""
    gpus = part.readings[-1].device.gpus if part.readings else []
    return [
        f"! foreign process {pid} holds {_gib(memory)} GiB of gpu{gpu.get('index', 0)}"
        for gpu in gpus
        for pid, memory in gpu.get("foreign") or []
    ]


def _gib(value: float | None) -> str:
    return "?" if value is None else f"{value:.1f}"


def _words(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.0f} {unit}"


def in_words(reading) -> str:
    """The newest reading in one line, for the head of the screen."""
    device = reading.device
    words = [f"cpu {device.cpu or 0:.0f} %", f"ram {device.ram or 0:.1f}/{device.ram_total or 0:.0f} GB"]
    for gpu in device.gpus:
        facts = f"{_gib(gpu.get('memory'))}/{_gib(gpu.get('memory_total'))} GiB", _words(gpu.get("load"), "%")
        heat = _words(gpu.get("temperature"), "°C"), _words(gpu.get("power"), "W")
        words.append(" ".join(word for word in (f"gpu{gpu.get('index', 0)}", *facts, *heat) if word))
    return "  ".join(words)
