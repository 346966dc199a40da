"""All options of all commands: their names, types, defaults, rules and checks, each in one place.

A class of options has one field an option. Its annotation is the type after the check, its metadata hold the default as a user
would write it, the rule in words and the check. ``conf/*.yaml`` has the same names and defaults with a comment each, for Hydra
and for people; a test compares them. Loads neither Hydra nor TensorFlow, so that a wrong option is answered at once.
"""

# Paths are texts here, and stay as they are written; `option` and its like make fields, as `dataclasses.field` does.
# ruff: noqa: PTH100, PTH111, PTH119, PTH120, RUF009

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from .errors import OptionError, nearest
from .network import keras_models
from .network.architectures import NETWORKS, WINOGRAD, VggTable
from .network.keras_models import KERAS, KerasTable
from .network.known_weights import expected_padding, files_for
from .network.reductions import resolve_features
from .records import FeatureSpec
from .sharding import Share
from .storage import RemotePath, expanded, is_address, path_of, scratch_for

AUTO = "auto"
# A larger side is a slip of the keyboard: one image of it would need 17 GB for conv1_1 alone.
LARGEST_SIDE_PX = 8192
# Of VGG networks. Source: Simonyan & Zisserman, section 2.1.
DEFAULT_SIZE_PX = (224, 224)
# A larger batch is one too: it is only what is read ahead.
LARGEST_BATCH = 65536
# Source: numpy.random.PCG64 takes any non-negative integer; 64 bits are what a seed needs.
LARGEST_SEED = 2**64 - 1
# More than any layer has.
MOST_CHANNELS = 2**20
MOST_COMPONENTS = 2**24
# What network.weights may say besides the path of a file.
WEIGHTS = ("imagenet", "matconvnet", "torchvision", "random")
# Formats of pictures that are drawn.
PICTURE_SUFFIXES = (".png", ".pdf", ".svg")
TAR_SUFFIX = ".tar"
# Of a Ray cluster. An address of version 6 stands in brackets.
_CLUSTER = re.compile(r"(?:ray://)?(?:[\w.-]+|\[[0-9a-fA-F:]+\]):(\d{1,5})", re.ASCII)
# Source: tensorflow_datasets.core.naming, names of sets, configurations and versions.
_TFDS_NAME = re.compile(r"[A-Za-z_]\w*(/[\w.+-]+)?(:\d+\.\d+\.\d+)?")
# Of a split: what lies in a slice of one, train[:10%], would be other images in other versions of a set.
_SPLIT = re.compile(r"[\w.-]+")
# What makes the path of a tar file a pattern or a range.
_PATTERN = re.compile(r"[*?\[{]")
# Options of earlier versions, by their last word, and what replaces them.
REPLACED = {"convolution": "runtime.backend, which replaces it"}
# Of what a run is made from.
_READ_PATHS = ("data.dir", "data.list", "data.tar", "network.model", "network.weights", "reduction.pca.fit")

# Of options that several commands have.
_NAME_RULE = "the name of one folder, without / \\ or :"
_REDUCE_RULE = "a list of reductions, applied one after the other, e.g. reduce=[gem,l2]"
_STORED_RULE = "a list of names, patterns, blocks or all, e.g. layers=[relu4_1,block5]"

T = TypeVar("T")


def option(default: Any, rule: str, check: Callable[[Any], Any], **metadata: Any) -> Any:
    """Declare an option; ``default``: as a user would write it, where it is None, that is right too; ``rule``: in words.

    ``check`` makes a checked value of a plain one, or raises ValueError or TypeError.
    """

    def checked(value: Any) -> Any:
        return None if value is None and default is None else check(value)

    return field(default=checked(default), metadata={"default": default, "rule": rule, "check": checked, **metadata})


def right(value: T, is_right: object) -> T:
    """Return a value that is right; raise ValueError for another."""
    if not is_right:
        raise ValueError(value)
    return value


def choice(default: str, *values: str) -> Any:
    """Declare an option with a fixed set of values."""
    return option(default, f"one of: {', '.join(values)}", lambda value: right(value, value in values), choices=values)


