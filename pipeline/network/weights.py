"""The weights of a network, whatever file they come from. No TensorFlow.

name or path -> local copy, Keras' cache or download -> reader (MatConvNet, Keras) -> Weights
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import http.client
import json
import math
import os
import secrets
import shutil
import ssl
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError, WeightsError, nearest
from . import known_weights
from .architectures import MEAN_PIXEL_RGB
from .keras_h5 import read_keras
from .known_weights import BASE_URLS, NOT_KNOWN, KnownFile, StoredWeights, Wanted, WrongFileError, wanted_layers
from .matconvnet import read_matconvnet

# Words that mean more than a path.
SOURCES = ("imagenet", "matconvnet", "random")

TIMEOUT_SECONDS = 30.0
_ABANDONED_SECONDS = 24 * 3600
# All but what the disk says. An address or a header that is none is a ValueError.
_NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, ConnectionError, TimeoutError, ValueError)

MAT5 = "a MATLAB 5 file"
HDF5 = "an HDF5 file"
_MAT73 = "a MATLAB v7.3 file"
_TORCH = "a PyTorch file"
_KERAS_ARCHIVE = "a .keras archive"
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# Beginning of the file -> what it is.
_BEGINNINGS = {
    b"\x93NUMPY": "a NumPy array",
    # Source: torch/serialization.py, MAGIC_NUMBER of files before PyTorch 1.6, pickled with protocol 2.
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19": _TORCH,
    b"\x80": "a Python pickle",
    b"\x1f\x8b": "a gzip archive",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
    b"<": "a web page, not the file itself",
}
_REMEDIES = {
    _MAT73: "Save it again in MATLAB with save(file, '-struct', 'net', '-v7'), or set network.weights=imagenet.",
    _TORCH: "PyTorch files are not read, and torchvision's are another training; set network.weights=imagenet.",
    _KERAS_ARCHIVE: "Save it again in Keras with model.save_weights('x.weights.h5').",
}
# Part of what conv1_1 is recognised as -> what that does to the features.
_EFFECTS = {
    ", BGR": "the network gets RGB, so its features will be those of images with red and blue exchanged",
    ", WHIO": "rows and columns of its kernels are exchanged; network.kernel_order=whio exchanges them back",
    "torchvision": "it was trained on other input (RGB in 0..1, mean and deviation removed), so its features mean little here",
}


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a network, as it uses them: HWIO kernels for RGB input in 0..255 minus the mean.

    Attributes:
        network: ``vgg19`` or ``vgg16``.
        kernels: Layer -> (height, width, channels in, channels out) float32, C order; conv1_1 to conv5_x, and fc6, fc7, fc8 where
            the classifier was asked for. In network order.
        biases: Layer -> (channels out,) float32.
        mean_pixel: (3,) float64, R, G, B in 0..255.
        pool_padding: ``same``: pooling of an odd side rounds up; ``valid``: down. What the file's ``pad`` says; ``same``, as the
            original does, where a file says nothing.
        source: Words for where they come from.
        recognised: Words for the training that conv1_1 is known from; ``not known``.
        sha256: Digest, hex, of all arrays above and their names; the same for the same numbers from another file or format.
    """

    network: str
    kernels: Mapping[str, NDArray[np.float32]]
    biases: Mapping[str, NDArray[np.float32]]
    mean_pixel: NDArray[np.float64]
    pool_padding: str
    source: str
    recognised: str
    sha256: str


def load_weights(
    network: str,
    source: str,
    *,
    seed: int,
    classifier: bool,
    folder: Path = Path("weights"),
    keras_cache: Path | None = None,
    base_urls: Mapping[str, str] = BASE_URLS,
    progress: bool,
    log: Callable[[str], None],
) -> Weights:
    """Return the weights that a user's word means.

    Args:
        network: ``vgg19`` or ``vgg16``.
        source: ``imagenet``: a published file of any format in ``folder`` or Keras' cache, else Keras' file is downloaded;
            ``matconvnet``: the ``.mat`` in ``folder``, else downloaded; ``random``: He normal; else the path of a file.
        seed: Of the random weights; at least 0.
        classifier: Whether fc6, fc7 and fc8 are needed.
        folder: Where published files are looked for and downloaded to.
        keras_cache: Where Keras keeps its downloads; None: ``$KERAS_HOME/models`` or ``~/.keras/models``.
        base_urls: Family -> address to download from.
        progress: Whether downloads show a bar.
        log: Takes lines for the user: where weights come from, and warnings.

    Raises:
        OptionError: A negative seed.
        WeightsError: There is no such file, it cannot be downloaded, or it cannot be used.
    """
    wanted = wanted_layers(network, classifier)
    if source == "random":
        return random_weights(wanted, seed)
    if source in SOURCES:
        path = _local_copy(wanted, source, folder, keras_cache, log)
        if path is None:
            known = known_weights.file_to_download(network, "matconvnet" if source == "matconvnet" else "keras", classifier)
            path = folder / known.name
            log(f"weights: downloading {known.words} to {folder}")
            download_file(known, known.address(base_urls), path, progress=progress)
    else:
        path = _given_file(wanted, source)
    with contextlib.suppress(OSError):  # Said by the reader.
        log(f"weights: reading {path} ({path.stat().st_size:,} bytes)")
    stored = read_file(path, wanted)
    recognised = known_weights.recognise_training(stored.kernels["conv1_1"])
    for words, effect in _EFFECTS.items():
        if words in recognised:
            log(f"weights: warning: {path}: conv1_1 is that of {recognised}; {effect}")
    return _weights(wanted, stored, f"{path.name} ({stored.layout})", recognised)


