"""A sheet of paper measured in inches from its top left corner: pictures, words and bars go on it, and it to a file or a window.

Matplotlib draws; its plots, with their axes and their guesses about room, are not used. Fonts are those that come with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image

from ..errors import OptionError, StoreError

POINTS_AN_INCH = 72
INK, FAINT, FRAME = "#1a1a1a", "#666666", "#b0b0b0"
# How much longer a drawn line may be than its outline's.
LETTER_SPACING = 1.04
INSIDE_PX = 1e-3
# Stands for characters that Matplotlib's font lacks.
UNKNOWN = "\N{WHITE VERTICAL RECTANGLE}"
# Source: the antigrain renderer refuses 65536; memory is 4 B a pixel, and Matplotlib holds several copies.
LARGEST_SIDE_PX = 65000
LARGEST_PIXELS = 2**28


@contextmanager
def plain() -> Iterator[None]:
    """Makes Matplotlib draw as it would for anybody: without this user's settings, and equal bytes for equal pictures."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        # Source: Matplotlib, "Reproducible output": names inside an SVG are random otherwise.
        matplotlib.rcParams["svg.hashsalt"] = "deep-feature-pipeline"
        matplotlib.rcParams["figure.max_open_warning"] = 0
        yield


@cache
def _font(bold: bool) -> tuple[str, FT2Font]:
    path = str(Path(matplotlib.get_data_path(), "fonts", "ttf", f"DejaVuSans{'-Bold' if bold else ''}.ttf"))
    return path, FT2Font(path)


def printable(text: str) -> str:
    """Gives a text in one line of characters that the font has."""
    characters = _font(False)[1].get_charmap().keys() & _font(True)[1].get_charmap().keys()
    return "".join(mark if mark.isprintable() and ord(mark) in characters else UNKNOWN for mark in " ".join(text.split()))


def width_in(text: str, points: float, bold: bool = False) -> float:
    """Gives the width of a printable text, in inches."""
    font = _font(bold)[1]
    # Large, since letters are set on whole pixels; at the size at which they are drawn this makes a line a little longer.
    font.set_size(points, 10 * POINTS_AN_INCH)
    font.set_text(text, 0.0)
    return float(LETTER_SPACING * font.get_width_height()[0] / 64 / (10 * POINTS_AN_INCH))


def shortened(text: str, room_in: float, points: float, bold: bool = False) -> str:
    """Gives a printable text, its middle left out as far as it would not fit otherwise: both ends of a path tell something."""
    if width_in(text, points, bold) <= room_in:
        return text
    # How many characters are left: by halving, since keys may have thousands.
    fits, too_many = 0, len(text)
    while too_many - fits > 1:
        kept = (fits + too_many) // 2
        if width_in(_without_middle(text, kept), points, bold) <= room_in:
            fits = kept
        else:
            too_many = kept
    return _without_middle(text, fits)


def _without_middle(text: str, kept: int) -> str:
    tail = kept // 2
    return f"{text[: kept - tail]}…{text[len(text) - tail :]}"


