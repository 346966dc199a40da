"""Sheets of feature maps, drawn by Matplotlib: a grid of maps with names, captions and colour bars, the input beside it.

A sheet is one pair of axes in which a unit is an inch: hundreds of axes would take Matplotlib a minute. A cell of the grid is as
large as a map, its words and its colour bar together; the constrained layout sees to it that no label is cut.
"""

from __future__ import annotations

import math
import os
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .config import PlotOptions
from .errors import OptionError, StoreError, nearest, printable
from .feature_maps import FeatureMap, has_extent
from .formatting import words_for_number, words_for_shape, words_for_share

# A notebook's backend is inherited by the programs it starts, and where they do not have it Matplotlib cannot be imported.
os.environ.pop("MPLBACKEND", None)
import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

INK, FAINT, FRAME = "#1a1a1a", "#666666", "#b0b0b0"
# What is no finite number: a colour that the usual colour maps do not have.
NOT_FINITE = "#ff00ff"
HEADING_POINTS, NAME_POINTS, TEXT_POINTS = 11.0, 9.0, 7.5
# Inches from here on.
HEADING_HEIGHT, NAME_HEIGHT, LINE_HEIGHT = 0.21, 0.17, 0.14
MARGIN, GAP, BAR_GAP, BAR_STRIP, BAR_SPACE = 0.2, 0.25, 0.06, 0.09, 0.85
# A lower colour bar has no space for two numbers.
LEAST_BAR = 0.3
# Side of the only map; of one of many layers, of one of many channels, at least. Smaller maps have no colour bars of their own.
LARGEST_SIDE, LEAST_LAYER_SIDE, LEAST_CHANNEL_SIDE, SMALL_SIDE = 4.2, 1.75, 1.15, 1.5
# Height of the box for a map as a part of its width; a longer map is drawn narrower.
LEAST_ASPECT, GREATEST_ASPECT = 0.15, 1.5
INPUT_SIDE, LEAST_WIDTH = 2.6, 4.0
CHART_HEIGHT, CHART_LEFT, CHART_BELOW, CHART_PITCH, MOST_CHART_WIDTH = 2.4, 0.65, 0.5, 0.16, 10.0
# Source: the antigrain renderer refuses 65536; memory is 4 B a pixel, and Matplotlib holds several copies.
LARGEST_SIDE_PX, LARGEST_PIXELS = 65000, 2**28

# Left, top, width, height.
Box = tuple[float, float, float, float]


class Layout(NamedTuple):
    """A grid, and the box for each map in it, in inches. ``is_mosaic``: of channels of one layer, not of layers."""

    columns: int
    rows: int
    width: float
    height: float
    is_mosaic: bool

    def limit_px(self, dpi: int) -> tuple[int, int]:
        """Return the (height, width) beyond which nobody would see more of a map."""
        return math.ceil(self.height * dpi), math.ceil(self.width * dpi)


@dataclass(frozen=True, slots=True)
class Sheet:
    """What is to be drawn.

    Attributes:
        lines: The image's key, and what else is to be known of all maps.
        maps: At least one.
        layout: Of these maps.
        seen: (H, W, 3) uint8, the picture that the network saw; None: not wanted, or not to be had.
        seen_lines: What is to be known of it.
    """

    lines: Sequence[str]
    maps: Sequence[FeatureMap]
    layout: Layout
    seen: NDArray[np.uint8] | None = None
    seen_lines: Sequence[str] = ()


