"""All options of all commands: a class has a field an option, with its type once checked, default, rule in words and check.

:mod:`pipeline.cli` tells Hydra names and defaults. Loads neither Hydra nor TensorFlow: a wrong option is answered at once.
"""

# Paths are texts here, and stay as they are written; `option` and its like make fields, as `dataclasses.field` does.
# ruff: noqa: PTH111, PTH119, PTH120, RUF009

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar

import yaml

from .errors import OptionError, nearest
from .network.architectures import NETWORKS, WINOGRAD, VggTable
from .network.keras_models import KERAS, MODES, KerasTable, check_model, default_size, model_name
from .network.keras_models import SOURCES as KERAS_WEIGHTS
from .network.known_weights import WEIGHTS, expected_padding, files_for
from .network.reductions import resolve_features
from .records import FeatureSpec
from .sharding import Share
from .storage import RemotePath, expanded, is_address, path_of, scratch_for

AUTO = "auto"
# A larger side is a slip of the keyboard: one image of it would need 17 GB for conv1_1 alone.
LARGEST_SIDE_PX = 8192
# Of VGG networks. Source: Simonyan & Zisserman, section 2.1.
DEFAULT_SIZE_PX = (224, 224)
# Source: numpy.random.PCG64 takes any non-negative integer; 64 bits are what a seed needs.
LARGEST_SEED = 2**64 - 1
# More than any layer has.
MOST_COMPONENTS = 2**24
# Options that say which images.
SOURCES = ("data.dir", "data.list", "data.tar", "data.tfds")
# What makes the path of a tar file a pattern.
_PATTERN = re.compile(r"[*?\[]")
# Of a Ray cluster. An address of version 6 stands in brackets.
_CLUSTER = r"auto|(ray://)?([A-Za-z0-9_.-]+|\[[0-9a-fA-F:]+\]):\d{1,5}"
# Source: tensorflow_datasets.core.naming, names of sets, configurations and versions.
_TFDS_NAME = r"[A-Za-z_]\w*(/[\w.+-]+)?(:\d+\.\d+\.\d+)?"

# Of options that several commands have.
_NAME = ("the name of one folder, without / \\ or :", r"(?!\.\.?$)[^/\\:]+")
_REDUCE_RULE = "a list of reductions, applied one after the other, e.g. reduce=[gem,l2]"
_LAYERS_RULE = "a list of names, patterns, blocks or all, e.g. layers=[relu4_1,block5,relu5_1:gem:l2]"
_SIZE_RULE = f"a side from 1 to {LARGEST_SIDE_PX} px, [height,width], auto, or null for native size"
_STORED_RULE = "a list of names, patterns, blocks or all, e.g. layers=[relu4_1,block5]"

# What an option is besides: a text as it is typed, whatever is in it; stored as checked, a path that is right from any folder.
_TEXT = {"is_text": True}
_READ = {"is_text": True, "is_read": True}

T = TypeVar("T")


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by full names, ``data.size``, as nested ones."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        *groups, last = key.split(".")
        inner = found
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return found


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by their full names: ``data.size`` -> 224."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return found


def option(default: Any, rule: str, check: Callable[[Any], Any], *, takes_null: bool | None = None, **metadata: Any) -> Any:
    """Declare an option; ``default``: as a user would write it; ``rule``: in words.

    ``check`` makes a checked value of a plain one, or raises ValueError or TypeError. Null stays null, and is right where it is
    the default, unless ``takes_null`` says otherwise.
    """

    def checked(value: Any) -> Any:
        if value is None:
            return right(None, default is None if takes_null is None else takes_null)
        return check(value)

    usual = None if default is None else check(default)
    return field(default=usual, metadata={"default": default, "rule": rule, "check": checked, **metadata})


def right(value: T, is_right: object) -> T:
    """Return a value that is right; raise ValueError for another."""
    if not is_right:
        raise ValueError(value)
    return value


def choice(default: str, *values: str) -> Any:
    """Declare an option with a fixed set of values."""
    # What is not in quotes, as nan, may come as a number.
    return option(default, f"one of: {', '.join(values)}", lambda value: right(str(value), str(value) in values), choices=values)


