"""BERTScore by bert-score. The encoder is loaded once, on first use; empty outputs are 0 and never reach it.

Source: Zhang et al. 2020. Raw values, without idf and without rescaling. Never compare across encoders.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from engine import bundled
from engine.settings import ConfigError, first_line

BUNDLED, OFF = "bundled", "none"
BATCH = 64  # texts encoded together: bert-score's own default, so that calling it directly gives the same bits
LONGEST = 512  # tokens, for tokenizers that do not say; longer texts are cut


class Judge(NamedTuple):
    """The encoder of a BERTScore: where it is loaded from, which layer is taken, and how a report names it."""

    model: str
    layers: int
    name: str


def judge(wanted: str) -> Judge | None:
    """The encoder that a setting evaluate.bertscore_model means; None for `none`. Raises ConfigError."""
    if wanted == OFF:
        return None
    if wanted == BUNDLED:
        place = bundled.folder()
        if place is None:
            raise ConfigError(
                f"evaluate.bertscore_model: the bundled encoder is not installed: {bundled.INSTALL}, or give "
                "a folder or a name on the Hub, or none"
            )
        return Judge(str(place), bundled.LAYERS, f"{bundled.NAME}, layer {bundled.LAYERS}")
    layers = _layers(wanted)
    return Judge(wanted, layers, f"{wanted}, layer {layers}")


def _layers(wanted: str) -> int:
    """The layer bert-score recommends for a model of this name; else the last."""
    from bert_score.utils import model2layers

    folder = Path(wanted).expanduser()
    known = {name.rpartition("/")[2]: layers for name, layers in model2layers.items()} | model2layers
    if (layers := known.get(wanted) or known.get(folder.name)) is not None:
        return layers
    try:
        if folder.is_dir():
            return json.loads((folder / "config.json").read_bytes())["num_hidden_layers"]
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(wanted).num_hidden_layers
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(_not_loaded(wanted, error)) from error


def _not_loaded(model: str, error: Exception) -> str:
    return (
        f"evaluate.bertscore_model: {model} could not be loaded ({first_line(error)}). Give a folder with config.json, a "
        f"name on the Hub that this machine can reach, {BUNDLED}, or {OFF}"
    )


@lru_cache(maxsize=1)
def _scorer(model: str, layers: int):
    from bert_score import BERTScorer  # pulls in pandas and matplotlib: 3 s

    try:
        scorer = BERTScorer(model_type=model, num_layers=layers, batch_size=BATCH)
    except (OSError, ValueError) as error:
        raise ConfigError(_not_loaded(model, error)) from error
    if scorer._tokenizer.model_max_length > 10**6:  # "no limit", which the tokenizer itself then cannot digest
        scorer._tokenizer.model_max_length = LONGEST
    return scorer


def score(judge: Judge, references: Sequence[str], outputs: Sequence[str]) -> list[tuple[float, float, float]]:
    """(precision, recall, F1) of each document, 0..1; 0 where a text is empty."""
    full = [k for k, pair in enumerate(zip(references, outputs, strict=True)) if all(text.strip() for text in pair)]
    found = [(0.0, 0.0, 0.0)] * len(outputs)
    if full:
        parts = _scorer(judge.model, judge.layers).score([outputs[k] for k in full], [references[k] for k in full])
        for k, values in zip(full, zip(*(part.tolist() for part in parts), strict=True), strict=True):
            found[k] = values
    return found


def cut(judge: Judge, texts: Sequence[str]) -> int:
    """How many texts are longer than the encoder reads."""
    tokenizer = _scorer(judge.model, judge.layers)._tokenizer
    lengths = tokenizer(list(texts), add_special_tokens=True)["input_ids"] if texts else []
    return sum(len(ids) > tokenizer.model_max_length for ids in lengths)
