"""The weights of a network, whatever file they come from. No TensorFlow.

name or path -> local copy, cache of Keras or PyTorch, or download -> reader (MatConvNet, Keras, PyTorch, safetensors) -> Weights
"""

from __future__ import annotations

import contextlib
import http.client
import math
import os
import secrets
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import WeightsError
from .architectures import MEAN_PIXEL_RGB
from .keras_h5 import read_keras
from .known_weights import WEIGHTS, KnownFile, Wanted, Weights, WrongFileError, digest_arrays, files_for, recognise_training
from .matconvnet import read_matconvnet
from .torch_weights import import_torch, read_safetensors, read_torch

# Where published files are looked for and downloaded to.
FOLDER = Path("weights")

# Until the server answers, and for each further piece.
TIMEOUT_SECONDS = 30.0

# Kinds of files, told by their content, and what reads them.
MAT5, HDF5, TORCH, SAFETENSORS = "a MATLAB 5 file", "an HDF5 file", "a PyTorch file", "a file of safetensors"
READERS = {MAT5: read_matconvnet, HDF5: read_keras, TORCH: read_torch, SAFETENSORS: read_safetensors}
_MAT73 = "a MATLAB v7.3 file"
# Files of torch.save before 1.6. Source: MAGIC_NUMBER in torch/serialization.py, pickled.
_TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
_SAVE_MAT = "Save it again in MATLAB with save(file, '-struct', 'net', '-v7'), or set network.weights=imagenet."
_SAVE_ANY = (
    "Of Keras, what model.save('x.h5') writes is read, a .keras file as network=keras network.model=FILE; of PyTorch, what "
    "torch.save(model.state_dict(), FILE) writes."
)


def load_weights(
    network: str, source: str, *, seed: int, classifier: bool, progress: bool, log: Callable[[str], None]
) -> Weights:
    """Return the weights that a user's word means.

    Args:
        network: Name in :data:`pipeline.network.architectures.NETWORKS`.
        source: ``imagenet``, ``matconvnet``, ``torchvision``: a published file (:func:`.files_for`), in :data:`FOLDER` or in the
            cache of Keras or PyTorch, else downloaded; ``random``: He normal; else the path of a file.
        seed: Of the random weights.
        classifier: Whether fc6, fc7 and fc8 are needed.
        progress: Whether downloads show a bar.
        log: Takes lines for the user: where weights come from, and warnings.

    Raises:
        WeightsError: There is no such file, it cannot be downloaded, or it cannot be used.
    """
    wanted = Wanted(network, classifier)
    if source == "random":
        return random_weights(wanted, seed)
    path = _published_file(wanted, source, progress, log) if source in WEIGHTS else Path(source)
    if not path.is_file():
        raise wanted.refusal(path, "is no file", "a folder, a pipe or nothing")
    log(f"weights: reading {path} ({path.stat().st_size:,} bytes)")
    weights = read_file(path, wanted)
    weights = _identified(weights, f"{path.name} ({weights.source})")
    found = weights.recognised
    # Of torchvision's training only its own files are given what it was trained on: RGB in 0..1 less a mean, over a deviation.
    if ", BGR" in found or ", WHIO" in found or ("torchvision" in found and weights.scale_pixel is None):
        log(
            f"weights: warning: {path}: conv1_1 is that of {found}. In such a file RGB and HWIO are expected, of the training of "
            "Simonyan & Zisserman; its features will be others. network.kernel_order=whio exchanges the axes of the kernels"
        )
    return weights


