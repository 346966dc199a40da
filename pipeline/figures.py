"""Feature maps and vectors as pictures: reduced to the size at which they are seen, and drawn by Matplotlib as one sheet.

What is said of a map (range, zeros) is counted over all of its values; what is drawn are means over squares of them.
Matplotlib is loaded where it draws: the page of a run takes its maps from here too, and need not wait a second for it.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .config import PlotOptions
from .errors import OptionError, StoreError, nearest, printable
from .formatting import words_for_number, words_for_shape, words_for_share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT, FRAME = "#1a1a1a", "#666666", "#b0b0b0"
# What is no finite number: a colour that the usual colour maps do not have; and the component that was asked for.
NOT_FINITE, MARKED = "#ff00ff", "#d9480f"
HEADING_POINTS, NAME_POINTS, TEXT_POINTS = 11.0, 9.0, 7.5
# Inches from here on.
HEADING_HEIGHT, NAME_HEIGHT, LINE_HEIGHT = 0.21, 0.17, 0.14
MARGIN, GAP, BAR_GAP, BAR_STRIP, BAR_SPACE = 0.2, 0.25, 0.06, 0.09, 0.85
# A lower colour bar has no space for two numbers.
LEAST_BAR = 0.3
# Side of the only map; of one of many layers, of one of many channels, at least. Smaller maps have no colour bars of their own.
LARGEST_SIDE, LEAST_LAYER_SIDE, LEAST_CHANNEL_SIDE, SMALL_SIDE = 4.2, 1.75, 1.15, 1.5
# Height of the box for a map as a part of its width; a longer map is drawn narrower. Of charts alone, which are twice as wide.
LEAST_ASPECT, GREATEST_ASPECT, CHART_ASPECT = 0.15, 1.5, 0.33
# Width of a bar at most, of a bar with a number below it, of a chart at least; bars that are narrower stand without gaps.
WIDEST_BAR, NUMBER_PITCH, LEAST_CHART, NARROW_BAR = 0.3, 0.16, 1.6, 0.03
INPUT_SIDE, LEAST_WIDTH = 2.6, 4.0
# Source: the antigrain renderer refuses 65536; memory is 4 B a pixel, and Matplotlib holds several copies.
LARGEST_SIDE_PX, LARGEST_PIXELS = 65000, 2**28

# Left, top, width, height.
Box = tuple[float, float, float, float]


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
    """Return the maps of some channels, holding one band and the reduced maps at a time; of a vector one map of all of them.

    Args:
        layer: Its name.
        bands: Of each its first row, and (h', w, c); from top to bottom, at least one in each ``side`` rows. Of a vector one.
        shape: (h, w, c) of them together, or (d,).
        channels: Which, in the order in which they are wanted.
        side: Of the squares over which means are taken.
        most_active: Of the channels only so many, those with the greatest mean of what is above 0, in this order.
    """
    if is_vector(shape):
        ((_, values),) = bands
        chosen = values.reshape(1, 1, -1)[:, :, np.asarray(channels, np.int64)].astype(np.float32)
        if most_active is not None:
            places = _most_active(_numbers(chosen)[-1], most_active)
            channels, chosen = [channels[place] for place in places], chosen[:, :, places]
        # Of all components together.
        low, high, zeros, not_finite, _ = (of.item() for of in _numbers(chosen.reshape(1, -1, 1)))
        return [FeatureMap(layer, shape, channels, chosen.reshape(-1), low, high, zeros / chosen.size, not_finite, shape[0])]
    height, width, _ = shape
    wanted, lefts = np.asarray(channels, np.int64), np.arange(0, width, side)
    rows_read = np.zeros(-(-height // side), np.int64)
    sums = np.zeros((len(rows_read), len(lefts), len(wanted)), np.float32)
    of_bands = []
    with np.errstate(invalid="ignore", over="ignore"):
        for first, band in bands:
            values = band[:, :, wanted].astype(np.float32, copy=False)
            squares, tops, counts = np.unique((first + np.arange(len(values))) // side, return_index=True, return_counts=True)
            rows_read[squares] += counts
            sums[squares] += np.add.reduceat(np.add.reduceat(values, lefts, axis=1), tops, axis=0)
            of_bands.append(_numbers(values))
        sums /= (rows_read[:, None] * np.minimum(side, width - lefts))[:, :, None].astype(np.float32)
    lows, highs, *counted = (np.stack(parts) for parts in zip(*of_bands, strict=True))
    zeros, not_finite, activity = (parts.sum(axis=0) for parts in counted)
    rows, channel_maps = int(rows_read.sum()), np.ascontiguousarray(sums.transpose(2, 0, 1))
    low, high = lows.min(axis=0).tolist(), highs.max(axis=0).tolist()
    shares = (zeros / (rows * width)).tolist()
    shown: Sequence[int] = range(len(wanted)) if most_active is None else _most_active(activity, most_active)
    return [
        FeatureMap(layer, shape, [channels[at]], channel_maps[at], low[at], high[at], shares[at], int(not_finite[at]), rows)
        for at in shown
    ]


def _numbers(values: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
    """Return of each channel of (h, w, c) least and greatest finite value, zeros, values not finite, sum of what is above 0."""
    finite, axes = np.isfinite(values), (0, 1)
    return (
        np.where(finite, values, np.inf).min(axes),
        np.where(finite, values, -np.inf).max(axes),
        np.count_nonzero(values == 0, axes),
        np.count_nonzero(~finite, axes),
        np.where(finite & (values > 0), values, 0).sum(axes, np.float64),
    )


def _most_active(activity: NDArray[np.float64], count: int) -> list[int]:
    """Return the places of the greatest, of equals the first."""
    return np.argsort(-activity, kind="stable")[:count].tolist()  # type: ignore[no-any-return]


def group_components(values: NDArray[np.floating], most: int) -> tuple[int, NDArray[np.floating], NDArray[np.floating]]:
    """Return how many neighbours make a group, and of each of at most ``most`` groups the least and the greatest finite value.

    Zero is always among them: they are where bars of the components begin and end.
    """
    step = math.ceil(len(values) / most)
    finite, firsts = np.where(np.isfinite(values), values, 0), np.arange(0, len(values), step)
    return step, np.minimum.reduceat(finite, firsts).clip(max=0), np.maximum.reduceat(finite, firsts).clip(min=0)


def plan_layout(shapes: Sequence[tuple[int, ...]], is_mosaic: bool) -> Layout:
    """Return the grid for so many maps: of layers about twice as wide as high, 9 by 4 for 36; of channels a square.

    Args:
        shapes: Of the features that each map is of, or (components that are shown,).
        is_mosaic: Whether they are channels of one layer.
    """
    aspects = [shape[0] / shape[1] for shape in shapes if not is_vector(shape)]
    count, stretch = len(shapes), 1 if aspects else 2
    columns = min(count, math.ceil(math.sqrt(count * (1 if is_mosaic else 9 / 4)) / stretch))
    rows = math.ceil(count / columns)
    width = stretch * max(LEAST_CHANNEL_SIDE if is_mosaic else LEAST_LAYER_SIDE, LARGEST_SIDE / math.sqrt(count))
    height = width * (min(max(LEAST_ASPECT, *aspects), GREATEST_ASPECT) if aspects else CHART_ASPECT)
    if not aspects:
        width = min(width, max(LEAST_CHART, max(shape[-1] for shape in shapes) * WIDEST_BAR))
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
        # Of vector files too, each map with its own pixels.
        matplotlib.rcParams["image.composite_image"] = False
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
    """Draw a sheet: one pair of axes in which a unit is an inch, as hundreds of axes would take Matplotlib a minute.

    A cell of the grid is as large as a map, its words and its colour bar together.

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
    is_shared = options.scale == "shared"
    has_bars = not is_shared and layout.width > SMALL_SIDE
    captions = [_caption(one, layout.is_mosaic, marked) for one in maps]
    cell_width = layout.width + (BAR_SPACE if has_bars else GAP)
    cell_height = NAME_HEIGHT + layout.height + max(map(len, captions)) * LINE_HEIGHT + GAP
    left, top = 0.0, HEADING_HEIGHT + LINE_HEIGHT * len(lines)
    height = layout.rows * cell_height
    if seen is not None:
        left = INPUT_SIDE + GAP
        seen_box = (0, top + NAME_HEIGHT, *_fitted(seen.shape, INPUT_SIDE, GREATEST_ASPECT * INPUT_SIDE))
        height = max(height, NAME_HEIGHT + seen_box[3] + 3 * LINE_HEIGHT)
    axes = _axes(max(left + layout.columns * cell_width + BAR_SPACE * is_shared, LEAST_WIDTH), top + height, options)
    whole = axes.get_xlim()[1]
    _text(axes, 0, 0, lines[0], whole, va="top", size=HEADING_POINTS, weight="bold")
    for number, line in enumerate(lines[1:]):
        _text(axes, 0, HEADING_HEIGHT + number * LINE_HEIGHT, line, whole, va="top", size=TEXT_POINTS, color=FAINT)
    if seen is not None:
        _image(axes, seen, seen_box)
        _words(axes, seen_box, "input", seen_lines, INPUT_SIDE)
    colormap = colormaps[name].with_extremes(bad=NOT_FINITE)
    has_pixels, common = any(one.values.ndim > 1 for one in maps), _ends(maps)
    for number, (one, caption) in enumerate(zip(maps, captions, strict=True)):
        row, column = divmod(number, layout.columns)
        corner, is_chart = (left + column * cell_width, top + row * cell_height + NAME_HEIGHT), one.values.ndim == 1
        ends = common if is_shared else _ends([one])
        if is_chart:
            box = (*corner, min(layout.width, max(LEAST_CHART, len(one.values) * WIDEST_BAR)), layout.height)
            _chart(axes, box, one, ends, marked)
        else:
            box = (*corner, *_fitted(one.shape, layout.width, layout.height))
            low, high = ends if ends[0] <= ends[1] else (0.0, 1.0)
            _image(axes, np.ma.masked_invalid(one.values.astype(np.float64)), box, cmap=colormap, vmin=low, vmax=high)
        _words(axes, box, f"channel {one.channels[0]}" if layout.is_mosaic else one.layer, caption, cell_width - 0.05)
        if has_bars or (is_shared and number == layout.columns - 1):
            _scale(axes, box, ends, colormap if not is_chart or (is_shared and has_pixels) else None)
    return axes.figure  # type: ignore[no-any-return]


def _ends(maps: Sequence[FeatureMap]) -> tuple[float, float]:
    """Return the least and the greatest value of all; of vectors zero too, as bars begin there."""
    zero = [0.0] if any(one.values.ndim == 1 for one in maps) else []
    return min([*zero, *(one.low for one in maps)]), max([*zero, *(one.high for one in maps)])


def _axes(width: float, height: float, options: PlotOptions) -> Any:
    """Return axes of a new figure that measure inches from the upper left corner."""
    from matplotlib.figure import Figure

    size = width + 2 * MARGIN, height + 2 * MARGIN
    width_px, height_px = (round(side * options.dpi) for side in size)
    if max(width_px, height_px) > LARGEST_SIDE_PX or width_px * height_px > LARGEST_PIXELS:
        raise OptionError(
            f"dpi: the picture would be too large, got {width_px} x {height_px} px with {options.dpi}. Expected at most "
            f"{LARGEST_PIXELS} px in all. Choose a smaller dpi, or fewer channels or layers."
        )
    figure = _window() if options.show else Figure()
    figure.set(size_inches=size, dpi=options.dpi)
    axes = figure.add_axes((MARGIN / size[0], MARGIN / size[1], width / size[0], height / size[1]))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return axes


def _text(axes: Any, left: float, top: float, words: str, width: float, **look: Any) -> None:
    """Write a line; one that is longer than its space loses its middle, as both ends of a path tell something."""
    whole = printable(words)
    text, kept = axes.text(left, top, whole, **{"color": INK, **look}), len(whole)
    while (excess := text.get_window_extent().width / (width * axes.figure.dpi)) > 1 and kept > 2:
        kept = min(kept - 1, int(kept / excess))
        text.set_text(f"{whole[: kept - kept // 2]}…{whole[len(whole) - kept // 2 :]}")


def _words(axes: Any, box: Box, name: str, lines: Sequence[str], width: float) -> None:
    """Write a name above a box, and lines of text below it; the first may be empty, where something else stands."""
    left, top, _, height = box
    _text(axes, left, top - 0.05, name, width, size=NAME_POINTS, weight="bold")
    below, text = top + height + 0.04 + LINE_HEIGHT * lines.count(""), "\n".join(filter(None, lines))
    axes.text(left, below, text, va="top", size=TEXT_POINTS, color=INK, linespacing=1.35)


def _image(axes: Any, pixels: NDArray[Any], box: Box, **look: Any) -> None:
    """Show a map (h', w') or a picture (h, w, 3) in a box."""
    from matplotlib.patches import Rectangle

    left, top, width, height = box
    # Matplotlib would smooth slightly enlarged maps, and show values that are not there.
    how = "antialiased" if pixels.shape[1] > width * axes.figure.dpi else "nearest"
    axes.imshow(pixels, interpolation=how, extent=(left, left + width, top + height, top), aspect="auto", **look)
    axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=FRAME, linewidth=0.6))


