"""What goes where on a sheet: maps in a grid with names above and numbers below, colour bars, the input beside them.

Lengths are inches. Every line of text has its room before it is drawn: no label is cut, however small or narrow the maps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .colours import colour, common_range
from .maps import FeatureMap, has_extent
from .paper import FAINT, INK, Paper

MARGIN, GAP, COLUMN_GAP = 0.2, 0.22, 0.35
HEADING_POINTS, NAME_POINTS, CAPTION_POINTS, BAR_POINTS = 11.0, 9.0, 7.5, 7.0
# Of a line, as a part of its letters' size.
LEADING = 1.3
# Strip, the space on both sides of it, and the words beside it.
BAR_GAP, BAR_STRIP, BAR_WORDS = 0.06, 0.09, 0.55
BAR_ROOM = 2 * BAR_GAP + BAR_STRIP + BAR_WORDS
BAR_LEVELS = 256
# Side of a map by the number of them: (up to so many, side in a grid of layers, side in a mosaic of channels).
SIDES = ((1, 4.2, 4.2), (4, 2.8, 2.6), (9, 2.2, 1.8), (16, 1.75, 1.5), (math.inf, 1.75, 1.15))
# Maps of a mosaic that are no larger have no bars of their own, but their ends in the captions like all.
SMALL_SIDE = 1.5
# Height of the room for maps as a part of its width; what is longer is drawn narrower.
LEAST_ASPECT, GREATEST_ASPECT = 0.15, 1.5
INPUT_SIDE = 2.6
BAR_CHART_HEIGHT, BAR_PITCH, LABEL_ROOM = 2.4, 0.16, 0.36


@dataclass(frozen=True, slots=True)
class Look:
    """How maps are drawn.

    Attributes:
        colormap: Name of one of Matplotlib's.
        is_shared: One scale for all maps of a sheet, or one for each.
        dpi: Pixels an inch.
    """

    colormap: str
    is_shared: bool
    dpi: int


class Layout(NamedTuple):
    """A grid, row after row, and the room for a map in it. ``is_mosaic``: of channels of one layer, not of layers."""

    columns: int
    rows: int
    width: float
    height: float
    is_mosaic: bool

    def limit_px(self, dpi: int) -> tuple[int, int]:
        """Gives the (height, width) beyond which nobody would see more of a map."""
        return math.ceil(self.height * dpi), math.ceil(self.width * dpi)


@dataclass(frozen=True, slots=True)
class Sheet:
    """What is to be drawn.

    Attributes:
        heading: The image's key.
        lines: What else is to be known of all maps.
        maps: At least one.
        seen: (H, W, 3) uint8, the picture that the network saw; None: nobody wants it, or it is not to be had.
        seen_lines: What is to be known of it.
    """

    heading: str
    lines: tuple[str, ...]
    maps: Sequence[FeatureMap]
    seen: NDArray[np.uint8] | None
    seen_lines: tuple[str, ...]


def plan_layout(shapes: Sequence[tuple[int, int, int]], is_mosaic: bool) -> Layout:
    """Gives the grid for so many maps: of layers about twice as wide as high, 9 by 4 for 36; of channels a square.

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


def draw(sheet: Sheet, look: Look, layout: Layout, in_window: bool = False) -> Paper:
    """Draws a sheet.

    Args:
        sheet: What.
        look: How.
        layout: Where; of these maps.
        in_window: Whether it will be shown.

    Raises:
        OptionError: It would have too many pixels.
    """
    if layout.is_mosaic and not has_extent(sheet.maps[0].shape):
        grid: _Grid | _Chart = _Chart(sheet.maps, look)
    else:
        grid = _Grid(sheet.maps, look, layout)
    head = _line(HEADING_POINTS) + len(sheet.lines) * _line(CAPTION_POINTS) + GAP
    seen_width, seen_height = (0.0, 0.0) if sheet.seen is None else _fitted(sheet.seen.shape, *_seen_room(grid.height, layout))
    beside = 0.0 if sheet.seen is None else max(seen_width, _SEEN_LEAST_WIDTH) + COLUMN_GAP
    seen_total = seen_height + _line(NAME_POINTS) + len(sheet.seen_lines) * _line(CAPTION_POINTS) if beside else 0.0
    width = max(beside + grid.width, _LEAST_WIDTH)
    paper = Paper(width + 2 * MARGIN, head + max(grid.height, seen_total) + 2 * MARGIN, look.dpi, in_window)
    paper.words(sheet.heading, MARGIN, MARGIN, HEADING_POINTS, room=width, bold=True)
    for number, line in enumerate(sheet.lines):
        top = MARGIN + _line(HEADING_POINTS) + number * _line(CAPTION_POINTS)
        paper.words(line, MARGIN, top, CAPTION_POINTS, room=width, faint=True)
    top = MARGIN + head
    if sheet.seen is not None:
        room = beside - COLUMN_GAP
        paper.words("input", MARGIN, top, NAME_POINTS, room=room, bold=True)
        paper.picture(sheet.seen, MARGIN, top + _line(NAME_POINTS), seen_width, seen_height)
        _captions(paper, sheet.seen_lines, MARGIN, top + _line(NAME_POINTS) + seen_height, room)
    grid.put(paper, MARGIN + beside, top)
    return paper