def random_weights(wanted: Wanted, seed: int) -> Weights:
    """Return untrained weights: He normal kernels, no biases. The convolutions do not depend on whether the classifier is wanted.

    Source: He et al., "Delving Deep into Rectifiers", arXiv 1502.01852, equation 10: standard deviation sqrt(2 / fan in).
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    kernels = {}
    # In network order, one stream for all: the classifier's draws come last and change nothing before them.
    for name, shape in wanted.shapes.items():
        kernels[name] = generator.standard_normal(shape, dtype=np.float32)
        kernels[name] *= np.float32(math.sqrt(2 / math.prod(shape[:3])))
    biases = {name: np.zeros(shape[3], dtype=np.float32) for name, shape in wanted.shapes.items()}
    weights = Weights(wanted.network, kernels, biases, np.array(MEAN_PIXEL_RGB, dtype=np.float64), "same", "")
    return _identified(weights, f"random (He normal, seed {seed})")


def _identified(weights: Weights, source: str) -> Weights:
    recognised = recognise_training(weights.kernels["conv1_1"])
    return replace(weights, source=source, recognised=recognised, sha256=content_digest(weights))


def content_digest(weights: Weights) -> str:
    """Return :func:`.digest_arrays` of all of them."""
    biases = {f"{name} bias": values for name, values in weights.biases.items()}
    arrays = {**weights.kernels, **biases, "mean": weights.mean_pixel, "scale": weights.scale_pixel}
    return digest_arrays((name, values) for name, values in arrays.items() if values is not None)


def _published_file(wanted: Wanted, source: str, progress: bool, log: Callable[[str], None]) -> Path:
    """Return a published file: from :data:`FOLDER`, from the cache of Keras or PyTorch, or downloaded to the folder."""
    files = files_for(wanted.network, wanted.classifier, source)
    names = [known.name for known in files]
    if files[0].family == "torchvision":
        # timm's copy of the weights, which needs no PyTorch.
        names.insert(0, f"{wanted.network}.tv_in1k.safetensors")
    for path in (FOLDER / name for name in names):
        if path.is_file():
            return path
    # Sources: keras/src/backend/config.py, keras_home(); torch/hub.py, get_dir() and load_state_dict_from_url().
    torch_home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    caches = {
        "keras": Path(os.environ.get("KERAS_HOME") or "~/.keras", "models"),
        "torchvision": Path(torch_home, "hub", "checkpoints"),
    }
    for known in files:
        path = caches.get(known.family, FOLDER).expanduser() / known.name
        # Keras downloads under the final name, so a download of its that was stopped looks like a file.
        with contextlib.suppress(OSError):
            if known.has_checksum_of(path):
                return path
            log(f"weights: {path} is passed over, since it is not the published {known.words}")
    # The smallest: Keras' files are without and with the classifier.
    known = next(known for known in files if source == "matconvnet" or known.family != "matconvnet")
    if known.family == "torchvision":
        try:
            import_torch(wanted.network)
        except WrongFileError as error:
            raise wanted.refusal(FOLDER / known.name, *error.args) from error
    log(f"weights: downloading {known.words} to {FOLDER}")
    download_file(known, FOLDER / known.name, progress=progress)
    return FOLDER / known.name


def file_format(path: Path) -> str:
    """Return what a file is, by its content; its name is not looked at: a key of :data:`READERS`, or words for a message."""
    with path.open("rb") as file:
        start = file.read(1024)
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return HDF5
    # The second is the first member of the archive that torch.save writes.
    if start.startswith(_TORCH_MAGIC) or (start.startswith(b"PK") and b"/data.pkl" in start):
        return TORCH
    # The length of a JSON object, and that.
    if start[8:10] == b'{"':
        return SAFETENSORS
    if start.startswith(b"MATLAB 7.3"):
        return _MAT73
    # Source: MAT-File Format, version 5 header: bytes 124..127 are the version, 0x0100, and "MI" in the writer's byte order.
    if start[124:128] in (b"\x00\x01IM", b"\x01\x00MI"):
        return MAT5
    return f"a file that begins with {start[:20]!r},"


def read_file(path: Path, wanted: Wanted) -> Weights:
    """Read the wanted layers of a file of any format that is read; ``source`` is the format.

    Raises:
        WeightsError: The file cannot be read, is of another format or network, lacks a layer, or is damaged.
    """
    try:
        found = file_format(path)
        if reader := READERS.get(found):
            return reader(path, wanted)
        size = f"{found} of {path.stat().st_size:,} bytes"
    except WrongFileError as error:
        raise wanted.refusal(path, *error.args) from error
    except Exception as error:  # Readers raise whatever the damage leads to, MemoryError too.
        if isinstance(error, OSError) and error.errno is not None:
            raise wanted.refusal(path, "cannot be read", str(error)) from error
        got = f"{path.stat().st_size:,} bytes: {' '.join(str(error).split()) or type(error).__name__}"
        raise wanted.refusal(path, f"is {found}, but truncated or damaged", got) from error
    raise wanted.refusal(path, "is not a weights file that can be read", size, _SAVE_MAT if found == _MAT73 else _SAVE_ANY)


def download_file(known: KnownFile, target: Path, *, progress: bool) -> None:
    """Download a published file. The final name appears only when the content is whole, checked and on the disk.

    Args:
        known: Which file.
        target: Where to put it; the folder is made. An existing file is replaced.
        progress: Whether to show a bar on stderr.

    Raises:
        WeightsError: No network, no such file, a cut connection, a wrong checksum, or a folder that cannot be written.
    """
    # Late: most runs find their weights on the disk.
    from tqdm import tqdm

    request = urllib.request.Request(known.address, headers={"User-Agent": "deep-feature-pipeline"})
    # Not mkstemp: its files are readable by their owner alone. Several processes may download at a time.
    partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("xb") as file, urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            with tqdm.wrapattr(file, "write", total=known.size_bytes, desc=known.name, disable=not progress) as out:
                shutil.copyfileobj(response, out)
            file.flush()
            os.fsync(file.fileno())
        if not known.has_checksum_of(partial):
            raise OSError(f"another file, or a part of it: {partial.stat().st_size:,} bytes")
        partial.replace(target)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise WeightsError(
            f"network.weights: cannot download {known.address} to {target}, got {' '.join(str(error).split())}. Expected "
            f"{known.words}. Put that file there by hand, or run again with network.weights=random for seeded untrained weights."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
