"""The bytes of images in a TensorFlow Datasets set, as its own reader gives them: encoded, in the set's order, from any row."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..records import ImageRecord
from .decode import ImageDecodeError
from .reading import refuse_too_large

# The threads of the loader ask for images nearly in their order. What is asked for within so many of the last is read on for;
# what is farther away is begun at anew, which takes a tenth of a second and the reading over its file.
_REACH = 1024
# Of images that were passed and may still be asked for.
_MOST_WAITING_BYTES = 2**26


def open_set(folder: str) -> Any:
    """Gives the builder of a prepared set, from its files alone; no code of the set's own is run, nothing is downloaded."""
    import tensorflow_datasets as tfds

    # Its warnings are for those who write sets, not for those who read them.
    logging.getLogger("absl").setLevel(logging.ERROR)
    return tfds.builder_from_directory(folder)


def read_examples(folder: str, split: str, features: Sequence[str], image: str, first: int = 0) -> Iterator[dict[str, Any]]:
    """Gives examples from one on, in the order of the set's files: some of their features, and ``tfds_id``.

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
        """Gives the image of one example."""
        with self._lock:
            if (passed := self._waiting.pop(place, None)) is not None:
                self._waiting_bytes -= len(passed)
                return passed
            if self._examples is None or not self._next <= place < self._next + _REACH:
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
        """Reads one image whole; see :class:`~pipeline.records.ImageSource`."""
        import tensorflow as tf

        if record.place < 0:
            raise FileNotFoundError(record.key)
        # Which was seen when the set was listed.
        refuse_too_large(record.file_bytes)
        try:
            data = self._stream.take(self, record.place)
        except StopIteration:
            raise ImageDecodeError("unreadable: the set has fewer images than when it was listed") from None
        except tf.errors.OpError as error:
            # Of its operations' names nobody is the wiser.
            reason = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", str(error.message))
            raise ImageDecodeError(f"unreadable: {' '.join(reason.split())[:200]}") from None
        return data

    def modified_seconds(self, record: ImageRecord) -> float:
        """Gives when the set was written; see :class:`~pipeline.records.ImageSource`."""
        return self.written_seconds
