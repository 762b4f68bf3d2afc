"""Every setting, declared once: the source for YAML files, overrides, forms, the settings table and spec.yaml."""

import difflib
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

SOURCES = ("papers", "videos", "pairs")  # what a phase may mix; the names of the files in section `data`


class ConfigError(Exception):
    """A mistake the user can mend. Each line names where, what and the remedy; no traceback is shown for it."""

    def __init__(self, *lines: str):
        super().__init__("\n".join(lines))
        self.lines = lines


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Build(Section):
    """A small Mistral trained here from scratch: plain text of all sources, summaries of the videos only."""

    hidden_size: int = Field(144, ge=16, description="width of the model")
    num_hidden_layers: int = Field(4, ge=1, description="decoder layers")
    num_attention_heads: int = Field(4, ge=1, description="query heads")
    num_key_value_heads: int = Field(2, ge=1, description="key and value heads")
    vocab_size: int = Field(1024, ge=300, description="tokens of the byte-level vocabulary trained on the data")
    steps: int = Field(520, ge=1, description="optimizer steps")
    batch_size: int = Field(16, ge=1, description="documents per step")
    paper_share: float = Field(0.3, ge=0, lt=1, description="share of papers (plain text, no summaries) in a batch")
    learning_rate: float = Field(3e-3, gt=0, description="peak rate: warm-up, flat, linear decay")
    seed: int = Field(0, ge=0, description="weights and order of documents")

    @model_validator(mode="after")
    def heads_divide(self):
        if self.hidden_size % self.num_attention_heads or self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of num_attention_heads {self.num_attention_heads}, "
                f"and that a multiple of num_key_value_heads {self.num_key_value_heads}"
            )
        return self


class Model(Section):
    name_or_path: str | None = Field(None, description="Hugging Face name, or a folder; empty: the base in `build`")
    revision: str | None = Field(None, description="branch, tag or commit on the Hub")
    adapter: Path | None = Field(None, description="folder of an adapter to go on from, instead of a fresh one")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="type of the frozen base weights")
    build: Build | None = Field(None, description="train a small base here first")


class Lora(Section):
    rank: int = Field(32, ge=1, description="rank r of the update scale * B * A")
    alpha: float = Field(64, gt=0, description="scale = alpha / rank")
    dropout: float = Field(0.1, ge=0, lt=1, description="on the input of A, in training only")
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="layers that get an adapter",
    )


class Data(Section):
    papers: Path | None = Field(None, description="JSONL or HDF5 with records of modality paper")
    videos: Path | None = Field(None, description="JSONL or HDF5 with records of modality video")
    pairs: Path | None = Field(None, description="JSONL or HDF5 with both sides of each pair, joined by pair_id")
    terms: Path | None = Field(None, description="lexicon, one term a line, for the term loss")
    test: Path | None = Field(None, description="JSONL or HDF5 to evaluate on; empty: test_share of papers and videos")
    test_share: float = Field(0.1, ge=0, lt=0.5, description="share of groups held out for evaluation if test is empty")
    fisher_share: float = Field(0.05, ge=0, lt=0.5, description="share of groups held out for the Fisher information")
    max_length: int = Field(1024, ge=16, description="tokens of prompt and summary; the source is cut at its end")
    max_summary_length: int = Field(512, ge=4, description="tokens; a longer summary is refused, never cut")
    prompt: str = Field(
        "Summarize the following {modality}.\n\n{source}\n\nSummary:",
        description="text around {source}; {modality} is filled in",
    )
    chat_template: Literal["auto", "never"] = Field("auto", description="auto: use the tokenizer's template if any")

    @model_validator(mode="after")
    def prompt_holds_source(self):
        if self.prompt.count("{source}") != 1:
            raise ValueError("prompt must contain {source} exactly once")
        if self.max_summary_length >= self.max_length:
            raise ValueError(
                f"max_summary_length {self.max_summary_length} must be below max_length {self.max_length}, "
                "or nothing of the source is left"
            )
        return self


