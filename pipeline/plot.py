"""``python -m pipeline.plot``: feature maps of a stored run as pictures; computes nothing again, loads no TensorFlow.

Which rows, layers and channels, the input beside them, the files. :mod:`.figures` draws.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import cli, figures
from .errors import DatasetError, ImageError, OptionError, StoreError
from .figures import FeatureMap
from .formatting import counted, words_for_number, words_for_shape, words_for_share
from .records import OK, ImageRecord
from .storage import is_address

if TYPE_CHECKING:
    from .config import PlotOptions
    from .store.reader import Layer, Run

WHEN_STOPPED = "pictures that are written stay, none is half written. Run the command again."
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
        OptionError: The run has no such image, layer or channel, or what :func:`.figures.draw` refuses.
        StoreError: The run cannot be read, an image failed, its input cannot be had, or a file cannot be written.
    """
    from .store.reader import beside, choose_layers, open_run

    with open_run(options.run) as run, figures.plain_settings():
        layers, written = choose_layers(run.layers, options.layers), set[Path]()
        folder, run_name = beside(run.path)
        for row in _choose_rows(run, options.images):
            key = str(run.images["key"][row])
            for word, picture, what in _pictures(run, run_name, row, layers, options):
                name = _file_name(options.file or DEFAULT_NAME, run=run_name, image=key, layer=word)
                path = Path(name) if options.file else folder / name
                if path in written:
                    raise OptionError(
                        f"file: several pictures would have one name, got {str(path)!r}. Expected {{image}} and {{layer}} in it."
                    )
                width, height = figures.save(picture, path)
                written.add(path)
                print(f"written: {path} ({width} x {height} px{what})", flush=True)
        if options.show:
            figures.show_windows()


def _choose_rows(run: Run, images: Sequence[int | str]) -> list[int]:
    """Return the rows of these images, each once; of none the first that is ok."""
    is_good, rows = run.images["status"] == OK, []
    for image in images or [int(is_good.argmax())]:
        try:
            row = run.row(image) if isinstance(image, str) else range(len(run))[image]
        except StoreError as error:
            raise OptionError(f"image: {error}") from error
        except IndexError:
            raise OptionError(f"image: no such row, got {image}. Expected {-len(run)} to {len(run) - 1}, or a key.") from None
        if not is_good[row]:
            key, got = run.images["key"][row], run.images["error"][row]
            raise StoreError(
                f"{run.path}: row {row} ({key!r}) failed and has no features, got {got!r}. Expected an image that is ok."
            )
        rows.append(row)
    return list(dict.fromkeys(rows))


def _pictures(run: Run, run_name: str, row: int, layers: Sequence[str], options: PlotOptions) -> Iterator[tuple[str, Any, str]]:
    """Yield each picture of an image: the word for its file's name, the figure or the picture, and what is to be said of it."""
    key, before = str(run.images["key"][row]), list[FeatureMap]()
    if options.input is not False:
        try:
            seen = input_picture(run, row)
        except ImageError as error:
            problem = (
                f"{run.attributes.get('data_root', '')}: {key!r}: the input cannot be shown, got {error}. Expected the file that "
                "was extracted. Put it back, or use input=false."
            )
            if options.input == "only":
                raise StoreError(problem) from error
            print(f"drawn without input: {problem}", file=sys.stderr)
        else:
            if options.input == "only":
                yield "input", Image.fromarray(seen), ""
                return
            size_px = int(run.images["height"][row]), int(run.images["width"][row])
            seen_as = [f"seen as {words_for_shape(seen.shape[:2])} px"] * (seen.shape[:2] != size_px)
            before = [FeatureMap("input", [f"{words_for_shape(size_px)} px", *seen_as], seen)]
    weights = str(run.attributes.get("weights", "")).partition("; conv1_1 says")[0]
    weights = "untrained (random weights)" if weights.startswith("random") else weights
    about = f"row {row} of {run_name} · {run.attributes['network']}, {weights}"
    scale = ", one scale for all" if options.scale == "shared" else ""
    for word, line, maps in _sheets(run, row, layers, options):
        figure = figures.draw((key, about, line + scale), [*before, *maps], options)
        yield word, figure, f", {counted(len(maps), 'map')}"


def _sheets(run: Run, row: int, layers: Sequence[str], options: PlotOptions) -> Iterator[tuple[str, str, list[FeatureMap]]]:
    """Yield for each sheet of an image the word for its file's name, what is to be said of its channels, and its maps."""
    shapes = {name: run[name].shape_of(row) for name in layers}
    option, channels = ("channel", (options.channel,)) if options.channels is None else ("channels", options.channels)
    for name, shape in shapes.items():
        # Of a range a layer may have fewer.
        if not isinstance(channels, range) and max(channels) >= shape[-1]:
            raise OptionError(f"{option}: layer {name} has no such channel, got {max(channels)}. Expected 0 to {shape[-1] - 1}.")
    if options.channels is None:
        word = "-".join(layers) if len(layers) <= NAMED_LAYERS else f"{len(layers)}-layers"
        word += f"-channel-{options.channel}" if options.channel else ""
        maps = [one for name in layers for one in read_maps(run[name], row, channels, len(layers), options)]
        yield word, f"channel {options.channel}", maps
        return
    for name, shape in shapes.items():
        chosen = range(shape[-1]) if options.most_active else channels[: shape[-1]]
        count = min(len(chosen), options.most_active or len(chosen))
        word = f"first-{count}-channels" if isinstance(chosen, range) else "-".join(["channels", *map(str, chosen)])
        word = f"{count}-most-active" if options.most_active else word
        maps = read_maps(run[name], row, chosen, count, options)
        yield f"{name}-{word}", f"{name}, {words_for_shape(shape)}: {word.replace('-', ' ')}", maps


