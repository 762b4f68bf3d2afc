"""The formats that are read, which file is which, and the table of the README. Light.

`python -m engine.corpus.formats.table` prints the table.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from engine.corpus.formats import hdf5, jats, json_rows, plain, subtitles, tabular, textgrid
from engine.corpus.formats.rows import Found, Options, Refused


class Format(NamedTuple):
    name: str
    suffixes: tuple[str, ...]
    becomes: str  # what a file turns into
    read: Callable[[Path, Options], Iterator[Found]] | None  # None: files of one recording are read together


FORMATS = (
    Format("JSON lines", (".jsonl", ".ndjson"), "a record per line", json_rows.read),
    Format("JSON", (".json",), "a record per entry of an array or key of an object, streamed; YouTube json3, transcript lists and Whisper output become one record a file, QMSum one per query", json_rows.read),
    Format("CSV, TSV", (".csv", ".tsv"), "a record per row; the first row names the columns", tabular.read),
    Format("Parquet", (".parquet",), "a record per row; needs pyarrow", tabular.read_parquet),
    Format("HDF5", (".h5", ".hdf5"), "a record per entry of the string arrays", hdf5.read),
    Format("SubRip", (".srt",), "one record a file", subtitles.read),
    Format("WebVTT", (".vtt",), "one record a file; notes, styles and cue settings left out", subtitles.read),
    Format("SubViewer", (".sbv",), "one record a file", subtitles.read),
    Format("SubStation", (".ass", ".ssa"), "one record a file (pysubs2)", subtitles.read_substation),
    Format("Praat TextGrid", (".textgrid",), "one record a recording; `visit_doctor` and `visit_patient` are merged by time", None),
    Format("JATS XML", (".xml", ".nxml"), "body and abstract, a record per article", jats.read),
    Format("Plain text", (".txt", ".md", ".text"), "one record a file", plain.read),
)  # fmt: skip
BY_SUFFIX = {suffix: form for form in FORMATS for suffix in form.suffixes}


class Source(NamedTuple):
    """The files that are read as one: a file, or the TextGrids of one recording. form: None if it is not known."""

    paths: tuple[Path, ...]
    form: Format | None

    @property
    def path(self) -> Path:
        return self.paths[0]


def sources(inputs: list[Path]) -> list[Source]:
    """Files of the inputs (of folders: all files in them, sorted), each with its format."""
    files = [path for given in inputs for path in (_inside(given) if given.is_dir() else [given])]
    recordings: dict[tuple[Path, str], list[Path]] = {}
    found: list[Source] = []
    for path in files:
        form = BY_SUFFIX.get(path.suffix.lower())
        if form and form.read is None:
            key = (path.parent, textgrid.recording(path))
            if key not in recordings:
                recordings[key] = []
                found.append(Source((path,), form))
            recordings[key].append(path)
        else:
            found.append(Source((path,), form))
    return [
        Source(tuple(recordings[source.path.parent, textgrid.recording(source.path)]), source.form)
        if source.form and source.form.read is None
        else source
        for source in found
    ]


def _inside(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def read(source: Source, options: Options) -> Iterator[Found]:
    """Rows, refusals and warnings of a file. Never raises for what the file holds."""
    if source.form is None:
        known = " ".join(sorted(BY_SUFFIX))
        yield Refused("file", "format not known", f"{source.path.suffix or 'no suffix'}; known are {known}")
        return
    try:
        if source.form.read is None:
            yield from textgrid.read(list(source.paths), options)
        else:
            yield from source.form.read(source.path, options)
    except OSError as error:
        yield Refused("file", "cannot be read", error.strerror or str(error))


def markdown() -> str:
    """The table of the README."""
    rows = [f"| {form.name} | {' '.join(f'`{s}`' for s in form.suffixes)} | {form.becomes} |" for form in FORMATS]
    return "\n".join(["| format | files | becomes |", "|---|---|---|", *rows])


if __name__ == "__main__":
    print(markdown())