class Phase(Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", description="name of the phase and of its checkpoint folder")
    mixture: dict[Literal["papers", "videos", "pairs"], float] = Field(description="share of records drawn per source")
    epochs: float | None = Field(None, gt=0, description="length; one epoch = all training papers and videos once")
    steps: int | None = Field(None, ge=1, description="length in optimizer steps, instead of epochs")

    @model_validator(mode="after")
    def complete(self):
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps, one of them")
        if any(share < 0 for share in self.mixture.values()) or abs(sum(self.mixture.values()) - 1) > 1e-9:
            raise ValueError(f"the shares of mixture must add up to 1, not {sum(self.mixture.values()):g}")
        if any(abs(share * 1000 - round(share * 1000)) > 1e-6 for share in self.mixture.values()):
            raise ValueError("a share of mixture has at most three decimals (0.125, say)")
        return self


class Curriculum(Section):
    phases: tuple[Phase, ...] = Field((), description="the phases in their order")
    phase: str | None = Field(None, description="the one phase this config runs; empty: all of them")

    @model_validator(mode="after")
    def names_known(self):
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise ValueError(f"two phases have the same name: {', '.join(names)}")
        if "base" in names:
            raise ValueError("a phase cannot be called base: that is the row of the untrained model")
        if self.phase is not None and self.phase not in names:
            raise ValueError(f"phase {self.phase} is not among the phases {', '.join(names) or '(none)'}")
        return self


class Losses(Section):
    cross_entropy: float = Field(1.0, ge=0, description="nats per summary token")
    term: float = Field(0.0, ge=0, description="cross-entropy of the tokens of lexicon terms (data.terms), once more")
    diversity: float = Field(0.0, ge=0, description="1 - entropy of a micro-batch's mean prediction / log V")
    drift: float = Field(0.0, ge=0, description="how far the expected embedding is from the reference's, as a hinge")
    drift_target: float = Field(0.75, gt=0, le=1, description="cosine above which drift is 0")


class Ewc(Section):
    lambda_: float = Field(0.0, ge=0, alias="lambda", description="weight of the penalty; has no meaning without unit")
    unit: Literal["per_token", "token_mean_sequence"] | None = Field(
        None, description="what the Fisher behind lambda is: per token, or token-mean gradients of single sequences"
    )
    space: Literal["product", "factor"] = Field(
        "product", description="penalize the update B * A (rank-1 Fisher), or the entries of A and B"
    )
    anchors: Literal["online", "separate"] = Field("online", description="one running anchor, or one for each phase")
    gamma: float = Field(1.0, ge=0, le=1, description="online: the old Fisher is multiplied by this")
    fisher_samples: int = Field(300, ge=1, description="held-out documents, at most")
    fisher_batch_size: int = Field(8, ge=1, description="documents per backward pass; does not change the result")
    labels: Literal["sampled", "empirical"] = Field("sampled", description="drawn from the model, or the reference")

    @model_validator(mode="after")
    def unit_named(self):
        if self.lambda_ and self.unit is None:
            raise ValueError(
                f"ewc.unit is missing. {self.lambda_:g} has no meaning without it; use token_mean_sequence or per_token"
            )
        return self


class Replay(Section):
    buffer_share: float = Field(0.1, ge=0, le=1, description="share of a phase's new records kept in the buffer")
    batch_share: float = Field(0.1, ge=0, lt=1, description="share of the cross-entropy that old records have")


class Distil(Section):
    phase: float = Field(
        1.0, ge=0, description="weight of KL(phase adapter || model) on replayed records, nats per token"
    )
    base: float = Field(0.3, ge=0, description="weight of KL(base || model) on the base's own answers, nats per token")
    base_share: float = Field(0.05, ge=0, lt=1, description="tokens of base replay, as a share of a step's tokens")
    base_records: int = Field(64, ge=1, description="video prompts the base answers once, before training")


class Train(Section):
    seed: int = Field(0, ge=0, description="everything random follows from it and the step")
    learning_rate: float = Field(1e-4, gt=0, description="peak rate of A")
    loraplus_lr_ratio: float = Field(2.0, gt=0, description="rate of B = this times the rate of A")
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="share of a phase's steps; then a cosine to 0")
    weight_decay: float = Field(0.0, ge=0, description="AdamW, on A and B")
    max_grad_norm: float = Field(1.0, gt=0, description="clip, after accumulation")
    per_device_train_batch_size: int = Field(3, ge=1, description="records in a micro-batch")
    gradient_accumulation_steps: int = Field(6, ge=1, description="micro-batches in a step")
    mixed_precision: Literal["none", "bf16"] = Field("none", description="autocast in training")
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, more time")
    logging_steps: int = Field(1, ge=1, description="steps between two reports")
    save_steps: int = Field(50, ge=1, description="steps between two checkpoints")
    save_total_limit: int = Field(2, ge=1, description="checkpoints kept inside a phase, besides final")
    threads: int = Field(0, ge=0, description="CPU threads of torch; 0: one per core")


