"""Predictions against what is known: parameter counts of published models, tensors that autograd keeps, hand-made sums."""

import json
import os

import pytest

from engine import events
from engine.configs import load
from engine.plan import flops, memory, shapes
from engine.plan import load as loads_of
from engine.plan.load import lengths
from engine.plan.memory import GIB, Load, Place
from engine.settings import ConfigError, Settings
from jobs import calibration, fitting, plan
from jobs.home import PROJECT, Home
from tests.test_cli import hybridsum

MISTRAL = shapes.KNOWN["mistral-7b"]
PLAIN = {
    "losses": {"contrastive": 0, "diversity": 0, "term": 0},
    "distil": {"phase": 0, "base": 0, "documents": 0},
    "replay": {"batch_share": 0},
    "train": {"gradient_norms_steps": 0},
}


def settings(**sections) -> Settings:
    merged = {name: dict(values) for name, values in PLAIN.items()}
    for name, values in sections.items():
        merged[name] = merged.get(name, {}) | values
    return Settings.model_validate(merged)


# -- shapes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("mistralai/Mistral-7B-v0.1", 7_241_732_096),
        ("mistralai/Mistral-7B-Instruct-v0.3", 7_248_023_552),
        ("meta-llama/Llama-2-7b-hf", 6_738_415_616),
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8_030_261_248),
        ("meta-llama/Llama-3.2-1B", 1_235_814_400),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1_100_048_384),
        ("HuggingFaceTB/SmolLM2-135M", 134_515_008),
    ],
)
def test_the_table_has_as_many_weights_as_were_published(name, published):
    assert shapes.known(name).weights == published


def test_unknown_names_ask_for_one_small_file(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match=r"nobody/nothing is not known .* config.json"):
        shapes.of_model(load(None, ["model.name_or_path=nobody/nothing"]).model)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "d_model": 512}))
    with pytest.raises(ConfigError, match="tells no shape"):
        shapes.of_model(load(None, [f"model.name_or_path={tmp_path}"]).model)


def test_a_folder_tells_its_own_shape(tmp_path):
    told = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 100, "tie_word_embeddings": True}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(told))
    found = shapes.of_model(load(None, [f"model.name_or_path={tmp_path}"]).model)
    assert found == shapes.Shape(64, 96, 2, 4, 2, 32, 100, True)
    # q 64 x 128, k and v 64 x 64, o 128 x 64, three of 64 x 96; embedding once, five norms
    assert found.weights == 2 * (8192 + 2 * 4096 + 8192 + 3 * 6144) + 100 * 64 + 5 * 64


@pytest.mark.engine
def test_a_base_built_here_has_the_shape_that_is_predicted():
    from types import SimpleNamespace

    from engine.base import new_model

    build = load("configs/pocket.yaml").model.build

    class Tokenizer(SimpleNamespace):
        def __len__(self):
            return build.vocab_size

    model = new_model(build, Tokenizer(pad_token_id=0, bos_token_id=1, eos_token_id=2), 64)
    assert sum(p.numel() for p in model.parameters()) == shapes.of_build(build).weights


# -- memory -------------------------------------------------------------------------------------------------------


def test_weights_of_mistral():
    """7.24 B weights: bf16 13.49 GiB; int8 6.99; NF4 with quantised scales 3.84; the adapter has 83.9 M."""

    def gib(**model):
        return memory.base_weights(settings(model=model), MISTRAL) / GIB

    assert gib(dtype="bfloat16") == pytest.approx(13.49, abs=0.01)
    assert gib(dtype="bfloat16", quantize="int8") == pytest.approx(6.99, abs=0.02)
    assert gib(dtype="bfloat16", quantize="nf4") == pytest.approx(3.84, abs=0.01)
    assert memory.adapter_weights(settings(), MISTRAL) == 83_886_080


@pytest.mark.engine
def test_what_the_plan_says_of_the_engine_is_true_of_it():
    """The plan is light, so it cannot ask the engine."""
    from engine import attention, batches, decoder, ewc, products

    assert (memory.PADDED, memory.PLACES) == (batches.LENGTHS, batches.PLACES)
    assert (memory.FISHER_TOKENS, memory.CODES) == (ewc.TOKENS, products.CODES)
    assert (memory.QUERIES, memory.KEPT, memory.MOST_PLACES) == (attention.QUERIES, attention.KEPT, decoder.MOST)
    for length in (16, 320, 336, 352):  # one block and two
        entries = sum((end - first) * end for first, end in attention._blocks(length))
        assert memory.weights_of_attention(settings(), MISTRAL, length, Place("cpu")) == 32 * 4 * entries


