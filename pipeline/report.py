"""What a run did: words for the log, ``report.json``, and ``report.html``: one page that loads nothing and runs no script."""

from __future__ import annotations

import base64
import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from .cli import command_again
from .errors import ImageError, StoreError
from .formatting import counted, shortened, words_for_bytes, words_for_device, words_for_number, words_for_shape, words_for_share
from .images.reading import thumbnail
from .progress import STAGES, Made
from .records import OK, ImageRecord, Manifest
from .store.reader import Run, place_of
from .store.statistics import LayerStatistics

# Stages while images are flowing.
LOOP = ("read", "network", "reduce", "store")
TITLE_WIDTH = 11
# Of failures, and failed images; a run may have a million, each with a cause of its own.
CAUSES, EXAMPLES = 12, 24
# More of a name or of an error says nothing more.
LONGEST_TEXT = 300
JPEG_QUALITY = 80
# Sample images, and layers of them; sides of their pictures. All together at most a megabyte.
ROWS, LAYERS = 6, 4
PICTURE_PX, MAP_PX = 224, 112
# A row that takes more memory is not worth reading for a picture the size of a stamp.
LARGEST_ROW_BYTES = 64 << 20


@dataclass(slots=True, kw_only=True)
class Report(Made):
    """What a run did, in numbers."""

    folder: str  # where the results are
    index: str  # file to open; "" where it is left to another process
    network: str
    weights: str  # what they are
    layers: Mapping[str, tuple[int, ...] | None]  # name -> shape of a row, None at native size
    run_digest: str
    rows: int  # of the manifest
    failed: int  # of these, in this run and in what it resumed
    causes: Mapping[str, int]  # first words of the reasons -> rows
    skipped: Mapping[str, int]  # files passed over while listing: reason -> how many
    seconds_by_stage: Mapping[str, float]  # of the main thread, by what it did or waited for
    versions: Mapping[str, str]  # of this program and the libraries
    options: Mapping[str, Any]  # each as it was set or is by default, by its full name
    part: str  # 3/8 where this process made a share of the run, of which alone rates, bytes, memory and seconds are; "" else

    @property
    def seconds(self) -> float:
        """Wall time."""
        return sum(self.seconds_by_stage.values())

    @property
    def bottleneck(self) -> str:
        """Stage of the loop that took longest once images were flowing; "" where none were."""
        return max(LOOP, key=lambda name: self.seconds_by_stage.get(name, 0.0)) if self.rows_now else ""

    def json(self) -> str:
        """Return the report as JSON text."""
        content = {**asdict(self), "seconds": self.seconds, "bottleneck": self.bottleneck}
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    def numbers(self) -> dict[str, str]:
        """Return what was done, title -> words: lines of the log, and boxes of the page."""
        kept = self.rows - self.rows_now
        found = {
            "part": f"{self.part}; rate, bytes, memory and seconds are of this part alone" if self.part else "",
            "rows": f"{self.rows} ({self.rows - self.failed} ok, {self.failed} failed)",
            "kept": f"{kept} finished by an earlier run{' or another part' * bool(self.part)}" if kept > 0 else "",
            "new": f"{self.rows_added} added to it" if self.rows_added else "",
        }
        if self.rows_now:
            ratio = f", {self.bytes_stored / self.bytes_raw:.0%} of raw" if self.bytes_raw else ""
            found["rate"] = f"{self.images_per_second:.2f} images/s on the {self.device}"
            found["stored"] = f"{words_for_bytes(self.bytes_stored)}{ratio}"
            found["memory"] = f"{words_for_bytes(self.peak_memory_bytes)} at the peak"
        return {title: text for title, text in found.items() if text}

    def summary(self) -> str:
        """Return the report as a screenful of words."""
        found = self.numbers()
        causes = [f"{count:8d} {cause}" for cause, count in Counter(self.causes).most_common()]
        found["rows"] = f"\n{' ' * TITLE_WIDTH}".join([found["rows"], *causes])
        found["skipped"] = ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items()))
        parts = [f"{name} {seconds:.1f}" for name, seconds in self.seconds_by_stage.items() if seconds >= 0.05]
        found["seconds"] = f"{self.seconds:.1f} = {' + '.join(parts)}"
        found["limit"] = self.bottleneck and f"{self.bottleneck}: {STAGES[self.bottleneck]}"
        if self.index:
            first = next(iter(self.layers))
            found["results"], found["page"] = self.index, f"{self.folder}/report.html"
            found["open"] = f'from pipeline import open_run; run = open_run("{self.folder}"); run["{first}"][0]'
        return "\n".join(f"{title:{TITLE_WIDTH}}{text}" for title, text in found.items() if text)


