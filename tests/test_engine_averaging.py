"""Averaging of adapters against the dense update and its plain SVD."""

import pytest
import torch

from engine.averaging import average, average_all

pytestmark = pytest.mark.engine
RANK, D_IN, D_OUT, SCALE = 3, 11, 8, 2.0


def factors(seed: int, kind: torch.dtype = torch.float64, rank: int = RANK):
    chance = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, D_IN, generator=chance, dtype=torch.float64)
    return a.to(kind), torch.randn(D_OUT, rank, generator=chance, dtype=torch.float64).to(kind)


def update(a, b, scale: float = SCALE):
    return scale * b.double() @ a.double()


START, END = factors(1), factors(2)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
def test_identical_adapters_return_the_same_update(weight):
    a, b, error = average(START, START, weight, SCALE)
    assert (a.shape, b.shape) == (START[0].shape, START[1].shape)
    assert torch.allclose(update(a, b), update(*START), atol=1e-12) and error < 1e-12


@pytest.mark.parametrize("weight", [0.3, 0.5, 0.9])
def test_the_same_as_the_svd_of_the_dense_update(weight):
    dense = (1 - weight) * update(*START) + weight * update(*END)
    u, values, vt = torch.linalg.svd(dense)
    best = u[:, :RANK] * values[:RANK] @ vt[:RANK]
    a, b, error = average(START, END, weight, SCALE)
    assert torch.allclose(update(a, b), best, atol=1e-10)
    assert error == pytest.approx(values[RANK:].norm().item(), rel=1e-6)
    assert error == pytest.approx((dense - update(a, b)).norm().item(), rel=1e-6)
    assert error > 0.1  # rank 6 does not fit into rank 3, or the lines above would show nothing


def test_a_hand_computed_case():
    """dW_1 = diag(4, 0), dW_3 = diag(0, 2): half of each is diag(2, 1), of which rank 1 keeps the 2 and drops the 1."""
    start = torch.tensor([[1.0, 0.0]]), torch.tensor([[4.0], [0.0]])
    end = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0], [2.0]])
    a, b, error = average(start, end, 0.5, scale=1.0)
    assert torch.allclose(b @ a, torch.diag(torch.tensor([2.0, 0.0])), atol=1e-6)
    assert error == pytest.approx(1.0)


@pytest.mark.parametrize(("weight", "alone"), [(0.0, START), (1.0, END)])
def test_at_the_ends_one_adapter_comes_back(weight, alone):
    a, b, error = average(START, END, weight, SCALE)
    assert torch.allclose(update(a, b), update(*alone), atol=1e-12) and error < 1e-12


def test_single_precision_stays_single_and_bfloat16_is_raised_to_it():
    for given in (torch.float32, torch.bfloat16):
        end = factors(2, given)
        a, b, error = average(factors(1, given), end, 1.0, SCALE)
        assert a.dtype == b.dtype == torch.float32
        assert torch.allclose(update(a, b), update(*end), rtol=1e-5, atol=1e-5) and error < 1e-6
    assert average(START, END, 1.0, SCALE)[0].dtype == torch.float64


def test_the_gauge_does_not_matter():
    a, b = START
    plain = average(START, END, 0.5, SCALE)
    turned = average((7.0 * a, b / 7.0), END, 0.5, SCALE)
    assert torch.allclose(update(*turned[:2]), update(*plain[:2]), atol=1e-10)
    assert turned[2] == pytest.approx(plain[2])


def test_the_scale_is_that_of_the_adapters():
    """Updates at scale 2 are twice those at scale 1, and so is what is dropped; the factors are of the same size."""
    one, two = average(START, END, 0.5, 1.0), average(START, END, 0.5, 2.0)
    assert torch.allclose(update(*two[:2], 2.0), 2 * update(*one[:2], 1.0), atol=1e-10)
    assert two[2] == pytest.approx(2 * one[2])


