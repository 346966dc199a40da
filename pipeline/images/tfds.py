"""A TensorFlow Datasets set, in; a :class:`~pipeline.records.Manifest`, out: its images in the order of its files.

The set must be prepared already: nothing is downloaded, and no code of the set's own is run.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DatasetError, OptionError, nearest
from ..records import ImageRecord, Manifest
from .decode import ImageDecodeError
from .manifest import cell_text, make_manifest, quoted_names
from .reading import refuse_too_large

DEFAULT_SPLIT = "train"
# The releases of tensorflow-metadata, which it needs, for older ones want a protobuf before 4.21, and TensorFlow a newer one.
FIRST_PYTHON = 3, 11
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_INFO = "dataset_info.json"

# The threads of the loader ask for images nearly in their order. What is asked for within so many of the last is read on for;
# what is farther away is begun at anew, which takes a tenth of a second and the reading over its file.
_READ_AHEAD = 1024
# Of images that were passed and may still be asked for.
_MOST_WAITING_BYTES = 2**26


def sets_folder(given: Path | None) -> Path:
    """Return the folder in which TensorFlow Datasets keeps sets.

    Source: tensorflow_datasets.core.constants, ``TFDS_DATA_DIR`` and ``~/tensorflow_datasets``.
    """
    return Path(os.path.abspath(given or Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()))  # noqa: PTH100


def find_set(name: str, folder: Path) -> Path:
    """Find a prepared set; load nothing.

    Args:
        name: ``name``, ``name/config``, either with ``:1.0.0`` after it. Without a version the newest is meant.
        folder: Of all sets.

    Raises:
        DatasetError: It is not there; it has several configurations, and none was named.
    """
    path, _, version = name.partition(":")
    wanted = [version] if version else sorted(_versions(folder / path), key=lambda text: [*map(int, text.split("."))])
    if wanted and (folder / path / wanted[-1] / _INFO).is_file():
        return folder / path / wanted[-1]
    configurations = sorted(part.name for part in _folders(folder / path) if _versions(part)) if "/" not in path else []
    if len(configurations) == 1:
        return find_set(f"{path}/{configurations[0]}" + (f":{version}" if version else ""), folder)
    if configurations:
        raise DatasetError(
            f"data.tfds: the set has several configurations, got {name!r}. Expected one of: {', '.join(configurations[:50])}. "
            f"Write e.g. data.tfds={path}/{configurations[0]}."
        )
    known = _versions(folder / path)
    if not known and "/" not in path:
        known = [part.name for part in _folders(folder) if _versions(part) or any(map(_versions, _folders(part)))]
    expected = f"one of: {nearest(path, sorted(known))}" if known else "one that has been downloaded and prepared"
    builder = f"import tensorflow_datasets as t; t.builder('{name}', data_dir='{folder}').download_and_prepare()"
    raise DatasetError(
        f"data.tfds: no such set is prepared in {str(folder)!r}, got {name!r}. Expected {expected}. data.dir=FOLDER is for "
        f'another folder of sets; python -c "{builder}" prepares this one.'
    )


def list_set(name: str, split: str | None, given: Path | None) -> Manifest:
    """List the images of a split, in the order of its files.

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
        if split not in info.splits or not info.splits[split].num_examples:
            expected = f"one of: {', '.join(info.splits)}" if info.splits else "a set with splits"
            raise DatasetError(f"data.split: no such split, or an empty one, got {split!r}. Expected {expected}. Choose another.")
        image, cells = _features(name, dict(info.features.items()))
        columns: dict[str, list[str]] = {feature: [] for feature in cells}
        keys: list[str] = []
        sizes: list[int] = []
        for example in read_examples(str(folder), split, [image, *cells], image):
            keys.append(cell_text(example["tfds_id"].decode()))
            sizes.append(len(example[image]))
            for feature, as_text in cells.items():
                columns[feature].append(as_text(example[feature]))
    except DatasetError:
        raise
    except Exception as error:  # Whatever its reader meets in files that it did not expect.
        reason = " ".join(str(error).split())[:300]
        raise DatasetError(
            f"data.tfds: the set cannot be read ({type(error).__name__}: {reason}), got {str(folder)!r}. Expected a set as "
            "TensorFlow Datasets prepares it. Prepare it again."
        ) from error
    written = max(file.stat().st_mtime for file in folder.iterdir())
    source = TfdsSource(str(folder), split, image, written)
    return make_manifest(str(sets_folder(given)), keys, sizes, columns=columns, source=source)


def _features(name: str, features: dict[str, Any]) -> tuple[str, dict[str, Callable[[Any], str]]]:
    """Return the feature that is the image; and of those that are one number, text or class what makes text of a value."""
    import tensorflow_datasets as tfds

    images = [feature for feature, kind in features.items() if isinstance(kind, tfds.features.Image)]
    if len(images) != 1 and "image" not in images:
        got = f"{len(images)} images ({quoted_names(images)})" if images else quoted_names(sorted(features))
        raise DatasetError(
            f"data.tfds: which feature of {name!r} is the image cannot be told, got {got}. Expected one named image, or only "
            "one. Use a list of files."
        )

    def as_text(kind: Any) -> Callable[[Any], str]:
        if isinstance(kind, tfds.features.ClassLabel) and kind.names:
            names = [cell_text(name) for name in kind.names]
            # Of images without a class, -1.
            return lambda value: names[int(value)] if 0 <= int(value) < len(names) else ""
        return lambda value: cell_text(value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value.item())

    single = {name: kind for name, kind in features.items() if isinstance(kind, tfds.features.Tensor) and kind.shape == ()}
    return "image" if "image" in images else images[0], {name: as_text(kind) for name, kind in single.items()}


