"""Sheets of feature maps, drawn by Matplotlib: a grid of maps with names, captions and colour bars, the input beside it.

Lengths are inches. A cell of the grid is as large as its map, its words and its colour bar together, and a line of text that is
longer than its cell loses its middle: so no label is cut, and none lies on another.
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

from .errors import OptionError, StoreError, nearest
from .feature_maps import FeatureMap, has_extent, number_words, shape_words, share_words

# A notebook's backend is inherited by the programs it starts, and where they do not have it Matplotlib cannot be imported.
os.environ.pop("MPLBACKEND", None)
import matplotlib
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

INK, FAINT, FRAME = "#1a1a1a", "#666666", "#b0b0b0"
# What is no finite number: a colour that the usual colour maps do not have.
NOT_FINITE = "#ff00ff"
HEADING_POINTS, NAME_POINTS, TEXT_POINTS, TICK_POINTS = 11.0, 9.0, 7.5, 7.0
LEADING = 1.35
MARGIN, GAP = 0.2, 0.25
BAR_GAP, BAR_STRIP, BAR_SPACE = 0.06, 0.09, 0.85
# A lower colour bar has no space for two numbers, one of 1.9 inches for five.
LEAST_BAR, LONG_BAR, LONGEST_BAR = 0.3, 1.9, 3.0
# Side of the only map; of one of many layers, of one of many channels, at least.
LARGEST_SIDE, LEAST_LAYER_SIDE, LEAST_CHANNEL_SIDE = 4.2, 1.75, 1.15
# Maps of a mosaic that are no larger have no colour bars of their own; their captions give the range.
SMALL_SIDE = 1.5
# Height of the box for a map as a part of its width; a longer map is drawn narrower.
LEAST_ASPECT, GREATEST_ASPECT = 0.15, 1.5
INPUT_SIDE, LEAST_INPUT_WIDTH, LEAST_WIDTH = 2.6, 1.3, 4.0
CHART_HEIGHT, CHART_LEFT, CHART_BELOW, CHART_PITCH, MOST_CHART_WIDTH = 2.4, 0.65, 0.5, 0.16, 10.0
# Source: the antigrain renderer refuses 65536; memory is 4 B a pixel, and Matplotlib holds several copies.
LARGEST_SIDE_PX = 65000
LARGEST_PIXELS = 2**28


class Look(NamedTuple):
    """How maps are drawn: name of a colour map, one scale for all maps of a sheet or one for each, pixels an inch."""

    colormap: str
    is_shared: bool
    dpi: int


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
        heading: The image's key.
        lines: What else is to be known of all maps.
        maps: At least one.
        seen: (H, W, 3) uint8, the picture that the network saw; None: not wanted, or not to be had.
        seen_lines: What is to be known of it.
    """

    heading: str
    lines: tuple[str, ...]
    maps: Sequence[FeatureMap]
    seen: NDArray[np.uint8] | None
    seen_lines: tuple[str, ...]


@contextmanager
def plain_settings() -> Iterator[None]:
    """Make Matplotlib draw as it would for anybody: without this user's settings, and equal bytes for equal pictures."""
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


