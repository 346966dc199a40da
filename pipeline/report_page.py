"""``report.html``, the page of a run: ``report.html.j2`` filled. One file that asks for nothing and runs no script."""

from __future__ import annotations

import base64
import io
import math
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from .command_line import command_again
from .feature_maps import FeatureMap
from .report import STAGES, Report, words_for_bytes
from .samples import Sample
from .schema import defaults
from .statistics import HISTOGRAM_STEP, OCTAVES, SMALLEST_EXPONENT, TINY, LayerStatistics
from .store.reader import Run, place_of

# Of failures; a run may have a million, each with a cause of its own.
CAUSES = EXAMPLES = 12
# More of a name or of an error says nothing more.
LONGEST_TEXT = 200
# Of all pictures together, before they become text, which makes them a third larger: a page can be sent by mail.
PICTURE_BYTES = 800_000
JPEG_QUALITY = 80
# Source: Matplotlib's viridis (CC0), every 32nd colour; between them straight lines. The last: what is not a number.
VIRIDIS = (
    *((68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141)),
    *((39, 173, 129), (92, 200, 99), (170, 220, 50), (253, 231, 37)),
)
NOT_FINITE, LEVELS = (128, 128, 128), 255
# Of a histogram, px; below the bars the numbers. Octaves of one sign: few bars are not wide, many can be told apart.
WIDTH, HEIGHT, AXIS = 320, 104, 18
FEWEST_OCTAVES, MOST_OCTAVES = 6, 22
# Of the values that are not zero, what may be hidden in the first bar.
HIDDEN_SHARE = 0.005
# Numbers under the bars of one sign: where it has all of the width, and where the other has half.
MOST_TICKS, MOST_TICKS_OF_TWO = 5, 2

UNTRAINED = "Untrained weights, network.weights=random: these features mean nothing."


@dataclass(frozen=True, slots=True)
class Cause:
    """Images that failed alike: what their errors have in common, how many, (key, error) of the first of them."""

    word: str
    count: int
    examples: tuple[tuple[str, str], ...]


def page_values(report: Report, run: Run, samples: tuple[Sample, ...], sampled_layers: tuple[str, ...]) -> dict[str, Any]:
    """Return what the page says of a run.

    Args:
        report: Of what was done when the run did something.
        run: All of it.
        samples: Rows spread over the run.
        sampled_layers: Layers that the samples show.
    """
    attributes, known = run.attributes, {name: option_text(value) for name, value in defaults().items()}
    texts = {name: option_text(value) for name, value in report.options.items()}
    folder = place_of(report.folder)
    changed = {name: (text, known.get(name, "null")) for name, text in texts.items() if text != known.get(name, "null")}
    stages = [
        {"name": name, "seconds": seconds, "meaning": STAGES[name].partition(":")[0], "remedy": STAGES[name].partition(": ")[2]}
        for name, seconds in report.seconds_by_stage.items()
        if name in STAGES
    ]
    return {
        "name": folder.name,
        "network": report.network,
        "command": command_again(_nested(report.options), folder, str(attributes["data_root"])) if texts else "",
        "warning": UNTRAINED if str(attributes["weights"]).startswith("random") else "",
        "changed": changed,
        "unchanged": {name: text for name, text in texts.items() if name not in changed},
        "facts": {
            "images from": str(attributes["data_root"]),
            "network": report.network,
            "weights": report.weights,
            "SHA-256 of weights": str(attributes["weights_sha256"]),
            "input": str(attributes["preprocess"]),
            "mean colour": ", ".join(f"{value:.3f}" for value in attributes["mean_pixel"].tolist()),
            "values": f"{run[run.layers[0]].dtype}, compression {attributes['compression']}",
            "shards": str(len(run.shards)),
            "run digest": str(attributes["run_digest"]),
            "written": str(attributes["created"]),
        },
        "versions": report.versions,
        "rows": report.rows,
        "causes": _causes(run) if report.failed else (),
        "skipped": report.skipped,
        "figures": _figures(report),
        "stages": stages,
        "bottleneck": report.bottleneck if report.rows_now else "",
        "threads_seconds": report.threads_seconds,
        "layers": [
            {"name": name, "shape": report.layers.get(name), "channels": run[name].channels, "statistics": run.statistics[name]}
            for name in run.layers
        ],
        "samples": samples,
        "sampled_layers": sampled_layers,
    }


