"""The format of what is written, version 3: specification and constants. No HDF5 here, so that all may import it.

::

    outputs/<name>/
      features.h5                      the index: virtual datasets over all shards, relative paths
      shards/shard-00000-of-00012.h5   the data; complete, or absent
      manifest.jsonl.gz                the images that the run was planned for
      transforms.npz                   what ``pca`` was fitted to, where it is used; see :mod:`pipeline.pca`
      SHA256SUMS                       SHA-256 of each of these files, of config.yaml, report.json and report.html

A run may be extended: images that came later are a further part, planned for itself. Its shards are
``shards/shard-part001-00000-of-00003.h5``, its images ``manifest-part001.jsonl.gz``; the next one's are ``part002``. Rows of a
part come after all rows before; files of earlier parts stay as they are, but for the index, which is made again over all.

A manifest is JSON text, compressed by gzip. Its first line has ``format``, ``format_version``, ``part``, ``first_row``, ``rows``
(of the part), ``identity`` (as below) and ``gone`` (rows before the part whose images were no longer there when it was planned).
The others have the part's rows in order, some thousands a line: ``key``, ``bytes`` (of the file when it was listed, 0 where it
could not be found), ``label``, and ``columns``: the list's further columns, name -> values.

A shard and the index have the same tree. N is the number of rows of the file: of the shard, or of the run.

============================ ================================ ==========================================================
path                         shape, type                      meaning
============================ ================================ ==========================================================
``/features/<layer>``        (N, h, w, c) float32 or float16  row i is image ``first_row + i`` of the manifest; fill
                                                              value NaN; a failed row is NaN
``/features/<layer>.<how>``  (N, d), likewise                 vectors made of a layer: ``relu5_1.avg``, ``fc6.l2`` ...
``/features/<layer>/<row>``  (h, w, c), likewise              native size only, where images differ: one dataset an
                                                              image, named by its row in the run in 9 digits, in a
                                                              shard too; a failed row has none
``/images/key``              (N,) UTF-8                       path relative to the data folder, ``/`` on every system
``/images/status``           (N,) UTF-8                       ``ok`` or ``failed``
``/images/error``            (N,) UTF-8                       why it failed, else ``""``
``/images/label``            (N,) UTF-8                       first folder of the key, or the list's label, or ``""``
``/images/height, width``    (N,) int32, px                   of the image after EXIF orientation, before resizing
``/images/bytes``            (N,) int64                       size of the file as read
``/images/sha256``           (N,) UTF-8                       of the file as read, hex
``/images/<other>``          (N,) UTF-8                       further columns of the list, see :func:`column_names`;
                                                              numbers as text, which the reader makes numbers again
``/checksums/<layer>``       (N,) uint32                      CRC-32 of the row's stored values, little-endian in C
                                                              order; 0 for a failed row
``/statistics/<layer>/``     (a group)                        of the stored values of the rows that have not failed:
``rows, values``             () int64                         how many rows, and how many values they have
``zeros``                    () int64                         how many of these are zero, of either sign
``exact_sum``                (2,) float64                     of all values: each row or band is summed in double
                                                              precision, these sums are added and rounded once; then
                                                              what is lost by that rounding
``exact_sum_of_squares``     (2,) float64                     likewise
``channel_minimum``          (c,) float32                     of each channel or component; inf without rows
``channel_maximum``          (c,) float32                     likewise; -inf without rows
``histogram``                (256,) int64                     a sample of the values in each bin, see below
``/image``                   (N,) no values                   a dimension, see below; likewise ``/height_<layer>``,
                                                              ``/width_<layer>``, ``/channel_<layer>`` of fixed shape,
                                                              ``/component_<layer>.<how>``
============================ ================================ ==========================================================

The dimensions are HDF5 dimension scales, attached to the axes of layers, columns, checksums and ranges of channels. They have the
name by which netCDF knows a dimension without a variable, so that xarray shows the axes of ``group="features"`` by their names.

Attributes of a layer: ``axes`` (``image,height,width,channel``; without ``image`` at native size; ``image,component`` of
vectors), ``channels`` (of the last axis), ``stride_px``, ``network_index`` and ``dtype``; of vectors also ``layer``, that they
were made of, and ``reductions``, JSON: a list of the steps with the parameters of each. A column of ``/images`` has ``crc32``: of
its little-endian bytes, or of its texts in UTF-8, each ended by a NUL byte.

Attributes of the root: ``format``, ``format_version``, ``file_kind`` (``shard`` or ``index``), ``run_digest`` (SHA-256 of
``identity``), ``identity`` (JSON: all that can change a number, option -> value), ``manifest_digest`` (of the images of the
part), ``first_row`` (0 in the index), ``rows`` (of the run) and ``images_per_shard`` (the shard plan), ``created`` (UTC; of
a shard that was reduced from a finished run, when the first of that run's was), and those of the run: ``config``, ``network``,
``weights``, ``weights_sha256``, ``preprocess``, ``mean_pixel``, library versions; ``scale_pixel`` where images are divided by it
after that; and
of the device: ``device`` (``cpu`` or ``gpu``), ``precision``, of a GPU ``gpu`` (its name), ``gpu_memory_bytes``, ``batch_size``,
``cuda`` and ``cudnn`` (versions that TensorFlow was built for), in the index those of all shards with ``; `` between.

The files of an added part, and the index over it, speak of the run as it is with that part: ``identity`` has ``extends``, the
rows and the run digest of the run before, so that ``run_digest`` stands for all parts; ``rows`` counts all. They have besides
``part_stops``, (P,) int64, the rows of the run after each part up to this one, and ``part_digests``, (P,) UTF-8, the
``run_digest`` that the shards of each part have.

``identity`` of a run that was reduced from another has ``reduced from``, the digest of that one's first part.

Bins of a histogram are powers of two, ascending. Bin 129 + k, for k from 0 to 126, has values from 2^(k - 62) to below
2^(k - 61), the last one all above; bin 126 - k the same with a minus sign; bin 127 has the zeros of either sign, bin 128 all
other values whose magnitude is below 2^-62. Counted are the values of every 16th position of a row or band, in C order, from
position min(10, n // 2) on, n being its positions; the attribute ``histogram_step`` of ``/statistics`` says so. All else is of
every value. Of several files, counts, sums and bins are added, minima and maxima taken: so the index has them from its shards.

``SHA256SUMS`` is in the format of coreutils: ``sha256sum -c SHA256SUMS`` in the run folder checks it. A file's line is added
once the file has its final name, and removed before a file of that name is written anew: a kill leaves a line missing, never a
wrong one. ``run.log`` has no line, since every later run adds to it.

Where several processes make the shards of a run at the same time, each a share, they have files of their own: ``run-3-of-8.log``,
``report-3-of-8.json`` and, in the same format, ``SHA256SUMS-3-of-8``, whose lines whoever writes the index folds into
``SHA256SUMS``. They write a shard as ``<name>.3-of-8-<8 digits>.partial`` until it is whole.

Chunks are HDF5 deflate (zlib) or unfiltered, little-endian, and hold whole rows; see :func:`chunk_shape` and :func:`band_shape`.
A chunk whose rows have all failed is not stored. No plug-in is needed to read any of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import PurePath

from ..records import FeatureSpec

FORMAT = "deep-feature-pipeline"
FORMAT_VERSION = 3
SHARD = "shard"
INDEX = "index"

SHARD_FOLDER = "shards"
INDEX_NAME = "features.h5"
# Attributes of the root that may differ between shards: they are of the device, see :meth:`pipeline.records.Device.attributes`.
DEVICE_ATTRIBUTES = ("device", "precision", "gpu", "gpu_memory_bytes", "cuda", "cudnn", "batch_size")
DIGESTS_NAME = "SHA256SUMS"
# Written beside the data.
TRANSFORMS_NAME = "transforms.npz"
LOG_NAME, REPORT_NAME = "run.log", "report.json"
COMPANION_NAMES = ("config.yaml", REPORT_NAME, "report.html", LOG_NAME, TRANSFORMS_NAME, DIGESTS_NAME)
# Of a process that writes the folder beside others.
WRITER_DIGESTS_NAME = re.compile(rf"{DIGESTS_NAME}-([0-9a-z][0-9a-z-]*)")
# What has a line in DIGESTS_NAME besides shards and manifests: all of it but the log, which grows with every run.
DIGESTED_NAMES = (INDEX_NAME, TRANSFORMS_NAME, "config.yaml", REPORT_NAME, "report.html")
MANIFEST_NAME = re.compile(r"manifest(?:-part(\d{3,}))?\.jsonl\.gz")
MANIFEST_FORMAT = f"{FORMAT}-manifest"
LOCK_NAME = ".lock"
# Of a process that makes a share of the shards beside others; see :class:`~pipeline.sharding.Share`.
PART_LOCK_NAME = re.compile(rf"{re.escape(LOCK_NAME)}-(\d+-of-\d+)")
# What it says of itself.
PART_COMPANION_NAME = re.compile(r"run-(\d+-of-\d+)\.log|report-(\d+-of-\d+)\.json")
PARTIAL_SUFFIX = ".partial"
SHARD_NAME = re.compile(r"shard-(?:part(\d{3,})-)?(\d{5,})-of-(\d{5,})\.h5")
# The name that a shard is to have, and the mark of its writer, if it has one.
PARTIAL_SHARD_NAME = re.compile(rf"({SHARD_NAME.pattern})(?:\.[0-9a-z-]+)?{re.escape(PARTIAL_SUFFIX)}")

# Source: netCDF C library 4.9, hdf5internal.h and nc4hdf.c: the name of a scale that is a dimension and no variable.
DIMENSION_TITLE = "This is a netCDF dimension but not a netCDF variable.{:10d}"

# By the rank of a row.
AXES = {3: ("image", "height", "width", "channel"), 1: ("image", "component")}
STORED_DTYPES = {"float32": "<f4", "float16": "<f2"}
ITEMSIZE_BYTES = {"float32": 4, "float16": 2}

# Of a layer, name -> type in the file; the fields of LayerStatistics.
STATISTICS = {
    "rows": "<i8",
    "values": "<i8",
    "zeros": "<i8",
    "exact_sum": "<f8",
    "exact_sum_of_squares": "<f8",
    "channel_minimum": "<f4",
    "channel_maximum": "<f4",
    "histogram": "<i8",
}

TEXT_COLUMNS = ("key", "status", "error", "label", "sha256")
NUMBER_COLUMNS = {"height": "<i4", "width": "<i4", "bytes": "<i8"}

# A row of this size or more is a chunk of its own: smaller pieces cost more in bookkeeping and seeks than they save in
# reading; and chunks of several rows are made about as large as four such rows. Readers count on chunks that follow from these
# numbers: with others the format has another version.
SINGLE_ROW_BYTES = 64 << 10
SEVERAL_ROWS_BYTES = 256 << 10
BAND_BYTES = 1 << 20
# A row larger than the first is cut in bands of the second.
# Source: HDF5 reference manual, H5Pset_chunk: a chunk must be smaller than 4 GiB. The rest is a margin for the encoder.
LARGEST_CHUNK_BYTES = 1 << 30
LARGE_ROW_BAND_BYTES = 64 << 20

# A row has nine digits at native size; and what a plan holds in memory must have an end.
MOST_ROWS = 10**9
MOST_SHARDS = 1_000_000


def shard_path(file_name: str) -> str:
    """Return where a shard lies, from the run folder: always with ``/``, also on Windows."""
    return f"{SHARD_FOLDER}/{file_name}"


def marked(name: str, mark: str) -> str:
    """Return the name of a file that each of several processes has, ``run-3-of-8.log``; without a mark, of the whole run."""
    path = PurePath(name)
    return f"{path.stem}-{mark}{path.suffix}" if mark else name


def manifest_name(part: int) -> str:
    """Return the name of the file that lists the images of a part."""
    return f"manifest-part{part:03d}.jsonl.gz" if part else "manifest.jsonl.gz"


def shard_number(name: str) -> int:
    """Return the number, in its part, of a shard from its name, whole or partial."""
    found = SHARD_NAME.search(name)
    assert found is not None, name
    return int(found[2])


def native_name(index: int) -> str:
    """Return the name of an image's dataset at native size: its row in the run, 9 digits."""
    return f"{index:09d}"


