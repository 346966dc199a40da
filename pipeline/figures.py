"""Sheets of feature maps, drawn by Matplotlib: a grid of maps with names, captions and colour bars, the input beside it.

Lengths are inches. The figure is made as large as its grid and its lines of text need; a line that is longer than its cell loses
its middle, so that no label is cut and none lies on another.
"""

from __future__ import annotations

import difflib
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import OptionError, StoreError
from .feature_maps import FeatureMap, has_extent, number_words, shape_words, share_words

# A notebook's backend is inherited by the programs it starts, which may not have it; writing files needs none.
_backend = os.environ.pop("MPLBACKEND", None)
import matplotlib  # noqa: E402
from matplotlib.cm import ScalarMappable  # noqa: E402
from matplotlib.colors import Normalize  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.font_manager import FontProperties  # noqa: E402
from matplotlib.textpath import text_to_path  # noqa: E402

if _backend is not None:
    os.environ["MPLBACKEND"] = _backend

INK, FAINT, FRAME = "#1a1a1a", "#666666", "#b0b0b0"
# What is no finite number: a colour that the usual colour maps do not have.
NOT_FINITE = "#ff00ff"
HEADING_POINTS, NAME_POINTS, TEXT_POINTS = 11.0, 9.0, 7.5
LEADING = 1.35
MARGIN, GAP = 0.2, 0.25
BAR_GAP, BAR_STRIP, BAR_ROOM = 0.06, 0.09, 0.85
# A lower colour bar has no space for two numbers, one of 1.9 inches for five.
LEAST_BAR, LONG_BAR, LONGEST_BAR = 0.3, 1.9, 3.0
# Side of a map by the number of them: (up to so many, side in a grid of layers, side in a mosaic of channels).
SIDES = ((1, 4.2, 4.2), (4, 2.8, 2.6), (9, 2.2, 1.8), (16, 1.75, 1.5), (math.inf, 1.75, 1.15))
# Maps of a mosaic that are no larger have no colour bars of their own; their captions give the range.
SMALL_SIDE = 1.5
# Height of the box for a map as a part of its width; a longer map is drawn narrower.
LEAST_ASPECT, GREATEST_ASPECT = 0.15, 1.5
INPUT_SIDE, LEAST_INPUT_WIDTH, LEAST_WIDTH = 2.6, 1.3, 4.0
CHART_HEIGHT, CHART_LEFT, CHART_BELOW, CHART_PITCH = 2.4, 0.65, 0.5, 0.16
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
    if name not in known:
        # Names differ in their first letter's size alone: gray, Greys.
        alike = {other.lower(): other for other in known}
        close = difflib.get_close_matches(name.lower(), alike, n=3, cutoff=0.6)
        near = ", ".join(alike[other] for other in close) or "gray, viridis, magma, inferno, cividis, coolwarm"
        raise OptionError(
            f"colormap: there is none of this name, got {name!r}. Expected one of: {near}. "
            f"Matplotlib's documentation shows them all."
        )
    return name


