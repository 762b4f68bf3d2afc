"""Frozen products and the LoRA layer in one node: the same values and gradients as torch's and PEFT's own, and dropout's statistics."""

import time

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners import lora
from torch import nn

from engine import adapted
from engine.products import FrozenLinear, freeze, product, products

pytestmark = pytest.mark.engine


def close(found, expected, tolerance=1e-6):
    return (found.double() - expected.double()).norm() <= tolerance * expected.double().norm()


@pytest.mark.parametrize("rows", [1, 31, 32, 50])
def test_a_product_is_that_of_float64_whatever_the_shape_and_the_strides(rows):
    x, weight, bias = torch.randn(rows, 40), torch.randn(24, 40), torch.randn(24)
    exact = x.double() @ weight.double().T
    assert close(product(x, weight), exact)
    assert close(product(x, weight, bias), exact + bias.double())
    assert close(product(x, weight.T.contiguous().T), exact)
    assert close(product(x.T.contiguous().T, weight), exact)
    assert close(product(x.double(), weight.double()), exact, 1e-14)
    assert product(x.view(rows, 1, 40), weight).shape == (rows, 1, 24)
    assert close(products(torch.stack([x, 2 * x]), torch.stack([weight, weight])), torch.stack([exact, 2 * exact]))


def test_a_slice_of_a_wider_matrix_is_not_a_hundred_times_slower():
    """Gaps between rows take oneDNN's reference path; the product has to close them first."""
    x, wide = torch.randn(256, 256), torch.randn(256, 4, 256)
    plain, gaps = wide[:, 1].contiguous(), wide[:, 1]
    assert close(product(x, gaps), product(x, plain)) and close(product(x, gaps.T), product(x, plain.T))
    times = []
    for weight in (plain, gaps, gaps.T):
        product(x, weight)
        before = time.process_time()
        for _ in range(20):
            product(x, weight)
        times.append(time.process_time() - before)
    assert max(times) < 20 * times[0]


def test_nothing_in_nothing_out():
    assert product(torch.randn(0, 40), torch.randn(24, 40)).shape == (0, 24)


def test_a_frozen_layer_gives_the_gradient_of_a_plain_one_and_a_learning_one_learns():
    plain = nn.Linear(12, 7)
    x = torch.randn(2, 5, 12, requires_grad=True)
    out = torch.randn(2, 5, 7)
    (expected,) = torch.autograd.grad((plain(x) * out).sum(), x)
    frozen = freeze(nn.Sequential(plain))[0]
    assert type(frozen) is FrozenLinear
    (found,) = torch.autograd.grad((frozen(x) * out).sum(), x)
    assert close(found, expected)
    frozen.weight.requires_grad_(True)
    frozen(x).sum().backward()
    assert frozen.weight.grad.abs().sum() > 0


def layer(dropout=0.0, bias=True, dtype=torch.float32):
    """PEFT's layer around Linear(12, 7), B not zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 7, bias=bias)).to(dtype)
    config = LoraConfig(r=3, lora_alpha=6, lora_dropout=dropout, target_modules=["0"])
    made = get_peft_model(model, config, autocast_adapter_dtype=False).base_model.model[0]
    nn.init.normal_(made.lora_B["default"].weight)
    return made


def gradients(made, x, out):
    wanted = [x, made.lora_A["default"].weight, made.lora_B["default"].weight]
    result = made(x)
    return [result, *torch.autograd.grad((result * out).sum(), wanted)]


@pytest.mark.parametrize("bias", [True, False])
def test_an_adapted_layer_equals_peft_s_own_in_value_and_gradients(bias):
    made, x, out = layer(bias=bias), torch.randn(2, 5, 12, requires_grad=True), torch.randn(2, 5, 7)
    expected = gradients(made, x, out)
    assert type(adapted.join(made)) is adapted.AdaptedLinear
    assert all(close(a, b) for a, b in zip(gradients(made, x, out), expected, strict=True))


def test_in_float64_to_the_last_digits():
    made = layer(dtype=torch.float64)
    x, out = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True), torch.randn(2, 5, 7).double()
    expected = gradients(made, x, out)
    assert all(close(a, b, 1e-14) for a, b in zip(gradients(adapted.join(made), x, out), expected, strict=True))


def test_under_autocast_it_is_as_near_to_the_exact_one_as_peft_s_own():
    made, x, out = layer(), torch.randn(4, 50, 12, requires_grad=True), torch.randn(4, 50, 7)
    exact = gradients(made, x, out)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = gradients(made, x, out)
        ours = gradients(adapted.join(made), x, out)
    assert ours[0].dtype == theirs[0].dtype == torch.bfloat16
    for found, other, true in zip(ours, theirs, exact, strict=True):
        assert found.dtype == other.dtype
        assert (found - true).norm() <= 1.2 * (other - true).norm() + 1e-3 * true.norm()


def test_dropout_falls_on_whole_sequences_and_its_gradient_is_that_of_the_masked_input(monkeypatch):
    made = adapted.join(layer(dropout=0.4)).train()
    mask = torch.tensor([[0.0] * 4 + [1 / 0.6] * 8, [1 / 0.6] * 6 + [0.0] * 6])
    monkeypatch.setattr(adapted, "sequence_mask", lambda x, rate, sequences: mask)
    x, out = torch.randn(2, 5, 12, requires_grad=True), torch.randn(2, 5, 7)
    found = gradients(made, x, out)
    a, b = made.lora_A["default"].weight, made.lora_B["default"].weight
    dense = made.base_layer(x) + 2 * (x * mask[:, None]) @ a.T @ b.T
    expected = [dense, *torch.autograd.grad((dense * out).sum(), [x, a, b])]
    assert all(close(one, other) for one, other in zip(found, expected, strict=True))
    assert close(made.eval()(x), lora.Linear.forward(made, x))  # in evaluation nothing is dropped


def test_a_token_s_update_has_the_mean_and_the_variance_of_peft_s_dropout():
    """20,000 masks of each kind, one token: only the masks of two tokens of a sequence hang together."""
    made = layer(dropout=0.3, bias=False).train()
    x = torch.randn(1, 1, 12).expand(20_000, 1, 12)
    with torch.no_grad():
        theirs = made(x)[:, 0]
        ours = adapted.join(made)(x)[:, 0]
        exact = made.eval()(x[:1])[0, 0]
    spread = theirs.std(0)
    assert (ours.mean(0) - exact).abs().max() < 5 * spread.max() / 20_000**0.5
    assert torch.allclose(ours.std(0), spread, rtol=0.05)


def test_a_mask_is_of_a_sequence_and_follows_from_the_seed():
    x = torch.zeros(6, 9, 4000)
    torch.manual_seed(3)
    mask = adapted.sequence_mask(x, 0.1, len(x))
    torch.manual_seed(3)
    assert torch.equal(mask, adapted.sequence_mask(x, 0.1, len(x))) and mask.shape == (6, 4000)
    assert not torch.equal(mask[0], mask[1]) and set(mask.unique().tolist()) == {0.0, mask.max().item()}
    assert mask.mean() == pytest.approx(1, abs=0.01) and (mask == 0).float().mean() == pytest.approx(0.1, abs=0.01)


def test_token_masks_are_peft_s_own_to_the_last_bit():
    made, x = layer(dropout=0.4).train(), torch.randn(2, 5, 12)
    torch.manual_seed(1)
    expected = made(x)
    torch.manual_seed(1)
    assert torch.equal(adapted.join(made, per_sequence=False)(x), expected)