def test_averaging_the_factors_is_another_function():
    (a, b), (c, d) = START, END
    wanted = (update(a, b) + update(c, d)) / 2
    _, _, error = average(START, END, 0.5, SCALE)
    factorwise = SCALE * (b + d) @ (a + c) / 4
    assert (wanted - factorwise).norm() > 1.5 * error
    opposite = (-a, -b)  # the very same update, written with the other sign
    assert torch.equal(update(*opposite), update(a, b))
    assert torch.allclose(update(*average(START, opposite, 0.5, SCALE)[:2]), update(a, b), atol=1e-12)
    assert ((b - b) @ (a - a)).norm() == 0  # the factors' mean of those two is nothing at all


def test_a_layer_narrower_than_the_rank():
    """d_out 2, rank 3: the update has two singular values, nothing is dropped, and the shapes stay."""
    start, end = ((a, b[:2]) for a, b in (START, END))
    a, b, error = average(start, end, 0.5, SCALE)
    assert (a.shape, b.shape) == ((3, D_IN), (2, 3)) and error == 0
    assert torch.allclose(update(a, b), (update(*start) + update(*end)) / 2, atol=1e-12)


def test_two_fresh_adapters_give_no_update_and_no_error():
    a, b = START
    found_a, found_b, error = average((a, 0 * b), (a, 0 * b), 0.5, SCALE)
    assert update(found_a, found_b).norm() == 0 and error == 0
    assert torch.isfinite(found_a).all() and torch.isfinite(found_b).all()


def named(layers: dict[str, tuple]) -> dict[str, torch.Tensor]:
    return {f"{n}.lora_{c}.default.weight": f for n, pair in layers.items() for c, f in zip("AB", pair, strict=True)}


def test_a_whole_adapter_and_its_relative_error():
    first, second = {"x.q_proj": START, "x.v_proj": factors(3)}, {"x.q_proj": END, "x.v_proj": factors(4)}
    scales = {"x.q_proj": 2.0, "x.v_proj": 0.5}
    found, error = average_all(named(first), named(second), 0.6, scales)
    assert list(found) == list(named(first))
    missing, whole = 0.0, 0.0
    for layer, scale in scales.items():
        a, b, dropped = average(first[layer], second[layer], 0.6, scale)
        assert torch.equal(found[f"{layer}.lora_A.default.weight"], a)
        assert torch.equal(found[f"{layer}.lora_B.default.weight"], b)
        missing += dropped**2
        whole += (0.4 * update(*first[layer], scale) + 0.6 * update(*second[layer], scale)).norm().item() ** 2
    assert error == pytest.approx((missing / whole) ** 0.5, rel=1e-9) and 0.1 < error < 1
    assert average_all(named(first), named(first), 0.6, scales)[1] < 1e-12


def test_an_adapter_without_an_update_has_no_error():
    a, b = START
    fresh = named({"x.q_proj": (a, 0 * b)})
    assert average_all(fresh, fresh, 0.5, {"x.q_proj": SCALE})[1] == 0


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda s, e, k: e.pop("q.lora_A.default.weight"), "must name the same layers"),
        (lambda s, e, k: k.clear(), "must name the same layers"),
        (lambda s, e, k: [d.pop("q.lora_B.default.weight") for d in (s, e)], "A or B of a layer is missing"),
        (lambda s, e, k: [d.update({"q.lora_magnitude_vector.default": d}) for d in (s, e)], "neither A nor B"),
    ],
)
def test_nothing_is_averaged_away_in_silence(change, complaint):
    start, end, scales = named({"q": START}), named({"q": END}), {"q": SCALE}
    change(start, end, scales)
    with pytest.raises(ValueError, match=complaint):
        average_all(start, end, 0.5, scales)


@pytest.mark.parametrize(
    ("end", "weight", "scale", "complaint"),
    [
        (factors(2, rank=2), 0.5, SCALE, "do not fit together"),
        (END, 1.1, SCALE, "weight 1.1"),
        (END, 0.5, 0.0, "scale 0"),
    ],
)
def test_wrong_arguments_are_refused(end, weight, scale, complaint):
    with pytest.raises(ValueError, match=complaint):
        average(START, end, weight, scale)