def switch(default: bool) -> Any:
    """Declare an option that is true or false."""
    return option(default, "true or false", lambda value: right(value, isinstance(value, bool)))


def whole(default: int | str, least: int, most: int) -> Any:
    """Declare a whole number; where the default is ``auto``, that is right too and becomes None."""

    def check(value: Any) -> int | None:
        return None if value == AUTO == default else right(value, type(value) is int and least <= value <= most)

    return option(default, f"{'auto or ' * (default == AUTO)}a whole number from {least} to {most}", check)


def number(default: float | str, least: float, most: float) -> Any:
    """Declare a number above one and up to another; where the default is ``auto``, that is right too and becomes None."""

    def check(value: Any) -> float | None:
        return None if value == AUTO == default else float(right(value, not isinstance(value, bool) and least < value <= most))

    return option(default, f"{'auto or ' * (default == AUTO)}a number above {least:g}, at most {most:g}", check)


def path(default: str | None, key: str) -> Any:
    """Declare a path, or an address that something installed can reach."""
    return option(default, "a path", lambda value: path_of(key, _text(value)))


def _matching(pattern: re.Pattern[str]) -> Callable[[Any], Any]:
    return lambda value: right(value, pattern.fullmatch(value))


def _text(value: Any) -> str:
    """Check a text that is not empty; Hydra reads 2024 as a number, here it is a name."""
    text = "" if value is None else str(value)
    return right(text, text and "\0" not in text)


def _texts(value: Sequence[Any]) -> tuple[str, ...]:
    return right(tuple(value), value and all(isinstance(text, str) and text and "\0" not in text for text in value))


def _local(value: Any) -> Path:
    return expanded(right(_text(value), not is_address(str(value))))


def _fraction(value: Any) -> float:
    return float(right(value, not isinstance(value, bool) and 0 <= value <= 1))


def _size(value: Any) -> Any:
    if value is None:
        return None
    if value == AUTO:
        return AUTO
    height, width = (value, value) if isinstance(value, int) else value
    return right((height, width), all(type(side) is int and 1 <= side <= LARGEST_SIDE_PX for side in (height, width)))


def _layers(value: Any) -> tuple[str, ...]:
    # One name, or several with commas, needs no brackets.
    return _texts([part for part in value.split(",") if part.strip()] if isinstance(value, str) else value)


def _chain(value: Any) -> tuple[str, ...]:
    return _layers(value) if value else ()


def _weights(value: Any) -> str:
    text = _text(value)
    return text if text in WEIGHTS else str(right(expanded(text), expanded(text).exists()))


def _name(value: Any) -> str:
    name = _text(value)
    return right(name, name not in (".", "..") and not {*name} & {*"/\\:"})


def _cluster(value: str) -> str:
    found = _CLUSTER.fullmatch(value)
    return right(value, value == AUTO or (found and 0 < int(found[1]) < 65536))


