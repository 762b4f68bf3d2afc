"""The only way foreign text (data, summaries, logs, messages, names) reaches the screen: made harmless here."""

import re
import unicodedata

from rich.cells import cell_len, set_cell_size
from textual.color import Color
from textual.content import Content
from textual.style import Style

ESCAPE_SEQUENCES = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC: window title, clipboard, links
    r"|\x1b[PX^_].*?(?:\x1b\\|$)"  # DCS, SOS, PM, APC
    r"|\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor moves
    r"|\x1b[ -/]*[0-~]?",  # anything else that starts with ESC
    re.DOTALL,
)
DIRECTION_MARKS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
REPLACED = frozenset(("Cc", "Cs", "Co", "Cn", "Zl", "Zp"))  # controls, lone surrogates, private use, unassigned

# The terminal's own sixteen colours: few bytes on the wire, and readable on light and dark screens alike.
PLAIN = Style()
BOLD = Style(bold=True)
DIM = Style(foreground=Color.parse("ansi_bright_black"))
CURSOR = Style(reverse=True)
RED, GREEN, YELLOW, BLUE, CYAN, MAGENTA = (
    Style(foreground=Color.parse(f"ansi_{name}")) for name in ("red", "green", "yellow", "blue", "cyan", "magenta")
)


def clean(text: object, limit: int = 4000) -> str:
    """Text without escape sequences; other controls and direction marks become U+FFFD, line ends stay."""
    plain = ESCAPE_SEQUENCES.sub("", str(text)[: 2 * limit]).replace("\r\n", "\n").expandtabs(4)
    if not plain.isprintable():
        plain = "".join(map(_shown, plain))
    return plain if len(plain) <= limit else plain[:limit] + "…"


def _shown(character: str) -> str:
    if character == "\n" or character.isprintable() and character not in DIRECTION_MARKS:
        return character
    category = unicodedata.category(character)
    if category in REPLACED or character in DIRECTION_MARKS:
        return "\ufffd"
    return " " if category == "Zs" else ""  # invisible marks such as the soft hyphen have no place in a cell


def line(text: object, limit: int = 1000) -> str:
    """Clean text on one line."""
    return " ".join(clean(text, limit).split("\n")).strip()


def safe(text: object, style: Style = PLAIN, limit: int = 4000) -> Content:
    """Foreign text for any widget: shown letter by letter, never read as markup."""
    return Content.styled(clean(text, limit), style) if style is not PLAIN else Content(clean(text, limit))


def shorten(text: object, cells: int) -> str:
    """Clean text on one line, cut to a number of cells (wide characters take two)."""
    if cells <= 0:
        return ""
    plain = line(text, max(4 * cells, 16))
    return plain if cell_len(plain) <= cells else set_cell_size(plain, cells - 1) + "…"


def pad(text: object, cells: int, right: bool = False) -> str:
    """Exactly so many cells, shortened or filled with blanks; `right` puts the text at the right edge."""
    plain = shorten(text, cells)
    blanks = " " * max(0, cells - cell_len(plain))
    return blanks + plain if right else plain + blanks


def wrapped(text: object, cells: int, lines: int = 100) -> list[str]:
    """Clean text in lines of at most so many cells, broken at blanks where there are some."""
    if cells <= 0:
        return []
    found: list[str] = []
    for paragraph in clean(text).split("\n"):
        row = ""
        for word in paragraph.split(" "):
            while cell_len(word) > cells:
                if row:
                    found, row = [*found, row], ""
                head = _fitting(word, cells)
                found, word = [*found, word[:head]], word[head:]
            joined = f"{row} {word}" if row else word
            if cell_len(joined) <= cells:
                row = joined
            else:
                found, row = [*found, row], word
        if row or not paragraph.strip():
            found.append(row)
        if len(found) > lines:
            break
    return found if len(found) <= lines else [*found[: lines - 1], shorten(found[lines - 1] + " …", cells)]


def _fitting(word: str, cells: int) -> int:
    """How many characters of a word fit; at least one, so that a loop over it ends."""
    used = 0
    for number, character in enumerate(word):
        used += cell_len(character)
        if used > cells:
            return max(1, number)
    return len(word)


def parts(*pieces: str | tuple[str, Style] | Content) -> Content:
    """One Content from our own pieces: plain, styled or ready. Plain pieces are taken as text, never as markup."""
    return Content.assemble(
        *(
            piece if isinstance(piece, Content) else Content(piece) if isinstance(piece, str) else _styled(*piece)
            for piece in pieces
        )
    )


def _styled(text: str, style: Style) -> Content:
    return Content.styled(text, style) if style is not PLAIN else Content(text)
