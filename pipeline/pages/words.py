"""Text for a page: what users have written, made harmless and visible; numbers as people read them."""

from __future__ import annotations

import html
import math
import unicodedata

# More of a name or of an error says nothing more.
LONGEST_TEXT = 200


def plain(text: str, longest: int = LONGEST_TEXT) -> str:
    """Gives a text as HTML, for content and for attributes in double quotes.

    What a reader would not see, or would see as something else, is written as an escape: control characters, line breaks, marks
    that change the direction of what follows, halves of surrogate pairs. Long texts lose their middle.
    """
    if len(text) > longest:
        text = f"{text[: longest * 2 // 3]} … {text[-(longest // 3) :]}"
    return html.escape("".join(map(_visible, text)), quote=True)


def name(text: str, longest: int = LONGEST_TEXT) -> str:
    """Gives the name of a file as HTML; whatever script it is in, what stands around it keeps its order."""
    return f"<bdi>{plain(text, longest)}</bdi>"


def _visible(character: str) -> str:
    # Source: Unicode, general categories: Cc controls, Cf formats (with the marks of direction), Cs surrogates, Co and Cn not
    # assigned to a character, Zl and Zp separators of lines. Joiners are parts of words and of emoji.
    if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") or character in "\u200c\u200d":
        return character
    return character.encode("unicode_escape").decode("ascii")


def number(value: float, digits: int = 4) -> str:
    """Gives a number with so many digits that count."""
    if not math.isfinite(value):
        return "–"
    if value != 0.0 and not 1e-4 <= abs(value) < 1e6:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        text = f"{mantissa}e{int(exponent)}"
    else:
        text = f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"
    return text.replace("-", "−")


def count(value: int) -> str:
    """Gives a whole number in groups of three, parted by narrow spaces."""
    return f"{value:,}".replace(",", "\u202f")


def share(value: float) -> str:
    """Gives a share of one in percent; one that is not all or nothing does not become so by rounding."""
    if not math.isfinite(value):
        return "–"
    percent = 100.0 * value
    for digits in range(1, 4):
        text = f"{percent:.{digits}f}"
        if 0.0 < float(text) < 100.0 or percent in (0.0, 100.0):
            break
    return f"{text}\u202f%" if percent not in (0.0, 100.0) else f"{percent:.0f}\u202f%"


def counted(value: int, noun: str) -> str:
    """Gives ``1 image``, ``2 images``."""
    return f"{count(value)} {noun}" if value == 1 else f"{count(value)} {noun}s"


def shape(sides: tuple[int, int, int] | None, channels: int) -> str:
    """Gives the shape of a row, its sides with a cross between them."""
    return " × ".join(map(str, sides)) if sides else f"native size × {channels}"
