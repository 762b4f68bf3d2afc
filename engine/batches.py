"""Tokens and label masks: from records to the rows and tensors of one optimizer step."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from engine.corpus import instructions
from engine.corpus.records import Record
from engine.corpus.terms import Lexicon
from engine.mixture import generator
from engine.settings import ConfigError, Data
from engine.truncation import GAP, left_out

REMEMBERED = 1000  # prompts in tokens, of records with instructions of their own
PLACES = 32  # places of a row come in multiples of it: few shapes
LENGTHS = 16  # few shapes, and whole tiles on a GPU: two in a hundred tokens of padding buy more than they cost
# They stand where texts of a record go while a chat template is rendered.
PLACEHOLDER, INSTRUCTION = "\u2983source\u2984", "\u2983instruction\u2984"


class Encoded(NamedTuple):
    """A document in tokens. ids[:prompt] is the prompt; the rest is the summary and the end-of-text token."""

    ids: Sequence[int]
    prompt: int
    cut: int  # source tokens that were left out
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
        self._around: dict[tuple, tuple[list[int], list[int]]] = {}
        self._gap = self._texts([GAP])[0] if data.truncate == "head_tail" else []

    def encode(self, records: Sequence[Record]) -> list[Encoded | None]:
        """Prompt and summary of each record; None where the summary is longer than data.max_summary_length."""
        records = list(records)  # each is read from its file once
        sources = self._texts([record.source for record in records])
        summaries = self._texts([record.summary or "" for record in records])
        return [self._row(*parts) for parts in zip(records, sources, summaries, strict=True)]

    def prompts(self, records: Sequence[Record], room: int) -> list[Encoded]:
        """Prompts without summaries, leaving `room` tokens to write in."""
        records = list(records)
        sources = self._texts([record.source for record in records])
        return [self._prompt(record, source, room) for record, source in zip(records, sources, strict=True)]

    def plain(self, records: Sequence[Record]) -> list[Encoded]:
        """Documents to be read, not summarised: every token after the first is supervised; cut at data.max_length.

        They keep their beginning whatever data.truncate says: a text that is read has no last words that count more.
        """
        tokenizer, rows = self.tokenizer, []
        for ids in self._texts([record.source for record in records]):
            start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
            whole = [*start, *ids, tokenizer.eos_token_id]
            rows.append(Encoded(whole[: self.data.max_length], 1, max(0, len(whole) - self.data.max_length)))
        return rows

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

    def summary_lengths(self, records: Sequence[Record]) -> list[int]:
        """Tokens of each summary with its end-of-text token."""
        return [len(ids) + 1 for ids in self._texts([record.summary or "" for record in records])]

    def left_out(self, record: Record) -> tuple[int, str]:
        """What a training row of a record does not hold of its source: how many tokens come before it, and its text."""
        (source,) = self._texts([record.source])
        start, end = self._left_out(source, self._space(record, *self.summary_lengths([record])))
        return start, self.tokenizer.decode(source[start:end])

    def _row(self, record: Record, source: list[int], summary: list[int]) -> Encoded | None:
        if len(summary) + 1 > self.data.max_summary_length:
            return None
        prompt = self._prompt(record, source, len(summary) + 1)
        ids = prompt.ids + summary + [self.tokenizer.eos_token_id]
        return Encoded(ids, prompt.prompt, prompt.cut, self._term_tokens(record.summary or ""))

    def _prompt(self, record: Record, source: list[int], room: int) -> Encoded:
        before, after = self._surroundings(record)
        start, end = self._left_out(source, self._space(record, room))
        gap = self._gap if start and end < len(source) else []
        ids = before + source[:start] + gap + source[end:] + after
        return Encoded(ids, len(ids), end - start)

    def _left_out(self, source: list[int], space: int) -> tuple[int, int]:
        return left_out(len(source), space, self.data.truncate, len(self._gap))

    def _space(self, record: Record, room: int) -> int:
        """Tokens of a source that fit beside the prompt and `room` more. Raises ConfigError where none does."""
        around = sum(map(len, self._surroundings(record)))
        space = self.data.max_length - around - room
        if space < 1:
            where = f" (record {record.id})" if record.instruction else ""
            raise ConfigError(
                f"data.max_length {self.data.max_length}: the prompt takes {around} tokens and the summary "
                f"{room}, so nothing of the source fits{where}. Raise data.max_length or shorten data.prompt"
            )
        return space

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
        if not texts:
            return []
        plain = {"add_special_tokens": False, "split_special_tokens": True, "return_attention_mask": False}
        return self.tokenizer(texts, **plain, return_token_type_ids=False)["input_ids"]

    def _surroundings(self, record: Record) -> tuple[list[int], list[int]]:
        """Tokens before and after the source. An instruction of the record is foreign text, like the source."""
        own = (record.instruction or None) if "{instruction}" in self.data.prompt else None
        key = (record.modality, own)
        if key not in self._around:
            if len(self._around) >= REMEMBERED:
                self._around.clear()
            text = self._template(record.modality, own is not None)
            before, after = (self._pieces(part, own or "") for part in text.split(PLACEHOLDER))
            bos = self.tokenizer.bos_token_id
            self._around[key] = (before if self._chats or bos is None else [bos, *before], after)
        return self._around[key]

    @property
    def _chats(self) -> bool:
        """Whether the tokenizer's template is used: it writes the start token itself."""
        return self.data.chat_template == "auto" and bool(self.tokenizer.chat_template)

    def _template(self, modality: str, own_instruction: bool) -> str:
        """The text around the source, with placeholders for what records bring."""
        text = self.data.prompt.replace("{modality}", instructions.word(modality)).replace("{source}", PLACEHOLDER)
        text = text.replace("{instruction}", INSTRUCTION if own_instruction else instructions.requests(modality)[0])
        if not self._chats:
            return text
        turn = [{"role": "user", "content": text}]
        return self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)

    def _pieces(self, text: str, instruction: str) -> list[int]:
        """Tokens of a part of the template; only what it says itself may be control tokens."""
        parts = [self.tokenizer(part, add_special_tokens=False)["input_ids"] for part in text.split(INSTRUCTION)]
        (told,) = self._texts([instruction])
        return [*parts[0], *(token for part in parts[1:] for token in (*told, *part))]


