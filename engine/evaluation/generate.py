"""Batched generation: batches fixed in advance by length, so that a stopped evaluation goes on where it was.

The text of a document does not depend on the batch it is written in: greedy and beam search are functions of the prompt,
and sampling draws its noise from (seed, document, position).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from engine.batches import Encoded, Encoder
from engine.corpus.records import Record
from engine.mixture import integer
from engine.settings import Generate


class Output(NamedTuple):
    """What the model wrote for record `index`. tokens end with the end-of-text token unless the room ran out."""

    index: int
    tokens: list[int]
    text: str


def batches(prompts: Sequence[Encoded], size: int, budget: int = 0, room: int = 0) -> list[list[int]]:
    """Indices of the prompts, longest first, in batches of at most `size` documents.

    budget: tokens that a padded batch may hold, each row with `room` to write in; 0: no limit. One document always fits.
    """
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index].ids), index))
    made: list[list[int]] = []
    while order:
        row = len(prompts[order[0]].ids) + room  # the longest comes first
        count = min(size, max(1, budget // row)) if budget else size
        made.append(order[:count])
        order = order[count:]
    return made


def generate(
    model: nn.Module,
    encoder: Encoder,
    records: Sequence[Record],
    room: int,
    size: int,
    decoding: Generate | None = None,
    budget: int = 0,
    only: Sequence[int] | None = None,
) -> Iterator[list[Output]]:
    """Summaries of at most `room` tokens, a batch at a time; of `only` these batches where given. Greedy by default.

    Prompts are padded on the left, with an attention mask, as generation needs.
    """
    prompts = encoder.prompts(records, room)
    was_training = model.training
    model.eval()
    order = batches(prompts, size, budget, room)
    for chosen in order if only is None else [order[number] for number in only]:
        rows = [prompts[index] for index in chosen]
        names = [records[index].id for index in chosen]
        yield _write(model, encoder, rows, chosen, room, decoding or Generate(), names)
    model.train(was_training)


@torch.inference_mode()
def _write(
    model: nn.Module,
    encoder: Encoder,
    prompts: list[Encoded],
    indices: list[int],
    room: int,
    decoding: Generate,
    names: list[str],
) -> list[Output]:
    tokenizer, device = encoder.tokenizer, next(model.parameters()).device
    longest = max(len(prompt.ids) for prompt in prompts)
    ids = torch.full((len(prompts), longest), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt.ids) :] = torch.tensor(prompt.ids)
        mask[row, longest - len(prompt.ids) :] = 1
    written = model.generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        max_new_tokens=room,
        do_sample=False,  # a sample is the largest of the scores with keyed noise
        num_beams=decoding.num_beams,
        logits_processor=[KeyedSampling(decoding, names, longest)] if decoding.temperature else [],
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    outputs = []
    for index, tokens in zip(indices, written[:, longest:].tolist(), strict=True):
        end = tokens.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in tokens else len(tokens)
        outputs.append(Output(index, tokens[:end], encoder.decode(tokens[:end])))
    return outputs


class KeyedSampling(LogitsProcessor):
    """Sampling as an argmax: log p + Gumbel noise, whose argmax is distributed as p (Gumbel 1954).

    The noise follows from (seed, id of the document, position), so neither the batch nor a restart changes a sample.
    """

    def __init__(self, decoding: Generate, names: Sequence[str], start: int):
        self.decoding, self.names, self.start = decoding, names, start
        self.warpers = [TemperatureLogitsWarper(decoding.temperature)]
        if decoding.top_p < 1:
            self.warpers.append(TopPLogitsWarper(decoding.top_p))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for warper in self.warpers:
            scores = warper(input_ids, scores)
        position = input_ids.shape[1] - self.start
        noise = [self._noise(name, position, scores.shape[-1]) for name in self.names]
        return scores + torch.stack(noise).to(scores)

    def _noise(self, name: str, position: int, count: int) -> torch.Tensor:
        key = torch.Generator().manual_seed(integer(self.decoding.seed, "sample", name, position))
        uniform = torch.rand(count, generator=key, dtype=torch.float64)
        return -torch.log(-torch.log(uniform.clamp_min(1e-300)))
