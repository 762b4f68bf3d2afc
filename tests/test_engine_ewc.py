"""EWC against brute force: Fisher per sequence, its unit, the penalty and its gradient."""

import pytest
import torch
from torch.nn import functional

from engine import ewc, models
from engine.batches import Encoded, plain_batch
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
    return Ewc(
        **{"lambda": 1.0, "unit": "per_token", "labels": "empirical", "fisher_batch_size": 2, "space": "factor"} | given
    )


def looped(model, docs) -> dict[str, torch.Tensor]:
    """One backward pass for each sequence, squared, summed, divided by the tokens: the definition itself."""
    model.eval()
    weights, tokens = models.trainable(model), 0
    total = {name: torch.zeros_like(parameter) for name, parameter in weights.items()}
    for document in docs:
        batch = plain_batch([document], PAD)
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
    batch = plain_batch(docs, PAD)
    functional.cross_entropy(models.summary_logits(model, batch), batch.targets, reduction="sum").backward()
    wrong = sum(parameter.grad.square().sum().item() for parameter in models.trainable(model).values()) / 22
    model.zero_grad()
    assert abs(wrong / ewc.fisher(model, docs, settings(), 0, PAD).trace - 1) > 0.05


def test_sampled_labels_give_the_enumerated_fisher(model):
    """One summary token: the Fisher is sum_y p(y) (d log p(y))^2, here enumerated over the whole vocabulary."""
    (document,) = documents((6, 1))
    model.eval()
    batch = plain_batch([document], PAD)
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
        batch = plain_batch([document], PAD)
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
    (loaded,) = ewc.load(tmp_path, model, given)
    assert (loaded.phase, loaded.fisher.documents, loaded.fisher.tokens) == ("phase1", 5, 22)
    assert all(torch.equal(loaded.weights[n], anchors[0].weights[n]) for n in loaded.weights)
    assert all(torch.equal(loaded.fisher.values[n], anchors[0].fisher.values[n]) for n in loaded.weights)
    assert ewc.load(tmp_path / "none", model, given) == []


def test_anchors_of_another_adapter_are_refused(model, tiny_base, tmp_path):
    from transformers import AutoModelForCausalLM

    given = settings()
    ewc.save(tmp_path, ewc.anchored([], "phase1", ewc.fisher(model, documents(*SIZES), given, 0, PAD), model, given))
    other = models.attach(AutoModelForCausalLM.from_pretrained(tiny_base), Lora(rank=2, alpha=8), seed=0)
    with pytest.raises(ConfigError, match="Were lora.rank or"):
        ewc.load(tmp_path, other, given)


def dense_updates(model) -> dict[str, torch.Tensor]:
    return {
        name: module.scaling["default"] * module.lora_B["default"].weight @ module.lora_A["default"].weight
        for name, module in model.named_modules()
        if isinstance(module, ewc.LoraLayer)
    }


def looped_margins(model, docs) -> dict[str, torch.Tensor]:
    """Row and column sums of the squared gradient of every Delta W, one sequence at a time, through an added dense weight."""
    from torch.func import functional_call

    model.eval()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, ewc.LoraLayer)}
    names = {f"{name}.base_layer.weight": name for name in layers}
    total, tokens = {}, 0
    for document in docs:
        batch = plain_batch([document], PAD)
        added = {
            full: module.base_layer.weight.detach().clone().requires_grad_()
            for full, module in zip(names, layers.values(), strict=True)
        }
        given = {"input_ids": batch.ids, "logits_to_keep": batch.predicts, "use_cache": False}
        logits = functional_call(model, added, kwargs=given).logits
        functional.cross_entropy(logits, batch.targets, reduction="sum").backward()
        for full, weight in added.items():
            square = weight.grad.square()
            for part, value in ((ewc.ROWS, square.sum(1)), (ewc.COLUMNS, square.sum(0))):
                key = names[full] + part
                total[key] = total.get(key, 0) + value
        tokens += document.summary_tokens
    model.zero_grad()
    return {name: value / tokens for name, value in total.items()}


@pytest.mark.parametrize("size", [1, 5])
def test_product_fisher_equals_the_loop_whatever_way_is_cheaper(model, monkeypatch, size):
    docs = documents(*SIZES, (2, 2))
    expected = looped_margins(model, docs)
    given = settings(space="product", fisher_batch_size=size)
    assert close(ewc.fisher(model, docs, given, 0, PAD).values, expected)
    name, values, gradient = "layer", torch.randn(3, 4, 50), torch.randn(3, 4, 60)
    by_length = dict(ewc._margins(name, None, values, gradient))
    by_matrix = dict(ewc._margins(name, None, *(torch.nn.functional.pad(t, (0, 0, 0, 60)) for t in (values, gradient))))
    assert all(torch.allclose(by_length[part], by_matrix[part], rtol=1e-4) for part in by_length)


def test_rank_one_fisher_keeps_its_margins():
    """F = [[1, 2], [2, 4]] has u = v = (3, 6), Z = 9 and is exactly u v^T / Z."""
    torch.manual_seed(0)
    now, then = ((torch.randn(2, 2, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)) for _ in range(2))
    margins = torch.tensor([3.0, 6.0], dtype=torch.float64)
    d = 2.0 * (now[1] @ now[0] - then[1] @ then[0])
    dense = (torch.tensor([[1.0, 2.0], [2.0, 4.0]]) * d.square()).sum()
    assert ewc.product_penalty(now, then, margins, margins, 2.0).item() == pytest.approx(dense.item(), rel=1e-12)


