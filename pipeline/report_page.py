"""``report.html``: a run on one page. ``report.html.j2`` filled; one file that loads nothing and runs no script."""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from .config import defaults, nested
from .errors import ImageError, StoreError, printable
from .feature_maps import FeatureMap, fold, has_extent, make_maps
from .formatting import words_for_bytes, words_for_number, words_for_shape, words_for_share
from .records import OK, ImageRecord, Manifest
from .report import STAGES, Report
from .reproduce import command_again
from .store.reader import Layer, Run, place_of
from .store.statistics import HISTOGRAM_STEP, OCTAVES, SMALLEST_EXPONENT, TINY, LayerStatistics

# Of failures; a run may have a million, each with a cause of its own.
CAUSES = EXAMPLES = 12
# More of a name or of an error says nothing more.
LONGEST_TEXT = 200
# Of all pictures together, before they become text, which makes them a third larger: a page can be sent by mail.
PICTURE_BYTES = 800_000
JPEG_QUALITY = 80
# Sample images, layers and active channels of them; sides of their pictures.
ROWS, LAYERS, ACTIVE_CHANNELS = 6, 4, 2
PICTURE_PX, MAP_PX = 224, 112
# A row that takes more memory is not worth reading for a picture the size of a stamp.
LARGEST_ROW_BYTES = 64 << 20
# Bars of a histogram on each side of zero.
BARS = 16
# Source: Matplotlib's viridis (CC0), every 64th colour. The last of a palette is for what is not finite.
VIRIDIS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
NOT_FINITE, LEVELS = (128, 128, 128), 255

# (word, how many, their first (key, error)).
Cause = tuple[str, int, list[tuple[str, str]]]

UNTRAINED = "Untrained weights, network.weights=random: these features mean nothing."


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """An image of the run and some of its feature maps.

    Attributes:
        row: In the run.
        key: Of the image.
        label: Likewise.
        size: (height, width) px.
        picture: (h, w, 3) uint8, small; None where the file is not what it was.
        note: Why there is no picture; ``""`` if there is one.
        maps: Layer -> its maps.
        notes: Layer -> why there are no maps.
    """

    row: int
    key: str
    label: str
    size: tuple[int, int]
    picture: NDArray[np.uint8] | None
    note: str
    maps: Mapping[str, tuple[FeatureMap, ...]]
    notes: Mapping[str, str]


def take_samples(run: Run, manifest: Manifest) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """Return some rows of the images that did not fail, spread over the run, and the layers of which they have maps.

    Args:
        run: All of it.
        manifest: Its rows; where the images are.
    """
    good = np.flatnonzero(run.images["status"] == OK)
    layers = tuple(run.layers[place] for place in spread(len(run.layers), LAYERS))
    return tuple(_sample(run, manifest, int(good[place]), layers) for place in spread(len(good), ROWS)), layers


