"""What can be read off a column of the matrix R, with signs kept. Pure (METHODS, section 10).

values: the cells of one column, row 0 the base, None where not measured. better: 1 if higher is better, -1 if lower.
last: the last measured row. learning: the row after which the column is learnt (its largest share of a mixture), or None.
A quantity is None where a cell it needs is missing or the order of the phases gives it no meaning.
"""

from collections.abc import Sequence

Cell = float | None


def backward_transfer(values: Sequence[Cell], learning: int | None, last: int) -> Cell:
    """R[last] - R[learning], the plain difference; None for a column that is learnt last."""
    return _minus(values[last], values[learning]) if learning is not None and learning < last else None


def forgetting(values: Sequence[Cell], learning: int | None, last: int, better: int) -> Cell:
    """The best row from learning on, the final one excluded, minus the final one: positive is loss, negative is gain."""
    if learning is None or learning >= last or values[last] is None:
        return None
    before = [better * value for value in values[learning:last] if value is not None]
    return max(before) - better * values[last] if before else None


def forward_transfer(values: Sequence[Cell], first: int | None) -> Cell:
    """What the phases before `first`, the first that trains on the column, did to it: R[first - 1] - R[0]."""
    return _minus(values[first - 1], values[0]) if first is not None and first > 1 else None


def intransigence(values: Sequence[Cell], learning: int | None, joint: Cell, better: int) -> Cell:
    """Joint training minus the row after learning: small (or negative) is plastic."""
    found = _minus(joint, values[learning]) if learning is not None else None
    return None if found is None else better * found


def retention(values: Sequence[Cell], learning: int | None, last: int) -> Cell:
    """100 R[last] / R[learning] percent; only for metrics with a true zero."""
    return _percent(values[last], values[learning]) if learning is not None and learning < last else None


def base_retention(values: Sequence[Cell]) -> list[Cell]:
    """100 R[i] / R[0] percent for each row: what is left of an ability that the base had."""
    return [_percent(value, values[0]) for value in values]


def learning_row(shares: Sequence[float]) -> int | None:
    """shares: of the column in each row's mixture, 0 for the base. The row with the largest; None if no phase has it."""
    row = max(range(len(shares)), key=lambda number: shares[number], default=0)
    return row if shares and shares[row] > 0 else None


def first_row(shares: Sequence[float]) -> int | None:
    """The first row whose phase trains on the column."""
    return next((row for row, share in enumerate(shares) if share > 0), None)


def _minus(value: Cell, other: Cell) -> Cell:
    return None if value is None or other is None else value - other


def _percent(value: Cell, whole: Cell) -> Cell:
    return None if value is None or not whole else 100 * value / whole
