"""From the keys and texts of a row to a record that can be trusted, or the reason why it is none. Light."""

import hashlib
import json
import re
from typing import Any, NamedTuple

from engine.corpus.formats.rows import Refused, Row, Warned
from engine.corpus.formats.shapes import Shaped
from engine.corpus.records import FIELDS, is_blank

CONTROL = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # titles, links and the clipboard of a terminal
    r"|\x1b\[[0-?]*[ -/]*[@-~]"  # its colours and cursor moves
    r"|\x1b[ -/]*[0-~]?|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
)
LINE_END = re.compile(r"\r\n?")
LONG = 100_000  # characters; above it every model here cuts
WORD = re.compile(r"\w")
OPTIONAL = tuple(name for name in FIELDS if name not in ("id", "modality", "source", "summary"))


class Kind(NamedTuple):
    """What `--as` names. modality: of every record; None keeps the record's own. summary: a record needs one."""

    modality: str | None
    summary: bool


KINDS = {
    "papers": Kind("paper", True),
    "videos": Kind("video", True),
    "pairs": Kind(None, True),
    "documents": Kind("document", False),
    "procedures": Kind("procedure", False),
    "qa": Kind("qa", True),
    "records": Kind(None, False),
}


class Rules(NamedTuple):
    """How rows are judged. make_ids: an id follows from the text where our own keys are used without one."""

    kind: Kind
    without_summary: bool = False
    make_ids: bool = False


def record(shape: Shaped, row: Row, name: str, rules: Rules) -> tuple[dict[str, Any] | Refused, list[Warned]]:
    """The JSON object of a record (or the refusal), and what was changed or looks odd. name: of the file."""
    content, warnings = dict(shape.content), []
    if shape.guess:
        warnings.append(Warned(row.where, "keys guessed", f"{shape.guess}. --map source=KEY says it for sure"))
    wrong = _wrong_types(content, rules)
    if wrong:
        return Refused(row.where, *wrong), warnings
    for key in OPTIONAL:
        if content.get(key) is not None and not isinstance(content[key], str):
            value = content.pop(key)
            warnings.append(Warned(row.where, f"{key} is not text", f"{_kind(value)}; it is left out"))
    content = {key: value for key, value in content.items() if value is not None}
    if _tidy(content):
        warnings.append(Warned(row.where, "control characters removed", "escape sequences or control characters"))
    fault = (
        _incomplete(content, row, rules) or _identified(content, shape, row, name, rules) or _modality(content, rules)
    )
    if fault:
        return Refused(row.where, *fault), warnings
    try:
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return Refused(row.where, "half of a character", "a lone surrogate in a text"), warnings
    except (ValueError, RecursionError, TypeError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else "a value that is no JSON"
        return Refused(row.where, reason, str(error)[:60]), warnings
    return content, warnings + list(_odd(content, row.where, rules))


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def _wrong_types(content: dict, rules: Rules) -> tuple[str, str] | None:
    for key in ("id", "source", "summary", "modality"):
        value = content.get(key)
        if value is None or isinstance(value, str):
            continue
        texts = isinstance(value, list) and value and all(isinstance(item, str) for item in value)
        return f"{key} is not text", f"a list of {len(value)} texts: --join makes one text of it" if texts else _kind(
            value
        )
    return None


def _tidy(content: dict) -> bool:
    """Unify line ends and take control characters out of our fields, in place; True if there were any."""
    removed = False
    for key in FIELDS:
        if text := content.get(key):
            plain = LINE_END.sub("\n", text) if "\r" in text else text
            if CONTROL.search(plain):
                plain, removed = CONTROL.sub("", plain), True
            content[key] = plain if key in ("source", "summary", "instruction") else plain.strip()
    return removed


def _incomplete(content: dict, row: Row, rules: Rules) -> tuple[str, str] | None:
    if "source" not in content:
        found = ", ".join(str(key)[:40] for key in list(row.content)[:12]) or "nothing"
        return "no source", f"found: {found}. Name it: --map source=KEY"
    needs = rules.kind.summary and not rules.without_summary and not row.ready
    if "summary" not in content and needs:
        found = ", ".join(str(key)[:40] for key in list(row.content)[:12])
        return "no summary", f"found: {found}. Name it: --map summary=KEY; --without-summary accepts it"
    for key in ("source", "summary"):
        if key in content and is_blank(content[key]):
            if key == "summary" and not needs:
                del content[key]
            else:
                return f"{key} is empty", "nothing visible in it"
    return None


def _identified(content: dict, shape: Shaped, row: Row, name: str, rules: Rules) -> tuple[str, str] | None:
    if "id" in content and not is_blank(content["id"]):
        return None
    if "id" in content:
        return "id is empty", "nothing visible in it"
    if not (shape.foreign or rules.make_ids):
        return "no id", "--make-ids makes one of the text"
    text = "\0".join(content.get(key, "") for key in ("instruction", "source", "summary"))
    content["id"] = f"{name}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
    return None


def _modality(content: dict, rules: Rules) -> tuple[str, str] | None:
    own, wanted = content.get("modality"), rules.kind.modality
    if own and wanted and own != wanted:
        return "another modality", f"it says {own[:40]!r}, but is read as {wanted!r}"
    if not (own or wanted):
        return "no modality", "name it in the file, or use --as papers (videos, documents, ...)"
    content["modality"] = own or wanted
    if not content.get("pair_id"):
        content.pop("pair_id", None)
    return None


def _odd(content: dict, where: str, rules: Rules):
    source, summary = content["source"], content.get("summary")
    if len(source) > LONG:
        yield Warned(where, "very long source", f"{len(source):,} characters; training cuts it (data.max_length)")
    if not WORD.search(source[:LONG]):
        yield Warned(where, "source without words")
    if summary is None:
        if rules.kind.summary:
            yield Warned(where, "no summary", "it can be summarised, not trained on")
    elif summary.strip() == source.strip():
        yield Warned(where, "summary is the source")
    elif len(summary) > len(source):
        yield Warned(where, "summary longer than its source", f"{len(summary):,} against {len(source):,} characters")
