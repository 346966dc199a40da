"""From a stored run to pictures of its features: which rows, layers and channels, the input beside them, the files."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import figures
from .config import PlotOptions
from .errors import DatasetError, ImageError, OptionError, StoreError
from .figures import FeatureMap, Layout, is_vector, make_maps
from .formatting import counted, words_for_shape
from .images.decode import decode_image
from .images.reading import RemoteImages, read_again, words_for
from .images.resize import ResizeSpec, dct_reduction, resize_on_host
from .images.tar import COLUMN, find_in_tar
from .records import OK, ImageRecord
from .storage import is_address
from .store.reader import Layer, Run, beside, choose_layers, open_run

# Layers up to this size are read whole.
WHOLE_BYTES = 64 << 20
# So many are named in a file's name, more are counted.
NAMED_LAYERS = 3
DEFAULT_NAME = "{run}-{image}-{layer}.png"
# Source: ext4, NTFS and APFS take names of 255 bytes; there are three such parts, and a suffix while one is being written.
LONGEST_PART_BYTES = 75


def draw_plots(options: PlotOptions) -> None:
    """Draw what was chosen, a file a sheet, and print where each is.

    Raises:
        OptionError: The run has no such image, layer or channel; there is no such colour map; no window can be opened; several
            sheets would have one name.
        StoreError: The run cannot be read, an image failed, its input cannot be had, or a file cannot be written.
    """
    with open_run(options.run) as run, figures.plain_settings():
        layers = choose_layers(run.layers, options.layers)
        rows = _choose_rows(run, options.images)
        path_of = _picture_paths(run, options, rows, layers)
        for row in rows:
            seen = _input(run, row, options)
            if options.input == "only":
                _save(Image.fromarray(seen), path_of(row, "input"))
                continue
            for word, maps, figure in _sheets(run, row, layers, options, seen):
                _save(figure, path_of(row, word), f", {counted(maps, 'map')}")
        if options.show:
            figures.show_windows()


def _save(picture: Any, path: Path, what: str = "") -> None:
    width, height = figures.save(picture, path)
    print(f"written: {path} ({width} x {height} px{what})", flush=True)


def _choose_rows(run: Run, images: Sequence[int | str]) -> list[int]:
    """Return the rows of these images, each once; of none the first that is ok."""
    good = np.flatnonzero(run.images["status"] == OK)
    rows = list(dict.fromkeys(_row_of(run, image) for image in images)) or [*good[:1].tolist(), 0][:1]
    for row in rows:
        if row not in good:
            near = f"as row {good[np.abs(good - row).argmin()]}" if len(good) else "but all failed"
            raise StoreError(
                f"{run.path}: row {row} ({str(run.images['key'][row])!r}) failed and has no features, got "
                f"{str(run.images['error'][row])!r}. Expected an image that is ok, {near}. Choose another with image=..."
            )
    return rows


def _row_of(run: Run, image: int | str) -> int:
    keys = run.images["key"]  # damage to it is no wrong option
    if isinstance(image, str):
        try:
            return run.row(image)
        except StoreError as error:
            raise OptionError(f"image: {error}") from error
    if not -len(run) <= image < len(run):
        raise OptionError(
            f"image: no such row, got {image}. Expected {-len(run)} to {len(run) - 1}, or a key as {str(keys[0])[:200]!r}. "
            f"Rows are counted from 0."
        )
    return image % len(run)


def _sheets(
    run: Run, row: int, layers: Sequence[str], options: PlotOptions, seen: NDArray[np.uint8] | None
) -> Iterator[tuple[str, int, Any]]:
    """Yield for each sheet of an image the word for its file name, how many maps are on it, and the figure."""
    weights = str(run.attributes.get("weights", "weights unknown")).partition("; conv1_1 says")[0]
    weights = "untrained (random weights)" if weights.startswith("random") else weights
    network = run.attributes.get("network", "network unknown")
    lines = str(run.images["key"][row]), f"row {row} of {beside(run.path)[1]} · {network}, {weights}"
    size_px = int(run.images["height"][row]), int(run.images["width"][row])
    seen_lines = [f"{words_for_shape(size_px)} px"]
    if seen is not None and seen.shape[:2] != size_px:
        seen_lines.append(f"seen as {words_for_shape(seen.shape[:2])} px")
    scale = ", one scale for all" if options.scale == "shared" else ""
    shapes = {layer: run[layer].shape_of(row) for layer in layers}
    for word, line, chosen in _choose_channels(shapes, options):
        of_maps: list[tuple[int, ...]] = []
        for layer, channels in chosen.items():
            # Of a vector all components are one chart.
            count = len(channels[: options.most_active])
            of_maps += [(count,)] if is_vector(shapes[layer]) else [shapes[layer]] * count
        layout = figures.plan_layout(of_maps, is_mosaic=options.channels is not None and not is_vector(of_maps[0]))
        maps = [one for layer, channels in chosen.items() for one in _read(run[layer], row, channels, layout, options)]
        said = (*lines, line + scale)
        yield word, len(maps), figures.draw(said, maps, layout, options, seen, seen_lines, options.channel or None)


def _choose_channels(
    shapes: Mapping[str, tuple[int, ...]], options: PlotOptions
) -> Iterator[tuple[str, str, Mapping[str, Sequence[int]]]]:
    """Yield for each sheet the word for its file name, what is to be said of its channels, and layer -> channels."""
    channels = [options.channel] if options.channels is None else options.channels
    for layer, shape in shapes.items():
        if not isinstance(channels, range) and max(channels) >= shape[-1]:
            raise OptionError(
                f"{'channel' if options.channels is None else 'channels'}: layer {layer} has no such channel, got "
                f"{max(channels)}. Expected 0 to {shape[-1] - 1}. Choose another, or other layers."
            )
    if options.channels is None:
        word = "-".join(shapes) if len(shapes) <= NAMED_LAYERS else f"{len(shapes)}-layers"
        word += f"-channel-{options.channel}" if options.channel else ""
        of_layers = {layer: range(shape[-1]) if is_vector(shape) else channels for layer, shape in shapes.items()}
        yield word, f"channel {options.channel}", of_layers
        return
    for layer, shape in shapes.items():
        shown = channels
        if options.most_active is not None:
            shown, word = range(shape[-1]), f"{min(shape[-1], options.most_active)}-most-active"
        elif isinstance(channels, range):
            shown = channels[: shape[-1]]
            word = f"first-{len(shown)}-channels"
        else:
            word = "-".join(["channels", *map(str, channels)])
        yield f"{layer}-{word}", f"{layer}, {words_for_shape(shape)}: {word.replace('-', ' ')}", {layer: shown}


def _read(layer: Layer, row: int, channels: Sequence[int], layout: Layout, options: PlotOptions) -> list[FeatureMap]:
    """Return the maps of some channels of one image, from as much of it as will be seen."""
    shape = layer.shape_of(row)
    side = layout.reduction(shape, options.dpi)
    is_large = math.prod(shape) * layer.dtype.itemsize > WHOLE_BYTES
    # Two rows of each square on which a mean is drawn: what is between them changes a shade.
    every = -(-side // 2) if is_large and not options.exact else 1
    bands = [(0, layer[row])] if is_vector(shape) else layer.bands(row, every)
    return make_maps(layer.name, bands, shape, channels, side, options.most_active)


def _picture_paths(run: Run, options: PlotOptions, rows: Sequence[int], layers: Sequence[str]) -> Callable[[int, str], Path]:
    """Return what names the file of a sheet, from its row and the word for its layers: beside the run unless asked otherwise."""
    (folder, run_name), pattern = beside(run.path), options.file or DEFAULT_NAME
    names = {row: _file_name(str(run.images["key"][row])) for row in rows}
    if len(set(names.values())) < len(names):
        names = {row: f"{row}-{name}" for row, name in names.items()}
    sheets = len(layers) if options.channels is not None and options.input != "only" else 1
    for count, mark in ((len(rows), "{image}"), (sheets, "{layer}")):
        if count > 1 and mark not in pattern:
            raise OptionError(
                f"file: {count} pictures would have one name, got {pattern!r}. Expected {mark} in it. "
                f"Write e.g. 'file={Path(pattern).stem}-{mark}{Path(pattern).suffix}'."
            )

    def path_of(row: int, word: str) -> Path:
        parts = {"{run}": _file_name(run_name), "{image}": names[row], "{layer}": _file_name(word)}
        name = re.sub(r"\{(?:run|image|layer)\}", lambda mark: parts[mark[0]], pattern)
        return Path(name) if options.file else folder / name

    return path_of


def _file_name(text: str) -> str:
    """Return a text that every system takes as a part of a file's name; of a long path the end."""
    name = re.sub(r"[^\w.+=@~-]+", "-", text).strip("-.") or "image"
    return name.encode("utf-8", "replace")[-LONGEST_PART_BYTES:].decode("utf-8", "ignore")


