"""Damaged files of every format: no traceback, no hang, and every file read or refused."""

import json
import random
import signal
import time
from pathlib import Path

import pytest

from engine.corpus import prepare
from engine.corpus.formats import table
from engine.corpus.formats.rows import Options, Refused, Row
from engine.corpus.records import Record, read, write_hdf5
from engine.mixture import generator
from engine.settings import ConfigError

FILES = 200
SLOWEST = 5.0  # seconds for one file


def _cues(form: str) -> str:
    return "".join(form.format(n=n, a=f"00:00:{n:02d}", b=f"00:00:{n + 1:02d}") for n in range(1, 20))


ROW = {
    "id": "a",
    "modality": "paper",
    "source": "some text of a paper, ü 漢",
    "summary": "short",
    "year": 1999,
    "x": [1, {"y": None}],
}
GRID = (
    'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\nxmax = 9\ntiers? <exists>\nsize = 1\nitem []:\n item [1]:\n class = "IntervalTier"\n name = "A"\n xmin = 0\n xmax = 9\n intervals: size = 3\n'
    + "".join(f' intervals [{n}]:\n xmin = {n}\n xmax = {n + 1}\n text = "word {n}"\n' for n in range(3))
)
SEEDS = {
    "jsonl": "\n".join(json.dumps(ROW | {"id": str(n)}, ensure_ascii=n % 2 == 0) for n in range(8)),
    "json": json.dumps([ROW | {"id": str(n)} for n in range(8)], indent=1),
    "keyed.json": json.dumps({str(n): ROW for n in range(8)}),
    "whisper.json": json.dumps({"text": "a b", "segments": [{"start": n, "end": n + 1, "text": f" w{n}"} for n in range(9)]}),
    "json3.json": json.dumps({"events": [{"tStartMs": n, "segs": [{"utf8": f"w{n}", "tOffsetMs": 1}]} for n in range(9)]}),
    "cues.json": json.dumps([{"text": f"w{n}", "start": n, "duration": 1.5} for n in range(9)]),
    "qmsum.json": json.dumps({"meeting_transcripts": [{"speaker": "A", "content": "hi"}], "general_query_list": [{"query": "q", "answer": "a"}]}),
    "chat.jsonl": json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}) + "\n" + json.dumps({"conversations": [{"from": "human", "value": "q"}]}),
    "csv": "id,text,note\n" + "".join(f'{n},"a ""quoted""\nline {n}",x\n' for n in range(9)),
    "tsv": "id\ttext\tnote\n" + "".join(f"{n}\tsome text {n}\tx\n" for n in range(9)),
    "srt": _cues("{n}\n{a},000 --> {b},500\n<i>word</i> {n} &amp; more\n\n"),
    "vtt": "WEBVTT\nKind: captions\n\nNOTE a\n\n" + _cues("{a}.000 --> {b}.500 align:start\n<v Ann>word<00:00:01.000><c> {n}</c>\n\n"),
    "sbv": _cues("{a}.000,{b}.500\nword {n}\n\n").replace("00:00:", "0:00:"),
    "ass": "[Script Info]\nScriptType: v4.00+\n\n[V4+ Styles]\nFormat: Name, Fontsize\nStyle: Default,20\n\n[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n" + _cues("Dialogue: 0,0:00:01.00,0:00:09.00,Default,Ann,0,0,0,,{{\\i1}}word {n}\\Nmore\n"),
    "TextGrid": GRID,
    "xml": '<?xml version="1.0"?><article><front><article-meta><article-id pub-id-type="doi">1</article-id><abstract><p>a</p></abstract></article-meta></front><body>' + "<sec><title>t</title><p>some <i>text</i></p></sec>" * 8 + "</body></article>",
    "txt": "Plain words.\n\nMore of them, ü.\n" * 5,
}  # fmt: skip
INSERTED = (b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800", b"[" * 5000, b'{"a":' * 5000, b"9" * 6000, b"1e999", b"NaN", b"\r", b'"', b"<" * 300, b"\x1b[2J", b"-->", b"99:99:99,999 --> 1:1:1", b"<a>" * 3000, b"&x;", b"}}]]", b"\xe2\x80\xa8", b"A" * 70_000)  # fmt: skip


def mutated(data: bytes, chance: random.Random) -> bytes:
    """One to four of: cut, flipped bits, something inserted, a piece repeated, removed or moved, another encoding."""
    for _ in range(chance.randint(1, 4)):
        at, end = sorted((chance.randrange(len(data) + 1), chance.randrange(len(data) + 1)))
        how = chance.randrange(7)
        if how == 0:
            data = data[:at]
        elif how == 1:
            flipped = bytearray(data)
            for _ in range(chance.randint(1, 20)):
                if flipped:
                    flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
            data = bytes(flipped)
        elif how == 2:
            data = data[:at] + chance.choice(INSERTED) + data[at:]
        elif how == 3:
            data = data[:at] + data[at:end] * 3 + data[end:]
        elif how == 4:
            data = data[:at] + data[end:]
        elif how == 5:
            data = data[end:] + data[:at]
        else:
            data = data.decode("utf-8", "replace").encode(
                chance.choice(("utf-16", "utf-16-le", "cp1252", "utf-8-sig")), "replace"
            )
    return data


def _hdf5(path: Path) -> bytes:
    write_hdf5(path, [Record(str(n), "paper", f"text {n} " * 20, "s") for n in range(20)])
    return path.read_bytes()


def _parquet(path: Path) -> bytes:
    import pyarrow
    from pyarrow import parquet

    rows = {
        "id": [str(n) for n in range(40)],
        "text": [f"text {n} ü" * 9 for n in range(40)],
        "x": [[n] for n in range(40)],
    }
    parquet.write_table(pyarrow.table(rows), path, row_group_size=10)
    return path.read_bytes()


TRAINED_ON = (".jsonl", ".h5")  # what configs name
BINARY = {"h5": _hdf5, "parquet": _parquet}


def _seed(name: str, folder: Path) -> bytes:
    return BINARY[name](folder / "seed") if name in BINARY else SEEDS[name].encode()


def test_every_format_is_damaged():
    suffixes = {f".{name.rpartition('.')[2]}".lower() for name in (*SEEDS, *BINARY)}
    assert all(suffixes & set(form.suffixes) for form in table.FORMATS)


def _train_on(path: Path) -> None:
    """Training takes a file whole, or refuses it in lines that name it."""
    try:
        assert read(path)
    except ConfigError as error:
        assert all(line.startswith(str(path)) for line in error.lines)


def _read(path: Path) -> None:
    """Read a file as `prepare` does, in at most so many seconds, and see that it says what came of it."""

    def too_slow(*_):
        raise AssertionError(f"{path}: more than {SLOWEST} s")

    signal.signal(signal.SIGALRM, too_slow)
    signal.setitimer(signal.ITIMER_REAL, SLOWEST)
    try:
        (source,) = table.sources([path])
        found = list(table.read(source, Options()))
        if path.suffix in TRAINED_ON:
            _train_on(path)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert any(isinstance(item, Row | Refused) for item in found), f"{path}: neither read nor refused"
    assert all(item.reason and len(item.reason) < 60 for item in found if isinstance(item, Refused))


@pytest.mark.parametrize("name", [*SEEDS, *BINARY])
def test_damaged_files(tmp_path, name):
    seed = _seed(name, tmp_path)
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(FILES):
        path = folder / f"{number:03d}x.{name}"
        path.write_bytes(mutated(seed, generator("fuzz", name, number)))
        _read(path)
    for path in sorted(folder.iterdir())[FILES // 4 :]:
        path.unlink()
    started = time.monotonic()
    request = prepare.Request((folder,), "records" if "." in name else "documents", tmp_path / "o.jsonl")
    report = prepare.run(request, lambda line: None)
    assert report.read == report.written + sum(report.refused.values()) >= FILES / 8
    assert time.monotonic() - started < SLOWEST * 4
    if report.written:
        assert len((tmp_path / "o.jsonl").read_bytes().splitlines()) == report.written