def random_weights(wanted: Wanted, seed: int) -> Weights:
    """Return untrained weights: He normal kernels, no biases. The convolutions do not depend on whether the classifier is wanted.

    Source: He et al., "Delving Deep into Rectifiers", arXiv 1502.01852, equation 10: standard deviation sqrt(2 / fan in).

    Raises:
        OptionError: A negative seed.
    """
    if seed < 0:
        raise OptionError(f"seed: negative, got {seed}. Expected an integer of at least 0. Choose another seed.")
    generator = np.random.Generator(np.random.PCG64(seed))
    kernels: dict[str, NDArray[np.float32]] = {}
    # In network order, one stream for all: the classifier's draws come last and change nothing before them.
    for name, shape in wanted.shapes.items():
        kernels[name] = generator.standard_normal(shape, dtype=np.float32)
        kernels[name] *= np.float32(math.sqrt(2 / math.prod(shape[:3])))
    biases = {name: np.zeros(shape[3], dtype=np.float32) for name, shape in wanted.shapes.items()}
    stored = StoredWeights(kernels, biases, np.array(MEAN_PIXEL_RGB, dtype=np.float64), "same", "")
    return _weights(wanted, stored, f"random (He normal, seed {seed})", NOT_KNOWN)


def _weights(wanted: Wanted, stored: StoredWeights, source: str, recognised: str) -> Weights:
    kernels, biases, mean_pixel = stored.kernels, stored.biases, stored.mean_pixel
    digest = content_digest(kernels, biases, mean_pixel, list(wanted.shapes))
    return Weights(wanted.network, kernels, biases, mean_pixel, stored.pool_padding, source, recognised, digest)


def content_digest(
    kernels: Mapping[str, NDArray[np.float32]],
    biases: Mapping[str, NDArray[np.float32]],
    mean_pixel: NDArray[np.float64],
    names: Sequence[str],
) -> str:
    """Return SHA-256, hex, of arrays, whichever file they came from.

    Args:
        kernels: Layer -> float32 kernel.
        biases: Layer -> float32 bias.
        mean_pixel: (3,) float64.
        names: The layers to take, in this order.
    """
    digest = hashlib.sha256()
    for name in names:
        for kind, values in (("kernel", kernels[name]), ("bias", biases[name])):
            digest.update(json.dumps([name, kind, list(values.shape)]).encode())
            digest.update(np.ascontiguousarray(values, dtype="<f4").data)
    digest.update(np.ascontiguousarray(mean_pixel, dtype="<f8").data)
    return digest.hexdigest()


# Which file


def _local_copy(wanted: Wanted, source: str, folder: Path, keras_cache: Path | None, log: Callable[[str], None]) -> Path | None:
    """Return a published file that is already here: first in the folder, then in Keras' cache."""
    files = known_weights.files_for(wanted.network, wanted.classifier)
    for known in files:
        if (source == "imagenet" or known.family == source) and (folder / known.name).is_file():
            return folder / known.name
    # Source: keras/src/backend/config.py, keras_home().
    keras_home = Path(os.environ.get("KERAS_HOME") or Path("~", ".keras")).expanduser()
    for known in files if source == "imagenet" else ():
        path = (keras_cache or keras_home / "models") / known.name
        if known.family != "keras" or not path.is_file():
            continue
        try:
            # Keras downloads under the final name, so a download of its that was stopped looks like a file.
            if _md5(path) == known.md5:
                return path
            reason = f"it is not the published file (MD5 {known.md5})"
        except OSError as error:
            reason = f"it cannot be read: {error}"
        log(f"weights: {path} is passed over, since {reason}")
    return None


def _given_file(wanted: Wanted, source: str) -> Path:
    path = Path(source)
    try:
        path = path.expanduser()
        if path.is_file():
            return path
        what = "is a folder, not a file" if path.is_dir() else "is a pipe or a device, not a file"
        what = what if path.exists() else "does not exist"
    except (OSError, RuntimeError) as error:  # a folder on the way that may not be searched; a user without a home
        what = f"cannot be reached ({error})"
    words = nearest(source, SOURCES)
    raise wanted.refusal(path, what, repr(source), f"Give the path of one of these, or one of the words: {words}.")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


# Reading


