"""Batched greedy generation: batches fixed in advance by length, so that a stopped evaluation goes on where it was."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn

from engine.batches import Encoded, Encoder
from engine.corpus.records import Record


class Output(NamedTuple):
    """What the model wrote for record `index`. tokens end with the end-of-text token unless the room ran out."""

    index: int
    tokens: list[int]
    text: str


def batches(prompts: Sequence[Encoded], size: int) -> list[list[int]]:
    """Indices of the prompts, longest first, in batches of `size`."""
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index].ids), index))
    return [order[first : first + size] for first in range(0, len(order), size)]


def generate(
    model: nn.Module, encoder: Encoder, records: Sequence[Record], room: int, size: int, skip: int = 0
) -> Iterator[list[Output]]:
    """Greedy summaries of at most `room` tokens, a batch at a time; the first `skip` batches are left out.

    Prompts are padded on the left, with an attention mask, as generation needs.
    """
    prompts = encoder.prompts(records, room)
    was_training = model.training
    model.eval()
    for chosen in batches(prompts, size)[skip:]:
        yield _write(model, encoder, [prompts[index] for index in chosen], chosen, room)
    model.train(was_training)


@torch.inference_mode()
def _write(model: nn.Module, encoder: Encoder, prompts: list[Encoded], indices: list[int], room: int) -> list[Output]:
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
        do_sample=False,
        num_beams=1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    outputs = []
    for index, tokens in zip(indices, written[:, longest:].tolist(), strict=True):
        end = tokens.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in tokens else len(tokens)
        outputs.append(Output(index, tokens[:end], encoder.decode(tokens[:end])))
    return outputs
