"""Attention in blocks, rotary positions, the last layer at some places, losses over the vocabulary, gated layers and norms:
the values and gradients of what they replace."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)  # fmt: skip
from transformers.models.mistral import modeling_mistral

from engine import attention, decoder, models, vocabulary
from engine.batches import Encoded, plain_batch
from engine.settings import Lora

pytestmark = pytest.mark.engine


def apart(found, exact):
    """Relative distance."""
    return ((found.double() - exact.double()).norm() / exact.double().norm()).item()


def with_gradients(action, inputs, out):
    given = [value.detach().requires_grad_() for value in inputs]
    result = action(*given)
    return [result, *torch.autograd.grad(result, given, out.to(result.dtype))]


# -- attention ----------------------------------------------------------------------------------------------------


def ours(query, key, value):
    return attention._Blocks.apply(query, key, value, 0.3)


def torchs(query, key, value):
    plain = functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True)
    return plain.transpose(1, 2)


def heads(length, dtype):
    torch.manual_seed(length)
    return [torch.randn(2, length, count, 16, dtype=dtype).transpose(1, 2) for count in (6, 2, 2)]


@pytest.mark.parametrize("length", [1, 33, 320, 321, 700])
def test_attention_in_blocks_is_exact_whatever_the_length(length):
    inputs, out = heads(length, torch.float64), torch.randn(2, length, 6, 16, dtype=torch.float64)
    pairs = zip(with_gradients(ours, inputs, out), with_gradients(torchs, inputs, out), strict=True)
    for found, exact in pairs:
        assert (found - exact).abs().max() < 1e-13


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 6e-3)])
def test_in_lower_precision_it_is_as_near_to_the_exact_one_as_torch_s(dtype, tolerance):
    inputs, out = heads(300, dtype), torch.randn(2, 300, 6, 16)
    exact = with_gradients(torchs, [value.double() for value in inputs], out.to(dtype))
    theirs = with_gradients(torchs, inputs, out.to(dtype))
    for found, other, true in zip(with_gradients(ours, inputs, out.to(dtype)), theirs, exact, strict=True):
        assert found.dtype == dtype
        assert apart(found, true) < max(tolerance, 1.5 * apart(other, true))


@pytest.mark.parametrize("common", [0.0, 1.0, 4.0])
def test_what_values_have_in_common_does_not_blur_the_gradients_of_queries_and_keys(common):
    query, key, value = heads(300, torch.float32)
    value += common * torch.randn(value.shape[0], value.shape[1], 1, value.shape[3])
    inputs, out = [given.bfloat16() for given in (query, key, value)], torch.randn(2, 300, 6, 16).bfloat16()
    exact = with_gradients(torchs, [given.double() for given in inputs], out.double())
    theirs, found = with_gradients(torchs, inputs, out), with_gradients(ours, inputs, out)
    for one in (1, 2):  # of the queries, of the keys
        assert apart(found[one], exact[one]) < 4.5e-3
    assert common < 4 or apart(found[1], exact[1]) < 0.6 * apart(theirs[1], exact[1])


def test_weights_wait_for_the_backward_pass_where_they_are_few(monkeypatch):
    """Kept or computed again, in one block or in two."""
    inputs, out = heads(350, torch.float32), torch.randn(2, 350, 6, 16)
    found = []
    for most, count in ((attention.KEPT, 2 * 2 * 2), (350 * 350 * 4 - 1, 0)):
        monkeypatch.setattr(attention, "KEPT", most)
        result = ours(*[value.requires_grad_() for value in inputs])
        assert len(result.grad_fn.saved_tensors) == 3 + count  # sequences * key heads * blocks
        found.append(torch.autograd.grad(result, inputs, out))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_blocks_are_few_and_of_nearly_the_same_size():
    assert attention._blocks(320) == [(0, 320)] and attention._blocks(321) == [(0, 176), (176, 321)]
    assert attention._blocks(960) == [(0, 320), (320, 640), (640, 960)]
    for length in range(1, 1500):
        blocks = attention._blocks(length)
        assert [first for first, _ in blocks] == [0, *(end for _, end in blocks[:-1])] and blocks[-1][1] == length
        assert max(end - first for first, end in blocks) <= attention.QUERIES


# -- rotary positions ---------------------------------------------------------------------------------------------


def test_rotary_positions_are_transformers_own():
    """With different turns of the two halves, which no model has: so that none is taken for the other."""
    torch.manual_seed(0)
    x, cos, sin = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 5, 3, 8), (2, 5, 8), (2, 5, 8)))
    out = torch.randn(2, 5, 3, 8, dtype=torch.float64)

    def theirs(x):
        return modeling_mistral.apply_rotary_pos_emb(x, x, cos, sin, unsqueeze_dim=2)[0]

    def turned(x):
        return decoder.Rotated.apply(x, cos, sin, x.dtype)

    for found, exact in zip(with_gradients(turned, [x], out), with_gradients(theirs, [x], out), strict=True):
        assert (found - exact).abs().max() < 1e-14


# -- models -------------------------------------------------------------------------------------------------------


def small(kind, config, **changed):
    torch.manual_seed(0)
    given = {
        "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 1024,
    }  # fmt: skip
    return kind(config(**given | changed)).eval()


FAMILIES = [(MistralForCausalLM, MistralConfig), (LlamaForCausalLM, LlamaConfig), (Qwen3ForCausalLM, Qwen3Config)]


@pytest.mark.parametrize(("kind", "config"), FAMILIES)
@pytest.mark.parametrize("length", [7, 64])
def test_a_model_with_all_of_them_says_what_it_said(kind, config, length):
    plain = small(kind, config).double()
    joined = models.frozen(copy.deepcopy(plain))
    assert type(joined.model.layers[0].mlp).__name__.startswith("Gated")
    assert type(joined.model.norm).__name__.startswith("Joined")
    assert joined.state_dict().keys() == plain.state_dict().keys()
    states = torch.randn(2, length, 32, dtype=torch.float64)

    def said(model):
        given = states.clone().requires_grad_()
        logits = model(inputs_embeds=given, use_cache=False).logits
        return logits, torch.autograd.grad(logits.square().sum(), given)[0]

    for found, exact in zip(said(joined), said(plain), strict=True):
        assert apart(found, exact) < 1e-6  # transformers' norm rounds to float32


def documents(lengths, prompts):
    chance = torch.Generator().manual_seed(2)
    return [
        Encoded(torch.randint(1, 50, (length,), generator=chance).tolist(), prompt, 0)
        for length, prompt in zip(lengths, prompts, strict=True)
    ]


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize(("kind", "config"), FAMILIES)
def test_the_last_layer_at_the_places_of_labels_learns_the_same(kind, config, window, checkpointed, monkeypatch):
    """Logits, and the gradients of every adapter, beside transformers' model and PEFT's layers."""
    more = {"sliding_window": window} if config is not LlamaConfig else {}
    plain = small(kind, config, **more).double()
    batch = plain_batch(documents((90, 84, 9), (80, 50, 4)), 0)
    assert batch.places.shape == (3, 64) and batch.ids.shape == (3, 96)

    def learnt(model):
        torch.manual_seed(3)
        with torch.no_grad():
            for weight in models.trainable(model).values():
                weight.normal_(std=0.1)
        if checkpointed:
            model.enable_input_require_grads()
            model.activation_checkpointing_enable()
        logits = models.summary_logits(model.train(), batch)
        loss = vocabulary.TokenNll.apply(logits, batch.targets).sum()
        return logits, *torch.autograd.grad(loss, models.trainable(model).values())

    lora = Lora(rank=4, dropout=0.0)
    joined = models.attach(models.frozen(copy.deepcopy(plain)), lora, 0)
    last, asked = decoder.last(joined.get_base_model()), []
    last.mlp.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0].shape[1]))
    plain = get_peft_model(plain, LoraConfig(r=4, lora_alpha=lora.alpha, target_modules=list(lora.target_modules)))
    found = learnt(joined)
    assert set(asked) == {64}
    for one, exact in zip(found, learnt(plain), strict=True):
        assert apart(one, exact) < 2e-5  # transformers' norm rounds to float32
    monkeypatch.setattr(decoder, "MOST", 0)
    for one, exact in zip(found, learnt(joined), strict=True):
        assert apart(one, exact) < 1e-13
    assert set(asked) == {64, 96}


def test_states_that_are_wanted_everywhere_are_there():
    plain = small(MistralForCausalLM, MistralConfig)
    joined = models.attach(models.frozen(copy.deepcopy(plain)), Lora(rank=4, dropout=0.0), 0)
    batch = plain_batch(documents((70, 64), (60, 50)), 0)
    with torch.no_grad():
        exact = plain.model(input_ids=batch.ids).last_hidden_state
        logits, states = models.logits_and_states(joined, batch, True)
        same, some = models.logits_and_states(joined, batch, False)
    assert apart(states, exact) < 1e-6 and apart(same, logits) < 1e-6
    assert apart(some[batch.predicts], exact[batch.predicts]) < 1e-6
    nobody_asks = ~batch.predicts
    nobody_asks[:, -1] = False  # the place that stands for missing ones
    assert not some[nobody_asks].any()


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
        GPTNeoXConfig(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, eos_token_id=2),
        FalconConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_models_of_other_families_say_what_they_said(config):
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(config).eval()
    joined, ids = models.frozen(copy.deepcopy(plain)), torch.randint(3, 50, (2, 70))
    assert apart(joined(input_ids=ids).logits, plain(input_ids=ids).logits) < 1e-6


def test_masks_windows_and_caches_keep_torch_s_attention():
    plain = small(MistralForCausalLM, MistralConfig, sliding_window=16).double()
    joined = models.frozen(copy.deepcopy(plain))
    ids = torch.randint(0, 50, (2, 64))
    for given in ({}, {"attention_mask": (torch.arange(64) >= torch.tensor([[0], [9]])).long()}):
        assert apart(joined(input_ids=ids, **given).logits[:, 9:], plain(input_ids=ids, **given).logits[:, 9:]) < 1e-6
    written = [
        model.generate(ids[:, :40], max_new_tokens=12, do_sample=False, pad_token_id=0) for model in (plain, joined)
    ]
    assert torch.equal(*written)


def test_under_autocast_a_model_is_as_near_to_the_exact_one_as_transformers_own():
    plain = small(MistralForCausalLM, MistralConfig, hidden_size=64, intermediate_size=128)
    joined, ids = models.frozen(copy.deepcopy(plain)), torch.randint(0, 50, (2, 64))
    exact = plain(input_ids=ids).logits
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert apart(joined(input_ids=ids).logits, exact) < 1.3 * apart(plain(input_ids=ids).logits, exact)


# -- losses -------------------------------------------------------------------------------------------------------


@pytest.fixture
def pieces(monkeypatch):
    """Three rows at a time, so that seven rows take three pieces."""
    monkeypatch.setattr(vocabulary, "PIECE", 3 * 11)


def test_the_loss_of_a_token_is_torch_s_cross_entropy(pieces):
    logits, targets, out = 9 * torch.randn(7, 11).double(), torch.randint(0, 11, (7,)), torch.randn(7)
    found = with_gradients(lambda x: vocabulary.TokenNll.apply(x, targets), [logits], out)
    exact = with_gradients(lambda x: functional.cross_entropy(x, targets, reduction="none"), [logits], out)
    assert all((a - b).abs().max() < 1e-13 for a, b in zip(found, exact, strict=True))
    assert torch.autograd.gradcheck(
        lambda x: vocabulary.TokenNll.apply(x, targets), logits.requires_grad_(), fast_mode=True
    )


def test_the_divergence_from_a_teacher_is_torch_s(pieces):
    logits, out = 9 * torch.randn(7, 11).double(), torch.randn(7)
    teacher = torch.randn(7, 11).double().log_softmax(-1)

    def theirs(x):
        return functional.kl_div(x.log_softmax(-1), teacher, log_target=True, reduction="none").sum(-1)

    found = with_gradients(lambda x: vocabulary.Divergence.apply(x, teacher), [logits], out)
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(found, with_gradients(theirs, [logits], out), strict=True))
    same = vocabulary.Divergence.apply(logits, logits.log_softmax(-1))
    assert same.abs().max() < 1e-12


def test_losses_of_bf16_logits_are_computed_in_float32():
    logits, targets = (9 * torch.randn(7, 1000)).bfloat16(), torch.randint(0, 1000, (7,))
    found, gradient = with_gradients(lambda x: vocabulary.TokenNll.apply(x, targets), [logits], torch.ones(7))
    exact = functional.cross_entropy(logits.double(), targets, reduction="none")
    assert found.dtype == torch.float32 and apart(found, exact) < 1e-6
    assert gradient.dtype == torch.bfloat16


def test_no_tokens_no_losses():
    logits = torch.randn(0, 11, requires_grad=True)
    vocabulary.TokenNll.apply(logits, torch.zeros(0, dtype=torch.long)).sum().backward()
    assert logits.grad.shape == (0, 11)


def test_a_step_in_bf16_has_the_direction_of_one_in_float32():
    """Frozen products stored in bf16, adapters and embedding in float32; the gradient of a step is nearly the same."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from engine.batches import Encoded, Row
    from engine.gradient import Learner, gradient
    from engine.settings import Settings
    from tests.step_cost import PLAIN, perturb

    def learnt(precision):
        settings = Settings.model_validate({**PLAIN, "lora": {"dropout": 0.0, "rank": 4}})
        base = models.frozen(small(MistralForCausalLM, MistralConfig, hidden_size=64, intermediate_size=128))
        model = models.attach(base, settings.lora, 0)
        perturb(model)
        AcceleratorState._reset_state(True)  # a process has one precision for its life
        accelerator = Accelerator(cpu=True, mixed_precision=precision)
        model = models.placed(model, accelerator).train()
        weights = models.trainable(model)
        learner = Learner(accelerator, model, list(weights.values()), None, [], [], settings, 0)
        chance = torch.Generator().manual_seed(1)
        ids = torch.randint(1, 50, (6, 80), generator=chance).tolist()
        told = gradient(learner, [Row(Encoded(row, 60, 0), "new", group=n) for n, row in enumerate(ids)], 0)
        return model, told.losses["cross_entropy"], torch.cat([p.grad.flatten() for p in weights.values()])

    plain, loss, exact = learnt("no")
    model, narrow_loss, found = learnt("bf16")
    AcceleratorState._reset_state(True)
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    assert layer.base_layer.weight.dtype == torch.bfloat16 and layer.lora_A["default"].weight.dtype == torch.float32
    assert model.get_input_embeddings().weight.dtype == found.dtype == torch.float32
    assert narrow_loss == pytest.approx(loss, rel=5e-3)
    assert functional.cosine_similarity(found, exact, dim=0) > 0.995
