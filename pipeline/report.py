"""What a run did: words for the log, ``report.json``, and ``report.html``: one page that loads nothing and runs no script."""

from __future__ import annotations

import base64
import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup
from PIL import Image

from .config import nested
from .errors import ImageError, StoreError, printable
from .figures import FeatureMap, is_vector, make_maps
from .formatting import shortened, words_for_bytes, words_for_device, words_for_number, words_for_shape, words_for_share
from .images.reading import thumbnail
from .progress import STAGES, Made
from .records import OK, Manifest
from .reproduce import command_again
from .store.reader import Layer, Run, place_of
from .store.statistics import HISTOGRAM_STEP, OCTAVES, SMALLEST_EXPONENT, TINY, LayerStatistics

# Of failures, and failed images; a run may have a million, each with a cause of its own.
CAUSES, EXAMPLES = 12, 24
# More of a name or of an error says nothing more.
LONGEST_TEXT = 300
JPEG_QUALITY = 80
# Sample images, layers and active channels of them; sides of their pictures. All together at most a megabyte.
ROWS, LAYERS, ACTIVE_CHANNELS = 6, 4, 2
PICTURE_PX, MAP_PX = 224, 112
# A row that takes more memory is not worth reading for a picture the size of a stamp.
LARGEST_ROW_BYTES = 64 << 20
# Bars of a histogram on each side of zero.
BARS = 16


@dataclass(slots=True, kw_only=True)
class Report(Made):
    """What a run did, in numbers.

    Attributes:
        folder: Where the results are.
        index: File to open; "" where it is left to another process.
        network: Its name.
        weights: What they are.
        layers: Name -> shape of a row, None at native size.
        run_digest: Of the run, as in its files.
        rows: Rows of the manifest.
        failed: Rows that failed, in this run and in what it resumed.
        causes: First words of the reasons -> rows.
        skipped: Files passed over while listing: reason -> how many.
        seconds_by_stage: Wall time of the main thread by what it did or waited for; they add up to ``seconds``.
        versions: Of this program and the libraries.
        options: Every option as it was set or is by default, name -> value.
        part: ``3/8`` where this process made a share of the run only: rates, bytes, memory and seconds are its own; "" else.
    """

    folder: str
    index: str
    network: str
    weights: str
    layers: Mapping[str, tuple[int, ...] | None]
    run_digest: str
    rows: int
    failed: int
    causes: Mapping[str, int]
    skipped: Mapping[str, int]
    seconds_by_stage: Mapping[str, float]
    versions: Mapping[str, str]
    options: Mapping[str, Any]
    part: str

    @property
    def seconds(self) -> float:
        """Wall time."""
        return sum(self.seconds_by_stage.values())

    @property
    def bottleneck(self) -> str:
        """Stage of the loop that took longest once images were flowing; "" where none were."""
        return (
            max(("read", "network", "reduce", "store"), key=lambda name: self.seconds_by_stage.get(name, 0.0))
            if self.rows_now
            else ""
        )

    def json(self) -> str:
        """Return the report as JSON text."""
        content = {**asdict(self), "seconds": self.seconds, "bottleneck": self.bottleneck}
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    def numbers(self) -> dict[str, str]:
        """Return what was done, title -> words: lines of the log, and boxes of the page."""
        found = {}
        if self.part:
            what = "rows are those of the run, all else is" if self.index else "all of it is"
            found["part"] = f"{self.part}; {what} of this part alone"
        found["rows"] = f"{self.rows} ({self.rows - self.failed} ok, {self.failed} failed)"
        if self.rows_now < self.rows:
            before = "other parts or an earlier run" if self.part and self.index else "an earlier run"
            found["kept"] = f"{self.rows - self.rows_now} finished by {before}"
        if self.rows_added:
            found["new"] = f"{self.rows_added} added to it"
        if self.rows_now:
            found["rate"] = f"{self.images_per_second:.2f} images/s on the {self.device}"
            ratio = f", {self.bytes_stored / self.bytes_raw:.0%} of raw" if self.bytes_raw else ""
            found["stored"] = f"{words_for_bytes(self.bytes_stored)}{ratio}"
            found["memory"] = f"{words_for_bytes(self.peak_memory_bytes)} at the peak"
        return found

    def summary(self) -> str:
        """Return the report as a screenful of words."""
        lines = []
        for title, text in self.numbers().items():
            lines.append(f"{title:11}{text}")
            if title == "rows":
                lines += [f"             {count:6d} {cause}" for cause, count in Counter(self.causes).most_common()]
        if self.skipped:
            lines.append("skipped    " + ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items())))
        parts = [f"{name} {seconds:.1f}" for name, seconds in self.seconds_by_stage.items() if seconds >= 0.05]
        lines.append(f"seconds    {self.seconds:.1f} = " + " + ".join(parts))
        if self.bottleneck:
            lines.append(f"limit      {self.bottleneck}: {STAGES[self.bottleneck]}")
        if self.index:
            lines.append(f"results    {self.index}")
            # An address is no Path.
            lines.append(f"page       {self.index.removesuffix('features.h5')}report.html")
            first = next(iter(self.layers))
            lines.append(f'open       from pipeline import open_run; run = open_run("{self.folder}"); run["{first}"][0]')
        return "\n".join(lines)


