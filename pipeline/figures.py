"""Sheets of feature maps and vectors, drawn by Matplotlib: a grid of axes with a name above each and its numbers below."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .config import PlotOptions
from .errors import OptionError, nearest
from .formatting import shortened, words_for_number
from .store.disk import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT, FRAME = "#1a1a1a", "#666666", "#b0b0b0"
# The component that was asked for.
MARKED = "#d9480f"
HEADING_POINTS, NAME_POINTS, TEXT_POINTS = 11.0, 9.0, 7.5
TICKS: dict[str, Any] = {"length": 2, "pad": 2, "color": FRAME, "labelcolor": FAINT, "labelsize": TEXT_POINTS}
# Width of a letter as a part of its size, of bold DejaVu Sans about.
LETTER_WIDTH = 0.7
# Inches from here on.
MARGIN, GAP, LINE_HEIGHT, SCALE_SPACE, SCALE_WIDTH = 0.2, 0.25, 0.14, 0.85, 0.09
# Width of the only map; of one of many, at least. Charts alone are twice as wide.
LARGEST_WIDTH, LEAST_WIDTH = 4.2, 1.4
# Height of the axes of a map as a part of their width; a longer map is drawn narrower. Of charts alone.
LEAST_ASPECT, GREATEST_ASPECT, CHART_ASPECT = 0.15, 1.5, 0.33
# Columns of a sheet over its rows, about: there is text below each map.
SHEET_ASPECT = 1.5
# Of a component with a number below it, at least.
NUMBER_WIDTH = 0.16
# Pixels of a component at least, so that a single one among very many is seen.
LEAST_BAR_PX = 1.5
# Source: the antigrain renderer refuses 65536; memory is 4 B a pixel, and Matplotlib holds several copies.
LARGEST_SIDE_PX, LARGEST_PIXELS = 65000, 2**28


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """A channel of a layer; or components of a vector, what has one position an image, as fc6 and relu5_1.avg; or the input."""

    name: str  # written above it
    lines: Sequence[str]  # written below it
    values: NDArray[Any]  # what is drawn, float32 (h, w); of a vector (n,); of the input uint8 (h, w, 3)
    channels: Sequence[int] = ()  # the channel; or the component of each value
    low: float = math.inf  # least value of the map; of the input there is none
    high: float = -math.inf  # greatest


def map_width(count: int) -> float:
    """Return the width in inches of each of so many maps on a sheet."""
    return max(LEAST_WIDTH, LARGEST_WIDTH / math.sqrt(count))


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


def draw(lines: Sequence[str], maps: Sequence[FeatureMap], options: PlotOptions) -> Figure:
    """Draw a sheet of maps in reading order, the first of which may be the input; ``lines``: what is said of all, the key first.

    Raises:
        OptionError: There is no such colour map, it would have too many pixels, or no window can be opened.
    """
    from matplotlib import colormaps

    if (name := options.colormap) not in colormaps:
        near = nearest(name.lower(), colormaps)[:100]
        raise OptionError(f"colormap: Matplotlib has none of this name, got {name!r}. Expected one of: {near}.")
    is_shared = options.scale == "shared"
    aspects = [one.values.shape[0] / one.values.shape[1] for one in maps if one.values.ndim > 1]
    has_maps = any(one.values.ndim == 2 for one in maps)
    stretch = 1 if has_maps else 2
    rows = math.ceil(len(maps) / math.ceil(math.sqrt(len(maps) * SHEET_ASPECT) / stretch))
    columns = math.ceil(len(maps) / rows)
    width = map_width(len(maps)) * stretch
    height = width * (min(max(LEAST_ASPECT, *aspects), GREATEST_ASPECT) if has_maps else CHART_ASPECT)
    top, gap_y = MARGIN + LINE_HEIGHT * (len(lines) + 3), LINE_HEIGHT * (2 + max(len(one.lines) for one in maps)) + GAP
    right, bottom = MARGIN + columns * (width + GAP) - GAP, top + rows * (height + gap_y) - gap_y
    sheet_width, sheet_height = right + (SCALE_SPACE if is_shared else GAP), bottom + gap_y
    figure = _figure(sheet_width, sheet_height, options)

    def box(left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
        """Return a box, in inches from the upper left corner, as Matplotlib has it."""
        return left / sheet_width, 1 - (top + height) / sheet_height, width / sheet_width, height / sheet_height

    for number, line in enumerate(lines):
        look: dict[str, Any] = {"size": TEXT_POINTS, "color": FAINT} if number else {"size": HEADING_POINTS, "weight": "bold"}
        place = box(MARGIN, MARGIN + LINE_HEIGHT * (number + (number > 0) / 2), 0, 0)[:2]
        figure.text(*place, _fitted(line, sheet_width - 2 * MARGIN, look["size"]), va="top", **look)
    common = _ends(maps)
    for number, one in enumerate(maps):
        row, column = divmod(number, columns)
        axes = figure.add_axes(box(MARGIN + column * (width + GAP), top + row * (height + gap_y), width, height))
        _words(axes, one.name, one.lines, width + GAP)
        low, high = common if is_shared else _ends([one])
        if one.values.ndim == 1:
            _chart(axes, one, (low, high) if low < high else (0.0, 1.0), options.channel or None, width)
            continue
        if one.values.ndim == 3:
            _show_pixels(axes, one.values, width)
            continue
        # Of float32 the range of all that it holds would overflow.
        picture = _show_pixels(axes, one.values.astype(np.float64), width, cmap=name, vmin=low, vmax=high)
    if is_shared and has_maps and common[0] < common[1]:
        strip = figure.add_axes(box(right + GAP / 2, top, SCALE_WIDTH, height))
        figure.colorbar(picture, cax=strip).outline.set(edgecolor=FRAME, linewidth=0.6)
        strip.set_yticks(common, [words_for_number(value, 3) for value in common])
        strip.tick_params(**TICKS)
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
            f"dpi: the picture would be too large, got {width_px} x {height_px} px. Expected {LARGEST_PIXELS} px at most. "
            "Choose a smaller dpi, or fewer channels or layers."
        )
    if not options.show:
        return Figure((width, height), options.dpi)
    from matplotlib import pyplot

    figure: Any = pyplot.figure(figsize=(width, height), dpi=options.dpi)
    if figure.canvas.required_interactive_framework is None:
        pyplot.close(figure)
        raise OptionError(
            "show: no window can be opened, got no display or toolkit. Expected both, e.g. tkinter. Leave show out."
        )
    return figure


def _fitted(words: str, width: float, points: float) -> str:
    """Return a line; one that is longer than its space loses its middle, as both ends of a path tell something."""
    return shortened(words, int(width * 72 / (points * LETTER_WIDTH)))


def _words(axes: Any, name: str, lines: Sequence[str], width: float) -> None:
    """Write a name above axes, and lines of text below them and their ticks."""
    axes.set_title(_fitted(name, width, NAME_POINTS), loc="left", size=NAME_POINTS, weight="bold", color=INK, pad=4)
    axes.set_xlabel("\n".join(lines), loc="left", size=TEXT_POINTS, color=INK, labelpad=3)
    axes.tick_params(**TICKS)
    axes.spines[:].set(edgecolor=FRAME, linewidth=0.6)


def _show_pixels(axes: Any, pixels: NDArray[Any], width: float, **look: Any) -> Any:
    """Show a map (h, w) or a picture (h, w, 3) in the upper left of axes, its proportions kept."""
    axes.set(anchor="NW", xticks=[], yticks=[])
    # Matplotlib would smooth slightly enlarged maps, and show values that are not there.
    how = "antialiased" if pixels.shape[1] > width * axes.figure.dpi else "nearest"
    return axes.imshow(pixels, interpolation=how, **look)


def _chart(axes: Any, one: FeatureMap, ends: tuple[float, float], marked: int | None, width: float) -> None:
    """Draw components as bars from zero, which are lines so that a hundred thousand of them take a second."""
    count = len(one.values)
    thick = max(0.8 * 72 * width / count, LEAST_BAR_PX * 72 / axes.figure.dpi)
    axes.vlines(np.arange(count), 0, one.values, INK, linewidth=thick)
    if marked in one.channels:
        axes.axvline(one.channels.index(marked), color=MARKED, linewidth=max(0.8, thick), zorder=0)
    axes.axhline(0, color=FRAME, linewidth=0.6)
    axes.set(xlim=(-0.5, count - 0.5), ylim=ends, yticks=[])
    if isinstance(one.channels, range):
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    else:
        # Every bar has its number, or so many that they can be told apart.
        numbered = range(0, count, math.ceil(NUMBER_WIDTH * count / width))
        axes.set_xticks(numbered, [str(one.channels[place]) for place in numbered], rotation=90)


def save(picture: Figure | Image.Image, path: Path) -> tuple[int, int]:
    """Write a file in the format of its suffix, which has its name once it is whole; return its width and height in pixels."""
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
