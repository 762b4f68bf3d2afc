"""Load a causal model, attach LoRA, and divide its weights into the two rates of LoRA+."""

import contextlib
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as transformers_logging

from engine import adapted, attention, decoder, extras, gated, norms, packing, products, streaming
from engine.batches import Batch
from engine.mixture import integer
from engine.packing import Laid
from engine.settings import ConfigError, Lora, Model, Settings, Train, first_line
from engine.vocabulary import wide

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # peft uses a name that transformers has renamed
    from peft import LoraConfig, PeftModel, get_peft_model
    from peft.tuners.lora import LoraLayer

STUDENT = "default"  # the adapter that learns; PEFT's own name for the first one
ADAPTER_ONLY = {"save_embedding_layers": False, "selected_adapters": [STUDENT]}  # teachers stay where they are
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def prepare(train: Train) -> None:
    """CPU threads as the settings say (0: one per core); tiny values flushed to zero, which is faster; a quiet log."""
    torch.set_num_threads(train.threads or len(os.sched_getaffinity(0)))
    torch.set_flush_denormal(True)
    products.prepare()
    transformers_logging.disable_progress_bar()


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_tokenizer(model: str, settings: Model):
    """The tokenizer of a model, with a padding token. Raises ConfigError if it cannot be loaded."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, revision=settings.revision)
    except (OSError, ValueError) as error:
        raise ConfigError(_not_loaded(model, error)) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked by position, never by id
    return tokenizer


def load_base(model: str, settings: Model) -> nn.Module:
    """The frozen base on its device, in eval mode, quantised or streamed as the settings say. Raises ConfigError if it
    cannot be loaded."""
    extras.demand(settings)
    if settings.liger and device().type != "cuda":
        raise ConfigError("model.liger: its kernels run on a GPU, and there is none here. Set model.liger=false")
    how = {"revision": settings.revision, "dtype": DTYPES[settings.dtype]}
    if settings.quantize:
        how |= {"quantization_config": _quantization(settings), "device_map": {"": device()}}
    try:
        base = AutoModelForCausalLM.from_pretrained(model, **how)
    except (OSError, ValueError) as error:
        raise ConfigError(_not_loaded(model, error)) from error
    base.generation_config.max_length = None  # only max_new_tokens decides
    frozen(base)
    if settings.liger:
        _with_liger(base)
    if settings.stream_layers:
        streaming.stream(base, settings.stream_layers, device())
    return (base if settings.quantize else base.to(device())).eval()


def frozen(base: nn.Module) -> nn.Module:
    """A base that does not learn, with this engine's own products, attention and layers; its weights are the same."""
    return norms.join(gated.join(decoder.join(attention.join(products.freeze(base)))))


def _with_liger(base: nn.Module) -> None:
    """Liger's norms, rotary positions and gated layers; not its losses: ours need the logits of the label positions.

    Raises ConfigError for a model it has no kernels for.
    """
    kind = base.config.model_type
    if kind not in extras.LIGER_KNOWS:
        raise ConfigError(
            f"model.liger: there are no kernels for a model of type {kind}, only for {', '.join(extras.LIGER_KNOWS)}. "
            "Set model.liger=false"
        )
    from liger_kernel import transformers as liger

    apply = getattr(liger, f"apply_liger_kernel_to_{kind}")
    apply(rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False, model=base)


def _quantization(settings: Model) -> BitsAndBytesConfig:
    """NF4 with quantised scales, or 8 bits a weight; embedding, output layer and norms stay as they are.

    PEFT's own preparation for k-bit training is not used: it would make all of those fp32 (0.5 GiB of Mistral-7B, 2 of
    Qwen2.5-7B), and the norms compute in fp32 in any case.
    """
    if settings.quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[settings.dtype],
    )  # fmt: skip


def _not_loaded(model: str, error: Exception) -> str:
    return (
        f"model.name_or_path: {model} could not be loaded ({first_line(error)}). Give a folder with config.json and "
        "weights, or a name on the Hub that this machine can reach"
    )


def attach(base: nn.Module, lora: Lora, seed: int) -> PeftModel:
    """A fresh adapter: A Kaiming-uniform from the seed, B zero, so the model still is the base."""
    torch.manual_seed(integer(seed, "adapter"))
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        task_type="CAUSAL_LM",
    )
    with _quiet_peft():
        try:
            return adapted.join(get_peft_model(base, config), lora.dropout_mask == "sequence")
        except ValueError as error:
            raise ConfigError(f"lora.target_modules: {first_line(error)}") from error


