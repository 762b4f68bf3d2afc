"""The chart draws any data at any size, on axes that stay, and says in its legend what the last values are."""

import math

import pytest
from textual.content import Content

from tui.chart import Curve, Picture, draw, letters, nice_limits, thinned

DATA = {
    "empty": (),
    "infinite": (math.inf, -math.inf),
    "missing": (math.nan, None),
    "single": (1.0,),
    "zeros": (0.0, 0.0),
    "huge": (1e99, -1e99),
    "beyond": (1e308, -1e308),
    "flat": (5, 5, 5),
    "tiny": (1e-320, 2e-320),
    "negative": (-3, -2),
    "mixed": (3.0, math.inf, 2.0, None, 1.0),
}


def text(line) -> str:
    return line.plain if isinstance(line, Content) else line.text


def curve(ys, name="sum") -> Curve:
    return Curve(name, tuple(range(len(ys))), tuple(ys))


@pytest.mark.parametrize("ys", DATA.values(), ids=DATA.keys())
@pytest.mark.parametrize("log", [False, True], ids=["linear", "log"])
def test_any_data_at_any_size(ys, log):
    for width in (0, 1, 2, 5, 23, 24, 40, 56, 80):
        for height in (0, 1, 2, 4, 5, 6, 15):
            for limits in (None, (0, 0), (0, 10)):
                picture = Picture((curve(ys),), x_limits=limits, log=log, marks=((0, "日本"), (1, "[/b]")))
                lines = draw(picture, width, height)
                assert len(lines) == (height if width else 0)
                assert all(line.cell_length <= width for line in lines)


def test_nothing_to_draw_says_so():
    assert "no values yet" in text(draw(Picture(), 60, 10)[0])
    assert draw(Picture((curve([math.nan]),), empty="nothing"), 60, 10)[0].plain == "nothing"


def test_legend_tells_last_values_and_divergence():
    picture = Picture((curve([3, 1.306]), curve([1.0, None], "cross_entropy")), notes=("lr 8.1e-05",))
    shown = "\n".join(map(text, draw(picture, 90, 12)))
    assert "s sum" in shown
    assert "1.31" in shown
    assert "c cross_entr…" in shown
    assert "not finite" in shown
    assert "lr 8.1e-05" in shown
    assert "s sum 1.31" in text(draw(picture, 50, 8)[-1])


def test_every_curve_has_a_letter_and_a_colour_of_its_own():
    names = ["sum", "cross_entropy", "contrastive", "diversity", "term", "drift", "ewc", "distil_phase", "distil_base"]
    signs = letters(names)
    assert len(set(signs)) == len(names)
    picture = Picture(tuple(curve([9 - k, 9 - k], name) for k, name in enumerate(names)))
    lines = draw(picture, 100, 24)
    drawn = {segment.style.color.name for line in lines for segment in line if segment.style and segment.style.color}
    assert len(drawn) >= len(names)


def test_the_curve_is_where_its_values_are():
    rows = [text(line) for line in draw(Picture((curve([0.0, 1.0]),)), 30, 12)]
    assert "1┤" in rows[0]
    assert rows[0][2:].rstrip().endswith("s")  # ends high, at the right
    first = next(row for row in reversed(rows) if "┤" in row)
    assert first.startswith("  0┤") and first.rstrip() != "  0┤"  # begins low, at the left


@pytest.mark.parametrize(
    ("low", "high", "ticks", "expected"),
    [(0.13, 2.37, 5, (0.0, 2.5, 0.5)), (0, 1000, 5, (0, 1000, 200)), (31.2, 31.9, 3, (31.0, 32.0, 0.5))],
)
def test_limits_are_nice(low, high, ticks, expected):
    assert nice_limits(low, high, ticks) == pytest.approx(expected)


def test_a_new_point_inside_the_limits_changes_few_rows():
    def shown(count):
        ys = [3 * math.exp(-k / 120) for k in range(count)]
        return [text(line) for line in draw(Picture((curve(ys),), x_limits=(0, 400)), 100, 20)]

    before, after = shown(200), shown(201)
    assert sum(a != b for a, b in zip(before, after, strict=True)) <= 3


def test_thinning_takes_the_mean_of_each_column():
    assert thinned([(0, 1.0), (1, 3.0), (2, 10.0), (3, 20.0)], 0, 4, 2) == [(0.5, 2.0), (2.5, 15.0)]
    assert thinned([(0, 1.0)], 0, 4, 2) == [(0, 1.0)]


def test_log_axis_has_powers_of_ten():
    shown = "\n".join(text(line) for line in draw(Picture((curve([10, 1, 0.1, 0.01]),), log=True), 60, 16))
    for tick in ("10┤", "1┤", "0.1┤", "0.01┤"):
        assert tick in shown


def test_marks_stand_above_their_place():
    picture = Picture((curve([1] * 100),), x_limits=(0, 100), marks=((0, "phase1"), (50, "phase2")))
    head = text(draw(picture, 50, 12)[0])
    assert head.index("phase1") < 6
    assert 22 < head.index("phase2") < 30