def test_machine_code_grows_with_the_lengths_of_a_corpus_up_to_what_is_kept():
    def codes(model: dict | None = None, **load) -> float:
        return memory.machine_code(settings(model=model or {}), Load(3, 512, 90, **load)) / memory.CODE

    assert codes(lengths=10, mean=300) == 10 * (24 + 6)  # one block of attention
    assert codes(lengths=10, mean=400) == 10 * (24 + 2 * 6)
    assert codes({"dtype": "bfloat16"}, lengths=10, mean=400) == 10 * (37 + 2 * 6)
    assert codes(lengths=10, mean=400, told=20) == 10 * (1.5 * 24 + 2 * 6)
    assert codes(lengths=300, mean=400) == 2048
    assert codes({"dtype": "float64"}, lengths=10, mean=400) == 0


def test_streamed_layers_leave_all_but_two():
    whole = memory.base_weights(settings(model={"dtype": "bfloat16"}), MISTRAL)
    on = {"gradient_checkpointing": True}
    streamed = memory.base_weights(settings(model={"dtype": "bfloat16", "stream_layers": 12}, train=on), MISTRAL)
    assert whole - streamed == 10 * MISTRAL.layer_weights * 2
    few = settings(model={"dtype": "bfloat16", "stream_layers": 1}, train=on)
    assert memory.base_weights(few, MISTRAL) == whole


@pytest.mark.parametrize(
    ("autocast", "quantize", "dropout", "kib"),
    [("bf16", "nf4", 0, 169), ("none", "nf4", 0, 246), ("none", "nf4", 0.05, 246 + 38), ("none", None, 0.05, 137)],
)
def test_a_layer_of_mistral_keeps_what_was_counted(autocast, quantize, dropout, kib):
    """KiB a token, with PEFT's layers counted by running one; a GPU's dropout keeps one byte an entry there: 6 x 4,096 +
    14,336 = 38 KiB. With ours by hand: norms 16, attention 20, gates 56, what A reads 44, seven times 32 fp32 numbers 0.9."""
    model = {"dtype": "bfloat16", "quantize": quantize}
    told = settings(model=model, train={"mixed_precision": autocast}, lora={"dropout": dropout})
    assert memory.kept_by_layer(told, MISTRAL, Place("cuda")) / 1024 == pytest.approx(kib, abs=1)