class Row(NamedTuple):
    """One document of a step.

    stream: new, memory (replay of older phases), base (the base's own answers) or document (plain text).
    teacher: the phase whose adapter the row is held to, or base. pair: joins the two sides of a cross-modal pair.
    group: texts of one group are never each other's negatives.
    """

    document: Encoded
    stream: str
    teacher: str = ""
    pair: int | None = None
    group: int = 0


STREAMS = ("new", "memory", "base", "document")
BASE = "base"  # the teacher that is the model without any adapter


class Shares(NamedTuple):
    """How much of a step is old: memory of the cross-entropy, base and document of the supervised tokens."""

    memory: float
    base: float
    document: float = 0.0


class Batch(NamedTuple):
    """A micro-batch, padded on the right. Causal attention never looks right, so no attention mask is needed.

    ids (N, L); predicts (N, L) bool: this position predicts a summary token. For the K tokens so marked, in row-major
    order: targets (K,), rows (K,) the row of each, and weights {loss: (K,)}, what each counts in that loss; a loss that no
    token counts in is not there. The weights
    hold the denominators of the whole step, so a loss is a plain sum and does not depend on how the step was cut into
    micro-batches; diversity (part = 1 / micro-batches) and the negatives of the contrastive term are the stated
    exceptions. documents (N,): 1 / new documents of the step, 0 for old ones. pairs (M, 2): the rows of both sides of a
    pair, of the same row twice where a document is paired with its own summary; pair = 1 / pairs of the step.
    groups (N,). rows_of: {"base" or phase: rows (n,) whose teacher it is}; tokens_of: {the same: which of the K tokens are
    theirs}. What a mask would select is given by its numbers too, since a GPU must be waited for to count a mask:
    positions (K,), of the K tokens in the flattened ids, and places (N, S), of each row's tokens in it; where a row has
    fewer, its last position, which predicts nothing, stands for those that are missing. lengths and
    teachers: of each row without its padding, and whose word it is held to, on the host.
    """

    ids: Tensor
    predicts: Tensor
    targets: Tensor
    rows: Tensor
    weights: dict[str, Tensor]
    documents: Tensor
    part: float
    pairs: Tensor
    pair: float
    groups: Tensor
    rows_of: dict[str, Tensor]
    tokens_of: dict[str, Tensor]
    positions: Tensor
    places: Tensor
    lengths: tuple[int, ...]
    teachers: tuple[str, ...]

    def to(self, device) -> "Batch":
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """In host memory that a GPU reads by itself, so that `to` need not be waited for."""
        return self._each(Tensor.pin_memory)

    def answers_to(self, teacher: str) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
        """What a teacher is asked: ids (n, L) of its rows, the positions of their tokens in these, flattened, their places
        in each, and the rows' lengths."""
        rows, length = self.rows_of[teacher], self.ids.shape[1]
        before = torch.zeros(len(self.ids), dtype=torch.long, device=rows.device)
        before[rows] = rows - torch.arange(len(rows), device=rows.device)  # rows of others before each of its own
        tokens = self.tokens_of[teacher]
        positions = self.positions[tokens] - before[self.rows[tokens]] * length
        lengths = tuple(own for own, name in zip(self.lengths, self.teachers, strict=True) if name == teacher)
        return self.ids[rows], positions, self.places[rows], lengths

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return self._replace(**{name: _changed(value, change) for name, value in self._asdict().items()})


