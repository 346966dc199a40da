"""What a run should hold, as a short script makes it that knows nothing of the program: slow, an image at a time, in float64.

Options have the names of the command line's; those that are left out have the README's defaults.
"""

from __future__ import annotations

import csv
import fnmatch
import io
import json
import math
import posixpath
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from . import oracle
from .oracle import BLOCKS, Array

CLASSIFIER = ["fc6", "relu6", "fc7", "relu7", "fc8", "prob"]
EXTENSIONS = r"(?i)\.(jpg|jpeg|jpe|jfif|mpo|png|apng|gif|bmp|dib|tif|tiff|webp|avif|jp2|ppm|qoi|sgi|tga)$"
FLOAT16_LIMIT = 65520  # From here on it rounds to infinity.


class Refused(Exception):
    """The command ends with this exit code."""


class Weights(NamedTuple):
    """What a network is made of; ``round_up``: whether pooling of an odd side does."""

    kernels: dict[str, NDArray[np.float32]]
    biases: dict[str, NDArray[np.float32]]
    mean: Array
    scale: Array | None = None
    round_up: bool = True


@dataclass(eq=False)
class Row:
    """An image and what becomes of it; ``maps``: layer -> (h, w, c); ``features``: name -> the same, or a vector.

    ``losses``: name -> how many times larger its relative error may be, since it is a part of what was computed.
    """

    key: str
    label: str
    data: bytes | None
    columns: dict[str, str] = field(default_factory=dict)
    height: int = 0
    width: int = 0
    ok: bool = False
    maps: dict[str, Array] = field(default_factory=dict)
    features: dict[str, Array] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)


def root_mean_square(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2)))


def make_rows(options: Mapping[str, Any], weights: Weights, folder: Path, before: Sequence[Row] = ()) -> list[Row]:
    """Gives the rows of a run whose command was called in a folder; ``before``: those of the run that it extends.

    Raises:
        Refused: The command should have ended with this exit code.
    """
    network, known = options["network"], {row.key for row in before}
    rows = [*before, *(row for row in list_images(options, folder) if row.key not in known)]
    features = {}
    for word in options["layers"]:
        name, *steps = word.split(":")
        chain = steps or [step for chain in options.get("reduce", ()) for step in chain.split(":")]
        features.update({".".join([layer, *chain]): (layer, chain) for layer in find_layers(name, network)})
    wanted = {layer for layer, _ in features.values()}
    for row in rows:
        row.ok, row.features = False, {}
        try:
            pixels, (row.height, row.width) = decode(row.data, options)
        except Exception:
            continue
        row.maps = activations(pixels, options, weights, max(wanted, key=layer_names(network).index))
        row.maps = {name: values for name, values in row.maps.items() if name in wanted}
        row.ok = all(values.size for values in row.maps.values())
        if not row.ok and options["data.size"] is not None:
            raise Refused(2)
    good, first = [row for row in rows if row.ok], len(before) or len(rows)
    for name, (layer, chain) in features.items():
        values, losses = [row.maps[layer] for row in good], [1.0] * len(good)
        for step in chain:
            whole, values = values, reduce(step, values, good, rows[:first], options)
            if step == "units":
                # A few values may all be small beside those that they were chosen from, whose size decides their rounding.
                losses = [
                    max(1.0, root_mean_square(one) / (root_mean_square(some) or np.inf))
                    for one, some in zip(whole, values, strict=True)
                ]
        for row, one, loss in zip(good, values, losses, strict=True):
            row.features[name], row.losses[name] = one, loss
    for row in good:
        largest = max(np.abs(values).max() for values in row.features.values())
        if options.get("output.dtype") == "float16" and largest >= FLOAT16_LIMIT:
            if options.get("output.overflow", "fail") == "fail":
                raise Refused(1)
            row.ok = False
    failed = sum(not row.ok for row in rows) / len(rows)
    if failed == 1 or failed > options.get("data.max_failed_fraction", 1.0):
        raise Refused(1)
    return rows


# -- Which images ---------------------------------------------------------------------------------------------------------------


def list_images(options: Mapping[str, Any], folder: Path) -> list[Row]:
    if "data.tar" in options:
        rows = list_tars(options["data.tar"], folder)
    elif "data.list" in options:
        listing = folder / options["data.list"]
        rows = list_file(listing, folder / options.get("data.dir", listing.parent))
    else:
        root = folder / options["data.dir"]
        keys = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
        rows = [Row(key, "", (root / key).read_bytes()) for key in sorted(filter(is_image, keys), key=str.encode)]
    label = options.get("data.label", "folder")
    for row in rows:
        plain = row.key.removeprefix(f"{row.columns.get('tar', '')}/")
        if label == "parent":
            row.label = posixpath.basename(posixpath.dirname(plain))
        elif label != "folder":
            row.label = row.columns[label]
        elif not row.label:
            row.label = plain.split("/")[0] if "/" in plain else ""
    return rows


