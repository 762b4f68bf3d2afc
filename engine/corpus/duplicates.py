"""Equal and nearly equal documents of a stream of any length, and where each belongs in a split. Light.

MinHash (Broder 1997) of shingles of five words, 64 permutations; candidates share a band of four (Leskovec, Rajaraman,
Ullman: Mining of Massive Datasets, chapter 3); a candidate counts if the estimated Jaccard similarity is 0.8 or more.
Signatures lie in a file, so memory holds some 60 bytes a record.
"""

import hashlib
import os
import tempfile
from array import array
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np

PERMUTATIONS, ROWS, SHINGLE = 64, 4, 5
SIMILAR = 0.8
CHUNK = 8192
_BLANKS = bytes(byte if chr(byte).isalnum() or byte >= 128 else 32 for byte in range(256))


def key(text: str) -> int:
    """64 bits of a text; 0 stands for none and is never given."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") or 1


class Seen:
    """A set of 64-bit keys in 16 to 32 bytes each: a table with open addressing."""

    def __init__(self) -> None:
        self._slots, self._count = array("Q", bytes(8 * 1024)), 0

    def add(self, number: int) -> bool:
        """True if the key is new."""
        if not self._put(number):
            return False
        self._count += 1
        if 2 * self._count > len(self._slots):
            old, self._slots = self._slots, array("Q", bytes(16 * len(self._slots)))
            for kept in old:
                if kept:
                    self._put(kept)
        return True

    def _put(self, number: int) -> bool:
        slots, mask = self._slots, len(self._slots) - 1
        at = number & mask
        while slots[at]:
            if slots[at] == number:
                return False
            at = (at + 1) & mask
        slots[at] = number
        return True


@lru_cache(maxsize=1)
def _permutations() -> tuple[np.ndarray, np.ndarray]:
    """Odd factors and offsets of the multiply-shift hashes, fixed for ever."""
    numbers = [int.from_bytes(hashlib.sha256(b"minhash %d" % n).digest()[:8], "big") for n in range(2 * PERMUTATIONS)]
    return np.array(numbers[:PERMUTATIONS], np.uint64)[:, None] | np.uint64(1), np.array(
        numbers[PERMUTATIONS:], np.uint64
    )[:, None]


def signature(text: str) -> np.ndarray:
    """(64,) uint32: the smallest hash of the text's shingles under each permutation. Case and punctuation do not count."""
    words = np.array([crc32(word) for word in text.lower().encode().translate(_BLANKS).split()] or [0], np.uint64)
    while len(words) < SHINGLE:
        words = np.append(words, np.uint64(0))
    factors, offsets = _permutations()
    shingles = np.zeros(len(words) - SHINGLE + 1, np.uint64)
    for place in range(SHINGLE):
        shingles = shingles * np.uint64(0x9E3779B97F4A7C15) + words[place : len(words) - SHINGLE + 1 + place]
    smallest = np.full(PERMUTATIONS, 0xFFFFFFFF, np.uint64)
    for start in range(0, len(shingles), CHUNK):
        hashes = (factors * shingles[None, start : start + CHUNK] + offsets) >> np.uint64(32)
        np.minimum(smallest, hashes.min(axis=1), out=smallest)
    return smallest.astype(np.uint32)


class Clusters(NamedTuple):
    """For every record of the stream: key (n,) uint64 of its cluster; near (n,) bool: the cluster unites different texts or groups."""

    keys: np.ndarray
    near: np.ndarray

    @property
    def positions(self) -> np.ndarray:
        """(n,) in [0, 1): follows from the cluster, and cuts the stream into parts."""
        mixed = self.keys.copy()
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        return (mixed ^ (mixed >> np.uint64(31))) / 2.0**64


class Documents:
    """Takes documents one by one; then tells which belong together: same text, nearly the same, same group or pair."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close(); it has no name to clean up
        self._keys, self._texts, self._pairs = array("Q"), array("Q"), array("Q")

    def add(self, source: str, group: str | None = None, pair: str | None = None) -> None:
        text = key(" ".join(source.split()).casefold())
        self._texts.append(text)
        self._keys.append(key(group) if group else text)
        self._pairs.append(key(pair) if pair else 0)
        self._file.write(signature(source).tobytes())

    def close(self) -> None:
        self._file.close()

    @property
    def repeated(self) -> int:
        """How many documents have the text of an earlier one."""
        return (
            len(self._texts) - len(set(self._texts))
            if len(self._texts) < 1000
            else len(self._texts) - len(np.unique(self._texts))
        )

    def clusters(self) -> Clusters:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        count = len(self._keys)
        keys = np.array(self._keys, np.uint64)
        edges = [
            _equal(keys),
            _equal(np.array(self._texts, np.uint64)),
            _equal(np.array(self._pairs, np.uint64)),
            *self._alike(),
        ]
        left, right = (np.concatenate([edge[side] for edge in edges]) for side in (0, 1))
        graph = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(count, count))
        _, labels = connected_components(graph, directed=False)
        smallest = np.full(count, np.iinfo(np.uint64).max, np.uint64)
        np.minimum.at(smallest, labels, keys)
        largest = np.zeros(count, np.uint64)
        np.maximum.at(largest, labels, keys)
        return Clusters(smallest[labels], (smallest != largest)[labels])

    def _alike(self):
        """Pairs of records that share a band and are similar by their whole signatures."""
        self._file.flush()
        if not len(self._keys):
            return
        width = 4 * PERMUTATIONS
        for band in range(PERMUTATIONS // ROWS):
            bands = np.empty(len(self._keys), np.uint64)
            for start in range(0, len(bands), CHUNK):
                bands[start : start + CHUNK] = self._band(start, band)
            left, right = _equal(bands)
            kept = np.zeros(len(left), bool)
            for start in range(0, len(left), CHUNK):
                one, other = (self._signatures(side[start : start + CHUNK], width) for side in (left, right))
                kept[start : start + CHUNK] = (one == other).mean(axis=1) >= SIMILAR
            yield left[kept], right[kept]

    def _band(self, start: int, band: int) -> np.ndarray:
        rows = np.frombuffer(
            os.pread(self._file.fileno(), 4 * PERMUTATIONS * CHUNK, 4 * PERMUTATIONS * start), np.uint32
        )
        rows = rows.reshape(-1, PERMUTATIONS)[:, ROWS * band : ROWS * (band + 1)].astype(np.uint64)
        mixed = np.zeros(len(rows), np.uint64)
        for place in range(ROWS):
            mixed = (mixed ^ rows[:, place]) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
        return mixed | np.uint64(1)

    def _signatures(self, numbers: np.ndarray, width: int) -> np.ndarray:
        data = b"".join(os.pread(self._file.fileno(), width, width * int(number)) for number in numbers)
        return np.frombuffer(data, np.uint32).reshape(-1, PERMUTATIONS)


def _equal(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(left, right): every record and the next one of the same key; key 0 stands for none."""
    order = np.argsort(keys, kind="stable")
    same = (keys[order][1:] == keys[order][:-1]) & (keys[order][1:] != 0)
    return order[:-1][same], order[1:][same]