@dataclass(frozen=True, slots=True)
class DataOptions:
    """Which images, and how they are brought to size."""

    dir: Path | None = path(None, "data.dir")  # beside a list what its paths are relative to, beside a set where sets are kept
    list: Path | None = path(None, "data.list")
    tar: tuple[str, ...] | None = option(
        None,
        "a tar file, a folder of them, a pattern, or a list of these, e.g. 'data.tar=train-{000..012}.tar'",
        lambda value: _texts([value] if isinstance(value, str) else value),
    )
    tfds: str | None = option(None, "a set's name: name, name/config or name:1.0.0", _matching(_TFDS_NAME))
    split: str | None = option(None, "a whole split, e.g. train, test or validation", _matching(_SPLIT))
    # (height, width) in px, or None for native size; `auto` until it stands in Options.
    size: Any = option(AUTO, f"a side from 1 to {LARGEST_SIDE_PX} px, [height,width], auto, or null for native size", _size)
    resize: str = choice("squash", "squash", "crop", "pad")
    interpolation: str = choice("bilinear", "nearest", "bilinear", "bicubic", "lanczos")
    decode: str = choice("exact", "exact", "fast")
    label: str = option("folder", "folder, parent, or the name of a column", _text)
    max_failed_fraction: float = option(1.0, "a number from 0 to 1", _fraction)

    @property
    def name(self) -> str:
        """What a run of these images is called; "" for a folder without a name."""
        if self.tfds is not None:
            return "-".join([re.split("[/:]", self.tfds)[0], *([self.split] if self.split else [])])
        if self.tar is not None:
            (first, *others) = self.tar
            # Of the only tar file, else of the folder that they are in.
            is_one = not others and not names_a_folder(first) and not _PATTERN.search(first)
            return Path(first).stem if is_one else os.path.basename(tar_folder(self.tar))
        if self.list is not None:
            return self.list.stem
        # Also of "." and "imgs/..".
        return self.dir.name if isinstance(self.dir, RemotePath) else self.dir.resolve().name if self.dir else ""


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """Which network, with which weights; a group of files in ``conf/network``. Model and preprocessing are of ``keras``."""

    name: str = choice("vgg19", *sorted(NETWORKS), KERAS)
    model: str | None = option(None, "a model", lambda value: keras_models.check_model(_text(value)))
    preprocess: str = choice(AUTO, AUTO, *keras_models.MODES)
    weights: str = option("imagenet", f"one of: {', '.join(WEIGHTS)}, or a file that exists", _weights)
    pooling: str = choice("max", "max", "avg")
    pool_padding: str = choice(AUTO, AUTO, "same", "valid")
    kernel_order: str = choice("hwio", "hwio", "whio")
    seed: int = whole(0, 0, LARGEST_SEED)


_MATRIX = {"n_components": whole(AUTO, 1, MOST_COMPONENTS), "eps": number(0.1, 0, 0.99), "seed": whole(0, 0, LARGEST_SEED)}
# Reduction -> its parameters, one value for all of a run. Their meanings: the README and pipeline/network/reductions.py.
REDUCTIONS: dict[str, dict[str, Any]] = {
    "gem": {"p": number(3.0, 0, 100), "eps": number(1e-6, 0, 1)},
    "rmac": {"levels": whole(3, 1, 10)},
    "grid": {"side": whole(2, 1, 64)},
    "gram": {"form": choice("triangle", "triangle", "full")},
    "units": {"n_components": whole(5000, 1, MOST_COMPONENTS), "seed": whole(0, 0, LARGEST_SEED)},
    "srp": {**_MATRIX, "density": number(AUTO, 0, 1)},
    "gaussian": _MATRIX,
    "pca": {
        "n_components": whole(256, 1, MOST_COMPONENTS),
        "whiten": switch(False),
        "fit_images": whole(2048, 2, 2**31),
        "fit": path(None, "reduction.pca.fit"),
        "seed": whole(0, 0, LARGEST_SEED),
    },
}
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
    scratch: Path | None = option(None, "a folder of this machine: files are made there before they are sent", _local)
    compression: str = choice("gzip", "gzip", "none")
    images_per_shard: int | None = whole(AUTO, 1, 2**31)
    existing: str = choice("resume", "resume", "extend", "replace", "fail")


