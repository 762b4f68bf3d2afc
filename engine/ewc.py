"""Elastic weight consolidation on the update (product space) or on its factors: Fisher per sequence, anchors, penalty.

Product space, the default: LoRA factors are not weights, (cA, B/c) is the same function for any c, so the penalty is on
Delta W = scale * B * A, with the Fisher of Delta W kept as its row sums u and column sums v, F_ij ~ u_i v_j / Z, Z = sum F.
Factor space penalizes the entries of A and B; it is the baseline. Unit: F_tok = sum_n (grad of sum_t log p(y_nt))^2 / sum_n T_n, per summary token. Every squared gradient is that of one
whole sequence; squaring the gradient of a batch would give a number that depends on the batch size.
Source: METHODS section 9; Kirkpatrick et al. 2017 (arXiv 1612.00796).
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from engine.batches import Encoded, plain_batch
from engine.mixture import integer
from engine.models import STUDENT, recompute, scales, summary_logits, trainable
from engine.products import product
from engine.settings import ConfigError, Ewc
from engine.vocabulary import TokenNll, wide

FILE = "anchors.safetensors"
ROWS, COLUMNS = ".rows", ".columns"
TOKENS = 1024  # of a batch of the Fisher on a CPU: larger ones only move more memory


@dataclass(frozen=True)
class Fisher:
    """Diagonal Fisher information per summary token, fp32, and what it was measured on.

    values, factor space: {parameter name: shape of the parameter}; product space: {layer.rows: (d_out,), layer.columns:
    (d_in,)}, both with the sum Z of that layer.
    """

    values: dict[str, Tensor]
    documents: int
    tokens: int

    def layers(self) -> dict[str, float]:
        """Sum of the Fisher in each adapted layer."""
        sums: dict[str, float] = {}
        for name, value in self.values.items():
            if not name.endswith(COLUMNS):
                layer = name.split(".lora_")[0].removesuffix(ROWS)
                sums[layer] = sums.get(layer, 0.0) + value.sum().item()
        return sums

    @property
    def trace(self) -> float:
        return sum(self.layers().values())

    @property
    def mean_tokens(self) -> float:
        """Mean supervised tokens of a sequence, the T-bar of the unit token_mean_sequence."""
        return self.tokens / self.documents

    def shares(self) -> dict[str, float]:
        """Part of the trace in each kind of layer (q_proj, down_proj, ...)."""
        trace, shares = self.trace, {}
        for layer, value in self.layers().items():
            kind = layer.rpartition(".")[2]
            shares[kind] = shares.get(kind, 0.0) + (value / trace if trace else 0.0)
        return shares


@dataclass(frozen=True)
class Anchor:
    """Weights to stay near, and how much each of them mattered."""

    phase: str
    fisher: Fisher
    weights: dict[str, Tensor]


def fisher(
    model: nn.Module,
    documents: list[Encoded],
    settings: Ewc,
    seed: int,
    pad: int,
    progress: Callable[[int, Fisher], None] = lambda done, so_far: None,
    stop: Callable[[], bool] = lambda: False,
    accelerator: Accelerator | None = None,
) -> Fisher | None:
    """The Fisher of the trainable weights on held-out documents; None if `stop` asked to.

    Eval mode, fp32 squares, labels drawn from the model on the reference prefix (settings.labels: empirical takes the
    reference). Several documents share a backward pass, but each one's gradient is squared alone, so the batch size
    changes the speed and not the result; nor does the number of processes, which take the batches in turn. Raises ConfigError if the trace is 0: the penalty would hold nothing.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    square = _margins if settings.space == "product" else _entries
    sums = {part: value for name, module in layers.items() for part, value in _nothing(name, module, settings.space)}

    def add(name: str, values: Tensor, gradient: Tensor) -> None:
        for part, value in square(name, layers[name], wide(values), wide(gradient)):
            sums[part] += value

    rank, processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    device = next(model.parameters()).device
    together = _together(documents, settings.fisher_batch_size, TOKENS if device.type == "cpu" else None)
    was_training, tokens = model.training, 0
    model.eval()
    recompute(model)
    with _watching(model, layers, add):
        for number in range(rank, len(together), processes):
            if processes == 1 and stop():
                model.train(was_training)
                return None
            chosen = together[number]
            batch = plain_batch([documents[index] for index in chosen], pad).to(device)
            counts = [documents[index].summary_tokens for index in chosen]
            tokens += sum(counts)
            logits = summary_logits(model, batch)
            labels = batch.targets if settings.labels == "empirical" else _sampled(logits, counts, chosen, seed)
            TokenNll.apply(logits, labels).sum().backward()
            done = sum(map(len, together[: number - rank + processes]))
            progress(done, Fisher({name: value / tokens for name, value in sums.items()}, done, tokens))
    model.train(was_training)
    if processes > 1:
        sums = {name: accelerator.reduce(value, "sum") for name, value in sums.items()}
    tokens = sum(document.summary_tokens for document in documents)
    found = Fisher({name: value / tokens for name, value in sums.items()}, len(documents), tokens)
    if found.trace == 0:
        raise ConfigError(
            "the Fisher information is 0 everywhere, so EWC would hold nothing. Has the phase trained at all?"
        )
    return found


