"""What the reduction ``pca`` needs besides the image: transforms fitted to a sample of the run's images, or to another run's.

They are kept in the run folder as ``transforms.npz``: for each feature ``<name>/mean`` (d,), ``<name>/components`` (n, d) and
``<name>/explained_variance`` (n,), float32 but for the last, float64; and ``fitted_for``, the digest of the run's first part.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import Options, Parameters
from .errors import OptionError, StoreError
from .extract import extract, make_stages
from .network.host_reductions import fit_pca, sample_places
from .network.keras_models import KerasWeights
from .network.known_weights import Weights
from .network.reductions import prefixes, require_sample
from .plan import transforms_file
from .progress import LOGGER as _log
from .progress import Stopwatch
from .records import FeatureSpec, RunSpec, Transform
from .signals import leaving_at_once
from .store import disk, format
from .store.damage import read_file
from .store.digests import Digests
from .store.reader import open_run
from .store.run_folder import RunFolder

# Given features and rows of the run, ascending, returns the feature's name -> pieces (m, d) float32 of the rows that are ok.
TakeSample = Callable[[Sequence[FeatureSpec], NDArray[np.int64]], Mapping[str, Sequence[NDArray[np.float32]]]]

_FITTED_FOR = "fitted_for"
_ARRAYS = ("mean", "components", "explained_variance")


@contextmanager
def with_transforms(reduction: Parameters, run_folder: RunFolder, take_sample: TakeSample) -> Iterator[bytes]:
    """Give the run the transforms that it lacks: those of its folder, else fitted now, or another run's.

    Of processes that make parts of a run one fits, and the others wait for it.

    Args:
        reduction: Parameters of the run.
        run_folder: Opened.
        take_sample: Computes what is to be transformed, of a sample of the images.

    Yields:
        What :func:`write_transforms` is to write before the first shard; nothing where it is there, or none is needed.

    Raises:
        OptionError: Too few images are ok; the other run has no such transform.
        StoreError: Finished shards were made with another.
    """
    spec, path = run_folder.spec, run_folder.path / format.TRANSFORMS_NAME
    wanted = prefixes(spec.features)
    if not wanted:
        yield b""
        return
    with run_folder.alone():
        # Not to rows that an extension has added: the first part's transform is the run's.
        first, content = spec.parts[0], b""
        is_there = Digests(run_folder.path).agrees(path.name)
        if is_there:
            content = read_file(path)
            is_there = _read(content, path)[1] == first.digest
        if not is_there:
            found = other_transforms(reduction["pca"], wanted) or _fit(reduction["pca"], wanted, first.stop, take_sample)
            content = _written(found, first.digest)
        digest = hashlib.sha256(content).hexdigest()
        for shard in sorted(run_folder.finished, key=lambda shard: shard.first)[:1]:
            with open_run(run_folder.path / format.shard_path(shard.file_name)) as run:
                if run.attributes.get("transforms_sha256") != digest:
                    raise StoreError(
                        f"{path}: another transform than that of the finished shards, got SHA-256 {digest[:12]}. Expected "
                        f"{str(run.attributes.get('transforms_sha256'))[:12]}. Put the file back, or use output.existing=replace."
                    )
        run_folder.give_transforms(_read(content, path)[0], digest)
        yield b"" if is_there else content


def other_transforms(pca: Mapping[str, Any], wanted: Iterable[str]) -> dict[str, Transform]:
    """Return the transforms of the run that ``reduction.pca.fit`` names, by their names; none if it names none.

    Raises:
        OptionError: There is no such transform, of this length and with as many components.
    """
    path, count, found = pca["fit"], pca["n_components"], {}
    if path is None:
        return {}
    there = _read(read_file(transforms_file(path)), path)[0]
    for name in wanted:
        if name not in there or len(there[name].components) < count:
            got = f"{len(there[name].components)} components" if name in there else f"transforms of {', '.join(there)}"
            raise OptionError(
                f"reduction.pca.fit: {path} has no transform of {name} with {count} components, got {got}. "
                f"Expected a run with it. Name another, or fit anew with reduction.pca.fit=null."
            )
        one = there[name]
        found[name] = Transform(one.mean, one.components[:count], one.explained_variance[:count])
    return found


def compute_sample(
    options: Options, spec: RunSpec, weights: Weights | KerasWeights, features: Sequence[FeatureSpec], places: NDArray[np.int64]
) -> Mapping[str, Sequence[NDArray[np.float32]]]:
    """Extract features of some images of a run; see :data:`TakeSample`."""
    with leaving_at_once():
        stages = make_stages(options, replace(spec, features=tuple(features), dtype="float32"), weights)
    found: dict[str, list[NDArray[np.float32]]] = {}
    with closing(extract(spec.manifest, places, replace(stages, overflow_fails_row=False), Stopwatch())) as batches:
        for _, layers in batches:
            for one in layers:
                found.setdefault(one.layer, []).append(one.values.reshape(len(one.values), -1).astype(np.float32))
    return found


def _fit(pca: Mapping[str, Any], wanted: Mapping[str, FeatureSpec], rows: int, take_sample: TakeSample) -> dict[str, Transform]:
    places = sample_places(rows, pca["fit_images"], pca["seed"])
    _log.info("pca: fitting %s to %d of %d images", ", ".join(wanted), len(places), rows)
    given = {feature.name: feature for feature in wanted.values()}
    sample = take_sample(sorted(given.values(), key=lambda feature: feature.layer.network_index), places)
    found = {}
    for name, feature in wanted.items():
        values = np.concatenate(sample.get(feature.name) or [np.zeros((0, 1), np.float32)])
        require_sample(pca["n_components"], len(values), " of the sample that are ok")
        found[name] = fit_pca(values, pca["n_components"])
        total = values.var(axis=0, ddof=1, dtype=np.float64).sum()
        # Images that are all alike have none.
        share = found[name].explained_variance.sum() / total if total else 1.0
        _log.info("pca: %s: %d components have %.1f%% of the variance", name, pca["n_components"], 100 * share)
    return found


def _written(transforms: Mapping[str, Transform], fitted_for: str) -> bytes:
    arrays = {f"{name}/{key}": getattr(one, key) for name, one in sorted(transforms.items()) for key in _ARRAYS}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays, **{_FITTED_FOR: np.array(fitted_for)})
    return file.getvalue()


def _read(content: bytes, path: Path) -> tuple[dict[str, Transform], str]:
    """Return the transforms in a file, and the digest of the run that they were fitted for."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            names = [key.removesuffix("/mean") for key in file.files if key.endswith("/mean")]
            return {name: Transform(*(file[f"{name}/{key}"] for key in _ARRAYS)) for name in names}, str(file[_FITTED_FOR])
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise StoreError(f"{path}: not a file of transforms, got {error}. Expected {format.TRANSFORMS_NAME} of a run.") from error


def write_transforms(run_folder: RunFolder, content: bytes) -> None:
    """Write the file, if there is anything to write, whole or not at all, with its line in ``SHA256SUMS``.

    Raises:
        StoreError: The disk refuses.
    """
    path = run_folder.path / format.TRANSFORMS_NAME
    if content:
        disk.write_file(path, content, Digests(path.parent).publish)
