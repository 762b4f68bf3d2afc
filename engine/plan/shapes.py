"""The shape of a base model without loading it: a table of common ones, config.json of others, or model.build. Light."""

import json
from dataclasses import dataclass
from pathlib import Path

from engine.settings import Build, ConfigError, Model, first_line


@dataclass(frozen=True)
class Shape:
    """What decides memory and time of a decoder with gated feed-forward layers (Llama, Mistral, Qwen)."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    head: int  # size of one attention head
    vocabulary: int
    tied: bool = False  # the output layer is the embedding

    @property
    def queries(self) -> int:
        return self.heads * self.head

    @property
    def keys(self) -> int:
        return self.key_value_heads * self.head

    def linear(self) -> dict[str, tuple[int, int]]:
        """{module of a layer: (inputs, outputs)}."""
        return {
            "q_proj": (self.hidden, self.queries),
            "k_proj": (self.hidden, self.keys),
            "v_proj": (self.hidden, self.keys),
            "o_proj": (self.queries, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def layer_weights(self) -> int:
        """Weights of the linear modules of one layer."""
        return sum(inside * outside for inside, outside in self.linear().values())

    @property
    def other_weights(self) -> int:
        """Embedding, output layer and norms."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + (2 * self.layers + 1) * self.hidden

    @property
    def weights(self) -> int:
        return self.layers * self.layer_weights + self.other_weights


# hidden, intermediate, layers, heads, key and value heads, size of a head, vocabulary, tied. Source: their config.json.
KNOWN = {
    "mistral-7b": Shape(4096, 14336, 32, 32, 8, 128, 32000),
    "mistral-7b-v0.3": Shape(4096, 14336, 32, 32, 8, 128, 32768),
    "mistral-7b-instruct-v0.3": Shape(4096, 14336, 32, 32, 8, 128, 32768),
    "mistral-nemo": Shape(5120, 14336, 40, 32, 8, 128, 131072),
    "llama-2-7b": Shape(4096, 11008, 32, 32, 32, 128, 32000),
    "llama-2-13b": Shape(5120, 13824, 40, 40, 40, 128, 32000),
    "llama-3-8b": Shape(4096, 14336, 32, 32, 8, 128, 128256),
    "llama-3.1-8b": Shape(4096, 14336, 32, 32, 8, 128, 128256),
    "llama-3.2-1b": Shape(2048, 8192, 16, 32, 8, 64, 128256, True),
    "llama-3.2-3b": Shape(3072, 8192, 28, 24, 8, 128, 128256, True),
    "tinyllama-1.1b": Shape(2048, 5632, 22, 32, 4, 64, 32000),
    "qwen2.5-0.5b": Shape(896, 4864, 24, 14, 2, 64, 151936, True),
    "qwen2.5-1.5b": Shape(1536, 8960, 28, 12, 2, 128, 151936, True),
    "qwen2.5-3b": Shape(2048, 11008, 36, 16, 2, 128, 151936, True),
    "qwen2.5-7b": Shape(3584, 18944, 28, 28, 4, 128, 152064),
    "qwen2.5-14b": Shape(5120, 13824, 48, 40, 8, 128, 152064),
    "smollm2-135m": Shape(576, 1536, 30, 9, 3, 64, 49152, True),
    "smollm2-360m": Shape(960, 2560, 32, 15, 5, 64, 49152, True),
    "smollm2-1.7b": Shape(2048, 8192, 24, 32, 32, 64, 49152, True),
}


def of_model(model: Model) -> Shape:
    """The shape of a config's base. Raises ConfigError where only loading it could tell."""
    if model.build and not model.name_or_path:
        return of_build(model.build)
    name = model.name_or_path
    if not name:
        raise ConfigError("model.name_or_path: missing. Give a Hugging Face name, a folder, or a model.build section")
    folder = Path(name).expanduser()
    path = folder / "config.json" if folder.is_dir() else _cached(name, model.revision)
    if path is not None:
        return of_file(path)
    shape = known(name)
    if shape is None:
        raise ConfigError(
            f"model.name_or_path: the shape of {name} is not known here and its config.json is not in the Hub's cache. "
            f"Fetch that one file (hf download {name} config.json), or give a folder that holds it"
        )
    return shape


def known(name: str) -> Shape | None:
    """The shape of the longest name of the table that a model's name, the owner aside, begins with."""
    bare = name.rpartition("/")[2].lower().removeprefix("meta-")
    return next((KNOWN[key] for key in sorted(KNOWN, key=len, reverse=True) if bare.startswith(key)), None)


def of_build(build: Build) -> Shape:
    """A base built here: see engine/base.py, new_model."""
    return Shape(
        build.hidden_size, 3 * build.hidden_size, build.num_hidden_layers, build.num_attention_heads,
        build.num_key_value_heads, build.hidden_size // build.num_attention_heads, build.vocab_size, True,
    )  # fmt: skip


def of_file(path: Path) -> Shape:
    """The shape a config.json tells. Raises ConfigError if it is no decoder of the known kind."""
    try:
        told = json.loads(path.read_bytes())
        told = told.get("text_config") or told
        heads = told["num_attention_heads"]
        return Shape(
            told["hidden_size"], told["intermediate_size"], told["num_hidden_layers"], heads,
            told.get("num_key_value_heads") or heads, told.get("head_dim") or told["hidden_size"] // heads,
            told["vocab_size"], bool(told.get("tie_word_embeddings", False)),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path}: tells no shape that memory could be predicted from ({first_line(error)}). Only decoders with gated "
            "feed-forward layers (Llama, Mistral, Qwen and their like) can be planned"
        ) from None


def _cached(name: str, revision: str | None) -> Path | None:
    """config.json of a model in the Hub's cache, without any request; None where it is not."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError as error:
        raise ConfigError(f"model.name_or_path: {name}: neither a folder nor a name on the Hub ({error})") from None
    return Path(found) if isinstance(found, str) else None
