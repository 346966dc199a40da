"""``report.html``: a run on one page. ``report.html.j2`` filled; one file that loads nothing and runs no script."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup
from PIL import Image

from .config import defaults, nested
from .errors import ImageError, StoreError, printable
from .figures import FeatureMap, group_components, is_vector, make_maps
from .formatting import words_for_bytes, words_for_number, words_for_shape, words_for_share
from .images.reading import thumbnail
from .records import OK, Manifest
from .report import STAGES, Report
from .reproduce import argument, command_again, differing_options
from .store.reader import Layer, Run, place_of
from .store.statistics import HISTOGRAM_STEP, OCTAVES, SMALLEST_EXPONENT, TINY, LayerStatistics

# Of failures; a run may have a million, each with a cause of its own.
CAUSES = EXAMPLES = 12
# More of a name or of an error says nothing more.
LONGEST_TEXT = 300
JPEG_QUALITY = 80
# Sample images, layers and active channels of them; sides of their pictures. All together at most a megabyte.
ROWS, LAYERS, ACTIVE_CHANNELS = 6, 4, 2
PICTURE_PX, MAP_PX = 224, 112
# A row that takes more memory is not worth reading for a picture the size of a stamp.
LARGEST_ROW_BYTES = 64 << 20
# Bars of a histogram on each side of zero; of a vector.
BARS, VECTOR_BARS = 16, 128
# Source: Matplotlib's viridis (CC0), every 64th colour. The last of a palette is for what is not finite.
VIRIDIS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)])
NOT_FINITE, LEVELS = (128, 128, 128), 255

UNTRAINED = "Untrained weights, network.weights=random: these features mean nothing."


def page_values(report: Report, run: Run, manifest: Manifest) -> dict[str, Any]:
    """Return what the page says of a run.

    Args:
        report: Of what was done when the run did something.
        run: All of it.
        manifest: Its rows; where the images are.
    """
    attributes, folder, config = run.attributes, place_of(report.folder), nested(report.options)
    changed, usual = differing_options(config), defaults()
    good = np.flatnonzero(run.images["status"] == OK)
    layers = [run.layers[place] for place in spread(len(run.layers), LAYERS)]
    return {
        "name": folder.name,
        "report": report,
        "warning": UNTRAINED if str(attributes["weights"]).startswith("random") else "",
        "stages": {name: STAGES[name].partition(": ") for name in report.seconds_by_stage if name in STAGES},
        "samples": [_sample(run, manifest, int(good[place]), layers) for place in spread(len(good), ROWS)],
        "sampled_layers": layers,
        "layers": [
            {"name": name, "shape": report.layers.get(name), "channels": run[name].channels, "statistics": run.statistics[name]}
            for name in run.layers
        ],
        "causes": _causes(run, report.causes),
        # All of it is printable, and to be copied.
        "command": Markup.escape(command_again(config, folder, str(attributes["data_root"]))) if config else "",
        "options": [
            (argument(name, value), argument(name, usual.get(name)) if name in changed else "")
            for name, value in sorted(report.options.items(), key=lambda option: option[0] not in changed)
        ],
        "facts": {
            "images from": attributes["data_root"],
            "weights": report.weights,
            "SHA-256 of weights": attributes["weights_sha256"],
            "input": attributes["preprocess"],
            **{
                words: ", ".join(f"{value:.3f}" for value in attributes[name].tolist())
                for words, name in (("mean colour", "mean_pixel"), ("divided by", "scale_pixel"))
                if name in attributes
            },
            "values": f"{run[run.layers[0]].dtype}, compression {attributes['compression']}",
            "shards": len(run.shards),
            "run digest": attributes["run_digest"],
            "written": attributes["created"],
        },
    }


def render(values: Mapping[str, Any]) -> str:
    """Return the page as HTML; the same values give the same text.

    Args:
        values: As of :func:`page_values`.
    """
    return _template().render(values, histogram_step=HISTOGRAM_STEP)


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=shown, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "number": words_for_number,
        "share": words_for_share,
        "by": words_for_shape,
        "histogram": histogram,
    }
    return environment.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"))


def shown(value: Any) -> Any:
    """Return a value as text without anything invisible, a long one without its middle; not yet escaped.

    What the template made itself stays as it is.
    """
    if isinstance(value, Markup):
        return value
    text = str(value)
    half = LONGEST_TEXT // 2
    return printable(text if len(text) <= LONGEST_TEXT else f"{text[:half]} … {text[-half:]}")


def spread(count: int, wanted: int) -> list[int]:
    """Return so many whole numbers below a count, from the first to the last, alike for the same arguments."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, wanted)).tolist()})