def _together(documents: list[Encoded], size: int, tokens: int | None) -> list[list[int]]:
    """Documents by length, at most `size` to a batch, and at most `tokens` with their padding where there are several."""
    batches: list[list[int]] = []
    for index in sorted(range(len(documents)), key=lambda index: len(documents[index].ids)):
        rows = len(batches[-1]) + 1 if batches else 1
        if not batches or rows > size or (tokens and rows * len(documents[index].ids) > tokens):
            batches.append([])
        batches[-1].append(index)
    return batches


def uniform(model: nn.Module, settings: Ewc) -> Fisher:
    """Every entry counts 1: an L2 penalty, on the update in product space (u_i v_j / Z = 1), else on the factors."""
    if settings.space == "factor":
        return Fisher({name: torch.ones_like(p, dtype=torch.float32) for name, p in trainable(model).items()}, 1, 1)
    values = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            rows, columns = (part for _, part in _nothing(name, module, "product"))
            values |= {name + ROWS: rows + len(columns), name + COLUMNS: columns + len(rows)}
    return Fisher(values, 1, 1)


def _nothing(name: str, module: nn.Module, space: str) -> Iterator[tuple[str, Tensor]]:
    """The sums of a layer, or of its factors, before the first document."""
    a, b = (factor[STUDENT].weight for factor in (module.lora_A, module.lora_B))
    if space == "product":
        yield name + ROWS, torch.zeros(module.out_features, device=a.device)
        yield name + COLUMNS, torch.zeros(module.in_features, device=a.device)
        return
    for side, factor in (("A", a), ("B", b)):
        yield f"{name}.lora_{side}.{STUDENT}.weight", torch.zeros_like(factor, dtype=torch.float32)