def switch(default: bool) -> Any:
    """Declare an option that is true or false."""
    return option(default, "true or false", lambda value: right(value, isinstance(value, bool)))


def number(default: float | str, least: float, most: float, kind: type = int) -> Any:
    """Declare a whole number, or any of ``kind`` float; where the default is ``auto``, that is right too and becomes None."""

    def check(value: Any) -> Any:
        return None if value == AUTO == default else kind(right(value, type(value) in (int, kind) and least <= value <= most))

    of_kind = "a whole number" if kind is int else "a number"
    return option(default, f"{'auto or ' * (default == AUTO)}{of_kind} from {least} to {most}", check)


def text(default: str | None, rule: str, pattern: str = r".+") -> Any:
    """Declare a text of a form. Hydra reads 2024 as a number, here it is a name."""
    return option(default, rule, lambda value: right(str(value), re.fullmatch(pattern, str(value))), **_TEXT)


def path(default: str | None, key: str, rule: str = "a path", *, is_read: bool = False, **settings: Any) -> Any:
    """Declare a path, or an address that something installed can reach."""

    def check(value: Any) -> Path:
        found = path_of(key, right(str(value), value != ""))
        return found.absolute() if is_read else found

    return option(default, rule, check, **(_READ if is_read else _TEXT), **settings)


def _local(value: Any) -> Path:
    return expanded(right(str(value), value != "" and not is_address(str(value))))


def _texts(value: Any) -> tuple[str, ...]:
    """Return what a list holds, or a text with commas."""
    texts = tuple(re.findall(r"[^,]+", value) if isinstance(value, str) else value)
    return right(texts, all(isinstance(each, str) and each for each in texts))


def _layers(value: Any) -> tuple[str, ...]:
    return right(_texts(value), value)


def _tars(value: Any) -> tuple[str, ...]:
    # A name may have commas.
    names = [value] if isinstance(value, str) else value
    return right(tuple(str(_local(name).absolute()) for name in names), names)


def _size(value: Any) -> Any:
    if value == AUTO:
        return value
    height, width = (value, value) if isinstance(value, int) else value
    return right((height, width), all(type(side) is int and 1 <= side <= LARGEST_SIDE_PX for side in (height, width)))


def _weights(value: Any) -> str:
    return str(value) if value in WEIGHTS else right(str(_local(value).absolute()), _local(value).exists())


def _share(value: Any) -> Share | None:
    return right(share := Share.of_text(value), share)


@dataclass(frozen=True, slots=True)
class DataOptions:
    """Which images, and how they are brought to size."""

    # Beside a list what its paths are relative to, beside a set where sets are kept.
    dir: Path | None = path(None, "data.dir", is_read=True)
    list: Path | None = path(None, "data.list", is_read=True)
    tar: tuple[str, ...] | None = option(
        None, "a tar file, a folder of them, a pattern or a list, on this machine", _tars, **_READ
    )
    tfds: str | None = text(None, "a set's name: name, name/config or name:1.0.0", _TFDS_NAME)
    # What lies in a slice of a split, train[:10%], would be other images in other versions of a set.
    split: str | None = text(None, "a whole split, e.g. train, test or validation", r"[\w.-]+")
    # (height, width) in px, or None for native size; `auto` until it stands in Options.
    size: Any = option(AUTO, _SIZE_RULE, _size, takes_null=True)
    resize: str = choice("squash", "squash", "crop", "pad")
    interpolation: str = choice("bilinear", "nearest", "bilinear", "bicubic", "lanczos")
    decode: str = choice("exact", "exact", "fast")
    label: str = text("folder", "folder, parent, or the name of a column")
    max_failed_fraction: float = number(1.0, 0, 1, float)

    @property
    def name(self) -> str:
        """What a run of these images is called; "" for a folder without a name."""
        if self.tfds is not None:
            name = re.split("[/:]", self.tfds)[0]
            return f"{name}-{self.split}" if self.split else name
        if self.tar is not None:
            # Of the only tar file, else of the folder that they are in.
            is_one = len(self.tar) == 1 and not _PATTERN.search(self.tar[0])
            return re.sub(r"(?i)\.tar$", "", os.path.basename(self.tar[0] if is_one else tar_folder(self.tar)))
        if self.list is not None:
            return self.list.stem
        # Also of "." and "imgs/..".
        return self.dir.name if isinstance(self.dir, RemotePath) else self.dir.resolve().name if self.dir else ""


