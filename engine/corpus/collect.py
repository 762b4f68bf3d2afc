"""Fetching texts by lists of ids and addresses: PubMed Central, arXiv, subtitles of videos. Light.

Polite: one request at a time, a pause before each, a retry that heeds Retry-After. Resumable: what is there is not fetched
again. Origin and licence of every file stand in `.collected.jsonl` of the folder, and `prepare` puts them into the records.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import files
from engine.corpus.formats import jats
from engine.corpus.formats.rows import Options, Row
from engine.settings import ConfigError

MANIFEST = ".collected.jsonl"
AGENT = "hybridsum (text collection for summarisation; one request at a time)"
RETRIES = 4
LARGEST = 64 << 20  # bytes of an answer
PLACES = {
    "pmc": "https://eutils.ncbi.nlm.nih.gov/entrez/eutils/efetch.fcgi?db=pmc&tool=hybridsum&id={id}",
    "arxiv": "https://export.arxiv.org/oai2?verb=GetRecord&metadataPrefix=arXiv&identifier=oai:arXiv.org:{id}",
    "subtitles": "{id}",
}
PAUSES = {"pmc": 0.5, "arxiv": 3.0, "subtitles": 2.0}  # seconds; as the services ask for
ID = {
    "pmc": re.compile(r"(?:PMC)?(\d{1,9})", re.IGNORECASE),
    "arxiv": re.compile(r"(?:arXiv:)?((?:\d{4}\.\d{4,5}|[a-z.-]+/\d{7})(?:v\d+)?)", re.IGNORECASE),
    "subtitles": re.compile(r"(https?://\S+)"),
}


class Missing(Exception):
    """One text that cannot be had, and why; the next one is tried."""


@dataclass(frozen=True)
class Text:
    """A fetched text and where it comes from."""

    name: str  # of its file
    content: bytes
    title: str
    origin: str
    licence: str


@dataclass
class Report:
    fetched: int = 0
    present: int = 0
    failed: dict[str, str] | None = None  # id -> why


def ids(words: list[str], kind: str) -> list[str]:
    """Ids of the words, or of the files they name (one a line, # for remarks). Raises ConfigError for what is none."""
    lines = [line for word in words for line in _lines(word)]
    found, mistakes = [], []
    for where, line in lines:
        if match := ID[kind].fullmatch(line):
            found.append(match.group(1))
        else:
            mistakes.append(f"{where}: {line[:60]!r} is no {'address' if kind == 'subtitles' else f'id of {kind}'}")
    if mistakes:
        raise ConfigError(*mistakes[:10])
    return list(dict.fromkeys(found))


def _lines(word: str) -> list[tuple[str, str]]:
    path = Path(word)
    if not path.is_file():
        return [("collect", word.strip())]
    rows = enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1)
    return [(f"{path}: line {n}", row.strip()) for n, row in rows if row.strip() and not row.lstrip().startswith("#")]


def run(
    kind: str,
    wanted: list[str],
    folder: Path,
    say: Callable[[str], None],
    place: str = "",
    pause: float | None = None,
    language: str = "en",
) -> Report:
    """Fetch what is not there yet. place: another address of the service. Raises ConfigError for an unknown kind."""
    if kind not in PLACES:
        raise ConfigError(f"collect {kind}: unknown. Use one of {', '.join(PLACES)}")
    folder.mkdir(parents=True, exist_ok=True)
    report, held = Report(failed={}), {entry["id"] for entry in manifest(folder).values() if entry.get("kind") == kind}
    fetch = _subtitles(folder, language) if kind == "subtitles" else _fetcher(kind, place or PLACES[kind])
    for number, name in enumerate(wanted, 1):
        if name in held:
            report.present += 1
            continue
        time.sleep(PAUSES[kind] if pause is None else pause)
        try:
            text = fetch(name)
        except Missing as why:
            report.failed[name] = str(why)
            say(f"{number} of {len(wanted)}: {name}: {why}")
            continue
        files.replace(folder / text.name, text.content)
        _enter(folder, kind, name, text)
        report.fetched += 1
        say(f"{number} of {len(wanted)}: {name}: {text.title[:60] or text.name} ({text.licence or 'licence unknown'})")
    return report


def manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """{file name: its entry} of the files that are there and whole. A line cut by a crash counts for nothing."""
    found = {}
    try:
        lines = (folder / MANIFEST).read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    for line in lines:
        try:
            entry = json.loads(line)
            if (folder / entry["file"]).stat().st_size == entry["bytes"]:
                found[entry["file"]] = entry
        except (ValueError, KeyError, TypeError, OSError):
            continue
    return found


