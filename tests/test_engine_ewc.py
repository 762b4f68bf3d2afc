"""EWC against brute force: Fisher per sequence, its unit, the penalty and its gradient."""

import pytest
import torch
from torch.nn import functional

from engine import ewc, models
from engine.batches import Encoded, Row, collate
from engine.settings import ConfigError, Ewc, Lora

pytestmark = pytest.mark.engine
PAD = 0


@pytest.fixture
def model(tiny_base):
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    base = AutoModelForCausalLM.from_pretrained(tiny_base).requires_grad_(False)
    made = models.attach(base, Lora(rank=4, alpha=8, dropout=0.1), seed=0)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in models.trainable(made).items():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return made.train()


def documents(*sizes: tuple[int, int]) -> list[Encoded]:
    chance = torch.Generator().manual_seed(1)
    return [Encoded(torch.randint(5, 300, (a + b,), generator=chance).tolist(), a, 0) for a, b in sizes]


SIZES = ((5, 4), (9, 3), (4, 8), (7, 1), (6, 6))


def settings(**given) -> Ewc:
    return Ewc(**{"lambda": 1.0, "unit": "per_token", "labels": "empirical", "fisher_batch_size": 2} | given)


def looped(model, docs) -> dict[str, torch.Tensor]:
    """One backward pass for each sequence, squared, summed, divided by the tokens: the definition itself."""
    model.eval()
    weights, tokens = models.trainable(model), 0
    total = {name: torch.zeros_like(parameter) for name, parameter in weights.items()}
    for document in docs:
        batch = collate([Row(document, "new")], {"new": (1.0, 0.0)}, PAD)
        loss = functional.cross_entropy(models.summary_logits(model, batch), batch.targets, reduction="sum")
        for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            total[name] += gradient.square()
        tokens += document.summary_tokens
    return {name: value / tokens for name, value in total.items()}


def close(found: dict, expected: dict) -> bool:
    return all(
        torch.allclose(found[n], expected[n], rtol=1e-4, atol=1e-4 * expected[n].abs().max().item() + 1e-12)
        for n in expected
    )


def test_batched_fisher_equals_the_loop_over_single_sequences(model):
    docs = documents(*SIZES)
    found = ewc.fisher(model, docs, settings(), 0, PAD)
    assert close(found.values, looped(model, docs))
    assert (found.documents, found.tokens, found.mean_tokens) == (5, 22, 4.4)


def test_batch_size_changes_nothing(model):
    docs = documents(*SIZES)
    for labels in ("empirical", "sampled"):
        one, five = (ewc.fisher(model, docs, settings(labels=labels, fisher_batch_size=n), 0, PAD) for n in (1, 5))
        assert close(five.values, one.values)


def test_squaring_the_batch_gradient_would_be_another_number(model):
    docs = documents(*SIZES)
    model.eval()
    batch = collate([Row(document, "new") for document in docs], {"new": (1.0, 0.0)}, PAD)
    functional.cross_entropy(models.summary_logits(model, batch), batch.targets, reduction="sum").backward()
    wrong = sum(parameter.grad.square().sum().item() for parameter in models.trainable(model).values()) / 22
    model.zero_grad()
    assert abs(wrong / ewc.fisher(model, docs, settings(), 0, PAD).trace - 1) > 0.05


def test_sampled_labels_give_the_enumerated_fisher(model):
    """One summary token: the Fisher is sum_y p(y) (d log p(y))^2, here enumerated over the whole vocabulary."""
    (document,) = documents((6, 1))
    model.eval()
    batch = collate([Row(document, "new")], {"new": (1.0, 0.0)}, PAD)
    weight = next(p for n, p in models.trainable(model).items() if "lora_B" in n and "down_proj" in n)
    log_p = models.summary_logits(model, batch).log_softmax(-1)[0]
    exact, mean = torch.zeros_like(weight), torch.zeros_like(weight)
    for value in log_p:
        (score,) = torch.autograd.grad(value, weight, retain_graph=True)
        exact += value.exp().detach() * score.square()
        mean += value.exp().detach() * score
    assert mean.abs().max() < 1e-4 * exact.max().sqrt() + 1e-6  # scores have mean zero
    name = next(n for n, p in models.trainable(model).items() if p is weight)
    draws = [
        ewc.fisher(model, [document], settings(labels="sampled"), seed, PAD).values[name].sum().item()
        for seed in range(300)
    ]
    mean_draw = torch.tensor(draws)
    error = mean_draw.std() / len(draws) ** 0.5
    assert abs(mean_draw.mean() - exact.sum()) < 4 * error


def test_fisher_is_zero_where_it_must_be_and_then_refused(model):
    with torch.no_grad():
        for parameter in models.trainable(model).values():
            parameter.zero_()
    with pytest.raises(ConfigError, match="0 everywhere"):
        ewc.fisher(model, documents((4, 2)), settings(), 0, PAD)


