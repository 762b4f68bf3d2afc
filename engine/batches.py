"""Tokens and label masks: from records to the rows and tensors of one optimizer step."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.corpus.records import Record
from engine.mixture import generator
from engine.settings import ConfigError, Data

PLACEHOLDER = "\u2983source\u2984"  # stands where the source goes while a chat template is rendered
MODALITY_WORDS = {"paper": "paper", "video": "video transcript"}


class Encoded(NamedTuple):
    """A document in tokens. ids[:prompt] is the prompt; the rest is the summary and the end-of-text token."""

    ids: list[int]
    prompt: int
    cut: int  # source tokens that did not fit

    @property
    def summary_tokens(self) -> int:
        return len(self.ids) - self.prompt


class Encoder:
    """Writes prompts the same way for training, Fisher and generation; only the source is ever cut."""

    def __init__(self, tokenizer, data: Data):
        self.tokenizer, self.data = tokenizer, data
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
        return Encoded(prompt.ids + summary + [self.tokenizer.eos_token_id], prompt.prompt, prompt.cut)

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
    """One document of a step. stream: new, memory (replay of older phases) or base (the base's own answers)."""

    document: Encoded
    stream: str


class Shares(NamedTuple):
    """How much of a step is old: memory of the cross-entropy, base of the supervised tokens."""

    memory: float
    base: float


class Batch(NamedTuple):
    """A micro-batch, padded on the right. Causal attention never looks right, so no attention mask is needed.

    ids (N, L); predicts (N, L) bool: this position predicts a summary token. For the K tokens so marked, in row-major
    order: targets (K,), nll_weight (K,), kl_weight (K,). The weights hold the denominators of the whole step, so a
    loss is a plain sum and does not depend on how the step was cut into micro-batches.
    base_rows: indices of rows whose teacher is the base; base_tokens (K,) bool marks their tokens.
    """

    ids: Tensor
    predicts: Tensor
    targets: Tensor
    nll_weight: Tensor
    kl_weight: Tensor
    base_rows: Tensor
    base_tokens: Tensor

    def to(self, device) -> "Batch":
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


def draw_until(pool: Sequence[Encoded], tokens: float, key: Iterable) -> list[Encoded]:
    """Whole documents of a pool, drawn without repetition by a keyed generator, until `tokens` summary tokens are there."""
    if not pool or tokens <= 0:
        return []
    drawn, have = [], 0
    order = generator(*key).sample(range(len(pool)), len(pool))
    for index in order:
        drawn.append(pool[index])
        have += pool[index].summary_tokens
        if have >= tokens:
            break
    return drawn


def step_rows(
    new: list[Encoded], memory: Sequence[Encoded], answers: Sequence[Encoded], shares: Shares, seed: int, step: int
) -> list[Row]:
    """All rows of optimizer step `step` (counted over the run): new documents, then replay, then base replay.

    Replay is counted in summary tokens: documents are drawn until T_old >= q / (1 - q) * T_new.
    """
    tokens = sum(document.summary_tokens for document in new)
    rows = [Row(document, "new") for document in new]
    for stream, pool, share in (("memory", memory, shares.memory), ("base", answers, shares.base)):
        drawn = draw_until(pool, share / (1 - share) * tokens, (seed, stream, step))
        rows += [Row(document, stream) for document in drawn]
    return rows


def micro_batches(rows: list[Row], size: int, memory_share: float, pad: int) -> list[Batch]:
    """Cut a step's rows into padded batches of at most `size` rows, of similar length and nearly equal number.

    L_CE = (1 - q) * mean over new tokens + q * mean over memory tokens: the share of old in the loss is exactly q.
    """
    totals = {
        name: sum(row.document.summary_tokens for row in rows if row.stream == name)
        for name in ("new", "memory", "base")
    }
    q = memory_share if totals["memory"] else 0.0
    weights = {
        "new": ((1 - q) / totals["new"] if totals["new"] else 0.0, 0.0),
        "memory": (q / totals["memory"] if totals["memory"] else 0.0, 0.0),
        "base": (0.0, 1 / totals["base"] if totals["base"] else 0.0),
    }
    ordered = sorted(rows, key=lambda row: len(row.document.ids))
    count = -(-len(ordered) // size)
    cuts = [round(len(ordered) * k / count) for k in range(count + 1)]
    return [collate(ordered[a:b], weights, pad) for a, b in zip(cuts, cuts[1:], strict=False)]


def collate(rows: list[Row], weights: dict[str, tuple[float, float]], pad: int) -> Batch:
    """weights: {stream: (weight of a token's nll, weight of its KL to the base)}."""
    length = max(len(row.document.ids) for row in rows)
    ids = torch.full((len(rows), length), pad)
    predicts = torch.zeros((len(rows), length), dtype=torch.bool)
    targets, nll, kl, base = [], [], [], []
    for index, (document, stream) in enumerate(rows):
        ids[index, : len(document.ids)] = torch.tensor(document.ids)
        predicts[index, document.prompt - 1 : len(document.ids) - 1] = True
        count = document.summary_tokens
        targets += document.ids[document.prompt :]
        nll += [weights[stream][0]] * count
        kl += [weights[stream][1]] * count
        base += [stream == "base"] * count
    return Batch(
        ids,
        predicts,
        torch.tensor(targets),
        torch.tensor(nll, dtype=torch.float32),
        torch.tensor(kl, dtype=torch.float32),
        torch.tensor([index for index, row in enumerate(rows) if row.stream == "base"], dtype=torch.long),
        torch.tensor(base),
    )
