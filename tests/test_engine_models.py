"""Models: label-only logits, adapters, LoRA+ groups, and the base as a teacher."""

import pytest
import torch

from engine import losses, models
from engine.batches import Encoded, Row, collate, plain_batch, totals_of
from engine.settings import ConfigError, Lora, Model, Train

pytestmark = pytest.mark.engine


@pytest.fixture
def base(tiny_base):
    models.prepare(Train(threads=1))
    return models.load_base(str(tiny_base), Model())


def batch(streams=("new", "base", "new")):
    chance = torch.Generator().manual_seed(2)
    rows = [
        Row(Encoded(torch.randint(5, 300, (n,), generator=chance).tolist(), n // 2, 0), s, "base" * (s == "base"))
        for n, s in zip((9, 14, 6), streams, strict=True)
    ]
    return collate(rows, totals_of(rows, 0.1), 0)


def perturbed(model):
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in models.trainable(model).values():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def test_label_only_logits_are_rows_of_the_full_ones(base):
    made = batch()
    full = base(input_ids=made.ids, use_cache=False).logits
    assert torch.allclose(models.summary_logits(base, made), full[made.predicts], atol=1e-6)


def test_padding_on_the_right_changes_nothing(base):
    made = batch()
    alone = models.summary_logits(base, plain_batch([Encoded(made.ids[2, :6].tolist(), 3, 0)], 0))
    assert torch.allclose(models.summary_logits(base, made)[-3:], alone, atol=1e-5)


def test_a_fresh_adapter_is_the_base_and_its_seed_decides(base, tiny_base):
    made = batch()
    plain = models.summary_logits(base, made).clone()
    first = models.attach(base, Lora(rank=4, alpha=8, dropout=0), seed=0)
    assert torch.equal(models.summary_logits(first, made), plain)
    weights = {n: p.clone() for n, p in models.trainable(first).items()}
    again = models.trainable(
        models.attach(models.load_base(str(tiny_base), Model()), Lora(rank=4, alpha=8, dropout=0), seed=0)
    )
    assert all(torch.equal(weights[n], p) for n, p in again.items())


def test_the_adapter_switched_off_is_the_raw_base(base):
    made = batch()
    plain = models.summary_logits(base, made)[made.tokens_of["base"]].log_softmax(-1)
    model = perturbed(models.attach(base, Lora(rank=4, alpha=8, dropout=0.5), seed=0)).train()
    teacher = models.teacher_log_probabilities(model, made, ["base"])["base"]
    assert torch.allclose(teacher, plain, atol=1e-6)
    assert model.training and not teacher.requires_grad
    assert not torch.allclose(
        models.summary_logits(model, made)[made.tokens_of["base"]].log_softmax(-1), plain, atol=1e-3
    )
    assert models.teacher_log_probabilities(model, batch(("new", "new", "new")), ["base"]) == {}


def test_the_student_still_learns_after_its_teacher_spoke_with_checkpointing(base):
    """An adapter left switched off would give no gradient at all, and raise nothing."""
    made = batch()
    model = perturbed(models.attach(base, Lora(rank=4, alpha=8, dropout=0), seed=0)).train()

    def gradients():
        models.teacher_log_probabilities(model, made, ["base"])
        models.summary_logits(model, made).logsumexp(-1).sum().backward()
        found = {n: p.grad.clone() for n, p in models.trainable(model).items()}
        model.zero_grad()
        return found

    plain = gradients()
    model.enable_input_require_grads()
    model.activation_checkpointing_enable()
    recomputed = gradients()
    assert all(torch.allclose(plain[n], recomputed[n], atol=1e-6) for n in plain)
    assert any(value.abs().sum() > 0 for value in plain.values())


def test_two_rates_and_no_weight_in_both(base):
    model = models.attach(base, Lora(rank=4, alpha=8), seed=0)
    slow, fast = models.parameter_groups(model, Train(learning_rate=1e-4, loraplus_lr_ratio=2, weight_decay=0.01))
    assert (slow["rate"], fast["rate"]) == (1e-4, 2e-4)
    assert slow["weight_decay"] == fast["weight_decay"] == 0.01
    ids = [id(p) for group in (slow, fast) for p in group["params"]]
    assert len(ids) == len(set(ids)) == len(models.trainable(model))


def test_what_cannot_be_loaded_is_said_in_one_line(base, tmp_path):
    with pytest.raises(ConfigError, match="this adapter does not load"):
        models.load_adapter(base, tmp_path, trainable=False)
    with pytest.raises(ConfigError, match="could not be loaded"):
        models.load_base(str(tmp_path), Model())
    with pytest.raises(ConfigError, match="lora.target_modules"):
        models.attach(base, Lora(rank=2, target_modules=("nothing",)), seed=0)


def test_a_phase_s_adapter_teaches_without_learning_and_gives_the_word_back(base, tiny_base, tmp_path):
    """Teacher parameters are unchanged after ten steps; the student alone has gradients, also with checkpointing."""
    chance = torch.Generator().manual_seed(2)
    rows = [
        Row(Encoded(torch.randint(5, 300, (n,), generator=chance).tolist(), n // 2, 0), stream, teacher)
        for n, stream, teacher in ((9, "new", ""), (14, "memory", "phase1"), (6, "memory", "phase1"))
    ]
    made = collate(rows, totals_of(rows, 0.1), 0)
    first = perturbed(models.attach(base, Lora(rank=4, alpha=8, dropout=0), seed=0))
    expected = models.summary_logits(first, made)[made.tokens_of["phase1"]].log_softmax(-1).detach()
    first.save_pretrained(tmp_path)
    model = models.attach(models.load_base(str(tiny_base), Model()), Lora(rank=4, alpha=8, dropout=0), seed=1)
    optimizer = torch.optim.AdamW(models.parameter_groups(model, Train(learning_rate=1e-2)))
    models.load_teacher(model, tmp_path, "phase1")
    assert not any("phase1" in name for name in models.trainable(model))
    before = {n: p.clone() for n, p in model.named_parameters() if ".phase1." in n}
    start = {n: p.clone() for n, p in models.trainable(model).items()}
    model.enable_input_require_grads()
    model.activation_checkpointing_enable()
    model.train()
    divergences = []
    for _ in range(10):
        told = models.teacher_log_probabilities(model, made, ["phase1", "base"])
        assert torch.allclose(told["phase1"], expected, atol=1e-5) and set(told) == {"phase1"}
        value = losses.distil_phase(losses.divergences(models.summary_logits(model, made), made, told), made)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        divergences.append(value.item())
    assert divergences[-1] < 0.5 * divergences[0]
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters() if n in before)
    assert any(not torch.equal(start[n], p) for n, p in models.trainable(model).items())
    model.save_pretrained(tmp_path / "final", selected_adapters=[models.STUDENT])
    assert (tmp_path / "final" / "adapter_model.safetensors").exists()