def test_fisher_leaves_the_model_as_it_was_and_can_be_stopped(model):
    before = {name: parameter.clone() for name, parameter in models.trainable(model).items()}
    seen = []
    assert (
        ewc.fisher(model, documents(*SIZES), settings(), 0, PAD, lambda done, f: seen.append((done, f.trace))).trace > 0
    )
    assert [done for done, _ in seen] == [2, 4, 5] and all(trace > 0 for _, trace in seen)
    assert model.training and all(torch.equal(before[n], p) for n, p in models.trainable(model).items())
    assert all(parameter.grad is None for parameter in models.trainable(model).values())
    assert ewc.fisher(model, documents(*SIZES), settings(), 0, PAD, stop=lambda: True) is None


def test_shares_of_the_trace_add_up(model):
    shares = ewc.fisher(model, documents(*SIZES), settings(), 0, PAD).shares()
    assert set(shares) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert sum(shares.values()) == pytest.approx(1)


def test_penalty_is_zero_at_the_anchor_and_its_gradient_is_lambda_f_d_beside_it(model):
    given = settings(**{"lambda": 3.0})
    found = ewc.fisher(model, documents(*SIZES), given, 0, PAD)
    anchors = ewc.anchored([], "phase1", found, model, given)
    assert ewc.penalty(model, anchors, given).item() == 0
    with torch.no_grad():
        for parameter in models.trainable(model).values():
            parameter += 0.01
    value = ewc.penalty(model, anchors, given)
    assert value.item() == pytest.approx(1.5 * 1e-4 * found.trace, rel=1e-3)
    value.backward()
    for name, parameter in models.trainable(model).items():
        assert torch.allclose(parameter.grad, 3.0 * found.values[name] * 0.01, rtol=1e-2, atol=1e-9)


def test_units_of_lambda():
    assert ewc.lambda_per_token(settings(**{"lambda": 400, "unit": "token_mean_sequence"}), 300) == pytest.approx(4 / 3)
    assert ewc.lambda_per_token(settings(**{"lambda": 400}), 300) == 400


def test_token_mean_fisher_times_400_is_our_fisher_times_the_converted_lambda(model):
    """For sequences of equal length the two ways of saying lambda give the same penalty."""
    docs = documents((5, 4), (8, 4), (3, 4))
    ours = ewc.fisher(model, docs, settings(), 0, PAD)
    weights = models.trainable(model)
    mean = {name: torch.zeros_like(parameter) for name, parameter in weights.items()}
    model.eval()
    for document in docs:
        batch = collate([Row(document, "new")], {"new": (1.0, 0.0)}, PAD)
        loss = functional.cross_entropy(models.summary_logits(model, batch), batch.targets)  # token mean
        for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            mean[name] += gradient.square() / len(docs)
    converted = ewc.lambda_per_token(settings(**{"lambda": 400, "unit": "token_mean_sequence"}), ours.mean_tokens)
    for name, value in mean.items():
        assert torch.allclose(400 * value, converted * ours.values[name], rtol=1e-3, atol=1e-7)


def test_online_adds_fishers_and_separate_keeps_them(model):
    docs = documents(*SIZES)
    first = ewc.fisher(model, docs[:3], settings(), 0, PAD)
    second = ewc.fisher(model, docs[3:], settings(), 0, PAD)
    one = ewc.anchored([], "phase1", first, model, settings())
    (online,) = ewc.anchored(one, "phase2", second, model, settings(gamma=0.5))
    name = next(iter(first.values))
    assert torch.allclose(online.fisher.values[name], second.values[name] + 0.5 * first.values[name])
    assert [a.phase for a in ewc.anchored(one, "phase2", second, model, settings(anchors="separate"))] == [
        "phase1",
        "phase2",
    ]


def test_anchors_come_back_from_disk(model, tmp_path):
    given = settings()
    anchors = ewc.anchored([], "phase1", ewc.fisher(model, documents(*SIZES), given, 0, PAD), model, given)
    ewc.save(tmp_path, anchors)
    (loaded,) = ewc.load(tmp_path, model)
    assert (loaded.phase, loaded.fisher.documents, loaded.fisher.tokens) == ("phase1", 5, 22)
    assert all(torch.equal(loaded.weights[n], anchors[0].weights[n]) for n in loaded.weights)
    assert all(torch.equal(loaded.fisher.values[n], anchors[0].fisher.values[n]) for n in loaded.weights)
    assert ewc.load(tmp_path / "none", model) == []


def test_anchors_of_another_adapter_are_refused(model, tiny_base, tmp_path):
    from transformers import AutoModelForCausalLM

    given = settings()
    ewc.save(tmp_path, ewc.anchored([], "phase1", ewc.fisher(model, documents(*SIZES), given, 0, PAD), model, given))
    other = models.attach(AutoModelForCausalLM.from_pretrained(tiny_base), Lora(rank=2, alpha=8), seed=0)
    with pytest.raises(ConfigError, match="Was lora.rank changed"):
        ewc.load(tmp_path, other)