class Gate(Section):
    metric: Literal["rouge1", "rouge2", "rougeL"] = Field("rougeL", description="what the margins count")
    papers: float | None = Field(None, le=0, description="the change that is still accepted, in points (-0.5)")
    videos: float | None = Field(None, le=0, description="the change that is still accepted, in points (-1.0)")


class Evaluate(Section):
    metric: Literal["rouge1", "rouge2", "rougeL", "nll"] = Field("rougeL", description="what tables show first")
    batch_size: int = Field(32, ge=1, description="documents generated together")
    samples: int = Field(0, ge=0, description="documents per modality; 0: all")
    gate: Gate | None = Field(None, description="declared margins of forgetting against the base")


class Generate(Section):
    max_new_tokens: int = Field(256, ge=1, description="longest summary")


class Settings(Section):
    model: Model = Model()
    lora: Lora = Lora()
    data: Data = Data()
    curriculum: Curriculum = Curriculum()
    losses: Losses = Losses()
    ewc: Ewc = Ewc()
    replay: Replay = Replay()
    distil: Distil = Distil()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    generate: Generate = Generate()

    @model_validator(mode="after")
    def sources_given(self):
        missing = sorted(
            {s for phase in self.selected_phases() for s, share in phase.mixture.items() if share}
            - {source for source in SOURCES if getattr(self.data, source)}
        )
        if missing:
            raise ValueError(
                "; ".join(
                    f"data.{source} is missing, but a phase mixes {source}. Give data.{source}=FILE"
                    for source in missing
                )
            )
        if self.losses.term and not self.data.terms:
            raise ValueError("losses.term needs a lexicon: give data.terms=FILE, or set losses.term=0")
        if self.distil.base and self.selected_phases() and not self.data.videos:
            raise ValueError("distil.base answers video prompts: give data.videos=FILE, or set distil.base=0")
        if self.model.name_or_path and self.model.build:
            raise ValueError("model.name_or_path and model.build exclude each other; set one of them to null")
        return self

    def selected_phases(self) -> tuple[Phase, ...]:
        """The phases this config runs: all, or the one named by curriculum.phase."""
        wanted = self.curriculum.phase
        return tuple(phase for phase in self.curriculum.phases if wanted in (None, phase.name))

    @property
    def batch_records(self) -> int:
        """S: new records in an optimizer step of one process."""
        return self.train.per_device_train_batch_size * self.train.gradient_accumulation_steps


# Names people bring from other trainers, and ours. Accepted at the top level and inside the section.
ALIASES = {
    "model_name_or_path": "model.name_or_path",
    "base_model": "model.name_or_path",
    "torch_dtype": "model.dtype",
    "r": "lora.rank",
    "lora_r": "lora.rank",
    "lora_rank": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_target": "lora.target_modules",
    "lora_target_modules": "lora.target_modules",
    "learning_rate": "train.learning_rate",
    "loraplus_lr_ratio": "train.loraplus_lr_ratio",
    "warmup_ratio": "train.warmup_ratio",
    "weight_decay": "train.weight_decay",
    "max_grad_norm": "train.max_grad_norm",
    "per_device_train_batch_size": "train.per_device_train_batch_size",
    "micro_batch_size": "train.per_device_train_batch_size",
    "gradient_accumulation_steps": "train.gradient_accumulation_steps",
    "gradient_checkpointing": "train.gradient_checkpointing",
    "activation_checkpointing": "train.gradient_checkpointing",
    "mixed_precision": "train.mixed_precision",
    "logging_steps": "train.logging_steps",
    "save_steps": "train.save_steps",
    "save_total_limit": "train.save_total_limit",
    "seed": "train.seed",
    "sequence_len": "data.max_length",
    "cutoff_len": "data.max_length",
    "max_seq_length": "data.max_length",
    "max_length": "data.max_length",
    "max_new_tokens": "generate.max_new_tokens",
    "ewc_lambda": "ewc.lambda",
}
# Names we know but cannot take over one to one.
ADVICE = {
    "num_train_epochs": "set epochs of each phase in curriculum.phases",
    "num_epochs": "set epochs of each phase in curriculum.phases",
    "output_dir": "checkpoints go to checkpoints/RUN/PHASE; name the run with --run",
    "lr_scheduler_type": "the schedule is warm-up, then cosine; see train.warmup_ratio",
    "val_set_size": "use data.test_share",
    "bf16": "use train.mixed_precision: bf16 and model.dtype: bfloat16",
    "resume_from_checkpoint": "a job resumes by itself; `hybridsum.py retry ID` starts it again",
}

