"""A TensorFlow Datasets set, in; a :class:`~pipeline.records.Manifest`, out: its images in the order of its files.

The set must be prepared already: nothing is downloaded, and no code of the set's own is run.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DatasetError, OptionError, nearest
from ..records import Manifest, digest_images
from .lists import MAX_LIST_BYTES, MOST_COLUMNS
from .names import cell_text, quoted_names
from .tfds_source import TfdsSource, open_set, read_examples

DEFAULT_SPLIT = "train"
# The releases of tensorflow-metadata, which it needs, for older ones want a protobuf before 4.21, and TensorFlow a newer one.
FIRST_PYTHON = 3, 11
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_INFO = "dataset_info.json"


def sets_folder(given: Path | None) -> Path:
    """Gives the folder in which TensorFlow Datasets keeps sets.

    Source: tensorflow_datasets.core.constants, ``TFDS_DATA_DIR`` and ``~/tensorflow_datasets``.
    """
    return Path(os.path.abspath(given or Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()))  # noqa: PTH100


def find_set(name: str, folder: Path) -> Path:
    """Finds a prepared set; loads nothing.

    Args:
        name: ``name``, ``name/config``, either with ``:1.0.0`` after it. Without a version the newest is meant.
        folder: Of all sets.

    Raises:
        DatasetError: It is not there; it has several configurations, and none was named.
    """
    path, _, version = name.partition(":")
    place = folder / path
    wanted = [version] if version else sorted(_versions(place), key=lambda text: [*map(int, text.split("."))])
    if wanted and (place / wanted[-1] / _INFO).is_file():
        return place / wanted[-1]
    configurations = sorted(part.name for part in _folders(place) if _versions(part))
    if len(configurations) == 1 and "/" not in path:
        return find_set(f"{path}/{configurations[0]}" + (f":{version}" if version else ""), folder)
    if configurations and "/" not in path:
        raise DatasetError(
            f"data.tfds: the set has several configurations, got {name!r}. Expected one of: {', '.join(configurations[:50])}. "
            f"Write e.g. data.tfds={path}/{configurations[0]}."
        )
    there = [part.name for part in _folders(folder)] if "/" not in path else []
    known = _versions(place) or [one for one in there if _versions(folder / one) or any(map(_versions, _folders(folder / one)))]
    expected = f"one of: {nearest(path, sorted(known))}" if known else "one that has been downloaded and prepared"
    builder = f"import tensorflow_datasets as t; t.builder('{name}', data_dir='{folder}').download_and_prepare()"
    raise DatasetError(
        f"data.tfds: no such set is prepared in {str(folder)!r}, got {name!r}. Expected {expected}. data.dir=FOLDER is for "
        f'another folder of sets; python -c "{builder}" prepares this one.'
    )


def list_set(name: str, split: str | None, given: Path | None) -> Manifest:
    """Lists the images of a split, in the order of its files.

    All examples are read once, since only they tell the sizes and labels, and none is kept. A key is the reader's ``tfds_id``
    (file and number in it); the label is the feature ``label``, as its class's name; other single numbers and texts are columns.

    Raises:
        OptionError: TensorFlow Datasets is not installed, or does not run on this Python.
        DatasetError: There is no such set, split or image in it; it cannot be read.
    """
    folder = find_set(name, sets_folder(given))
    if sys.version_info < FIRST_PYTHON:
        needed = ".".join(map(str, FIRST_PYTHON))
        raise OptionError(
            f"data.tfds: TensorFlow Datasets does not run beside this TensorFlow on Python {platform.python_version()}, "
            f"got {name!r}. Expected Python {needed} or newer. Use that, or data.dir, data.list or data.tar."
        )
    try:
        import tensorflow_datasets  # noqa: F401
    except ImportError as error:
        raise OptionError(
            f"data.tfds: TensorFlow Datasets cannot be loaded ({' '.join(str(error).split())}), got {name!r}. Expected the "
            "package tensorflow-datasets. Run `pip install 'deep-feature-pipeline[tfds]'`."
        ) from error
    split = split or DEFAULT_SPLIT
    try:
        info = open_set(str(folder)).info
        splits, features = info.splits, dict(info.features.items())
    except Exception as error:  # Whatever its reader meets in files that it did not expect.
        raise _unreadable(folder, error) from error
    if split not in splits or not splits[split].num_examples:
        expected = f"one of: {', '.join(splits)}" if splits else "a set with splits"
        raise DatasetError(f"data.split: no such split, or an empty one, got {split!r}. Expected {expected}. Choose another.")
    image = _image_feature(name, features)
    cells = {feature: _words(kind) for feature, kind in features.items() if _is_single(kind)}
    if len(cells) > MOST_COLUMNS:
        raise DatasetError(
            f"data.tfds: too many features, got {len(cells):,}. Expected at most {MOST_COLUMNS:,}. Use a list of files."
        )
    columns: dict[str, list[str]] = {feature: [] for feature in cells}
    keys: list[str] = []
    sizes: list[int] = []
    text_bytes = 0
    try:
        for example in read_examples(str(folder), split, [image, *cells], image):
            keys.append(cell_text(example["tfds_id"].decode()))
            sizes.append(len(example[image]))
            for feature, words in cells.items():
                columns[feature].append(words(example[feature]))
                text_bytes += len(columns[feature][-1]) + 1
            if text_bytes > MAX_LIST_BYTES:
                break
    except Exception as error:
        raise _unreadable(folder, error) from error
    if text_bytes > MAX_LIST_BYTES:
        raise DatasetError(
            f"data.tfds: too much text beside the images, got {text_bytes:,} bytes. Expected at most {MAX_LIST_BYTES:,}. "
            "Use a list of files."
        )
    labels = tuple(columns.pop("label", [""] * len(keys)))
    metadata = {feature: tuple(values) for feature, values in columns.items()}
    file_bytes = np.array(sizes, np.int64)
    written = max(file.stat().st_mtime for file in folder.iterdir())
    return Manifest(
        root=str(sets_folder(given)),
        keys=tuple(keys),
        labels=labels,
        file_bytes=file_bytes,
        paths={},
        metadata=metadata,
        skipped={},
        digest=digest_images(keys, labels, file_bytes, metadata),
        source=TfdsSource(str(folder), split, image, written),
        places=np.arange(len(keys), dtype=np.int64),
    )


def _unreadable(folder: Path, error: Exception) -> DatasetError:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return DatasetError(
        f"data.tfds: the set cannot be read ({type(error).__name__}: {reason}), got {str(folder)!r}. Expected a set as "
        "TensorFlow Datasets prepares it. Prepare it again."
    )


def _image_feature(name: str, features: dict[str, Any]) -> str:
    import tensorflow_datasets as tfds

    images = [feature for feature, kind in features.items() if isinstance(kind, tfds.features.Image)]
    if "image" in images or len(images) == 1:
        return "image" if "image" in images else images[0]
    got = f"{len(images)} images ({quoted_names(images)})" if images else quoted_names(sorted(features))
    raise DatasetError(
        f"data.tfds: which feature of {name!r} is the image cannot be told, got {got}. Expected one named image, or only "
        "one. Use a list of files."
    )


def _is_single(kind: Any) -> bool:
    """Tells whether a feature is one number, text or class."""
    import tensorflow_datasets as tfds

    return isinstance(kind, tfds.features.Tensor) and kind.shape == ()


def _words(kind: Any) -> Any:
    """Gives what turns a value of a feature into a cell."""
    import tensorflow_datasets as tfds

    if isinstance(kind, tfds.features.ClassLabel) and kind.names:
        names = [cell_text(name) for name in kind.names]
        # Of images without a class, -1.
        return lambda value: names[int(value)] if 0 <= int(value) < len(names) else ""
    return lambda value: cell_text(value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value.item())


def _folders(folder: Path) -> Iterator[Path]:
    try:
        yield from (part for part in folder.iterdir() if part.is_dir())
    except OSError:
        return


def _versions(folder: Path) -> list[str]:
    return [part.name for part in _folders(folder) if _VERSION.fullmatch(part.name) and (part / _INFO).is_file()]
