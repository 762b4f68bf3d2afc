"""Losses against numbers worked out by hand, and against plain PyTorch: value and gradient."""

import math

import pytest
import torch
from torch.nn import functional

from engine import losses
from engine.batches import LENGTHS, Batch, Encoded, Encoder, Row, Shares, draw_until, micro_batches, step_rows
from engine.configs import load
from engine.corpus.records import Record
from engine.gradient import COMPONENTS
from engine.losses import Outputs
from engine.settings import ConfigError, Distil, Losses

pytestmark = pytest.mark.engine
PAD = 0


def document(prompt: int, summary: int, start: int = 5) -> Encoded:
    return Encoded(list(range(start, start + prompt + summary)), prompt, 0)


def batch_of(nll=None, targets=(), rows=None, documents=(), part=1.0, rows_of=None, **weights) -> Batch:
    """A batch of K tokens by hand; what is not given counts nothing."""
    count = len(targets) or len(nll)
    empty = torch.zeros(0, dtype=torch.long)
    given = {"cross_entropy": nll or [0.0] * count} | weights
    return Batch(
        empty, empty, torch.tensor(list(targets) or [0] * count), torch.tensor(rows or [0] * count),
        {name: torch.tensor(values, dtype=torch.float64) for name, values in given.items()},
        torch.tensor(documents, dtype=torch.float64), part, empty.reshape(0, 2), 0.0, empty,
        {name: torch.tensor(members) for name, members in (rows_of or {}).items()},
        {name: torch.isin(torch.tensor(rows or [0] * count), torch.tensor(members)).nonzero()[:, 0] for name, members in (rows_of or {}).items()},
        empty, empty, (), (),
    )  # fmt: skip


def outputs_of(logits: torch.Tensor, told=None) -> Outputs:
    return Outputs(logits, None, told or {}, torch.eye(logits.shape[-1]))


def logits_with_nll(values: list[float]) -> torch.Tensor:
    """Two-token logits whose first token has exactly the given nll."""
    p = torch.tensor(values, dtype=torch.float64).neg().exp()
    return torch.stack([p.log(), (1 - p).clamp_min(1e-300).log()], dim=1)


def nll_of(logits: torch.Tensor) -> torch.Tensor:
    return losses.token_nll(logits, torch.zeros(len(logits), dtype=torch.long))


def diversity_of(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    return losses.diversity(losses.document_means(logits.softmax(-1), batch), batch)


def test_micro_batches_of_unequal_length_weigh_tokens_not_batches():
    first = losses.cross_entropy(nll_of(logits_with_nll([4.0])), batch_of([0.25]))
    second = losses.cross_entropy(nll_of(logits_with_nll([0.0, 0.0, 0.0])), batch_of([0.25] * 3))
    assert (first + second).item() == pytest.approx(1.0, abs=1e-6)  # not 2.0, the mean of the batch means


def test_cross_entropy_equals_pytorch_in_value_and_gradient():
    torch.manual_seed(0)
    logits = torch.randn(7, 11, requires_grad=True)
    targets = torch.randint(0, 11, (7,))
    ours = losses.cross_entropy(losses.token_nll(logits, targets), batch_of([1 / 7] * 7, targets.tolist()))
    (gradient,) = torch.autograd.grad(ours, logits)
    plain = functional.cross_entropy(logits, targets)
    (expected,) = torch.autograd.grad(plain, logits)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-6)
    assert torch.allclose(gradient, expected, atol=1e-7)


def test_kl_of_two_known_distributions():
    teacher = torch.tensor([[0.7, 0.2, 0.1]]).log()
    student = torch.tensor([[0.5, 0.3, 0.2]]).log()
    batch = batch_of([0.0], rows_of={"base": [0]}, distil_base=[1.0])
    expected = 0.7 * math.log(0.7 / 0.5) + 0.2 * math.log(0.2 / 0.3) + 0.1 * math.log(0.1 / 0.2)
    value = losses.distil_base(losses.divergences(student, batch, {"base": teacher}), batch)
    assert value.item() == pytest.approx(expected, abs=1e-6) == pytest.approx(0.0851, abs=1e-4)
    assert losses.divergences(teacher, batch, {"base": teacher}).item() == pytest.approx(0.0, abs=1e-7)


