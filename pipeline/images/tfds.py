"""A TensorFlow Datasets set, in; a :class:`~pipeline.records.Manifest`, out: its images in the order of its files.

The set must be prepared already: nothing is downloaded, and no code of the set's own is run. An image is stored as it is encoded,
so that it is read where it lies, without TensorFlow.
"""

from __future__ import annotations

import logging
import mmap
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DatasetError, OptionError, nearest
from ..records import Manifest
from .manifest import cell_text, make_manifest, quoted_names
from .reading import FileSlices

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_INFO = "dataset_info.json"


def sets_folder(given: Path | None) -> Path:
    """Return the folder in which TensorFlow Datasets keeps sets.

    Source: tensorflow_datasets.core.constants, ``TFDS_DATA_DIR`` and ``~/tensorflow_datasets``.
    """
    return Path(os.path.abspath(given or Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()))  # noqa: PTH100


def find_set(name: str, folder: Path) -> Path:
    """Find a prepared set, ``name`` or ``name/config``, the newest without ``:1.0.0``, in the folder of all; load nothing.

    Raises:
        DatasetError: It is not there, or has several configurations, and none was named.
    """
    path, _, version = name.partition(":")
    places = [info.parent for depth in ("*/*", "*/*/*") for info in folder.glob(f"{depth}/{_INFO}")]
    found = [place.relative_to(folder) for place in places if _VERSION.fullmatch(place.name)]
    # A configuration need not be named where there is one alone.
    fitting = [place for place in found if path in (place.parent.as_posix(), place.parts[0]) and version in ("", place.name)]
    if len({place.parent for place in fitting}) == 1:
        return folder / max(fitting, key=lambda place: [*map(int, place.name.split("."))])
    known = sorted(f"{place.parent.as_posix()}:{place.name}" for place in found)
    expected = f"one of: {nearest(name, known)}" if known else "one that has been prepared"
    builder = f"import tensorflow_datasets as t; t.builder('{name}', data_dir='{folder}').download_and_prepare()"
    raise DatasetError(
        f"data.tfds: no such set is prepared in {str(folder)!r}, got {name!r}. Expected {expected}. data.dir=FOLDER is for "
        f'another folder of sets; python -c "{builder}" prepares this one.'
    )


def list_set(folder: Path, split: str | None, root: Path) -> Manifest:
    """List the images of a split of the set that :func:`find_set` has found, in the order of its files; ``root``: of all sets.

    All examples are read once, since only they tell where images lie and what their labels are. A key is the reader's ``tfds_id``
    (file and number in it); the label is the feature ``label``, as its class's name; other single numbers and texts are columns.

    Raises:
        OptionError: TensorFlow Datasets is not installed, or does not run on this Python.
        DatasetError: There is no such split, or no image; the set cannot be read.
    """
    try:
        import tensorflow_datasets as tfds
    except (ImportError, TypeError) as error:  # the second: an older protobuf than it was made for
        raise OptionError(
            f"data.tfds: TensorFlow Datasets cannot be loaded, got {' '.join(str(error).split())}. Expected the package "
            # For older ones, tensorflow-metadata wants a protobuf before 4.21, and TensorFlow a newer one.
            "tensorflow-datasets on Python 3.11 or newer. Run `pip install 'deep-feature-pipeline[tfds]'`."
        ) from error
    # Its warnings are for those who write sets, not for those who read them.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        return _read_split(tfds, folder, split or "train", str(root))
    except DatasetError:
        raise
    except Exception as error:  # Whatever its reader meets in files that it did not expect.
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise DatasetError(
            f"data.tfds: the set in {str(folder)!r} cannot be read, got {reason}. Expected a prepared set. Prepare it again."
        ) from error


def _read_split(tfds: Any, folder: Path, split: str, root: str) -> Manifest:
    """Read all examples of a split of the set whose version is in a folder; ``root`` is that of all sets."""
    import tensorflow as tf

    builder = tfds.builder_from_directory(str(folder))
    splits, features = builder.info.splits, dict(builder.info.features.items())
    if split not in splits or not splits[split].num_examples:
        expected = f"one of: {', '.join(splits)}" if splits else "a set with splits"
        raise DatasetError(f"data.split: no such split, or an empty one, got {split!r}. Expected {expected}. Choose another.")
    images = [feature for feature, kind in features.items() if isinstance(kind, tfds.features.Image)]
    if len(images) != 1 and "image" not in images:
        got = f"{len(images)} images ({quoted_names(images)})" if images else quoted_names(sorted(features))
        raise DatasetError(f"data.tfds: no one feature is the image, got {got}. Expected one, or one named image. Use a list.")
    image = "image" if "image" in images else images[0]
    singles = [feature for feature, kind in features.items() if isinstance(kind, tfds.features.Tensor) and kind.shape == ()]
    classes = {feature: getattr(features[feature], "names", None) or () for feature in singles}
    # One file after the other.
    config = tfds.ReadConfig(add_tfds_id=True, try_autocache=False, interleave_cycle_length=1)
    config.options.deterministic = True
    decoders = tfds.decode.PartialDecoding(dict.fromkeys([image, *singles], True), {image: tfds.decode.SkipDecoding()})
    keys: list[str] = []
    columns: dict[str, list[str]] = {feature: [] for feature in singles}
    slices: list[tuple[int, int, int]] = []  # number of the file, offset, length
    files: dict[str, tuple[int, int]] = {}  # size, when it was written in ns
    with tf.device("/CPU:0"):
        examples = builder.as_dataset(split=split, shuffle_files=False, read_config=config, decoders=decoders)
        for example in examples.as_numpy_iterator():
            key, data = example["tfds_id"].decode(), example[image]
            path = str(folder / key.rpartition("__")[0])
            if path not in files:
                with open(path, "rb") as file:  # noqa: PTH123
                    info = os.fstat(file.fileno())
                    files[path] = info.st_size, info.st_mtime_ns
                    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                end = 0
            start = content.find(data, end)
            if start < 0:
                raise DatasetError(
                    f"data.tfds: the file is compressed, got {path!r}. Expected another. Use `tfds convert_format`, or a list."
                )
            end = start + len(data)
            keys.append(cell_text(key))
            slices.append((len(files) - 1, start, len(data)))
            for feature, names in classes.items():
                columns[feature].append(_cell(example[feature], names))
    source = FileSlices("tfds", tuple(files), np.array([*files.values()], np.int64), np.array(slices, np.int64))
    return make_manifest(root, keys, source.slices[:, 2], columns=columns, source=source)


def _cell(value: Any, names: Sequence[str]) -> str:
    """Return a single value as text, a class by its name; of images without a class it is -1."""
    if names:
        return cell_text(names[int(value)]) if 0 <= int(value) < len(names) else ""
    return cell_text(value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value.item())
