"""The weights of a network: the noun, and the door through which they come, whatever file they come from. No TensorFlow.

name or path -> local copy, Keras' cache or download -> reader (MatConvNet, Keras) -> Weights
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError, WeightsError, nearest
from . import known_files, recognise
from .apart import read_apart
from .download import download_file
from .keras_h5 import read_keras
from .known_files import BASE_URLS, KnownFile
from .layers import MEAN_PIXEL_RGB
from .matconvnet import read_matconvnet
from .stored import StoredWeights, Wanted, wanted_layers
from .weights_cache import content_digest, default_cache_folder, load_cached, save_cached

# Words that mean more than a path.
SOURCES = ("imagenet", "matconvnet", "random")


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
    cache_folder: Path | None = None,
    base_urls: Mapping[str, str] = BASE_URLS,
    progress: bool,
    log: Callable[[str], None],
) -> Weights:
    """Gives the weights that a user's word means.

    Args:
        network: ``vgg19`` or ``vgg16``.
        source: ``imagenet``: a published file of any format in ``folder`` or Keras' cache, else Keras' file is downloaded;
            ``matconvnet``: the ``.mat`` in ``folder``, else downloaded; ``random``: He normal; else the path of a file.
        seed: Of the random weights; at least 0.
        classifier: Whether fc6, fc7 and fc8 are needed.
        folder: Where published files are looked for and downloaded to.
        keras_cache: Where Keras keeps its downloads; None: ``$KERAS_HOME/models`` or ``~/.keras/models``.
        cache_folder: Where the layers of large files are kept; None: the system's folder for caches.
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
            known = known_files.file_to_download(network, "matconvnet" if source == "matconvnet" else "keras", classifier)
            path = folder / known.name
            log(f"weights: downloading {known.words} to {folder}")
            download_file(known, known.address(base_urls), path, progress=progress)
    else:
        path = _given_file(wanted, source)
    return _from_file(wanted, path, cache_folder or default_cache_folder(), log)


def random_weights(wanted: Wanted, seed: int) -> Weights:
    """Gives untrained weights: He normal kernels, no biases. The convolutions do not depend on whether the classifier is wanted.

    Source: He et al., "Delving Deep into Rectifiers", arXiv 1502.01852, equation 10: standard deviation sqrt(2 / fan in).

    Raises:
        OptionError: A negative seed.
    """
    if seed < 0:
        raise OptionError(f"seed: negative, got {seed}. Expected an integer of at least 0. Choose another seed.")
    generator = np.random.Generator(np.random.PCG64(seed))
    kernels: dict[str, NDArray[np.float32]] = {}
    biases: dict[str, NDArray[np.float32]] = {}
    # In network order, one stream for all: the classifier's draws come last and change nothing before them.
    for name, shape in wanted.shapes.items():
        kernels[name] = generator.standard_normal(shape, dtype=np.float32)
        kernels[name] *= np.float32(math.sqrt(2 / math.prod(shape[:3])))
        biases[name] = np.zeros(shape[3], dtype=np.float32)
    mean_pixel = np.array(MEAN_PIXEL_RGB, dtype=np.float64)
    stored = StoredWeights(kernels, biases, mean_pixel, "same", "")
    return _weights(wanted, stored, f"random (He normal, seed {seed})", recognise.NOT_KNOWN)


def _weights(wanted: Wanted, stored: StoredWeights, source: str, recognised: str) -> Weights:
    return Weights(
        network=wanted.network,
        kernels=stored.kernels,
        biases=stored.biases,
        mean_pixel=stored.mean_pixel,
        pool_padding=stored.pool_padding,
        source=source,
        recognised=recognised,
        sha256=content_digest(stored.kernels, stored.biases, stored.mean_pixel, list(wanted.shapes)),
    )


def _local_copy(wanted: Wanted, source: str, folder: Path, keras_cache: Path | None, log: Callable[[str], None]) -> Path | None:
    """Gives a published file that is already here: first in the folder, then in Keras' cache."""
    files = known_files.files_for(wanted.network, wanted.classifier)
    for known in files:
        if (source == "imagenet" or known.family == source) and (folder / known.name).is_file():
            return folder / known.name
    if source != "imagenet":
        return None
    if keras_cache is None:
        # Source: keras/src/backend/config.py, keras_home().
        keras_cache = Path(os.environ.get("KERAS_HOME") or Path("~", ".keras")).expanduser() / "models"
    for known in files:
        path = keras_cache / known.name
        if known.family != "keras":
            continue
        try:
            # Keras downloads under the final name, so a download of its that was stopped looks like a file.
            if path.is_file() and _md5(path) == known.md5:
                return path
            reason = f"it is not the published file (MD5 {known.md5})" if path.is_file() else ""
        except OSError as error:
            reason = f"it cannot be read: {error}"
        if reason:
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


def _from_file(wanted: Wanted, path: Path, cache_folder: Path | None, log: Callable[[str], None]) -> Weights:
    try:
        found = recognise.file_format(path)
    except OSError as error:
        raise wanted.refusal(path, "cannot be read", str(error)) from error
    if found not in (recognise.MAT5, recognise.HDF5):
        raise _wrong_format(wanted, path, found)
    stored = None
    if found == recognise.MAT5 and cache_folder is not None:
        stored = load_cached(cache_folder, path, wanted)
    if stored is None:
        published = _is_published(path, log)
        if found == recognise.MAT5:
            log(f"weights: reading {path} ({path.stat().st_size:,} bytes)")
            stored = read_matconvnet(path, wanted)
            if cache_folder is not None:
                save_cached(cache_folder, path, wanted, stored, log)
        else:
            # The published files are no strangers, and the largest of them need not go through a pipe.
            stored = read_keras(path, wanted) if published else read_apart(path, wanted)
    recognised = recognise.recognise_training(stored.kernels["conv1_1"])
    for words, effect in _EFFECTS.items():
        if words in recognised:
            log(f"weights: warning: {path}: conv1_1 is that of {recognised}; {effect}")
    return _weights(wanted, stored, f"{path.name} ({stored.layout})", recognised)


# Part of what conv1_1 is recognised as -> what that does to the features.
_EFFECTS = {
    ", BGR": "the network gets RGB, so its features will be those of images with red and blue exchanged",
    ", WHIO": "rows and columns of its kernels are exchanged; network.kernel_order=whio exchanges them back",
    "torchvision": "it was trained on other input (RGB in 0..1, mean and deviation removed), so its features mean little here",
}


def _wrong_format(wanted: Wanted, path: Path, found: str) -> WeightsError:
    remedies = {
        recognise.MAT73: "Save it again in MATLAB with save(file, '-struct', 'net', '-v7'), or set network.weights=imagenet.",
        recognise.TORCH: "PyTorch files are not read, and torchvision's are another training; set network.weights=imagenet.",
        recognise.KERAS_ARCHIVE: "Save it again in Keras with model.save_weights('x.weights.h5').",
    }
    return wanted.refusal(
        path, "is not a weights file that can be read", f"{found} of {path.stat().st_size:,} bytes", remedies.get(found, "")
    )


def _is_published(path: Path, log: Callable[[str], None]) -> bool:
    """Gives whether a file that bears a published file's name is that file. Where not, says so: copies saved again are common."""
    known: KnownFile | None = next((known for known in known_files.KNOWN_FILES if known.name == path.name), None)
    if known is None:
        return False
    if (md5 := _md5(path)) in (known.md5, *known.earlier_md5):
        return True
    log(f"weights: warning: {path} has MD5 {md5}, which is not that of a published {known.words}; it is read all the same")
    return False


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