@pytest.mark.engine
@pytest.mark.parametrize("autocast", ["none", "bf16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("dropout", "mask"), [(0.0, "sequence"), (0.1, "sequence"), (0.1, "token")])
def test_autograd_keeps_what_is_predicted(autocast, dtype, dropout, mask):
    """Bytes that one layer more adds to what autograd saves, tensor by tensor, on a small Mistral."""
    lora = {"dropout": dropout, "rank": 8, "dropout_mask": mask}
    told = settings(model={"dtype": dtype}, train={"mixed_precision": autocast}, lora=lora)
    shape = shapes.Shape(64, 160, 1, 4, 2, 16, 100)
    tokens = 3 * 48  # rows come in multiples of sixteen
    kept = (_saved(told, shape, 3) - _saved(told, shape, 1)) / 2
    predicted = tokens * memory.kept_by_layer(told, shape, Place("cpu")) + memory.casts_of_layer(told, shape)
    predicted += 3 * (memory.masks_of_layer(told, shape) + memory.weights_of_attention(told, shape, 48, Place("cpu")))
    assert kept == pytest.approx(predicted, rel=0.001)
    spared = _saved(told, shape, 2) - _saved(told, shape, 2, 32)  # the last layer at 32 places of each row
    last = memory._last_layer(told, shape, Load(3, 48, 15, places=5), Place("cpu"), predicted)
    assert spared == pytest.approx(predicted - last, rel=0.001)


def test_weights_of_attention_are_kept_where_they_are_few():
    """16 heads of 480 KiB are kept as a block of 176 x 176 and one of 174 x 350; a longer row's are not."""
    shape = shapes.Shape(64, 160, 1, 16, 2, 16, 100)
    assert memory.weights_of_attention(settings(), shape, 350, Place("cpu")) == 16 * 4 * (176 * 176 + 174 * 350)
    assert memory.weights_of_attention(settings(), shape, 400, Place("cpu")) == 0
    assert memory.weights_of_attention(settings(), shape, 350, Place("cuda")) == 0


def _saved(told: Settings, shape: shapes.Shape, layers: int, places: int = 0) -> int:
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    from engine import models, products

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_hidden_layers=layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.key_value_heads, head_dim=shape.head, sliding_window=None,
    )  # fmt: skip
    base = models.frozen(MistralForCausalLM(config).to(models.DTYPES[told.model.dtype]))
    model = models.attach(base, told.lora, 0).train()
    if told.train.mixed_precision == "bf16":
        products.narrow(model)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(0, shape.vocabulary, (3, 48))
    scored = (torch.arange(3)[:, None] * 48 + torch.arange(42, 47)).flatten()
    at = torch.cat([torch.arange(42, 47), torch.full((places - 5,), 47)]).expand(3, -1) if places else None
    bf16 = told.train.mixed_precision == "bf16"
    saving = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with saving, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        kept = models.logits_at(model, ids, scored, at)
    assert kept.requires_grad
    return sum(seen.values())


def test_checkpointing_keeps_one_layer_and_the_states_between():
    on = {"gradient_checkpointing": True, "mixed_precision": "bf16"}
    load = Load(3, 1024, 400)
    told = settings(model={"dtype": "bfloat16"}, train=on, lora={"dropout": 0})
    whole, kept = memory.training(told, MISTRAL, load, Place()), memory.kept_by_layer(told, MISTRAL, Place())
    assert whole["activations"] > 32 * 3072 * 4096 * 2 + 3072 * kept  # 0.75 GiB between layers, and one layer
    away = told.model_copy(update={"train": told.train.model_copy(update={"checkpoint_offload": True})})
    saved = whole["activations"] - memory.training(away, MISTRAL, load, Place())["activations"]
    assert saved == 30 * 3072 * 4096 * 2
    assert memory.training(away, MISTRAL, load, Place("cpu")) == memory.training(told, MISTRAL, load, Place("cpu"))


# -- lengths ------------------------------------------------------------------------------------------------------


def test_the_largest_micro_batch_is_that_of_the_longest_documents():
    told = settings(train={"per_device_train_batch_size": 3, "gradient_accumulation_steps": 6})
    known = lengths([(size, size // 10) for size in range(101, 201)])
    assert known.longest == 200 and known.longest_summary == 20 and known.summary_on_top == pytest.approx(19.1)
    (found,) = loads_of.loads(told, known, 0)
    assert (found.rows, found.length, found.labels, found.told) == (3, 200, round(2 * 19.1 + 20), 0)


def test_a_budget_of_tokens_cuts_the_largest_micro_batch():
    """Documents of 200 tokens are padded to 208."""
    known = lengths([(200, 20)], [90])
    for tokens, rows in ((None, 3), (624, 3), (623, 2), (100, 1)):
        told = settings(train={"per_device_train_batch_size": 3, "micro_batch_tokens": tokens})
        assert [load.rows for load in loads_of.loads(told, known, 0)] == [rows]
    told = settings(train={"per_device_train_batch_size": 3, "micro_batch_tokens": 300}, distil={"documents": 1.0})
    assert [(load.rows, load.labels) for load in loads_of.loads(told, known, 0)] == [(1, 20), (3, 2 * 20 + 89)]


def test_replayed_rows_share_the_micro_batches():
    told = settings(train={"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1}, replay={"batch_share": 0.1},
                    distil={"phase": 1.0, "documents": 0.3, "documents_share": 0.1})  # fmt: skip
    known = lengths([(200, 20)], [80])
    assert loads_of.old_rows(told, known, 0) == 1  # 16 / 9 x 20 / 80 of a document
    assert loads_of.old_rows(told, known, 1) == 3
    learnt, plain = loads_of.loads(told, known, 1)
    assert (learnt.rows, learnt.told) == (10, 20)  # 19 rows in two micro-batches
    assert (plain.length, plain.told, plain.labels) == (80, 79, 9 * 20 + 79)


def test_checkpointing_costs_a_forward_more():
    known = lengths([(200, 20)])
    plain = flops.of_step(settings(), MISTRAL, known, 0)
    again = flops.of_step(settings(train={"gradient_checkpointing": True}), MISTRAL, known, 0)
    assert again == pytest.approx(1.5 * plain)
    # 18 rows of 200 tokens, four operations a weight of the layers, and attention
    assert plain == pytest.approx(3600 * 31.1 * 2 * (2 * MISTRAL.layer_weights + 2 * 200 * 4096))  # a tenth is scored


def test_copies_of_streamed_layers_go_on_beside_the_computation(tmp_path):
    """A layer of Mistral has 218,112,000 weights: 436 MB in bf16. 18 micro-batches x (14 forward + 12 backward) x 436 MB, and
    two replayed rows, in micro-batches of their own, with a teacher."""
    on = {"gradient_checkpointing": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 18}
    known, model = lengths([(200, 20)]), {"dtype": "bfloat16", "stream_layers": 14}
    streamed = settings(model=model, train=on)
    assert flops.copied_bytes(streamed, MISTRAL, known, 0) == pytest.approx(18 * 26 * 2 * 218_112_000, rel=1e-4)
    replayed = settings(model=model, train=on, replay={"batch_share": 0.1})
    expected = (20 * 26 + 2 * 14) * 2 * 218_112_000
    assert flops.copied_bytes(replayed, MISTRAL, known, 1) == pytest.approx(expected, rel=1e-4)
    assert flops.copied_bytes(settings(train=on), MISTRAL, known, 0) == 0

    where, home = plan.Machine("cuda", "a card", 16.0), Home(tmp_path)
    named = model | {"name_or_path": "mistralai/Mistral-7B-v0.1"}
    waits = plan.phase_value(home, settings(model=named, train=on), known, 0, where)
    assert waits["step_seconds"] == pytest.approx(18 * 26 * 2 * 218_112_000 / calibration.LINK, rel=1e-4)
    resident = plan.phase_value(home, settings(model=named | {"stream_layers": 0}, train=on), known, 0, where)
    assert resident["step_seconds"] == pytest.approx(resident["step_operations"] / calibration.SPEED["cuda"])


# -- what to change -----------------------------------------------------------------------------------------------


def test_the_remedy_fits_and_every_part_of_it_is_needed():
    told = settings(model={"name_or_path": "mistralai/Mistral-7B-v0.1", "dtype": "bfloat16"}, lora={"dropout": 0.1})
    known = lengths([(1024, 200)])

    def peak(changed: Settings) -> float:
        return sum(memory.peak(plan.stages(changed, MISTRAL, known.cut(changed), "cuda", 0))[1].values()) / GIB

    assert peak(told) > 24
    changes = fitting.together(told, MISTRAL, peak, 15.5, "cuda")
    assert peak(fitting.changed(told, changes)) <= 15.5
    free = [change for change in changes if "train.gradient_checkpointing" not in change]  # others may hang on that one
    for change in free:
        assert peak(fitting.changed(told, [other for other in changes if other is not change])) > 15.5
    for change in fitting.single(told, MISTRAL, peak, "cuda"):
        assert change.gib >= fitting.LEAST
    assert fitting.together(told, MISTRAL, peak, 0.5, "cuda") is None


# -- calibration --------------------------------------------------------------------------------------------------


def test_measurements_correct_the_next_prediction(tmp_path):
    home = Home(tmp_path)
    home.jobs.mkdir(parents=True)
    assert calibration.memory_ratio(home, "card") == 1 and calibration.speed(home, "card") is None
    for measured in (1.0, 1.1, 1.2, 9.0):
        calibration.add(
            home, "card", {"predicted_gib": 1.0, "measured_gib": measured, "flops_per_second": 2e9 * measured}
        )
    assert calibration.memory_ratio(home, "card") == pytest.approx(1.15)  # the median of four
    assert calibration.memory_ratio(home, "other") == 1
    calibration.path(home).write_text("{")
    assert calibration.memory_ratio(home, "card") == 1


def test_prediction_and_truth_stand_side_by_side(tmp_path, monkeypatch):
    """Steps of 2 s with a peak of 3 GiB; 2 GiB were predicted. The next prediction is half as much again."""
    home = Home(tmp_path)
    home.job("1").mkdir(parents=True)
    told = load("configs/pocket.yaml")
    where, known = plan.Machine("cpu", "this one", 8.0), lengths([(300, 40)])
    predicted = plan.phase_value(home, told, known, 0, where)
    predicted |= {"counted_gib": 2.0}
    write = events.Writer(home.events("1"), 1)
    for number, (now, peak) in enumerate([(100.0, 1.0), (102.0, 3.0), (104.0, 2.0), (109.0, 2.0)], 1):
        monkeypatch.setattr(events.time, "time", lambda now=now: now)
        write(events.Step(number, 4, {"cross_entropy": 1.0}, 1.0, 1e-3, 1.0, 10.0, peak))
    value = plan.compared(home, "1", predicted)
    assert (value["measured_gib"], value["error_percent"], value["measured_step_seconds"]) == (3.0, -33.3, 2.0)
    assert "predicted 2.00 GiB, took 3.00 (-33 %)" in plan.words(value)
    again = plan.phase_value(home, told, known, 0, where)
    assert again["peak_gib"] == pytest.approx(1.5 * predicted["peak_gib"], abs=0.01)
    assert again["calibrated"] and again["step_seconds"] == pytest.approx(2.0)


def test_a_phase_without_a_step_changes_nothing(tmp_path):
    home = Home(tmp_path)
    home.job("1").mkdir(parents=True)
    assert plan.compared(home, "1", {"unknown": "why"}) == {"unknown": "why"}
    assert "why" in plan.words({"unknown": "why"}) and not calibration.path(home).exists()


def test_the_form_shows_memory_and_warns_of_what_does_not_fit():
    from tui.preview import _memory

    value = {
        "peak_gib": 18.2,
        "device_gib": 16.0,
        "machine": "RTX",
        "stage": "training",
        "breakdown": {"weights": 13.5, "logits": 1.0},
    }
    warned, told = _memory([None, {"unknown": "no shape"}, value, value | {"peak_gib": 3.0}])
    assert warned.warning and "DOES NOT FIT: 18.2 GiB" in warned.text and "16.0 GiB (RTX)" in warned.text
    assert told.text == "18.2 of 16.0 GiB while training (weights 13.5, logits 1.0)"
    (only,) = _memory([value | {"peak_gib": 3.0}])
    assert not only.warning
    (unknown,) = _memory([{"unknown": "no shape"}])
    assert unknown.text == "not predicted: no shape"
    assert _memory([None]) == []


# -- the verb -----------------------------------------------------------------------------------------------------


def at(folder) -> dict[str, str]:
    return {**os.environ, "HYBRIDSUM_HOME": str(folder)}


def test_plan_prints_parts_that_add_up(tmp_path):
    child = hybridsum("plan", "configs/pocket.yaml", "--json", env=at(tmp_path))
    value = json.loads(child.stdout)
    assert value["fits"] and value["steps"] == 360 and set(value["records"]) == {"papers", "videos", "pairs"}
    assert sum(value["breakdown"].values()) == pytest.approx(value["peak_gib"], abs=0.01)
    assert value["peak_gib"] == max(value["stages"].values()) and value["seconds"] > 0
    assert all(change["gib"] > 0 for change in value["changes"])


def test_what_cannot_fit_is_said_with_the_remedy(tmp_path):
    big = ["model.build=null", "model.name_or_path=mistralai/Mistral-7B-v0.3", "model.dtype=bfloat16"]
    child = hybridsum("plan", "configs/pocket.yaml", "--gib", "16", *big, env=at(tmp_path))
    assert (
        "DOES NOT FIT" in child.stdout and "it would fit with" in child.stdout and "model.quantize=nf4" in child.stdout
    )


# -- 16 GB --------------------------------------------------------------------------------------------------------

LONG = ["data.max_length=4096", "train.checkpoint_offload=true"]


@pytest.mark.parametrize(
    ("config", "changes"), [("mistral_16gb", []), ("mistral_16gb", LONG), ("mistral_16gb_bf16", [])]
)
def test_the_16_gb_configs_stay_below_15_gib_in_every_phase_and_stage(config, changes):
    """With documents as long as the settings allow, plain texts to hold the base, two teachers and an anchor."""
    told = load(f"configs/{config}.yaml", [*changes, "data.documents=plain.jsonl", "data.terms=terms.txt"])
    assert told.lora.rank == 32 and len(told.lora.target_modules) == 7 and told.batch_records == 18
    assert all(getattr(told.losses, name) for name in ("cross_entropy", "contrastive", "diversity", "term", "drift"))
    assert told.ewc.lambda_ and told.replay.batch_share and told.distil.phase and told.distil.base
    shape, known = shapes.of_model(told.model), loads_of.longest_possible(told)
    for phase in range(3):
        for stage, parts in plan.stages(told, shape, known, "cuda", phase).items():
            assert sum(parts.values()) <= 15.0 * GIB, (stage, parts)


def test_data_that_are_not_there_yet_count_as_long_as_allowed(tmp_path):
    """A config as it comes with the project: its files are the user's to give."""
    config, home = PROJECT / "configs" / "mistral_16gb.yaml", Home(tmp_path)
    value = plan.of_config(home, load(config), plan.machine(16))
    assert value["fits"] and value["steps"] is None and value["seconds"] is None
    assert "data.papers data/medical/papers.jsonl" in value["warnings"][0]
    assert "a step" in plan.text(value) and "no data yet" in plan.text(value)