COMMAND_LINE = "command line"


def load(path: Path | str | None, overrides: list[str] | tuple[str, ...] = ()) -> Settings:
    """Settings from a YAML file (with its `extends` chain) and `section.name=value` overrides.

    Raises ConfigError that lists every mistake, a line each: file, setting, what is wrong, the remedy.
    """
    merged, origin = _read_chain(Path(path), ()) if path is not None else ({}, {})
    mistakes = []
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            mistakes.append(f"{COMMAND_LINE}: {override}: not a setting. Write section.name=value")
            continue
        try:
            _place(merged, origin, name.strip(), yaml.safe_load(text), COMMAND_LINE)
        except (yaml.YAMLError, ConfigError) as error:
            mistakes.append(f"{COMMAND_LINE}: {name}: {first_line(error)}")
    where = str(path) if path is not None else COMMAND_LINE
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(*mistakes, *(_explain(item, origin, where) for item in error.errors())) from None
    if mistakes:
        raise ConfigError(*mistakes)
    return settings


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its class name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _read_chain(path: Path, seen: tuple[Path, ...]) -> tuple[dict, dict]:
    """The merged mapping of a file and all it extends, and which file each setting came from."""
    resolved = path.resolve()
    if resolved in seen:
        chain = " -> ".join(p.name for p in (*seen, resolved))
        raise ConfigError(f"{path}: extends goes in a circle: {chain}. Remove one of these lines")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file. See configs/ for those that exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {first_line(error)}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise ConfigError(
            f"{path}:{line} not valid YAML: {getattr(error, 'problem', None) or first_line(error)}"
        ) from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: a config is a mapping of sections (model:, lora:, ...), not a {type(content).__name__}"
        )
    parent = content.pop("extends", None)
    merged, origin = _read_chain(path.parent / str(parent), (*seen, resolved)) if parent else ({}, {})
    mistakes = []
    for name, value in _leaves(content):
        try:
            _place(merged, origin, name, value, str(path))
        except ConfigError as error:
            mistakes.append(f"{path}: {name}: {error}")
    if mistakes:
        raise ConfigError(*mistakes)
    return merged, origin


def _leaves(content: dict, prefix: str = ""):
    """(dotted name, value) of every setting; lists and mixtures count as one value."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def _place(merged: dict, origin: dict, name: str, value: Any, where: str) -> None:
    """Put one value at its dotted place. List items are reached by number, phases also by name."""
    name = _canonical(name)
    origin[name] = where
    node, (*path, last) = merged, name.split(".")
    for key in path:
        if isinstance(node, list):
            node = node[_index(node, key)]
        else:
            if not isinstance(node.get(key), (dict, list)):
                node[key] = {}
            node = node[key]
    if isinstance(node, list):
        node[_index(node, last)] = value
    else:
        node[last] = value


def _canonical(name: str) -> str:
    section, _, last = name.rpartition(".")
    target = ALIASES.get(last)
    if target and section in ("", target.partition(".")[0]):
        return target
    return name


def _index(items: list, key: str) -> int:
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if key in names:
        return names.index(key)
    if key.isdigit() and int(key) < len(items):
        return int(key)
    raise ConfigError(f"no item {key} in a list of {len(items)}. Use a number from 0, or one of {names}")


def _explain(item: dict, origin: dict, default: str) -> str:
    """One validation error in the user's words."""
    place = [str(part) for part in item["loc"]]
    name = ".".join(place).replace("lambda_", "lambda")
    where = next((origin[n] for n in (name, *(o for o in origin if o.startswith(name + "."))) if n in origin), default)
    if item["type"] == "extra_forbidden":
        return f"{where}: {name}: unknown setting. {_suggestion(name)}"
    if item["type"] == "missing":
        return f"{where}: {name}: missing. Add it"
    message = item["msg"].removeprefix("Value error, ")
    value = item.get("input")
    shown = f" (not {value!r})" if not isinstance(value, (dict, BaseModel)) and value is not None else ""
    return f"{where}: {name}: {message}{shown}" if name else f"{where}: {message}"