def _input(run: Run, row: int, options: PlotOptions) -> Any:
    """Return the picture that the network saw; None, and why on stderr, where it cannot be had and is not all that is wanted."""
    try:
        return input_picture(run, row) if options.input is not False else None
    except ImageError as error:
        where = image_place(run, row)
        if options.input == "only":
            raise StoreError(
                f"{where!r}: the input cannot be shown, got {error}. Expected the file that was extracted. Put it back."
            ) from error
        print(f"input: {where!r}: {error}; drawn without it", file=sys.stderr)
        return None


def input_picture(run: Run, row: int) -> NDArray[np.uint8]:
    """Return the picture that the network saw of a row, (H, W, 3) uint8 RGB, made again from the image's file.

    Raises:
        ImageError: The file is gone, has changed, or cannot be read.
    """
    identity, mean = json.loads(str(run.attributes["identity"])), np.asarray(run.attributes["mean_pixel"], np.float64)
    data = read_again(find_image(run, row), str(run.images["sha256"][row]))
    if identity["data.size"] == "native":
        return decode_image(data)[0]
    height, width = map(int, identity["data.size"].split("x"))
    resize = ResizeSpec((height, width), identity["data.resize"], identity["data.interpolation"])
    ratio_for = partial(dct_reduction, spec=resize) if identity["data.decode"] == "fast" else None
    values = resize_on_host(decode_image(data, ratio_for)[0], resize, mean.astype(np.float32))
    return np.clip(np.rint(values + mean), 0, 255).astype(np.uint8)


