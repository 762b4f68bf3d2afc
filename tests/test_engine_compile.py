"""What only some settings need: torch.compile on this processor for real, Liger's kernels as far as there is no GPU."""

import importlib.util
import shutil
import sys
import types

import pytest
import torch

from engine import events as ev
from engine import extras, models, train
from engine.compiling import compiled
from engine.configs import load
from engine.settings import ConfigError, Model, Train
from tests.conftest import make_work

pytestmark = pytest.mark.engine
HAS_COMPILER = any(shutil.which(name) for name in extras.COMPILERS)


@pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile needs a C++ compiler, and there is none here")
def test_a_compiled_phase_learns_the_same(tiny_data, tiny_base, tmp_path):
    """Losses of every step and the adapter at the end, to float32's accuracy; a step that measures norms goes backward
    several times, the Fisher after the phase sees every layer, and the layers are themselves again."""
    made = {}
    for wanted in ("false", "true"):
        run, events = tmp_path / wanted, []
        given = ["lora.dropout=0", "train.gradient_norms_steps=4", "distil.base=0", f"train.compile={wanted}"]
        told = load(tiny_data / "tiny.yaml", given)
        train.run(make_work("phase", "phase1", told, tiny_base, run / "phase1", run, events=events))
        state = torch.load(run / "phase1" / "step-000006" / "optimizer.pt", weights_only=True)
        steps = [event for event in events if isinstance(event, ev.Step)]
        made[wanted] = steps, (run / "phase1" / "final" / "anchors.safetensors").stat().st_size, state
    (plain, fisher, _), (fast, fisher_too, _) = made["false"], made["true"]
    assert len(plain) == len(fast) == 6 and fisher == fisher_too and fast[3].norms.keys() == plain[3].norms.keys()
    for one, other in zip(plain, fast, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-3, abs=1e-5)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-3)
    for one, other in zip(*(made[name][2]["state"].values() for name in made), strict=True):
        torch.testing.assert_close(one["exp_avg"], other["exp_avg"], rtol=1e-2, atol=1e-5)


def test_layers_are_their_own_again_afterwards(tiny_base):
    model = models.attach(models.load_base(str(tiny_base), Model()), load(None, ["distil.base=0"]).lora, 0)
    layers = model.get_base_model().get_decoder().layers
    with pytest.raises(ZeroDivisionError), compiled(model, True):
        assert all("forward" in vars(layer) for layer in layers)
        raise ZeroDivisionError
    assert not any("forward" in vars(layer) for layer in layers)
    with compiled(model, False):
        assert not any("forward" in vars(layer) for layer in layers)


def test_without_a_compiler_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"train.compile: .*Install g\+\+"):
        extras.demand_compiler(Train(compile=True))
    extras.demand_compiler(Train())


def test_on_a_gpu_it_needs_triton_too(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="train.compile needs a package .*pip install triton"):
        extras.demand_compiler(Train(compile=True), on_gpu=True)
    extras.demand_compiler(Train(compile=True))


@pytest.mark.parametrize("other", ["model.quantize=nf4", "model.stream_layers=2"])
def test_what_compile_cannot_join_is_refused(other):
    given = ["train.compile=true", "train.gradient_checkpointing=true", "model.dtype=bfloat16", "distil.base=0", other]
    with pytest.raises(ConfigError, match=f"train.compile and {other.partition('=')[0]} exclude each other"):
        load(None, given)


# -- Liger --------------------------------------------------------------------------------------------------------


def test_liger_is_refused_where_it_cannot_run(tiny_base, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"model.liger needs a package .*pip install liger-kernel=="):
        extras.demand(Model(liger=True))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(models, "device", lambda: torch.device("cpu"))
    with pytest.raises(ConfigError, match="its kernels run on a GPU"):
        models.load_base(str(tiny_base), Model(liger=True))


def test_liger_gets_the_layers_and_never_the_loss(monkeypatch):
    """Its package cannot be imported without a GPU's compiler: what it would be asked for is recorded."""
    asked = []
    package = types.ModuleType("liger_kernel")
    package.transformers = types.SimpleNamespace(apply_liger_kernel_to_mistral=lambda **given: asked.append(given))
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    base = types.SimpleNamespace(config=types.SimpleNamespace(model_type="mistral"))
    models._with_liger(base)
    kernels = {"rope": True, "rms_norm": True, "swiglu": True}
    assert asked == [kernels | {"cross_entropy": False, "fused_linear_cross_entropy": False, "model": base}]
    base.config.model_type = "gpt2"
    with pytest.raises(ConfigError, match="no kernels for a model of type gpt2, only for llama, mistral"):
        models._with_liger(base)