def _suggestion(name: str) -> str:
    last = name.rpartition(".")[2]
    if last in ADVICE:
        return ADVICE[last][0].upper() + ADVICE[last][1:]
    known = [row[0] for row in rows()]
    bare = re.sub(r"\.\d+\.", "[].", name)
    close = difflib.get_close_matches(bare, [*known, *ALIASES], n=1, cutoff=0.6)
    if not close:
        close = [k for k in known if difflib.get_close_matches(last, [k.rpartition(".")[2]], cutoff=0.75)][:1]
    if close:
        return f"Did you mean {ALIASES.get(close[0], close[0])}?"
    section = bare.partition(".")[0]
    fields = [k.rpartition(".")[2] for k in known if k.startswith(section + ".")]
    return f"Known here: {', '.join(fields)}" if fields else f"Sections: {', '.join(Settings.model_fields)}"


def rows(section: type[BaseModel] = Settings, prefix: str = "") -> list[tuple[str, str, str, str]]:
    """(dotted name, type, default, meaning) of every setting, for the table, the forms and did-you-mean."""
    table = []
    for field_name, field in section.model_fields.items():
        name = prefix + (field.alias or field_name)
        inner = next((t for t in _types(field.annotation) if isinstance(t, type) and issubclass(t, BaseModel)), None)
        if inner is not None:
            mark = "[]." if "tuple" in str(field.annotation) else "."
            table += rows(inner, name + mark)
            continue
        default = "" if field.is_required() or field.default is None else _plain(field.default)
        table.append((name, _type_name(field), default, field.description or ""))
    return table


def _types(annotation) -> list:
    parts = getattr(annotation, "__args__", None)
    return [annotation] if not parts else [t for part in parts for t in _types(part)]


def _plain(value) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return repr(value) if isinstance(value, str) and not value.isidentifier() else f"{value}"


def _type_name(field) -> str:
    text = str(field.annotation).replace("typing.", "").replace("pathlib.", "").replace(" | None", "")
    text = re.sub(r"<class '([\w.]+)'>", lambda match: match[1].rpartition(".")[2], text)
    text = re.sub(r"Literal\[([^\]]*)\]", lambda match: " / ".join(p.strip(" '") for p in match[1].split(",")), text)
    return text.replace("tuple[str, ...]", "list").replace("Path", "file")


def dump(settings: Settings) -> dict:
    """A plain mapping from which `load` gives the same settings; paths absolute, for spec.yaml."""
    content = settings.model_dump(by_alias=True, mode="json")
    for section, name in (("data", s) for s in (*SOURCES, "terms", "test")):
        if content[section][name]:
            content[section][name] = str(Path(content[section][name]).absolute())
    if content["model"]["adapter"]:
        content["model"]["adapter"] = str(Path(content["model"]["adapter"]).absolute())
    return content


def differences(settings: Settings, other: Settings) -> list[tuple[str, Any, Any]]:
    """(name, value, other value) of every setting that differs."""
    left, right = dict(_leaves(dump(settings))), dict(_leaves(dump(other)))
    return [
        (name, left.get(name), right.get(name)) for name in sorted(left | right) if left.get(name) != right.get(name)
    ]


def table() -> str:
    """The settings as a Markdown table: docs/settings.md."""
    lines = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for name, kind, default, meaning in rows():
        cells = (f"`{name}`", kind, default and f"`{default}`", meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", "\\n") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print("# Settings\n\nGenerated by `python -m engine.settings`; a test keeps it true.\n")
    print(table(), end="")