def spread(count: int, wanted: int) -> list[int]:
    """Return so many whole numbers below a count, from the first to the last, alike for the same arguments."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, wanted)).tolist()})


def _sample(run: Run, manifest: Manifest, row: int, layers: Sequence[str]) -> Sample:
    key, label = str(run.images["key"][row]), str(run.images["label"][row])
    size = int(run.images["height"][row]), int(run.images["width"][row])
    maps: dict[str, tuple[FeatureMap, ...]] = {}
    notes: dict[str, str] = {}
    for name in layers:
        size_bytes = _row_bytes(run[name], size)
        if size_bytes > LARGEST_ROW_BYTES:
            notes[name] = f"{words_for_bytes(size_bytes)} an image, too much to be read for this page"
            continue
        try:
            maps[name] = _maps(name, np.asarray(run[name][row], np.float32))
        except StoreError as error:
            notes[name] = str(error)
    picture, note = _picture(manifest[row], str(run.images["sha256"][row]))
    return Sample(row, key, label, size, picture, note, maps, notes)


def _row_bytes(layer: Layer, size: tuple[int, int]) -> int:
    """Return the bytes of a row as float32; at native size from the size of the image, which is enough to decide by."""
    sides = [side or math.ceil(px / layer.stride_px) for side, px in zip(layer.shape[1:3], size, strict=True)]
    return sides[0] * sides[1] * layer.channels * 4


def _maps(layer: str, values: NDArray[np.float32]) -> tuple[FeatureMap, ...]:
    """Return channel 0 and the most active ones of (h, w, c); of a layer without a map all channels."""
    height, width, channels = shape = values.shape
    if not has_extent(shape):
        return (fold(layer, values),)
    side = -(-max(height, width) // MAP_PX)
    maps = make_maps(layer, [(0, values)], shape, range(channels), side, most_active=channels)
    others = [one for one in maps if one.channel]
    return tuple([one for one in maps if one.channel == 0] + others[:ACTIVE_CHANNELS])


def _picture(record: ImageRecord, sha256: str) -> tuple[NDArray[np.uint8] | None, str]:
    from .images.seen import thumbnail

    try:
        return thumbnail(record, sha256, PICTURE_PX), ""
    except ImageError as error:
        return None, f"no picture: {error}"


def page_values(report: Report, run: Run, samples: tuple[Sample, ...], sampled_layers: tuple[str, ...]) -> dict[str, Any]:
    """Return what the page says of a run.

    Args:
        report: Of what was done when the run did something.
        run: All of it.
        samples: Rows spread over the run.
        sampled_layers: Layers that the samples show.
    """
    attributes, folder = run.attributes, place_of(report.folder)
    usual = {name: option_text(value) for name, value in defaults().items()}
    texts = {name: option_text(value) for name, value in report.options.items()}
    changed = {name: (text, usual.get(name, "null")) for name, text in texts.items() if text != usual.get(name, "null")}
    return {
        "name": folder.name,
        "report": report,
        "stages": {name: STAGES[name].partition(": ") for name in report.seconds_by_stage if name in STAGES},
        "command": command_again(nested(report.options), folder, str(attributes["data_root"])) if texts else "",
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
        "figures": _figures(report),
        "causes": _causes(run) if report.failed else (),
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
    left_bytes = PICTURE_BYTES

    def address(picture: bytes) -> Markup | None:
        """Return a picture as an address that holds it; None where the page would become too large."""
        nonlocal left_bytes
        if len(picture) > left_bytes:
            return None
        left_bytes -= len(picture)
        kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
        return Markup(f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}")

    pictures = {
        "photograph": lambda pixels: address(_encoded(Image.fromarray(pixels), "JPEG", quality=JPEG_QUALITY)),
        "feature_map": lambda one: address(coloured(one)),
    }
    return _template().render(values, histogram_step=HISTOGRAM_STEP, **pictures)


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=shown, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "long": lambda text, longest: Markup.escape(shown(text, longest)),
        "number": words_for_number,
        "share": words_for_share,
        "by": words_for_shape,
        "histogram": histogram,
    }
    return environment.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"))


def shown(value: Any, longest: int = LONGEST_TEXT) -> Any:
    """Return a value as text without anything invisible, long ones without their middle; not yet escaped.

    What the template made itself stays as it is.
    """
    if isinstance(value, Markup):
        return value
    text = str(value)
    return printable(text if len(text) <= longest else f"{text[: longest * 2 // 3]} … {text[-(longest // 3) :]}")


def words_for_seconds(seconds: float) -> str:
    """Return ``4.2 s``, ``3 min 5 s``, ``7 h 20 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def option_text(value: Any) -> str:
    """Return the value of an option as the command line takes it."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(option_text, value))}]"
    return "null" if value is None else str(value)


def histogram(statistics: LayerStatistics) -> tuple[list[float], list[str]] | None:
    """Return heights of bars, 0 to 1, and the labels below them, of the sampled values that are not zero.

    A bar a power of two, from zero outwards; what is too small for the bars is in those next to zero. None without such values.
    """
    # [k]: magnitudes from 2^(k - 62) on.
    positive, negative = statistics.histogram[TINY + 1 :], statistics.histogram[:OCTAVES][::-1]
    octaves = np.flatnonzero(positive + negative)
    if not len(octaves):
        return None
    stop = int(octaves[-1]) + 1
    first = max(0, stop - BARS)
    sides = [np.append(side[: first + 1].sum(), side[first + 1 : stop]) for side in (negative, positive)]
    ends = [words_for_number(2.0 ** (exponent + SMALLEST_EXPONENT)) for exponent in ((first + stop) // 2, stop)]
    if negative.any():
        counts, labels = np.concatenate([sides[0][::-1], sides[1]]), [f"−{ends[1]}", "0", ends[1]]
    else:
        counts, labels = sides[1], ["0", *ends]
    return (counts / counts.max()).tolist(), labels


def coloured(one: FeatureMap) -> bytes:
    """Return a map as PNG: its least value dark, its largest bright, grey where there is no finite value."""
    reach = one.high - one.low
    scaled = (one.pixels.astype(np.float64) - one.low) / reach if reach > 0.0 else np.zeros(one.pixels.shape)
    levels = np.clip(np.nan_to_num(scaled) * (LEVELS - 1) + 0.5, 0, LEVELS - 1).astype(np.uint8)
    levels[~np.isfinite(one.pixels)] = LEVELS
    picture = Image.fromarray(levels)
    at = np.linspace(0, len(VIRIDIS) - 1, LEVELS)
    colours = np.stack([np.interp(at, range(len(VIRIDIS)), part) for part in zip(*VIRIDIS, strict=True)], axis=1)
    picture.putpalette([*np.rint(colours).astype(int).ravel().tolist(), *NOT_FINITE])
    return _encoded(picture, "PNG", optimize=True)


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


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
            figures["compressed to"] = words_for_share(report.bytes_stored / report.bytes_raw)
        figures["device"] = report.device
    figures["wall time"] = words_for_seconds(report.seconds)
    figures["peak memory"] = words_for_bytes(report.peak_memory_bytes)
    return figures


def _causes(run: Run) -> list[Cause]:
    """Return of the images that failed alike what their errors have in common, how many, (key, error) of the first of them."""
    counts: Counter[str] = Counter()
    examples: dict[str, list[tuple[str, str]]] = {}
    for key, error in zip(run.images["key"], run.images["error"], strict=True):
        if error:
            word = str(error).split(":", 1)[0]
            counts[word] += 1
            if counts[word] <= EXAMPLES:
                examples.setdefault(word, []).append((str(key), str(error)))
    frequent = counts.most_common()
    causes: list[Cause] = [(word, many, examples[word]) for word, many in frequent[:CAUSES]]
    if len(frequent) > CAUSES:
        causes.append(("for other causes", sum(many for _, many in frequent[CAUSES:]), []))
    return causes
