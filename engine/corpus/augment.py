"""Other ways to say the same source, for training: a record, a seed and an epoch give one text, always the same. Light.

METHODS section 15: the order of parameters, their heading, the prompt, everyday business words, and how a module's name is
written may change. Values, numbers, identifiers, quotations and the summary never do. Division into parts comes first.
"""

import random
import re
from collections.abc import Callable
from dataclasses import replace

from engine.corpus import instructions
from engine.corpus.lexicon import canonical
from engine.corpus.records import Record
from engine.mixture import generator

HEADING = re.compile(r"^(?P<indent>[ \t]*)(?P<name>(?:Procedure |Input )?Parameters(?: List)?):[ \t]*$")
HEADINGS = ("Parameters", "Procedure Parameters", "Input Parameters", "Parameters List")
ENTRY = re.compile(r"^[ \t]*[-*•][ \t]+\S")
MODULE = re.compile(
    r"^[ \t]*Module(?: name)?:[ \t]*(?P<name>[A-Za-z][\w -]{1,80}?)[ \t]*$", re.MULTILINE | re.IGNORECASE
)
WORDS = (  # each group means the same in a procedure, in both directions
    ("customer", "client"),
    ("vendor", "supplier"),
    ("employee", "staff member"),
    ("purchase", "buy"),
    ("terminate", "end"),
    ("utilize", "use"),
    ("verify", "check"),
    ("prior to", "before"),
    ("in order to", "to"),
    ("remuneration", "pay"),
    ("commence", "begin"),
)
# Nothing inside these is touched: quotations, code, placeholders, identifiers, addresses, numbers with their units.
KEPT = re.compile(
    r"\"[^\"\n]*\"|“[^”\n]*”|`[^`\n]*`|'[^'\n]*'|\{[^{}\n]*\}|\$\{?\w+\}?|<[^<>\n]*>|\S*[_/\\@=.]\w\S*|\b\w*\d\w*\b|\b[a-z]+[A-Z]\w*|\b[A-Z]{2,}\w*\b|\b[A-Z][a-z0-9]+[A-Z]\w*"
)
_VARIANT = {word: tuple(other for other in group if other != word) for group in WORDS for word in group}
_WORD = re.compile(
    rf"(?<![\w-])(?:{'|'.join(sorted(map(re.escape, _VARIANT), key=len, reverse=True))})(?![\w-])", re.IGNORECASE
)


def augmented(record: Record, seed: int, epoch: int) -> Record:
    """The record as epoch `epoch` sees it; epoch 0 sees it as it is. Its summary and its id stay."""
    if epoch == 0:
        return record
    chance = generator("augment", seed, epoch, record.id)
    source = record.source
    for change in (reordered, headed, reworded, renamed):
        source = change(source, chance)
    return replace(record, source=source, instruction=asked(record, chance))


def asked(record: Record, chance: random.Random) -> str | None:
    """Another wording of a plain request for a summary; any other instruction stays. None is the plain request."""
    plain, *others = instructions.requests(record.modality)
    chosen = chance.choice([None, *others])
    return chosen if record.instruction in (None, plain, *others) else record.instruction


def reordered(source: str, chance: random.Random) -> str:
    """Shuffle the bulleted entries below a heading of parameters; an entry keeps its further lines. Numbered lists stay."""
    lines, at = source.split("\n"), 0
    while at < len(lines):
        if HEADING.match(lines[at]):
            end = _end(lines, at + 1)
            lines[at + 1 : end] = _shuffled(lines[at + 1 : end], chance)
            at = end
        else:
            at += 1
    return "\n".join(lines)


def _end(lines: list[str], start: int) -> int:
    """Past the last line of the block that begins at `start`: a blank line, or a line that is neither entry nor indented."""
    end = start
    while end < len(lines) and (
        ENTRY.match(lines[end]) or (end > start and lines[end][:1] in (" ", "\t") and lines[end].strip())
    ):
        end += 1
    return end


def _shuffled(lines: list[str], chance: random.Random) -> list[str]:
    if not lines:
        return lines
    margin = min(len(line) - len(line.lstrip()) for line in lines)
    entries: list[list[str]] = []
    for line in lines:
        if (ENTRY.match(line) and len(line) - len(line.lstrip()) == margin) or not entries:
            entries.append([])
        entries[-1].append(line)
    chance.shuffle(entries)
    return [line for entry in entries for line in entry]


def headed(source: str, chance: random.Random) -> str:
    """Another heading over the parameters, the same over all of them."""
    chosen = chance.choice(HEADINGS)
    lines = source.split("\n")
    return "\n".join(f"{match['indent']}{chosen}:" if (match := HEADING.match(line)) else line for line in lines)


def reworded(source: str, chance: random.Random) -> str:
    """Each of the known words in another wording or as it is, the same throughout a text; parameters stay untouched."""
    chosen = {word: chance.choice((word, *others)) for word, others in _VARIANT.items()}

    def word(match: re.Match) -> str:
        return _cased(match.group(), chosen[match.group().lower()])

    return "\n".join(
        line if ENTRY.match(line) or MODULE.match(line) else _outside(line, lambda piece: _WORD.sub(word, piece))
        for line in source.split("\n")
    )


def _cased(model: str, word: str) -> str:
    return word[0].upper() + word[1:] if model[0].isupper() else word


def _outside(line: str, change: Callable[[str], str]) -> str:
    """Change a line except for what must be kept letter by letter."""
    pieces, at = [], 0
    for match in KEPT.finditer(line):
        pieces += [change(line[at : match.start()]), match.group()]
        at = match.end()
    return "".join([*pieces, change(line[at:])])


def renamed(source: str, chance: random.Random) -> str:
    """Write the name on a `Module:` line as AccountsPayable, accounts_payable, accounts-payable or Accounts Payable, all through."""
    match = MODULE.search(source)
    if (
        not match
        or not (words := canonical(match["name"]).split(" "))[1:]
        or canonical(_pascal(words)) != " ".join(words)
    ):
        return source
    forms = (_pascal(words), "_".join(words), "-".join(words), " ".join(word.capitalize() for word in words))
    chosen = chance.choice(forms)
    return re.sub(rf"(?<![\w-]){re.escape(match['name'])}(?![\w-])", lambda _: chosen, source)


def _pascal(words: list[str]) -> str:
    return "".join(word.capitalize() for word in words)
