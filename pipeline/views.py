"""From a stored run to sheets of pictures: which rows, layers and channels, their maps, the input beside them, the files."""

from __future__ import annotations

import fnmatch
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from . import figures
from .config import PlotOptions, check_value
from .errors import ImageError, OptionError, StoreError, nearest
from .feature_maps import FeatureMap, fold, has_extent, make_maps, reduction, shape_words
from .figures import Layout, Sheet, rows_words
from .images.resize import ResizeSpec
from .images.seen import save_image, seen_picture
from .machine import usable_cores
from .picture_names import PictureNames, run_name
from .records import OK, ImageStatus
from .store.reader import Layer, Run, open_run
from .stored_images import find_image, image_place

# Layers up to this size are read whole.
WHOLE_BYTES = 64 << 20
# So many are named in a file's name, more are counted.
NAMED_LAYERS = 3


def draw_views(choice: PlotOptions) -> None:
    """Draws what was chosen, a file a sheet, and says where each is.

    Raises:
        OptionError: The run has no such image, layer or channel; there is no such colour map; no window can be opened.
        StoreError: The run cannot be read, an image failed, or a file cannot be written.
    """
    with open_run(choice.run) as run, figures.plain_settings():
        figures.check_colormap(choice.colormap)
        layers = choose_layers(run.layers, choice.layers)
        rows = choose_rows(run, choice.images)
        files = PictureNames(run, choice, rows, layers)
        if choice.show:
            figures.require_windows()
        for row in rows:
            seen = _seen(run, row, is_needed=(choice.input == "only")) if choice.input is not False else None
            if choice.input == "only":
                assert seen is not None
                path = files.path(row, "input")
                with figures.published(path) as partial:
                    save_image(seen, partial, "png")
                print(f"written: {path} ({seen.shape[1]} x {seen.shape[0]} px)", flush=True)
                continue
            for word, sheet, layout in _sheets(run, row, layers, choice, seen):
                figure = figures.draw(
                    sheet, figures.Look(choice.colormap, (choice.scale == "shared"), choice.dpi), layout, choice.show
                )
                path = files.path(row, word)
                figures.save(figure, path)
                width, height = figure.canvas.get_width_height()
                print(f"written: {path} ({width} x {height} px, {_counted(len(sheet.maps), 'map')})", flush=True)
        if choice.show:
            figures.show_windows()


def choose_rows(run: Run, images: Sequence[int | str]) -> list[int]:
    """Gives the rows of these images, each once; of none the first that is ok.

    Raises:
        OptionError: There is no such image.
        StoreError: An image failed, or all did.
    """
    statuses = run.images["status"]
    if not images:
        good = np.flatnonzero(statuses == OK)
        if not len(good):
            raise StoreError(
                f"{run.path}: all {len(run)} images failed, got e.g. {run.images['error'][0]!r}. Expected one that is ok."
            )
        return [int(good[0])]
    # Damage to it is no wrong option.
    keys = run.images["key"]
    rows: list[int] = []
    for image in images:
        if isinstance(image, str):
            try:
                row = run.row(image)
            except StoreError as error:
                raise OptionError(f"image: {error}") from error
        else:
            row = image + len(run) if image < 0 else image
            if not 0 <= row < len(run):
                raise OptionError(
                    f"image: no such row, got {image}. Expected {-len(run)} to {len(run) - 1}, or a key as "
                    f"{str(keys[0])[:200]!r}. Rows are counted from 0."
                )
        if statuses[row] != OK:
            raise StoreError(
                f"{run.path}: row {row} ({str(keys[row])!r}) failed and has no features, got {str(run.images['error'][row])!r}. "
                f"Expected an image that is ok, as row {_nearest_good(statuses, row)}. Choose another with image=..."
            )
        if row not in rows:
            rows.append(row)
    return rows


def _nearest_good(statuses: NDArray[Any], row: int) -> str:
    good = np.flatnonzero(statuses == OK)
    return str(good[np.abs(good - row).argmin()]) if len(good) else "none of this run is"


def choose_layers(stored: Sequence[str], words: Sequence[str]) -> list[str]:
    """Gives the stored layers that names, patterns, blocks or ``all`` mean, in network order.

    Raises:
        OptionError: One means none of them.
    """
    chosen: set[str] = set()
    for word in words:
        if word == "all":
            found = list(stored)
        elif block := re.fullmatch(r"block([1-5])", word):
            found = [name for name in stored if re.match(rf"(conv|relu|pool){block[1]}(_|$)", name)]
        else:
            found = fnmatch.filter(stored, word)
        if not found:
            raise OptionError(
                f"layers: not stored in this run, got {word!r}. Expected one of: {nearest(word, [*stored, 'all'])}. "
                f"Leave it out for all that are stored."
            )
        chosen.update(found)
    return [name for name in stored if name in chosen]