@contextmanager
def plain_settings() -> Iterator[None]:
    """Make Matplotlib draw as it would for anybody: without this user's settings, and equal bytes for equal pictures."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams["figure.constrained_layout.use"] = True
        matplotlib.rcParams["figure.constrained_layout.w_pad"] = matplotlib.rcParams["figure.constrained_layout.h_pad"] = MARGIN
        # Where the axes are before the layout, which keeps space for what stands out of them there: nothing.
        matplotlib.rcParams.update({"figure.subplot.left": 0, "figure.subplot.bottom": 0})
        matplotlib.rcParams.update({"figure.subplot.right": 1, "figure.subplot.top": 1})
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


def check_colormap(name: str) -> None:
    """Refuse the name of a colour map that Matplotlib does not have.

    Raises:
        OptionError: There is none of this name.
    """
    if name not in matplotlib.colormaps:
        raise OptionError(
            f"colormap: there is none of this name, got {name!r}. Expected one of: "
            f"{nearest(name.lower(), matplotlib.colormaps)[:100]}. Matplotlib's documentation shows them all."
        )


def plan_layout(shapes: Sequence[tuple[int, int, int]], is_mosaic: bool) -> Layout:
    """Return the grid for so many maps: of layers about twice as wide as high, 9 by 4 for 36; of channels a square.

    Args:
        shapes: (h, w, c) of the layer of each map.
        is_mosaic: Whether they are channels of one layer.
    """
    count = len(shapes)
    columns = min(count, math.ceil(math.sqrt(count * (1 if is_mosaic else 9 / 4))))
    rows = math.ceil(count / columns)
    width = max(LEAST_CHANNEL_SIDE if is_mosaic else LEAST_LAYER_SIDE, LARGEST_SIDE / math.sqrt(count))
    aspects = [height / width for height, width, _ in shapes if height * width > 1] or [1.0]
    aspect = min(max(LEAST_ASPECT, *aspects), GREATEST_ASPECT)
    return Layout(math.ceil(count / rows), rows, width, width * aspect, is_mosaic)


def draw(sheet: Sheet, options: PlotOptions) -> Figure:
    """Draw a sheet.

    Raises:
        OptionError: It would have too many pixels, or no window can be opened.
    """
    maps, layout, seen = sheet.maps, sheet.layout, sheet.seen
    is_shared = options.scale == "shared"
    has_bars = not is_shared and layout.width > SMALL_SIDE
    captions = [_caption(one, layout.is_mosaic) for one in maps]
    cell_width = layout.width + (BAR_SPACE if has_bars else GAP)
    cell_height = NAME_HEIGHT + layout.height + max(map(len, captions)) * LINE_HEIGHT + GAP
    grid_width, grid_height = layout.columns * cell_width + BAR_SPACE * is_shared, layout.rows * cell_height
    if is_chart := layout.is_mosaic and not has_extent(maps[0].shape):
        chart_width = min(len(maps) * CHART_PITCH, MOST_CHART_WIDTH)
        grid_width, grid_height = CHART_LEFT + chart_width, NAME_HEIGHT + CHART_HEIGHT + CHART_BELOW
    left, top, seen_height = 0.0, HEADING_HEIGHT + LINE_HEIGHT * len(sheet.lines), 0.0
    if seen is not None:
        left = INPUT_SIDE + GAP
        seen_size = _fitted(seen.shape, INPUT_SIDE, GREATEST_ASPECT * INPUT_SIDE)
        seen_height = NAME_HEIGHT + seen_size[1] + 3 * LINE_HEIGHT
    width, height = max(left + grid_width, LEAST_WIDTH), top + max(grid_height, seen_height)
    axes = _axes(width, height, options)
    _line(axes, 0, sheet.lines[0], size=HEADING_POINTS, weight="bold", color=INK)
    for number, line in enumerate(sheet.lines[1:]):
        _line(axes, HEADING_HEIGHT + number * LINE_HEIGHT, line, size=TEXT_POINTS, color=FAINT)
    if seen is not None:
        _show(axes, seen, (0, top + NAME_HEIGHT, *seen_size), "input", sheet.seen_lines)
    if is_chart:
        corner = (left + CHART_LEFT) / width, 1 - (top + NAME_HEIGHT + CHART_HEIGHT) / height
        _bar_chart(axes.inset_axes((*corner, chart_width / width, CHART_HEIGHT / height)), maps)
        return axes.figure  # type: ignore[no-any-return]
    colormap = matplotlib.colormaps[options.colormap].with_extremes(bad=NOT_FINITE)
    # Of all maps; NaN where no value is finite.
    common = float(np.fmin.reduce([one.low for one in maps])), float(np.fmax.reduce([one.high for one in maps]))
    for number, one in enumerate(maps):
        row, column = divmod(number, layout.columns)
        size = _fitted(one.pixels.shape if one.channel is None else one.shape, layout.width, layout.height)
        box = left + column * cell_width, top + row * cell_height + NAME_HEIGHT, *size
        ends = common if is_shared else (one.low, one.high)
        low, high = ends if ends[0] <= ends[1] else (0.0, 1.0)
        name = f"channel {one.channel}" if layout.is_mosaic else one.layer
        pixels = np.ma.masked_invalid(one.pixels.astype(np.float64))
        _show(axes, pixels, box, name, captions[number], cmap=colormap, vmin=low, vmax=high)
        if has_bars or (is_shared and number == layout.columns - 1):
            _colour_bar(axes, box, ends, colormap)
    return axes.figure  # type: ignore[no-any-return]


def _axes(width: float, height: float, options: PlotOptions) -> Any:
    """Return axes of a new figure that measure inches from the upper left corner."""
    size = width + 2 * MARGIN, height + 2 * MARGIN
    width_px, height_px = (round(side * options.dpi) for side in size)
    if max(width_px, height_px) > LARGEST_SIDE_PX or width_px * height_px > LARGEST_PIXELS:
        raise OptionError(
            f"dpi: the picture would be too large, got {width_px} x {height_px} px with {options.dpi}. Expected at most "
            f"{LARGEST_PIXELS} px in all. Choose a smaller dpi, or fewer channels or layers."
        )
    figure = _window() if options.show else Figure()
    figure.set(size_inches=size, dpi=options.dpi)
    axes = figure.subplots()
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return axes


def _line(axes: Any, top: float, line: str, **look: Any) -> None:
    """Write a line at the left; one that is longer than the sheet loses its middle, as both ends of a path tell something."""
    whole = printable(line)
    text, limit = axes.text(0, top, whole, va="top", **look), axes.get_xlim()[1] * axes.figure.dpi

    def width(kept: int) -> float:
        if kept < len(whole):
            text.set_text(f"{whole[: kept - kept // 2]}…{whole[len(whole) - kept // 2 :]}")
        return float(text.get_window_extent().width)

    if width(len(whole)) > limit:
        width(bisect_right(range(1, len(whole)), limit, key=width))


def _show(axes: Any, pixels: NDArray[Any], box: Box, name: str, lines: Sequence[str], **look: Any) -> None:
    """Show a map (h', w') or a picture (h, w, 3) in a box, its name above it and lines of text below it."""
    left, top, _, height = box
    _image(axes, pixels, box, **look)
    axes.text(left, top - 0.05, name, size=NAME_POINTS, weight="bold", color=INK)
    axes.text(left, top + height + 0.04, "\n".join(lines), va="top", size=TEXT_POINTS, color=INK, linespacing=1.35)


def _colour_bar(axes: Any, box: Box, ends: tuple[float, float], colormap: Any) -> None:
    """Draw the colour bar of what is shown in a box beside it, if there is space for it and more than one value."""
    left, top, width, height = box
    if ends[0] < ends[1] and height >= LEAST_BAR:
        left += width + BAR_GAP
        _image(axes, np.linspace(1, 0, 256)[:, None], (left, top, BAR_STRIP, height), cmap=colormap)
        for value, place, align in ((ends[1], top, "top"), (ends[0], top + height, "bottom")):
            text = words_for_number(value, 3)
            axes.text(left + BAR_STRIP + 0.05, place, text, va=align, size=TEXT_POINTS, color=FAINT)


def _image(axes: Any, pixels: NDArray[Any], box: Box, **look: Any) -> None:
    left, top, width, height = box
    # Matplotlib would smooth slightly enlarged maps, and show values that are not there.
    how = "antialiased" if pixels.shape[1] > width * axes.figure.dpi else "nearest"
    axes.imshow(pixels, interpolation=how, extent=(left, left + width, top + height, top), **look)
    axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=FRAME, linewidth=0.6))


def _bar_chart(axes: Any, maps: Sequence[FeatureMap]) -> None:
    """Draw the channels of a layer that has one value each as bars."""
    axes.bar(range(len(maps)), [0.0 if math.isnan(one.low) else one.high for one in maps], color=INK)
    # Every bar has its number, or so many that they can be told apart.
    places = range(0, len(maps), math.ceil(len(maps) * CHART_PITCH / MOST_CHART_WIDTH))
    axes.set_xticks(places, [str(maps[place].channel) for place in places], rotation=90)
    axes.set_xlim(-0.5, len(maps) - 0.5)
    axes.tick_params(length=2, color=FRAME, labelcolor=FAINT, labelsize=TEXT_POINTS)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(maps[0].layer, loc="left", size=NAME_POINTS, weight="bold", color=INK)


def _fitted(shape: Sequence[int], width: float, height: float) -> tuple[float, float]:
    """Return (width, height) of a picture of this shape inside this box, its proportions kept."""
    scale = min(width / shape[1], height / shape[0])
    return shape[1] * scale, shape[0] * scale


def _caption(one: FeatureMap, is_mosaic: bool) -> list[str]:
    folded = f", folded {words_for_shape(one.pixels.shape)}" if one.channel is None else ""
    lines = [] if is_mosaic else [words_for_shape(one.shape) + folded]
    if one.rows_read < one.shape[0]:
        lines.append(f"{one.rows_read} rows read")
    if math.isnan(one.low):
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
        if isinstance(picture, Figure):
            picture.savefig(partial, format=kind, dpi=picture.dpi, metadata=dict.fromkeys(empty))
        else:
            picture.save(partial, kind)
        partial.replace(path)
        return picture.canvas.get_width_height() if isinstance(picture, Figure) else picture.size
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