def test_product_penalty_equals_the_dense_form_and_passes_gradcheck():
    torch.manual_seed(1)
    a, b, a_then, b_then = (torch.randn(*shape, dtype=torch.float64) for shape in ((3, 7), (5, 3), (3, 7), (5, 3)))
    u, v = torch.rand(5, dtype=torch.float64), torch.rand(7, dtype=torch.float64)
    v = v * u.sum() / v.sum()

    def value(a, b):
        return ewc.product_penalty((a, b), (a_then, b_then), u, v, 1.5)

    d = 1.5 * (b @ a - b_then @ a_then)
    assert value(a, b).item() == pytest.approx((torch.outer(u, v) / u.sum() * d.square()).sum().item(), rel=1e-12)
    assert torch.autograd.gradcheck(value, (a.requires_grad_(), b.requires_grad_()))


def test_the_same_function_has_the_same_product_penalty(model):
    """(cA, B/c) is the same model: the product penalty stays, the one on the factors moves."""
    docs, found = documents(*SIZES), {}
    for space in ("product", "factor"):
        given = settings(space=space)
        anchors = ewc.anchored([], "phase1", ewc.fisher(model, docs, given, 0, PAD), model, given)
        before = dense_updates(model)
        with torch.no_grad():
            for name, parameter in models.trainable(model).items():
                parameter *= 3.0 if "lora_A" in name else 1 / 3.0
        assert all(torch.allclose(before[n], d, atol=1e-6) for n, d in dense_updates(model).items())
        found[space] = ewc.penalty(model, anchors, given).item()
        with torch.no_grad():
            for name, parameter in models.trainable(model).items():
                parameter *= 1 / 3.0 if "lora_A" in name else 3.0
    assert found["product"] < 1e-6 * found["factor"]


def test_product_penalty_is_zero_at_the_anchor_with_zero_gradient_and_for_silent_layers(model):
    given = settings(space="product")
    anchors = ewc.anchored([], "phase1", ewc.fisher(model, documents(*SIZES), given, 0, PAD), model, given)
    value = ewc.penalty(model, anchors, given)
    value.backward()
    assert value.item() == 0 and all((p.grad == 0).all() for p in models.trainable(model).values())
    zero = torch.zeros(4)
    shapes = (torch.randn(2, 4), torch.randn(4, 2))
    assert ewc.product_penalty(shapes, tuple(torch.zeros_like(t) for t in shapes), zero, zero, 2.0).item() == 0


def test_product_anchors_come_back_and_mixed_spaces_are_refused(model, tmp_path):
    given = settings(space="product")
    anchors = ewc.anchored([], "phase1", ewc.fisher(model, documents(*SIZES), given, 0, PAD), model, given)
    ewc.save(tmp_path, anchors)
    (loaded,) = ewc.load(tmp_path, model, given)
    assert loaded.fisher.trace == pytest.approx(anchors[0].fisher.trace)
    with torch.no_grad():
        next(iter(models.trainable(model).values())).add_(0.1)
    assert ewc.penalty(model, [loaded], given).item() == pytest.approx(ewc.penalty(model, anchors, given).item()) != 0
    with pytest.raises(ConfigError, match="Set ewc.space=product"):
        ewc.load(tmp_path, model, settings(space="factor"))


@pytest.mark.parametrize("space", ["factor", "product"])
def test_hooks_equal_the_loop_to_a_millionth_in_float64(model, space):
    """The model is in training mode with dropout: the Fisher must not see it. The loop is written out here."""
    docs, given = documents(*SIZES), settings(space=space, fisher_batch_size=3)
    found = ewc.fisher(model.double(), docs, given, 0, PAD)
    assert model.training
    expected = looped(model, docs) if space == "factor" else looped_margins(model, docs)
    assert found.values.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found.values[name].double(), value.double(), rtol=1e-6, atol=1e-6 * value.max().item()), (
            name
        )


def test_what_lies_in_the_gradients_does_not_get_into_the_fisher(model):
    """Gradients of a penalty, of another loss or of a step before (mistakes 7, 8 and 10)."""
    docs = documents(*SIZES)
    clean = ewc.fisher(model, docs, settings(), 0, PAD)
    for parameter in models.trainable(model).values():
        parameter.grad = torch.full_like(parameter, 1e3)
    again = ewc.fisher(model, docs, settings(), 0, PAD)
    assert all(torch.equal(clean.values[name], again.values[name]) for name in clean.values)


def test_squares_are_fp32_in_a_bf16_model(model):
    """In bf16 or fp16 small squares would be exactly 0 (mistake 6)."""
    found = ewc.fisher(model.bfloat16(), documents(*SIZES), settings(), 0, PAD)
    assert {value.dtype for value in found.values.values()} == {torch.float32}
    small = min(value[value > 0].min().item() for value in found.values.values())
    assert small < 2**-24  # the smallest number of fp16 above 0


def test_the_distance_from_an_anchor_is_that_of_the_dense_updates(model):
    anchors = ewc.anchored([], "phase1", ewc.uniform(model, settings()), model, settings())
    assert ewc.distance(model, anchors[0]) == 0
    with torch.no_grad():
        for parameter in models.trainable(model).values():
            parameter += 0.02 * torch.randn_like(parameter)
    now, then = models.trainable(model), anchors[0].weights
    pairs = [(name.replace("lora_A", "lora_B"), name) for name in now if "lora_A" in name]
    moved = sum((now[b] @ now[a] - then[b] @ then[a]).square().sum().item() for b, a in pairs)
    whole = sum((then[b] @ then[a]).square().sum().item() for b, a in pairs)
    assert ewc.distance(model, anchors[0]) == pytest.approx((moved / whole) ** 0.5, rel=1e-4)