def test_kl_gradient_against_finite_differences():
    torch.manual_seed(1)
    teacher = torch.randn(3, 5, dtype=torch.float64).log_softmax(-1)
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    batch = batch_of([0.0] * 3, rows_of={"base": [0]}, distil_base=[0.2, 0.3, 0.5])

    def value(z):
        student = z.log_softmax(-1)
        return ((teacher.exp() * (teacher - student)).sum(-1) * torch.tensor([0.2, 0.3, 0.5])).sum()

    assert torch.autograd.gradcheck(value, logits)
    (ours,) = torch.autograd.grad(
        losses.distil_base(losses.divergences(logits, batch, {"base": teacher}), batch), logits
    )
    (brute,) = torch.autograd.grad(value(logits), logits)
    assert torch.allclose(ours.float(), brute.float(), atol=1e-6)


def test_the_parts_are_weighted_and_zero_weights_skip():
    logits, batch = torch.randn(2, 4), batch_of([0.5, 0.5])
    parts = losses.mix(outputs_of(logits), batch, Losses(cross_entropy=2.0, diversity=0), Distil())
    assert parts.keys() == {"cross_entropy"}
    assert parts["cross_entropy"].item() == pytest.approx(2 * losses.cross_entropy(nll_of(logits), batch).item())
    assert (
        losses.mix(outputs_of(logits), batch, Losses(cross_entropy=0, diversity=0), Distil())["cross_entropy"].item()
        == 0
    )


def test_every_weight_has_a_loss_of_its_name():
    """The components that are logged, the weights in the settings and the functions here are the same set."""
    weights = {name for name, field in Losses.model_fields.items() if name not in ("drift_target", "crossclr")}
    distillation = {f"distil_{name}" for name in ("phase", "base", "documents", "new")}
    assert {name for name in weights | distillation if not callable(getattr(losses, name, None))} == set()
    assert weights | distillation | {"ewc"} == set(COMPONENTS)
    assert {f"distil_{name}" for name in Distil.model_fields} >= distillation


def test_replay_has_exactly_its_share_of_the_loss():
    new = [Row(document(4, 9), "new"), Row(document(3, 2), "new"), Row(document(6, 5), "new")]
    memory = [Row(document(*sizes), "memory", "phase1") for sizes in ((2, 3), (5, 7), (4, 4))]
    pools = {"memory": memory, "base": [Row(document(3, 6), "base", "base")], "document": []}
    rows = step_rows(new, pools, Shares(0.1, 0.05), 0, 3)
    batches = micro_batches(rows, 2, 0.1, PAD)
    tokens = {
        name: sum(r.document.summary_tokens for r in rows if r.stream == name) for name in ("new", "memory", "base")
    }
    assert tokens["memory"] >= 0.1 / 0.9 * tokens["new"]
    weights = [batch.weights["cross_entropy"] for batch in batches]
    assert sum(weight.sum().item() for weight in weights) == pytest.approx(1.0, abs=1e-6)
    light = 0.9 / tokens["new"]
    assert sum(weight[(weight - light).abs() < 1e-7].sum().item() for weight in weights) == pytest.approx(0.9, abs=1e-6)
    for name, stream in (("distil_base", "base"), ("distil_phase", "memory")):
        weights = [batch.weights[name] for batch in batches if name in batch.weights]
        assert sum(weight.sum().item() for weight in weights) == pytest.approx(1.0, abs=1e-6)
        assert sum(int((weight > 0).sum()) for weight in weights) == tokens[stream]
    held = sum(len(batch.tokens_of.get("phase1", ())) for batch in batches)
    assert held == tokens["memory"]
    assert sum(batch.documents.sum().item() for batch in batches) == pytest.approx(1.0)


