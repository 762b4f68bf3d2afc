"""From the keys people use to ours: shapes of known data sets, conversations, and names that mean the same. Light.

A shape is found by its keys. What is taken for what is said aloud, except where the file has our own keys or the user
maps them.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

SOURCE = ("source", "text", "article", "article_text", "document", "dialogue", "dialog", "transcript", "body", "content", "passage", "context", "input", "meeting", "report")  # fmt: skip
SUMMARY = ("summary", "highlights", "abstract", "abstract_text", "tldr", "target", "note", "section_text", "reference", "gist", "headline", "output")  # fmt: skip
ID = ("id", "uid", "_id", "doc_id", "document_id", "paper_id", "article_id", "video_id", "pmid", "guid", "key")
TITLE = ("title", "section_header", "name")
OPTIONAL = {"instruction": ("instruction", "prompt", "query"), "group": ("group", "encounter_id", "patient_id"), "licence": ("licence", "license"), "domain": ("domain",), "title": TITLE}  # fmt: skip
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant"}
MARKERS = re.compile(r"\s?\{(?:disfmarker|vocalsound|pause|gap|nonvocalsound|comment)\}")
SENTENCE_TAGS = re.compile(r"</?S>")
ANSWERS_PER_DOCUMENT = 1000


class Shaped(NamedTuple):
    """Our keys, the guess that led to them (empty: none was needed), and whether the row may lack an id."""

    content: dict[str, Any]
    guess: str = ""
    foreign: bool = True


def shaped(row: dict[str, Any], mapping: dict[str, str], join: bool) -> list[Shaped] | str:
    """The records of a row, or in a few words why it is none. mapping: ours -> theirs. join: lists of texts become text."""
    if mapping:
        missing = sorted(theirs for theirs in mapping.values() if theirs not in row)
        if missing:
            return f"no key {', '.join(missing)}, which --map names"
        taken = {ours: row[theirs] for ours, theirs in mapping.items()}
        rest = {key: value for key, value in row.items() if key not in mapping.values() and key not in taken}
        row = {**rest, **taken}
    keys = {str(key).strip().casefold() for key in row}
    for needed, convert in SHAPES:
        if needed <= keys and not mapping:
            found = convert({str(key).strip().casefold(): value for key, value in row.items()})
            if found is not None:
                return found
    return [_renamed(row, bool(mapping), join)]


def _renamed(row: dict[str, Any], mapped: bool, join: bool) -> Shaped:
    """Keys that mean source, summary and so on, by their usual names in the order of preference."""
    theirs = {str(key).strip().casefold(): key for key in reversed(list(row))}
    wanted = {"source": SOURCE, "summary": SUMMARY, "id": ID, **OPTIONAL}
    taken: dict[str, Any] = {}
    for ours, names in wanted.items():
        name = next((name for name in names if name in theirs and theirs[name] not in taken.values()), None)
        if name is not None and row[theirs[name]] is not None:
            taken[ours] = theirs[name]
    guessed = [
        f"{key} for {ours}" for ours, key in taken.items() if key != ours and ours in ("source", "summary", "id")
    ]
    content = {ours: row[key] for ours, key in taken.items()}
    content |= {key: value for key, value in row.items() if key not in taken.values() and key not in content}
    if join:
        for name in ("source", "summary"):
            content[name] = _joined(content.get(name))
    return Shaped(content, "takes " + ", ".join(guessed) if guessed else "", mapped or bool(guessed))


def _joined(value: Any, between: str = " ") -> Any:
    texts = isinstance(value, list) and value and all(isinstance(item, str) for item in value)
    return between.join(value) if texts else value


def _texts(value: Any) -> list[str] | None:
    return value if isinstance(value, list) and value and all(isinstance(item, str) for item in value) else None


def _alpaca(row: dict) -> list[Shaped]:
    """instruction, input, output. Without input the instruction itself is what is answered."""
    given = row.get("input")
    blank = not isinstance(given, str) or not given.strip()
    content = {**row, "source": row["instruction"] if blank else given, "summary": row["output"]}
    if blank:
        content.pop("instruction")
    return [Shaped(_without(content, "input", "output"), "alpaca: output for summary")]


def _conversation(row: dict) -> list[Shaped] | None:
    """sharegpt and messages: the last answer is the summary, what was said before it the source."""
    name = "conversations" if "conversations" in row else "messages"
    turns = [_turn(item) for item in row[name]] if isinstance(row[name], list) else []
    if not turns or None in turns:
        return None
    system = "\n".join(text for role, text in turns if role == "system")
    said = [turn for turn in turns if turn[0] != "system"]
    while said and said[-1][0] != "assistant":
        said.pop()
    before = said[:-1]
    source = before[0][1] if len(before) == 1 else "\n".join(f"{role.capitalize()}: {text}" for role, text in before)
    content = {**_without(row, name), "source": source, "summary": said[-1][1] if said else None}
    if system:
        content["instruction"] = system
    return [Shaped(content, f"{name}: the last answer for summary")]


def _turn(item: Any) -> tuple[str, str] | None:
    """(role, text) of a message; a text in parts is joined."""
    if not isinstance(item, dict):
        return None
    role, text = item.get("role", item.get("from")), item.get("content", item.get("value"))
    if isinstance(text, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in text]
        text = _joined(parts, "\n")
    if not isinstance(role, str) or not isinstance(text, str):
        return None
    return ROLES.get(role, role), text


def _prompted(row: dict) -> list[Shaped]:
    content = {**_without(row, "prompt", "completion"), "source": row["prompt"], "summary": row["completion"]}
    return [Shaped(content, "prompt for source, completion for summary")]


def _question(row: dict) -> list[Shaped] | None:
    """question and answer, with a context if there is one: the context is the source, the question the instruction."""
    context = row.get("context", row.get("passage"))
    answer = row["answer"] if "answer" in row else row["answers"]
    if isinstance(answer, dict):  # SQuAD: {"text": [...], "answer_start": [...]}
        answer = (_texts(answer.get("text")) or [None])[0]
    content = {**_without(row, "question", "answer", "answers", "context", "passage"), "summary": _first(answer)}
    content |= {"source": context, "instruction": row["question"]} if context else {"source": row["question"]}
    return [Shaped(content, "answer for summary, " + ("context" if context else "question") + " for source")]


def _first(value: Any) -> Any:
    texts = _texts(value)
    return texts[0] if texts else value


def _pubmedqa(row: dict) -> list[Shaped] | None:
    contexts, labels = _texts(row["contexts"]), _texts(row.get("labels")) or []
    if contexts is None:
        return None
    parts = [f"{labels[n]}: {text}" if n < len(labels) else text for n, text in enumerate(contexts)]
    content = {
        **_without(row, "question", "contexts", "labels", "long_answer"),
        "title": row["question"],
        "source": "\n".join(parts),
        "summary": row["long_answer"],
    }
    return [Shaped(content, "PubMedQA: long answer for summary")]


def _scitldr(row: dict) -> list[Shaped] | None:
    """source and target are lists: of sentences, and of alternative summaries. The first is taken, the rest kept."""
    source, targets = _texts(row["source"]), _texts(row["target"])
    if source is None or targets is None:
        return None
    content = {
        **_without(row, "target", "paper_id"),
        "id": row["paper_id"],
        "source": " ".join(source),
        "summary": targets[0],
    }
    if targets[1:]:
        content["other_summaries"] = targets[1:]
    return [Shaped(content, "SciTLDR: sentences joined, first target for summary")]


def _arxiv(row: dict) -> list[Shaped] | None:
    """article and abstract as text or as a list of sentences (arXiv, PubMed), with or without <S> tags."""
    texts = [row[a] if a in row else row[b] for a, b in (("article_text", "article"), ("abstract_text", "abstract"))]
    texts = [_joined(text) for text in texts]
    if not all(isinstance(text, str) for text in texts):
        return None
    source, summary = (" ".join(SENTENCE_TAGS.sub(" ", text).split("  ")).strip() for text in texts)
    rest = _without(row, "article_text", "article", "abstract_text", "abstract")
    name = rest.pop("article_id", rest.pop("id", None))
    content = {**rest, "source": source, "summary": summary} | ({"id": name} if name is not None else {})
    return [Shaped(content, "article for source, abstract for summary")]


def _qmsum(row: dict) -> list[Shaped] | None:
    """A meeting with queries: a record per query, all in one group."""
    turns = row["meeting_transcripts"]
    if not isinstance(turns, list) or not all(isinstance(t, dict) and isinstance(t.get("content"), str) for t in turns):
        return None
    source = "\n".join(f"{turn.get('speaker', '?')}: {MARKERS.sub('', turn['content']).strip()}" for turn in turns)
    found = []
    for kind in ("general", "specific"):
        queries = row.get(f"{kind}_query_list")
        for number, query in enumerate(queries[:ANSWERS_PER_DOCUMENT] if isinstance(queries, list) else []):
            if isinstance(query, dict):
                content = {
                    "id": f"{kind}-{number}",
                    "source": source,
                    "summary": query.get("answer"),
                    "instruction": query.get("query"),
                }
                found.append(Shaped({**content, "group": row.get("id")}, "QMSum: a record per query"))
    return found or None


def _without(row: dict, *names: str) -> dict:
    return {key: value for key, value in row.items() if key not in names}


Convert = Callable[[dict], list[Shaped] | None]
SHAPES: tuple[tuple[frozenset[str], Convert], ...] = (
    (frozenset({"meeting_transcripts"}), _qmsum),
    (frozenset({"contexts", "long_answer", "question"}), _pubmedqa),
    (frozenset({"source", "target", "paper_id"}), _scitldr),
    (frozenset({"article_text", "abstract_text"}), _arxiv),
    (frozenset({"article", "abstract"}), _arxiv),
    (frozenset({"instruction", "output"}), _alpaca),
    (frozenset({"conversations"}), _conversation),
    (frozenset({"messages"}), _conversation),
    (frozenset({"prompt", "completion"}), _prompted),
    (frozenset({"question", "answer"}), _question),
    (frozenset({"question", "answers"}), _question),
)  # first match wins
KNOWN_SHAPES = "our own keys; alpaca, sharegpt, messages, prompt/completion, question/answer; arXiv and PubMed, SciTLDR, PubMedQA, QMSum, MTS-Dialog, ACI-BENCH; other names for text and summary are guessed aloud or given with `--map`"