def _sheets(
    run: Run, row: int, layers: Sequence[str], choice: PlotOptions, seen: NDArray[np.uint8] | None
) -> Iterator[tuple[str, Sheet, Layout]]:
    """Gives for each sheet of an image the word for its file name, what is on it, and where."""
    shapes = {layer: run[layer].shape_of(row) for layer in layers}
    origin = f"row {row} of {run_name(run)} · {run.attributes.get('network', 'network unknown')}, {_weights_words(run)}"
    seen_lines = () if seen is None else _seen_lines(run, row, seen)
    scale = ", one scale for all" if (choice.scale == "shared") else ""
    key = str(run.images["key"][row])
    if choice.channels is not None:
        for layer in layers:
            wanted, words = _channels(layer, shapes[layer], choice)
            count = len(wanted) if choice.most_active is None else min(choice.most_active, len(wanted))
            layout = figures.plan_layout([shapes[layer]] * count, is_mosaic=True)
            maps = _read(run[layer], row, shapes[layer], wanted, layout, choice)
            lines = (origin, f"{layer}, {shape_words(shapes[layer])}{rows_words(maps[0])}: {words}{scale}")
            yield f"{layer}-{_mosaic_word(choice, count)}", Sheet(key, lines, maps, seen, seen_lines), layout
        return
    for layer, shape in shapes.items():
        if has_extent(shape) and choice.channel >= shape[2]:
            raise OptionError(
                f"channel: layer {layer} has no such channel, got {choice.channel}. Expected 0 to {shape[2] - 1}. "
                f"Choose another, or other layers."
            )
    layout = figures.plan_layout(list(shapes.values()), is_mosaic=False)

    def read(layer: str) -> FeatureMap:
        shape = shapes[layer]
        if not has_extent(shape):
            return fold(layer, run[layer][row])
        return _read(run[layer], row, shape, [choice.channel], layout, choice)[0]

    with ThreadPoolExecutor(usable_cores(), thread_name_prefix="read") as pool:
        reading = pool.map(read, layers)
        maps = list(tqdm(reading, total=len(layers), unit="layer", disable=not sys.stderr.isatty(), leave=False))
    which = f"channel {choice.channel}" + (" of each layer" if len(layers) > 1 else "")
    word = "-".join(layers) if len(layers) <= NAMED_LAYERS else f"{len(layers)}-layers"
    named = f"{word}-channel-{choice.channel}" if choice.channel else word
    yield named, Sheet(key, (origin, which + scale), maps, seen, seen_lines), layout


def _read(
    layer: Layer, row: int, shape: tuple[int, int, int], channels: Sequence[int], layout: Layout, choice: PlotOptions
) -> list[FeatureMap]:
    """Gives the maps of some channels of one image, from as much of it as will be seen."""
    side = reduction(shape, layout.limit_px(choice.dpi))
    is_large = math.prod(shape) * layer.dtype.itemsize > WHOLE_BYTES
    # Two rows of each square on which a mean is drawn: what is between them changes a shade.
    every = -(-side // 2) if is_large and not choice.exact else 1
    return make_maps(layer.name, layer.bands(row, every), shape, channels, side, choice.most_active)


def _channels(layer: str, shape: tuple[int, int, int], choice: PlotOptions) -> tuple[Sequence[int], str]:
    """Gives the channels to read, and what is to be said of them."""
    count = shape[2]
    if choice.most_active is not None:
        return range(count), f"the {min(count, choice.most_active)} most active of {count} channels, the most active first"
    assert choice.channels is not None
    if isinstance(choice.channels, range):
        shown = choice.channels[:count]
        return shown, f"channels 0 to {shown[-1]} of {count}" if len(shown) < count else f"all {count} channels"
    if max(choice.channels) >= count:
        raise OptionError(
            f"channels: layer {layer} has no such channel, got {max(choice.channels)}. Expected 0 to {count - 1}. "
            f"Choose others, or other layers."
        )
    return choice.channels, f"{_counted(len(choice.channels), 'chosen channel')} of {count}"


def _mosaic_word(choice: PlotOptions, count: int) -> str:
    if choice.most_active is not None:
        return f"{count}-most-active"
    if isinstance(choice.channels, range):
        return f"first-{count}-channels"
    return "-".join(["channels", *map(str, choice.channels or ())])


def _weights_words(run: Run) -> str:
    weights = str(run.attributes.get("weights", "weights unknown"))
    return "untrained (random weights)" if weights.startswith("random") else weights.partition("; conv1_1 says")[0]


def _seen(run: Run, row: int, is_needed: bool) -> NDArray[np.uint8] | None:
    """Gives the picture that the network saw; where that cannot be had, says why.

    Raises:
        StoreError: It cannot be had, and nothing else is wanted.
    """
    where = image_place(run, row)
    height, width, size_bytes = (int(run.images[name][row]) for name in ("height", "width", "bytes"))
    status = ImageStatus(row, "", height, width, size_bytes, str(run.images["sha256"][row]))
    try:
        return seen_picture(find_image(run, row), status, *_ways(run))
    except ImageError as error:
        if is_needed:
            raise StoreError(
                f"{where!r}: the input cannot be shown, got {error}. Expected the file that was extracted. Put it back."
            ) from error
        print(f"input: {where!r}: {error}; drawn without it", file=sys.stderr)
        return None


def _ways(run: Run) -> tuple[ResizeSpec | None, NDArray[np.float64], bool]:
    """Gives how images were made ready: resized (None: not at all), with this mean colour, JPEGs reduced or not.

    Raises:
        ImageError: The run does not say.
    """
    try:
        identity = json.loads(str(run.attributes["identity"]))
        resize = None
        if identity["data.size"] != "native":
            size_px = check_value("data.size", [int(side) for side in identity["data.size"].split("x")])
            assert size_px is not None
            mode, interpolation = (check_value(key, identity[key]) for key in ("data.resize", "data.interpolation"))
            resize = ResizeSpec(size_px, mode, interpolation)
        mean = np.asarray(run.attributes["mean_pixel"], np.float64).reshape(3)
        return resize, mean, identity.get("data.decode") == "fast"
    except (KeyError, ValueError, TypeError, AttributeError, OptionError) as error:
        raise ImageError("the run does not say how its images were made ready") from error


def _seen_lines(run: Run, row: int, seen: NDArray[np.uint8]) -> tuple[str, ...]:
    height, width = int(run.images["height"][row]), int(run.images["width"][row])
    if (height, width) == seen.shape[:2]:
        return (f"{height} × {width} px",)
    return (f"{height} × {width} px", f"seen as {seen.shape[0]} × {seen.shape[1]} px")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + "s" * (count != 1)