def check_colormap(name: str) -> str:
    """Return the name of a colour map of Matplotlib's.

    Raises:
        OptionError: There is none of this name.
    """
    known = list(matplotlib.colormaps)
    if name in known:
        return name
    same = [other for other in known if other.lower() == name.lower()]
    near = ", ".join(same) or nearest(name, known)
    raise OptionError(
        f"colormap: there is none of this name, got {name!r}. Expected one of: {near[:100]}. "
        f"Matplotlib's documentation shows them all."
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


def draw(sheet: Sheet, look: Look, layout: Layout, in_window: bool = False) -> Figure:
    """Draw a sheet.

    Args:
        sheet: What.
        look: How.
        layout: Where; of these maps.
        in_window: Whether it will be shown.

    Raises:
        OptionError: It would have too many pixels.
    """
    maps = sheet.maps
    is_chart = layout.is_mosaic and not has_extent(maps[0].shape)
    own_bars = not look.is_shared and (not layout.is_mosaic or layout.width > SMALL_SIDE)
    captions = [_caption(one, layout.is_mosaic) for one in maps]
    words = _lines(max(map(len, captions)), TEXT_POINTS) + _lines(1, NAME_POINTS) + GAP
    cell_width, cell_height = layout.width + (BAR_SPACE if own_bars else GAP), layout.height + words
    grid_width, grid_height = layout.columns * cell_width + BAR_SPACE * look.is_shared, layout.rows * cell_height
    if is_chart:
        pitch = max(min(CHART_PITCH, MOST_CHART_WIDTH / len(maps)), 1 / look.dpi)
        grid_width, grid_height = CHART_LEFT + max(len(maps) * pitch, 2.5), CHART_HEIGHT + CHART_BELOW + words
    seen_width = seen_height = beside = 0.0
    if sheet.seen is not None:
        side = layout.width if len(maps) == 1 and not is_chart else INPUT_SIDE
        seen_width, seen_height = _fitted(sheet.seen.shape, side, GREATEST_ASPECT * side)
        beside = max(seen_width, LEAST_INPUT_WIDTH) + GAP
    # Header; then names; below them maps and input begin.
    top = MARGIN + _lines(1, HEADING_POINTS) + _lines(len(sheet.lines), TEXT_POINTS) + GAP + _lines(1, NAME_POINTS)
    text_width = max(beside + grid_width, LEAST_WIDTH)
    width = text_width + 2 * MARGIN
    height = top + max(grid_height - _lines(1, NAME_POINTS), seen_height + _lines(len(sheet.seen_lines), TEXT_POINTS)) + MARGIN
    figure = _figure(width, height, look.dpi, in_window)

    def box(left: float, top: float, box_width: float, box_height: float) -> tuple[float, float, float, float]:
        """Return a box in parts of the figure, from inches right of and below its upper left corner."""
        return left / width, 1 - (top + box_height) / height, box_width / width, box_height / height

    heading = _fit(sheet.heading, text_width, HEADING_POINTS, "bold")
    figure.text(MARGIN / width, 1 - MARGIN / height, heading, va="top", size=HEADING_POINTS, weight="bold", color=INK)
    lines = "\n".join(_fit(line, text_width, TEXT_POINTS) for line in sheet.lines)
    below = 1 - (MARGIN + _lines(1, HEADING_POINTS)) / height
    figure.text(MARGIN / width, below, lines, va="top", size=TEXT_POINTS, color=FAINT, linespacing=LEADING)
    if sheet.seen is not None:
        axes = figure.add_axes(box(MARGIN, top, seen_width, seen_height))
        _show(axes, sheet.seen, "input", sheet.seen_lines, beside - GAP)
    left = MARGIN + beside
    if is_chart:
        axes = figure.add_axes(box(left + CHART_LEFT, top, len(maps) * pitch, CHART_HEIGHT))
        _bar_chart(axes, maps, pitch, grid_width - CHART_LEFT)
        return figure
    common = _common_range(maps)
    for number, (one, lines_below) in enumerate(zip(maps, captions, strict=True)):
        row, column = divmod(number, layout.columns)
        axes = figure.add_axes(box(left + column * cell_width, top + row * cell_height, layout.width, layout.height))
        ends = common if look.is_shared else (one.low, one.high)
        shape = one.pixels.shape if one.channel is None else one.shape
        name = f"channel {one.channel}" if layout.is_mosaic else one.layer
        image = _show(axes, one.pixels, name, lines_below, cell_width - GAP / 2, shape, ends, look.colormap)
        if own_bars and ends[0] < ends[1]:
            map_width, map_height = _fitted(shape, layout.width, layout.height)
            _colour_bar(axes.inset_axes((1 + BAR_GAP / map_width, 0, BAR_STRIP / map_width, 1)), image, map_height)
    if look.is_shared and common[0] < common[1]:
        bar_height = max(min(grid_height - words, LONGEST_BAR), LEAST_BAR)
        place = box(left + layout.columns * cell_width - GAP + BAR_GAP, top, BAR_STRIP, bar_height)
        _colour_bar(figure.add_axes(place), image, bar_height)
    return figure


def _figure(width: float, height: float, dpi: int, in_window: bool) -> Figure:
    width_px, height_px = round(width * dpi), round(height * dpi)
    if max(width_px, height_px) > LARGEST_SIDE_PX or width_px * height_px > LARGEST_PIXELS:
        raise OptionError(
            f"dpi: the picture would be too large, got {width_px} x {height_px} px with {dpi}. Expected at most "
            f"{LARGEST_PIXELS} px in all. Choose a smaller dpi, or fewer channels or layers."
        )
    if in_window:
        from matplotlib import pyplot

        return pyplot.figure(figsize=(width, height), dpi=dpi)
    return Figure(figsize=(width, height), dpi=dpi)


def _show(
    axes: Any,
    pixels: NDArray[Any],
    name: str,
    lines: Sequence[str],
    limit: float,
    shape: Sequence[int] = (),
    ends: tuple[float, float] = (0.0, 1.0),
    colormap: str = "gray",
) -> Any:
    """Show a map (h', w') or a picture (h, w, 3) in its proportions, its name above and lines of text below it, and return it.

    ``limit`` is the greatest width of words in inches, ``shape`` the proportions (those of ``pixels`` by default), ``ends`` those
    of the scale, NaN where no value is finite.
    """
    height, width = tuple(shape or pixels.shape)[:2]
    scale = min(axes.bbox.height / height, axes.bbox.width / width)
    # Matplotlib would smooth slightly enlarged maps, and show values that are not there.
    shrinks = pixels.shape[0] > height * scale or pixels.shape[1] > width * scale
    image = axes.imshow(
        pixels if pixels.ndim == 3 else np.ma.masked_invalid(pixels.astype(np.float64)),
        cmap=matplotlib.colormaps[colormap].with_extremes(bad=NOT_FINITE),
        norm=Normalize(*(ends if ends[0] <= ends[1] else (0.0, 1.0))),
        extent=(0, width, height, 0),
        interpolation="antialiased" if shrinks else "nearest",
    )
    axes.set(xticks=[], yticks=[], anchor="NW")
    axes.spines[:].set(color=FRAME, linewidth=0.6)
    _name(axes, name, limit)
    _write_below(axes, lines, limit)
    return image


def _name(axes: Any, name: str, limit: float) -> None:
    axes.set_title(_fit(name, limit, NAME_POINTS, "bold"), loc="left", size=NAME_POINTS, weight="bold", color=INK, pad=4)


def _write_below(axes: Any, lines: Sequence[str], limit: float, distance: float = 0.04) -> None:
    text = "\n".join(_fit(line, limit, TEXT_POINTS) for line in lines)
    options = {"size": TEXT_POINTS, "color": INK, "linespacing": LEADING, "va": "top"}
    axes.annotate(text, (0, 0), (0, -72 * distance), xycoords="axes fraction", textcoords="offset points", **options)


def _colour_bar(axes: Any, image: Any, height: float) -> None:
    """Draw the colour bar of a map in axes of this height."""
    low, high = image.get_clim()
    if height < LEAST_BAR:
        axes.set_axis_off()
        return
    bar = axes.figure.colorbar(image, cax=axes)
    # Files of vectors show seams between the colours otherwise.
    bar.solids.set_edgecolor("face")
    bar.outline.set(color=FRAME, linewidth=0.6)
    ticks = np.linspace(low, high, 5 if height >= LONG_BAR else 2).tolist()
    bar.set_ticks(ticks, labels=[number_words(tick, 3) for tick in ticks])
    axes.tick_params(length=2, pad=2, color=FRAME, labelcolor=FAINT, labelsize=TICK_POINTS)
    labels = axes.get_yticklabels()
    labels[0].set_va("bottom")
    labels[-1].set_va("top")


def _bar_chart(axes: Any, maps: Sequence[FeatureMap], pitch: float, limit: float) -> None:
    """Draw the channels of a layer that has one value each as bars."""
    axes.bar(range(len(maps)), [0.0 if math.isnan(one.low) else one.high for one in maps], color=INK)
    axes.axhline(0, color=FAINT, linewidth=0.6)
    # Every bar has its number, or so many that they can be told apart.
    places = range(0, len(maps), math.ceil(CHART_PITCH / pitch))
    axes.set_xticks(places, [str(maps[place].channel) for place in places], rotation=90)
    axes.set_xlim(-0.5, len(maps) - 0.5)
    axes.tick_params(length=2, color=FRAME, labelcolor=FAINT, labelsize=TICK_POINTS)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=FRAME, linewidth=0.6)
    _name(axes, maps[0].layer, limit)
    wrong = sum(one.not_finite for one in maps)
    numbers = _numbers(_common_range(maps), float(np.mean([one.zeros for one in maps])), wrong)
    lines = (f"{shape_words(maps[0].shape)}, {len(maps)} channels shown", ", ".join(numbers))
    _write_below(axes, lines, limit, CHART_BELOW)