def test_plain_documents_come_in_as_many_steps_as_their_share_asks_for():
    """12 new tokens a step, a share of 0.1, documents of 40 tokens: 1.33 tokens are wanted, so one in thirty steps."""
    new, plain = [Row(document(4, 12), "new")], [Row(document(1, 40, start), "document", "base") for start in range(5)]
    drawn = [step_rows(new, {"document": plain}, Shares(0, 0, 0.1), 0, step) for step in range(3000)]
    assert sum(len(rows) - 1 for rows in drawn) == pytest.approx(3000 * (12 / 9) / 40, rel=0.2)
    many = [Row(document(4, 1000), "new")]
    assert all(len(step_rows(many, {"document": plain}, Shares(0, 0, 0.1), 0, step)) == 4 for step in range(20))


def test_the_sides_of_a_pair_stay_in_one_micro_batch():
    rows = [Row(document(n, 2), "new") for n in (3, 9, 5)]
    rows[1:1] = [Row(document(30, 4), "new", pair=7, group=1), Row(document(2, 3), "new", pair=7, group=2)]
    for size in (1, 2, 3, 5):
        batches = micro_batches(rows, size, 0.0, PAD)
        paired = [batch for batch in batches if len(batch.pairs)]
        assert len(paired) == 1 and paired[0].pairs.shape == (1, 2) and paired[0].pair == 1.0
        paper, talk = paired[0].pairs[0].tolist()
        assert paired[0].predicts[paper].sum() == 4 and paired[0].predicts[talk].sum() == 3
        assert paired[0].groups[[paper, talk]].tolist() == [1, 2]
        assert sum(len(batch.ids) for batch in batches) == 5 and max(len(batch.ids) for batch in batches) <= max(
            size, 2
        )
    own = micro_batches(rows, 5, 0.0, PAD, "document_summary")[0]
    assert own.pairs.tolist() == [[n, n] for n in range(5)] and own.pair == pytest.approx(1 / 5)


def test_without_old_records_the_new_ones_have_the_whole_loss():
    (batch,) = micro_batches([Row(document(4, 5), "new")], 4, 0.1, PAD)
    assert batch.weights["cross_entropy"].sum().item() == pytest.approx(1.0)


def test_micro_batches_mark_the_positions_before_each_summary_token():
    (batch,) = micro_batches([Row(document(3, 2, 10), "new"), Row(document(2, 1, 20), "new")], 2, 0.0, PAD)
    assert batch.ids.shape == batch.predicts.shape == (2, LENGTHS)
    assert batch.ids[:, :5].tolist() == [[20, 21, 22, PAD, PAD], [10, 11, 12, 13, 14]]
    assert batch.predicts[:, :5].tolist() == [[False, True, False, False, False], [False, False, True, True, False]]
    assert (batch.ids[:, 5:] == PAD).all() and not batch.predicts[:, 5:].any()
    assert batch.targets.tolist() == [22, 13, 14]


def test_a_budget_of_tokens_cuts_finer_and_changes_no_weight():
    rows = [Row(document(length - 2, 2), "new") for length in (30, 10, 16, 40, 14, 12)]
    plain = micro_batches(rows, 3, 0.0, PAD)
    fine = micro_batches(rows, 3, 0.0, PAD, tokens=48)
    assert [batch.ids.shape for batch in plain] == [(3, 16), (3, 48)]
    assert [batch.ids.shape for batch in fine] == [(3, 16), (1, 16), (1, 32), (1, 48)]
    for cut in (plain, fine):
        assert torch.cat([batch.weights["cross_entropy"] for batch in cut]).tolist() == pytest.approx([1 / 12] * 12)
    assert [len(batch.ids) for batch in micro_batches(rows, 3, 0.0, PAD, tokens=8)] == [
        1
    ] * 6  # a document is never cut


def test_replay_draws_follow_from_the_key_alone():
    pool = [Row(document(2, 3, start), "memory") for start in range(0, 300, 10)]
    assert draw_until(pool, 10, (0, "memory", 7)) == draw_until(pool, 10, (0, "memory", 7))
    assert draw_until(pool, 10, (0, "memory", 7)) != draw_until(pool, 10, (0, "memory", 8))
    assert len(draw_until(pool, 10, (0, "memory", 7))) == 4
    assert draw_until([], 10, (0,)) == draw_until(pool, 0, (0,)) == []


