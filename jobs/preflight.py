"""The verb `data`: what training will see of the data of a config. Tokens are counted in a child."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.configs import dump
from engine.corpus.split import assemble
from engine.settings import Settings
from jobs import child
from jobs.home import Home
from jobs.submit import fingerprint, is_complete_base

WIDTH = 40  # of the longest bar
LINES = 6  # of a sample


def facts(home: Home, settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    """Records, tokens, what is cut, what is learnt from, leaks, samples. Raises ConfigError for data that cannot be read."""
    corpus = assemble(settings.data, home.cache)  # its complaints come at once
    spec = {"settings": dump(settings), "model": _model(home, settings, corpus)}
    return child.run("engine.preflight", spec, say)


def _model(home: Home, settings: Settings, corpus) -> str:
    """Where the tokenizer is; empty for a base that is not built yet."""
    if settings.model.name_or_path:
        path = Path(settings.model.name_or_path).expanduser()
        return str(path.absolute()) if path.is_dir() else settings.model.name_or_path
    if not settings.model.build:
        return ""
    folder = home.base(fingerprint(settings, corpus))
    return str(folder) if is_complete_base(folder) else ""


def text(value: dict[str, Any]) -> str:
    """The facts for a person."""
    lines = []
    for source, part in value["sources"].items():
        counted = "" if part["counted"] == part["records"] else f" ({part['counted']:,} counted)"
        lines.append(
            f"{source}: {part['records']:,} documents{counted}, longest {part['longest']:,} tokens, {_share(part['truncated'], part['counted'])} longer than data.max_length {value['max_length']:,}"
        )
        lines += bars(part["histogram"])
    if value["label_share"] is not None:
        lines.append(f"learnt from: {value['label_share']:.1%} of the tokens (summaries); the rest is read only")
    lines += [f"! {line}" for line in value["warnings"]]
    for sample in value["samples"]:
        lines.append(f"{sample['source']} {sample['id']}: masked (read, not learnt) | learnt")
        lines += [f"  {name} | {row}" for name, told in pieces(sample) for row in _brief(told)]
    return "\n".join(lines)


def pieces(sample: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, text) of what the model reads of a sample, what it learns, and what was left out, if anything."""
    found = [("masked", sample["masked"]), ("learnt", sample["learnt"])]
    if sample["cut"]:
        place = (
            f"{sample['cut']:,} tokens after the first {sample['cut_after']:,}: "
            if sample["cut_after"]
            else f"the first {sample['cut']:,} tokens: "
        )
        found.append(("left out", place + sample["cut_text"]))
    return found


def bars(histogram: dict[str, list[int]]) -> list[str]:
    """One row per bin: its upper end, a bar, its count."""
    most = max(histogram["counts"], default=0)
    return [
        f"  up to {edge:>7,} {'█' * -(-WIDTH * count // most) if count else '':<{WIDTH}} {count:,}"
        for edge, count in zip(histogram["edges"], histogram["counts"], strict=True)
    ]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"


def _brief(shown: str) -> list[str]:
    """The first and the last lines of a text, each of bounded length."""
    rows = [row if len(row) <= 160 else f"{row[:100]} … {row[-50:]}" for row in shown.split("\n")]
    return rows if len(rows) <= LINES else [*rows[: LINES // 2], "…", *rows[-LINES // 2 :]]
