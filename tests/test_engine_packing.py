"""Rows laid one after the other: the same logits, states, losses and gradients as with the padding between them."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

from engine import adapted, attention, decoder, models, packing, vocabulary
from engine.batches import Encoded, Row, Totals, collate, plain_batch
from engine.evaluation.likelihood import reference_nll
from engine.settings import Lora

pytestmark = pytest.mark.engine

LENGTHS, PROMPTS = (90, 7, 41, 64), (80, 3, 20, 50)
FAMILIES = [(MistralForCausalLM, MistralConfig), (LlamaForCausalLM, LlamaConfig), (Qwen3ForCausalLM, Qwen3Config)]
SIZES = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip


def documents():
    chance = torch.Generator().manual_seed(2)
    return [
        Encoded(torch.randint(1, 50, (length,), generator=chance).tolist(), prompt, 0)
        for length, prompt in zip(LENGTHS, PROMPTS, strict=True)
    ]


@pytest.fixture
def batch():
    made = plain_batch(documents(), 0)
    assert made.ids.shape == (4, 96) and made.lengths == LENGTHS
    return made


def student(kind=MistralForCausalLM, config=MistralConfig, dropout=0.0, **more):
    torch.manual_seed(0)
    model = kind(config(**SIZES | more)).double()
    model = models.attach(models.frozen(model), Lora(rank=4, dropout=dropout), 0)
    with torch.no_grad():
        for weight in models.trainable(model).values():
            weight.normal_(std=0.1)
    return model


def apart(found, exact):
    return ((found.double() - exact.double()).norm() / exact.double().norm()).item()


def read_by(model):
    """The shapes of ids that a model is given from now on."""
    shapes = []
    model.get_input_embeddings().register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    return shapes


def learnt(model, batch, packed):
    torch.manual_seed(3)  # the same dropout
    logits = models.summary_logits(model, batch, packed=packed)
    loss = vocabulary.TokenNll.apply(logits, batch.targets).sum()
    return [logits, *torch.autograd.grad(loss, models.trainable(model).values())]


# -- where tokens go ----------------------------------------------------------------------------------------------


def test_tokens_keep_their_order_and_their_positions():
    ids = torch.arange(1, 145).view(3, 48)
    laid = packing.lay(ids, (40, 3, 16))
    assert laid.ids.shape == (1, 96) and laid.sequences == ((0, 48), (48, 64), (64, 96))  # the last with 16 of filler
    assert laid.ids[0, :80].tolist() == [*range(1, 49), *range(49, 65), *range(97, 113)]
    assert laid.position_ids[0, :80].tolist() == [*range(48), *range(16), *range(16)]
    assert not laid.ids[0, 80:].any()
    kept = torch.tensor([0, 39, 48, 50, 96, 111])
    assert torch.equal(laid.ids[0][laid.positions(kept)], ids.flatten()[kept])
    places = laid.places(torch.tensor([[1, 47], [2, 47], [15, 47]]))
    assert places.tolist() == [[1, 47], [50, 63], [79, 79]]  # a row's last stands for those beyond it


def test_what_a_model_says_finds_its_way_back():
    ids = torch.randint(1, 50, (4, 96))
    laid = packing.lay(ids, LENGTHS)
    back = laid.spread(laid.ids[..., None].double())
    assert back.shape == (4, 96, 1)
    for row, length in enumerate(LENGTHS):
        assert torch.equal(back[row, :length, 0], ids[row, :length].double())
        assert not back[row, length + -length % 16 :].any()


@pytest.mark.parametrize("lengths", [None, (96, 96), (90, 80)])
def test_rows_stay_as_they_are_where_little_is_saved(lengths):
    ids = torch.randint(1, 50, (2, 96))
    laid = packing.lay(ids, lengths)
    assert laid.ids is ids and laid.sequences is None and laid.position_ids is None
    assert laid.positions(torch.tensor([100])).tolist() == [100]
    assert laid.places(torch.tensor([[3], [3]])).tolist() == [[3], [99]]


def test_sequences_are_known_only_while_a_model_reads_them():
    laid = packing.lay(torch.zeros(4, 96, dtype=torch.long), LENGTHS)
    length = laid.ids.shape[1]
    with pytest.raises(ZeroDivisionError), packing.running(laid):
        assert packing.sequences(1, length) == laid.sequences
        assert packing.sequences(4, 32) is None  # what the last layer picked out
        raise ZeroDivisionError
    assert packing.sequences(1, length) is None


# -- a model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("kind", "config"), FAMILIES)
def test_logits_and_every_gradient_are_those_of_padded_rows(kind, config, dropout, everywhere, batch, monkeypatch):
    """In training mode, with the dropout of each sequence; with the last layer at some places and everywhere."""
    if everywhere:
        monkeypatch.setattr(decoder, "MOST", 0)
    model = student(kind, config, dropout).train()
    shapes = read_by(model)
    pairs = zip(learnt(model, batch, True), learnt(model, batch, False), strict=True)
    assert all(apart(found, exact) < 1e-13 for found, exact in pairs)
    assert shapes == [(1, 224), (4, 96)]
    if dropout:
        torch.manual_seed(4)
        assert apart(models.summary_logits(model, batch, packed=True), learnt(model, batch, True)[0]) > 1e-3


@pytest.mark.parametrize("window", [64, 96])
def test_a_window_is_kept(window, batch):
    """One shorter than the longest row needs its mask; a longer one takes nothing away."""
    model = student(sliding_window=window)
    shapes = read_by(model)
    pairs = zip(learnt(model, batch, True), learnt(model, batch, False), strict=True)
    assert all(apart(found, exact) < 1e-13 for found, exact in pairs)
    assert shapes == [(4, 96) if window == 64 else (1, 224), (4, 96)]


def test_masks_of_tokens_are_peft_s_and_rows_can_lie_one_after_the_other(batch):
    model = adapted.join(student(dropout=0.3), per_sequence=False)
    shapes = read_by(model)
    assert apart(*(learnt(model.eval(), batch, packed)[0] for packed in (True, False))) < 1e-13
    assert torch.isfinite(learnt(model.train(), batch, True)[1]).all()
    assert shapes == [(1, 224), (4, 96), (1, 224)]


def test_states_come_back_in_rows(batch):
    """Everywhere, and only where the logits are; gradients go through them."""
    model = student()
    exact = models.logits_and_states(model, batch._replace(lengths=()), True)
    shapes = read_by(model)
    mask = torch.arange(96) < torch.tensor(LENGTHS)[:, None]
    logits, states = models.logits_and_states(model, batch, True)
    assert apart(logits, exact[0]) < 1e-13 and apart(states[mask], exact[1][mask]) < 1e-13
    some = models.logits_and_states(model, batch, False)[1]
    assert apart(some[batch.predicts], exact[1][batch.predicts]) < 1e-13
    weights, some_direction = list(models.trainable(model).values()), torch.randn(32, dtype=torch.float64)
    found = torch.autograd.grad((some[batch.predicts] @ some_direction).square().sum(), weights)
    wanted = torch.autograd.grad((exact[1][batch.predicts] @ some_direction).square().sum(), weights)
    assert all(apart(one, other) < 1e-12 for one, other in zip(found, wanted, strict=True))
    assert shapes == [(1, 224), (1, 224)]


def test_a_teacher_reads_its_own_rows_packed(monkeypatch):
    rows = [Row(document, "memory", "base" if n != 2 else "") for n, document in enumerate(documents())]
    made, model = collate(rows, Totals({}, 1.0, 0.0), 0), student()
    shapes = read_by(model)
    packed = models.teacher_log_probabilities(model, made, ["base"])["base"]
    monkeypatch.setattr(packing, "MOST", 0)
    padded = models.teacher_log_probabilities(model, made, ["base"])["base"]
    assert apart(packed, padded) < 1e-13 and shapes == [(1, 192), (3, 96)]


def test_likelihoods_are_those_of_documents_alone():
    model = student().eval()
    shapes = read_by(model)
    together = reference_nll(model, documents(), 0)
    alone = [value for document in documents() for value in reference_nll(model, [document], 0)]
    assert together == pytest.approx(alone, rel=1e-12) and shapes[0] == (1, 224)


def test_under_autocast_they_differ_by_bf16_alone(batch):
    model = student().float()
    with torch.no_grad():
        exact = models.summary_logits(model, batch)
        with torch.autocast("cpu", torch.bfloat16):
            packed, padded = (models.summary_logits(model, batch, packed=one) for one in (True, False))
    assert apart(packed, exact) < 1.1 * apart(padded, exact)


def test_layers_that_run_again_or_are_compiled_read_padded_rows(batch):
    """When a layer is computed again, nothing tells it any more where the sequences were."""
    model = student()
    model.enable_input_require_grads()
    model.activation_checkpointing_enable()
    shapes = read_by(model)
    learnt(model.train(), batch, True)
    assert set(shapes) == {(4, 96)}
    other = student()
    shapes, layer = read_by(other), decoder.last(other.get_base_model())
    layer.forward = copy.copy(layer.forward)  # as engine/compiling.py does
    models.summary_logits(other, batch, packed=True)
    assert shapes == [(4, 96)]


def test_attention_of_torch_s_own_reads_padded_rows(batch):
    model = student()
    exact = models.summary_logits(model, batch)
    model.get_base_model().set_attn_implementation("sdpa")
    shapes = read_by(model)
    assert apart(models.summary_logits(model, batch, packed=True), exact) < 1e-13 and shapes == [(4, 96)]
    assert attention.NAME != "sdpa"