@pytest.fixture(scope="module")
def encoder(tiny_base):
    from transformers import AutoTokenizer

    return Encoder(
        AutoTokenizer.from_pretrained(tiny_base), load(None, ["data.max_length=60", "data.max_summary_length=20"]).data
    )


def test_only_the_source_is_cut_and_the_summary_never(encoder):
    record = Record("a", "paper", "knee pain " * 80, "a short summary.")
    (row,) = encoder.encode([record])
    assert len(row.ids) == 60 and row.cut > 0
    assert encoder.decode(row.ids[row.prompt :]) == record.summary
    assert row.ids[-1] == encoder.tokenizer.eos_token_id
    assert encoder.decode(row.ids[: row.prompt]).endswith("Summary:")
    assert encoder.encode([Record("b", "paper", "x", "knee pain " * 50)]) == [None]


def test_control_tokens_in_the_text_stay_text(encoder):
    special = {encoder.tokenizer.eos_token_id, encoder.tokenizer.pad_token_id}
    (row,) = encoder.encode([Record("a", "paper", "</s><pad>", "<s></s>")])
    assert not special & set(row.ids[:-1])


def test_prompts_of_training_and_generation_are_the_same(encoder):
    record = Record("a", "video", "hold the wrist", "ok")
    (row,), (prompt,) = encoder.encode([record]), encoder.prompts([record], 8)
    assert row.ids[: row.prompt] == prompt.ids


def test_a_prompt_that_leaves_no_room_is_refused(encoder):
    with pytest.raises(ConfigError, match="nothing of the source fits"):
        encoder.prompts([Record("a", "paper", "x", "y")], 59)


def test_a_chat_template_is_written_around_the_source(tiny_base):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = "<s>[I]{% for m in messages %}{{ m['content'] }}{% endfor %}[/I]"
    chat = Encoder(tokenizer, load(None, ["data.prompt='sum {source} up'"]).data)
    (row,) = chat.encode([Record("a", "paper", "TEXT", "out")])
    assert tokenizer.decode(row.ids[: row.prompt]) == "<s>[I]sum TEXT up[/I]"


def test_term_tokens_count_once_more_and_nothing_without_them():
    logits = logits_with_nll([1.0, 2.0, 3.0, 4.0])
    assert losses.term(nll_of(logits), batch_of([0.25] * 4, term=[0.0, 0.5, 0.0, 0.5])).item() == pytest.approx(
        3.0, abs=1e-6
    )
    assert "term" not in micro_batches([Row(document(4, 5), "new")], 1, 0.0, PAD)[0].weights


def sure_of(*tokens: int, size: int = 4) -> torch.Tensor:
    """Logits that are one-hot on the given tokens."""
    return torch.nn.functional.one_hot(torch.tensor(tokens), size).double() * 200


def test_diversity_by_hand():
    two = {"nll": [0.5, 0.5], "rows": [0, 1], "documents": [0.5, 0.5]}
    assert diversity_of(torch.zeros(2, 4, dtype=torch.float64), batch_of(**two)).item() == pytest.approx(0, abs=1e-6)
    assert diversity_of(sure_of(1, 1), batch_of(**two)).item() == pytest.approx(1)
    assert diversity_of(sure_of(1, 2), batch_of(**two)).item() == pytest.approx(0.5)
    half = batch_of(**two, part=0.5)
    assert diversity_of(sure_of(1, 2), half).item() == pytest.approx(0.25)
    old = batch_of([0.5, 0.5], rows=[0, 1], documents=[1.0, 0.0])  # a replayed document does not take part
    assert diversity_of(sure_of(1, 2), old).item() == pytest.approx(1)
    assert diversity_of(sure_of(1), batch_of([1.0], documents=[0.0])).item() == 0
    longer = batch_of([0.2] * 5, rows=[0, 1, 1, 1, 1], documents=[0.5, 0.5])  # documents count alike, not tokens
    assert diversity_of(sure_of(1, 2, 2, 2, 2), longer).item() == pytest.approx(0.5)