# The widest that is always said of the input, and of all.
_SEEN_LEAST_WIDTH, _LEAST_WIDTH = 1.3, 4.0


def _seen_room(grid_height: float, layout: Layout) -> tuple[float, float]:
    """Gives (width, height) for the input: that of a map where there is one, else a column beside all of them."""
    if layout.columns * layout.rows == 1:
        return layout.width, max(layout.height, INPUT_SIDE)
    return INPUT_SIDE, max(INPUT_SIDE, min(grid_height - 3 * _line(NAME_POINTS), GREATEST_ASPECT * INPUT_SIDE))


def _line(points: float) -> float:
    return LEADING * points / 72


def _fitted(shape: Sequence[int], width: float, height: float) -> tuple[float, float]:
    """Gives (width, height) of a picture of this shape inside this room, its proportions kept."""
    scale = min(width / shape[1], height / shape[0])
    return shape[1] * scale, shape[0] * scale


def _captions(paper: Paper, lines: Sequence[str], left: float, top: float, room: float) -> None:
    for number, line in enumerate(lines):
        # A little space between the picture and its first line.
        paper.words(line, left, top + 0.03 + number * _line(CAPTION_POINTS), CAPTION_POINTS, room=room)


class _Grid:
    """Maps row after row.

    Attributes:
        width: Of all, with bars.
        height: Of all, with names and captions.
    """

    def __init__(self, maps: Sequence[FeatureMap], look: Look, layout: Layout) -> None:
        self._maps, self._look, self._layout = maps, look, layout
        self._own_bars = not look.is_shared and (not layout.is_mosaic or layout.width > SMALL_SIDE)
        self._cell_width = layout.width + BAR_ROOM * self._own_bars
        # Words beside a bar are seldom as long as their room.
        self._gap = GAP / 2 if self._own_bars else GAP
        self._captions = [_caption(one, layout.is_mosaic) for one in maps]
        lines = max(len(lines) for lines in self._captions)
        self._cell_height = _line(NAME_POINTS) + layout.height + 0.03 + lines * _line(CAPTION_POINTS)
        self.width = layout.columns * (self._cell_width + self._gap) - self._gap + BAR_ROOM * look.is_shared
        self.height = layout.rows * (self._cell_height + GAP) - GAP

    def put(self, paper: Paper, left: float, top: float) -> None:
        """Draws it with its top left corner there."""
        layout, look = self._layout, self._look
        common = common_range([(one.low, one.high) for one in self._maps])
        for number, (one, lines) in enumerate(zip(self._maps, self._captions, strict=True)):
            row, column = divmod(number, layout.columns)
            x, y = left + column * (self._cell_width + self._gap), top + row * (self._cell_height + GAP)
            name = f"channel {one.channel}" if layout.is_mosaic else one.layer
            paper.words(name, x, y, NAME_POINTS, room=self._cell_width, bold=True)
            y += _line(NAME_POINTS)
            low, high = common if look.is_shared else (one.low, one.high)
            shape = one.pixels.shape if one.channel is None else one.shape
            width, height = _fitted(shape, layout.width, layout.height)
            paper.picture(colour(one.pixels, low, high, look.colormap), x, y, width, height)
            if self._own_bars:
                _bar(paper, look, (low, high), x + width + BAR_GAP, y, height)
            _captions(paper, lines, x, y + height, self._cell_width)
        if look.is_shared:
            height = min(self.height - _line(NAME_POINTS), 3.0)
            _bar(paper, look, common, left + self.width - BAR_ROOM + BAR_GAP, top + _line(NAME_POINTS), height)


