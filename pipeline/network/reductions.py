"""Reductions: what makes a small vector of an image's activations before they are stored. Their names and shapes; no arithmetic.

A feature is a layer with a chain of reductions: ``relu5_1:gem:l2``. The first takes the map, (h, w, c), the next a vector, (d,).

============= ================= ==================================================================================================
name          gives             of a map F of n = h w positions and c channels, or of a vector x of length d
============= ================= ==================================================================================================
``avg``       c                 mean of each channel
``max``       c                 maximum of each channel
``catavgmax`` 2 c               both, one after the other (timm's name)
``gem``       c                 generalized mean, (mean of max(F, eps)^p)^(1/p). Source: Radenovic et al. 2018, arXiv 1711.02512
``rmac``      c                 regional maxima, each divided by its L2 norm + 1e-6, summed. Source: Tolias et al. 2016, arXiv
                                1511.05879; regions as in filipradenovic/cnnimageretrieval-pytorch, the whole map among them
``grid``      side^2 c          means of side x side cells, row by row; cell i of a side of h rows has rows floor(i h / side) to
                                ceil((i + 1) h / side), as PyTorch's adaptive average pooling
``gram``      c (c + 1) / 2     F^T F / n: of ``form=triangle`` the upper triangle with the diagonal, row by row; ``full``: c^2
``units``     n_components      that many of the values, at seeded places, in their order (C order of a map)
``srp``       n_components      sparse random projection: products with `sparse_matrix``
``gaussian``  n_components      products with `gaussian_matrix``
``pca``       n_components      principal components of a sample of the run's images; ``whiten``: over their standard deviations
``l2``        as before         x divided by its L2 norm; a vector of zeros stays
============= ================= ==================================================================================================

They are computed by :mod:`.host_reductions` on a CPU and by :mod:`.device_reductions` on a device, before anything is copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import OptionError, nearest
from ..records import FeatureSpec, LayerSpec, Reduction, Transform
from .architectures import VggTable
from .keras_models import KerasTable

# What each takes: a map, a vector, or either.
MAP, VECTOR, ANY = "map", "vector", "map or vector"
TAKES = {
    **dict.fromkeys(("avg", "max", "catavgmax", "gem", "rmac", "grid", "gram"), MAP),
    **dict.fromkeys(("units", "srp", "gaussian", "pca"), ANY),
    "l2": VECTOR,
}
# A matrix of more is neither kept on a device nor worth its time.
LARGEST_MATRIX_BYTES = 1 << 30


def resolve_features(
    table: VggTable | KerasTable,
    words: Sequence[str],
    reduce: Sequence[str],
    parameters: Mapping[str, Mapping[str, Any]],
    *,
    size_px: tuple[int, int] | None,
    rows: int | None = None,
) -> tuple[FeatureSpec, ...]:
    """Return the features that a user's words mean, in network order, each once.

    Args:
        table: Of the network.
        words: As the table takes them, with a chain of reductions after colons or without.
        reduce: The chain of all words that have none.
        parameters: Reduction -> its options, of which ``auto`` ones are chosen here.
        size_px: (height, width) of the input; None at native size.
        rows: Of the run; None: not known yet, so that what ``auto`` means is checked as for the smallest run.

    Raises:
        OptionError: A word means no layer or no reduction; reductions do not fit together; the input is too small; a matrix
            would be too large.
    """
    chains: dict[LayerSpec, set[tuple[str, ...]]] = {}
    default = tuple(step for word in reduce for step in word.split(":"))
    for word in words:
        name, *steps = word.split(":")
        for layer in table.resolve([name]):
            chains.setdefault(layer, set()).add(tuple(steps) or default)
    planned = table.plan(sorted(chains, key=lambda layer: layer.network_index), size_px)
    found = [_reduced(feature, chain, parameters, rows) for feature in planned for chain in sorted(chains[feature.layer])]
    return _distinct(found)


def reduce_stored(
    wanted: Sequence[tuple[FeatureSpec, Sequence[str]]], parameters: Mapping[str, Mapping[str, Any]], rows: int
) -> tuple[FeatureSpec, ...]:
    """Return the features that chains of reductions make of stored ones, or none does, in network order, each once.

    Raises:
        OptionError: As of :func:`resolve_features`; or what is stored was made with other options.
    """
    found = {}
    for stored, chain in wanted:
        for step in stored.reductions:
            options = parameters.get(step.name, {})
            for key, value in step.parameters.items():
                if options.get(key) not in (None, value):
                    raise OptionError(
                        f"reduction.{step.name}.{key}: not that of the stored {stored.name}, got {options[key]!r}. "
                        f"Expected {value!r}: one value for all of a run."
                    )
        feature = _reduced(stored, chain, parameters, rows)
        found[feature.layer.network_index, tuple(step.name for step in feature.reductions)] = feature
    return _distinct([found[place] for place in sorted(found)])


def _distinct(features: Sequence[FeatureSpec]) -> tuple[FeatureSpec, ...]:
    names = [feature.name for feature in features]
    if twice := [name for name in names if names.count(name) > 1]:
        raise OptionError(f"layers: a layer has the name of a reduction, got {twice[0]} twice. Expected one of them in a run.")
    return tuple(features)


def require_sample(n_components: int, images: int, which: str) -> None:
    """Refuse a sample that is too small for principal components, by an ``OptionError``; ``which`` of its images count."""
    if images <= n_components:
        raise OptionError(
            f"reduction.pca.n_components: too many for the sample, got {n_components} and {images} images{which}. Expected more "
            "images. Lower it, raise reduction.pca.fit_images, or name another run by reduction.pca.fit."
        )


def prefixes(features: Sequence[FeatureSpec]) -> dict[str, FeatureSpec]:
    """Return for each transform that must be fitted its name, ``relu5_1.avg.pca``, -> what it is applied to, ``relu5_1.avg``."""
    found = {}
    for feature in features:
        names = [step.name for step in feature.reductions]
        if "pca" in names:
            before = feature.reductions[: names.index("pca")]
            shape: tuple[int, ...] = (feature.layer.channels,)
            for step in before:
                shape = (output_length(step, shape),)
            applied_to = FeatureSpec(feature.layer, shape if before else None, before)
            found[f"{applied_to.name}.pca"] = applied_to
    return found


def _reduced(
    feature: FeatureSpec, chain: Sequence[str], parameters: Mapping[str, Mapping[str, Any]], rows: int | None
) -> FeatureSpec:
    for name in chain:
        shape, word = feature.shape, ":".join([feature.layer.name, *(step.name for step in feature.reductions)])
        if name not in TAKES:
            known = nearest(name, [*TAKES])
            raise OptionError(f"layers: there is no such reduction, got {name!r} of {word}. Expected one of: {known}.")
        is_map, refused = shape is None or len(shape) > 1, ""
        # Those of a classifier have one position.
        is_vector = shape is not None and (not is_map or shape[:2] == (1, 1))
        if (TAKES[name] == MAP and not is_map) or (TAKES[name] == VECTOR and not is_vector):
            refused = f"{name} takes a {TAKES[name]} and {word} is a {MAP if is_map else VECTOR}"
        elif shape is None and TAKES[name] == ANY:
            refused = f"{name} takes vectors of one length and maps of native size differ"
        elif name == "pca" and name in word.split(":"):
            refused = "pca comes once in a chain"
        if refused:
            raise OptionError(f"layers: {refused}, got {word}:{name}. Expected e.g. relu5_1:gem:l2 or relu5_1:units.")
        shape = shape or (feature.layer.channels,)
        length = math.prod(shape)
        reduction = Reduction(name, _with_auto(parameters.get(name, {}), length, rows))
        _check_size(reduction, length, f"{word}:{name}")
        if rows is not None and "fit_images" in reduction.parameters:
            require_sample(int(reduction.parameters["n_components"]), min(rows, int(reduction.parameters["fit_images"])), "")
        feature = replace(feature, shape=(output_length(reduction, shape),), reductions=(*feature.reductions, reduction))
    return feature


def _with_auto(parameters: Mapping[str, Any], length: int, rows: int | None) -> dict[str, Any]:
    """Choose what is left to choose, as scikit-learn does."""
    chosen = dict(parameters)
    if "n_components" in chosen:
        eps = chosen.pop("eps", 0.0)
        chosen["n_components"] = chosen["n_components"] or johnson_lindenstrauss(max(2, rows or 0), eps)
    if "density" in chosen:
        chosen["density"] = chosen["density"] or 1 / math.sqrt(length)
    return chosen


def johnson_lindenstrauss(rows: int, eps: float) -> int:
    """Return how many components keep the distances of so many rows to a factor of 1 - eps to 1 + eps.

    Source: scikit-learn, ``johnson_lindenstrauss_min_dim``; Dasgupta and Gupta 2003.
    """
    return int(4 * math.log(rows) / (eps**2 / 2 - eps**3 / 3))


def output_length(reduction: Reduction, shape: tuple[int, ...]) -> int:
    """Return how many values a reduction makes of a map (h, w, c) or a vector (d,); of a map of any size, given as (c,)."""
    name, of, channels = reduction.name, reduction.parameters, shape[-1]
    if name == "catavgmax":
        return 2 * channels
    if name == "grid":
        return int(of["side"]) ** 2 * channels
    if name == "gram":
        return channels * (channels + 1) // 2 if of["form"] == "triangle" else channels**2
    return int(of.get("n_components", channels))


def _check_size(reduction: Reduction, length: int, word: str) -> None:
    name, of = reduction.name, reduction.parameters
    count = int(of.get("n_components", 0))
    if count > length:
        raise OptionError(
            f"reduction.{name}.n_components: {word} would be longer, got {count} components of {length} values. Expected no more."
        )
    size_bytes = {
        "srp": count * nonzeros(length, float(of.get("density", 0))) * 8,
        "gaussian": count * length * 4,
        "pca": max(count, int(of.get("fit_images", 0))) * length * 4,
    }.get(name, 0)
    if size_bytes > LARGEST_MATRIX_BYTES:
        raise OptionError(
            f"layers: the matrix of {word} would be too large, got {length} columns, {size_bytes / 2**30:.1f} GiB. Expected at "
            f"most 1 GiB. Put avg, grid or srp before it, or lower reduction.{name}.*."
        )


def prepare(
    feature: FeatureSpec,
    shape: tuple[int, ...] | None,
    make_step: Callable[[Reduction, int, Transform | None], Callable[[Any], Any]],
    transforms: Mapping[str, Transform],
    done: int = 0,
) -> Callable[[Any], Any]:
    """Return a function that makes a feature of activations.

    Args:
        feature: With reductions, or without: then it changes nothing.
        shape: (h, w, c) of the layer, None at native size; or of what the reductions that are done have given.
        make_step: Makes the function of a reduction of so many values: :func:`.host_reductions.on_host` for an image,
            (h, w, c) float32 -> (d,); :func:`.device_reductions.on_device` for a batch in a graph, (n, h, w, c) -> (n, d).
        transforms: Fitted ones, by the name of the feature up to the reduction.
        done: How many of the reductions have been done already.
    """
    steps, shape = [], shape or (feature.layer.channels,)
    for number, reduction in enumerate(feature.reductions[done:], done):
        name = replace(feature, reductions=feature.reductions[: number + 1]).name
        steps.append(make_step(reduction, math.prod(shape), transforms.get(name)))
        shape = (output_length(reduction, shape),)

    def reduce(values: Any) -> Any:
        for step in steps:
            values = step(values)
        return values

    return reduce


def averaged_layers(features: Sequence[FeatureSpec]) -> set[str]:
    """Return the names of the layers of which only averages are wanted; of the last one the map is computed anyway."""
    others = [feature.layer.name for feature in features if not feature.reductions or feature.reductions[0].name != "avg"]
    return {feature.layer.name for feature in features} - {*others, features[-1].layer.name}


def nonzeros(length: int, density: float) -> int:
    """Return how many entries of a row of a sparse matrix are not zero."""
    return min(length, max(1, round(density * length)))