def _sample(run: Run, manifest: Manifest, row: int, layers: Sequence[str]) -> dict[str, Any]:
    """Return an image of the run and some of its feature maps; ``note`` says why there is no picture, or there are no maps."""
    photo, note = None, ""
    try:
        pixels = thumbnail(manifest[row], str(run.images["sha256"][row]), PICTURE_PX)
        photo = _address(Image.fromarray(pixels), "JPEG", quality=JPEG_QUALITY)
    except ImageError as error:
        note = f"no picture: {error}"
    found = []
    for layer in layers:
        try:
            maps = [(one, vector_bars(one) if one.values.ndim == 1 else coloured(one)) for one in sample_maps(run[layer], row)]
            found.append({"name": layer, "maps": maps, "note": ""})
        except StoreError as error:
            found.append({"name": layer, "maps": (), "note": str(error)})
    columns = {name: run.images[name][row] for name in ("key", "label", "height", "width")}
    return {"row": row, **columns, "photo": photo, "note": note, "layers": found}


def sample_maps(layer: Layer, row: int) -> list[FeatureMap]:
    """Return channel 0 and the most active channels of an image; of a vector all components in one.

    Raises:
        StoreError: The row is damaged, or too large to be read for this.
    """
    shape = layer.shape_of(row)
    if (size_bytes := math.prod(shape) * 4) > LARGEST_ROW_BYTES:
        raise StoreError(f"{words_for_bytes(size_bytes)} an image, too much to be read for this page")
    channels = range(shape[-1])
    if is_vector(shape):
        return make_maps(layer.name, [(0, layer[row])], shape, channels)
    side = -(-max(shape[:2]) // MAP_PX)
    maps = make_maps(layer.name, [(0, layer[row])], shape, channels, side, most_active=shape[2])
    return sorted(maps, key=lambda one: one.channels != [0])[: 1 + ACTIVE_CHANNELS]


def vector_bars(one: FeatureMap) -> list[tuple[float, float]]:
    """Return where bars of a vector's components begin and end, from 0, its least value or zero, to 1, its greatest or zero."""
    _, lows, highs = group_components(one.values, VECTOR_BARS)
    low, reach = lows.min(), highs.max() - lows.min() or 1.0
    return [*zip(((lows - low) / reach).tolist(), ((highs - low) / reach).tolist(), strict=True)]


def coloured(one: FeatureMap) -> Markup:
    """Return a map as the address of a PNG: its least value dark, its largest bright, grey where there is no finite value."""
    reach = one.high - one.low
    scaled = (one.values.astype(np.float64) - one.low) / reach if reach > 0.0 else np.zeros(one.values.shape)
    levels = np.clip(np.nan_to_num(scaled) * (LEVELS - 1) + 0.5, 0, LEVELS - 1).astype(np.uint8)
    picture = Image.fromarray(np.where(np.isfinite(one.values), levels, np.uint8(LEVELS)))
    at = np.linspace(0, len(VIRIDIS) - 1, LEVELS)
    colours = np.stack([np.interp(at, range(len(VIRIDIS)), part) for part in VIRIDIS.T], axis=1)
    picture.putpalette([*np.rint(colours).astype(int).ravel().tolist(), *NOT_FINITE])
    return _address(picture, "PNG", optimize=True)


def _address(picture: Image.Image, kind: str, **options: Any) -> Markup:
    """Return a picture as an address that holds it."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return Markup(f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}")


def histogram(statistics: LayerStatistics) -> tuple[list[tuple[float, float]], list[str]] | None:
    """Return where bars begin and end, 0 to 1, and the labels below them, of the sampled values that are not zero.

    A bar a power of two, from zero outwards; what is too small for the bars is in those next to zero. None without such values.
    """
    # [k]: magnitudes from 2^(k - 62) on.
    positive, negative = statistics.histogram[TINY + 1 :], statistics.histogram[:OCTAVES][::-1]
    octaves = np.flatnonzero(positive + negative)
    if not len(octaves):
        return None
    stop = int(octaves[-1]) + 1
    first = max(0, stop - BARS)
    below, above = (np.append(side[: first + 1].sum(), side[first + 1 : stop]) for side in (negative, positive))
    middle, end = (words_for_number(2.0 ** (exponent + SMALLEST_EXPONENT)) for exponent in ((first + stop) // 2, stop))
    counts, labels = above, ["0", middle, end]
    if negative.any():
        counts, labels = np.concatenate([below[::-1], above]), [f"−{end}", "0", end]
    return [(0.0, height) for height in (counts / counts.max()).tolist()], labels


def _causes(run: Run, counts: Mapping[str, int]) -> list[tuple[str, int, list[tuple[str, str]]]]:
    """Return of the images that failed alike what their errors have in common, how many, (key, error) of the first of them."""
    frequent = sorted(counts.items(), key=lambda item: -item[1])
    examples: dict[str, list[tuple[str, str]]] = {word: [] for word, _ in frequent[:CAUSES]}
    for row in np.flatnonzero(run.images["status"] != OK):
        key, error = str(run.images["key"][row]), str(run.images["error"][row])
        of_cause = examples.get(error.split(":", 1)[0])
        if of_cause is not None and len(of_cause) < EXAMPLES:
            of_cause.append((key, error))
    found = [(word, counts[word], rows) for word, rows in examples.items()]
    others = sum(count for _, count in frequent[CAUSES:])
    return [*found, ("for other causes", others, [])] if others else found