def save(figure: Figure, path: Path) -> None:
    """Write the file in the format of its suffix; it has its name only once it is whole.

    Raises:
        StoreError: It cannot be written.
    """
    kind = path.suffix[1:].lower()
    # No time of writing, no version: equal pictures are equal bytes.
    empty = {"png": ("Software",), "pdf": ("Creator", "Producer", "CreationDate"), "svg": ("Date", "Creator")}[kind]
    with published(path) as partial:
        figure.savefig(partial, format=kind, dpi=figure.dpi, metadata=dict.fromkeys(empty))


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """Give a name to write a file under, which then replaces the file of the final name.

    Raises:
        StoreError: It cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise StoreError(
            f"{path}: the picture cannot be written, got {(error.strerror or str(error)).lower()}. Expected a place for a file. "
            f"Choose another with file=..."
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()


def require_windows() -> None:
    """Make sure that a window can be opened.

    Raises:
        OptionError: It cannot.
    """
    from matplotlib import pyplot

    reason = "no display or no window toolkit"
    try:
        canvas: Any = pyplot.figure().canvas
        pyplot.close("all")
        if canvas.required_interactive_framework is not None:
            return
    except Exception as error:  # A display that does not answer, a toolkit that is half there: each raises its own.
        reason = " ".join(str(error).split())[:200]
    raise OptionError(
        f"show: no window can be opened here, got {reason}. Expected a display, and a toolkit as tkinter or PyQt. "
        f"Leave show out and open the file that is written."
    )


def show_windows() -> None:
    """Show all sheets made for a window, and wait until they are closed."""
    from matplotlib import pyplot

    pyplot.show(block=True)


def _lines(count: int, points: float) -> float:
    """Return the height of so many lines of text, in inches."""
    return count * LEADING * points / 72


def _fitted(shape: Sequence[int], width: float, height: float) -> tuple[float, float]:
    """Return (width, height) of a picture of this shape inside this box, its proportions kept."""
    scale = min(width / shape[1], height / shape[0])
    return shape[1] * scale, shape[0] * scale


def _fit(text: str, limit: float, points: float, weight: str = "normal") -> str:
    """Return a text as one printable line that fits; a longer one loses its middle: both ends of a path tell something."""
    text = "".join(mark if mark.isprintable() else "▯" for mark in " ".join(text.split()))
    font = FontProperties(size=points, weight=weight)

    def shortened(kept: int) -> str:
        return text if kept == len(text) else f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"

    def width(kept: int) -> float:
        # Letters are set on whole pixels when they are drawn: a little longer than their outlines.
        return 1.04 * float(text_to_path.get_text_width_height_descent(shortened(kept), font, False)[0]) / 72

    return text if width(len(text)) <= limit else shortened(bisect_right(range(1, len(text)), limit, key=width))


def _common_range(maps: Sequence[FeatureMap]) -> tuple[float, float]:
    known = [one for one in maps if not math.isnan(one.low)]
    return (min(one.low for one in known), max(one.high for one in known)) if known else (math.nan, math.nan)


def _caption(one: FeatureMap, is_mosaic: bool) -> tuple[str, ...]:
    numbers = _numbers((one.low, one.high), one.zeros, one.not_finite)
    if is_mosaic:
        # Narrow: a line for each.
        return numbers
    note = "" if one.channel is not None else f", folded {shape_words(one.pixels.shape)}"
    return f"{shape_words(one.shape)}{note}{rows_words(one)}", ", ".join(numbers)


def _numbers(ends: tuple[float, float], zeros: float, not_finite: int) -> tuple[str, ...]:
    low, high = ends
    if math.isnan(low):
        return ("no finite value",)
    words = f"all {number_words(low)}" if low == high else f"{number_words(low)} to {number_words(high)}"
    return words, f"{share_words(zeros)} zeros", *([f"{not_finite} not finite"] if not_finite else [])


def rows_words(one: FeatureMap) -> str:
    """Return how many of a map's rows it has been taken from, where it was not all of them."""
    return f", {one.rows_read} rows read" if one.rows_read < one.shape[0] else ""
