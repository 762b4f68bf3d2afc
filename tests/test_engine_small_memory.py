"""What makes a model fit: streamed layers, offloaded states, recomputation in the Fisher, a quantised base. Exact where it must be."""

import importlib.util

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import MistralConfig, MistralForCausalLM

from engine import base as base_job
from engine import ewc, extras, models, products, streaming, train
from engine.adapted import AdaptedLinear
from engine.batches import Encoded, plain_batch
from engine.configs import load
from engine.settings import ConfigError, Model, Settings
from tests.conftest import make_work

pytestmark = pytest.mark.engine
ON = {"gradient_checkpointing": True, "threads": 1}


def small(layers: int = 6) -> MistralForCausalLM:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=None,
    )  # fmt: skip
    return MistralForCausalLM(config).requires_grad_(False)


def adapted(base, **changed):
    told = Settings.model_validate({"lora": {"rank": 4, "dropout": 0.1}, "distil": {"base": 0}, "train": ON | changed})
    model = models.attach(base, told.lora, 0)
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in models.trainable(model).items():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=chance)
    models.checkpointing(model, told)
    return model


def documents() -> list[Encoded]:
    chance = torch.Generator().manual_seed(2)
    return [Encoded(torch.randint(5, 300, (n,), generator=chance).tolist(), n // 2, 0) for n in (30, 20, 25)]


def gradients(model) -> dict[str, torch.Tensor]:
    batch = plain_batch(documents(), 0)
    torch.manual_seed(3)
    model.train()
    logits = models.summary_logits(model, batch)
    torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum").backward()
    return {name: parameter.grad.clone() for name, parameter in models.trainable(model).items()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# -- streaming ----------------------------------------------------------------------------------------------------


def test_streamed_layers_give_the_same_gradients_and_two_are_there_at_most(monkeypatch):
    expected = gradients(adapted(small()))
    base = small()
    layers = streaming.stream(base, 4, torch.device("cpu"))
    assert streaming.chosen(6, 4) == [0, 1, 3, 4] and not any(layer.is_present for layer in layers)
    most, bring = [], streaming._Streamed.bring

    def counted(self, following=None):
        bring(self, following)
        most.append(sum(layer.is_present for layer in layers))

    monkeypatch.setattr(streaming._Streamed, "bring", counted)
    assert same(gradients(adapted(base)), expected)
    assert len(most) == 8 and max(most) <= 2  # forward and backward of four layers
    assert not any(layer.is_present for layer in layers)
    assert any(value.abs().sum() > 0 for value in expected.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_what_adapted_layers_save_lets_streamed_weights_go(dtype, precision, monkeypatch):
    """engine/adapted.py saves its weight for the backward pass, under autocast one in bf16. Storages of streamed weights
    die all the same: those of two layers live at most, none afterwards; gradients are those of a resident model."""
    AcceleratorState._reset_state()  # the precision of an earlier test would stay
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    expected = gradients(models.placed(adapted(models.frozen(small().to(dtype))), accelerator))
    base = models.frozen(small().to(dtype))
    layers = streaming.stream(base, 4, torch.device("cpu"))
    model = models.placed(adapted(base), accelerator)
    ours = [module for module in model.modules() if type(module) is AdaptedLinear]
    brought, most, kinds, bring = [], [], set(), streaming._Streamed.bring

    def noted(self, following=None):
        bring(self, following)
        brought.append([StorageWeakRef(weight.untyped_storage()) for weight in self.masters])
        most.append(sum(not all(storage.expired() for storage in layer) for layer in brought))
        kinds.update(module.base_layer.weight.dtype for module in ours)

    monkeypatch.setattr(streaming._Streamed, "bring", noted)
    assert same(gradients(model), expected)
    assert len(ours) == 6 * 7 and kinds == {torch.bfloat16 if precision == "bf16" else dtype}
    assert len(most) == 8 and 1 <= max(most) <= 2
    assert all(storage.expired() for layer in brought for storage in layer)
    assert not any(layer.is_present for layer in layers)
    assert any(value.abs().sum() > 0 for value in expected.values())
    AcceleratorState._reset_state()


@pytest.mark.parametrize("tied", [True, False])
def test_a_base_made_narrow_keeps_its_parameters_and_its_embedding(tied):
    """A head that shares the embedding's weights gets its own; every other weight stays the parameter it was."""
    config = small(1).config
    config.tie_word_embeddings = tied
    base = models.frozen(MistralForCausalLM(config))
    before = {name: module.weight for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)}
    products.narrow(base)
    after = {name: base.get_submodule(name).weight for name in before}
    assert {name for name in before if after[name] is not before[name]} == ({"lm_head"} if tied else set())
    assert {weight.dtype for weight in after.values()} == {torch.bfloat16}
    assert base.get_input_embeddings().weight.dtype == torch.float32


def test_masters_are_not_touched_and_every_layer_can_wait():
    base, before = small(3), small(3).state_dict()
    layers = streaming.stream(base, 9, torch.device("cpu"))
    assert len(layers) == 3
    gradients(adapted(base))
    for number, layer in enumerate(layers):
        known = {value.data_ptr() for value in layer.masters.values()}
        assert len(known) == 9, number  # seven modules and two norms
        for value in layer.masters.values():
            assert any(value.shape == there.shape and torch.equal(value, there) for there in before.values())


class LateLane(streaming.Lane):
    """Stands for a GPU's second stream: a copy happens at the last moment at which it may, when the computation waits for it;
    until then its place holds what no weight does."""

    def __init__(self, layers):
        super().__init__(torch.device("cpu"))
        self.layers = layers
        self.waiting, self.started = [], []

    def fetch(self, layer):
        place = layer.number % 2
        if self.holds[place] is layer:
            return
        self.holds[place] = layer
        views = self.views(layer)
        for view in views.values():
            view.fill_(torch.nan)
        self.started.append(layer.number)
        self.waiting.append(lambda: layer.copy_to(views))

    def wait(self):
        for copy in self.waiting:
            copy()
        self.waiting = []


@pytest.mark.parametrize("count", [1, 2, 4, 6])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_two_places_suffice_and_each_layer_is_fetched_while_the_one_before_computes(count, precision):
    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    expected = gradients(models.placed(adapted(products.freeze(small())), accelerator))
    base = products.freeze(small())
    layers = streaming.stream(base, count, torch.device("cpu"))
    lane = LateLane(layers)
    for layer in layers:
        layer.lane = lane
    model = models.placed(adapted(base), accelerator)
    assert same(gradients(model), expected)
    # forward in order; backward again, but for the last two, which still lie in their places
    assert lane.started == [*range(count), *reversed(range(max(0, count - 2)))]
    model.zero_grad()
    assert same(gradients(model), expected)
    assert len(lane.places) == 2 and not any(layer.is_present for layer in layers)
    AcceleratorState._reset_state()


def test_a_copy_that_nobody_took_does_not_pass_for_another_layer_s():
    """A forward pass that is broken off leaves a layer fetched and not used; the next pass starts from the beginning."""
    expected = gradients(adapted(small()))
    base = small()
    layers = streaming.stream(base, 6, torch.device("cpu"))
    lane = LateLane(layers)
    for layer in layers:
        layer.lane = lane
    model = adapted(base)
    broken = base.model.layers[2].register_forward_pre_hook(lambda module, inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        gradients(model)
    broken.remove()
    model.zero_grad()
    assert same(gradients(model), expected)


def test_a_phase_with_streamed_layers_ends_with_the_same_bytes(tiny_data, tiny_base, tmp_path):
    """Training, Fisher, anchors, teachers, base answers: two phases, resident and streamed."""
    made = []
    for name, count in (("resident", 0), ("streamed", 2)):
        run = tmp_path / name
        given = ["train.gradient_checkpointing=true", f"model.stream_layers={count}", "model.build=null"]
        told = load(tiny_data / "tiny.yaml", [*given, f"model.name_or_path={tiny_base}"])
        train.run(make_work("phase", "phase1", told, tiny_base, run / "phase1", run))
        train.run(make_work("phase", "phase2", told, tiny_base, run / "phase2", run, run / "phase1" / "final"))
        files = ("phase1/final/anchors.safetensors", "phase2/final/adapter_model.safetensors")
        made.append([(run / file).read_bytes() for file in files])
    assert made[0] == made[1]


def test_streaming_and_offload_ask_for_checkpointing():
    for setting in ("model.stream_layers=2", "train.checkpoint_offload=true"):
        with pytest.raises(ConfigError, match="gradient_checkpointing=true"):
            load(None, [setting, "distil.base=0"])
    with pytest.raises(ConfigError, match="exclude each other"):
        load(
            None, ["model.stream_layers=2", "model.quantize=nf4", "train.gradient_checkpointing=true", "distil.base=0"]
        )


# -- recomputation ------------------------------------------------------------------------------------------------


def test_offloaded_states_give_the_same_gradients():
    plain = gradients(adapted(small(), gradient_checkpointing=False))
    assert same(gradients(adapted(small())), plain)
    assert same(gradients(adapted(small(), checkpoint_offload=True)), plain)


def test_the_fisher_recomputes_too_without_dropout_and_is_the_same(monkeypatch):
    told = Settings.model_validate({"ewc": {"lambda": 1, "unit": "per_token"}, "distil": {"base": 0}})
    found, calls = [], []
    for checkpointed in (False, True):
        model = adapted(small(2), gradient_checkpointing=checkpointed)
        layer = model.get_base_model().model.layers[0].mlp
        handle = layer.register_forward_pre_hook(lambda module, inputs: calls.append(module.training))
        found.append(ewc.fisher(model, documents(), told.ewc, 0, 0).values)
        handle.remove()
        model.train()
        assert layer.training
    assert calls == [False] * 3  # one batch: forward; forward and again
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-5, atol=1e-7)


# -- quantised ----------------------------------------------------------------------------------------------------


def test_without_the_package_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"model.quantize: nf4 .*pip install bitsandbytes=="):
        extras.demand(Model(quantize="nf4"))
    extras.demand(Model())


@pytest.fixture(scope="module")
def wide_base(tiny_data, tmp_path_factory):
    """As the tiny base, but 64 wide: the smallest that NF4's blocks allow."""
    folder = tmp_path_factory.mktemp("wide") / "base"
    told = load(tiny_data / "tiny.yaml", ["model.build.hidden_size=64"])
    base_job.run(make_work("base", None, told, folder, folder, folder.parent))
    return folder


@pytest.mark.parametrize(("kind", "stored"), [("nf4", torch.uint8), ("int8", torch.int8)])
def test_a_phase_trains_on_a_quantised_base(kind, stored, tiny_data, wide_base, tmp_path):
    """On a CPU, for real: both phases with Fisher, anchors, teachers and answers; the base stays as it was stored."""
    pytest.importorskip("bitsandbytes", reason="model.quantize is an optional extra")
    given = ["train.gradient_checkpointing=true", f"model.quantize={kind}", "model.build=null", "model.dtype=bfloat16"]
    told = load(tiny_data / "tiny.yaml", [*given, f"model.name_or_path={wide_base}"])
    base = models.load_base(str(wide_base), told.model)
    weights = base.model.layers[0].mlp.down_proj.weight
    assert weights.dtype == stored and base.model.norm.weight.dtype == torch.bfloat16
    assert base.lm_head.weight.dtype == torch.bfloat16
    run, events = tmp_path / kind, []
    train.run(make_work("phase", "phase1", told, wide_base, run / "phase1", run, events=events))
    train.run(
        make_work("phase", "phase2", told, wide_base, run / "phase2", run, run / "phase1" / "final", events=events)
    )
    losses = [event.losses for event in events if type(event).__name__ == "Step"]
    assert len(losses) == 11 and losses[-1]["ewc"] >= 0 and "distil_phase" in losses[-1]
    model = models.load_adapter(models.load_base(str(wide_base), told.model), run / "phase2" / "final", False)
    batch = plain_batch(documents_of(wide_base), 0)
    with torch.no_grad():
        ours = models.summary_logits(model, batch)
        with model.disable_adapter():
            plain = models.summary_logits(model, batch)
    assert ours.isfinite().all() and not torch.equal(ours, plain)


def documents_of(folder) -> list[Encoded]:
    return [Encoded(list(range(5, 35)), 15, 0)]