def is_image(key: str) -> bool:
    is_hidden = any(part.startswith(".") or part in ("__MACOSX", "lost+found") for part in key.split("/"))
    return not is_hidden and re.search(EXTENSIONS, key) is not None


def list_file(listing: Path, root: Path) -> list[Row]:
    text = listing.read_text(encoding="utf-8")
    if listing.suffix == ".csv":
        delimiter = next(mark for mark in ",;\t" if mark in text.split("\n")[0])
        lines = [*csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)]
    else:
        lines = [{"path": line} for line in text.split("\n") if line.strip() and not line.startswith("#")]
    paths = [root / line["path"] for line in lines]
    data = [path.read_bytes() if path.exists() else None for path in paths]
    return [Row(line.pop("path"), line.pop("label", ""), one, line) for line, one in zip(lines, data, strict=True)]


def list_tars(names: Sequence[str], folder: Path) -> list[Row]:
    """Lists tar files in one folder, of whose members no two begin with the same name up to the first dot."""
    rows: list[Row] = []
    for name in sorted(names):
        with tarfile.open(folder / name) as tar:
            members = {posixpath.normpath(member.name): tar.extractfile(member).read() for member in tar if member.isfile()}
        keys = list(filter(is_image, members))
        is_taken = not {*keys}.isdisjoint(row.key for row in rows)
        for key in keys:
            head = key.rpartition(".")[0]
            said = {column: str(value) for column, value in json.loads(members.get(f"{head}.json", "{}")).items()}
            label = members[f"{head}.cls"].decode() if f"{head}.cls" in members else said.get("label", "")
            columns = {column: value for column, value in said.items() if column != "label"} | {"tar": name}
            rows.append(Row(f"{name}/{key}" if is_taken else key, label, members[key], columns))
    every = {column for row in rows for column in row.columns}
    for row in rows:
        row.columns = {column: row.columns.get(column, "") for column in every}
    return rows


# -- Pixels ---------------------------------------------------------------------------------------------------------------------


