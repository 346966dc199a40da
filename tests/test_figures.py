"""What is drawn, pixel by pixel: means, colours, order, proportions, words that fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image

from pipeline import figures
from pipeline.config import PICTURE_SUFFIXES as SUFFIXES
from pipeline.errors import OptionError, StoreError
from pipeline.feature_maps import FeatureMap, fold, make_maps, reduction
from pipeline.figures import Look, Sheet, check_colormap, draw, plan_layout

HOT = "hot"
OWN, SHARED = Look(HOT, False, 100), Look(HOT, True, 100)
MAGENTA = (255, 0, 255)


def maps_of(values: NDArray[np.floating], layer: str = "relu1_1", **options: Any) -> list[FeatureMap]:
    return make_maps(layer, [(0, values)], values.shape, range(values.shape[2]), options.pop("side", 1), **options)


def figure_of(maps: Sequence[FeatureMap], look: Look = OWN, mosaic: bool = False, **sheet: Any) -> Figure:
    layout = plan_layout([one.shape for one in maps], is_mosaic=mosaic)
    given = {"heading": "a/b.jpg", "lines": ("row 0", "channel 0"), "seen": None, "seen_lines": (), **sheet}
    return draw(Sheet(maps=maps, **given), look, layout)


def render(
    path: Path, maps: Sequence[FeatureMap], look: Look = OWN, mosaic: bool = False, **sheet: Any
) -> list[NDArray[np.uint8]]:
    """Gives what stands inside the frames of the written file: the input if there is one, and the maps."""
    with figures.plain_settings():
        figure = figure_of(maps, look, mosaic, **sheet)
        figures.save(figure, path / "sheet.png")
    return framed(figure, path / "sheet.png")


def framed(figure: Figure, path: Path) -> list[NDArray[np.uint8]]:
    image = np.asarray(Image.open(path).convert("RGB"))
    boxes = [axes.bbox.extents for axes in figure.axes if axes.images]
    # Without the frame's line.
    return [
        image[math.ceil(len(image) - top) + 1 : int(len(image) - bottom) - 1, math.ceil(left) + 1 : int(right) - 1]
        for left, bottom, right, top in boxes
    ]


def colour(values: Any, low: float, high: float, colormap: str = HOT) -> NDArray[np.uint8]:
    scaled = (np.asarray(values, np.float64) - low) / ((high - low) or 1.0)
    return np.asarray(matplotlib.colormaps[colormap](scaled, bytes=True))[..., :3]


def bars_of(figure: Figure) -> list[Any]:
    """Gives the colour bars."""
    every = [*figure.axes, *(child for axes in figure.axes for child in axes.child_axes)]
    return [axes for axes in every if axes.collections]


def cells(picture: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    """Gives the pixel in the middle of each cell."""
    y, x = (
        ((np.arange(count) + 0.5) * side / count).astype(int)
        for count, side in ((rows, picture.shape[0]), (columns, picture.shape[1]))
    )
    return picture[np.ix_(y, x)]


def test_means_and_numbers_are_those_of_an_obvious_computation() -> None:
    values = np.random.default_rng(5).integers(-3, 4, (11, 9, 4)).astype(np.float16)
    bands = [(first, values[first : first + 3]) for first in range(0, 11, 3)]
    for side in (1, 2, 4, 20):
        for one in make_maps("x", bands, (11, 9, 4), [2, 0], side):
            channel = values[:, :, one.channel].astype(np.float64)
            expected = [[channel[y : y + side, x : x + side].mean() for x in range(0, 9, side)] for y in range(0, 11, side)]
            assert one.pixels.dtype == np.float32
            np.testing.assert_allclose(one.pixels, expected, atol=1e-6)
            assert (one.low, one.high) == (channel.min(), channel.max())
            assert one.zeros == pytest.approx(np.mean(channel == 0))
            assert (one.not_finite, one.rows_read, one.shape, one.layer) == (0, 11, (11, 9, 4), "x")
        assert [one.channel for one in make_maps("x", bands, (11, 9, 4), [2, 0], side)] == [2, 0]


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.integers(1, 6))
def test_how_an_image_is_cut_in_bands_changes_no_map(height: int, width: int, side: int, band: int) -> None:
    values = np.random.default_rng(height * 13 + width).integers(0, 9, (height, width, 2)).astype(np.float32)
    whole = make_maps("x", [(0, values)], values.shape, [0, 1], side)
    parts = make_maps(
        "x", [(first, values[first : first + band]) for first in range(0, height, band)], values.shape, [0, 1], side
    )
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one.pixels, other.pixels, rtol=1e-6)
        assert (one.low, one.high, one.zeros) == (other.low, other.high, other.zeros)


def test_of_a_part_of_the_rows_the_numbers_are_those_of_that_part() -> None:
    values = np.arange(8 * 4, dtype=np.float32).reshape(8, 4, 1)
    (one,) = make_maps("x", [(row, values[row : row + 1]) for row in (0, 2, 4, 7)], (8, 4, 1), [0], 4)
    np.testing.assert_allclose(one.pixels, [[values[[0, 2]].mean()], [values[[4, 7]].mean()]])
    assert (one.rows_read, one.low, one.high, one.zeros) == (4, 0.0, 31.0, 1 / 16)


def test_the_most_active_channels_come_first_and_of_equals_the_first() -> None:
    values = np.zeros((3, 3, 6), np.float32)
    values[0, 0] = [1, 5, -9, 5, np.nan, 7]
    with np.errstate(invalid="ignore"):
        assert [one.channel for one in maps_of(values, most_active=5)] == [5, 1, 3, 0, 2]
        assert [one.channel for one in maps_of(values, most_active=99)] == [5, 1, 3, 0, 2, 4]


def test_what_is_not_finite_is_counted_and_left_out_of_the_range() -> None:
    values = np.array([[1, np.nan], [np.inf, -2]], np.float32)[:, :, None]
    (one,) = maps_of(values)
    assert (one.low, one.high, one.not_finite) == (-2.0, 1.0, 2)
    (none,) = maps_of(np.full((2, 2, 1), np.nan, np.float32))
    assert math.isnan(none.low)
    assert none.not_finite == 4


def test_a_layer_without_extent_is_folded_row_after_row() -> None:
    for channels, shape in ((4096, (64, 64)), (1000, (25, 40)), (7, (1, 7))):
        values = np.arange(channels, dtype=np.float32).reshape(1, 1, -1)
        one = fold("fc6", values)
        assert one.pixels.shape == shape
        np.testing.assert_array_equal(one.pixels.reshape(-1), values.reshape(-1))
        assert (one.channel, one.low, one.high, one.zeros) == (None, 0, channels - 1, 1 / channels)


def test_an_unknown_colour_map_names_the_nearest() -> None:
    assert check_colormap("gray") == "gray"
    for name, near in (("viridi", "viridis"), ("Magma", "magma"), ("GRAY", "gray"), ("no such map", "magma")):
        with pytest.raises(OptionError, match=rf"^colormap: there is none of this name, got '{name}'. Expected one of: {near}"):
            check_colormap(name)


@pytest.mark.parametrize("sides", [(28, 28), (14, 25), (40, 12), (1, 5)])
def test_every_value_is_drawn_in_its_colour_where_it_belongs(sides: tuple[int, int], tmp_path: Path) -> None:
    values = np.random.default_rng(1).standard_normal((*sides, 1)).astype(np.float32)
    (drawn,) = render(tmp_path, maps_of(values), Look("viridis", False, 100))
    (one,) = maps_of(values)
    np.testing.assert_allclose(
        cells(drawn, *sides).astype(int), colour(one.pixels, one.low, one.high, "viridis").astype(int), atol=1
    )
    # Proportions, to some pixels of the frame.
    height, width = drawn.shape[:2]
    assert abs(height / sides[0] - width / sides[1]) <= 5 * max(1 / sides[0], 1 / sides[1])
    assert max(height, width) > 200


def test_a_large_map_is_shown_by_its_means(tmp_path: Path) -> None:
    values = np.kron(np.array([[0, 1], [2, 3]], np.float32), np.ones((360, 640), np.float32))[:, :, None]
    # A single value that is far above: it makes the range, and vanishes in the means.
    values[300, 300] = 30
    layout = plan_layout([values.shape] * 4, is_mosaic=False)
    side = reduction(values.shape, layout.limit_px(100))
    drawn = render(tmp_path, maps_of(values, side=side) * 4)
    assert side == 6
    assert len(drawn) == 4
    assert abs(drawn[0].shape[0] - 117) <= 2
    assert abs(drawn[0].shape[1] - 208) <= 2
    np.testing.assert_allclose(cells(drawn[0], 2, 2).astype(int), colour([[0, 1], [2, 3]], 0, 30), atol=2)


def test_channels_of_a_mosaic_stand_in_reading_order(tmp_path: Path) -> None:
    values = np.ones((4, 4, 5), np.float32) * np.arange(5, dtype=np.float32)
    expected = colour(np.arange(5), 0, 4)
    for order in (range(5), [3, 0, 4]):
        maps = make_maps("x", [(0, values)], values.shape, order, 1)
        with figures.plain_settings():
            figure = figure_of(maps, SHARED, mosaic=True)
            figures.save(figure, tmp_path / "sheet.png")
        np.testing.assert_array_equal([each[5, 5] for each in framed(figure, tmp_path / "sheet.png")], expected[list(order)])
        assert [axes.get_title(loc="left") for axes in figure.axes if axes.images] == [f"channel {number}" for number in order]
        corners = [(round(-axes.bbox.y1), round(axes.bbox.x0)) for axes in figure.axes if axes.images]
        assert corners == sorted(corners)


def test_own_scales_show_what_a_common_one_hides(tmp_path: Path) -> None:
    values = np.stack([np.array([[0, 1], [1, 0]]), np.array([[0, 100], [0, 0]])], axis=2).astype(np.float32)
    for look, high in ((OWN, 1.0), (SHARED, 100.0)):
        first, second = render(tmp_path, maps_of(values), look)
        np.testing.assert_array_equal(cells(first, 2, 2), colour(values[..., 0], 0, high))
        np.testing.assert_array_equal(cells(second, 2, 2), colour(values[..., 1], 0, 100))


def test_a_colour_bar_tells_the_ends_of_its_scale() -> None:
    values = np.stack([np.array([[0, 1], [1, 0]]), np.array([[-4, 100], [0, 0]])], axis=2).astype(np.float32)
    for look, ends in ((OWN, [("0", "1"), ("−4", "100")]), (SHARED, [("−4", "100")])):
        with figures.plain_settings():
            labels = [[label.get_text() for label in bar.get_yticklabels()] for bar in bars_of(figure_of(maps_of(values), look))]
        assert [(each[0], each[-1]) for each in labels] == ends


def test_the_input_stands_beside_pixel_for_pixel(tmp_path: Path) -> None:
    seen = np.random.default_rng(2).integers(0, 256, (13, 20, 3), np.uint8)
    drawn = render(tmp_path, maps_of(np.ones((3, 3, 4), np.float32)), mosaic=True, seen=seen, seen_lines=("13 × 20 px",))
    np.testing.assert_array_equal(cells(drawn[0], 13, 20), seen)


def test_what_is_constant_or_no_number_is_drawn_and_said(tmp_path: Path) -> None:
    constant, nothing = np.zeros((5, 5, 1), np.float32), np.full((5, 5, 1), np.nan, np.float32)
    mixed = np.array([[np.nan, 1.0], [np.inf, 0.0]], np.float32)[:, :, None]
    maps = maps_of(constant) + maps_of(nothing) + maps_of(mixed)
    drawn = render(tmp_path, maps)
    assert (drawn[0] == (10, 0, 0)).all()
    assert (drawn[1] == MAGENTA).all()
    np.testing.assert_array_equal(cells(drawn[2], 2, 2), [[MAGENTA, colour(1, 0, 1)], [MAGENTA, colour(0, 0, 1)]])
    figure = figure_of(maps)
    words = " ".join(text.get_text() for text in figure.findobj(Text))
    for said in ("all 0, 100 % zeros", "no finite value", "0 to 1, 25.0 % zeros, 2 not finite"):
        assert said in words
    assert len(bars_of(figure)) == 1


@pytest.mark.parametrize("ends", [(-3e38, 3e38), (0.0, 1e-45), (1.0, np.nextafter(np.float32(1), np.float32(2)))])
def test_any_range_is_drawn(ends: tuple[float, float], tmp_path: Path) -> None:
    low, high = render(tmp_path, maps_of(np.array([ends], np.float32)[:, :, None]))[0][100, [20, -20]]
    assert low.tolist() == colour(0, 0, 1).tolist()
    assert high.tolist() == colour(1, 0, 1).tolist()


def test_bars_are_as_high_as_their_values_are() -> None:
    values = np.array([4, -2, 0, 1, np.nan], np.float32).reshape(1, 1, -1)
    (axes,) = figure_of(maps_of(values, "fc6"), mosaic=True).axes
    assert [bar.get_height() for bar in axes.patches] == [4, -2, 0, 1, 0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("sides", "count", "look", "mosaic"),
    [
        ((28, 28), 1, OWN, False),
        ((28, 28), 1, SHARED, True),
        ((7, 300), 1, SHARED, False),
        ((300, 7), 5, OWN, False),
        ((300, 7), 5, SHARED, True),
        ((1440, 2560), 7, OWN, True),
        *(pytest.param((1440, 2560), 36, look, look is SHARED, marks=pytest.mark.slow) for look in (OWN, SHARED)),
    ],
)
def test_no_word_is_cut_and_none_lies_on_another(sides: tuple[int, int], count: int, look: Look, mosaic: bool) -> None:
    one = FeatureMap("relu4_1", 0, (*sides, 512), np.eye(7, 9, dtype=np.float32), -1.234e-5, 6.55e4, 0.123, 17, sides[0])
    seen = np.zeros((*sides, 3), np.uint8)[:99, :99]
    with figures.plain_settings():
        long = {"heading": "k" * 300, "lines": ("row 0 of " + "n" * 300,), "seen": seen, "seen_lines": ("a" * 60,)}
        assert_legible(figure_of([one] * count, look, mosaic, **long))


@pytest.mark.parametrize("count", [1, 64, pytest.param(500, marks=pytest.mark.slow)])
def test_no_word_of_a_bar_chart_is_cut(count: int) -> None:
    values = np.linspace(-1.234e-5, 6.55e4, count, dtype=np.float32).reshape(1, 1, -1)
    with figures.plain_settings():
        assert_legible(
            figure_of(maps_of(values, "fc6"), mosaic=True, seen=np.zeros((9, 9, 3), np.uint8), seen_lines=("9 × 9 px",))
        )


def assert_legible(figure: Figure) -> None:
    """Fails where a text is cut by the edge of the sheet, or two lie on each other."""
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    boxes = np.array([text.get_window_extent().extents for text in texts])
    assert len(boxes) > 5
    left, bottom, right, top = boxes.T
    width, height = figure.canvas.get_width_height()
    assert min(left.min(), bottom.min()) >= 0
    assert right.max() <= width
    assert top.max() <= height
    # The space of a line's letters may touch that of the next by a pixel.
    beside = (left[:, None] >= right - 3) | (right[:, None] <= left + 3)
    above = (bottom[:, None] >= top - 3) | (top[:, None] <= bottom + 3)
    wrong = np.argwhere(~(beside | above | np.eye(len(boxes), dtype=bool)))
    assert not len(wrong), [texts[index].get_text() for index in wrong[0]]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_in_any_script_are_drawn(tmp_path: Path, suffix: str) -> None:
    heading = "$\\frac{1}{$ 猫 \U0001f431 $x$ \ud800 a\tb\nc\x1b[1m.jpg"
    with figures.plain_settings():
        figure = figure_of(maps_of(np.ones((2, 2, 1), np.float32)), heading=heading, lines=("$", "%s {layer}"))
        figures.save(figure, tmp_path / f"sheet{suffix}")
    assert figure.texts[0].get_text() == "$\\frac{1}{$ 猫 \U0001f431 $x$ ▯ a b c▯[1m.jpg"
    assert figure.texts[1].get_text() == "$\n%s {layer}"


def test_too_many_pixels_are_refused() -> None:
    for count, dpi in ((36, 1200), (9000, 100)):
        with pytest.raises(OptionError, match=r"^dpi: the picture would be too large, got .* px with"):
            figure_of(maps_of(np.ones((2, 2, 1), np.float32)) * count, Look(HOT, False, dpi))


def test_a_file_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "sheet.png").mkdir()
    with pytest.raises(StoreError, match=r"sheet.png: the picture cannot be written, got is a directory. Expected a place"):
        render(tmp_path, maps_of(np.ones((2, 2, 1), np.float32)))
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_equal_pictures_are_equal_bytes_and_a_users_settings_change_none(tmp_path: Path) -> None:
    maps = maps_of(np.random.default_rng(1).random((9, 9, 2), np.float32))
    contents = []
    for settings in ({}, {"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 10, "image.cmap": "jet", "text.color": "red"}):
        with matplotlib.rc_context(settings), figures.plain_settings():
            figure = figure_of(maps)
            for suffix in SUFFIXES:
                figures.save(figure, tmp_path / f"sheet{suffix}")
        contents.append([(tmp_path / f"sheet{suffix}").read_bytes() for suffix in SUFFIXES])
    assert contents[0] == contents[1]
    png, pdf, svg = contents[0]
    assert (png[:4], pdf[:5], svg[:5]) == (b"\x89PNG", b"%PDF-", b"<?xml")
    for content in (png, pdf, svg):
        assert b"20" + b"26-" not in content
        assert b"Date" not in content