def _changed(value, change: Callable[[Tensor], Tensor]):
    if isinstance(value, dict):
        return {name: _changed(item, change) for name, item in value.items()}
    return change(value) if isinstance(value, Tensor) else value


class Totals(NamedTuple):
    """Denominators of a step: what a token, a document or a pair counts. weights: {loss: {stream: weight}}."""

    weights: dict[str, dict[str, float]]
    document: float
    pair: float
    part: float = 1.0


def draw_until(pool: Sequence[Row], tokens: float, key: Iterable) -> list[Row]:
    """Whole documents of a pool, drawn without repetition by a keyed generator, until `tokens` summary tokens are there."""
    if not pool or tokens <= 0:
        return []
    drawn, have = [], 0
    for index in shuffled(len(pool), generator(*key)):
        row = pool[index]
        drawn.append(row)
        have += row.document.summary_tokens
        if have >= tokens:
            break
    return drawn


def shuffled(size: int, chance: Random) -> Iterator[int]:
    """All numbers below `size`, drawn one after the other: those of chance.sample(range(size), size), but at the price of
    the few that are asked for and not of `size`."""
    moved: dict[int, int] = {}
    for left in range(size, 0, -1):
        index = chance.randrange(left)
        yield moved.get(index, index)
        moved[index] = moved.get(left - 1, left - 1)


def step_rows(
    new: Sequence[Row],
    pools: dict[str, Sequence[Row]],
    shares: Shares,
    seed: int,
    step: int,
    plain_tokens: float | None = None,
) -> list[Row]:
    """All rows of optimizer step `step` (counted over the run): the new ones, then some of each pool {stream: rows}.

    Replay is counted in supervised tokens: documents are drawn until T_old >= q / (1 - q) * T_new. Plain documents are
    many times longer than a summary: where a share is less than one of them a step, they come in some of the steps only.
    plain_tokens: their mean length, where it is known already.
    """
    tokens = sum(row.document.summary_tokens for row in new)
    rows = list(new)
    for stream, pool in pools.items():
        share = getattr(shares, stream)
        wanted = share / (1 - share) * tokens
        if stream == "document" and pool:
            mean = plain_tokens or sum(row.document.summary_tokens for row in pool) / len(pool)
            if wanted < mean:
                wanted = 1 if generator(seed, "document step", step).random() < wanted / mean else 0
        rows += draw_until(pool, wanted, (seed, stream, step))
    return rows


def micro_batches(
    rows: list[Row], size: int, memory_share: float, pad: int, pairs: str = "cross_modal", tokens: int | None = None
) -> list[Batch]:
    """Cut a step's rows into padded batches of at most `size` rows, of similar length and nearly equal number.

    The two sides of a pair stay together, even where `size` is 1. tokens: of a batch with its padding, at most, where
    it has more than one document (or pair).
    L_CE = (1 - q) * mean over new tokens + q * mean over memory tokens: the share of old in the loss is exactly q.
    """
    cut = _cut(rows, size, tokens or sys.maxsize)
    totals = totals_of(rows, memory_share, len(cut), pairs)
    return [collate(part, totals, pad, pairs) for part in cut]


