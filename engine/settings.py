"""Every setting, declared once: the source for YAML files, overrides, forms, the settings table and spec.yaml."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from engine.evaluation.table import METRICS

SOURCES = ("papers", "videos", "pairs")  # what a phase may mix; the names of the files in section `data`


class ConfigError(Exception):
    """A mistake the user can mend. Each line names where, what and the remedy; no traceback is shown for it."""

    def __init__(self, *lines: str):
        super().__init__("\n".join(lines))
        self.lines = lines


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its class name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
    dtype: Literal["float32", "bfloat16", "float64"] = Field(
        "float32", description="type of the frozen base weights; float64 for exact comparisons"
    )
    quantize: Literal["nf4", "int8"] | None = Field(
        None, description="frozen linear layers in 4 or 8 bits; needs bitsandbytes"
    )
    liger: bool = Field(
        False,
        description="Liger's kernels for norms, rotary positions and gated layers; needs a GPU and liger-kernel",
    )
    stream_layers: int = Field(
        0,
        ge=0,
        description="decoder layers whose frozen weights wait in host memory and visit the GPU when it is their turn; "
        "needs train.gradient_checkpointing",
    )
    build: Build | None = Field(None, description="train a small base here first")

    @model_validator(mode="after")
    def one_way_to_save(self):
        if self.quantize and self.stream_layers:
            raise ValueError(
                "quantize and stream_layers exclude each other: a quantised base needs no streaming. Set one of them"
            )
        if self.quantize and self.dtype == "float64":
            raise ValueError("quantize computes in float32 or bfloat16: set dtype=bfloat16")
        if self.quantize and self.build:
            raise ValueError("quantize is for a base that is loaded: a base built here is small, and stays as it is")
        return self


class Lora(Section):
    rank: int = Field(32, ge=1, description="rank r of the update scale * B * A")
    alpha: float = Field(64, gt=0, description="scale = alpha / rank")
    dropout: float = Field(0.1, ge=0, lt=1, description="on the input of A, in training only")
    dropout_mask: Literal["sequence", "token"] = Field(
        "sequence",
        description="which features are dropped: the same in a whole sequence (nearly free), or drawn anew at each token",
    )
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="layers that get an adapter",
    )


class Data(Section):
    papers: Path | None = Field(None, description="JSONL or HDF5 with records of modality paper")
    videos: Path | None = Field(None, description="JSONL or HDF5 with records of modality video")
    pairs: Path | None = Field(None, description="JSONL or HDF5 with both sides of each pair, joined by pair_id")
    documents: Path | None = Field(
        None, description="plain text without summaries (modality document): what the base can read and must not lose"
    )
    terms: Path | None = Field(None, description="lexicon, one term a line; without it the term loss is left out")
    test: Path | None = Field(None, description="JSONL or HDF5 to evaluate on; empty: test_share of all files")
    test_share: float = Field(0.1, ge=0, lt=0.5, description="share of groups held out for evaluation if test is empty")
    fisher_share: float = Field(0.05, ge=0, lt=0.5, description="share of groups held out for the Fisher information")
    development_share: float = Field(
        0.0, ge=0, lt=0.5, description="share of groups held out to choose by: evaluate.every_steps, average.weights"
    )
    max_length: int = Field(
        1024, ge=16, description="tokens of prompt and summary; of a longer source some is left out"
    )
    truncate: Literal["head", "tail", "head_tail"] = Field(
        "head_tail", description="what is kept of a source that is too long: its beginning, its end, or half of each"
    )
    max_summary_length: int = Field(512, ge=4, description="tokens; a longer summary is refused, never cut")
    prompt: str = Field(
        "{instruction}\n\n{source}\n\nSummary:",
        description="text around {source}; {instruction} is the record's own, or `Summarize the following {modality}.`; "
        "{modality} is filled in",
    )
    chat_template: Literal["auto", "never"] = Field("auto", description="auto: use the tokenizer's template if any")
    token_cache_gib: float = Field(
        20.0,
        ge=0,
        description="GiB on disk for records in tokens, kept for later jobs; beyond it those used longest ago go; 0: nothing is kept",
    )
    augment: bool = Field(
        False,
        description="from the second pass on, training sees sources in other wordings (never values, never summaries)",
    )

    @model_validator(mode="after")
    def prompt_holds_source(self):
        if self.prompt.count("{source}") != 1 or self.prompt.count("{instruction}") > 1:
            raise ValueError("prompt must contain {source} exactly once, and {instruction} at most once")
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
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give either epochs or steps, not both")
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


class CrossClr(Section):
    """The contrastive term on its pairs. Source: CrossCLR (arXiv 2109.14910); METHODS, section 5."""

    temperature: float = Field(0.03, gt=0, description="tau of exp(cosine / tau)")
    intra_weight: float = Field(0.8, ge=0, description="weight of negatives from the anchor's own side")
    prune_above: float = Field(
        0.9, gt=0, description="connectivity (1: the most connected) above which a sample is no negative; above 1: none"
    )
    weight_temperature: float = Field(1.0, gt=0, description="kappa of the anchors' weights exp(connectivity / kappa)")
    queue: int = Field(256, ge=0, description="pairs of earlier steps that serve as negatives")
    pairs: Literal["cross_modal", "document_summary"] = Field(
        "cross_modal", description="a paper and its talk, or a document and its own summary where there are no pairs"
    )


class Losses(Section):
    cross_entropy: float = Field(1.0, ge=0, description="nats per summary token")
    contrastive: float = Field(
        0.3, ge=0, description="CrossCLR on pairs, in nats per anchor; absent where none is drawn"
    )
    diversity: float = Field(0.2, ge=0, description="1 - entropy of a micro-batch's mean prediction / log V")
    term: float = Field(0.4, ge=0, description="cross-entropy of the tokens of lexicon terms (data.terms), once more")
    drift: float = Field(0.0, ge=0, description="how far the expected embedding is from the reference's, as a hinge")
    floor: float = Field(
        0.0, ge=0, description="entropy of a token below that of the model before the phase, in nats (one more forward)"
    )
    drift_target: float = Field(0.75, gt=0, le=1, description="cosine above which drift is 0")
    crossclr: CrossClr = CrossClr()


class Ewc(Section):
    lambda_: float = Field(0.0, ge=0, alias="lambda", description="weight of the penalty; has no meaning without unit")
    unit: Literal["per_token", "token_mean_sequence"] | None = Field(
        None, description="what the Fisher behind lambda is: per token, or token-mean gradients of single sequences"
    )
    space: Literal["product", "factor"] = Field(
        "product", description="penalize the update B * A (rank-1 Fisher), or the entries of A and B"
    )
    importance: Literal["fisher", "uniform"] = Field(
        "fisher",
        description="uniform: every entry counts 1, an L2 penalty on the change (of the update, in product space)",
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
    base_texts: Literal["answers", "references"] = Field(
        "answers", description="what the base is compared on: its own answers, or the references if it cannot write yet"
    )
    documents: float = Field(
        0.3, ge=0, description="weight of KL(base || model) at every token of data.documents, nats per token"
    )
    documents_share: float = Field(
        0.1, ge=0, lt=1, description="tokens of these documents, as a share of a step's supervised tokens"
    )
    new: float = Field(
        0.0,
        ge=0,
        description="weight of KL(model before the phase || model) on new records (learning without forgetting)",
    )


class Train(Section):
    seed: int = Field(0, ge=0, description="everything random follows from it and the step")
    learning_rate: float = Field(1e-4, gt=0, description="peak rate of A")
    loraplus_lr_ratio: float = Field(2.0, gt=0, description="rate of B = this times the rate of A")
    auto: bool = Field(
        False,
        description="choose rank and alpha, epochs, batch, max_length and warm-up by the number of training records; for "
        "one phase, which needs no length then. What you give yourself stays, and is told",
    )
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="share of a phase's steps; then a cosine to 0")
    warmup_steps: int | None = Field(
        None, ge=0, description="warm-up in optimizer steps; if given, warmup_ratio is not used"
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW, on A and B")
    max_grad_norm: float = Field(1.0, gt=0, description="clip, after accumulation")
    per_device_train_batch_size: int = Field(3, ge=1, description="records in a micro-batch")
    micro_batch_tokens: int | None = Field(
        None,
        ge=16,
        description="tokens of a micro-batch with its padding, at most; fewer rows then, the same step. Empty: rows alone count",
    )
    gradient_accumulation_steps: int = Field(6, ge=1, description="micro-batches in a step")
    mixed_precision: Literal["none", "bf16"] = Field("none", description="autocast in training")
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, more time")
    checkpoint_offload: bool = Field(
        False, description="gradient_checkpointing keeps its states in host memory: less memory yet, more time"
    )
    logging_steps: int = Field(1, ge=1, description="steps between two reports")
    save_steps: int = Field(50, ge=1, description="steps between two checkpoints")
    save_total_limit: int = Field(2, ge=1, description="checkpoints kept inside a phase, besides final")
    prefetch: int = Field(
        1, ge=0, description="steps whose micro-batches a thread makes while an earlier step trains; 0: none"
    )
    compile: bool = Field(
        False,
        description="torch.compile of the decoder layers in training; the first steps take minutes. Needs a compiler",
    )
    threads: int = Field(0, ge=0, description="CPU threads of torch; 0: one per core")
    gradient_norms_steps: int = Field(
        100, ge=0, description="steps between two measurements of each loss's own gradient norm; 0: never"
    )
    early_stopping_patience: int | None = Field(
        None,
        ge=1,
        description="evaluations without improvement (evaluate.every_steps) after which a phase ends at its best",
    )
    resume_from: Path | None = Field(
        None, description="folder step-N of an earlier training of the same phase, to go on from exactly"
    )
    spike_factor: float = Field(
        4.0, gt=1, description="a total loss above this times the median of the last 50 steps is a spike: a warning"
    )
    spike_patience: int = Field(5, ge=1, description="spikes in a row after which the phase stops")
    report_to: tuple[
        Literal["tensorboard", "wandb", "mlflow", "trackio", "swanlab", "comet_ml", "aim", "clearml", "dvclive"], ...
    ] = Field(
        (), description="trackers of accelerate that also get the losses; none by default, nothing leaves the box"
    )


class Gate(Section):
    metric: str = Field("rougeL", description="what the margins count: rougeL, bertscore_f1, nll (nats), ...")
    papers: float | None = Field(None, le=0, description="the change that is still accepted, in points or nats (-0.5)")
    videos: float | None = Field(None, le=0, description="the change that is still accepted, in points or nats (-1.0)")
    against: Literal["base", "previous"] = Field(
        "base", description="what a phase is held to: the base, or the row above"
    )
    stop: bool = Field(True, description="a phase that failed stops the jobs after it; retrying those lets them go on")

    @field_validator("metric")
    @classmethod
    def has_a_direction(cls, name: str) -> str:
        return _metric(name, [known for known, metric in METRICS.items() if metric.better])


class Evaluate(Section):
    metric: str = Field("rougeL", description="what tables show first: rougeL, bertscore_f1, nll, ...")
    batch_size: int = Field(32, ge=1, description="documents generated together, at most")
    batch_tokens: int = Field(32768, ge=0, description="padded tokens of a batch, room to write included; 0: no limit")
    samples: int = Field(0, ge=0, description="documents per modality; 0: all")
    every_steps: int = Field(
        0, ge=0, description="steps between two evaluations on the development documents inside a phase; 0: none"
    )
    bertscore_model: str = Field(
        "bundled", description="encoder: bundled (all-MiniLM-L6-v2), a folder, a name on the Hub, or none"
    )
    modality_gap: bool = Field(True, description="a diagnostic: how far apart the model holds papers and videos")
    gate: Gate | None = Field(None, description="declared margins of forgetting")

    @field_validator("metric")
    @classmethod
    def known(cls, name: str) -> str:
        return _metric(name, list(METRICS))

    @model_validator(mode="after")
    def gate_is_measured(self):
        if self.gate and self.gate.metric.startswith("bertscore") and self.bertscore_model == "none":
            raise ValueError(f"gate.metric {self.gate.metric} needs an encoder: set bertscore_model, or another metric")
        return self


def _metric(name: str, known: list[str]) -> str:
    if name not in known:
        raise ValueError(f"unknown metric. Use one of {', '.join(known)}")
    return name


class Average(Section):
    """At the end of a phase: (1 - w) * update before it + w * update after it, w chosen on the development documents."""

    weights: tuple[float, ...] = Field(
        (), description="weights w to try, 1 among them (0.5, 0.75, 1.0); empty: no averaging"
    )
    margin: float = Field(
        0.5,
        ge=0,
        description="points (ROUGE) or hundredths of a nat by which an older column may fall below the phase before",
    )

    @model_validator(mode="after")
    def weights_in_range(self):
        if self.weights and (1.0 not in self.weights or not all(0 <= weight <= 1 for weight in self.weights)):
            raise ValueError(
                "weights lie between 0 and 1 and 1.0 (no averaging) is among them, such as [0.5, 0.75, 1.0]"
            )
        return self


class Generate(Section):
    max_new_tokens: int = Field(256, ge=1, description="longest summary")
    num_beams: int = Field(1, ge=1, description="beams of beam search; 1: greedy")
    temperature: float = Field(0.0, ge=0, description="of seeded sampling; 0: no sampling")
    top_p: float = Field(1.0, gt=0, le=1, description="sampling: the smallest set of tokens with this probability")
    seed: int = Field(0, ge=0, description="sampling: the noise follows from it, the document and the position")

    @model_validator(mode="after")
    def one_way(self):
        if self.temperature and self.num_beams > 1:
            raise ValueError("num_beams and temperature exclude each other: set num_beams=1 or temperature=0")
        return self


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
    average: Average = Average()
    generate: Generate = Generate()

    @model_validator(mode="after")
    def sources_given(self):
        open_ended = [phase.name for phase in self.curriculum.phases if phase.epochs is None and phase.steps is None]
        if open_ended and not self.train.auto:
            raise ValueError(f"curriculum.phases: {', '.join(open_ended)}: give either epochs or steps, one of them")
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
        for name, wanted in (
            ("evaluate.every_steps", self.evaluate.every_steps),
            ("average.weights", self.average.weights),
        ):
            if wanted and not self.data.development_share:
                raise ValueError(f"{name} needs development documents: set data.development_share=0.05, say")
        if self.train.early_stopping_patience and not self.evaluate.every_steps:
            raise ValueError("train.early_stopping_patience counts evaluations: set evaluate.every_steps too")
        if (self.train.early_stopping_patience or self.average.weights) and not METRICS[self.evaluate.metric].better:
            raise ValueError(
                f"evaluate.metric {self.evaluate.metric} describes and does not judge: choose by another metric"
            )
        pairs = self.losses.crossclr
        drawn = pairs.pairs == "document_summary" or any(p.mixture.get("pairs") for p in self.selected_phases())
        if self.losses.contrastive and drawn and not pairs.queue and self.train.per_device_train_batch_size == 1:
            raise ValueError(
                "losses.contrastive has no negatives with per_device_train_batch_size 1 and losses.crossclr.queue 0, so "
                "its gradient would be exactly 0. Set losses.crossclr.queue=256, a larger micro-batch, or losses.contrastive=0"
            )
        if self.evaluate.gate and self.evaluate.gate.metric.startswith("term_") and not self.data.terms:
            raise ValueError("evaluate.gate.metric counts terms and needs a lexicon: give data.terms=FILE")
        if self.distil.base and self.selected_phases() and not self.data.videos:
            raise ValueError("distil.base answers video prompts: give data.videos=FILE, or set distil.base=0")
        for name, wanted in (
            ("train.checkpoint_offload", self.train.checkpoint_offload),
            ("model.stream_layers", self.model.stream_layers),
        ):
            if wanted and not self.train.gradient_checkpointing:
                raise ValueError(f"{name} works on checkpointed layers: set train.gradient_checkpointing=true too")
        for name, wanted in (
            ("quantize", self.model.quantize),
            ("stream_layers", self.model.stream_layers),
        ):
            if self.train.compile and wanted:
                raise ValueError(
                    f"train.compile and model.{name} exclude each other: torch.compile is for layers that stay on the "
                    f"device in 16 or 32 bits. Set train.compile=false, or leave model.{name} out"
                )
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