def chunk_shape(shape: tuple[int, ...], itemsize_bytes: int) -> tuple[int, ...]:
    """Return the chunk of ``/features/<layer>``, of rows (h, w, c) or (d,): whole ones up to :data:`LARGEST_CHUNK_BYTES`.

    Rows a chunk are a power of two, so that the chunks of all layers end together at the end of a shard.
    """
    row_bytes = math.prod(shape) * itemsize_bytes
    if row_bytes > LARGEST_CHUNK_BYTES:
        return 1, *band_shape(shape, itemsize_bytes, LARGE_ROW_BAND_BYTES)
    if row_bytes >= SINGLE_ROW_BYTES:
        return 1, *shape
    return 1 << (SEVERAL_ROWS_BYTES // row_bytes).bit_length() - 1, *shape


def band_shape(shape: tuple[int, ...], itemsize_bytes: int, band_bytes: int | None = None) -> tuple[int, ...]:
    """Return the chunk of ``/features/<layer>/<row>``, native size, (h, w, c): whole map rows, about 1 MiB and at least one."""
    height, *rest = shape
    return min(height, max(1, (band_bytes or BAND_BYTES) // (math.prod(rest) * itemsize_bytes))), *rest


def row_bytes(features: Iterable[FeatureSpec], dtype: str) -> int:
    """Return the bytes of one image's activations over all layers of fixed shape, uncompressed."""
    return sum(math.prod(feature.shape) for feature in features if feature.shape) * ITEMSIZE_BYTES[dtype]


def largest_chunk_rows(features: Iterable[FeatureSpec], dtype: str) -> int:
    """Return the largest number of rows that a chunk of any of these layers holds."""
    return max(chunk_shape(feature.shape, ITEMSIZE_BYTES[dtype])[0] if feature.shape else 1 for feature in features)


def column_names(metadata: Iterable[str]) -> dict[str, str]:
    """Return the names under which further columns of a list are stored in ``/images``.

    Name in the list -> name in the file, each once. One that is taken by a column of the format gets ``list_`` before it; ``/``,
    which HDF5 reads as a folder, becomes ``_``.
    """
    taken = {*TEXT_COLUMNS, *NUMBER_COLUMNS}
    names: dict[str, str] = {}
    for name in metadata:
        stored = plain_text(name).replace("/", "_")
        while stored in taken or stored in ("", "."):
            stored = f"list_{stored}"
        taken.add(stored)
        names[name] = stored
    return names


def plain_text(text: str) -> str:
    """Return a text as it is stored: undecodable bytes of a file name and NUL, which UTF-8 and HDF5 lack, as escapes."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")