def render(values: Mapping[str, Any]) -> str:
    """Return the page as HTML; the same values give the same text.

    Args:
        values: As of :func:`page_values`.
    """
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    left_bytes = PICTURE_BYTES

    def embedded(picture: bytes, pixels: NDArray[Any]) -> dict[str, Any] | None:
        """Return a picture as the page holds it; None where the page would become too large."""
        nonlocal left_bytes
        if len(picture) > left_bytes:
            return None
        left_bytes -= len(picture)
        kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
        address = Markup(f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}")
        return {"address": address, "width": pixels.shape[1], "height": pixels.shape[0]}

    environment.filters |= {
        "long": lambda text, longest: Markup.escape(shown(text, longest)),
        "number": number,
        "count": count,
        "counted": lambda value, noun: f"{count(value)} {noun}{'s' * (value != 1)}",
        "share": share,
        "histogram": histogram,
        "photograph": lambda sample: embedded(
            _encoded(Image.fromarray(sample.picture), "JPEG", quality=JPEG_QUALITY), sample.picture
        ),
        "feature_map": lambda one: embedded(coloured(one), one.pixels),
    }
    template = environment.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"))
    seconds = sum(stage["seconds"] for stage in values["stages"])
    return template.render(values, seconds=seconds, histogram_step=HISTOGRAM_STEP)


def shown(value: Any, longest: int = LONGEST_TEXT) -> Any:
    """Return a value as text that a reader sees as it is, not yet escaped; what the template made itself stays.

    What would not be seen, or as something else, is spelt out: control characters, line breaks, marks that change the direction
    of what follows, halves of surrogate pairs. Long texts lose their middle.
    """
    if isinstance(value, Markup):
        return value
    text = str(value)
    if len(text) > longest:
        text = f"{text[: longest * 2 // 3]} … {text[-(longest // 3) :]}"
    # Source: Unicode, general categories: Cc controls, Cf formats (with the marks of direction), Cs surrogates, Co and Cn not
    # assigned to a character, Zl and Zp separators of lines. Joiners are parts of words and of emoji.
    hidden = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    return "".join(
        mark.encode("unicode_escape").decode("ascii")
        if unicodedata.category(mark) in hidden and mark not in "\u200c\u200d"
        else mark
        for mark in text
    )


def number(value: float, digits: int = 4) -> str:
    """Return a number with so many digits that count."""
    if not math.isfinite(value):
        return "–"
    if value != 0.0 and not 1e-4 <= abs(value) < 1e6:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        text = f"{mantissa}e{int(exponent)}"
    else:
        text = f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"
    return text.replace("-", "−")


def count(value: int) -> str:
    """Return a whole number in groups of three, parted by narrow spaces."""
    return f"{value:,}".replace(",", "\u202f")


def share(value: float) -> str:
    """Return a share of one in percent; one that is not all or nothing does not become so by rounding."""
    if not math.isfinite(value):
        return "–"
    percent = 100.0 * value
    for digits in range(1, 4):
        text = f"{percent:.{digits}f}"
        if 0.0 < float(text) < 100.0 or percent in (0.0, 100.0):
            break
    return f"{text}\u202f%" if percent not in (0.0, 100.0) else f"{percent:.0f}\u202f%"