def file_format(path: Path) -> str:
    """Return what a file is, by its content; its name is not looked at: :data:`MAT5`, :data:`HDF5` or words for a message."""
    with path.open("rb") as file:
        start = file.read(4096)
    if not start:
        return "an empty file"
    is_hdf5 = any(start[at : at + 8] == _HDF5_SIGNATURE for at in (0, 512, 1024, 2048))
    if start.startswith(b"MATLAB 7.3") or (is_hdf5 and start[126:128] in (b"IM", b"MI")):
        return _MAT73
    if is_hdf5:
        return HDF5
    # Source: MAT-File Format, version 5 header: bytes 124..127 are the version, 0x0100, and "MI" in the writer's byte order.
    if start[124:128] in (b"\x00\x01IM", b"\x01\x00MI"):
        return MAT5
    if start.startswith(b"PK"):
        return _zip_format(path)
    if b"VGG_ILSVRC" in start[:64]:
        return "a Caffe model"
    known = (words for beginning, words in _BEGINNINGS.items() if start.lstrip().startswith(beginning))
    return next(known, f"a file of unknown format (first bytes {start[:8].hex(' ')})")


def _zip_format(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return "a damaged zip archive"
    if any(name.endswith("data.pkl") for name in names):
        return _TORCH
    if "model.weights.h5" in names:
        return _KERAS_ARCHIVE
    return "a NumPy archive" if names and all(name.endswith(".npy") for name in names) else "a zip archive"


def read_file(path: Path, wanted: Wanted) -> StoredWeights:
    """Read the wanted layers of a file of any format that is read.

    Raises:
        WeightsError: The file cannot be read, is of another format or network, lacks a layer, or is damaged.
    """
    try:
        found = file_format(path)
        if found == MAT5:
            return read_matconvnet(path, wanted)
        if found == HDF5:
            return read_keras(path, wanted)
        size = f"{found} of {path.stat().st_size:,} bytes"
    except WrongFileError as error:
        raise wanted.refusal(path, *error.args) from error
    except Exception as error:  # SciPy, zlib and h5py raise whatever the damage leads to, MemoryError too.
        if isinstance(error, OSError) and error.errno is not None:
            raise wanted.refusal(path, "cannot be read", str(error)) from error
        got = f"{path.stat().st_size:,} bytes: {' '.join(str(error).split()) or type(error).__name__}"
        raise wanted.refusal(path, f"is {found}, but truncated or damaged", got) from error
    raise wanted.refusal(path, "is not a weights file that can be read", size, _REMEDIES.get(found, ""))


# Download


@contextlib.contextmanager
def _new_file(target: Path) -> Iterator[BinaryIO]:
    """Give a file to write to; it has the final name only when all is on the disk, and is gone if that fails.

    What processes that were killed have left of this file is removed a day later. Not sooner, and not by asking whether the
    process lives: the folder may be shared with other machines.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for path in target.parent.glob(f"{glob.escape(target.name)}.*.partial"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                path.unlink()
    # Not mkstemp: its files are readable by their owner alone.
    partial = target.with_name(f"{target.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def download_file(
    known: KnownFile, address: str, target: Path, *, progress: bool, timeout_seconds: float = TIMEOUT_SECONDS
) -> None:
    """Download a published file. The final name appears only when the content is whole, checked and on the disk.

    Args:
        known: Whose size and MD5 are checked.
        address: Where it is.
        target: Where to put it; the folder is made. An existing file is replaced.
        progress: Whether to show a bar on stderr.
        timeout_seconds: How long to wait for the server to answer, and for each further piece.

    Raises:
        WeightsError: No network, no such file, a cut connection, a wrong checksum, or a folder that cannot be written.
    """
    try:
        with _new_file(target) as file:
            _transfer(known, address, file, progress, timeout_seconds)
            if (md5 := _md5(Path(file.name))) != known.md5:
                raise ValueError(f"another file: {file.tell():,} bytes, MD5 {md5}")
    except _NETWORK_ERRORS as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        cause = error.reason if type(error) is urllib.error.URLError else error
        reason = f"no answer for {timeout_seconds:g} seconds" if isinstance(cause, TimeoutError) else " ".join(str(cause).split())
        raise WeightsError(
            f"network.weights: cannot download {address}, got {reason}. Expected {known.words}. Put that file into "
            f"{target.parent} by hand, or run again with network.weights=random for seeded untrained weights."
        ) from error
    except OSError as error:
        raise WeightsError(
            f"network.weights: cannot write {target}, got {error}. Expected a folder that can be written. "
            f"Free space or change its rights; the file is {known.words} at {address}."
        ) from error


def _transfer(known: KnownFile, address: str, file: BinaryIO, progress: bool, timeout_seconds: float) -> None:
    # Late: most runs find their weights on the disk.
    from tqdm import tqdm

    request = urllib.request.Request(address, headers={"User-Agent": "deep-feature-pipeline"})
    with urllib.request.urlopen(request, timeout=timeout_seconds) as response:
        announced = int(response.headers.get("Content-Length") or 0)
        # Found out before it fills the disk.
        if announced and known.size_bytes and announced > known.size_bytes:
            raise ValueError(f"another file: {announced:,} bytes")
        with tqdm.wrapattr(file, "write", total=known.size_bytes, desc=known.name, disable=not progress) as out:
            shutil.copyfileobj(response, out)
    file.flush()
    # The standard library does not treat a connection that ends early as an error when read in blocks.
    if file.tell() < announced:
        raise ConnectionError(f"a connection cut after {file.tell():,} of {announced:,} bytes")
