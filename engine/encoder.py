"""The bundled sentence encoder: texts to unit vectors."""

from collections.abc import Callable, Sequence

import torch
from transformers import AutoModel, AutoTokenizer

from engine import bundled
from engine.settings import ConfigError

WINDOW = 256  # tokens; what the model was trained on
WINDOWS = 8  # of a text: enough for its subject
BATCH = 16


@torch.inference_mode()
def encode(texts: Sequence[str], tell: Callable[[int, int], None] = lambda done, of: None) -> torch.Tensor:
    """(n, 384) float32 unit vectors: the mean over a text's first windows of the mean over its tokens.

    Raises ConfigError if the encoder is not installed.
    """
    place = bundled.folder()
    if place is None:
        raise ConfigError(f"the sentence encoder is missing: {bundled.INSTALL}")
    tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
    model = AutoModel.from_pretrained(place, local_files_only=True).eval()
    vectors = []
    for number, text in enumerate(texts, 1):
        tokens = tokenizer(
            text[: 16 * WINDOW * WINDOWS], max_length=WINDOW, truncation=True, return_overflowing_tokens=True, stride=0,
            padding=True, return_tensors="pt",
        )  # fmt: skip
        ids, mask = tokens["input_ids"][:WINDOWS], tokens["attention_mask"][:WINDOWS]
        states = torch.cat(
            [model(ids[n : n + BATCH], mask[n : n + BATCH]).last_hidden_state for n in range(0, len(ids), BATCH)]
        )
        means = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        vectors.append(torch.nn.functional.normalize(torch.nn.functional.normalize(means).mean(0), dim=0))
        tell(number, len(texts))
    return torch.stack(vectors)