def render_page(report: Report, run: Run, manifest: Manifest) -> str:
    """Return the page of a run as HTML, with what was done when it did something; ``manifest``: where its images are."""
    of, folder = run.attributes, place_of(report.folder)
    is_good = run.images["status"] == OK
    good, failed = np.flatnonzero(is_good), np.flatnonzero(~is_good)[:EXAMPLES]
    # Of a vector there is nothing to see; at native size there is no shape, and all are maps.
    maps = spread([name for name in run.layers if math.prod((run[name].row_shape or (2, 2, 1))[:-1]) > 1], LAYERS)
    colours = {"mean colour": of.get("mean_pixel"), "divided by": of.get("scale_pixel")}
    about = {
        "images from": of["data_root"],
        "weights": report.weights,
        "SHA-256 of weights": of["weights_sha256"],
        "device": words_for_device(of),
        "input": of["preprocess"],
        **{title: ", ".join(f"{value:.3f}" for value in colour) for title, colour in colours.items() if colour is not None},
        "values": f"{run[run.layers[0]].dtype}, compression {of['compression']}, in {counted(len(run.shards), 'shard')}",
        "run digest": of["run_digest"],
        "written": of["created"],
        "versions": ", ".join(f"{library} {version}" for library, version in report.versions.items()),
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=shown, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        name=folder.name,
        report=report,
        is_untrained=str(of["weights"]).startswith("random"),
        stages=[(name, *STAGES[name].partition(": ")[::2], seconds) for name, seconds in report.seconds_by_stage.items()],
        samples=[_sample(run, manifest[row], maps) for row in spread(good.tolist(), ROWS)],
        layers=[_layer_cells(name, report.layers.get(name), run[name].channels, run.statistics[name]) for name in run.layers],
        causes=Counter(report.causes).most_common(CAUSES),
        failures=[(run.images["key"][row], run.images["error"][row]) for row in failed],
        about=about,
        # All of it is printable, and to be copied.
        command=Markup.escape(command_again(report.options, folder)) if report.options else "",
    )


def shown(value: Any) -> Any:
    """Return a value as text without anything invisible, a long one without its middle; not yet escaped.

    What the template made itself stays as it is.
    """
    return value if isinstance(value, Markup) else shortened(str(value), LONGEST_TEXT)


def spread(items: Sequence[Any], wanted: int) -> list[Any]:
    """Return so many items, from the first to the last, alike for the same arguments."""
    places = np.linspace(0, len(items) - 1, min(len(items), wanted)).round().astype(int)
    return [items[place] for place in places.tolist()]


def _layer_cells(name: str, shape: tuple[int, ...] | None, channels: int, of: LayerStatistics) -> list[str]:
    """Return name, output, range, mean and deviation, share of zeros, and dead channels of a layer."""
    output = words_for_shape(shape) if shape else f"native size × {channels}"
    low, high, mean, deviation = map(words_for_number, (of.minimum, of.maximum, of.mean, of.standard_deviation))
    zeros, dead = words_for_share(of.zero_share), str(len(of.dead_channels))
    return [name, output, f"{low} to {high}", f"{mean} ± {deviation}", zeros, dead]


def _sample(run: Run, record: ImageRecord, layers: Sequence[str]) -> dict[str, Any]:
    """Return an image of the run; ``pictures``: it, and a feature map of each of some layers, as (caption, picture or "")."""
    row, pictures = record.index, list[tuple[str, str]]()
    try:
        pixels = thumbnail(record, str(run.images["sha256"][row]), PICTURE_PX)
        pictures.append(("", _address(Image.fromarray(pixels), "JPEG", quality=JPEG_QUALITY)))
    except ImageError as error:
        pictures.append((f"no picture: {error}", ""))
    for name in layers:
        try:
            if (size_bytes := math.prod(run[name].shape_of(row)) * 4) > LARGEST_ROW_BYTES:
                raise StoreError(f"{words_for_bytes(size_bytes)} an image, too much to be read for this page")
            channel, picture = most_active_map(run[name][row])
            pictures.append((f"{name}, channel {channel}", picture))
        except StoreError as error:
            pictures.append((f"{name}: {error}", ""))
    return {"row": row, "pictures": pictures, **{name: run.images[name][row] for name in ("key", "label", "height", "width")}}


def most_active_map(values: NDArray[np.floating]) -> tuple[int, Markup]:
    """Return the channel with the greatest mean of what is above 0, and it as a PNG: its least value black, its largest white."""
    channel = int(np.maximum(values, 0).sum((0, 1), np.float64).argmax())
    one = values[:, :, channel].astype(np.float64)
    grey = np.rint(255 * (one - one.min()) / (np.ptp(one) or 1.0)).astype(np.uint8)
    picture = Image.fromarray(grey)
    picture.thumbnail((MAP_PX, MAP_PX), Image.Resampling.BOX)
    return channel, _address(picture, "PNG", optimize=True)


def _address(picture: Image.Image, kind: str, **options: Any) -> Markup:
    """Return a picture as an address that holds it."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return Markup(f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}")
