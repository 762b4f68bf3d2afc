"""Articles in JATS, as PubMed Central and publishers give them: body and abstract. Light."""

from collections.abc import Iterator
from pathlib import Path

from engine.corpus.formats.rows import Found, Options, Refused, Row, Warned, name_of, whole

LEFT_OUT = frozenset(
    [
        "table-wrap",
        "fig",
        "fig-group",
        "ref-list",
        "xref",
        "fn",
        "fn-group",
        "disp-formula",
        "inline-formula",
        "tex-math",
        "math",
        "supplementary-material",
        "ack",
        "app-group",
        "boxed-text",
        "media",
        "graphic",
        "label",
        "object-id",
        "caption",
    ]
)
BLOCKS = frozenset(["p", "title", "list-item", "disp-quote", "def", "term", "verse-line"])
DEEPEST = 200


def read(path: Path, options: Options) -> Iterator[Found]:
    """A record per article: the body is the source, the abstract the summary. Entities are never expanded."""
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring

    data = whole(path)
    if isinstance(data, Refused):
        yield data
        return
    if not data.strip():
        yield Refused("file", "no text in it", "the file is empty")
        return
    try:
        root = fromstring(data)
    except ParseError as error:
        yield Refused(f"line {error.position[0]}", "not readable XML", str(error)[:120])
        return
    except (DefusedXmlException, ValueError, LookupError, RecursionError) as error:
        yield Refused("file", "not readable XML", (str(error) or type(error).__name__)[:120])
        return
    articles = [element for element in root.iter() if _name(element) == "article"]
    if not articles:
        yield Refused("file", "XML of another kind", f"no <article> in it, the root is <{_name(root)[:40]}>")
    for number, article in enumerate(articles, 1):
        yield from _article(article, f"article {number}" if len(articles) > 1 else "file", name_of(path))


def _article(article, where: str, name: str) -> Iterator[Found]:
    try:
        meta = next((e for e in article.iter() if _name(e) == "article-meta"), None)
        title = _text(next((e for e in _under(meta) if _name(e) == "article-title"), None))
        abstract = _text(next((e for e in _under(meta) if _name(e) == "abstract" and not e.get("abstract-type")), None))
        body = _text(next((e for e in article if _name(e) == "body"), None))
    except RecursionError:
        yield Refused(where, "nested too deeply")
        return
    ids = {e.get("pub-id-type"): (e.text or "").strip() for e in _under(meta) if _name(e) == "article-id"}
    licence = next((_licence(e) for e in _under(meta) if _name(e) == "license"), None)
    found = {
        "id": ids.get("doi") or ids.get("pmc") or ids.get("pmcid") or ids.get("pmid") or name,
        "title": " ".join(title.split()),
        "source": body,
        "summary": abstract,
        "licence": licence,
    }
    if not body:
        yield Refused(where, "no text in it", "an article without a body" + (" (abstract only)" if abstract else ""))
        return
    if not abstract:
        yield Warned(where, "no abstract", "the record has no summary")
    yield Row(where, {key: value for key, value in found.items() if value}, ready=True)


def _licence(element) -> str | None:
    link = next((value for key, value in element.attrib.items() if key.endswith("href")), None)
    return link or " ".join(_text(element).split())[:200] or None


def _under(element) -> Iterator:
    return element.iter() if element is not None else iter(())


def _name(element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _text(element) -> str:
    """The text of an element, a paragraph or heading a line; without tables, figures, formulas and references."""
    if element is None:
        return ""
    pieces: list[str] = []
    _collect(element, pieces, 0)
    rows = (" ".join(row.split()) for row in "".join(pieces).split("\0"))
    return "\n".join(row for row in rows if row)


def _collect(element, pieces: list[str], depth: int) -> None:
    if depth > DEEPEST:
        raise RecursionError
    if _name(element) not in LEFT_OUT and _name(element):
        block = _name(element) in BLOCKS
        pieces.append(("\0" if block else "") + (element.text or ""))
        for child in element:
            _collect(child, pieces, depth + 1)
        if block:
            pieces.append("\0")
    pieces.append(element.tail or "" if depth else "")