def decode(data: bytes | None, options: Mapping[str, Any]) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Gives (h, w, 3) RGB, and height and width before it was reduced; raises what Pillow raises."""
    image = Image.open(io.BytesIO(data or b""))
    width, height = ImageOps.exif_transpose(image).size
    if options.get("data.decode") == "fast" and image.format in ("JPEG", "MPO") and image.mode != "CMYK":
        high, wide = scaled_sides(height, width, options["data.size"], options.get("data.resize", "squash"))
        if (ratio := min(height / high, width / wide) / 2) >= 1:
            image = Image.open(io.BytesIO(data or b""))
            image.draft("RGB", tuple(side // 2 ** min(3, int(math.log2(ratio))) for side in image.size))
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        grey = np.floor(np.asarray(image) / 257 + 0.5).astype(np.uint8)
        return np.dstack([grey] * 3), (height, width)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(layer, mask=layer)
    return np.asarray(image.convert("RGB")), (height, width)


def scaled_sides(height: int, width: int, size: Any, mode: str) -> tuple[int, int]:
    """Gives the sides of the whole image once it is scaled to cover a size (crop), to fit inside (pad), or to it (squash)."""
    high, wide = size if isinstance(size, list) else (size, size)
    is_upright = high * width >= wide * height  # To cover the size the height decides.
    if mode == "crop":
        return (high, max(wide, high * width // height)) if is_upright else (max(high, wide * height // width), wide)
    if mode == "pad":
        return (max(1, round(wide * height / width)), wide) if is_upright else (high, max(1, round(high * width / height)))
    return high, wide


def to_size(
    pixels: NDArray[np.uint8], size: Any, mode: str, interpolation: str, resize: Callable[..., Array] = oracle.resize
) -> Array:
    """Gives (H, W, 3), NaN where the image is padded."""
    values = resize(pixels, *(scaled := scaled_sides(*pixels.shape[:2], size, mode)), interpolation)
    for axis, (have, want) in enumerate(zip(scaled, size if isinstance(size, list) else (size, size), strict=True)):
        start, before = round(max(0, have - want) / 2), max(0, want - have) // 2
        values = values.take(range(start, start + min(have, want)), axis)
        around = [(0, 0)] * 3
        around[axis] = before, want - min(have, want) - before
        values = np.pad(values, around, constant_values=np.nan)
    return values


# -- The network ----------------------------------------------------------------------------------------------------------------


def activations(pixels: NDArray[np.uint8], options: Mapping[str, Any], weights: Weights, last: str) -> dict[str, Array]:
    image, size, kernels = pixels.astype(np.float64), options["data.size"], weights.kernels
    if size is not None:
        mode, interpolation = options.get("data.resize", "squash"), options.get("data.interpolation", "bilinear")
        is_pillows = interpolation == "nearest" or max(pixels.shape[:2]) > 1024
        image = to_size(pixels, size, mode, interpolation, oracle.by_pillow if is_pillows else oracle.resize)
    image = np.nan_to_num((image - weights.mean) / (1.0 if weights.scale is None else weights.scale))
    if options.get("network.kernel_order") == "whio":
        kernels = {name: kernel.transpose(1, 0, 2, 3) for name, kernel in kernels.items()}
    round_up = {"same": True, "valid": False}.get(options.get("network.pool_padding", "auto"), weights.round_up)
    is_mean = options.get("network.pooling") == "avg"
    return oracle.forward(image, kernels, weights.biases, options["network"], round_up, is_mean, last)


def random_weights(network: str, seed: int, channels: Sequence[int], **classifier: int) -> Weights:
    """Gives He normal weights: of one stream, in the order of the network; ``classifier``: its widths, if it is wanted."""
    draw, kernels, before = np.random.Generator(np.random.PCG64(seed)), {}, 3
    for name in layer_names(network):
        side = {"conv": 3, "fc6": 7, "fc7": 1, "fc8": 1 if classifier else 0}.get(name[:4], 0)
        if side and (classifier or side == 3):
            after = channels[int(name[4]) - 1] if side == 3 else classifier["CLASSES" if name == "fc8" else "FC_CHANNELS"]
            kernels[name] = draw.standard_normal((side, side, before, after), np.float32)
            kernels[name] *= np.float32(math.sqrt(2 / (side**2 * before)))
            before = after
    biases = {name: np.zeros(kernel.shape[3], np.float32) for name, kernel in kernels.items()}
    return Weights(kernels, biases, np.array([123.68, 116.779, 103.939]))


def layer_names(network: str) -> list[str]:
    names: list[str] = []
    for block, count in enumerate(BLOCKS[network], start=1):
        names += [f"{kind}{block}_{position + 1}" for position in range(count) for kind in ("conv", "relu")] + [f"pool{block}"]
    return names + CLASSIFIER


def find_layers(word: str, network: str) -> list[str]:
    names = layer_names(network)
    if word == "lpips":
        return ["relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"]
    if word.startswith("features."):
        return [names[int(word[9:])]]
    if match := re.fullmatch(r"block(\d)(?:_(conv|pool)(\d?))?", word):  # block2, or as Keras has it: block2_conv1, block2_pool.
        block, kind, position = match.groups()
        own = [name for name in names[: -len(CLASSIFIER)] if name[4] == block]
        return own if kind is None else [own[-1]] if kind == "pool" else [f"relu{block}_{position}"]
    return names[: names.index("pool5")] if word == "all" else fnmatch.filter(names, "relu?_1" if word == "style" else word)


def reduce(step: str, values: list[Array], good: list[Row], first: list[Row], options: Mapping[str, Any]) -> list[Array]:
    """Gives a reduction of the maps or vectors of the good rows; ``first``: all rows that were there at first."""
    of = {name.rpartition(".")[2]: value for name, value in options.items() if name.startswith(f"reduction.{step}.")}
    count = of.get("n_components", 0) if step in ("units", "srp", "gaussian", "pca") else 0
    if any((oracle.components(len(first), of["eps"]) if count == "auto" else count) > one.size for one in values):
        raise Refused(2)
    if step != "pca":
        return [oracle.reduce(step, one, len(first), **of) for one in values]
    drawn = np.random.Philox(key=[of.get("seed", 0), 4]).random_raw(len(first))
    sample = [first[place] for place in np.argsort(drawn, kind="stable")[: of.get("fit_images", 2048)]]
    seen = np.array([one.ravel() for row, one in zip(good, values, strict=True) if row in sample])
    if len(seen) <= of["n_components"]:
        raise Refused(2)
    _, singular, axes = np.linalg.svd(seen - seen.mean(0), full_matrices=False)
    axes = axes[: of["n_components"]] * np.sign([axis[np.abs(axis).argmax()] for axis in axes[: of["n_components"]]])[:, None]
    scale = singular[: of["n_components"]] / math.sqrt(len(seen) - 1) if of.get("whiten") else 1.0
    return [axes @ (one.ravel() - seen.mean(0)) / scale for one in values]
