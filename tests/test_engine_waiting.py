"""A GPU is waited for once in a step. On a CPU nothing waits, so what would make it wait is counted."""

import collections
import traceback

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import MistralConfig, MistralForCausalLM

from engine import models, products
from engine.batches import micro_batches
from engine.gradient import COMPONENTS, cut, gradient_of
from engine.mixture import generator
from engine.settings import Settings
from tests import step_cost

pytestmark = pytest.mark.engine
WORDS = 300
# a number for Python, or a result whose size follows from the values
WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2"}


class Waits(TorchDispatchMode):
    """Counts the operations that a GPU would be waited for in, by the file that asked for them."""

    def __init__(self):
        super().__init__()
        self.found: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation._schema.name
        if name in WAITING or (name == "aten::index" and any(_is_mask(index) for index in args[1])):
            places = [frame.filename.rpartition("/")[2] for frame in traceback.extract_stack()]
            places = [place for place in places if place in ("masking_utils.py", "clip_grad.py") or place in OURS]
            self.found[f"{name} in {places[-1] if places else '?'}"] += 1
        return operation(*args, **(kwargs or {}))


OURS = ("gradient.py", "losses.py", "contrastive.py", "models.py", "ewc.py", "batches.py", "adapted.py", "products.py")


def _is_mask(index) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


@pytest.fixture(scope="module")
def whole():
    """The full recipe on a tiny model: every loss, EWC, two teachers, pairs and a queue."""
    config = MistralConfig(
        vocab_size=WORDS, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, sliding_window=None,
    )  # fmt: skip
    torch.manual_seed(0)
    told = step_cost.FULL | {"losses": {**step_cost.FULL["losses"], "floor": 0.1}, "lora": {"rank": 4, "dropout": 0.1}}
    told |= {"distil": {"new": 0.5}, "train": {"threads": 1}}
    settings = Settings.model_validate(told)
    model = models.attach(products.freeze(MistralForCausalLM(config)), settings.lora, 0)
    step_cost.perturb(model)
    learner = step_cost.learner(model, settings)
    learner.model.train()
    return learner


def rows():
    new, old = step_cost.step_rows(generator("waiting"), WORDS)
    return [*(row._replace(teacher="phase1") for row in new), *old]


@pytest.mark.parametrize("measure", [False, True])
def test_a_step_of_the_full_recipe_waits_once_at_its_end(whole, measure, monkeypatch):
    read, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: read.append(self.shape) or tolist(self))
    batches = cut(whole, rows())
    read.clear()
    with Waits() as waits:
        found = gradient_of(whole, batches, 1, measure)
    assert set(found.losses) == set(COMPONENTS) and ("token_entropy" in found.figures) <= measure
    assert {"negatives", "pruned"} <= set(found.figures)
    forwards = len(batches) + sum(len(batch.rows_of) for batch in batches)
    # transformers looks for packed sequences at the start of each forward; nothing of ours waits on the way
    assert waits.found == {"aten::_local_scalar_dense in masking_utils.py": forwards}
    every, on_host = len(COMPONENTS), (2, len(COMPONENTS))
    once = [(every + 2,), on_host]  # losses and two figures together
    # a step that measures also reads the distance to the anchor, which joins the figures, and the norms
    assert read == ([(2,), (every + 3,), on_host, (every,)] if measure else once)


def test_the_counter_counts():
    with Waits() as waits:
        values = torch.arange(4.0)
        values[values > 1]
        values.sum().item()
        bool(values.any())
        values[torch.tensor([0, 2])]
    assert sum(waits.found.values()) == 3


def test_numbers_of_tokens_say_what_masks_say(whole):
    for batch in cut(whole, rows()):
        assert batch.ids[batch.predicts].tolist() == batch.ids.flatten()[batch.positions].tolist()
        for name, members in batch.rows_of.items():
            mask = torch.isin(batch.rows, members)
            assert mask.nonzero()[:, 0].tolist() == batch.tokens_of[name].tolist()
            ids, positions, places, lengths = batch.answers_to(name)
            assert torch.equal(ids, batch.ids[members])
            assert lengths == tuple(batch.lengths[member] for member in members.tolist())
            assert torch.equal(positions, batch.predicts[members].flatten().nonzero()[:, 0])
            for row, mask in zip(places.tolist(), batch.predicts[members], strict=True):
                here = mask.nonzero()[:, 0].tolist()
                assert row == here + [batch.ids.shape[1] - 1] * (len(row) - len(here))


def test_made_batches_are_those_of_the_settings(whole):
    settings = whole.settings
    made = cut(whole, rows())
    again = micro_batches(rows(), settings.train.per_device_train_batch_size, settings.replay.batch_share, 0)
    assert len(made) == len(again) and all(
        torch.equal(one.ids, other.ids) for one, other in zip(made, again, strict=True)
    )