def read_maps(layer: Layer, row: int, channels: Sequence[int], count: int, options: PlotOptions) -> list[FeatureMap]:
    """Return the maps of channels of an image that is ok, in this order, from as much of it as will be seen; of a vector one map.

    What is said of a map (range, zeros) is counted over all of its values that are read; what is drawn are means over squares.
    ``count``: maps on the sheet. Of a vector without ``options.channels`` all components are drawn.
    """
    shape, is_mosaic = layer.shape_of(row), options.channels is not None
    is_vector, side, lines = math.prod(shape[:-1]) == 1, 1, [words_for_shape(shape)]
    if is_vector:
        channels = channels if is_mosaic else range(shape[-1])
        values = layer[row].reshape(1, 1, -1)[:, :, channels].astype(np.float32)
    else:
        # Of the squares over which means are taken, so that nobody would see more.
        side = max(1, shape[1] // math.ceil(figures.map_width(count) * options.dpi))
        is_whole = options.exact or math.prod(shape) * layer.dtype.itemsize <= WHOLE_BYTES
        # Else two rows of each square: what is between them changes a shade.
        bands = layer.bands(row, 1 if is_whole else -(-side // 2))
        # These channels alone are held, not all of a band.
        pieces = [(first + np.arange(len(band)), band[:, :, channels].astype(np.float32)) for first, band in bands]
        rows, values = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        lines = ([] if is_mosaic else lines) + [f"{len(rows)} rows read"] * (len(rows) < shape[0])
    if options.most_active:
        activity = np.maximum(values, 0).sum((0, 1), np.float64)
        places = np.argsort(-activity, kind="stable")[: options.most_active].tolist()
        channels, values = [channels[place] for place in places], values[:, :, places]
    if is_vector:
        vector = values.reshape(-1)
        lines += [f"component {options.channel}: {words_for_number(vector[options.channel])}"] if options.channel else []
        return [_feature_map(layer.name, lines, vector, vector, channels)]
    drawn = square_means(rows, values, side)
    return [
        _feature_map(f"channel {channel}" if is_mosaic else layer.name, lines, values[:, :, at], drawn[:, :, at], [channel])
        for at, channel in enumerate(channels)
    ]


def square_means(rows: NDArray[np.int64], values: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Return the means of maps over squares, at the right and the bottom smaller ones, of the rows that are there.

    ``rows``: (r,) ascending, at least one in each ``side`` of them; ``values``: (r, w, c) of these.
    """
    lefts = np.arange(0, values.shape[1], side)
    _, tops, heights = np.unique(rows // side, return_index=True, return_counts=True)
    sums = np.add.reduceat(np.add.reduceat(values, lefts, axis=1), tops, axis=0)
    areas = np.outer(heights, np.minimum(side, values.shape[1] - lefts))
    return (sums / areas[:, :, None]).astype(np.float32)


def _feature_map(
    name: str, lines: Sequence[str], values: NDArray[np.float32], drawn: NDArray[np.float32], channels: Sequence[int]
) -> FeatureMap:
    low, high = float(values.min()), float(values.max())
    ends = f"{words_for_number(low)} to {words_for_number(high)}" if low < high else f"all {words_for_number(low)}"
    return FeatureMap(name, [*lines, ends, f"{words_for_share(np.mean(values == 0))} zeros"], drawn, channels, low, high)


def _file_name(pattern: str, **parts: str) -> str:
    """Return a file's name, with parts that every system takes; of a long path the end."""

    def part(mark: re.Match[str]) -> str:
        name = re.sub(r"[^\w.+=@~-]+", "-", parts[mark[1]]).strip("-.") or "image"
        return name.encode("utf-8", "replace")[-LONGEST_PART_BYTES:].decode("utf-8", "ignore")

    return re.sub(r"\{(run|image|layer)\}", part, pattern)


def input_picture(run: Run, row: int) -> NDArray[np.uint8]:
    """Return the picture that the network saw of a row, (H, W, 3) uint8 RGB, made again from its file; else an ``ImageError``."""
    from .images.decode import decode_image
    from .images.reading import read_again
    from .images.resize import ResizeSpec, dct_reduction, resize_on_host

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
    """Return where the image of a row is, ready to be read, or raise an ``ImageError``; no list of images is made for it."""
    from .images import reading, tar

    root, key, kind = str(run.attributes.get("data_root", "")), str(run.images["key"][row]), run.attributes.get("data_source", "")
    if kind == "tar":
        name = str(run.images[tar.COLUMN][row])
        try:
            return tar.find_in_tar(f"{root}/{name}", key, name)
        except (DatasetError, OSError) as error:
            raise ImageError(reading.words_for(error)) from error
    if kind not in ("", reading.RemoteImages.kind):
        raise ImageError(f"not looked for: the images were in {kind}")
    # What lay outside the folder of a list has all of its address, or its path, as key.
    path = key if is_address(key) or key.startswith("/") else f"{root}/{key}"
    source = reading.RemoteImages(np.zeros(0)) if kind else None
    return ImageRecord(row, key, path, "", int(run.images["bytes"][row]), source)


main = partial(cli.start, "pipeline.plot", draw_plots, when_stopped=WHEN_STOPPED)

if __name__ == "__main__":
    main()
