"""The verb `prepare`: arguments in, the report in words. The work is in engine/corpus/prepare.py."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from engine.settings import ConfigError

if TYPE_CHECKING:
    from engine.corpus.prepare import Report


def mapping(words: list[str]) -> dict[str, str]:
    """{"source": "transcript"} of ["source=transcript"]. Raises ConfigError."""
    from engine.corpus.records import FIELDS

    found = {}
    for word in words:
        ours, equals, theirs = word.partition("=")
        if not equals or not theirs or ours not in FIELDS:
            raise ConfigError(f"--map {word}: write OURS=THEIRS, such as source=transcript. Ours: {', '.join(FIELDS)}")
        found[ours] = theirs
    return found


def shares(text: str | None) -> tuple[float, ...]:
    """(0.8, 0.1, 0.1) of "0.8/0.1/0.1" or of "80/10/10". Raises ConfigError."""
    if not text:
        return ()
    try:
        found = tuple(float(word) for word in re.split("[/,:]", text))
    except ValueError:
        raise ConfigError(f"--split {text}: write shares, such as 0.8/0.1/0.1") from None
    return tuple(share / 100 for share in found) if abs(sum(found) - 100) < 1e-6 else found


def text(report: "Report", inputs: list[Path]) -> str:
    """The totals, for a person."""
    lines = [f"read {report.read:,} from {', '.join(map(str, inputs[:3]))}{' ...' if len(inputs) > 3 else ''}"]
    lines += [f"  refused  {count:>9,}  {reason}" for reason, count in report.refused.most_common()]
    lines += [f"  warning  {count:>9,}  {reason}" for reason, count in report.warnings.most_common()]
    lines += [f"  wrote    {count:>9,}  {path}" for path, count in report.files.items()]
    if report.report:
        lines.append(f"every line that was refused or warned of: {report.report}")
    return "\n".join(lines)


def summaries(inputs: list[Path], embeddings: Path | None, out: Path) -> tuple[dict, str, list[str]]:
    """`prepare summary`: (facts, text for a person, refusals). Raises ConfigError."""
    from engine.corpus import summary_only

    if embeddings is None or not inputs:
        raise ConfigError("prepare summary: write prepare summary IN... --embeddings FOLDER --out FOLDER")
    parts = summary_only.run(inputs, embeddings, out)
    facts = {
        "read": sum(part.entries for part in parts),
        "written": sum(part.kept for part in parts),
        "parts": {part.name: part.facts() for part in parts},
        "out": str(out),
    }
    lines = [
        f"{part.name:<6} {part.kept:>9,} of {part.entries:>9,} entries are summaries "
        f"({', '.join(f'{task} {count:,}' for task, count in part.tasks.most_common())})"
        for part in parts
    ]
    return facts, "\n".join([*lines, f"written below {out}"]), [line for part in parts for line in part.refusals]