def _entries(name: str, module: nn.Module, values: Tensor, gradient: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Each document's gradients of A and B, squared, summed over documents: (r, in) and (out, r).

    values (b, t, in), gradient (b, t, out). With scale * B A as the update they are scale * (g B)^T x and
    scale * g^T (x A^T).
    """
    a, b = (wide(factor[STUDENT].weight.detach()) for factor in (module.lora_A, module.lora_B))
    scale = module.scaling[STUDENT]
    of_narrow, narrow = product(gradient, b.mT) * scale, product(values, a) * scale
    yield f"{name}.lora_A.{STUDENT}.weight", _squares(of_narrow, values)
    yield f"{name}.lora_B.{STUDENT}.weight", _squares(gradient, narrow)


def _squares(left: Tensor, right: Tensor) -> Tensor:
    """sum_n (left_n^T right_n)^2 for left (b, t, m), right (b, t, k): (m, k). One document at a time: no (b, m, k)."""
    total = left.new_zeros(left.shape[2], right.shape[2])
    for one, other in zip(left, right, strict=True):
        gradient = product(one.mT, other.mT)
        total.addcmul_(gradient, gradient)
    return total


def _margins(name: str, module: nn.Module, values: Tensor, gradient: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Row sums (out,) and column sums (in,) of each document's squared gradient of Delta W, summed over documents.

    values (b, t, in), gradient (b, t, out). G_n = sum_t g_t x_t^T is formed only where that is cheaper than the
    (t x t) products: u_i = sum_tt' g_ti g_t'i (x_t . x_t'), v alike. All positions count, prompt included: prompt
    positions carry gradient through attention.
    """
    length, both = values.shape[1], values.shape[2] + gradient.shape[2]
    if 2 * length * both > values.shape[2] * gradient.shape[2]:
        squares = _squares(gradient, values)
        rows, columns = squares.sum(1), squares.sum(0)
    else:
        rows, columns = _by_length(gradient, values), _by_length(values, gradient)
    yield name + ROWS, rows
    yield name + COLUMNS, columns


def _by_length(values: Tensor, others: Tensor) -> Tensor:
    """sum_n sum_tt' v_ti v_t'i (o_t . o_t') for values (b, t, m), others (b, t, k): (m,)."""
    return sum((product(product(other, other), one.mT) * one).sum(0) for one, other in zip(values, others, strict=True))


@contextmanager
def _watching(
    model: nn.Module, layers: dict[str, nn.Module], add: Callable[[str, Tensor, Tensor], None]
) -> Iterator[None]:
    """Calls add(name, input (b, t, in), gradient of the output (b, t, out)) for each layer in the backward pass.

    The weights themselves get no gradient meanwhile: it would be worked out for whole batches, and is not wanted. So
    that there is anything to go backward through, the embeddings ask for one.
    """

    def hook_for(name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            values = inputs[0].detach()
            if output.requires_grad:  # not in the no-gradient pass of activation checkpointing
                output.register_hook(lambda gradient: add(name, values, gradient))

        return hook

    weights = list(trainable(model).values())
    embedding = model.get_input_embeddings()
    handles = [module.register_forward_hook(hook_for(name)) for name, module in layers.items()]
    handles.append(embedding.register_forward_hook(lambda module, inputs, output: output.requires_grad_(True)))
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for weight in weights:
            weight.requires_grad_(True)


def _sampled(logits: Tensor, counts: list[int], indices: list[int], seed: int) -> Tensor:
    """A label for each position, drawn from the model with a generator of each document's own."""
    drawn = []
    for part, index in zip(logits.detach().split(counts), indices, strict=True):
        chance = torch.Generator().manual_seed(integer(seed, "fisher", index))
        drawn.append(torch.multinomial(wide(part).softmax(-1).cpu(), 1, generator=chance)[:, 0])
    return torch.cat(drawn).to(logits.device)


def anchored(old: list[Anchor], phase: str, new: Fisher, model: nn.Module, settings: Ewc) -> list[Anchor]:
    """The anchors after a phase: all of them (separate), or one at the present weights with F = gamma * F_old + F_new."""
    weights = {name: parameter.detach().float().clone() for name, parameter in trainable(model).items()}
    if settings.anchors == "separate":
        return [*old, Anchor(phase, new, weights)]
    values = dict(new.values)
    for anchor in old:
        values = {name: value + settings.gamma * anchor.fisher.values[name] for name, value in values.items()}
    return [Anchor(phase, Fisher(values, new.documents, new.tokens), weights)]


def lambda_per_token(settings: Ewc, mean_tokens: float) -> float:
    """lambda in units of F_tok. token_mean_sequence: its Fisher is F_tok / T-bar, so lambda / T-bar gives the same penalty
    (exact for sequences of equal length). Source: METHODS, section 9."""
    return settings.lambda_ / mean_tokens if settings.unit == "token_mean_sequence" else settings.lambda_


def penalty(model: nn.Module, anchors: list[Anchor], settings: Ewc) -> Tensor:
    """lambda_tok / 2 * P, summed over the anchors, in nats.

    factor: P = sum_k F_k (theta_k - theta*_k)^2 over the entries of A and B.
    product: P = sum_ij F_ij (Delta W - Delta W*)^2_ij with F = u v^T / Z; see `product_penalty`.
    """
    if not anchors:
        raise ValueError("no anchors: there is nothing to be penalized")
    weights, parts = trainable(model), []
    layers = scales(model)
    for anchor in anchors:
        factor = 0.5 * lambda_per_token(settings, anchor.fisher.mean_tokens)
        values = anchor.fisher.values
        if settings.space == "factor":
            parts += [factor * (values[n] * (weights[n].float() - anchor.weights[n]).square()).sum() for n in values]
            continue
        for layer, scale in layers.items():
            a, b = (f"{layer}.lora_{side}.default.weight" for side in "AB")
            now, then = (weights[a].float(), weights[b].float()), (anchor.weights[a], anchor.weights[b])
            parts.append(factor * product_penalty(now, then, values[layer + ROWS], values[layer + COLUMNS], scale))
    return torch.stack(parts).sum()


@torch.no_grad()
def distance(model: nn.Module, anchor: Anchor) -> float:
    """||Delta W - Delta W*||_F / ||Delta W*||_F over all adapted layers: how far the update has really moved, since AdamW
    rescales the gradient of the penalty. Source: METHODS, section 9, mistake 17."""
    weights, moved, whole = trainable(model), [], []
    for layer, scale in scales(model).items():
        a, b = (f"{layer}.lora_{side}.{STUDENT}.weight" for side in "AB")
        now, then = (weights[a].float(), weights[b].float()), (anchor.weights[a], anchor.weights[b])
        none = (torch.zeros_like(then[0]), torch.zeros_like(then[1]))
        ones = [torch.full((size,), float(other), device=then[0].device) for size, other in _sides(then)]
        moved.append(product_penalty(now, then, *ones, scale))
        whole.append(product_penalty(then, none, *ones, scale))
    there, size = torch.stack([torch.stack(values).double().sum() for values in (moved, whole)]).tolist()
    return (there / size) ** 0.5 if size else 0.0


def _sides(factors: tuple[Tensor, Tensor]) -> list[tuple[int, int]]:
    """(d_out, d_in), (d_in, d_out) of A (r, d_in) and B (d_out, r)."""
    inside, outside = factors[0].shape[1], factors[1].shape[0]
    return [(outside, inside), (inside, outside)]


def product_penalty(
    now: tuple[Tensor, Tensor], then: tuple[Tensor, Tensor], rows: Tensor, columns: Tensor, scale: float
) -> Tensor:
    """sum_ij u_i v_j / Z * (Delta W - Delta W*)^2_ij through two 2r x 2r matrices; 0 for a layer with Z = 0.

    now, then: (A, B) with A (r, d_in), B (d_out, r). rows u (d_out,), columns v (d_in,). With B A - B* A* written as
    J Q, J = [B - B*, B*] and Q = [A; A - A*], it is scale^2 tr[(J^T diag(u) J)(Q diag(v) Q^T)] / Z, and exactly 0 at the
    anchor, where J = [B, -B*] would leave the rounding of two large numbers. Source: METHODS, section 9.
    """
    (a, b), (a_then, b_then) = now, then
    left = torch.cat([b - b_then, b_then], dim=1)
    right = torch.cat([a, a - a_then], dim=0)
    core = (left.mT @ (rows[:, None] * left)) * (right * columns @ right.mT)
    return scale**2 * core.sum() / columns.sum().clamp_min(torch.finfo(torch.float32).tiny)


def save(folder: Path, anchors: list[Anchor]) -> None:
    """anchors.safetensors: Fisher and weights of every anchor."""
    tensors, facts = {}, []
    for number, anchor in enumerate(anchors):
        facts.append({"phase": anchor.phase, "documents": anchor.fisher.documents, "tokens": anchor.fisher.tokens})
        for kind, values in (("fisher", anchor.fisher.values), ("weights", anchor.weights)):
            tensors |= {f"{number}/{kind}/{name}": value.cpu().contiguous() for name, value in values.items()}
    save_file(tensors, folder / FILE, metadata={"anchors": json.dumps(facts)})


def load(folder: Path, model: nn.Module, settings: Ewc) -> list[Anchor]:
    """The anchors of a checkpoint, on the model's device; none where it has none. Raises ConfigError if they do not fit."""
    if not (folder / FILE).exists():
        return []
    weights = trainable(model)
    where = next(iter(weights.values())).device
    with safe_open(folder / FILE, "pt", device=str(where)) as file:
        facts = json.loads(file.metadata()["anchors"])
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    anchors = []
    for number, fact in enumerate(facts):
        values, centre = (_part(stored, f"{number}/{kind}/") for kind in ("fisher", "weights"))
        if {name: value.shape for name, value in centre.items()} != {name: p.shape for name, p in weights.items()}:
            raise ConfigError(
                f"{folder}/{FILE}: belongs to another adapter. Were lora.rank or lora.target_modules changed?"
            )
        space = "product" if any(name.endswith(ROWS) for name in values) else "factor"
        if space != settings.space:
            raise ConfigError(
                f"{folder}/{FILE}: its Fisher is in {space} space. Set ewc.space={space}, or train that phase again"
            )
        anchors.append(Anchor(fact["phase"], Fisher(values, fact["documents"], fact["tokens"]), centre))
    return anchors


def _part(stored: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
