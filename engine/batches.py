"""Tokens and label masks: from records to the rows and tensors of one optimizer step."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.corpus.records import Record
from engine.corpus.terms import Lexicon
from engine.mixture import generator
from engine.settings import ConfigError, Data

PLACEHOLDER = "\u2983source\u2984"  # stands where the source goes while a chat template is rendered
MODALITY_WORDS = {"paper": "paper", "video": "video transcript"}


class Encoded(NamedTuple):
    """A document in tokens. ids[:prompt] is the prompt; the rest is the summary and the end-of-text token."""

    ids: list[int]
    prompt: int
    cut: int  # source tokens that did not fit
    terms: tuple[int, ...] = ()  # summary tokens (counted from the first) that belong to lexicon terms

    @property
    def summary_tokens(self) -> int:
        return len(self.ids) - self.prompt


class Encoder:
    """Writes prompts the same way for training, Fisher and generation; only the source is ever cut."""

    def __init__(self, tokenizer, data: Data, lexicon: Lexicon | None = None):
        self.tokenizer, self.data, self.lexicon = tokenizer, data, lexicon
        if tokenizer.eos_token_id is None:
            raise ConfigError("the tokenizer has no end-of-text token, so a summary could never end. Use another model")
        self._around: dict[str, tuple[list[int], list[int]]] = {}

    def encode(self, records: Sequence[Record]) -> list[Encoded | None]:
        """Prompt and summary of each record; None where the summary is longer than data.max_summary_length."""
        sources = self._texts([record.source for record in records])
        summaries = self._texts([record.summary or "" for record in records])
        return [self._row(*parts) for parts in zip(records, sources, summaries, strict=True)]

    def prompts(self, records: Sequence[Record], room: int) -> list[Encoded]:
        """Prompts without summaries, leaving `room` tokens to write in."""
        sources = self._texts([record.source for record in records])
        return [self._prompt(record, source, room) for record, source in zip(records, sources, strict=True)]

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def answer(self, record: Record, tokens: Sequence[int]) -> Encoded:
        """A prompt followed by given summary tokens (the base's own answer), ended if it is not."""
        ended = (
            [*tokens]
            if tokens and tokens[-1] == self.tokenizer.eos_token_id
            else [*tokens, self.tokenizer.eos_token_id]
        )
        prompt = self.prompts([record], len(ended))[0]
        return Encoded(prompt.ids + ended, prompt.prompt, prompt.cut)

    def _row(self, record: Record, source: list[int], summary: list[int]) -> Encoded | None:
        if len(summary) + 1 > self.data.max_summary_length:
            return None
        prompt = self._prompt(record, source, len(summary) + 1)
        ids = prompt.ids + summary + [self.tokenizer.eos_token_id]
        return Encoded(ids, prompt.prompt, prompt.cut, self._term_tokens(record.summary or ""))

    def _prompt(self, record: Record, source: list[int], room: int) -> Encoded:
        before, after = self._surroundings(record.modality)
        space = self.data.max_length - len(before) - len(after) - room
        if space < 1:
            raise ConfigError(
                f"data.max_length {self.data.max_length}: the prompt takes {len(before) + len(after)} tokens and the summary "
                f"{room}, so nothing of the source fits. Raise data.max_length or shorten data.prompt"
            )
        ids = before + source[:space] + after
        return Encoded(ids, len(ids), max(0, len(source) - space))

    def _term_tokens(self, summary: str) -> tuple[int, ...]:
        """Tokens of a summary whose characters overlap a term of the lexicon."""
        if self.lexicon is None:
            return ()
        found = list(self.lexicon.spans(summary))
        if not found:
            return ()
        told = self.tokenizer(summary, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        return tuple(
            index
            for index, (start, end) in enumerate(told["offset_mapping"])
            if any(start < span.end and end > span.start for span in found)
        )

    def _texts(self, texts: list[str]) -> list[list[int]]:
        """Tokens of plain text; what looks like a control token in it stays text."""
        return self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"] if texts else []

    def _surroundings(self, modality: str) -> tuple[list[int], list[int]]:
        """Tokens before and after the source."""
        if modality not in self._around:
            word = MODALITY_WORDS.get(modality, modality)
            text = self.data.prompt.replace("{modality}", word).replace("{source}", PLACEHOLDER)
            if self.data.chat_template == "auto" and self.tokenizer.chat_template:
                turn = [{"role": "user", "content": text}]
                text = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
                start = []  # the template writes the start token itself
            else:
                start = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
            before, after = (
                self.tokenizer(part, add_special_tokens=False)["input_ids"] for part in text.split(PLACEHOLDER)
            )
            self._around[modality] = (start + before, after)
        return self._around[modality]


class Row(NamedTuple):
    """One document of a step. stream: new, memory (replay of older phases) or base (the base's own answers).

    teacher: the phase whose adapter a memory document is held to.
    """

    document: Encoded
    stream: str
    teacher: str = ""


class Shares(NamedTuple):
    """How much of a step is old: memory of the cross-entropy, base of the supervised tokens."""

    memory: float
    base: float


class Batch(NamedTuple):
    """A micro-batch, padded on the right. Causal attention never looks right, so no attention mask is needed.

    ids (N, L); predicts (N, L) bool: this position predicts a summary token. For the K tokens so marked, in row-major
    order: targets (K,), rows (K,) the row of each, and what each counts in a loss. The weights hold the denominators of
    the whole step, so a loss is a plain sum and does not depend on how the step was cut into micro-batches; diversity
    is the stated exception, with part = 1 / micro-batches. documents (N,): 1 / new documents of the step, 0 for old
    ones. rows_of: {"base" or phase: rows (n,) whose teacher it is}.
    """

    ids: Tensor
    predicts: Tensor
    targets: Tensor
    rows: Tensor
    nll_weight: Tensor
    term_weight: Tensor
    base_weight: Tensor
    memory_weight: Tensor
    documents: Tensor
    part: float
    rows_of: dict[str, Tensor]

    def to(self, device) -> "Batch":
        moved = {name: t.to(device, non_blocking=True) for name, t in self._asdict().items() if isinstance(t, Tensor)}
        return self._replace(**moved, rows_of={name: rows.to(device) for name, rows in self.rows_of.items()})

    def tokens_of(self, rows: Tensor) -> Tensor:
        """(K,) bool: the tokens of some of the rows."""
        return torch.isin(self.rows, rows)


class Totals(NamedTuple):
    """Denominators of a step: what a token or a document counts in a loss."""

    nll: dict[str, float]  # per stream
    term: float
    base: float
    memory: float
    document: float
    part: float


def draw_until(pool: Sequence[Row], tokens: float, key: Iterable) -> list[Row]:
    """Whole documents of a pool, drawn without repetition by a keyed generator, until `tokens` summary tokens are there."""
    if not pool or tokens <= 0:
        return []
    drawn, have = [], 0
    order = generator(*key).sample(range(len(pool)), len(pool))
    for index in order:
        drawn.append(pool[index])
        have += pool[index].document.summary_tokens
        if have >= tokens:
            break
    return drawn


def step_rows(
    new: list[Encoded], memory: Sequence[Row], answers: Sequence[Row], shares: Shares, seed: int, step: int
) -> list[Row]:
    """All rows of optimizer step `step` (counted over the run): new documents, then replay, then base replay.

    Replay is counted in summary tokens: documents are drawn until T_old >= q / (1 - q) * T_new.
    """
    tokens = sum(document.summary_tokens for document in new)
    rows = [Row(document, "new") for document in new]
    for stream, pool, share in (("memory", memory, shares.memory), ("base", answers, shares.base)):
        rows += draw_until(pool, share / (1 - share) * tokens, (seed, stream, step))
    return rows


def micro_batches(rows: list[Row], size: int, memory_share: float, pad: int) -> list[Batch]:
    """Cut a step's rows into padded batches of at most `size` rows, of similar length and nearly equal number.

    L_CE = (1 - q) * mean over new tokens + q * mean over memory tokens: the share of old in the loss is exactly q.
    """
    ordered = sorted(rows, key=lambda row: len(row.document.ids))
    count = -(-len(ordered) // size)
    cuts = [round(len(ordered) * k / count) for k in range(count + 1)]
    totals = totals_of(rows, memory_share, count)
    return [collate(ordered[a:b], totals, pad) for a, b in zip(cuts, cuts[1:], strict=False)]


def totals_of(rows: list[Row], memory_share: float, parts: int = 1) -> Totals:
    """What each token and document of a step counts, from the numbers of tokens in all of its micro-batches."""
    tokens = {s: sum(row.document.summary_tokens for row in rows if row.stream == s) for s in ("new", "memory", "base")}
    terms = sum(len(row.document.terms) for row in rows if row.stream != "base")
    q = memory_share if tokens["memory"] else 0.0
    return Totals(
        nll={"new": _over(1 - q, tokens["new"]), "memory": _over(q, tokens["memory"]), "base": 0.0},
        term=_over(1.0, terms),
        base=_over(1.0, tokens["base"]),
        memory=_over(1.0, tokens["memory"]),
        document=_over(1.0, sum(row.stream == "new" for row in rows)),
        part=1 / parts,
    )


def _over(share: float, count: int) -> float:
    return share / count if count else 0.0


def collate(rows: list[Row], totals: Totals, pad: int) -> Batch:
    """The tensors of some rows of a step."""
    length = max(len(row.document.ids) for row in rows)
    ids = torch.full((len(rows), length), pad)
    predicts = torch.zeros((len(rows), length), dtype=torch.bool)
    targets, of_row = [], []
    weights: dict[str, list[float]] = {"nll": [], "term": [], "base": [], "memory": []}
    teachers: dict[str, list[int]] = {}
    for index, (document, stream, teacher) in enumerate(rows):
        ids[index, : len(document.ids)] = torch.tensor(document.ids)
        predicts[index, document.prompt - 1 : len(document.ids) - 1] = True
        count, terms = document.summary_tokens, set(document.terms)
        targets += document.ids[document.prompt :]
        of_row += [index] * count
        weights["nll"] += [totals.nll[stream]] * count
        weights["term"] += [totals.term * (k in terms and stream != "base") for k in range(count)]
        weights["base"] += [totals.base * (stream == "base")] * count
        weights["memory"] += [totals.memory * (stream == "memory")] * count
        if name := "base" if stream == "base" else teacher:
            teachers.setdefault(name, []).append(index)
    return Batch(
        ids,
        predicts,
        torch.tensor(targets),
        torch.tensor(of_row),
        *(torch.tensor(values, dtype=torch.float32) for values in weights.values()),
        torch.tensor([totals.document * (row.stream == "new") for row in rows], dtype=torch.float32),
        totals.part,
        {name: torch.tensor(indices) for name, indices in teachers.items()},
    )


def plain_batch(documents: Sequence[Encoded], pad: int) -> Batch:
    """A batch in which every summary token counts 1, for sums over documents (Fisher, evaluation)."""
    totals = Totals({"new": 1.0}, 0.0, 0.0, 0.0, 1.0, 1.0)
    return collate([Row(document, "new") for document in documents], totals, pad)
