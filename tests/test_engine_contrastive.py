"""CrossCLR against hand values and a plain double loop: value, gradient, pruning, queue."""

import math

import pytest
import torch

from engine.configs import load
from engine.contrastive import Contrast, Sides, connectivity, crossclr
from engine.settings import ConfigError, CrossClr

pytestmark = pytest.mark.engine
PLAIN = {"temperature": 1.0, "prune_above": 2.0, "weight_temperature": 1e9}


def sides(x, y, groups=None) -> Sides:
    x, y = (torch.nn.functional.normalize(torch.as_tensor(v, dtype=torch.float64), dim=-1) for v in (x, y))
    own = torch.arange(len(x)) if groups is None else torch.tensor(groups)
    return Sides(x, y, x, y, own, own + 1000)


def random_sides(count: int, seed: int, first: int = 0) -> Sides:
    chance = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(count, 6, generator=chance, dtype=torch.float64) for _ in range(2))
    return sides(x, y, list(range(first, first + count)))


@pytest.mark.parametrize(("intra", "expected"), [(1.0, math.log(1 + 2 / math.e)), (0.8, math.log(1 + 1.8 / math.e))])
def test_two_orthogonal_pairs_by_hand(intra, expected):
    pairs = sides(torch.eye(2), torch.eye(2))
    total, told = crossclr(pairs, None, CrossClr(**PLAIN, intra_weight=intra))
    assert total.item() / 2 == pytest.approx(expected, abs=1e-9)
    assert expected == pytest.approx({1.0: 0.5514, 0.8: 0.5081}[intra], abs=1e-4)
    assert told["negatives"] == 2


def brute_force(pairs: Sides, queue: Sides, settings: CrossClr) -> float:
    """The definition with loops over samples."""

    def strengths(features):
        unit = torch.nn.functional.normalize(features.float(), dim=-1)
        mean = [sum(float(a @ b) for k, b in enumerate(unit) if k != i) / (len(unit) - 1) for i, a in enumerate(unit)]
        return [value / max(mean) if max(mean) > 0 else 0.0 for value in mean]

    known = Sides(*(torch.cat(both) for both in zip(pairs, queue, strict=True)))
    total = 0.0
    for a, b, ha, hb in ((known.x, known.y, known.hx, known.hy), (known.y, known.x, known.hy, known.hx)):
        own, other = strengths(ha), strengths(hb)
        weights = [math.exp(c / settings.weight_temperature) for c in own]
        for i in range(len(pairs.x)):
            positive = math.exp(float(a[i] @ b[i]) / settings.temperature)
            below = positive
            for k in range(len(known.x)):
                if k == i or known.gx[k] == known.gx[i] or known.gy[k] == known.gy[i]:
                    continue
                if other[k] <= settings.prune_above:
                    below += math.exp(float(a[i] @ b[k]) / settings.temperature)
                if own[k] <= settings.prune_above:
                    below += settings.intra_weight * math.exp(float(a[i] @ a[k]) / settings.temperature)
            total += -weights[i] / (sum(weights) / len(weights)) * math.log(positive / below) / 2
    return total


def test_value_equals_the_definition_with_queue_pruning_weights_and_groups():
    pairs, queue = random_sides(4, 0), random_sides(7, 1, first=3)  # group 3 is in both
    settings = CrossClr(temperature=0.5, prune_above=0.6)
    total, told = crossclr(pairs, queue, settings)
    assert total.item() == pytest.approx(brute_force(pairs, queue, settings), rel=1e-5)
    assert 0 < told["pruned"] < 1 and told["negatives"] > 0
    assert total.item() != pytest.approx(crossclr(pairs, queue, CrossClr(temperature=0.5, prune_above=2.0))[0].item())


def test_order_of_the_batch_changes_nothing():
    pairs, queue = random_sides(5, 2), random_sides(3, 3, first=50)
    turned = Sides(*(value[[3, 0, 4, 1, 2]] for value in pairs))
    settings = CrossClr()
    assert crossclr(turned, queue, settings)[0].item() == pytest.approx(
        crossclr(pairs, queue, settings)[0].item(), rel=1e-6
    )


def test_no_negative_left_gives_zero():
    pairs = random_sides(3, 4)
    everything = CrossClr(prune_above=1e-9)
    same = Sides(*(value for value in pairs[:4]), torch.zeros(3), torch.zeros(3))
    assert crossclr(same, None, CrossClr())[0].item() == 0
    lonely = Sides(*(value[:1] for value in pairs))
    assert crossclr(lonely, None, CrossClr()) == (0, {"negatives": 0.0, "pruned": 0.0})
    aligned = sides(torch.ones(3, 2), torch.ones(3, 2))
    value, told = crossclr(aligned, None, everything)
    assert value.item() == 0 and told == {"negatives": 0.0, "pruned": 1.0}


def test_a_micro_batch_of_one_learns_from_the_queue_alone():
    contrast = Contrast(6, seed=0)
    features = torch.randn(2, 1, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def gradient():
        x, y = (contrast.project(h) for h in features)
        pair = Sides(x, y, features[0], features[1], torch.tensor([1]), torch.tensor([2]))
        total, _ = crossclr(pair, contrast.queue, CrossClr(temperature=0.5))
        return pair, torch.autograd.grad(total, [features, contrast.projection], allow_unused=True)

    pair, (alone, _) = gradient()
    assert not alone.any()
    fresh = random_sides(16, 5, first=10)
    contrast.push([Sides(*(v.float() if v.is_floating_point() else v for v in fresh))], 16)
    _, (found, head) = gradient()
    assert found.abs().sum() > 0 and head.abs().sum() > 0
    contrast.push([pair], 16)
    assert len(contrast.queue.x) == 16 and not contrast.queue.x.requires_grad
    assert (
        torch.equal(contrast.queue.gx[-1:], torch.tensor([1])) and contrast.queue.gx[0] == 11
    )  # the oldest is forgotten
    again = Contrast(6, seed=9)
    again.restore(contrast.state())
    assert torch.equal(again.projection, contrast.projection)
    assert all(torch.equal(a, b) for a, b in zip(again.queue, contrast.queue, strict=True))


def test_gradient_in_float64_and_the_queue_receives_none():
    queue = random_sides(4, 6, first=100)
    settings = CrossClr(temperature=0.5, prune_above=2.0)
    x, y = (torch.randn(3, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    groups = torch.arange(3)

    def value(a, b):
        return crossclr(
            Sides(a, b, random_sides(3, 7).hx, random_sides(3, 8).hy, groups, groups + 50), queue, settings
        )[0]

    assert torch.autograd.gradcheck(value, (x, y))
    assert not any(part.requires_grad for part in queue)


def test_connectivity_is_relative_to_the_best_connected():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert connectivity(features).tolist() == pytest.approx([1.0, 1.0, 0.0])
    assert connectivity(torch.eye(3)).tolist() == [0, 0, 0] == connectivity(-torch.eye(3)).tolist()
    assert connectivity(torch.ones(1, 3)).tolist() == [0]


def test_a_setting_without_any_negative_is_refused():
    pairs = "curriculum.phases=[{name: p, mixture: {papers: 0.5, pairs: 0.5}, steps: 2}]"
    given = [pairs, "data.papers=a", "data.videos=b", "data.pairs=c", "train.per_device_train_batch_size=1"]
    with pytest.raises(ConfigError, match="gradient would be exactly 0. Set losses.crossclr.queue=256"):
        load(None, [*given, "losses.crossclr.queue=0"])
    load(None, given)
    load(None, [*given, "losses.crossclr.queue=0", "losses.contrastive=0"])
