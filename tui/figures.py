"""Numbers as people read them: short, and of a width that stays."""

import math
import time


def duration(seconds: float | None) -> str:
    """45s, 38m, 2h10, 3d04: never more than five characters below a hundred days."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    whole = max(0, int(seconds))
    if whole < 100:
        return f"{whole}s"
    minutes = round(whole / 60)
    if minutes < 100:
        return f"{minutes}m"
    if minutes < 48 * 60:
        return f"{minutes // 60}h{minutes % 60:02}"
    return f"{minutes // 1440}d{minutes % 1440 // 60:02}"


def number(value: float | None) -> str:
    """Three or four significant figures: 0.0312, 1.31, 24.9, 1,842, 3.1e+05."""
    if value is None or not math.isfinite(value):
        return "not finite"
    size = abs(value)
    if size == 0:
        return "0"
    if size < 0.001:
        return f"{value:.1e}"
    if size < 0.1:
        return f"{value:.4f}"
    if size < 10:
        return f"{value:.2f}" if size >= 1 else f"{value:.3f}"
    if size < 1000:
        return f"{value:.1f}"
    return f"{value:,.0f}" if size < 100_000 else f"{value:.1e}"


def size(count: float) -> str:
    """Bytes as 168 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def axis(value: float) -> str:
    """A tick: 0.5, 40, 2.5k."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.6g}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %" if abs(share) < 0.1 else f"{100 * share:.0f} %"


def clock(t: float, seconds: bool = True) -> str:
    return time.strftime("%H:%M:%S" if seconds else "%H:%M", time.localtime(t))


def day(t: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(t))


def bar(done: float | None, total: float | None, cells: int) -> str:
    """A progress bar of whole cells: it changes, and is sent, only when it moves."""
    share = min(1.0, max(0.0, done / total)) if done is not None and total else 0.0
    full = int(share * cells)
    return "█" * full + "░" * (cells - full)