def _enter(folder: Path, kind: str, name: str, text: Text) -> None:
    entry = {
        "id": name,
        "kind": kind,
        "file": text.name,
        "bytes": len(text.content),
        "title": text.title,
        "origin": text.origin,
        "licence": text.licence,
        "t": round(time.time()),
    }
    with (folder / MANIFEST).open("ab") as file:
        if file.tell() and not (folder / MANIFEST).read_bytes().endswith(b"\n"):
            file.write(b"\n")  # a crash cut the last line
        file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _fetcher(kind: str, place: str) -> Callable[[str], Text]:
    """A function from an id to its text, over one connection."""
    import requests
    from urllib3.util import Retry

    session = requests.Session()
    session.headers["User-Agent"] = AGENT
    retry = Retry(total=RETRIES, backoff_factor=1, status_forcelist=(429, 500, 502, 503, 504), allowed_methods=("GET",))
    for scheme in ("https://", "http://"):
        session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=retry))

    def fetch(name: str) -> Text:
        url = place.replace("{id}", name)
        try:
            with session.get(url, timeout=60, stream=True) as answer:
                answer.raise_for_status()
                content = answer.raw.read(LARGEST + 1, decode_content=True)
        except (requests.RequestException, OSError) as error:
            raise Missing(f"{type(error).__name__}: {str(error)[:120]}") from None
        if len(content) > LARGEST:
            raise Missing(f"the answer is larger than {LARGEST >> 20} MiB")
        return _pmc(name, content) if kind == "pmc" else _arxiv(name, content)

    return fetch


def _pmc(name: str, content: bytes) -> Text:
    """A full text in JATS. Articles whose publisher gives no full text have no body."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"PMC{name}.xml"
        path.write_bytes(content)
        found = list(jats.read(path, Options()))
    row = next((item for item in found if isinstance(item, Row)), None)
    if row is None:
        raise Missing(
            "; ".join(f"{item.reason} ({item.detail})" for item in found if not isinstance(item, Row)) or "no article"
        )
    origin = f"https://www.ncbi.nlm.nih.gov/pmc/articles/PMC{name}/"
    return Text(f"PMC{name}.xml", content, row.content.get("title", ""), origin, row.content.get("licence", ""))


def _arxiv(name: str, content: bytes) -> Text:
    """Title and abstract; arXiv gives no full text in this way."""
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring

    try:
        root = fromstring(content)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise Missing(f"not readable XML ({str(error)[:80]})") from None
    fields = {e.tag.rpartition("}")[2]: " ".join((e.text or "").split()) for e in root.iter() if isinstance(e.tag, str)}
    if not fields.get("abstract"):
        raise Missing(fields.get("error") or "no abstract in the answer")
    origin = f"https://arxiv.org/abs/{name}"
    record = {
        "id": f"arxiv-{name}",
        "title": fields.get("title", ""),
        "source": fields["abstract"],
        "origin": origin,
        "licence": fields.get("license", ""),
    }
    record = {key: value for key, value in record.items() if value}
    data = json.dumps(record, ensure_ascii=False, indent=1).encode()
    return Text(
        f"arxiv-{name.replace('/', '_')}.json", data, fields.get("title", ""), origin, fields.get("license", "")
    )


def _subtitles(folder: Path, language: str) -> Callable[[str], Text]:
    """A function from the address of a video to its subtitles: a person's before the recogniser's. By yt-dlp."""
    import tempfile

    from yt_dlp import YoutubeDL
    from yt_dlp.utils import YoutubeDLError

    def fetch(url: str) -> Text:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".subtitles-") as place:
            options = {
                "skip_download": True, "writesubtitles": True, "writeautomaticsub": True, "subtitleslangs": [language],
                "subtitlesformat": "vtt/srt/best", "outtmpl": {"default": f"{place}/%(id)s.%(ext)s"}, "noplaylist": True,
                "quiet": True, "no_warnings": True, "noprogress": True, "logger": _Silent(), "retries": RETRIES,
                "ignore_no_formats_error": True, "restrictfilenames": True, "cachedir": False,
            }  # fmt: skip
            try:
                with YoutubeDL(options) as loader:
                    about = loader.extract_info(url, download=True) or {}
            except (YoutubeDLError, OSError) as error:
                raise Missing(re.sub(r"\x1b\[[\d;]*m", "", str(error))[:160]) from None
            found = sorted(path for path in Path(place).iterdir() if path.suffix in (".vtt", ".srt", ".json3", ".ass"))
            if not found:
                raise Missing(f"no subtitles in {language}")
            title, licence = about.get("title") or "", about.get("license") or ""
            return Text(found[0].name, found[0].read_bytes(), title, about.get("webpage_url") or url, licence)

    return fetch


class _Silent:
    """yt-dlp says nothing by itself; what fails is raised, and told in one line."""

    def debug(self, message: str) -> None: ...

    def warning(self, message: str) -> None: ...

    def error(self, message: str) -> None: ...


def known(path: Path, cache: dict[Path, dict]) -> Iterator[tuple[str, str]]:
    """(field, value) that the manifest beside a file knows of it. cache: folders already looked at."""
    if path.parent not in cache:
        cache[path.parent] = manifest(path.parent)
    entry = cache[path.parent].get(path.name, {})
    yield from ((field, entry[field]) for field in ("title", "origin", "licence") if entry.get(field))
