"""Feature maps and vectors as pictures: reduced to the size at which they are seen, and drawn by Matplotlib as one sheet.

What is said of a map (range, zeros) is counted over all of its values; what is drawn are means over squares of them.
Matplotlib is loaded where it draws: the page of a run takes its maps from here too, and need not wait a second for it.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .config import PlotOptions
from .errors import OptionError, nearest, printable
from .formatting import shortened, words_for_number, words_for_shape, words_for_share
from .store.disk import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT, FRAME = "#1a1a1a", "#666666", "#b0b0b0"
# What is no finite number: a colour that the usual colour maps do not have; and the component that was asked for.
NOT_FINITE, MARKED = "#ff00ff", "#d9480f"
HEADING_POINTS, NAME_POINTS, TEXT_POINTS = 11.0, 9.0, 7.5
TICKS: dict[str, Any] = {"length": 2, "pad": 2, "color": FRAME, "labelcolor": FAINT, "labelsize": TEXT_POINTS}
# Width of a letter as a part of its size, of bold DejaVu Sans about.
LETTER_WIDTH = 0.7
# Inches from here on.
MARGIN, GAP, LINE_HEIGHT, SCALE_SPACE = 0.2, 0.25, 0.14, 0.85
# Side of the only map; of one of many layers, of one of many channels, at least. Smaller maps have no scales of their own.
LARGEST_SIDE, LEAST_LAYER_SIDE, LEAST_CHANNEL_SIDE, SMALL_SIDE = 4.2, 1.75, 1.15, 1.5
# Height of the axes of a map as a part of their width; a longer map is drawn narrower. Of charts alone.
LEAST_ASPECT, GREATEST_ASPECT, CHART_ASPECT = 0.15, 1.5, 0.33
# Width of a bar at least, and of one with a number below it. A lower map has no space for both ends of a scale.
BAR_WIDTH, NUMBER_WIDTH, LEAST_SCALE = 0.02, 0.16, 0.3
INPUT_SIDE, LEAST_WIDTH = 2.6, 4.0
# Source: the antigrain renderer refuses 65536; memory is 4 B a pixel, and Matplotlib holds several copies.
LARGEST_SIDE_PX, LARGEST_PIXELS = 65000, 2**28


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """A channel of a layer; or components of a vector, which is what has one position an image: fc6, relu5_1.avg.

    Attributes:
        layer: Its name.
        shape: Of all features of the image: (h, w, c) or (d,).
        channels: Which of them; one, or the components in the order in which they are drawn.
        values: float32: (h', w'), means over squares; of a vector (n,).
        low: Least value, of those that are finite; inf where none is.
        high: Greatest, likewise; -inf where none is.
        zeros: Share of values that are exactly 0, 0 to 1.
        not_finite: How many values are NaN or infinite.
        rows_read: How many rows of a map all this has been taken from; fewer than h where only a part was read.
    """

    layer: str
    shape: tuple[int, ...]
    channels: Sequence[int]
    values: NDArray[np.float32]
    low: float
    high: float
    zeros: float
    not_finite: int
    rows_read: int


class Layout(NamedTuple):
    """A grid, and the box for each map in it, in inches. ``is_mosaic``: of channels of one layer, not of layers."""

    columns: int
    rows: int
    width: float
    height: float
    is_mosaic: bool

    def reduction(self, shape: tuple[int, ...], dpi: int) -> int:
        """Return the side of the squares of a map over which means are taken, so that nobody would see more of it."""
        sides = zip(shape[:-1], (self.height, self.width), strict=False)
        return max(1, min((side // math.ceil(inches * dpi) for side, inches in sides), default=1))


def is_vector(shape: tuple[int, ...]) -> bool:
    """Tell whether features of this shape, (h, w, c) or (d,), have a single position, so that a channel of them is no map."""
    return math.prod(shape[:-1]) == 1


def make_maps(
    layer: str,
    bands: Iterable[tuple[int, NDArray[np.floating]]],
    shape: tuple[int, ...],
    channels: Sequence[int],
    side: int = 1,
    most_active: int | None = None,
) -> list[FeatureMap]:
    """Return the maps of some channels; of a vector one map of all of them.

    Args:
        layer: Its name.
        bands: Of each its first row, and (h', w, c); from top to bottom, at least one in each ``side`` rows. Of a vector one.
        shape: (h, w, c) of them together, or (d,).
        channels: Which, in the order in which they are wanted.
        side: Of the squares over which means are taken.
        most_active: Of the channels only so many, those with the greatest mean of what is above 0, in this order.
    """
    wanted = np.asarray(channels, np.int64)
    # Held are these channels alone, not all of a band.
    pieces = [
        (first + np.arange(len(band)), band.reshape(-1, math.prod(shape[1:-1]), shape[-1])[:, :, wanted]) for first, band in bands
    ]
    rows, values = np.concatenate([rows for rows, _ in pieces]), np.concatenate([values for _, values in pieces])
    values = values.astype(np.float32, copy=False)
    if most_active is not None:
        activity = np.where(np.isfinite(values) & (values > 0), values, 0).sum((0, 1), np.float64)
        places = np.argsort(-activity, kind="stable")[:most_active].tolist()
        channels, values = [channels[place] for place in places], values[:, :, places]
    if is_vector(shape):
        return [_feature_map(layer, shape, channels, values.reshape(-1), values.reshape(-1))]
    lefts = np.arange(0, shape[1], side)
    _, tops, heights = np.unique(rows // side, return_index=True, return_counts=True)
    with np.errstate(invalid="ignore", over="ignore"):
        sums = np.add.reduceat(np.add.reduceat(values, lefts, axis=1), tops, axis=0)
        means = (sums / np.outer(heights, np.minimum(side, shape[1] - lefts))[:, :, None]).astype(np.float32)
    return [_feature_map(layer, shape, [channel], values[:, :, at], means[:, :, at]) for at, channel in enumerate(channels)]


def _feature_map(
    layer: str, shape: tuple[int, ...], channels: Sequence[int], values: NDArray[np.float32], drawn: NDArray[np.float32]
) -> FeatureMap:
    finite = values[np.isfinite(values)]
    low, high = float(finite.min(initial=np.inf)), float(finite.max(initial=-np.inf))
    return FeatureMap(
        *(layer, shape, channels, drawn, low, high), float(np.mean(values == 0)), values.size - finite.size, len(values)
    )


def plan_layout(shapes: Sequence[tuple[int, ...]], is_mosaic: bool) -> Layout:
    """Return the grid for so many maps: of layers about twice as wide as high, 9 by 4 for 36; of channels a square.

    Args:
        shapes: Of the features that each map is of, or (components that are shown,).
        is_mosaic: Whether they are channels of one layer.
    """
    aspects = [shape[0] / shape[1] for shape in shapes if not is_vector(shape)]
    # Charts are twice as wide as maps.
    count, stretch = len(shapes), 1 if aspects else 2
    columns = min(count, math.ceil(math.sqrt(count * (1 if is_mosaic else 9 / 4)) / stretch))
    rows = math.ceil(count / columns)
    width = stretch * max(LEAST_CHANNEL_SIDE if is_mosaic else LEAST_LAYER_SIDE, LARGEST_SIDE / math.sqrt(count))
    height = width * (min(max(LEAST_ASPECT, *aspects), GREATEST_ASPECT) if aspects else CHART_ASPECT)
    return Layout(math.ceil(count / rows), rows, width, height, is_mosaic)


@contextmanager
def plain_settings() -> Iterator[None]:
    """Make Matplotlib draw as it would for anybody: without this user's settings, and equal bytes for equal pictures."""
    # A notebook's backend is inherited by the programs it starts, and where they do not have it Matplotlib cannot be imported.
    os.environ.pop("MPLBACKEND", None)
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        # Source: Matplotlib, "Reproducible output": names inside an SVG are random otherwise.
        matplotlib.rcParams["svg.hashsalt"] = "deep-feature-pipeline"
        matplotlib.rcParams["figure.max_open_warning"] = 0
        # Two dollar signs in a name would be read as mathematics.
        matplotlib.rcParams["text.parse_math"] = False
        # Names in scripts that Matplotlib's font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", r"Glyph .* missing from")
        yield


def draw(
    lines: Sequence[str],
    maps: Sequence[FeatureMap],
    layout: Layout,
    options: PlotOptions,
    seen: NDArray[np.uint8] | None = None,
    seen_lines: Sequence[str] = (),
    marked: int | None = None,
) -> Figure:
    """Draw a sheet: a grid of axes of one size, a map or a chart in each, with its name above and its numbers below.

    Args:
        lines: The image's key, and what else is to be known of all maps.
        maps: At least one.
        layout: Of these maps.
        options: Scale, colour map, pixels an inch.
        seen: (H, W, 3) uint8, the picture that the network saw; None: not wanted, or not to be had.
        seen_lines: What is to be known of it.
        marked: Component to be marked in vectors.

    Raises:
        OptionError: There is no such colour map, it would have too many pixels, or no window can be opened.
    """
    from matplotlib import colormaps

    if (name := options.colormap) not in colormaps:
        raise OptionError(
            f"colormap: there is none of this name, got {name!r}. Expected one of: {nearest(name.lower(), colormaps)[:100]}. "
            f"Matplotlib's documentation shows them all."
        )
    colormap = colormaps[name].with_extremes(bad=NOT_FINITE)
    is_shared, common = options.scale == "shared", _ends(maps)
    has_scales = not is_shared and layout.width > SMALL_SIDE
    captions = [_caption(one, layout.is_mosaic, marked) for one in maps]
    left, top = MARGIN + (INPUT_SIDE + GAP) * (seen is not None), MARGIN + LINE_HEIGHT * (len(lines) + 3)
    gap_x, gap_y = SCALE_SPACE if has_scales else GAP, LINE_HEIGHT * (2 + max(map(len, captions))) + GAP
    right = left + layout.columns * (layout.width + gap_x) - gap_x
    bottom = top + layout.rows * (layout.height + gap_y) - gap_y
    width, height = max(right + (SCALE_SPACE if has_scales or is_shared else GAP), LEAST_WIDTH), bottom + gap_y
    if seen is not None:
        height = max(height, top + INPUT_SIDE * min(seen.shape[0] / seen.shape[1], GREATEST_ASPECT) + 4 * LINE_HEIGHT)
    figure = _figure(width, height, options)
    for number, line in enumerate(lines):
        look: dict[str, Any] = {"size": TEXT_POINTS, "color": FAINT} if number else {"size": HEADING_POINTS, "weight": "bold"}
        place = MARGIN / width, 1 - (MARGIN + LINE_HEIGHT * (number + (number > 0) / 2)) / height
        figure.text(*place, _fitted(line, width - 2 * MARGIN, look["size"]), va="top", **look)
    if seen is not None:
        size = INPUT_SIDE / width, GREATEST_ASPECT * INPUT_SIDE / height
        axes = figure.add_axes((MARGIN / width, 1 - top / height - size[1], *size))
        _words(axes, "input", seen_lines, INPUT_SIDE)
        _show_pixels(axes, seen, INPUT_SIDE)
    grid = figure.add_gridspec(
        *(layout.rows, layout.columns),
        **{"left": left / width, "right": right / width, "top": 1 - top / height, "bottom": 1 - bottom / height},
        **{"wspace": gap_x / layout.width, "hspace": gap_y / layout.height},
    )
    for number, (one, caption) in enumerate(zip(maps, captions, strict=True)):
        axes, is_chart = figure.add_subplot(grid[number]), one.values.ndim == 1
        _words(axes, f"channel {one.channels[0]}" if layout.is_mosaic else one.layer, caption, layout.width + gap_x)
        low, high = common if is_shared else _ends([one])
        if low > high or (is_chart and low == high):
            low, high = 0.0, 1.0
        if is_chart:
            _chart(axes, one, (low, high), marked, layout.width)
        else:
            # Of float32 the range of all that it holds would overflow.
            _show_pixels(axes, one.values.astype(np.float64), layout.width, cmap=colormap, vmin=low, vmax=high)
        if has_scales or (is_shared and number == layout.columns - 1):
            is_coloured = not is_chart or (is_shared and any(other.values.ndim > 1 for other in maps))
            _scale(axes, one, (low, high), colormap if is_coloured else None, layout)
    return figure  # type: ignore[no-any-return]


def _ends(maps: Sequence[FeatureMap]) -> tuple[float, float]:
    """Return the least and the greatest value of all; of vectors zero too, as bars begin there."""
    zero = [0.0] if any(one.values.ndim == 1 for one in maps) else []
    return min([*zero, *(one.low for one in maps)]), max([*zero, *(one.high for one in maps)])


def _figure(width: float, height: float, options: PlotOptions) -> Any:
    from matplotlib.figure import Figure

    width_px, height_px = round(width * options.dpi), round(height * options.dpi)
    if max(width_px, height_px) > LARGEST_SIDE_PX or width_px * height_px > LARGEST_PIXELS:
        raise OptionError(
            f"dpi: the picture would be too large, got {width_px} x {height_px} px with {options.dpi}. Expected at most "
            f"{LARGEST_PIXELS} px in all. Choose a smaller dpi, or fewer channels or layers."
        )
    if not options.show:
        return Figure((width, height), options.dpi)
    from matplotlib import pyplot

    figure: Any = pyplot.figure(figsize=(width, height), dpi=options.dpi)
    if figure.canvas.required_interactive_framework is None:
        pyplot.close(figure)
        raise OptionError(
            "show: no window can be opened here, got no display or no window toolkit. Expected a display, and a toolkit as "
            "tkinter or PyQt. Leave show out and open the file that is written."
        )
    return figure


def _fitted(words: str, width: float, points: float) -> str:
    """Return a line; one that is longer than its space loses its middle, as both ends of a path tell something."""
    return shortened(printable(words), int(width * 72 / (points * LETTER_WIDTH)))


def _words(axes: Any, name: str, lines: Sequence[str], width: float) -> None:
    """Write a name above axes, and lines of text below them and their ticks."""
    axes.set_title(_fitted(name, width, NAME_POINTS), loc="left", size=NAME_POINTS, weight="bold", color=INK, pad=4)
    axes.set_xlabel("\n".join(lines), loc="left", size=TEXT_POINTS, color=INK, labelpad=3)
    axes.tick_params(**TICKS)
    axes.spines[:].set(edgecolor=FRAME, linewidth=0.6)


def _show_pixels(axes: Any, pixels: NDArray[Any], width: float, **look: Any) -> None:
    """Show a map (h', w') or a picture (h, w, 3) in the upper left of axes, its proportions kept."""
    # Matplotlib would smooth slightly enlarged maps, and show values that are not there.
    how = "antialiased" if pixels.shape[1] > width * axes.figure.dpi else "nearest"
    axes.imshow(pixels, interpolation=how, **look)
    axes.set(anchor="NW", xticks=[], yticks=[])


def _chart(axes: Any, one: FeatureMap, ends: tuple[float, float], marked: int | None, width: float) -> None:
    """Draw components as bars from zero; where there are very many, a bar from the least to the greatest of some."""
    count, is_finite = len(one.values), np.isfinite(one.values)
    step = math.ceil(count * BAR_WIDTH / width)
    finite, firsts = np.where(is_finite, one.values, 0), np.arange(0, count, step)
    lows, highs = np.minimum.reduceat(finite, firsts).clip(max=0), np.maximum.reduceat(finite, firsts).clip(min=0)
    is_bad = np.logical_or.reduceat(~is_finite, firsts)
    lows[is_bad], highs[is_bad] = ends
    colors, places = np.where(is_bad, NOT_FINITE, INK), firsts + (step - 1) / 2
    if marked is not None and marked in one.channels:
        bar = one.channels.index(marked) // step
        colors[bar] = MARKED
        axes.axvline(places[bar], color=MARKED, linewidth=0.8, zorder=0)
    axes.bar(places, highs - lows, step * (0.8 if width / count > 2 * BAR_WIDTH else 1), lows, color=colors)
    axes.axhline(0, color=FRAME, linewidth=0.6)
    axes.set(xlim=(-0.5, count - 0.5), ylim=ends, yticks=[])
    if isinstance(one.channels, range):
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    else:
        # Every bar has its number, or so many that they can be told apart.
        numbered = range(0, count, math.ceil(NUMBER_WIDTH * count / width))
        axes.set_xticks(numbered, [str(one.channels[place]) for place in numbered], rotation=90)


def _scale(axes: Any, one: FeatureMap, ends: tuple[float, float], colormap: Any, layout: Layout) -> None:
    """Write the ends of a scale beside axes, with its colours if there are any; where there are two ends, and space for both."""
    from matplotlib.cm import ScalarMappable

    height = layout.height if one.values.ndim == 1 else min(layout.height, layout.width * one.shape[0] / one.shape[1])
    if ends[0] == ends[1] or height < LEAST_SCALE:
        return
    places = ends
    if colormap is not None:
        strip, places = axes.inset_axes((1 + 0.06 / layout.width, 0, 0.09 / layout.width, 1)), (0, 1)
        axes.figure.colorbar(ScalarMappable(cmap=colormap), strip).outline.set(edgecolor=FRAME, linewidth=0.6)
        strip.tick_params(**TICKS)
        axes = strip
    axes.yaxis.tick_right()
    axes.set_yticks(places, [words_for_number(value, 3) for value in ends])


def _caption(one: FeatureMap, is_mosaic: bool, marked: int | None) -> list[str]:
    lines = [] if is_mosaic else [words_for_shape(one.shape)]
    if one.values.ndim == 1 and marked is not None and marked in one.channels:
        lines.append(f"component {marked}: {words_for_number(one.values[one.channels.index(marked)])}")
    if one.values.ndim > 1 and one.rows_read < one.shape[0]:
        lines.append(f"{one.rows_read} rows read")
    if one.low > one.high:
        return [*lines, "no finite value"]
    low, high = words_for_number(one.low), words_for_number(one.high)
    lines += [f"all {low}" if one.low == one.high else f"{low} to {high}", f"{words_for_share(one.zeros)} zeros"]
    return [*lines, f"{one.not_finite} not finite"] if one.not_finite else lines


def save(picture: Figure | Image.Image, path: Path) -> tuple[int, int]:
    """Write the file in the format of its suffix; it has its name only once it is whole. Return its width and height in pixels.

    Raises:
        StoreError: It cannot be written.
    """
    kind = path.suffix[1:].lower()
    with replacing(path) as partial:
        if isinstance(picture, Image.Image):
            picture.save(partial, kind)
            return picture.size
        # No time of writing, no version: equal pictures are equal bytes.
        empty = {"png": ("Software",), "pdf": ("Creator", "Producer", "CreationDate"), "svg": ("Date", "Creator")}[kind]
        picture.savefig(partial, format=kind, dpi=picture.dpi, metadata=dict.fromkeys(empty))
        return picture.canvas.get_width_height()


def show_windows() -> None:
    """Show all sheets made for a window, and wait until they are closed."""
    from matplotlib import pyplot

    pyplot.show(block=True)