def _folders(folder: Path) -> list[Path]:
    return [part for part in folder.iterdir() if part.is_dir()] if folder.is_dir() else []


def _versions(folder: Path) -> list[str]:
    return [part.name for part in _folders(folder) if _VERSION.fullmatch(part.name) and (part / _INFO).is_file()]


def open_set(folder: str) -> Any:
    """Return the builder of a prepared set, from its files alone; no code of the set's own is run, nothing is downloaded."""
    import tensorflow_datasets as tfds

    # Its warnings are for those who write sets, not for those who read them.
    logging.getLogger("absl").setLevel(logging.ERROR)
    return tfds.builder_from_directory(folder)


def read_examples(folder: str, split: str, features: Sequence[str], image: str, first: int = 0) -> Iterator[dict[str, Any]]:
    """Yield examples from one on, in the order of the set's files: some of their features, and ``tfds_id``.

    Args:
        folder: Of the set's version.
        split: Name.
        features: Those to read.
        image: That of them which is an image; it comes as it is encoded.
        first: From which example on. Of the file that it is in, those before it are passed over unread.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    # One file after the other, one example after the other; whatever runs ahead would be memory, and is not what limits.
    config = tfds.ReadConfig(
        add_tfds_id=True,
        try_autocache=False,
        interleave_cycle_length=1,
        num_parallel_calls_for_decode=1,
        num_parallel_calls_for_interleave_files=1,
        skip_prefetch=True,
    )
    config.options.deterministic = True
    config.options.autotune.enabled = False
    with tf.device("/CPU:0"):
        examples = open_set(folder).as_dataset(
            split=tfds.core.ReadInstruction(split, from_=first, unit="abs"),
            shuffle_files=False,
            read_config=config,
            decoders=tfds.decode.PartialDecoding(dict.fromkeys(features, True), {image: tfds.decode.SkipDecoding()}),
        )
        elements = iter(examples.as_numpy_iterator())
    while True:
        # Around the call and not across a yield: the setting belongs to the thread, and others go on from here.
        with tf.device("/CPU:0"):
            element = next(elements, None)
        if element is None:
            return
        yield element


class _Stream:
    """Examples that are read one after the other, and those that were passed on the way to a later one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._examples: Iterator[dict[str, Any]] | None = None
        self._next = 0
        self._waiting: dict[int, bytes] = {}
        self._waiting_bytes = 0

    def __reduce__(self) -> tuple[type[_Stream], tuple[()]]:
        return _Stream, ()

    def take(self, source: TfdsSource, place: int) -> bytes:
        """Return the image of one example."""
        with self._lock:
            if (passed := self._waiting.pop(place, None)) is not None:
                self._waiting_bytes -= len(passed)
                return passed
            if self._examples is None or not self._next <= place < self._next + _READ_AHEAD:
                self._examples = read_examples(source.folder, source.split, [source.feature], source.feature, place)
                self._next = place
            try:
                while True:
                    data = bytes(next(self._examples)[source.feature])
                    self._next += 1
                    if self._next > place:
                        return data
                    self._keep(self._next - 1, data)
            except BaseException:
                self._examples = None
                raise

    def _keep(self, place: int, data: bytes) -> None:
        self._waiting[place] = data
        self._waiting_bytes += len(data)
        while self._waiting_bytes > _MOST_WAITING_BYTES:
            self._waiting_bytes -= len(self._waiting.pop(next(iter(self._waiting))))


@dataclass(frozen=True, slots=True, eq=False)
class TfdsSource:
    """Images in a split of a prepared set.

    Attributes:
        folder: Of the set's version.
        split: Name.
        feature: That is the image.
        written_seconds: When the last of its files was written, since 1970.
    """

    folder: str
    split: str
    feature: str
    written_seconds: float
    kind: str = "tfds"
    _stream: _Stream = field(default_factory=_Stream, repr=False)

    def read(self, record: ImageRecord) -> bytes:
        """Read one image whole; see :class:`~pipeline.records.ImageSource`."""
        import tensorflow as tf

        if record.place < 0:
            raise FileNotFoundError(record.key)
        # Which was seen when the set was listed.
        refuse_too_large(record.file_bytes)
        try:
            return self._stream.take(self, record.place)
        except StopIteration:
            raise ImageDecodeError("unreadable: the set has fewer images than when it was listed") from None
        except tf.errors.OpError as error:
            # Without the names of its operations.
            reason = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", str(error.message))
            raise ImageDecodeError(f"unreadable: {' '.join(reason.split())[:200]}") from None

    def modified_seconds(self, record: ImageRecord) -> float:
        """Return when the set was written; see :class:`~pipeline.records.ImageSource`."""
        return self.written_seconds
