"""Peak memory of a job by part and stage, by arithmetic: what training, the Fisher and generation hold at once. Light.

Formulas were checked tensor by tensor against what autograd keeps (tests/test_plan.py) and as a whole against the peak
of fresh processes (tests/plan_error.py). Bytes throughout.
"""

from dataclasses import dataclass

from engine.plan.shapes import Shape
from engine.settings import Settings

Parts = dict[str, float]  # {part: bytes}
GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2, "float64": 8}
NF4 = 0.5 + 1 / 64 + 4 / 16384  # a weight: 4 bits, one byte for 64 of them (scales), 4 bytes for 256 scales
SHARE_LOST = {"cuda": 0.04, "cpu": 0.5}  # of what comes and goes: gaps, and what glibc's heap keeps of what was freed
CUDA_CONTEXT = 0.55 * 2**30  # driver and kernels, outside torch's own counters
PROCESS = 0.42 * 2**30  # resident after the imports, without a GPU
CODE = 0.5 * 2**20  # machine code that oneDNN writes for one shape of a product
CODES = 2048  # whose code is kept (engine/products.py)
PRODUCTS = {4: 24, 2: 37}  # with frozen weights and factors at one length, by bytes of an activation
PRODUCTS_OF_A_BLOCK = 6  # of attention at one length, forward and backward
UNLIKE = 1.5  # times as many lengths as rows have, where old rows join and are laid one after the other
PADDED, PLACES = 16, 32  # tokens of a row, and its places, come in multiples of them (engine/batches.py)
FISHER_TOKENS = 1024  # of a batch on a CPU (engine/ewc.py)
QUERIES = 320  # of a block of attention on a CPU, at most (engine/attention.py)
KEPT = 2**19  # bytes of a head's weights up to which they are kept (the same)
MOST_PLACES = 0.75  # of a row, at which the last layer is asked for some places alone (engine/decoder.py)
PRESENT_LAYERS = 2  # streamed layers on the device at once
PROJECTION = 256  # rows of the contrastive projection, at most


@dataclass(frozen=True)
class Load:
    """The largest micro-batch: rows padded to `length` tokens, `labels` scored tokens among them, `told` of those with a
    teacher's distribution over the vocabulary."""

    rows: int
    length: int
    labels: int
    told: int = 0
    longest_labels: int = 0  # of one document, for the Fisher
    lengths: float = 1  # different ones that micro-batches of the job have
    mean: float = 0  # tokens of a row
    places: int | None = None  # scored tokens of the row with most of them; None: all

    @property
    def tokens(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True)
class Place:
    """Where a job would run, and what it finds there: adapters of earlier phases beside the student's, anchors of EWC."""

    device: str = "cuda"  # or cpu
    teachers: int = 0
    anchors: int = 0


def place(settings: Settings, device: str, phase: int) -> Place:
    """What phase number `phase` (0: the first) finds."""
    held = bool(settings.distil.phase and settings.replay.batch_share) or settings.distil.new or settings.losses.floor
    anchors = phase if settings.ewc.anchors == "separate" else min(1, phase)
    return Place(device, phase if held else 0, anchors if settings.ewc.lambda_ else 0)


def stages(settings: Settings, shape: Shape, load: Load, place: Place) -> dict[str, Parts]:
    """{stage: {part: bytes}} of a phase: training, measuring (each loss's own gradient), stepping, fisher, generating."""
    fixed = standing(settings, shape, place)
    found = {"training": training(settings, shape, load, place), "stepping": stepping(settings, shape, place)}
    if settings.train.gradient_norms_steps:
        found["measuring"] = measuring(settings, shape, found["training"])
    if settings.ewc.lambda_ and settings.ewc.importance == "fisher":
        found["fisher"] = fisher(settings, shape, load, place)
    found["generating"] = generating(settings, shape, load, place)
    process = {"process": CUDA_CONTEXT}
    if place.device == "cpu":
        process = {"machine code": machine_code(settings, load), "process": PROCESS}
    lost = SHARE_LOST[place.device]
    return {
        stage: fixed | coming | {"allocator": lost * sum(coming.values())} | process for stage, coming in found.items()
    }


