"""What is left out of a source that does not fit. Light.

The last words matter in clinical talk (the plan), the first in papers (the abstract); docs/benchmarks.md has the
measurement behind the default.
"""

GAP = "\n[...]\n"  # stands where the middle of a source was left out
PLACES = {"head": "end", "tail": "beginning", "head_tail": "middle"}  # policy: what it leaves out


def left_out(length: int, space: int, policy: str, gap: int = 0) -> tuple[int, int]:
    """The range [start, end) of a source of `length` tokens that does not fit into `space`; (0, 0) where all of it fits.

    head keeps the first tokens, tail the last, head_tail half of each with a gap of `gap` tokens between them. Where
    `space` holds no more than the gap, head_tail keeps the first tokens, as head does.
    """
    if length <= space:
        return 0, 0
    if policy == "tail":
        return 0, length - space
    if policy == "head" or space < gap + 2:
        return space, length
    kept = space - gap
    return kept - kept // 2, length - kept // 2