class Paper:
    """A blank sheet.

    Args:
        width: In inches.
        height: Likewise.
        dpi: Pixels an inch.
        in_window: Whether it will be shown; asks Matplotlib for a window.

    Raises:
        OptionError: It would have too many pixels.
    """

    def __init__(self, width: float, height: float, dpi: int, in_window: bool = False) -> None:
        self.size_px = round(width * dpi), round(height * dpi)
        if max(self.size_px) > LARGEST_SIDE_PX or self.size_px[0] * self.size_px[1] > LARGEST_PIXELS:
            raise OptionError(
                f"dpi: the picture would be too large, got {self.size_px[0]} x {self.size_px[1]} px with {dpi}. Expected at most "
                f"{LARGEST_PIXELS} px in all. Choose a smaller dpi, or fewer channels or layers."
            )
        width, height = self.size_px[0] / dpi, self.size_px[1] / dpi
        self._dpi = dpi
        if in_window:
            from matplotlib import pyplot

            self._figure: Figure = pyplot.figure(figsize=(width, height), dpi=dpi)
        else:
            self._figure = Figure(figsize=(width, height), dpi=dpi)
        self._axes: Any = self._figure.add_axes((0, 0, 1, 1), frameon=False)
        self._axes.set_axis_off()
        self._axes.set(xlim=(0, width), ylim=(height, 0))

    def picture(self, colours: NDArray[np.uint8], left: float, top: float, width: float, height: float) -> None:
        """Puts a picture (h, w, 3 or 4) there, its edges on whole pixels, and a frame of one pixel around it."""
        left, right, top, bottom = (round(edge * self._dpi) for edge in (left, left + width, top, top + height))
        right, bottom = max(right, left + 1), max(bottom, top + 1)
        # Matplotlib takes every pixel that is touched: edges lie a little inside, lest sums of fractions touch the next one.
        inside = (left + INSIDE_PX, right - INSIDE_PX, bottom - INSIDE_PX, top + INSIDE_PX)
        extent = tuple(edge / self._dpi for edge in inside)
        # White pixels at the edge would be taken for paper.
        frame = (left - 1) / self._dpi, (top - 1) / self._dpi, (right - left + 2) / self._dpi, (bottom - top + 2) / self._dpi
        self.block(*frame, FRAME)
        # Matplotlib would choose bicubic for slightly enlarged maps and show values that are not there.
        shrinks = colours.shape[0] > bottom - top or colours.shape[1] > right - left
        way = "antialiased" if shrinks else "nearest"
        self._axes.imshow(colours, extent=extent, aspect="auto", interpolation=way, resample=True, zorder=1)
        self._axes.set(xlim=(0, self.size_px[0] / self._dpi), ylim=(self.size_px[1] / self._dpi, 0))

    def words(
        self, text: str, left: float, top: float, points: float, *, room: float = np.inf, bold: bool = False, faint: bool = False
    ) -> None:
        """Puts one line of text there, cut in its middle where it is longer than its room."""
        self._text(shortened(printable(text), room, points, bold), left, top, points, bold, FAINT if faint else INK)

    def _text(self, text: str, left: float, top: float, points: float, bold: bool, ink: str, **options: Any) -> None:
        font = FontProperties(fname=_font(bold)[0], size=points)
        # Two dollar signs in a name would be read as mathematics.
        options = {"va": "top", "parse_math": False, "zorder": 2, **options}
        self._axes.text(left, top, text, fontproperties=font, color=ink, **options)

    def upright_words(self, text: str, middle: float, top: float, points: float) -> None:
        """Puts a line of text there, turned by 90 degrees and read from below."""
        self._text(printable(text), middle, top, points, False, FAINT, rotation=90, ha="center")

    def block(self, left: float, top: float, width: float, height: float, fill: str) -> None:
        """Puts a filled rectangle there."""
        self._axes.bar([left + width / 2], [height], [width], bottom=top, color=fill, linewidth=0, zorder=1)

    def save(self, path: Path) -> None:
        """Writes the file in the format of its suffix; it has its name only once it is whole.

        Raises:
            StoreError: It cannot be written.
        """
        kind = path.suffix[1:].lower()
        with published(path) as partial:
            if kind == "png":
                shown = self._figure.canvas
                canvas: Any = FigureCanvasAgg(self._figure)
                canvas.draw()
                # A window's own, where there is one.
                self._figure.set_canvas(shown)
                # Without the transparency that nothing has: a tenth smaller than what Matplotlib writes.
                colours = np.asarray(canvas.buffer_rgba())[:, :, :3]
                Image.fromarray(colours).save(partial, kind, dpi=(self._dpi, self._dpi))
            else:
                # No time of writing, no version: equal pictures are equal bytes.
                empty = {"pdf": ("Creator", "Producer", "CreationDate"), "svg": ("Date", "Creator")}[kind]
                self._figure.savefig(partial, format=kind, dpi=self._dpi, metadata=dict.fromkeys(empty))


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """Gives a name to write a file under, which then replaces the file of the final name.

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
    """Makes sure that a window can be opened.

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
    """Shows all sheets made for a window, and waits until they are closed."""
    from matplotlib import pyplot

    pyplot.show(block=True)
