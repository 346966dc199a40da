"""Reading alone: JPEGs decoded, or decoded and resized to one size, into batches; no network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .photographs import LARGE_PX, MEDIUM_PX, make_differing, make_photographs
from .rows import Bench, Line, interleave, missing, row
from .sides import Side, usable_cores

SIDE_PX = 224
BATCH = 8
# As many as hide what the beginning and the end of a pass cost.
LARGE_IMAGES = 64

ROUNDED = "Pillow rounds to whole grey levels"
ROUGH = "image_dataset_from_directory does not antialias: a cheaper and coarser resizing"

# Rival -> function below, packages, note, goal of the ratio.
Rivals = dict[str, tuple[str, tuple[str, ...], str, float | None]]


def ours(photographs: str, resize: bool, fast: bool = False) -> tuple[dict[str, Any], Callable[[], float]]:
    """The program's loader, and its antialiased resizing where that is asked for."""
    from pipeline.images.folder import list_folder
    from pipeline.images.loader import ImageLoader
    from pipeline.images.resize import ResizeSpec, dct_reduction, resize_on_host

    manifest = list_folder(Path(photographs))
    spec = ResizeSpec((SIDE_PX, SIDE_PX), "squash", "bilinear")
    mean_pixel = np.array([123.68, 116.779, 103.939], np.float32)

    # Made once, as each rival's dataset is.
    loader = ImageLoader(
        manifest,
        np.arange(len(manifest)),
        batch_size=BATCH,
        workers=usable_cores(),
        prepare=partial(resize_on_host, spec=spec, mean_pixel=mean_pixel) if resize else None,
        size_px=spec.size_px if resize else None,
        ratio_for=partial(dct_reduction, spec=spec) if fast else None,
    )

    def batches() -> Iterator[Any]:
        for batch in loader:
            assert not any(status.error for status in batch.statuses)
            yield batch.images

    return {}, _passing(batches, len(manifest))


def keras(photographs: str) -> tuple[dict[str, Any], Callable[[], float]]:
    """Keras' ``image_dataset_from_directory``, which resizes."""
    import keras
    import tensorflow as tf

    dataset = keras.utils.image_dataset_from_directory(
        photographs, labels=None, image_size=(SIDE_PX, SIDE_PX), batch_size=BATCH, shuffle=False, verbose=False
    ).prefetch(tf.data.AUTOTUNE)
    return {}, _passing(lambda: (batch.numpy() for batch in dataset), _count(photographs))