def _chart(axes: Any, box: Box, one: FeatureMap, ends: tuple[float, float], marked: int | None) -> None:
    """Draw components as bars from zero; where there are more than pixels, a bar from the least to the greatest of some."""
    left, top, width, height = box
    count = len(one.values)
    step, lows, highs = group_components(one.values, math.ceil(width * axes.figure.dpi))
    low, high = ends if ends[0] < ends[1] else (0.0, 1.0)
    is_bad = np.zeros(len(lows), bool)
    is_bad[np.flatnonzero(~np.isfinite(one.values)) // step] = True
    colors = np.where(is_bad, NOT_FINITE, INK)
    whole_width, whole_height = axes.get_xlim()[1], axes.get_ylim()[0]
    corner = left / whole_width, 1 - (top + height) / whole_height
    chart = axes.inset_axes((*corner, width / whole_width, height / whole_height))
    if marked is not None and marked in one.channels:
        place = one.channels.index(marked) // step
        colors[place] = MARKED
        chart.axvline(place * step + (step - 1) / 2, color=MARKED, linewidth=0.8, zorder=0)
    # Narrow ones overlap a little: between them there would be shades of the ground.
    points = 72 * width / count * (0.8 if width / count > NARROW_BAR else 1.8 * step)
    places = np.arange(len(lows)) * step + (step - 1) / 2
    bars = np.where(is_bad, low, lows), np.where(is_bad, high, highs)
    chart.vlines(places, *bars, colors=colors, linewidths=points, snap=False)
    chart.axhline(0, color=FRAME, linewidth=0.6)
    chart.set(xlim=(-0.5, count - 0.5), ylim=(low, high), yticks=[])
    if isinstance(one.channels, range):
        chart.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    else:
        # Every bar has its number, or so many that they can be told apart.
        numbered = range(0, count, math.ceil(NUMBER_PITCH * count / width))
        chart.set_xticks(numbered, [str(one.channels[place]) for place in numbered], rotation=90)
    chart.tick_params(length=2, pad=2, color=FRAME, labelcolor=FAINT, labelsize=TEXT_POINTS)
    for spine in chart.spines.values():
        spine.set(edgecolor=FRAME, linewidth=0.6)


def _scale(axes: Any, box: Box, ends: tuple[float, float], colormap: Any) -> None:
    """Write the ends of a scale beside a box, with its colours but for a chart, if there are two and space for both."""
    left, top, width, height = box
    if ends[0] < ends[1] and height >= LEAST_BAR:
        left += width + BAR_GAP
        if colormap is not None:
            _image(axes, np.linspace(1, 0, 256)[:, None], (left, top, BAR_STRIP, height), cmap=colormap)
            left += BAR_STRIP + 0.05
        for value, place, align in ((ends[1], top, "top"), (ends[0], top + height, "bottom")):
            axes.text(left, place, words_for_number(value, 3), va=align, size=TEXT_POINTS, color=FAINT)


def _fitted(shape: Sequence[int], width: float, height: float) -> tuple[float, float]:
    """Return (width, height) of a picture of this shape inside this box, its proportions kept."""
    scale = min(width / shape[1], height / shape[0])
    return shape[1] * scale, shape[0] * scale


def _caption(one: FeatureMap, is_mosaic: bool, marked: int | None) -> list[str]:
    lines = [] if is_mosaic else [words_for_shape(one.shape)]
    if one.values.ndim == 1:
        # Below the numbers of the components; those of chosen ones are turned.
        lines[:0] = [""] if isinstance(one.channels, range) else ["", "", ""]
        if marked is not None and marked in one.channels:
            lines.append(f"component {marked}: {words_for_number(one.values[one.channels.index(marked)])}")
    elif one.rows_read < one.shape[0]:
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
    # No time of writing, no version: equal pictures are equal bytes.
    empty = {"png": ("Software",), "pdf": ("Creator", "Producer", "CreationDate"), "svg": ("Date", "Creator")}[kind]
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(picture, Image.Image):
            picture.save(partial, kind)
        else:
            picture.savefig(partial, format=kind, dpi=picture.dpi, metadata=dict.fromkeys(empty))
        partial.replace(path)
        return picture.size if isinstance(picture, Image.Image) else picture.canvas.get_width_height()
    except OSError as error:
        raise StoreError(
            f"{path}: the picture cannot be written, got {(error.strerror or str(error)).lower()}. Expected a place for a file. "
            f"Choose another with file=..."
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()


def _window() -> Any:
    """Return a figure that will be shown.

    Raises:
        OptionError: No window can be opened.
    """
    from matplotlib import pyplot

    reason = "no display or no window toolkit"
    try:
        figure: Any = pyplot.figure()
        if figure.canvas.required_interactive_framework is not None:
            return figure
        pyplot.close(figure)
    except Exception as error:  # A display that does not answer, a toolkit that is half there: each raises its own.
        reason = printable(str(error), 200)
    raise OptionError(
        f"show: no window can be opened here, got {reason}. Expected a display, and a toolkit as tkinter or PyQt. "
        f"Leave show out and open the file that is written."
    )


def show_windows() -> None:
    """Show all sheets made for a window, and wait until they are closed."""
    from matplotlib import pyplot

    pyplot.show(block=True)