def load_adapter(base: nn.Module, folder: Path, trainable: bool) -> PeftModel:
    """The adapter of a checkpoint on a base. Raises ConfigError if it does not fit: a base without its adapter would be
    a different model, and scoring that would be wrong."""
    with _quiet_peft():
        try:
            model = PeftModel.from_pretrained(base, str(folder), is_trainable=trainable)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(f"{folder}: this adapter does not load on its base ({first_line(error)})") from error
    return adapted.join(model)


def checkpointing(model: PeftModel, settings: Settings) -> None:
    """Recompute activations in the backward pass where the settings ask for it; with offload, the states between layers
    wait in pinned host memory."""
    if settings.train.gradient_checkpointing:
        model.enable_input_require_grads()  # a frozen embedding would leave the checkpointed layers without gradient
        away = settings.train.checkpoint_offload and torch.cuda.is_available()  # without a GPU they are there already
        model.activation_checkpointing_enable(offload=away)


def recompute(model: nn.Module) -> None:
    """Let checkpointed layers recompute in eval mode too; what is inside them (dropout) stays as it is.

    They look at their own mode alone. For backward passes in eval mode: the Fisher would need many times the memory of
    training, and streamed layers would be gone. Undone by the next model.train(...).
    """
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            module.training = True


@contextlib.contextmanager
def _quiet_peft():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """{name: parameter} of everything that learns."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def scales(model: nn.Module) -> dict[str, float]:
    """{adapted layer: alpha / r} of the student's adapter."""
    return {name: layer.scaling[STUDENT] for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


def parameter_groups(model: nn.Module, train: Train, heads: list[nn.Parameter] = ()) -> list[dict]:
    """AdamW groups with their peak rates under `rate`: A learns at learning_rate, B faster (LoRA+); heads, in a group of
    their own, as fast as A.

    Raises ValueError if a trainable weight belongs to neither.
    """
    weights = trainable(model)
    a = [parameter for name, parameter in weights.items() if ".lora_A." in name]
    b = [parameter for name, parameter in weights.items() if ".lora_B." in name]
    if len(a) + len(b) != len(weights):
        raise ValueError(f"neither A nor B: {[n for n in weights if '.lora_A.' not in n and '.lora_B.' not in n]}")
    fast = train.learning_rate * train.loraplus_lr_ratio
    slow = train.learning_rate
    groups = [(a, slow), (b, fast), *([(list(heads), slow)] if heads else [])]
    return [
        {"params": members, "rate": rate, "lr": rate, "weight_decay": train.weight_decay} for members, rate in groups
    ]


def adamw(groups: list[dict]) -> torch.optim.AdamW:
    """AdamW that moves a group in one pass over memory."""
    return torch.optim.AdamW(groups, fused=True)


def placed(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The model on its device and in its precision, without a wrapper; gradients are added up in engine/gradient.py.

    Not accelerator.prepare_model, which would copy the logits to float32: the losses widen what they read themselves.
    """
    if accelerator.mixed_precision == "bf16":
        products.narrow(model)
        model.forward = torch.autocast(accelerator.device.type, torch.bfloat16)(model.forward)
    return model.to(accelerator.device)


def summary_logits(model: nn.Module, batch: Batch, packed: bool = False) -> Tensor:
    """Logits (K, V) at the positions that predict a summary token, and nowhere else: same loss, far less memory.

    packed: modules may see the rows as one, where that is faster (engine/packing.py).
    """
    return logits_at(model, batch.ids, batch.positions, batch.places, batch.lengths if packed else None)


def logits_at(
    model: nn.Module, ids: Tensor, positions: Tensor, places: Tensor | None = None, lengths: Sequence[int] | None = None
) -> Tensor:
    """Logits (K, V) of ids (N, L) at positions (K,) of the flattened ids.

    places (N, S): all of these positions, of each row; the last layer's states may then be 0 elsewhere. lengths: of the
    rows without their padding, which may then be left out. transformers' own logits_to_keep takes a mask, whose size a
    GPU must be waited for.
    """
    return _read(model, ids, positions, places, lengths)[0]


def logits_and_states(model: PeftModel, batch: Batch, everywhere: bool) -> tuple[Tensor, Tensor]:
    """Label-only logits (K, V), and the last layer's states (N, L, D) that they come from. everywhere: these are wanted
    at all positions of the documents, not only where the logits are."""
    places = None if everywhere else batch.places
    logits, states, laid = _read(model, batch.ids, batch.positions, places, batch.lengths)
    return logits, laid.spread(states)


def _read(
    model: nn.Module, ids: Tensor, positions: Tensor, places: Tensor | None, lengths: Sequence[int] | None
) -> tuple[Tensor, Tensor, Laid]:
    """(logits, the last layer's states, how the rows were laid for the model)."""
    can = lengths and ids.device.type == "cpu" and _packs(model, max(lengths))
    laid = packing.lay(ids, lengths if can else None)
    at, seen = laid.positions(positions), []

    def kept(head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].flatten(0, 1)[at],)

    def asked(layer: nn.Module, inputs: tuple[Tensor, ...], named: dict) -> tuple[tuple[Tensor, ...], dict]:
        return inputs, named | {"places": wanted}

    base = _base(model)
    handles = [
        model.get_output_embeddings().register_forward_pre_hook(kept),
        base.get_decoder().register_forward_hook(lambda module, inputs, output: seen.append(output[0])),
    ]
    layer = decoder.last(base)
    if layer is not None and places is not None and places.numel() <= decoder.MOST * laid.ids.numel():
        wanted = laid.places(places)
        handles.append(layer.register_forward_pre_hook(asked, with_kwargs=True))
    try:
        with packing.running(laid):
            logits = model(input_ids=laid.ids, position_ids=laid.position_ids, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits, seen[-1], laid


def _packs(model: nn.Module, longest: int) -> bool:
    """Whether this model can read rows of up to `longest` tokens that are laid one after the other: attention and adapters
    are our own, no window is shorter than a row, and nothing runs a layer again when the sequences are forgotten."""
    base = _base(model)
    layer, config = decoder.last(base), base.config
    if layer is None or config._attn_implementation != attention.NAME or "forward" in vars(layer):  # compiled
        return False
    window = getattr(config, "sliding_window", None)
    dropped = model.training and getattr(config, "attention_dropout", 0.0)
    return not (window and window < longest) and not dropped and not base.is_activation_checkpointing


def _base(model: nn.Module) -> nn.Module:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def load_teacher(model: PeftModel, folder: Path, name: str) -> None:
    """Put the adapter of an earlier phase beside the student's, frozen. Raises ConfigError if it does not fit."""
    with _quiet_peft():
        try:
            model.load_adapter(str(folder), adapter_name=name, is_trainable=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(f"{folder}: this adapter does not load as a teacher ({first_line(error)})") from error
    model.set_adapter(STUDENT)


def teacher_log_probabilities(model: PeftModel, batch: Batch, names: Iterable[str]) -> dict[str, Tensor]:
    """{teacher: log p (K_teacher, V) at the summary tokens of its rows}: the base (adapter off) or a phase's adapter.

    Eval mode, no gradient. To be called before the student's forward: with activation checkpointing, an adapter that is
    off or switched during the backward pass would leave the student without any gradient, and nothing would tell.
    """
    wanted = [name for name in names if name in batch.rows_of]
    if not wanted:
        return {}
    was_training, found = model.training, {}
    model.eval()
    for name in wanted:
        with torch.no_grad(), _speaking(model, name):
            logits = logits_at(model, *batch.answers_to(name))
        found[name] = wide(logits).log_softmax(-1)
    model.train(was_training)
    return found


@contextlib.contextmanager
def _speaking(model: PeftModel, name: str):
    """A teacher in the student's place; afterwards the student is back, and it alone can learn."""
    if name == "base":
        with model.disable_adapter():
            yield
        return
    model.set_adapter(name, inference_mode=True)
    try:
        yield
    finally:
        model.set_adapter(STUDENT)


def save_training_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, **how) -> None:
    """Weights and optimizer, all that a step needs beside its number. how: arguments of save_pretrained."""
    model.save_pretrained(folder, **how)
    with (folder / "optimizer.pt").open("wb") as file:
        torch.save(optimizer.state_dict(), file)