def _cut(rows: list[Row], size: int, tokens: int) -> list[list[Row]]:
    units: dict[object, list[Row]] = {}
    for index, row in enumerate(rows):
        units.setdefault(("row", index) if row.pair is None else row.pair, []).append(row)
    limit = -(-len(rows) // -(-len(rows) // size))
    parts: list[list[Row]] = []
    for unit in sorted(units.values(), key=lambda unit: max(len(row.document.ids) for row in unit)):
        together = len(parts[-1]) + len(unit) if parts else 0
        if not parts or together > limit or together * _padded_length(unit) > tokens:  # the last is the longest
            parts.append([])
        parts[-1] += unit
    return parts


def _padded_length(rows: list[Row]) -> int:
    length = max(len(row.document.ids) for row in rows)
    return length + -length % LENGTHS


def totals_of(rows: list[Row], memory_share: float, parts: int = 1, pairs: str = "cross_modal") -> Totals:
    """What each token, document and pair of a step counts, from the numbers in all of its micro-batches."""
    tokens = {s: sum(row.document.summary_tokens for row in rows if row.stream == s) for s in STREAMS}
    terms = _over(1.0, sum(len(row.document.terms) for row in rows if row.stream in ("new", "memory")))
    new = sum(row.stream == "new" for row in rows)
    q = memory_share if tokens["memory"] else 0.0
    weights = {
        "cross_entropy": {"new": _over(1 - q, tokens["new"]), "memory": _over(q, tokens["memory"])},
        "term": {"new": terms, "memory": terms},
        "floor": {"new": _over(1.0, tokens["new"])},
        "distil_new": {"new": _over(1.0, tokens["new"])},
        "distil_phase": {"memory": _over(1.0, tokens["memory"])},
        "distil_base": {"base": _over(1.0, tokens["base"])},
        "distil_documents": {"document": _over(1.0, tokens["document"])},
    }
    count = new if pairs == "document_summary" else len({row.pair for row in rows if row.pair is not None})
    return Totals(weights, _over(1.0, new), _over(1.0, count), 1 / parts)


def _over(share: float, count: int) -> float:
    return share / count if count else 0.0


def collate(rows: list[Row], totals: Totals, pad: int, pairs: str = "cross_modal") -> Batch:
    """The tensors of some rows of a step, padded to a multiple of LENGTHS tokens."""
    length = _padded_length(rows)
    ids = torch.full((len(rows), length), pad)
    predicts = torch.zeros((len(rows), length), dtype=torch.bool)
    targets, of_row, term = [], [], []
    teachers: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        document = row.document
        ids[index, : len(document.ids)] = torch.tensor(document.ids)
        predicts[index, document.prompt - 1 : len(document.ids) - 1] = True
        targets += document.ids[document.prompt :]
        of_row += [index] * document.summary_tokens
        terms = set(document.terms)
        term += [k in terms for k in range(document.summary_tokens)]
        if row.teacher:
            teachers.setdefault(row.teacher, []).append(index)
    of_row = torch.tensor(of_row)
    rows_of = {name: torch.tensor(indices) for name, indices in teachers.items()}
    weights = {name: _of_rows(rows, streams)[of_row] for name, streams in totals.weights.items()}
    if "term" in weights:
        weights["term"] *= torch.tensor(term)
    # a loss without a token in this micro-batch is left out of it
    weights = {name: values for name, values in weights.items() if name == "cross_entropy" or values.any()}
    return Batch(
        ids=ids,
        predicts=predicts,
        targets=torch.tensor(targets),
        rows=of_row,
        weights=weights,
        documents=torch.tensor([totals.document * (row.stream == "new") for row in rows], dtype=torch.float32),
        part=totals.part,
        pairs=_pairs(rows, pairs),
        pair=totals.pair,
        groups=torch.tensor([row.group for row in rows]),
        rows_of=rows_of,
        tokens_of={name: _numbers(torch.isin(of_row, indices)) for name, indices in rows_of.items()},
        positions=_numbers(predicts),
        places=_places(predicts),
        lengths=tuple(len(row.document.ids) for row in rows),
        teachers=tuple(row.teacher for row in rows),
    )


def _numbers(mask: Tensor) -> Tensor:
    """Where a mask is true, counted in row-major order."""
    return mask.flatten().nonzero()[:, 0]


def _places(mask: Tensor) -> Tensor:
    """(N, S): where each row of a mask (N, L) is true, filled up with L - 1; S is a multiple of PLACES, or L."""
    count = int(mask.sum(1).max())
    places = mask.long().argsort(dim=1, descending=True, stable=True)[:, : count + -count % PLACES]
    return torch.where(mask.gather(1, places), places, mask.shape[1] - 1)


def _of_rows(rows: list[Row], weights: dict[str, float]) -> Tensor:
    """(N,): what a token of each row counts, from {stream: weight}."""
    return torch.tensor([weights.get(row.stream, 0.0) for row in rows], dtype=torch.float32)


def _pairs(rows: list[Row], kind: str) -> Tensor:
    """(M, 2): the rows of a pair in the order in which they stand (paper, then video)."""
    if kind == "document_summary":
        found = [[index, index] for index, row in enumerate(rows) if row.stream == "new"]
    else:
        sides: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            if row.pair is not None:
                sides.setdefault(row.pair, []).append(index)
        found = list(sides.values())
    return torch.tensor(found, dtype=torch.long).reshape(-1, 2)


def plain_batch(documents: Sequence[Encoded], pad: int) -> Batch:
    """A batch of documents for sums over them (Fisher, evaluation); its weights count nothing."""
    return collate([Row(document, "new") for document in documents], Totals({}, 1.0, 0.0), pad)
