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
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .config import Options, Parameters
from .errors import OptionError, StoreError
from .extract import extract, make_stages
from .network.host_reductions import chosen_places, fit_pca
from .network.keras_models import AnyWeights
from .network.reductions import prefixes, require_sample
from .plan import transforms_file
from .progress import LOGGER, Stopwatch
from .records import FeatureBatch, FeatureSpec, RunSpec, Transform
from .signals import leaving_at_once
from .store import format
from .store.damage import read_file
from .store.digests import Digests
from .store.reader import open_run
from .store.run_folder import RunFolder

# Given features and rows of the run, ascending, yields these features of the rows that are ok.
TakeSample: TypeAlias = Callable[[Sequence[FeatureSpec], NDArray[np.int64]], Iterator[FeatureBatch]]

_FITTED_FOR = "fitted_for"
_ARRAYS = ("mean", "components", "explained_variance")


@contextmanager
def with_transforms(reduction: Parameters, run_folder: RunFolder, take_sample: TakeSample) -> Iterator[None]:
    """Give the run the transforms that it lacks: those of its folder, else another run's, else fitted now.

    In the block the folder is to be prepared, which writes them. Of parts of a run one fits, and the others wait for its block.

    Raises:
        OptionError: Too few images are ok; the other run has no such transform.
        StoreError: Finished shards were made with another.
    """
    spec, path = run_folder.spec, run_folder.path / format.TRANSFORMS_NAME
    wanted = prefixes(spec.features)
    if not wanted:
        yield
        return
    with run_folder.alone():
        # Not to rows that an extension has added: the first part's transform is the run's.
        first, content, is_there = spec.parts[0], b"", False
        if Digests(run_folder.path).agrees(path.name):
            content = read_file(path)
            is_there = _read(content, path)[1] == first.digest
        if not is_there:
            pca = reduction["pca"]
            found = _of_other_run(pca, wanted) if pca["fit"] else _fit(pca, wanted, first.stop, take_sample)
            content = _written(found, first.digest)
        digest = hashlib.sha256(content).hexdigest()
        for shard in sorted(run_folder.finished, key=lambda shard: shard.first)[:1]:
            with open_run(run_folder.path / format.shard_path(shard.file_name)) as run:
                expected = str(run.attributes.get("transforms_sha256"))
            if expected != digest:
                raise StoreError(
                    f"{path}: another transform than that of the finished shards, got SHA-256 {digest[:12]}. Expected "
                    f"{expected[:12]}. Put the file back, or use output.existing=replace."
                )
        run_folder.give_transforms(_read(content, path)[0], digest, b"" if is_there else content)
        yield


def compute_sample(
    options: Options, spec: RunSpec, weights: AnyWeights, features: Sequence[FeatureSpec], rows: NDArray[np.int64]
) -> Iterator[FeatureBatch]:
    """Extract features of some images of a run; see :data:`TakeSample`."""
    with leaving_at_once():
        stages = make_stages(options, replace(spec, features=tuple(features), dtype="float32"), weights)
    with closing(extract(spec.manifest, rows, replace(stages, overflow_fails_row=False), Stopwatch())) as batches:
        for _, layers in batches:
            yield from layers


def _of_other_run(pca: Mapping[str, Any], wanted: Iterable[str]) -> dict[str, Transform]:
    """Return the first components of the run that ``reduction.pca.fit`` names."""
    path, count, found = pca["fit"], pca["n_components"], {}
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


def _fit(pca: Mapping[str, Any], wanted: Mapping[str, FeatureSpec], rows: int, take_sample: TakeSample) -> dict[str, Transform]:
    """Fit components to a sample of the run's first rows."""
    count, places = pca["n_components"], chosen_places("pca", rows, pca["fit_images"], pca["seed"])
    LOGGER.info("pca: fitting %s to %d of %d images", ", ".join(wanted), len(places), rows)
    given = {feature.name: feature for feature in wanted.values()}
    sample: dict[str, list[NDArray[np.float32]]] = {name: [] for name in given}
    for batch in take_sample(sorted(given.values(), key=lambda feature: feature.layer.network_index), places):
        sample[batch.layer].append(batch.values.reshape(len(batch.values), -1).astype(np.float32))
    found = {}
    for name, feature in wanted.items():
        require_sample(count, sum(map(len, sample[feature.name])), " of the sample that are ok")
        values = np.concatenate(sample[feature.name])
        found[name] = fit_pca(values, count)
        total = values.var(axis=0, ddof=1, dtype=np.float64).sum()
        # Images that are all alike have none.
        share = found[name].explained_variance.sum() / total if total else 1.0
        LOGGER.info("pca: %s: %d components have %.1f%% of the variance", name, count, 100 * share)
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
