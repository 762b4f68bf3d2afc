"""The stored scores of a test set's documents, and paired differences of two evaluations. Light."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.corpus.split import COLUMNS
from engine.evaluation.table import METRICS
from engine.settings import ConfigError

Documents = dict[tuple[str, str], dict]  # {(column, document id): row of the scores file}


def documents(path: Path | str) -> Documents:
    """The rows of a scores file. Raises ConfigError if it is gone."""
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: the scores of the documents are gone ({error.strerror}). Evaluate again") from None
    rows = [json.loads(line) for line in lines]
    return {(COLUMNS.get(row["modality"], row["modality"]), row["id"]): row for row in rows}


def differences(old: Documents, new: Documents, column: str, metric: str) -> tuple[list[float], list[str]]:
    """(new minus old of each document, the group of each), scaled so that their mean is the difference of two cells.

    Documents for which the metric is undefined on a side are left out. Raises ConfigError if none is left.
    """
    shared = [key for key in new if key in old and key[0] == column and _both(old[key], new[key], metric)]
    if not shared:
        raise ConfigError(
            f"{column}: no document has {METRICS[metric].label} in both evaluations. Evaluate both on the same test set, "
            "with the same metrics"
        )
    scale = _scales([new[key] for key in shared], metric)
    values = [
        factor * (new[key]["scores"][metric] - old[key]["scores"][metric])
        for key, factor in zip(shared, scale, strict=True)
    ]
    return values, [new[key].get("group") or key[1] for key in shared]


def _both(old: dict, new: dict, metric: str) -> bool:
    return old["scores"].get(metric) is not None and new["scores"].get(metric) is not None


def _scales(rows: Sequence[dict], metric: str) -> list[float]:
    """A likelihood is a mean over tokens, so a long reference counts more; everything else is a mean over documents."""
    if metric != "nll":
        return [METRICS[metric].scale] * len(rows)
    tokens = [row["summary_tokens"] for row in rows]
    return [count * len(rows) / sum(tokens) for count in tokens]


def compared(old: Documents, new: Documents, column: str, metric: str, factor: int = 1) -> Any:
    """statistics.Difference of factor x (new - old), with the group as unit where records name one. Imports scipy."""
    from engine.evaluation.statistics import by_group, paired

    values, groups = differences(old, new, column, metric)
    return paired(by_group([factor * value for value in values], groups))
