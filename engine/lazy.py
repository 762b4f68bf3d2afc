"""A sequence whose members are made when they are asked for. Light."""

from collections.abc import Callable, Iterator, Sequence
from operator import eq
from typing import TypeVar, overload

Member = TypeVar("Member")


class Lazy(Sequence[Member]):
    """Member k is make(k), made anew each time: what a million of them weigh is what `make` holds."""

    def __init__(self, count: int, make: Callable[[int], Member]):
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Member: ...

    @overload
    def __getitem__(self, index: slice) -> list[Member]: ...

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self._make(k) for k in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(index)
        return self._make(index % self._count)

    def __iter__(self) -> Iterator[Member]:
        return map(self._make, range(self._count))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None