def words_for_seconds(seconds: float) -> str:
    """Return ``4.2 s``, ``3 min 5 s``, ``7 h 20 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def option_text(value: Any) -> str:
    """Return the value of an option as the command line takes it."""
    if value is None:
        return "null"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(option_text, value))}]"
    return str(value)


def histogram(statistics: LayerStatistics) -> dict[str, Any] | None:
    """Return bars and ticks, in px, of the sampled values that are not zero, by powers of two; None where there are none."""
    # [k]: magnitudes from 2^(k - 62) on.
    positive, negative = statistics.histogram[TINY + 1 :], statistics.histogram[:OCTAVES][::-1]
    both = positive + negative
    if not both.any():
        return None
    # All octaves but those so small that hardly anything lies there.
    stop = int(np.flatnonzero(both)[-1]) + 1
    crowded = int(np.searchsorted(np.cumsum(both), HIDDEN_SHARE * both.sum()))
    first = max(0, min(max(crowded, stop - MOST_OCTAVES), stop - FEWEST_OCTAVES))
    octaves = max(stop - first, FEWEST_OCTAVES)
    is_signed = bool(negative.any())
    sides = [np.append(side[:first].sum() + side[first], side[first + 1 : first + octaves]) for side in (positive, negative)]
    heights = np.concatenate([sides[1][::-1], sides[0]]) if is_signed else sides[0]
    zero = octaves if is_signed else 0
    width, scale = WIDTH / len(heights), (HEIGHT - AXIS - 4) / int(heights.max())
    bars = []
    for place, value in enumerate(heights.tolist()):
        if value:
            height = max(1.0, scale * value)
            box = {"x": place * width + 0.5, "y": HEIGHT - AXIS - height, "width": width - 1, "height": height}
            bars.append({name: f"{length:.1f}" for name, length in box.items()})
    step = -(-octaves // (MOST_TICKS_OF_TWO if is_signed else MOST_TICKS))
    places = {zero: "0"}
    for octave in range(octaves, 0, -step):
        # Not so near to the zero that the numbers meet.
        if octave >= step / 2 or octave == octaves:
            text = number(2.0 ** (first + octave + SMALLEST_EXPONENT))
            places |= {zero + octave: text, **({zero - octave: f"−{text}"} if is_signed else {})}
    anchors = {0: "start", len(heights): "end"}
    ticks = [
        {"x": f"{min(WIDTH - 2, max(2, place * width)):.1f}", "text": text, "anchor": anchors.get(place, "middle")}
        for place, text in places.items()
    ]
    return {"width": WIDTH, "height": HEIGHT, "floor": HEIGHT - AXIS, "bars": bars, "ticks": ticks}


def coloured(one: FeatureMap) -> bytes:
    """Return a map as PNG: its least value dark, its largest bright, grey where there is no finite value."""
    reach = one.high - one.low
    scaled = (one.pixels.astype(np.float64) - one.low) / reach if reach > 0.0 else np.zeros(one.pixels.shape)
    levels = np.clip(np.nan_to_num(scaled) * (LEVELS - 1) + 0.5, 0, LEVELS - 1).astype(np.uint8)
    levels[~np.isfinite(one.pixels)] = LEVELS
    picture = Image.fromarray(levels).convert("L")
    at = np.linspace(0, len(VIRIDIS) - 1, LEVELS)
    colours = np.stack([np.interp(at, range(len(VIRIDIS)), part) for part in np.array(VIRIDIS).T], axis=1)
    picture.putpalette([*np.rint(colours).astype(int).ravel().tolist(), *NOT_FINITE])
    return _encoded(picture, "PNG", optimize=True)


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def _nested(options: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in options.items():
        *groups, last = name.split(".")
        group = nested
        for part in groups:
            group = group.setdefault(part, {})
        group[last] = value
    return nested


def _figures(report: Report) -> dict[str, str]:
    figures = {"images": f"{report.rows:,}", "failed": f"{report.failed:,}"}
    if report.part:
        figures["part, of which all else is"] = report.part
    elif report.rows_now < report.rows:
        figures["done before"] = f"{report.rows - report.rows_now:,}"
    if report.rows_added:
        figures["added"] = f"{report.rows_added:,}"
    if report.rows_now:
        figures["rate"] = f"{report.images_per_second:.1f} images/s"
        figures["stored"] = words_for_bytes(report.bytes_stored)
        if report.bytes_raw:
            figures["compressed to"] = share(report.bytes_stored / report.bytes_raw)
        figures["device"] = report.device
    figures["wall time"] = words_for_seconds(report.seconds)
    figures["peak memory"] = words_for_bytes(report.peak_memory_bytes)
    return figures


def _causes(run: Run) -> tuple[Cause, ...]:
    counts: Counter[str] = Counter()
    examples: dict[str, list[tuple[str, str]]] = {}
    for key, error in zip(run.images["key"], run.images["error"], strict=True):
        if error:
            word = str(error).split(":", 1)[0]
            counts[word] += 1
            if counts[word] <= EXAMPLES:
                examples.setdefault(word, []).append((str(key), str(error)))
    frequent = counts.most_common()
    causes = [Cause(word, many, tuple(examples[word])) for word, many in frequent[:CAUSES]]
    if len(frequent) > CAUSES:
        causes.append(Cause("for other causes", sum(many for _, many in frequent[CAUSES:]), ()))
    return tuple(causes)