class _Chart:
    """Bars: channels of a layer that has one value each.

    Attributes:
        width: Of all.
        height: Of all.
    """

    def __init__(self, maps: Sequence[FeatureMap], look: Look) -> None:
        self._maps, self._look = maps, look
        self._pitch = max(BAR_PITCH if len(maps) <= 64 else 10.0 / len(maps), 1 / look.dpi)
        self.width = max(BAR_WORDS + len(maps) * self._pitch, 3.0)
        self.height = _line(NAME_POINTS) + BAR_CHART_HEIGHT + LABEL_ROOM + 0.08 + 2 * _line(CAPTION_POINTS)

    def put(self, paper: Paper, left: float, top: float) -> None:
        """Draws it with its top left corner there."""
        one, pitch = self._maps[0], self._pitch
        paper.words(one.layer, left, top, NAME_POINTS, room=self.width, bold=True)
        top += _line(NAME_POINTS) + 0.05
        low, high = common_range([(each.low, each.high) for each in self._maps])
        floor, ceiling = (0.0, 1.0) if math.isnan(low) else (min(low, 0.0), max(high, 0.0))
        scale = BAR_CHART_HEIGHT / ((ceiling - floor) or 1.0)
        zero = top + BAR_CHART_HEIGHT + floor * scale
        for value in sorted({floor, 0.0, ceiling}):
            # The zero's word has to give way to one that is near.
            if value or min((abs(end) for end in (floor, ceiling) if end), default=math.inf) * scale > 0.2:
                paper.words(number_words(value, 3), left, zero - value * scale - 0.05, BAR_POINTS, room=BAR_WORDS, faint=True)
        # Every bar, or few enough to be told apart.
        labelled = 1 if pitch >= BAR_PITCH else math.ceil(LABEL_ROOM / pitch)
        for number, each in enumerate(self._maps):
            x = left + BAR_WORDS + number * pitch
            if not math.isnan(each.low):
                paper.block(x, zero - max(each.high, 0) * scale, pitch * 0.8, abs(each.high) * scale, INK)
            if number % labelled == 0:
                paper.upright_words(str(each.channel), x + pitch * 0.4, top + BAR_CHART_HEIGHT + 0.06, BAR_POINTS)
        paper.block(left + BAR_WORDS, zero, len(self._maps) * pitch, 1 / self._look.dpi, FAINT)
        zeros = float(np.mean([each.zeros for each in self._maps]))
        wrong = sum(each.not_finite for each in self._maps)
        lines = (f"{shape_words(one.shape)}, {len(self._maps)} channels shown", _numbers((low, high), zeros, wrong))
        _captions(paper, lines, left, top + BAR_CHART_HEIGHT + LABEL_ROOM, self.width)


def _bar(paper: Paper, look: Look, ends: tuple[float, float], left: float, top: float, height: float) -> None:
    """Draws a colour bar and what its ends, and if it is long some values between, stand for."""
    low, high = ends
    if math.isnan(low):
        return
    steps = [1.0, 0.75, 0.5, 0.25, 0.0] if height >= 1.9 else [1.0, 0.0]
    if low == high:
        steps = [0.0]
    # From the top down.
    levels = np.linspace(high, low, BAR_LEVELS, dtype=np.float64)[:, None].astype(np.float32)
    paper.picture(colour(levels, low, high, look.colormap), left, top, BAR_STRIP, height)
    letters = _line(BAR_POINTS)
    for step in steps:
        # Words stay beside the strip, also at its ends.
        y = top + (1 - step) * max(0.0, height - letters)
        if step == 0.0 and len(steps) > 1:
            y = max(y, top + letters)
        words = number_words(low + step * (high - low), 3)
        paper.words(words, left + BAR_STRIP + BAR_GAP / 2, y, BAR_POINTS, room=BAR_WORDS, faint=True)


def _caption(one: FeatureMap, is_mosaic: bool) -> tuple[str, ...]:
    numbers = _numbers((one.low, one.high), one.zeros, one.not_finite)
    if is_mosaic:
        # Narrow: a line for each.
        return tuple(numbers.split(", "))
    note = "" if one.channel is not None else f", folded {one.pixels.shape[0]} × {one.pixels.shape[1]}"
    return f"{shape_words(one.shape)}{note}{rows_words(one)}", numbers


def _numbers(ends: tuple[float, float], zeros: float, not_finite: int) -> str:
    low, high = ends
    if math.isnan(low):
        return "no finite value"
    words = f"all {number_words(low)}" if low == high else f"{number_words(low)} to {number_words(high)}"
    return f"{words}, {share_words(zeros)} zeros" + (f", {not_finite} not finite" if not_finite else "")


def rows_words(one: FeatureMap) -> str:
    """Gives how many of a map's rows it has been taken from, where it was not all of them."""
    return f", {one.rows_read} rows read" if one.rows_read < one.shape[0] else ""


def shape_words(shape: Sequence[int]) -> str:
    """Gives the sides with signs of multiplication between them."""
    return " × ".join(map(str, shape))


def number_words(value: float, digits: int = 4) -> str:
    """Gives a number as briefly as it can be told."""
    return f"{value:.{digits}g}".replace("-", "\N{MINUS SIGN}")


def share_words(share: float) -> str:
    """Gives a share as per cent; 0 % and 100 % only where it is just that."""
    if 0 < share < 0.01:
        return "<1 %"
    return ">99 %" if 0.99 < share < 1 else f"{100 * share:.0f} %"
