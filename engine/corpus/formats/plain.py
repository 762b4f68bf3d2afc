"""Plain text: a file is one document. Light."""

from collections.abc import Iterator
from pathlib import Path

from engine.corpus.formats import subtitles
from engine.corpus.formats.rows import Found, Options, Row, Warned, name_of, text_of


def read(path: Path, options: Options) -> Iterator[Found]:
    """One record of a text file; subtitles under another name are read as what they are, aloud."""
    for item in text_of(path):
        if not isinstance(item, str):
            yield item
        elif subtitles.is_timed(item[:4000]):
            yield Warned(
                "file", "subtitles by content", f"read as subtitles, though it is called {path.suffix or path.name}"
            )
            yield from (found for found in subtitles.read(path, options))
        else:
            yield Row("file", {"id": name_of(path), "source": item.strip(), "group": name_of(path)}, ready=True)