def tar_folder(tars: Sequence[str]) -> str:
    """Return the folder that all of ``data.tar`` is below, whichever files there are: what no pattern is part of."""
    folders = []
    for name in tars:
        plain = _PATTERN.split(name)[0]
        # By its name alone, so that it is the same from everywhere.
        is_folder = plain == name and ".tar" not in os.path.basename(name).lower()
        folders.append(name if is_folder else os.path.dirname(plain))
    return os.path.commonpath(folders)


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """Which network, with which weights. Model and preprocessing are of ``keras``."""

    name: str = choice("vgg19", *sorted(NETWORKS), KERAS)
    model: str | None = option(None, "a model", lambda value: check_model(str(value)), **_READ)
    preprocess: str = choice(AUTO, AUTO, *MODES)
    weights: str = option("imagenet", f"one of: {', '.join(WEIGHTS)}, or a file that exists", _weights, **_READ)
    pooling: str = choice("max", "max", "avg")
    pool_padding: str = choice(AUTO, AUTO, "same", "valid")
    kernel_order: str = choice("hwio", "hwio", "whio")
    seed: int = number(0, 0, LARGEST_SEED)


# Reduction -> its parameters, one value for all of a run. Their meanings: the README and pipeline/network/reductions.py.
_COUNT, _SEED = number(AUTO, 1, MOST_COMPONENTS), number(0, 0, LARGEST_SEED)
_EPS = number(0.1, 1e-6, 0.99, float)
_PARAMETERS = {
    "gem": {"p": number(3.0, 1e-6, 100, float), "eps": number(1e-6, 1e-30, 1, float)},
    "rmac": {"levels": number(3, 1, 10)},
    "grid": {"side": number(2, 1, 64)},
    "gram": {"form": choice("triangle", "triangle", "full")},
    "units": {"n_components": number(5000, 1, MOST_COMPONENTS), "seed": _SEED},
    "srp": {"n_components": _COUNT, "eps": _EPS, "density": number(AUTO, 1e-9, 1, float), "seed": _SEED},
    "gaussian": {"n_components": _COUNT, "eps": _EPS, "seed": _SEED},
    "pca": {
        "n_components": number(256, 1, MOST_COMPONENTS),
        "whiten": switch(False),
        "fit_images": number(2048, 2, 2**31),
        "fit": path(None, "reduction.pca.fit", is_read=True),
        "seed": _SEED,
    },
}
_REDUCTIONS = {key: of.metadata for key, of in flat(_PARAMETERS).items()}
# Reduction -> parameter -> value.
Parameters: TypeAlias = Mapping[str, Mapping[str, Any]]


def parameters_of_results(reduction: Parameters) -> Parameters:
    """Return the parameters that results depend on: another run's transform is known by its content alone."""
    others = ("fit", "fit_images", "seed") if reduction["pca"]["fit"] else ("fit",)
    return {**reduction, "pca": {key: value for key, value in reduction["pca"].items() if key not in others}}


@dataclass(frozen=True, slots=True)
class FolderOptions:
    """Where results go and how files are cut and packed.

    ``images_per_shard`` None: from the bytes of an image. ``scratch`` None: of an address, in the system's temporary folder.
    """

    dir: Path = path("outputs", "output.dir")
    scratch: Path | None = option(None, "a folder of this machine, to make files in before they are sent", _local, **_TEXT)
    compression: str = choice("gzip", "gzip", "none")
    images_per_shard: int | None = number(AUTO, 1, 2**31)
    existing: str = choice("resume", "resume", "extend", "replace", "fail")