def machine_code(settings: Settings, load: Load) -> float:
    """Bytes that oneDNN writes on a CPU until it has met every length; they lie among the arrays of the heap."""
    products = PRODUCTS.get(computed_bytes(settings))
    if products is None:  # of float64, which MKL computes
        return 0.0
    lengths = load.lengths * (UNLIKE if load.told else 1)
    blocks = load.lengths * -(-load.mean // QUERIES)
    return CODE * min(CODES, products * lengths + PRODUCTS_OF_A_BLOCK * blocks)


def peak(found: dict[str, Parts]) -> tuple[str, Parts]:
    """(the stage that needs most, its parts)."""
    return max(found.items(), key=lambda item: sum(item[1].values()))


# -- what stays ---------------------------------------------------------------------------------------------------


def standing(settings: Settings, shape: Shape, place: Place) -> Parts:
    """What is there in every stage: base, adapters, gradients, optimizer, anchors."""
    learnt = adapter_weights(settings, shape) * adapter_bytes(settings)
    projection = min(PROJECTION, shape.hidden) * shape.hidden * 4 if settings.losses.contrastive else 0
    return {
        "weights": base_weights(settings, shape),
        "adapters": learnt + projection,
        "gradients": learnt + projection,
        "optimizer": 2 * (learnt + projection),
        "distillation": place.teachers * learnt,
        "ewc": place.anchors * _anchor(settings, shape),
    }


def base_weights(settings: Settings, shape: Shape) -> float:
    """The frozen base on the device: what is quantised are the linear modules of the layers."""
    model = settings.model
    resident = shape.layers
    if model.stream_layers:
        resident -= max(0, min(model.stream_layers, shape.layers) - PRESENT_LAYERS)
    weights = resident * layer_bytes(settings, shape) + shape.other_weights * BYTES[model.dtype]
    if settings.train.mixed_precision == "bf16" and model.dtype != "bfloat16":  # the output layer too is narrowed
        head = shape.vocabulary * shape.hidden
        weights += 2 * head if shape.tied else (2 - BYTES[model.dtype]) * head
    return weights


def layer_bytes(settings: Settings, shape: Shape) -> float:
    """Of the frozen weights of one decoder layer."""
    model = settings.model
    linear = 2 if settings.train.mixed_precision == "bf16" else BYTES[model.dtype]  # engine.products.narrow
    outside = [size for _, size in shape.linear().values()]
    return {
        None: shape.layer_weights * linear,
        "nf4": shape.layer_weights * NF4,
        "int8": shape.layer_weights + 4 * sum(outside),
    }[model.quantize]


def adapter_weights(settings: Settings, shape: Shape) -> int:
    """Trainable weights of an adapter: r (in + out) of every adapted module."""
    linear = shape.linear()
    wanted = [linear[name] for name in settings.lora.target_modules if name in linear]
    return shape.layers * settings.lora.rank * sum(inside + outside for inside, outside in wanted)


def adapter_bytes(settings: Settings) -> int:
    """Of an adapter's weight: fp32 on a bf16 base too."""
    return max(4, BYTES[settings.model.dtype])


def _anchor(settings: Settings, shape: Shape) -> float:
    """An anchor's copy of the adapter and its Fisher, fp32."""
    weights = adapter_weights(settings, shape)
    margins = shape.layers * sum(map(sum, shape.linear().values()))
    return 4 * (weights + (weights if settings.ewc.space == "factor" else margins))


# -- what comes and goes ------------------------------------------------------------------------------------------


def computed_bytes(settings: Settings) -> int:
    """Of an activation between two modules."""
    return 2 if settings.train.mixed_precision == "bf16" else BYTES[settings.model.dtype]


def training(settings: Settings, shape: Shape, load: Load, place: Place) -> Parts:
    """Forward and backward of the largest micro-batch: everything kept for the backward pass, then the larger of what
    the losses need over the vocabulary and what the backward pass of one layer adds."""
    layer = load.tokens * kept_by_layer(settings, shape, place) + casts_of_layer(settings, shape)
    layer += load.rows * (masks_of_layer(settings, shape) + weights_of_attention(settings, shape, load.length, place))
    between = load.tokens * shape.hidden * BYTES[settings.model.dtype]
    logits, told = over_vocabulary(settings, shape, load)
    backward = load.tokens * backward_of_layer(settings, shape)
    if settings.train.gradient_checkpointing:
        boundaries = 2 if settings.train.checkpoint_offload and place.device == "cuda" else shape.layers
        held, burst = boundaries * between, layer + backward
    else:
        held, burst = (shape.layers - 1) * layer + _last_layer(settings, shape, load, place, layer), backward
    if place.device == "cuda":  # its allocator gives the vocabulary's room to the layers; glibc's heap hardly does
        burst = max(0.0, burst - logits - told)
    activations = held + 2 * between + burst
    return {"activations": activations, "logits": logits, "teachers' words": told}


def _last_layer(settings: Settings, shape: Shape, load: Load, place: Place, whole: float) -> float:
    """Bytes that the last layer keeps: at the places of scored tokens all that another would keep (`whole`), elsewhere
    what its keys and values need. See engine/decoder.py."""
    places = load.length if load.places is None else load.places + -load.places % PLACES
    everywhere = settings.losses.contrastive and settings.losses.crossclr.pairs == "document_summary"
    if everywhere or places > MOST_PLACES * load.length:
        return whole
    c = computed_bytes(settings)
    first, rest = _kept(settings, shape, place)
    # torch's attention with a mask has keys and values for each query's head
    first += 2 * c * (shape.queries - shape.keys)
    if place.device == "cpu":
        rest += 4 * shape.heads + c * load.length  # a logsumexp, and the mask
        rest += c * shape.queries if pefts_own(settings) else 0  # its result, which our own o_proj shares
    if "q_proj" in settings.lora.target_modules and not pefts_own(settings):
        rest += shape.hidden * c  # what its queries are made of is picked out
    # as are the turns of rotary positions, by an index
    rest += 2 * shape.head * BYTES[settings.model.dtype] + 8
    kept = load.tokens * first + load.rows * places * rest
    return kept + casts_of_layer(settings, shape) + load.rows * masks_of_layer(settings, shape)


def kept_by_layer(settings: Settings, shape: Shape, place: Place) -> float:
    """Bytes a token leaves in one layer for the backward pass; see `_kept`."""
    return sum(_kept(settings, shape, place))


def _kept(settings: Settings, shape: Shape, place: Place) -> tuple[float, float]:
    """(bytes a token leaves in one layer on the way to its keys and values, all others).

    Two norms keep their input and one number; rotated q and k and v for attention (torch's own on a GPU also its result
    and a logsumexp); gate and up, but not their product. An adapted module keeps what A reads and the r numbers A makes of it.
    engine/adapted.py shares the former with the module's neighbours; PEFT's own layers share it only where nothing casts
    or drops it.
    """
    c, adapter, plain = computed_bytes(settings), adapter_bytes(settings), BYTES[settings.model.dtype]
    read = 2 if settings.train.mixed_precision == "bf16" else adapter
    norm = shape.hidden * plain + 4
    result = c * shape.queries
    linear = shape.linear()
    names = [name for name in settings.lora.target_modules if name in linear]
    early = [name for name in names if name in ("k_proj", "v_proj")]
    first = norm + 2 * c * shape.keys + read * settings.lora.rank * len(early)
    rest = norm + c * shape.queries + 2 * shape.intermediate * c + read * settings.lora.rank * (len(names) - len(early))
    if place.device == "cuda":
        rest, result = rest + result + 4 * shape.heads, 0
    if pefts_own(settings) and (settings.lora.dropout or adapter != c or read != adapter):
        entry = read + (1 if place.device == "cuda" else adapter) * bool(settings.lora.dropout)
        entries = {name: entry * linear[name][0] for name in names}
        of_early = sum(entries[name] for name in early)
        return first + of_early, rest + sum(entries.values()) - of_early
    read_by = {"gate_proj": "y", "up_proj": "y", "down_proj": "z"}
    inputs = {read_by[name]: linear[name][0] * c for name in names if name in read_by}
    inputs |= {"result": result} if "o_proj" in names else {}
    return first + (shape.hidden * c if {"q_proj", *early} & {*names} else 0), rest + sum(inputs.values())


def weights_of_attention(settings: Settings, shape: Shape, length: int, place: Place) -> float:
    """Bytes that the attention of one row keeps in a layer, on a CPU where they are few; a block's later keys are left out."""
    c = computed_bytes(settings)
    if place.device != "cpu" or length**2 * c > KEPT:
        return 0.0
    size = -(-length // -(-length // QUERIES))
    size += -size % PADDED
    blocks = [(start, min(start + size, length)) for start in range(0, length, size)]
    return shape.heads * c * sum((end - start) * end for start, end in blocks)


def pefts_own(settings: Settings) -> bool:
    """Whether the adapted layers compute as PEFT's do: on a quantised base, and with a dropout mask for each token."""
    per_token = settings.lora.dropout > 0 and settings.lora.dropout_mask == "token"
    return settings.model.quantize is not None or per_token


def masks_of_layer(settings: Settings, shape: Shape) -> float:
    """Bytes that one sequence's dropout masks take in a layer."""
    if pefts_own(settings) or not settings.lora.dropout:
        return 0.0
    linear = shape.linear()
    return 4.0 * sum(linear[name][0] for name in settings.lora.target_modules if name in linear)


def casts_of_layer(settings: Settings, shape: Shape) -> float:
    """Under autocast PEFT's own layers keep bf16 copies of a layer's factors for the backward pass. The frozen weights
    need none: they are stored in bf16 then."""
    if settings.train.mixed_precision != "bf16" or not pefts_own(settings):
        return 0.0
    return 2 * adapter_weights(settings, shape) / shape.layers


def backward_of_layer(settings: Settings, shape: Shape) -> float:
    """Bytes a token needs while gradients pass through a layer: those of the product, gate and up, and two residuals."""
    return computed_bytes(settings) * (3 * shape.intermediate + 2 * shape.hidden)


def over_vocabulary(settings: Settings, shape: Shape, load: Load) -> tuple[float, float]:
    """(bytes of the student's logits and all that the losses make of them, bytes of the teachers' log-probabilities).

    Logits and their gradient; for diversity and drift a softmax with its gradient, and the gradient of the logits once more
    where it is wider than the model's; for drift the embedding. A teacher's words, the student's at the same tokens
    and their gradient, which is spread over all tokens once more. See engine/vocabulary.py.
    """
    narrow = computed_bytes(settings)
    wide = max(4, narrow)
    row = load.labels * shape.vocabulary
    student = 2 * row * narrow
    if settings.losses.diversity or settings.losses.drift:
        student += 2 * row * wide + (row * wide if narrow < wide else 0)
    if settings.losses.drift and BYTES[settings.model.dtype] < wide:
        student += shape.vocabulary * shape.hidden * wide  # and the embedding is widened whole
    told = load.told * shape.vocabulary
    return student, told * (wide + 2 * narrow) + (row * narrow if told else 0)


def stepping(settings: Settings, shape: Shape, place: Place) -> Parts:
    """The penalty (product space: six fp32 copies of the factors in its graph, for each anchor) and the optimizer's
    own temporaries."""
    learnt = adapter_weights(settings, shape) * adapter_bytes(settings)
    copies = 6 if settings.ewc.space == "product" else 2
    return {"activations": 0.0, "ewc penalty": copies * place.anchors * learnt, "logits": 0.0, "optimizer step": learnt}


def measuring(settings: Settings, shape: Shape, trained: Parts) -> Parts:
    """Every component's gradient is kept beside the others, and one more is being made."""
    losses, distil = settings.losses, settings.distil
    parts = [losses.cross_entropy, losses.contrastive, losses.diversity, losses.term, losses.drift, losses.floor]
    parts += [distil.phase, distil.base, distil.documents, distil.new, settings.ewc.lambda_]
    count = sum(bool(weight) for weight in parts)
    learnt = adapter_weights(settings, shape) * adapter_bytes(settings)
    return trained | {"gradient norms": (count + 1) * learnt}


def fisher(settings: Settings, shape: Shape, load: Load, place: Place) -> Parts:
    """Forward and backward in eval mode, without dropout, and the squared gradient of one module's weights."""
    rows = min(settings.ewc.fisher_batch_size, max(1, settings.ewc.fisher_samples))
    if place.device == "cpu":
        rows = max(1, min(rows, FISHER_TOKENS // load.length))
    quiet = settings.model_copy(update={"lora": settings.lora.model_copy(update={"dropout": 0.0})})
    plain = quiet.model_copy(update={"losses": settings.losses.model_copy(update={"diversity": 0.0, "drift": 0.0})})
    labels = load.longest_labels or load.labels
    one = Load(rows, load.length, rows * labels, places=load.longest_labels or None)
    linear = [inside * outside for inside, outside in shape.linear().values()]
    widest = sum(max(shape.linear().values(), key=sum)) * one.tokens * 4 if computed_bytes(plain) < 4 else 0
    return training(plain, shape, one, place) | {"fisher": 2 * 4 * max(linear) + widest}


def generating(settings: Settings, shape: Shape, load: Load, place: Place) -> Parts:
    """Keys and values of a batch of prompts and what is written, one layer's activations, the last position's logits.

    The base's answers are written before training, with no optimizer yet; gradients and moments then are not there, so
    this counts a little too much.
    """
    limit = settings.evaluate.batch_tokens
    room = settings.generate.max_new_tokens
    length = load.length + room
    rows = settings.evaluate.batch_size
    if limit:
        rows = max(1, min(rows, limit // length))
    c = BYTES[settings.model.dtype]
    cache = rows * length * 2 * shape.keys * shape.layers * c
    prompt = rows * load.length * c * (3 * shape.intermediate + 4 * shape.hidden)
    return {"cache": cache, "activations": prompt, "logits": rows * shape.vocabulary * 4 * 2}
