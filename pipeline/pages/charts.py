"""Pictures drawn as inline SVG: bars of seconds, histograms. Their colours are in the page's style, for light and dark."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..statistics import OCTAVES, SMALLEST_EXPONENT, TINY, LayerStatistics
from . import words

WIDTH, HEIGHT = 320, 104
# Below the bars: the line, and the numbers under it.
AXIS = 18
# Octaves of one sign: at least, so that a constant has a place to stand; at most, so that bars can be told apart.
FEWEST_OCTAVES, MOST_OCTAVES = 6, 22
# Of the values that are not zero, what may be hidden in the first bar.
HIDDEN_SHARE = 0.005
# Numbers under the bars of one sign: where it has all of the width, and where the other has half.
MOST_TICKS, MOST_TICKS_OF_TWO = 5, 2


def bar(part: float, kind: str = "bar") -> str:
    """Gives a bar that fills a part of its width, from 0 to 1."""
    width = 100.0 * min(1.0, max(0.0, part))
    return (
        '<svg class="strip" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="ground" width="100" height="10"/><rect class="{kind}" width="{width:.2f}" height="10"/></svg>'
    )


def histogram(statistics: LayerStatistics) -> str:
    """Return the histogram of the sampled values that are not zero, by powers of two."""
    # [k]: magnitudes from 2^(k - 62) on.
    positive, negative = statistics.histogram[TINY + 1 :], statistics.histogram[:OCTAVES][::-1]
    both = positive + negative
    total = int(both.sum()) + int(statistics.histogram[TINY])
    if not total:
        return f'<p class="none">no value but zero{"" if statistics.zeros == statistics.values else " in the sample"}</p>'
    first, stop = _range(both, total)
    sides = [_bars(side, first, stop) for side in ((negative, positive) if negative.any() else (positive,))]
    if len(sides) == 2:
        sides[0] = sides[0][::-1]
    bars = np.concatenate(sides)
    step, tallest = WIDTH / len(bars), bars.max()
    drawn = "".join(
        f'<rect class="bar" x="{place * step + 0.5:.1f}" y="{HEIGHT - AXIS - high:.1f}" width="{step - 1:.1f}" '
        f'height="{high:.1f}"/>'
        for place, value in enumerate(bars.tolist())
        if value and (high := max(1.0, (HEIGHT - AXIS - 4) * value / tallest))
    )
    ticks = _ticks(first, stop, len(sides) == 2)
    labels = "".join(
        f'<text x="{min(WIDTH - 2, max(2, place * step)):.1f}" y="{HEIGHT - 4}" text-anchor="{anchor}">{text}</text>'
        for place, text, anchor in ticks
    )
    described = f"histogram: values from {words.number(statistics.minimum)} to {words.number(statistics.maximum)}"
    return (
        f'<svg class="histogram" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{words.plain(described)}">{drawn}'
        f'<path class="axis" d="M0 {HEIGHT - AXIS}H{WIDTH}"/>{labels}</svg>'
    )


def _range(both: NDArray[np.int64], total: int) -> tuple[int, int]:
    """Gives the octaves to show: all but what is so small that hardly anything lies there."""
    there = np.flatnonzero(both)
    if not len(there):
        return 0, FEWEST_OCTAVES
    stop = int(there[-1]) + 1
    below = np.cumsum(both) / total
    first = max(int(there[0]), int(np.searchsorted(below, HIDDEN_SHARE)), stop - MOST_OCTAVES)
    first = max(0, min(first, stop - FEWEST_OCTAVES))
    return first, max(stop, first + FEWEST_OCTAVES)


def _bars(side: NDArray[np.int64], first: int, stop: int) -> NDArray[np.int64]:
    bars = side[first:stop].copy()
    bars[0] += side[:first].sum()
    return bars


def _ticks(first: int, stop: int, both: bool) -> list[tuple[float, str, str]]:
    """Gives (place, text, anchor) of the numbers under the axis, at bounds between bars."""
    octaves = stop - first
    step = -(-octaves // (MOST_TICKS_OF_TWO if both else MOST_TICKS))
    ticks: list[tuple[float, str, str]] = []
    for octave in range(octaves, 0, -step):
        # Not so near to the zero that the numbers meet.
        if octave < step / 2 and octave != octaves:
            continue
        text = words.number(2.0 ** (first + octave + SMALLEST_EXPONENT))
        place = octaves + octave if both else octave
        ticks.append((place, text, "end" if octave == octaves else "middle"))
        if both:
            ticks.append((octaves - octave, f"−{text}", "start" if octave == octaves else "middle"))
    ticks.append((octaves, "0", "middle") if both else (0, "0", "start"))
    return ticks