@dataclass(frozen=True, slots=True)
class OutputOptions(FolderOptions):
    """Of an extraction: how values are stored besides."""

    dtype: str = choice("float32", "float32", "float16")
    overflow: str = choice("fail", "fail", "row")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Which processes make the shards; another engine changes no more than another machine.

    None: of ``address``, a cluster for this run alone; of the others, as the resources of the cluster allow.
    """

    name: str = choice("local", "local", "ray")
    address: str | None = text(None, "null, auto, host:port or ray://host:port", _CLUSTER)
    workers: int | None = number(AUTO, 1, 100_000)
    gpus_per_worker: float | None = number(AUTO, 0, 1, float)
    cpus_per_worker: int | None = number(AUTO, 1, 1024)


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """How this machine does it; changes no number beyond the tolerances of the contract. ``workers`` None: all cores.

    ``device`` is ``cpu`` where the backend was chosen and computes on nothing else.
    """

    device: str = choice(AUTO, AUTO, "cpu", "gpu")
    backend: str = choice(AUTO, AUTO, "tensorflow", WINOGRAD)
    precision: str = choice("float32", "float32", "tf32", "bfloat16")
    workers: int | None = number(AUTO, 1, 1024)

    def __post_init__(self) -> None:
        if self.backend == WINOGRAD and self.device == AUTO:
            object.__setattr__(self, "device", "cpu")


def options_of(kind: Any) -> dict[str, Mapping[str, Any]]:
    """Return the full name of each option of a class, ``data.dir``, ``layers`` ..., -> its metadata, in order."""
    found: dict[str, Mapping[str, Any]] = {}
    for each in fields(kind):
        if "check" in each.metadata:
            found[each.name] = each.metadata
        found |= {f"{each.name}.{key}": metadata for key, metadata in each.metadata.get("group", {}).items()}
    return found


def _group(kind: type) -> Any:
    return field(default_factory=kind, metadata={"group": options_of(kind)})


@dataclass(frozen=True, slots=True)
class Options:
    """All options of ``python -m pipeline.run``. ``batch_size`` None: chosen by device; ``part`` None: all of the run.

    ``given``: every option as it was set or is by default, name -> plain value, for people.
    """

    data: DataOptions = _group(DataOptions)
    layers: tuple[str, ...] = option(["relu4_1"], _LAYERS_RULE, _layers)
    reduce: tuple[str, ...] = option([], _REDUCE_RULE, _texts)
    reduction: Parameters = field(default_factory=dict, metadata={"group": _REDUCTIONS})
    # A larger batch is a slip of the keyboard: it is only what is read ahead.
    batch_size: int | None = number(AUTO, 1, 65536)
    network: NetworkOptions = _group(NetworkOptions)
    output: OutputOptions = _group(OutputOptions)
    name: str = text(None, *_NAME)
    part: Share | None = option(None, "k/n with k from 1 to n, e.g. part=3/8, or null for the whole run", _share)
    dry_run: bool = switch(False)
    engine: EngineOptions = _group(EngineOptions)
    runtime: RuntimeOptions = _group(RuntimeOptions)
    given: Mapping[str, Any] = field(default_factory=dict)
    is_extraction: ClassVar[bool] = True

    def __post_init__(self) -> None:
        model = self.network.model
        if not self.name:
            name = model_name(model) if model else self.network.name
            object.__setattr__(self, "name", f"{self.data.name or 'images'}-{name}")
        if self.data.size == AUTO:
            size = default_size(model) if model else DEFAULT_SIZE_PX
            object.__setattr__(self, "data", replace(self.data, size=size))
        _refuse_conflicts(self)
        # From the network's table alone. Keras would build its graph.
        if self.is_extraction and self.network.name != KERAS:
            self.features()

    def table(self, pool_padding: str = AUTO) -> VggTable | KerasTable:
        """Return the layers of the network; ``auto``: with the padding that can be told without the weights."""
        network = self.network
        if network.model is not None:
            assert self.data.size is not None
            return KerasTable(network.model, self.data.size)
        paddings = pool_padding, network.pool_padding, expected_padding(network.name, network.weights)
        return VggTable(network.name, next(padding for padding in paddings if padding != AUTO))

    def features(self, pool_padding: str = AUTO, rows: int | None = None) -> tuple[FeatureSpec, ...]:
        """Return what is to be stored; see :meth:`table` and :func:`~pipeline.network.reductions.resolve_features`."""
        words = self.layers, self.reduce, parameters_of_results(self.reduction)
        return resolve_features(self.table(pool_padding), *words, size_px=self.data.size, rows=rows)

    @property
    def folder(self) -> Path:
        """The run folder; at an address, what stands for it."""
        return run_folder(self.output, self.name, self.part.mark if self.part else "")


def run_folder(output: FolderOptions, name: str, mark: str = "") -> Path:
    """Return the run folder of this name; ``mark``: of one of several processes that write it."""
    where = output.dir / name
    return RemotePath(str(where), scratch_for(str(where), output.scratch, mark)) if isinstance(where, RemotePath) else where


def _refuse_conflicts(options: Options) -> None:
    data, network, output, engine, given = options.data, options.network, options.output, options.engine, options.given
    device, backend, precision = options.runtime.device, options.runtime.backend, options.runtime.precision
    is_keras, is_ray = network.name == KERAS, engine.name == "ray"
    # Beside a list or a set data.dir says where it is.
    sources = [key for key in SOURCES[1:] if given[key] is not None]
    has_images = sources or data.dir or not options.is_extraction
    is_shared = options.part is not None and output.existing not in ("resume", "extend")
    words = [word for word in WEIGHTS if (word in KERAS_WEIGHTS if is_keras else files_for(network.name, False, word))]
    # Option, whether it is wrong, what is wrong, what is expected.
    rules: list[tuple[str, object, str, str]] = [
        ("data.dir", not has_images, "no images are named", "data.dir=FOLDER, data.list, data.tar or data.tfds"),
        ("".join(sources[-1:]), len(sources) > 1, "the images are named twice", f"this or {sources[:1]} alone"),
        ("data.dir", data.dir and data.tar, "of no use beside data.tar", "tar files alone"),
        ("data.dir", data.tfds and isinstance(data.dir, RemotePath), "read from this machine only", "a path"),
        ("data.split", data.split and not data.tfds, "only a set has splits", "data.tfds=NAME too"),
        ("data.decode", not data.size and data.decode == "fast", "nothing is reduced at native size", "exact, or a data.size"),
        ("output.existing", is_shared, f"others than part={options.part} may write here", "resume or extend"),
        ("part", is_ray and options.part, "engine=ray divides the run itself", "null, or engine=local"),
        ("output.dir", is_ray and isinstance(output.dir, RemotePath), "workers of engine=ray write files", "a folder they share"),
        ("engine.name", not is_ray and engine != EngineOptions(), "workers are those of a cluster", "engine=ray too"),
        ("data.size", is_keras and not data.size, "native size is of networks of VGG alone", "a size, or auto"),
        ("network.model", is_keras and not network.model, "no model is named", "a name or a .keras file, e.g. ResNet50"),
        ("network.weights", {*WEIGHTS} - {*words} >= {network.weights}, "none such are known", f"{', '.join(words)} or a file"),
        ("runtime.backend", is_keras and backend == WINOGRAD, "of VGG networks alone", "auto or tensorflow"),
        ("runtime.precision", is_keras and precision == "bfloat16", "of VGG networks alone", "float32 or tf32"),
        ("runtime.backend", backend == WINOGRAD and device == "gpu", "this one computes on a CPU", "auto or tensorflow"),
        ("runtime.precision", device == "cpu" and precision != "float32", "a CPU computes in float32", "that, or a GPU"),
    ]
    others, unused = ("VGG", ("pooling", "pool_padding", "kernel_order")) if is_keras else (KERAS, ("model", "preprocess"))
    for key in (f"network.{key}" for key in unused):
        rules.append((key, given[key] != defaults()[key], f"of networks of {others} alone", "another network, or none of it"))
    for key, is_wrong, what, expected in rules:
        if is_wrong:
            raise OptionError(f"{key}: {what}, got {given[key]!r}. Expected {expected}.")


class LayersOptions(Options):
    """All options of ``python -m pipeline.layers``, which needs no images, and shows layers that do not fit, too."""

    is_extraction = False


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """All options of ``python -m pipeline.index``; the other commands that take a run have it too."""

    run: Path = path(None, "run", "a run folder, e.g. run=outputs/imgs-vgg19", takes_null=False)


@dataclass(frozen=True, slots=True)
class VerifyOptions(IndexOptions):
    """All options of ``python -m pipeline.verify``."""

    repair: bool = switch(False)


@dataclass(frozen=True, slots=True)
class ShowOptions(IndexOptions):
    """All options of ``python -m pipeline.show``."""

    json: bool = switch(False)


@dataclass(frozen=True, slots=True)
class ReduceOptions(IndexOptions):
    """All options of ``python -m pipeline.reduce``; ``layers`` None: all that are stored. ``given`` as of :class:`Options`."""

    layers: tuple[str, ...] | None = option(None, "a list of stored layers, e.g. layers=[relu4_1:avg,relu5_1:gem:l2]", _layers)
    reduce: tuple[str, ...] = option([], _REDUCE_RULE, _texts)
    reduction: Parameters = field(default_factory=dict, metadata={"group": _REDUCTIONS})
    output: FolderOptions = _group(FolderOptions)
    name: str = text(None, *_NAME)
    given: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.layers is None and not self.reduce:
            raise OptionError("layers: no reduction is named, got null. Expected e.g. layers=[relu4_1:avg], or reduce=[avg].")
        if not self.name:
            folder = self.run.parent if self.run.suffix == ".h5" else self.run
            object.__setattr__(self, "name", f"{folder.name or folder.resolve().name}-reduced")

    @property
    def folder(self) -> Path:
        """The run folder that is written."""
        return run_folder(self.output, self.name)


@dataclass(frozen=True, slots=True)
class ExportOptions(IndexOptions):
    """All options of ``python -m pipeline.export``; ``file`` None: beside the run."""

    format: str = choice("npy", "npy", "parquet", "zarr")
    layers: tuple[str, ...] = option("all", _STORED_RULE, _layers)
    failed: str = choice("drop", "drop", "nan")
    file: Path | None = option(None, "a path on this machine", _local, **_TEXT)


def _image(value: Any) -> int | str:
    right(value, isinstance(value, (str, int)) and not isinstance(value, bool) and value != "")
    # What is taken as typed comes as text, whatever it looks like.
    return int(value) if re.fullmatch(r"-?[0-9]{1,12}", str(value)) else str(value)


def _images(value: Any) -> tuple[int | str, ...]:
    wanted = [value] if isinstance(value, (str, int)) else value
    return right(tuple(map(_image, wanted)), wanted)


def _picture(value: Any) -> str:
    return os.path.expanduser(str(right(value, re.search(r"(?i)\.(png|pdf|svg)$", value))))


def _channels(value: Any) -> Any:
    if isinstance(value, str):
        return right(value, re.fullmatch(r"active:0*[1-9][0-9]{0,8}", value))
    if type(value) is int:
        return right(range(value), value > 0)
    are_right = all(type(number) is int and 0 <= number <= MOST_COMPONENTS for number in value)
    return right(tuple(value), value and are_right and len({*value}) == len(value))


@dataclass(frozen=True, slots=True)
class PlotOptions(IndexOptions):
    """All options of ``python -m pipeline.plot``; the README says what they mean."""

    image: int | str | None = option(None, "a key as cats/tom.jpg, or a row as 3", _image, **_TEXT)
    # Keys and rows, negative ones from the end, that of `image` too; none: the first image that is ok.
    images: tuple[int | str, ...] = option(None, "a list of keys and rows, e.g. images=[3,cats/tom.jpg]", _images)
    layers: tuple[str, ...] = option("all", _STORED_RULE, _layers)
    channel: int = number(0, 0, MOST_COMPONENTS)
    # Those of a mosaic: a range, of which a layer may have fewer, or a list; None: no mosaic.
    channels: range | tuple[int, ...] | None = option(None, "a number, a list of channels as [0,5,9], or active:64", _channels)
    scale: str = choice("own", "own", "shared")
    colormap: str = text("gray", "the name of one of Matplotlib's colour maps")
    input: bool | str = option(True, "true, false or only", lambda value: right(value, value in (True, False, "only")))
    exact: bool = switch(False)
    file: str | None = option(None, "a name that ends in .png, .pdf or .svg", _picture, **_TEXT)
    dpi: int = number(100, 20, 1200)
    show: bool = switch(False)
    most_active: int | None = field(default=None, init=False)  # channels of a mosaic, the most active of each layer

    def __post_init__(self) -> None:
        if isinstance(self.channels, str):
            object.__setattr__(self, "most_active", int(self.channels.partition(":")[2]))
            object.__setattr__(self, "channels", range(self.most_active or 0))
        own = () if self.image is None else (self.image,)
        object.__setattr__(self, "images", own + (self.images or ()))
        if self.channel and self.channels is not None:
            raise OptionError(f"channel: of no use beside channels, got {self.channel}. Expected one of the two. Leave one out.")
        if self.input == "only" and self.file is not None and not self.file.lower().endswith(".png"):
            raise OptionError(f"file: the input is drawn pixel for pixel, got {self.file!r}. Expected a name that ends in .png.")


# Command -> class of its options.
COMMANDS: dict[str, type] = {
    **{"run": Options, "layers": LayersOptions, "reduce": ReduceOptions, "export": ExportOptions, "plot": PlotOptions},
    **{"show": ShowOptions, "verify": VerifyOptions, "index": IndexOptions},
}


def defaults(kind: type = Options) -> dict[str, Any]:
    """Return the full name of each option, ``data.dir``, ``layers`` ..., -> default as a user would write it."""
    return {key: metadata["default"] for key, metadata in options_of(kind).items()}


# Options whose value is a piece of text and nothing else, of any command.
TEXT_OPTIONS = {key for kind in COMMANDS.values() for key, of in options_of(kind).items() if of.get("is_text")}


def to_yaml(values: Mapping[str, Any]) -> str:
    """Return nested plain values as they are stored with a run."""
    return str(yaml.safe_dump(dict(values), allow_unicode=True, sort_keys=False))


def parse_config(text: str) -> dict[str, Any]:
    """Return the options of a run from their YAML, nested; none if it is not that of a run."""
    config = yaml.safe_load(text)
    return config if isinstance(config, dict) else {}


def unknown_key(key: str, known: Iterable[str]) -> OptionError:
    """Return the error for an option that is not among the known ones."""
    # By the last word alone: "resize" means data.resize.
    last_words = {name: name.rpartition(".")[2] for name in known}
    words = nearest(key.rpartition(".")[2], {*last_words.values()}).split(", ")
    near = nearest(key, [name for name, word in last_words.items() if word in words])
    if key == "runtime.convolution":
        near = "runtime.backend, which replaces it"
    return OptionError(f"{key}: there is no such option, got {key!r}. Expected one of: {near}. Run the command with --help.")


def check_options(values: Mapping[str, Any], kind: Any = Options) -> Any:
    """Return the options of a command, each checked, also against one another; ``values``: nested, plain, of those that are set.

    Raises:
        OptionError: The first value that is wrong, and what was expected.
    """
    options, given, checked = options_of(kind), defaults(kind) | flat(values), dict[str, Any]()
    for key, value in given.items():
        if key not in options:
            raise unknown_key(key, options)
        try:
            checked[key] = options[key]["check"](value)
        except (ValueError, TypeError):
            rule = options[key]["rule"]
            raise OptionError(f"{key}: not a valid value, got {value!r}. Expected {rule}. Run the command with --help.") from None
        if options[key].get("is_read") and value is not None:
            given[key] = list(checked[key]) if isinstance(checked[key], tuple) else str(checked[key])
    makers: dict[str, Any] = {each.name: each.default_factory for each in fields(kind)}
    made = {name: makers[name](**value) if isinstance(value, dict) else value for name, value in nested(checked).items()}
    return kind(**made, **({"given": given} if "given" in makers else {}))


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as Python gives them, named by their last words or in full, as nested ones of YAML's types."""
    # Those of the command alone make no run to be returned.
    names = {_python_name(name): name for name in defaults() if name not in ("dry_run", "part")}
    names |= {name: name for name in names.values()}
    for word in options:
        if word not in names:
            raise unknown_key(word, names)
    # NumPy's numbers and arrays, and paths.
    plain = json.dumps(options, default=lambda value: value.tolist() if hasattr(value, "tolist") else os.fspath(value))
    return nested({names[word]: value for word, value in json.loads(plain).items()})


def _python_name(name: str) -> str:
    """Return the last word of an option's name, or two where one would not say what it is: ``output_dir``, ``gem_p``."""
    if name.startswith("reduction.") or name in ("output.dir", "engine.address", "engine.workers"):
        return name.removeprefix("reduction.").replace(".", "_")
    return name.removesuffix(".name").rpartition(".")[2]