def plan_layout(shapes: Sequence[tuple[int, int, int]], is_mosaic: bool) -> Layout:
    """Return the grid for so many maps: of layers about twice as wide as high, 9 by 4 for 36; of channels a square.

    Args:
        shapes: (h, w, c) of the layer of each map.
        is_mosaic: Whether they are channels of one layer.
    """
    count = len(shapes)
    columns = min(count, math.ceil(math.sqrt(count * (1 if is_mosaic else 9 / 4))))
    rows = math.ceil(count / columns)
    aspects = [height / width for height, width, _ in shapes if height * width > 1] or [1.0]
    width = next(sides[is_mosaic] for most, *sides in SIDES if count <= most)
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
    pitch = max(CHART_PITCH if len(maps) <= 64 else 10.0 / len(maps), 1 / look.dpi)
    own_bars = not look.is_shared and (not layout.is_mosaic or layout.width > SMALL_SIDE)
    captions = [_caption(one, layout.is_mosaic) for one in maps]
    # Between the boxes of two maps: a colour bar; a caption and a name.
    pad_width = BAR_ROOM if own_bars else GAP
    pad_height = _lines(max(map(len, captions)), TEXT_POINTS) + _lines(1, NAME_POINTS) + GAP
    if is_chart:
        grid_width, grid_height = CHART_LEFT + max(len(maps) * pitch, 2.5), CHART_HEIGHT + CHART_BELOW + pad_height
    else:
        grid_width = layout.columns * (layout.width + pad_width) + BAR_ROOM * look.is_shared
        grid_height = layout.rows * (layout.height + pad_height)
    beside = seen_width = seen_height = seen_total = 0.0
    if sheet.seen is not None:
        room = INPUT_SIDE, max(INPUT_SIDE, min(grid_height - pad_height, GREATEST_ASPECT * INPUT_SIDE))
        if len(maps) == 1 and not is_chart:
            room = layout.width, max(layout.height, INPUT_SIDE)
        seen_width, seen_height = _fitted(sheet.seen.shape, *room)
        beside = max(seen_width, LEAST_INPUT_WIDTH) + GAP
        seen_total = _lines(1, NAME_POINTS) + seen_height + _lines(len(sheet.seen_lines), TEXT_POINTS)
    head = _lines(1, HEADING_POINTS) + _lines(len(sheet.lines), TEXT_POINTS) + GAP
    text_width = max(beside + grid_width, LEAST_WIDTH)
    width, height = text_width + 2 * MARGIN, head + max(grid_height, seen_total) + 2 * MARGIN
    figure = _figure(width, height, look.dpi, in_window)
    left, top = MARGIN / width, 1 - MARGIN / height
    heading = _fit(sheet.heading, text_width, HEADING_POINTS, "bold")
    figure.text(left, top, heading, va="top", size=HEADING_POINTS, weight="bold", color=INK)
    lines = "\n".join(_fit(line, text_width, TEXT_POINTS) for line in sheet.lines)
    below = top - _lines(1, HEADING_POINTS) / height
    figure.text(left, below, lines, va="top", size=TEXT_POINTS, color=FAINT, linespacing=LEADING)
    top -= (head + _lines(1, NAME_POINTS)) / height
    if sheet.seen is not None:
        axes = figure.add_axes((left, top - seen_height / height, seen_width / width, seen_height / height))
        _show(axes, sheet.seen, "input", sheet.seen_lines, beside - GAP)
        left += beside / width
    if is_chart:
        box = (left + CHART_LEFT / width, top - CHART_HEIGHT / height, len(maps) * pitch / width, CHART_HEIGHT / height)
        _bar_chart(figure.add_axes(box), maps, pitch, grid_width - CHART_LEFT)
        return figure
    grid = figure.add_gridspec(
        layout.rows,
        layout.columns,
        left=left,
        right=left + (layout.columns * (layout.width + pad_width) - pad_width) / width,
        top=top,
        bottom=top - (layout.rows * (layout.height + pad_height) - pad_height) / height,
        wspace=pad_width / layout.width,
        hspace=pad_height / layout.height,
    )
    common = _common_range(maps)
    for number, (one, lines_below) in enumerate(zip(maps, captions, strict=True)):
        axes = figure.add_subplot(grid[number // layout.columns, number % layout.columns])
        ends = common if look.is_shared else (one.low, one.high)
        shape = one.pixels.shape if one.channel is None else one.shape
        name = f"channel {one.channel}" if layout.is_mosaic else one.layer
        _show(axes, one.pixels, name, lines_below, layout.width + pad_width - GAP / 2, shape, ends, look.colormap)
        if own_bars:
            _colour_bar(axes, ends, look.colormap, _fitted(shape, layout.width, layout.height))
    if look.is_shared:
        bar_height = max(min(grid_height - pad_height, LONGEST_BAR), LEAST_BAR)
        bar_left = left + (grid_width - BAR_ROOM - BAR_STRIP) / width
        box = (bar_left, top - bar_height / height, BAR_STRIP / width, bar_height / height)
        axes = figure.add_axes(box, frameon=False, xticks=[], yticks=[])
        _colour_bar(axes, common, look.colormap, (BAR_STRIP, bar_height))
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
    room: float,
    shape: Sequence[int] = (),
    ends: tuple[float, float] = (0.0, 1.0),
    colormap: str = "gray",
) -> None:
    """Show a map (h', w') or a picture (h, w, 3) in its proportions, its name above and lines of text below it.

    Args:
        axes: Where.
        pixels: What; of a map means over squares.
        name: Of it.
        lines: To stand below.
        room: For words, inches.
        shape: (h, w, ...), the proportions; empty: those of ``pixels``.
        ends: Of the scale; NaN where no value is finite.
        colormap: Name.
    """
    height, width = tuple(shape or pixels.shape)[:2]
    box_height, box_width = axes.bbox.height, axes.bbox.width
    scale = min(box_height / height, box_width / width)
    # Matplotlib would smooth slightly enlarged maps, and show values that are not there.
    shrinks = pixels.shape[0] > height * scale or pixels.shape[1] > width * scale
    low, high = ends if ends[0] <= ends[1] else (0.0, 1.0)
    shown = pixels if pixels.ndim == 3 else np.ma.masked_invalid(pixels.astype(np.float64))
    axes.imshow(
        shown,
        cmap=matplotlib.colormaps[colormap].with_extremes(bad=NOT_FINITE),
        norm=Normalize(low, high),
        extent=(0, width, height, 0),
        interpolation="antialiased" if shrinks else "nearest",
    )
    axes.set(xticks=[], yticks=[], anchor="NW")
    axes.spines[:].set(color=FRAME, linewidth=0.6)
    axes.set_title(_fit(name, room, NAME_POINTS, "bold"), loc="left", size=NAME_POINTS, weight="bold", color=INK, pad=4)
    _write_below(axes, lines, room)


def _write_below(axes: Any, lines: Sequence[str], room: float, distance: float = 0.04) -> None:
    text = "\n".join(_fit(line, room, TEXT_POINTS) for line in lines)
    options = {"size": TEXT_POINTS, "color": INK, "linespacing": LEADING, "va": "top"}
    axes.annotate(text, (0, 0), (0, -72 * distance), xycoords="axes fraction", textcoords="offset points", **options)


def _colour_bar(axes: Any, ends: tuple[float, float], colormap: str, size: tuple[float, float]) -> None:
    """Draw a colour bar right of a map of this (width, height), in inches; none for a constant, which has its value below it."""
    low, high = ends
    if not low < high or size[1] < LEAST_BAR:
        return
    bar = axes.inset_axes((1 + BAR_GAP / size[0], 0, BAR_STRIP / size[0], 1))
    drawn = axes.figure.colorbar(ScalarMappable(Normalize(low, high), colormap), cax=bar)
    # Files of vectors show seams between the colours otherwise.
    drawn.solids.set_edgecolor("face")
    drawn.outline.set(color=FRAME, linewidth=0.6)
    # In parts, since the difference of two floats may be infinite.
    ticks = [low * (1 - part) + high * part for part in np.linspace(0, 1, 5 if size[1] >= LONG_BAR else 2).tolist()]
    drawn.set_ticks(ticks, labels=[number_words(tick, 3) for tick in ticks])
    bar.tick_params(length=2, pad=2, color=FRAME, labelcolor=FAINT, labelsize=TEXT_POINTS - 0.5)
    labels = bar.get_yticklabels()
    labels[0].set_va("bottom")
    labels[-1].set_va("top")


def _bar_chart(axes: Any, maps: Sequence[FeatureMap], pitch: float, room: float) -> None:
    """Draw the channels of a layer that has one value each as bars."""
    axes.bar(range(len(maps)), [0.0 if math.isnan(one.low) else one.high for one in maps], color=INK)
    axes.axhline(0, color=FAINT, linewidth=0.6)
    # Every bar has its number, or so many that they can be told apart.
    step = math.ceil(CHART_PITCH / pitch)
    places = range(0, len(maps), step)
    axes.set_xticks(places, [str(maps[place].channel) for place in places], rotation=90)
    axes.set_xlim(-0.5, len(maps) - 0.5)
    axes.tick_params(length=2, color=FRAME, labelcolor=FAINT, labelsize=TEXT_POINTS - 0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=FRAME, linewidth=0.6)
    axes.set_title(maps[0].layer, loc="left", size=NAME_POINTS, weight="bold", color=INK, pad=4)
    wrong = sum(one.not_finite for one in maps)
    numbers = _numbers(_common_range(maps), float(np.mean([one.zeros for one in maps])), wrong)
    lines = (f"{shape_words(maps[0].shape)}, {len(maps)} channels shown", ", ".join(numbers))
    _write_below(axes, lines, room, CHART_BELOW)


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
    wanted = os.environ.get("MPLBACKEND")
    reason = f"MPLBACKEND={wanted}" if wanted else "no display or no window toolkit"
    try:
        if wanted:
            matplotlib.use(wanted)
        from matplotlib import pyplot

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


def _fit(text: str, room: float, points: float, weight: str = "normal") -> str:
    """Return a text as one printable line that fits; a longer one loses its middle: both ends of a path tell something."""
    text = "".join(mark if mark.isprintable() else "▯" for mark in " ".join(text.split()))
    font = FontProperties(size=points, weight=weight)

    def shortened(kept: int) -> str:
        return text if kept == len(text) else f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"

    fits, too_many = 0, len(text) + 1
    kept = len(text)
    while too_many - fits > 1:
        # Letters are set on whole pixels when they are drawn: a little longer than their outlines.
        is_fitting = 1.04 * text_to_path.get_text_width_height_descent(shortened(kept), font, False)[0] / 72 <= room
        fits, too_many = (kept, too_many) if is_fitting else (fits, kept)
        kept = (fits + too_many) // 2
    return shortened(fits)


def _common_range(maps: Sequence[FeatureMap]) -> tuple[float, float]:
    known = [one for one in maps if not math.isnan(one.low)]
    return (min(one.low for one in known), max(one.high for one in known)) if known else (math.nan, math.nan)


def _caption(one: FeatureMap, is_mosaic: bool) -> tuple[str, ...]:
    numbers = _numbers((one.low, one.high), one.zeros, one.not_finite)
    if is_mosaic:
        # Narrow: a line for each.
        return numbers
    note = "" if one.channel is not None else f", folded {one.pixels.shape[0]} × {one.pixels.shape[1]}"
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
