"""CSV, TSV and Parquet, row by row. Light."""

import csv
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.corpus.formats.rows import LARGEST_LINE, Found, Options, Refused, Row, Warned
from engine.settings import first_line

DELIMITERS = ",\t;|"


class _Lines:
    """Lines of a file as text, with the number of the newest and the first byte that is not UTF-8 since `begin`."""

    def __init__(self, file):
        self._file, self._offset = file, 0
        self.number, self.first, self.bad = 0, 1, None

    def begin(self) -> None:
        self.first, self.bad = self.number + 1, None

    def __iter__(self):
        return self

    def __next__(self) -> str:
        line = self._file.readline(LARGEST_LINE)
        if not line:
            raise StopIteration
        start, self._offset = self._offset, self._offset + len(line)
        self.number += 1
        if self.number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            self.bad = self.bad or start + error.start
            return line.decode("utf-8", "replace")


def read(path: Path, options: Options) -> Iterator[Found]:
    """Rows of a table whose first row names the columns; the separator is the one the first row has most of."""
    csv.field_size_limit(LARGEST_LINE)
    with path.open("rb") as file:
        separator = _separator(file.readline(LARGEST_LINE))
        file.seek(0)
        lines = _Lines(file)
        table = csv.reader(lines, delimiter=separator, strict=True)
        header = _header(table, lines)
        if isinstance(header, Refused):
            yield header
            return
        if separator not in ",\t":
            yield Warned("line 1", f"columns separated by {separator}", "guessed from the first line")
        rows = 0
        for found in _rows(table, lines, header):
            rows += 1
            yield found
        if not rows:
            yield Refused("file", "no records in it", "a table with a head and no rows")


def _separator(line: bytes) -> str:
    return max(DELIMITERS, key=lambda sign: line.count(sign.encode()))


def _header(table, lines: _Lines) -> list[str] | Refused:
    try:
        names = next(table, None)
    except csv.Error as error:
        return Refused("line 1", "not a table", str(error))
    if not names or not any(name.strip() for name in names):
        return Refused("file", "no records in it", "the file is empty")
    if lines.bad is not None:
        return Refused("line 1", "not UTF-8", f"byte {lines.bad} of the file")
    names = [name.strip() for name in names]
    if len(set(names)) < len(names):
        return Refused("line 1", "two columns of one name", ", ".join(sorted({n for n in names if names.count(n) > 1})))
    return names


def _rows(table, lines: _Lines, header: list[str]) -> Iterator[Found]:
    while True:
        lines.begin()
        try:
            cells = next(table, None)
        except csv.Error as error:
            yield Refused(f"line {lines.first}", "not a row of the table", str(error))
            continue
        if cells is None:
            return
        where = f"line {lines.first}"
        if lines.bad is not None:
            yield Refused(where, "not UTF-8", f"byte {lines.bad} of the file")
        elif not any(cell.strip() for cell in cells):
            continue
        elif len(cells) != len(header):
            yield Refused(where, "row of another length", f"{len(cells)} cells under {len(header)} columns")
        else:
            yield Row(where, {name: cell for name, cell in zip(header, cells, strict=True) if name and cell})


def read_parquet(path: Path, options: Options) -> Iterator[Found]:
    """Rows of a Parquet file, if pyarrow is installed."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        yield Refused("file", "Parquet needs pyarrow", "pip install pyarrow")
        return
    try:
        with parquet.ParquetFile(path) as file:
            batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=512))
            for number, content in enumerate(itertools.chain.from_iterable(batches), 1):
                yield Row(f"row {number}", {name: _plain(value) for name, value in content.items()})
    except (ArrowException, OSError, ValueError) as error:
        yield Refused("file", "not a readable Parquet file", first_line(error)[:120])


def _plain(value: Any) -> Any:
    """A cell as JSON can hold it: dates and exact numbers as text, what is not a number as null, lists cell by cell."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    return value if isinstance(value, str | int | None) else str(value)