@dataclass(frozen=True, slots=True)
class OutputOptions(FolderOptions):
    """Of an extraction: how values are stored besides."""

    dtype: str = choice("float32", "float32", "float16")
    overflow: str = choice("fail", "fail", "row")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Which processes make the shards, a group of files in ``conf/engine``; another changes no more than another machine.

    None: of ``address``, a cluster for this run alone; of the others, as the resources of the cluster allow.
    """

    name: str = choice("local", "local", "ray")
    address: str | None = option(None, "null, auto, host:port or ray://host:port", _cluster)
    workers: int | None = whole(AUTO, 1, 100_000)
    gpus_per_worker: float | None = option(
        AUTO,
        "auto, 1, 0 or a share between them: a worker uses one GPU at most",
        lambda value: None if value == AUTO else _fraction(value),
    )
    cpus_per_worker: int | None = whole(AUTO, 1, 1024)


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """How this machine does it; changes no number beyond the tolerances of the contract. ``workers`` None: all cores.

    ``device`` is ``cpu`` where the backend was chosen and computes on nothing else.
    """

    device: str = choice(AUTO, AUTO, "cpu", "gpu")
    backend: str = choice(AUTO, AUTO, "tensorflow", WINOGRAD)
    precision: str = choice("float32", "float32", "tf32", "bfloat16")
    workers: int | None = whole(AUTO, 1, 1024)

    def __post_init__(self) -> None:
        if self.backend == WINOGRAD and self.device == AUTO:
            object.__setattr__(self, "device", "cpu")


@dataclass(frozen=True, slots=True)
class Options:
    """All options of ``python -m pipeline.run``, checked, also against one another.

    ``batch_size`` None: chosen by device. ``name`` is the run folder's. ``part`` None: all of the run. ``given`` has every option
    as it was set or is by default, name -> plain value, for people.
    """

    data: DataOptions = field(default_factory=DataOptions)
    layers: tuple[str, ...] = option(
        ["relu4_1"], "a list of names, patterns, blocks or all, e.g. layers=[relu4_1,block5,relu5_1:gem:l2]", _layers
    )
    reduce: tuple[str, ...] = option([], _REDUCE_RULE, _chain)
    reduction: Parameters = field(default_factory=dict)
    batch_size: int | None = whole(AUTO, 1, LARGEST_BATCH)
    network: NetworkOptions = field(default_factory=NetworkOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    name: str = option(None, _NAME_RULE, _name)
    part: Share | None = option(
        None,
        "k/n with k from 1 to n, e.g. part=3/8, or null for the whole run",
        lambda value: right(share := Share.of_text(value), share),
    )
    dry_run: bool = switch(False)
    engine: EngineOptions = field(default_factory=EngineOptions)
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    given: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        network = self.network
        if not self.name:
            name = keras_models.model_name(network.model) if network.model else network.name
            object.__setattr__(self, "name", f"{self.data.name or 'images'}-{name}")
        if self.data.size == AUTO:
            size = keras_models.default_size(network.model) if network.model else DEFAULT_SIZE_PX
            object.__setattr__(self, "data", replace(self.data, size=size))
        if message := next(_conflicts(self), ""):
            raise OptionError(message)
        # Names that are not there and inputs that are too small, from the network's table alone. Keras would build its graph.
        if network.name != KERAS:
            self.features()

    def table(self, pool_padding: str = AUTO) -> VggTable | KerasTable:
        """Return the layers of the network; ``auto``: with the padding that can be told without the weights."""
        network = self.network
        if network.model is not None:
            return KerasTable(network.model, self.data.size)
        if pool_padding == AUTO:
            pool_padding = network.pool_padding
        return VggTable(network.name, expected_padding(network.name, network.weights) if pool_padding == AUTO else pool_padding)

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


def _conflicts(options: Options) -> Iterator[str]:
    """Yield a line for each two options that exclude each other."""
    data, output, engine, runtime, part = options.data, options.output, options.engine, options.runtime, options.part
    named = [f"data.{key}" for key in ("list", "tar", "tfds") if getattr(data, key) is not None]
    if data.dir is None and not named:
        yield "data.dir: no images are named, got null. Expected data.dir=FOLDER, data.list=..., data.tar=... or data.tfds=..."
    if len(named) > 1:
        yield f"{named[1]}: the images are named twice, got {named[0]} too. Expected one of the two. Leave the other out."
    if data.tar is not None and data.dir is not None:
        yield f"data.dir: of no use beside data.tar, got {str(data.dir)!r}. Expected tar files alone. Leave it out."
    if data.split is not None and data.tfds is None:
        yield f"data.split: only a set has splits, got {data.split!r}. Expected data.tfds=NAME too. Leave it out."
    for name in filter(is_address, [*(data.tar or ()), *([str(data.dir)] if data.tfds else [])]):
        key = "data.tar" if data.tar else "data.dir"
        yield f"{key}: read from this machine only, got {name!r}. Expected a path. Download it first."
    if data.size is None and data.decode == "fast":
        yield "data.decode: nothing can be reduced at native size, got fast. Expected exact. Or set a data.size."
    if part and output.existing not in ("resume", "extend"):
        yield f"output.existing: other parts may write here, got {output.existing} with part={part}. Expected resume or extend."
    if engine.name == "local" and engine != EngineOptions():
        yield f"engine: workers are those of a cluster, got options of them with engine={engine.name}. Expected engine=ray too."
    if engine.name != "local" and part:
        yield f"part: engine={engine.name} divides the run itself, got part={part}. Expected null, or engine=local."
    if engine.name != "local" and isinstance(output.dir, RemotePath):
        yield f"output.dir: workers of engine={engine.name} write files, got {str(output.dir)!r}. Expected a folder they share."
    network, is_keras = options.network, options.network.name == KERAS
    for key in ("pooling", "pool_padding", "kernel_order") if is_keras else ("model", "preprocess"):
        if (value := getattr(network, key)) != getattr(NetworkOptions(), key):
            which = "VGG networks" if is_keras else "networks of Keras"
            yield f"network.{key}: of {which} alone, got {value} with network={network.name}. Leave it out."
    sources = [word for word in WEIGHTS if (word in keras_models.SOURCES if is_keras else files_for(network.name, False, word))]
    if network.weights in WEIGHTS and network.weights not in sources:
        expected = f"one of: {', '.join(sources)}, or a file"
        yield f"network.weights: there are none such of {network.name}, got {network.weights}. Expected {expected}."
    if is_keras:
        if network.model is None:
            yield "network.model: no model is named, got null. Expected a name or a .keras file, e.g. network.model=ResNet50."
        for key, value in ("backend", WINOGRAD), ("precision", "bfloat16"):
            if getattr(runtime, key) == value:
                yield f"runtime.{key}: of VGG networks alone, got {value} with network=keras. Expected another. Leave it out."
    if runtime.backend == WINOGRAD and runtime.device == "gpu":
        yield "runtime.backend: this one computes on a CPU, got winograd with runtime.device=gpu. Expected auto or tensorflow."
    if runtime.device == "cpu" and runtime.precision != "float32":
        yield f"runtime.precision: a CPU computes in float32, got {runtime.precision}. Expected float32, or runtime.device=gpu."
    if engine.gpus_per_worker is not None and runtime.device == ("cpu" if engine.gpus_per_worker else "gpu"):
        got = f"{engine.gpus_per_worker:g} with runtime.device={runtime.device}"
        yield f"engine.gpus_per_worker: not the device of the workers, got {got}. Expected one of the two. Leave the other out."


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """All options of ``python -m pipeline.index``."""

    run: Path = path(None, "run")


@dataclass(frozen=True, slots=True)
class VerifyOptions(IndexOptions):
    """All options of ``python -m pipeline.verify``."""

    repair: bool = switch(False)


@dataclass(frozen=True, slots=True)
class ShowOptions(IndexOptions):
    """All options of ``python -m pipeline.show``."""

    json: bool = switch(False)


@dataclass(frozen=True, slots=True)
class ReduceOptions:
    """All options of ``python -m pipeline.reduce``; ``layers`` None: all that are stored. ``given`` as of :class:`Options`."""

    run: Path = path(None, "run")
    layers: tuple[str, ...] | None = option(None, "a list of stored layers, e.g. layers=[relu4_1:avg,relu5_1:gem:l2]", _layers)
    reduce: tuple[str, ...] = option([], _REDUCE_RULE, _chain)
    reduction: Parameters = field(default_factory=dict)
    output: FolderOptions = field(default_factory=FolderOptions)
    name: str = option(None, _NAME_RULE, _name)
    given: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.layers is None and not self.reduce:
            raise OptionError(
                "layers: no reduction is named, got null. Expected e.g. layers=[relu4_1:avg], or reduce=[avg] for all that are "
                "stored. Run `python -m pipeline.reduce --help` for all."
            )
        if not self.name:
            folder = self.run.parent if self.run.suffix == ".h5" else self.run
            object.__setattr__(self, "name", f"{folder.name or folder.resolve().name}-reduced")

    @property
    def folder(self) -> Path:
        """The run folder that is written."""
        return run_folder(self.output, self.name)


def _failed(value: Any) -> str:
    # Hydra reads nan as a number.
    return right(str(value), str(value) in ("drop", "nan"))


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """All options of ``python -m pipeline.export``; ``file`` None: beside the run."""

    run: Path = path(None, "run")
    format: str = choice("npy", "npy", "parquet", "zarr")
    layers: tuple[str, ...] = option("all", _STORED_RULE, _layers)
    failed: str = option("drop", "drop or nan", _failed)
    file: Path | None = option(None, "a path on this machine", _local)
    existing: str = choice("fail", "fail", "replace")


def _image(value: Any) -> int | str:
    right(value, isinstance(value, (str, int)) and not isinstance(value, bool) and value != "")
    # What is taken as typed comes as text, whatever it looks like.
    return int(value) if re.fullmatch(r"-?[0-9]{1,12}", str(value)) else str(value)


def _images(value: Any) -> tuple[int | str, ...]:
    wanted = [value] if isinstance(value, (str, int)) else value
    return right(tuple(map(_image, wanted)), wanted)


def _channels(value: Any) -> Any:
    if isinstance(value, str):
        return right(value, re.fullmatch(r"active:0*[1-9][0-9]{0,8}", value))
    numbers = range(value) if type(value) is int else tuple(value)
    are_right = type(value) is int or all(type(number) is int and 0 <= number <= MOST_CHANNELS for number in numbers)
    return right(numbers, numbers and are_right and len({*numbers}) == len(numbers))


@dataclass(frozen=True, slots=True)
class PlotOptions:
    """All options of ``python -m pipeline.plot``; ``conf/plot.yaml`` says what they mean."""

    run: Path = path(None, "run")
    image: int | str | None = option(None, "a key as cats/tom.jpg, or a row as 3", _image)
    # Keys and rows, negative ones from the end, that of `image` too; none: the first image that is ok.
    images: tuple[int | str, ...] = option(None, "a list of keys and rows, e.g. images=[3,cats/tom.jpg]", _images)
    layers: tuple[str, ...] = option("all", _STORED_RULE, _layers)
    channel: int = whole(0, 0, MOST_CHANNELS)
    # Those of a mosaic: a range, of which a layer may have fewer, or a list; None: no mosaic.
    channels: range | tuple[int, ...] | None = option(
        None, "a number of channels, a list of different ones as [0,5,9], or active:64", _channels
    )
    scale: str = choice("own", "own", "shared")
    colormap: str = option("gray", "the name of one of Matplotlib's colour maps", _text)
    input: bool | str = option(
        True, "true, false or only", lambda value: right(value, isinstance(value, bool) or value == "only")
    )
    exact: bool = switch(False)
    file: str | None = option(None, "the name of a picture", lambda value: os.path.expanduser(_text(value)))
    dpi: int = whole(100, 20, 1200)
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
        suffixes = PICTURE_SUFFIXES[:1] if self.input == "only" else PICTURE_SUFFIXES
        if self.file is not None and Path(self.file).suffix.lower() not in suffixes:
            what = "picture of the input alone" if self.input == "only" else "picture"
            raise OptionError(
                f"file: not the name of a {what}, got {self.file!r}. Expected one that ends in {', '.join(suffixes)}."
            )


def _options(kind: Any) -> dict[str, Mapping[str, Any]]:
    """Return the full name of each option -> its metadata, in order."""
    found: dict[str, Mapping[str, Any]] = {}
    groups = _groups(kind)
    for each in fields(kind):
        if "check" in each.metadata:
            found[each.name] = each.metadata
        elif each.name == "reduction":
            found |= {f"reduction.{name}.{key}": of.metadata for name, keys in REDUCTIONS.items() for key, of in keys.items()}
        elif each.name in groups:
            found |= {f"{each.name}.{key}": metadata for key, metadata in _options(groups[each.name]).items()}
    return found


def _groups(kind: Any) -> dict[str, Any]:
    """Return the name of each group of options -> its class."""
    return {each.name: each.default_factory for each in fields(kind) if is_dataclass(each.default_factory)}


def defaults(kind: type = Options) -> dict[str, Any]:
    """Return the full name of each option, ``data.dir``, ``layers`` ..., -> default as a user would write it."""
    return {key: metadata["default"] for key, metadata in _options(kind).items()}


CHOICES: dict[str, tuple[str, ...]] = {key: of["choices"] for key, of in _options(Options).items() if "choices" in of}


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


def to_yaml(values: Mapping[str, Any]) -> str:
    """Return nested plain values as they are stored with a run."""
    import yaml

    return str(yaml.safe_dump(dict(values), allow_unicode=True, sort_keys=False))


def parse_config(text: str) -> dict[str, Any]:
    """Return the options of a run from their YAML, nested; none if it is not that of a run."""
    import yaml

    try:
        config = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def check_value(key: str, value: Any, kind: type = Options, module: str = "pipeline.run") -> Any:
    """Return the checked value of an option, given by its full name; arguments as of :func:`check`.

    Raises:
        OptionError: It is not a right one.
    """
    metadata = _options(kind)[key]
    try:
        return metadata["check"](value)
    except (ValueError, TypeError):
        raise OptionError(
            f"{key}: not a valid value, got {value!r}. Expected {metadata['rule']}. Run `python -m {module} --help` for all."
        ) from None


def unknown_key(key: str, kind: type, module: str) -> OptionError:
    """Return the error for an option that does not exist; arguments as of :func:`check`."""
    # "resize" alone means data.resize.
    *_, last = key.split(".")
    last_words = {name: name.rpartition(".")[2] for name in defaults(kind)}
    words = nearest(last, {*last_words.values()}).split(", ")
    near = REPLACED.get(last) or nearest(key, [name for name, word in last_words.items() if word in words])
    return OptionError(
        f"{key}: there is no such option, got {key!r}. Expected one of: {near}. Run `python -m {module} --help` for all."
    )


def check(kind: type[T], values: Mapping[str, Any], module: str = "pipeline.run") -> T:
    """Return the options of the command ``module``, checked; ``values``: plain and nested, those that are not by default.

    Raises:
        OptionError: The first value that is wrong, what was expected, and where to look; two options exclude each other; no layer
            is meant, or the size is too small for one.
    """
    usual = defaults(kind)
    given = usual | flat(values)
    if wrong := next((key for key in given if key not in usual), None):
        raise unknown_key(wrong, kind, module)
    if "run" in given and given["run"] is None:
        raise OptionError(
            f"run: no run was named, got None. Expected a run folder. Run e.g. `python -m {module} run=outputs/imgs-vgg19`."
        )
    checked = nested({key: check_value(key, value, kind, module) for key, value in given.items()})
    if kind in (Options, ReduceOptions):
        checked["given"] = {key: _absolute(key, value) for key, value in given.items()}
    groups = _groups(kind)
    return kind(**{name: groups[name](**value) if name in groups else value for name, value in checked.items()})


def check_options(values: Mapping[str, Any]) -> Options:
    """Return the options of an extraction, checked as by :func:`check`."""
    return check(Options, values)


def _absolute(key: str, value: Any) -> Any:
    """Return the value of an option as it is stored: paths that are read are right in any folder."""
    if isinstance(value, list):
        return [_absolute(key, each) for each in value]
    if value is None or key not in _READ_PATHS or is_address(str(value)):
        return value
    is_word = key.startswith("network.") and value in (*WEIGHTS, *keras_models.MODELS)
    return value if is_word else os.path.abspath(os.path.expanduser(str(value)))


def tar_folder(tars: Sequence[str]) -> str:
    """Return the absolute folder that all of ``data.tar`` is below, whichever files there are: what no pattern is part of."""

    def folder_of(name: str) -> str:
        match = _PATTERN.search(name)
        return name if names_a_folder(name) else os.path.dirname(name[: match.start()] + "x" if match else name)

    return os.path.commonpath([folder_of(os.path.abspath(os.path.expanduser(name))) for name in tars])


def names_a_folder(name: str) -> bool:
    """Tell whether one of ``data.tar`` is a folder; by its name alone, so that it is the same from everywhere."""
    return not _PATTERN.search(name) and TAR_SUFFIX not in os.path.basename(os.path.normpath(name)).lower()
