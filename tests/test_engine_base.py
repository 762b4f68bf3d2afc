"""The base built here: an ordinary model folder, the same from the same seed, also after a kill."""

import pytest

from engine import base, checkpoint
from engine.configs import load
from engine.work import Cancelled
from tests.conftest import make_work

pytestmark = pytest.mark.engine


def build(tiny_data, folder, stop=lambda: False, *overrides):
    settings = load(tiny_data / "tiny.yaml", overrides)
    return base.run(make_work("base", None, settings, folder, folder, folder.parent, stop=stop))


def test_it_loads_like_any_other_model(tiny_base):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    assert (
        tokenizer("12", add_special_tokens=False)["input_ids"]
        == tokenizer(["1", "2"], add_special_tokens=False)["input_ids"][0]
        + tokenizer("2", add_special_tokens=False)["input_ids"]
    )
    assert len(tokenizer) == model.config.vocab_size == 400
    assert tokenizer.decode(tokenizer("hold it steady, 45 minutes.")["input_ids"]) == "hold it steady, 45 minutes."
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3


def test_stopped_and_resumed_equals_undisturbed(tiny_data, tiny_base, tmp_path):
    calls = []

    def stop():
        calls.append(1)
        return len(calls) > 3

    with pytest.raises(Cancelled):
        build(tiny_data, tmp_path / "b", stop)
    assert checkpoint.newest_step(tmp_path / ".b.partial")[0] == 3
    build(tiny_data, tmp_path / "b")
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == (tiny_base / "model.safetensors").read_bytes()
    assert not (tmp_path / ".b.partial").exists()


def test_a_finished_base_is_not_built_again(tiny_data, tiny_base):
    stamp = (tiny_base / "model.safetensors").stat().st_mtime_ns
    assert build(tiny_data, tiny_base) == {"model": str(tiny_base)}
    assert (tiny_base / "model.safetensors").stat().st_mtime_ns == stamp