def tf_data(photographs: str) -> tuple[dict[str, Any], Callable[[], float]]:
    """tf.data and ``tf.io.decode_jpeg``, decoding only."""
    import tensorflow as tf

    def read(path: Any) -> Any:
        return tf.io.decode_jpeg(tf.io.read_file(path), channels=3)

    paths = [str(path) for path in sorted(Path(photographs).glob("*.jpg"))]
    dataset = tf.data.Dataset.from_tensor_slices(paths).map(read, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.batch(BATCH).prefetch(tf.data.AUTOTUNE)
    return {}, _passing(lambda: (batch.numpy() for batch in dataset), len(paths))


def stock(photographs: str, resize: bool) -> tuple[dict[str, Any], Callable[[], float]]:
    """The same pieces of tf.data as ours and nothing else: no hashes, no statuses, no bad files, TensorFlow's own resizing."""
    import simplejpeg
    import tensorflow as tf

    def decode(path: bytes) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(Path(path.decode()).read_bytes())
        return pixels

    def load(path: Any) -> Any:
        image = tf.ensure_shape(tf.numpy_function(decode, [path], tf.uint8), (None, None, 3))
        return tf.image.resize(image, (SIDE_PX, SIDE_PX), antialias=True) if resize else image

    paths = [str(path) for path in sorted(Path(photographs).glob("*.jpg"))]
    dataset = tf.data.Dataset.from_tensor_slices(paths).map(load, num_parallel_calls=usable_cores(), deterministic=True)
    dataset = (dataset.batch(BATCH) if resize else dataset.padded_batch(BATCH)).prefetch(1)
    return {}, _passing(dataset.as_numpy_iterator, len(paths))


def torch(photographs: str, resize: bool) -> tuple[dict[str, Any], Callable[[], float]]:
    """PyTorch's ``DataLoader`` with as many workers as cores over Pillow, and Pillow's antialiased resizing."""
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision.transforms import v2

    paths = sorted(Path(photographs).glob("*.jpg"))
    steps = [v2.Resize((SIDE_PX, SIDE_PX))] if resize else []
    transform = v2.Compose([*steps, v2.PILToTensor()])

    class Photographs(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> Any:
            return transform(Image.open(paths[index]).convert("RGB"))

    loader = DataLoader(Photographs(), batch_size=BATCH, num_workers=usable_cores(), persistent_workers=True)
    return {}, _passing(lambda: loader, len(paths))


def pillow(photographs: str) -> tuple[dict[str, Any], Callable[[], float]]:
    """Pillow in a thread pool, large JPEGs reduced while they are decoded by ``draft`` to no less than twice the size."""
    from concurrent.futures import ThreadPoolExecutor

    from PIL import Image

    paths = sorted(Path(photographs).glob("*.jpg"))
    pool = ThreadPoolExecutor(usable_cores())

    def read(path: Path) -> NDArray[np.float32]:
        with Image.open(path) as picture:
            picture.draft("RGB", (2 * SIDE_PX, 2 * SIDE_PX))
            return np.asarray(picture.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR), np.float32)

    def batches() -> Iterator[NDArray[np.float32]]:
        waiting = [pool.submit(read, path) for path in paths]
        for first in range(0, len(paths), BATCH):
            yield np.stack([future.result() for future in waiting[first : first + BATCH]])

    return {}, _passing(batches, len(paths))


def errors(photographs: str) -> tuple[dict[str, Any], Callable[[], None]]:
    """A side that measures no time: how far pixels at 224 px are from those of ``data.decode=exact``, in grey levels of 255.

    Of ``data.decode=fast``: the mean over all images, and the largest.
    """
    from pipeline.images.decode import decode_image
    from pipeline.images.resize import ResizeSpec, dct_reduction, resize_on_host

    spec = ResizeSpec((SIDE_PX, SIDE_PX), "squash", "bilinear")

    def resized(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return resize_on_host(pixels, spec, np.zeros(3, np.float32))

    found: list[NDArray[np.float32]] = []
    for path in sorted(Path(photographs).glob("*.jpg"))[:12]:
        data = path.read_bytes()
        reduced = decode_image(data, lambda height, width: dct_reduction(height, width, spec))[0]
        found.append(np.abs(resized(reduced) - resized(decode_image(data)[0])))
    return {"mean": float(np.mean(found)), "largest": float(np.max(found))}, lambda: None


@row("reading", "500 x 375 px JPEGs into batches, decoded alone and resized to 224 px, images a second")
def measure(bench: Bench) -> Iterator[Line]:
    """Decoding, then decoding and resizing."""
    photographs = make_photographs(bench.folder / "photographs", bench.images)
    torch_needs = ("torch", "torchvision")
    decoding: Rivals = {"torch DataLoader": ("torch", torch_needs, "", 2.5), "tf.data, decode_jpeg": ("tf_data", (), "", None)}
    yield from _compare(bench, photographs, "decoding 500 x 375 px", {"resize": False}, decoding, {"torch": {"resize": False}})
    resizing: Rivals = {
        "torch DataLoader": ("torch", torch_needs, ROUNDED, 1.5),
        "Keras image_dataset_from_directory": ("keras", (), ROUGH, 1.0),
    }
    yield from _compare(
        bench, photographs, "decoding 500 x 375 px and resizing", {"resize": True}, resizing, {"torch": {"resize": True}}
    )


@row("loader", "the loader alone against the same pieces of tf.data without hashes, statuses and care, images a second")
def measure_loader(bench: Bench) -> Iterator[Line]:
    """Batches of canvases, and resized on the host; images of one size, and all of different sizes."""
    for what, folder in (
        ("500 x 375 px", make_photographs(bench.folder / "photographs", bench.images)),
        ("all sizes different, 250 to 500 px", make_differing(bench.folder / "differing", bench.images)),
    ):
        for resize in (False, True):
            rivals: Rivals = {"stock tf.data": ("stock", (), "", 0.8)}
            how = "resized" if resize else "in canvases"
            yield from _compare(
                bench, folder, f"loader, {what}, {how}", {"resize": resize}, rivals, {"stock": {"resize": resize}}
            )


@row("large-images", f"{LARGE_IMAGES} JPEGs of 12 megapixels resized to 224 px, images a second")
def measure_large(bench: Bench) -> Iterator[Line]:
    """``data.decode=exact`` and ``fast``."""
    photographs = make_photographs(bench.folder / "large", LARGE_IMAGES, LARGE_PX)
    exact: Rivals = {
        "torch DataLoader": ("torch", ("torch", "torchvision"), ROUNDED, None),
        "Keras image_dataset_from_directory": ("keras", (), ROUGH, 1.0),
    }
    yield from _compare(bench, photographs, "12 megapixels", {"resize": True}, exact, {"torch": {"resize": True}})
    fast: Rivals = {
        "Keras image_dataset_from_directory": ("keras", (), ROUGH, 2.0),
        "Pillow with draft, in threads": ("pillow", (), ROUNDED, 2.0),
    }
    arguments = {"resize": True, "fast": True}
    yield from _compare(bench, photographs, "12 megapixels, data.decode=fast", arguments, fast, {})
    for what, folder in (
        ("12 megapixels", photographs),
        ("1000 x 950 px", make_photographs(bench.folder / "medium", 12, MEDIUM_PX)),
    ):
        with Side("reading:errors", photographs=str(folder)) as side:
            for name, value in side.facts.items():
                yield Line(f"{what}, data.decode=fast, {name} error at 224 px", "of 255", [value], more_is_better=False)


def _compare(
    bench: Bench,
    photographs: Path,
    what: str,
    arguments: dict[str, bool],
    rivals: Rivals,
    of_rivals: dict[str, dict[str, bool]],
) -> Iterator[Line]:
    absent = {name: missing(needs) for name, (_, needs, _, _) in rivals.items()}
    with ExitStack() as stack:
        sides = {"ours": stack.enter_context(Side("reading:ours", photographs=str(photographs), **arguments))}
        for name, (function, _, _, _) in rivals.items():
            if not absent[name]:
                further = of_rivals.get(function, {})
                sides[name] = stack.enter_context(Side(f"reading:{function}", photographs=str(photographs), **further))
        figures = interleave({name: side.turn for name, side in sides.items()}, bench.turns)
    for name, (_, _, notes, goal) in rivals.items():
        if absent[name]:
            yield Line(f"{what}: {name}", notes=absent[name])
        else:
            yield Line(f"{what}: {name}", "images/s", figures["ours"], figures[name], goal=goal, notes=notes)


def _passing(batches: Callable[[], Iterable[Any]], images: int) -> Callable[[], float]:
    """Gives what times a pass over all batches, after one that is not timed."""

    def turn() -> float:
        began = time.perf_counter()
        seen = 0
        for batch in batches():
            seen += len(batch)
        assert seen >= images, (seen, images)
        return images / (time.perf_counter() - began)

    turn()
    return turn


def _count(photographs: str) -> int:
    return sum(1 for _ in Path(photographs).glob("*.jpg"))