def page_values(report: Report, run: Run, manifest: Manifest) -> dict[str, Any]:
    """Return what the page says of a run.

    Args:
        report: Of what was done when the run did something.
        run: All of it.
        manifest: Its rows; where the images are.
    """
    attributes, folder, config = run.attributes, place_of(report.folder), nested(report.options)
    is_good = run.images["status"] == OK
    good, failed = np.flatnonzero(is_good), np.flatnonzero(~is_good)[:EXAMPLES]
    # Of a vector there is nothing to see; at native size there is no shape, and all are maps.
    maps = [name for name in run.layers if not is_vector(run[name].row_shape or (2, 2))]
    layers = [maps[place] for place in spread(len(maps), LAYERS)]
    return {
        "name": folder.name,
        "report": report,
        "attributes": attributes,
        "dtype": run[run.layers[0]].dtype,
        "shards": len(run.shards),
        "samples": [_sample(run, manifest, int(good[place]), layers) for place in spread(len(good), ROWS)],
        "sampled_layers": layers,
        "layers": [
            {"name": name, "shape": report.layers.get(name), "channels": run[name].channels, "statistics": run.statistics[name]}
            for name in run.layers
        ],
        "causes": Counter(report.causes).most_common(CAUSES),
        "failures": [(run.images["key"][row], run.images["error"][row]) for row in failed],
        # All of it is printable, and to be copied.
        "command": Markup.escape(command_again(config, folder)) if config else "",
    }


def render(values: Mapping[str, Any]) -> str:
    """Return the page as HTML; the same values, as of :func:`page_values`, give the same text."""
    return _template().render(values, histogram_step=HISTOGRAM_STEP, stages=STAGES)


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=shown, trim_blocks=True, lstrip_blocks=True)
    words = {"number": words_for_number, "share": words_for_share, "by": words_for_shape, "device": words_for_device}
    environment.filters |= words | {"histogram": histogram}
    return environment.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"))


def shown(value: Any) -> Any:
    """Return a value as text without anything invisible, a long one without its middle; not yet escaped.

    What the template made itself stays as it is.
    """
    if isinstance(value, Markup):
        return value
    return printable(shortened(str(value), LONGEST_TEXT))


def spread(count: int, wanted: int) -> list[int]:
    """Return so many whole numbers below a count, from the first to the last, alike for the same arguments."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, wanted)).tolist()})


def _sample(run: Run, manifest: Manifest, row: int, layers: Sequence[str]) -> dict[str, Any]:
    """Return an image of the run and some of its feature maps; ``note`` says why there is no picture, or there are no maps."""
    columns = {name: run.images[name][row] for name in ("key", "label", "height", "width")}
    found: dict[str, Any] = {"row": row, **columns, "photo": None, "note": "", "layers": []}
    try:
        pixels = thumbnail(manifest[row], str(run.images["sha256"][row]), PICTURE_PX)
        found["photo"] = _address(Image.fromarray(pixels), "JPEG", quality=JPEG_QUALITY)
    except ImageError as error:
        found["note"] = f"no picture: {error}"
    for layer in layers:
        maps, note = [], ""
        try:
            maps = [(one, map_picture(one)) for one in sample_maps(run[layer], row)]
        except StoreError as error:
            note = str(error)
        found["layers"].append({"name": layer, "maps": maps, "note": note})
    return found


def sample_maps(layer: Layer, row: int) -> list[FeatureMap]:
    """Return channel 0 and the most active channels of an image.

    Raises:
        StoreError: The row is damaged, or too large to be read for this.
    """
    shape = layer.shape_of(row)
    if (size_bytes := math.prod(shape) * 4) > LARGEST_ROW_BYTES:
        raise StoreError(f"{words_for_bytes(size_bytes)} an image, too much to be read for this page")
    maps = make_maps(layer.name, [(0, layer[row])], shape, range(shape[-1]), -(-max(shape[:2]) // MAP_PX), shape[-1])
    return sorted(maps, key=lambda one: one.channels != [0])[: 1 + ACTIVE_CHANNELS]


def map_picture(one: FeatureMap) -> Markup:
    """Return a map as the address of a PNG, its least value black, its largest white."""
    values = np.where(np.isfinite(one.values), one.values.astype(np.float64), one.low)
    grey = np.interp(values, (one.low, one.high), (0, 255)) if one.low < one.high else np.zeros(values.shape)
    return _address(Image.fromarray(np.rint(grey).astype(np.uint8)), "PNG", optimize=True)


def _address(picture: Image.Image, kind: str, **options: Any) -> Markup:
    """Return a picture as an address that holds it."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return Markup(f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}")


def histogram(statistics: LayerStatistics) -> tuple[list[float], list[str]] | None:
    """Return the heights of bars, 0 to 1, and the labels below them, of the sampled values that are not zero.

    A bar a power of two, from zero outwards; what is too small for the bars is in those next to zero. None without such values.
    """
    # [k]: magnitudes from 2^(k - 62) on.
    positive, negative = statistics.histogram[TINY + 1 :], statistics.histogram[:OCTAVES][::-1]
    octaves = np.flatnonzero(positive + negative)
    if not len(octaves):
        return None
    stop = int(octaves[-1]) + 1
    first = max(0, stop - BARS)
    below, counts = (np.append(side[: first + 1].sum(), side[first + 1 : stop]) for side in (negative, positive))
    middle, end = (words_for_number(2.0 ** (exponent + SMALLEST_EXPONENT)) for exponent in ((first + stop) // 2, stop))
    labels = ["0", middle, end]
    if negative.any():
        counts, labels = np.concatenate([below[::-1], counts]), [f"−{end}", "0", end]
    return (counts / counts.max()).tolist(), labels