def test_drift_is_a_hinge_on_the_cosine_of_expected_embeddings():
    """Embeddings (1, 0) and (cos, sin): certain of the first, the cosine to the second is known."""
    for cosine, expected in ((0.5, 0.25), (0.8, 0.0)):
        embedding = torch.tensor([[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]], dtype=torch.float64)
        logits = sure_of(0, size=2).requires_grad_()
        value = losses.drift(logits.softmax(-1), batch_of([1.0], [1], documents=[1.0]), embedding, 0.75)
        assert value.item() == pytest.approx(expected, abs=1e-6)
    (gradient,) = torch.autograd.grad(value, logits)
    assert (gradient == 0).all()


@pytest.mark.parametrize("name", ["term", "diversity", "drift", "floor", "cross_entropy", "distil_phase", "distil_new"])
def test_gradients_in_float64(name):
    torch.manual_seed(3)
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    told = {"phase1": torch.randn(6, 5, dtype=torch.float64).mul(0.3).log_softmax(-1)}
    batch = batch_of(
        [0.1, 0.2, 0.3, 0.1, 0.1, 0.2], [0, 1, 2, 3, 4, 0], [0, 0, 0, 1, 1, 2], [0.5, 0.5, 0.0],
        rows_of={"phase1": [0, 1, 2]}, term=[0, 0.5, 0, 0, 0.5, 0], floor=[0.2] * 5 + [0],
        distil_phase=[0, 0, 0, 0.5, 0.5, 0], distil_new=[0.2] * 5 + [0],
    )  # fmt: skip
    embedding = torch.randn(5, 3, dtype=torch.float64)

    def value(z):
        if name.startswith("distil"):
            return getattr(losses, name)(losses.divergences(z, batch, told), batch)
        if name == "floor":
            return losses.floor(z, batch, told)
        if name in ("diversity", "drift"):
            means = losses.document_means(z.softmax(-1), batch)
            return getattr(losses, name)(means, batch, *((embedding, 0.99) if name == "drift" else ()))
        return getattr(losses, name)(losses.token_nll(z, batch.targets), batch)

    assert torch.autograd.gradcheck(value, logits)


def test_the_floor_acts_only_where_entropy_fell_below_the_reference_s():
    """Two tokens: one-hot against a uniform reference of four, and uniform against it."""
    uniform = torch.zeros(2, 4, dtype=torch.float64).log_softmax(-1)
    batch = batch_of([0.0] * 2, rows_of={"base": [0]}, floor=[0.5, 0.5])
    logits = torch.cat([sure_of(1), torch.zeros(1, 4)]).requires_grad_()
    value = losses.floor(logits, batch, {"base": uniform})
    assert value.item() == pytest.approx(0.5 * math.log(4), abs=1e-6)
    higher = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    above = losses.floor(higher, batch, {"base": (sure_of(0, 2)).log_softmax(-1)})
    assert above.item() == 0 and not torch.autograd.grad(above, higher)[0].any()


def test_the_expected_embedding_moves_the_logits_and_the_reference_does_not_learn():
    torch.manual_seed(0)
    embedding = torch.randn(5, 3, requires_grad=True)
    logits = torch.randn(2, 5, requires_grad=True)
    made = batch_of([0.5] * 2, [1, 2], documents=[1.0])
    losses.drift(losses.document_means(logits.softmax(-1), made), made, embedding, 1.0).backward()
    assert logits.grad.abs().sum() > 0 and embedding.grad is None


def test_term_tokens_are_found_through_the_tokenizer_s_offsets(tiny_base):
    from transformers import AutoTokenizer

    from engine.corpus.terms import Lexicon

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    made = Encoder(tokenizer, load(None).data, Lexicon(("knee pain", "gout")))
    record = Record("a", "paper", "knee pain", "rest helps Knee-pains and gout.")
    (row,) = made.encode([record])
    tokens = row.ids[row.prompt :]
    marked = tokenizer.decode([tokens[index] for index in row.terms])
    assert "Knee-pains" in marked and "gout" in marked and "rest" not in marked and "helps" not in marked
    assert all(index < row.summary_tokens - 1 for index in row.terms)  # never the end-of-text token