def find_image(run: Run, row: int) -> ImageRecord:
    """Return where the image of a row is, ready to be read; no list of images is made for it.

    Raises:
        ImageError: It cannot be found, for the reason given.
    """
    key, place = str(run.images["key"][row]), image_place(run, row)
    kind = str(run.attributes.get("data_source", ""))
    if kind == RemoteImages.kind:
        return ImageRecord(row, key, place, "", int(run.images["bytes"][row]), RemoteImages(np.zeros(0)))
    if kind not in ("", "tar"):
        raise ImageError(f"not looked for: the images were in {kind}")
    if kind != "tar" or COLUMN not in run.images:
        return ImageRecord(row, key, place, "", 0)
    try:
        return find_in_tar(place.removesuffix(f"/{key}"), key, str(run.images[COLUMN][row]))
    except DatasetError as error:
        raise ImageError(f"unreadable: {error}") from error
    except OSError as error:
        raise ImageError(words_for(error)) from error


def image_place(run: Run, row: int) -> str:
    """Return the path or address of the image of a row; of one in a tar file, that of the tar file and the key after it."""
    root, key = str(run.attributes.get("data_root", "")), str(run.images["key"][row])
    tar = str(run.images[COLUMN][row]) if run.attributes.get("data_source") == "tar" and COLUMN in run.images else ""
    # What lay outside the folder of a list has all of its address, or its path, as key.
    return key if is_address(key) or key.startswith("/") else "/".join(filter(None, (root, tar, key)))
