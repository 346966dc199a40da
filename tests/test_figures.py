"""What is drawn, pixel by pixel: means, colours, order, proportions, words that fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
from pipeline.config import PlotOptions, check_options, defaults
from pipeline.errors import OptionError
from pipeline.figures import FeatureMap
from pipeline.plot import read_maps, square_means


class Stored:
    """A layer of which one image is there."""

    def __init__(self, name: str, values: NDArray[np.floating]) -> None:
        self.name, self.dtype, self.values = name, values.dtype, values

    def shape_of(self, row: int) -> tuple[int, ...]:
        return self.values.shape

    def __getitem__(self, row: int) -> NDArray[np.floating]:
        return self.values

    def bands(self, row: int, every: int) -> Iterator[tuple[int, NDArray[np.floating]]]:
        return ((first, self.values[first : first + 3]) for first in range(0, len(self.values), 3))


def options_of(**values: Any) -> PlotOptions:
    return check_options({**defaults(PlotOptions), "run": "x", "colormap": "hot", **values}, PlotOptions)


def maps_of(values: NDArray[np.floating], name: str = "relu1_1", chosen: Sequence[int] = (), **options: Any) -> list[FeatureMap]:
    """Gives all channels of an image, or the chosen ones, each with the name of the layer unless it is one of a mosaic."""
    channels = chosen or range(values.shape[-1])
    return read_maps(Stored(name, values), 0, channels, len(channels), options_of(**options))  # type: ignore[arg-type]


def draw(maps: Sequence[FeatureMap], lines: Sequence[str] = ("a/b.jpg", "row 0"), seen: Any = None, **options: Any) -> Figure:
    before = [] if seen is None else [FeatureMap("input", ("a" * 20, "b"), seen)]
    with figures.plain_settings():
        return figures.draw(lines, [*before, *maps], options_of(**options))


def render(path: Path, maps: Sequence[FeatureMap], **options: Any) -> list[NDArray[np.uint8]]:
    """Gives what stands inside the frames of the written file: the input if there is one, and the maps."""
    figure = draw(maps, **options)
    with figures.plain_settings():
        figures.save(figure, path / "sheet.png")
    image = np.asarray(Image.open(path / "sheet.png").convert("RGB"))
    boxes = [shown.get_window_extent().extents for axes in figure.axes for shown in axes.images]
    # Without the frame's line.
    return [
        image[math.ceil(len(image) - top) + 1 : int(len(image) - bottom) - 1, math.ceil(left) + 1 : int(right) - 1]
        for left, bottom, right, top in boxes
    ]


def texts_of(figure: Figure) -> list[Text]:
    """Gives every text that is to be seen."""
    return [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


def colour(values: Any, low: float, high: float, colormap: str = "hot") -> NDArray[np.uint8]:
    scaled = (np.asarray(values, np.float64) - low) / ((high - low) or 1.0)
    return np.asarray(matplotlib.colormaps[colormap](scaled, bytes=True))[..., :3]


def cells(picture: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    """Gives the pixel in the middle of each cell."""
    middles = [
        ((np.arange(count) + 0.5) * side / count).astype(int)
        for count, side in zip((rows, columns), picture.shape[:2], strict=True)
    ]
    return picture[np.ix_(*middles)]


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 20), st.sets(st.integers(0, 11)))
def test_means_are_those_of_an_obvious_computation_over_the_rows_that_are_there(
    height: int, width: int, side: int, missing: set[int]
) -> None:
    values = np.random.default_rng(height * 13 + width).integers(-3, 4, (height, width, 2)).astype(np.float32)
    rows = [row for row in range(height) if row % side == 0 or row not in missing]
    found = square_means(np.array(rows), values[rows], side)
    squares = [[row for row in rows if row // side == square] for square in range(-(-height // side))]
    expected = [[values[of, x : x + side].mean(axis=(0, 1)) for x in range(0, width, side)] for of in squares]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_channels_come_as_wanted_and_the_most_active_ones_first() -> None:
    values = np.zeros((7, 3, 6), np.float16)
    values[0, 0] = [1, 5, -9, 5, -1, 7]
    assert [one.name for one in maps_of(values, chosen=[2, 0], channels=[2, 0])] == ["channel 2", "channel 0"]
    for one in maps_of(values):
        np.testing.assert_array_equal(one.values, values[:, :, one.channels[0]].astype(np.float32))
        assert one.values.dtype == np.float32
    for count in (5, 99):
        active = maps_of(values, channels=f"active:{count}")
        assert [one.channels[0] for one in active] == [5, 1, 3, 0, 2, 4][:count]


@pytest.mark.parametrize("sides", [(14, 25), (40, 12)])
def test_every_value_is_drawn_in_its_colour_where_it_belongs(sides: tuple[int, int], tmp_path: Path) -> None:
    (one,) = maps_of(np.random.default_rng(1).standard_normal((*sides, 1)).astype(np.float32))
    (drawn,) = render(tmp_path, [one], colormap="viridis")
    expected = colour(one.values, one.low, one.high, "viridis").astype(int)
    np.testing.assert_allclose(cells(drawn, *sides).astype(int), expected, atol=1)
    # Proportions, to some pixels of the frame.
    height, width = drawn.shape[:2]
    assert abs(height / sides[0] - width / sides[1]) <= 5 * max(1 / sides[0], 1 / sides[1])
    assert max(height, width) > 200


def test_channels_of_a_mosaic_stand_in_reading_order(tmp_path: Path) -> None:
    order = [3, 1, 0, 4, 2]
    maps = maps_of(np.ones((4, 4, 5), np.float32) * np.arange(5, dtype=np.float32), chosen=order, channels=order)
    drawn, axes = render(tmp_path, maps, scale="shared"), draw(maps).axes
    np.testing.assert_array_equal([each[5, 5] for each in drawn], colour(order, 0, 4))
    assert [each.get_title("left") for each in axes] == [f"channel {number}" for number in order]
    places = [(-each.get_position().y1, each.get_position().x0) for each in axes]
    assert places == sorted(places)


def test_own_scales_show_what_a_common_one_hides_and_its_bar_tells_its_ends(tmp_path: Path) -> None:
    values = np.stack([np.array([[0, 1], [1, 0]]), np.array([[-4, 100], [0, 0]])], axis=2).astype(np.float32)
    for scale, ends in (("own", [(0, 1), (-4, 100)]), ("shared", [(-4, 100)] * 2)):
        first, second = render(tmp_path, maps_of(values), scale=scale)
        np.testing.assert_array_equal(cells(first, 2, 2), colour(values[..., 0], *ends[0]))
        np.testing.assert_array_equal(cells(second, 2, 2), colour(values[..., 1], *ends[1]))
        words = [text.get_text() for text in texts_of(draw(maps_of(values), scale=scale))]
        assert (words.count("1"), words.count("100"), words.count("−4")) == ((0, 0, 0) if scale == "own" else (0, 1, 1))


def test_the_input_stands_beside_pixel_for_pixel(tmp_path: Path) -> None:
    seen = np.random.default_rng(2).integers(0, 256, (13, 20, 3), np.uint8)
    drawn = render(tmp_path, maps_of(np.ones((3, 3, 4), np.float32)), seen=seen)
    np.testing.assert_array_equal(cells(drawn[0], 13, 20), seen)


def test_what_is_constant_is_drawn_and_said(tmp_path: Path) -> None:
    maps = maps_of(np.zeros((5, 5, 1), np.float32))
    for scale in ("own", "shared"):
        assert (render(tmp_path, maps, scale=scale)[0] == (10, 0, 0)).all()
    assert draw(maps).axes[0].get_xlabel() == "5 × 5 × 1\nall 0\n100 % zeros"


@pytest.mark.parametrize("ends", [(-3e38, 3e38), (0.0, 1e-45), (1.0, np.nextafter(np.float32(1), np.float32(2)))])
def test_any_range_is_drawn(ends: tuple[float, float], tmp_path: Path) -> None:
    low, high = render(tmp_path, maps_of(np.array([ends], np.float32)[:, :, None]))[0][100, [20, -20]]
    assert low.tolist() == colour(0, 0, 1).tolist()
    assert high.tolist() == colour(1, 0, 1).tolist()


def test_bars_are_as_high_as_their_values_are_and_what_is_asked_for_has_its_colour() -> None:
    maps = maps_of(np.array([4, -2, 0, 1], np.float32), "fc6", channel=3)
    (chart,) = draw(maps, channel=3).axes
    (bars,) = chart.collections
    assert [bar.tolist() for bar in bars.get_segments()] == [
        [[place, 0], [place, value]] for place, value in enumerate((4, -2, 0, 1))
    ]
    assert (chart.lines[0].get_xdata()[0], chart.lines[0].get_color()) == (3, figures.MARKED)
    assert chart.get_title("left") == "fc6"
    assert chart.get_xlabel() == "4 components\ncomponent 3: 1\n−2 to 4\n25.0 % zeros"
    (active,) = draw(maps_of(np.arange(9, dtype=np.float32), channels="active:3")).axes
    assert [segment[1].tolist() for segment in active.collections[0].get_segments()] == [[0, 8], [1, 7], [2, 6]]
    assert [label.get_text() for label in active.get_xticklabels()] == ["8", "7", "6"]


def test_of_very_many_components_a_peak_is_seen(tmp_path: Path) -> None:
    values = np.zeros(100_000, np.float32)
    values[70_000] = 1
    figure = draw(maps_of(values))
    with figures.plain_settings():
        figures.save(figure, tmp_path / "sheet.png")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
    box = figure.axes[0].get_window_extent()
    line = pixels[len(pixels) - int(box.y0 + 0.5 * box.height), int(box.x0) + 2 : int(box.x1) - 2]
    assert np.flatnonzero(line.max(axis=1) < 100)[0] / len(line) == pytest.approx(0.7, abs=0.005)


def test_maps_and_vectors_share_a_sheet_and_a_scale() -> None:
    maps = maps_of(np.ones((8, 8, 1), np.float32) * 10) + maps_of(np.array([1, -2], np.float32), "x.avg")
    for scale, ends in (("own", (-2, 1)), ("shared", (-2, 10))):
        shown, chart = draw(maps, scale=scale).axes[:2]
        assert chart.get_ylim() == ends
        assert shown.images[0].get_clim() == (ends if scale == "shared" else (10, 10))


@pytest.mark.parametrize(
    ("sides", "count", "scale"),
    [((7, 300), 1, "shared"), ((300, 7), 5, "shared"), ((28, 28), 12, "own"), ((100_000,), 1, "own"), ((5,), 2, "shared")],
)
def test_no_word_is_cut_and_none_lies_on_another(sides: tuple[int, ...], count: int, scale: str) -> None:
    lines = "1440 × 2560 × 64", "−1.234e−05 to 65504", "12.3 % zeros", "17 not finite"
    values = np.ones(sides, np.float32)
    one = FeatureMap("relu4_1.units.srp.pca.l2.l2", lines, values, range(sides[0]), -1.234e-5, 6.55e4)
    seen = np.zeros((*(sides if len(sides) > 1 else (9, 9)), 3), np.uint8)[:99, :99]
    figure = draw([one] * count, ("k" * 300, "row 0 of " + "n" * 300), seen, scale=scale)
    figure.draw_without_rendering()
    texts = texts_of(figure)
    for axes in figure.axes:
        # Numbers beyond the ends are there, and not drawn.
        numbered = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
        unseen = [label for place, label in numbered if not axes.get_xlim()[0] <= place <= axes.get_xlim()[1]]
        texts = [text for text in texts if text not in unseen]
    boxes = np.array([text.get_window_extent().extents for text in texts])
    assert len(boxes) > 5
    left, bottom, right, top = boxes.T
    width, height = figure.canvas.get_width_height()
    assert min(left.min(), bottom.min()) >= 0 <= min(width - right.max(), height - top.max())
    # The space of a line's letters may touch that of the next by a pixel.
    beside = (left[:, None] >= right - 3) | (right[:, None] <= left + 3)
    above = (bottom[:, None] >= top - 3) | (top[:, None] <= bottom + 3)
    wrong = np.argwhere(~(beside | above | np.eye(len(boxes), dtype=bool)))
    assert not len(wrong), [texts[index].get_text() for index in wrong[0]]


def test_too_many_pixels_are_refused() -> None:
    for count, dpi in ((64, 1200), (9000, 100)):
        with pytest.raises(OptionError, match=r"^dpi: the picture would be too large, got .* px"):
            draw(maps_of(np.ones((2, 2, 1), np.float32)) * count, dpi=dpi)


def test_equal_pictures_are_equal_bytes_and_a_users_settings_change_none(tmp_path: Path) -> None:
    maps = maps_of(np.random.default_rng(1).random((9, 9, 2), np.float32))
    suffixes, contents = (".png", ".pdf", ".svg"), []
    for settings in ({}, {"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 10, "image.cmap": "jet", "text.color": "red"}):
        with matplotlib.rc_context(settings), figures.plain_settings():
            for suffix in suffixes:
                # Names in any script are drawn, and no sign of theirs has a meaning.
                figure = draw(maps, ("$\\frac{1}{$ 猫 \U0001f431 $x$ \ud800 a\tb.jpg", "%s {layer}"))
                assert figure.texts[0].get_text() == "$\\frac{1}{$ 猫 \U0001f431 $x$ \\ud800 a\\tb.jpg"
                figures.save(figure, tmp_path / f"sheet{suffix}")
        contents.append([(tmp_path / f"sheet{suffix}").read_bytes() for suffix in suffixes])
    assert contents[0] == contents[1]
    assert [content[1:4] for content in contents[0]] == [b"PNG", b"PDF", b"?xm"]
    assert not any(mark in content for content in contents[0] for mark in (b"20" + b"26-", b"Date"))
