"""All options of all commands: their names, types, defaults, choices and checks, each in one place.

A class of options has one field an option. Its annotation is the type after the check, its metadata hold the default as a user
would write it and the check. ``conf/*.yaml`` has the same names and defaults with a comment each, for Hydra and for people; a
test compares them. Loads neither Hydra nor TensorFlow, so that a wrong option is answered at once.
"""

# Paths are texts here, and stay as they are written; `option` makes a field, as `dataclasses.field` does.
# ruff: noqa: PTH100, PTH111, PTH119, PTH120, RUF009

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from .errors import OptionError, nearest
from .network.architectures import NETWORKS, WINOGRAD, plan_features, resolve_layers
from .records import Share
from .storage import RemotePath, expanded, is_address, path_of, scratch_for

AUTO = "auto"
# A larger side is a slip of the keyboard: one image of it would need 17 GB for conv1_1 alone.
LARGEST_SIDE_PX = 8192
# A larger batch is one too: it is only what is read ahead.
LARGEST_BATCH = 65536
# Source: numpy.random.PCG64 takes any non-negative integer; 64 bits are what a seed needs.
LARGEST_SEED = 2**64 - 1
# More than any layer has.
MOST_CHANNELS = 2**20
# What network.weights may say besides the path of a file.
WEIGHTS = ("imagenet", "matconvnet", "random")
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
# Options of earlier versions, in full and by their last word, and what replaces them.
REPLACED = dict.fromkeys(("runtime.convolution", "convolution"), "runtime.backend")

T = TypeVar("T")


class Invalid(ValueError):
    """A value that a check refuses: ``rule`` says what is right, ``allowed`` has all right values where they can be counted."""

    def __init__(self, rule: str, allowed: Sequence[str] = ()) -> None:
        super().__init__(rule)
        self.rule, self.allowed = rule, allowed


def option(default: Any, check: Callable[[Any], Any]) -> Any:
    """Declare an option: its default as a user would write it, and what turns a plain value into a checked one."""
    return field(default=check(default), metadata={"default": default, "check": check})


@dataclass(frozen=True, slots=True)
class OneOf:
    """The check of an option that has a fixed set of values."""

    values: tuple[str, ...]

    def __call__(self, value: Any) -> str:
        """Return the value if it is one of them."""
        if value not in self.values:
            raise Invalid(f"one of: {', '.join(self.values)}", self.values)
        return str(value)


def choice(default: str, *values: str) -> Any:
    """Declare an option with a fixed set of values."""
    return option(default, OneOf(values))


def conflict(key: str, what: str, got: object, expected: str, advice: str) -> OptionError:
    """Return the error for options that exclude one another; ``got`` is shown as it is."""
    return OptionError(f"{key}: {what}, got {got}. Expected {expected}. {advice}")


def switch(value: Any) -> bool:
    """Check true or false."""
    if not isinstance(value, bool):
        raise Invalid("true or false")
    return value


def text(value: Any, rule: str) -> str:
    """Check a text that is not empty."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise Invalid(rule)
    return value


def whole(value: Any, least: int, most: int) -> int:
    """Check a whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Invalid(f"a whole number from {least} to {most}")
    return value


def count(value: Any, most: int) -> int | None:
    """Check a whole number from 1, or ``auto``, which becomes None."""
    if value == AUTO:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise Invalid(f"auto or a whole number from 1 to {most}")
    return value


def fraction(value: Any, rule: str = "a number from 0 to 1") -> float:
    """Check a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise Invalid(rule)
    return float(value)


def size(value: Any) -> tuple[int, int] | None:
    """Check a side, [height, width], or null for native size."""
    if value is None:
        return None
    sides = [value, value] if isinstance(value, int) else value
    if not isinstance(sides, Sequence) or isinstance(sides, str) or len(sides) != 2:
        sides = [0, 0]
    if any(isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= LARGEST_SIDE_PX for side in sides):
        raise Invalid(f"a side from 1 to {LARGEST_SIDE_PX} px, [height,width], or null for native size")
    return int(sides[0]), int(sides[1])


def layer_words(value: Any) -> tuple[str, ...]:
    """Check names of layers; one name, or several with commas, needs no brackets."""
    words = [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value
    if not isinstance(words, Sequence) or not words or not all(isinstance(word, str) for word in words):
        raise Invalid("a list of names, patterns, blocks or all, e.g. layers=[relu4_1,block5]")
    return tuple(words)


def path_or_address(key: str, value: Any) -> Path:
    """Check a path, or an address that something installed can reach; Hydra reads 2024 as a number, here it is a name."""
    return path_of(key, text(None if value is None else str(value), "a path"))


def optional(check: Callable[[Any], Any], value: Any) -> Any:
    """Check a value, or null, which becomes None."""
    return None if value is None else check(value)


def run_path(value: Any) -> Path:
    """Check what stands for a run."""
    return path_of("run", str(value))


def _tars(value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not names or not all(isinstance(n, str) and n and "\0" not in n for n in names):
        raise Invalid("a tar file, a folder of them, a pattern, or a list of these, e.g. 'data.tar=train-{000..012}.tar'")
    return tuple(names)


def _matching(pattern: re.Pattern[str], rule: str, value: Any) -> str | None:
    if value is None or (isinstance(value, str) and pattern.fullmatch(value)):
        return value
    raise Invalid(rule)


def _weights(value: Any) -> str:
    name = text(value, f"{', '.join(WEIGHTS)} or a file")
    if name not in WEIGHTS and not expanded(name).exists():
        raise Invalid(f"one of: {', '.join(WEIGHTS)}, or a file that exists", WEIGHTS)
    return name if name in WEIGHTS else str(expanded(name))


def _scratch(value: Any) -> Path:
    if is_address(str(value)):
        raise Invalid("a folder of this machine: files are made there before they are sent")
    return expanded(text(str(value), "a path"))


def _name(value: Any) -> str:
    if value is None:
        return ""
    name = text(str(value), "the name of a folder")
    if name in (".", "..") or any(mark in name for mark in "/\\:"):
        raise Invalid("the name of one folder, without / \\ or :")
    return name


def _part(value: Any) -> Share | None:
    share = Share.of_text(value) if isinstance(value, str) else None
    if value is not None and share is None:
        raise Invalid("k/n with k from 1 to n, e.g. part=3/8, or null for the whole run")
    return share


def _gpus(value: Any) -> float | None:
    rule = "auto, 1, 0 or a share between them: a worker uses one GPU at most"
    return None if value == AUTO else fraction(value, rule)


def _cluster(value: Any) -> str | None:
    if value is None or value == AUTO:
        return None if value is None else AUTO
    found = _CLUSTER.fullmatch(value) if isinstance(value, str) else None
    if found is None or not 0 < int(found[1]) < 65536:
        raise Invalid("null, auto, host:port or ray://host:port")
    return str(value)


@dataclass(frozen=True, slots=True)
class DataOptions:
    """Which images, and how they are brought to size.

    Attributes:
        dir: Folder of images; beside a list what its paths are relative to, beside a set where sets are kept.
        list: Text, CSV or Parquet file of paths.
        tar: Tar files: paths, patterns, ranges, folders.
        tfds: Set of TensorFlow Datasets: ``name``, ``name/config``, ``name:1.0.0``.
        split: Of the set.
        size: (height, width) in px, or None for native size.
        label: ``folder``, ``parent``, or the name of a column.
    """

    dir: Path | None = option(None, partial(optional, partial(path_or_address, "data.dir")))
    list: Path | None = option(None, partial(optional, partial(path_or_address, "data.list")))
    tar: tuple[str, ...] | None = option(None, partial(optional, _tars))
    tfds: str | None = option(None, partial(_matching, _TFDS_NAME, "a set's name: name, name/config or name:1.0.0"))
    split: str | None = option(None, partial(_matching, _SPLIT, "a whole split, e.g. train, test or validation"))
    size: tuple[int, int] | None = option(224, size)
    resize: str = choice("squash", "squash", "crop", "pad")
    interpolation: str = choice("bilinear", "nearest", "bilinear", "bicubic", "lanczos")
    decode: str = choice("exact", "exact", "fast")
    label: str = option("folder", partial(text, rule="folder, parent, or the name of a column"))
    max_failed_fraction: float = option(1.0, fraction)

    def __post_init__(self) -> None:
        named = [f"data.{key}" for key in ("list", "tar", "tfds") if getattr(self, key) is not None]
        if self.dir is None and not named:
            expected = "a folder of images, or data.list=FILE, data.tar=FILES or data.tfds=NAME"
            advice = "Run e.g. `python -m pipeline.run data.dir=imgs layers=[relu4_1]`."
            raise conflict("data.dir", "no images were named", "null", expected, advice)
        if len(named) > 1:
            expected = "one of data.dir, data.list, data.tar and data.tfds"
            raise conflict(named[1], "the images are named twice", f"{named[0]} too", expected, "Leave one of them out.")
        if self.tar is not None and self.dir is not None:
            raise conflict("data.dir", "of no use beside data.tar", repr(str(self.dir)), "tar files alone", "Leave it out.")
        if self.split is not None and self.tfds is None:
            raise conflict("data.split", "only a set has splits", repr(self.split), "data.tfds=NAME too", "Leave it out.")
        local = [("data.tar", name) for name in self.tar or ()] + [("data.dir", str(self.dir))] * (self.tfds is not None)
        for key, name in local:
            if is_address(name):
                raise conflict(key, "read from this machine only", repr(name), "a path", "Download it first.")
        if self.size is None and self.decode == "fast":
            raise conflict("data.decode", "nothing can be reduced at native size", "fast", "exact", "Or set a data.size.")

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
    """Which network, with which weights; a group of files in ``conf/network``."""

    name: str = choice("vgg19", *sorted(NETWORKS))
    weights: str = option("imagenet", _weights)
    pooling: str = choice("max", "max", "avg")
    pool_padding: str = choice(AUTO, AUTO, "same", "valid")
    kernel_order: str = choice("hwio", "hwio", "whio")
    seed: int = option(0, partial(whole, least=0, most=LARGEST_SEED))


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """Where results go and how they are stored.

    ``images_per_shard`` None: from the bytes of an image. ``scratch`` None: of an address, in the system's temporary folder.
    """

    dir: Path = option("outputs", partial(path_or_address, "output.dir"))
    scratch: Path | None = option(None, partial(optional, _scratch))
    dtype: str = choice("float32", "float32", "float16")
    compression: str = choice("gzip", "gzip", "none")
    images_per_shard: int | None = option(AUTO, partial(count, most=2**31))
    existing: str = choice("resume", "resume", "extend", "replace", "fail")

    def __post_init__(self) -> None:
        if self.scratch is not None and not isinstance(self.dir, RemotePath):
            expected = "it with an address, e.g. output.dir=s3://bucket/outputs"
            raise conflict("output.scratch", "nothing is made there", repr(str(self.scratch)), expected, "Leave it out.")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Which processes make the shards, a group of files in ``conf/engine``; another changes no more than another machine.

    None: of ``address``, a cluster for this run alone; of the others, as the resources of the cluster allow.
    """

    name: str = choice("local", "local", "ray")
    address: str | None = option(None, _cluster)
    workers: int | None = option(AUTO, partial(count, most=100_000))
    gpus_per_worker: float | None = option(AUTO, _gpus)
    cpus_per_worker: int | None = option(AUTO, partial(count, most=1024))

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if self.name == "local" and value != each.default:
                what, expected = "the local engine is one process on this machine", "the default, or another engine"
                raise conflict(f"engine.{each.name}", what, repr(value), expected, "Add engine=ray.")


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """How this machine does it; changes no number beyond the tolerances of the contract. ``workers`` None: all cores.

    ``device`` is ``cpu`` where the backend was chosen and computes on nothing else.
    """

    device: str = choice(AUTO, AUTO, "cpu", "gpu")
    backend: str = choice(AUTO, AUTO, "tensorflow", WINOGRAD)
    precision: str = choice("float32", "float32", "tf32", "bfloat16")
    workers: int | None = option(AUTO, partial(count, most=1024))

    def __post_init__(self) -> None:
        if self.backend == WINOGRAD and self.device == "gpu":
            got, expected = "winograd with runtime.device=gpu", "auto or tensorflow on a GPU"
            raise conflict("runtime.backend", "this one computes on a CPU", got, expected, "Leave one of them out.")
        if self.backend == WINOGRAD:
            object.__setattr__(self, "device", "cpu")
        if self.device == "cpu" and self.precision != "float32":
            what, advice = "a CPU computes in float32", "Leave it out, or use runtime.device=gpu."
            raise conflict("runtime.precision", what, self.precision, "float32, or a GPU", advice)


@dataclass(frozen=True, slots=True)
class Options:
    """All options of ``python -m pipeline.run``, checked, also against one another.

    ``batch_size`` None: chosen by device. ``name`` is the run folder's. ``part`` None: all of the run. ``given`` has every option
    as it was set or is by default, name -> plain value, for people.
    """

    data: DataOptions = field(default_factory=DataOptions)
    layers: tuple[str, ...] = option(["relu4_1"], layer_words)
    batch_size: int | None = option(AUTO, partial(count, most=LARGEST_BATCH))
    network: NetworkOptions = field(default_factory=NetworkOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    name: str = option(None, _name)
    part: Share | None = option(None, _part)
    dry_run: bool = option(False, switch)
    engine: EngineOptions = field(default_factory=EngineOptions)
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    given: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", f"{self.data.name or 'images'}-{self.network.name}")
        engine, existing, where = self.engine, self.output.existing, self.output.dir
        if self.part is not None and existing not in ("resume", "extend"):
            what, got = "a part cannot tell what was there from what other parts make", f"{existing} with part={self.part}"
            raise conflict("output.existing", what, got, "resume or extend", "Use another name=..., or remove the folder first.")
        if self.part is not None and engine.name != "local":
            what = f"engine={engine.name} shares the shards among its workers itself"
            raise conflict("part", what, f"part={self.part}", "null, or engine=local", "Leave one of them out.")
        if engine.name != "local" and isinstance(where, RemotePath):
            what, advice = (
                f"workers of engine={engine.name} write files",
                "Choose one, or use part=k/n.",
            )
            raise conflict("output.dir", what, repr(str(where)), "a folder on storage that all nodes share", advice)
        for key, images in (("data.dir", self.data.dir), ("data.list", self.data.list)):
            if engine.name != "local" and isinstance(images, RemotePath) and images.protocol == "memory":
                expected = "a folder, or an address that all nodes reach"
                raise conflict(key, "workers do not see the memory of this process", repr(str(images)), expected, "Choose one.")
        gpus, device = engine.gpus_per_worker, self.runtime.device
        if gpus is not None and device != AUTO and (device == "gpu") != (gpus > 0):
            what, expected = f"workers compute on the {device}", f"{'more than ' * (not gpus)}0"
            raise conflict("engine.gpus_per_worker", what, f"{gpus:g}", expected, "Leave it or runtime.device out.")
        # Names that are not there and inputs that are too small, from the network's table alone.
        padding = "same" if self.network.pool_padding == AUTO else self.network.pool_padding
        plan_features(self.network.name, resolve_layers(self.network.name, self.layers), self.data.size, padding)

    @property
    def folder(self) -> Path:
        """The run folder; at an address, what stands for it."""
        where = self.output.dir / self.name
        mark = "" if self.part is None else self.part.mark
        if isinstance(where, RemotePath):
            return RemotePath(str(where), scratch_for(str(where), self.output.scratch, mark))
        return where


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """All options of ``python -m pipeline.verify``."""

    run: Path = option(None, partial(optional, run_path))
    repair: bool = option(False, switch)


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """All options of ``python -m pipeline.index``."""

    run: Path = option(None, partial(optional, run_path))


@dataclass(frozen=True, slots=True)
class ShowOptions:
    """All options of ``python -m pipeline.show``."""

    run: Path = option(None, partial(optional, run_path))
    json: bool = option(False, switch)


def _image(value: Any) -> int | str:
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise Invalid("a key as cats/tom.jpg, or a row as 3")
    # What is taken as typed comes as text, whatever it looks like.
    return int(value) if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,12}", value) else value


def _images(value: Any) -> tuple[int | str, ...]:
    if value is None:
        return ()
    wanted = [value] if isinstance(value, (str, int)) else value
    if not isinstance(wanted, Sequence) or not wanted:
        raise Invalid("a list of keys and rows, e.g. images=[3,cats/tom.jpg]")
    return tuple(map(_image, wanted))


def _channels(value: Any) -> Any:
    if value is None or (isinstance(value, str) and re.fullmatch(r"active:0*[1-9][0-9]{0,8}", value)):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return range(value)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise Invalid("a number of channels, a list as [0,5,9], or active:64")
    numbers = tuple(whole(number, 0, MOST_CHANNELS) for number in value)
    if len(set(numbers)) < len(numbers):
        raise Invalid("each channel once")
    return numbers


def _input(value: Any) -> Any:
    if not isinstance(value, bool) and value != "only":
        raise Invalid("true, false or only")
    return value


def _file(value: Any) -> str | None:
    return None if value is None else os.path.expanduser(text(str(value), "the name of a picture"))


@dataclass(frozen=True, slots=True)
class PlotOptions:
    """All options of ``python -m pipeline.plot``; ``conf/plot.yaml`` says what they mean.

    Attributes:
        images: Keys and rows, negative ones from the end, that of ``image`` too; none: the first image that is ok.
        channels: Those of a mosaic: a range, of which a layer may have fewer, or a list; None: no mosaic.
        file: Path with ``{run}``, ``{image}``, ``{layer}`` to be replaced; None: the usual one.
        most_active: The mosaic has so many channels, the most active ones of each layer; None: not chosen so.
    """

    run: Path = option(None, partial(optional, run_path))
    image: int | str | None = option(None, partial(optional, _image))
    images: tuple[int | str, ...] = option(None, _images)
    layers: tuple[str, ...] = option("all", layer_words)
    channel: int = option(0, partial(whole, least=0, most=MOST_CHANNELS))
    channels: range | tuple[int, ...] | None = option(None, _channels)
    scale: str = choice("own", "own", "shared")
    colormap: str = option("gray", partial(text, rule="the name of one of Matplotlib's colour maps"))
    input: bool | str = option(True, _input)
    exact: bool = option(False, switch)
    file: str | None = option(None, _file)
    dpi: int = option(100, partial(whole, least=20, most=1200))
    show: bool = option(False, switch)
    most_active: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if isinstance(self.channels, str):
            object.__setattr__(self, "most_active", int(self.channels.partition(":")[2]))
            object.__setattr__(self, "channels", range(self.most_active or 0))
        if self.image is not None and self.images not in ((), (self.image,)):
            got = f"{self.image!r} and {list(self.images)!r}"
            raise conflict("image", "one image and several exclude each other", got, "one", "Leave one out.")
        if self.image is not None:
            object.__setattr__(self, "images", (self.image,))
        if self.channel and self.channels is not None:
            got = f"channel={self.channel} and channels too"
            raise conflict("channel", "one channel and several exclude each other", got, "one of the two", "Leave one out.")
        suffixes, why = (PICTURE_SUFFIXES[:1], " of the input alone") if self.input == "only" else (PICTURE_SUFFIXES, "")
        if self.file is not None and Path(self.file).suffix.lower() not in suffixes:
            what, expected = f"not the name of a picture{why}", f"one that ends in {', '.join(suffixes)}"
            raise conflict("file", what, repr(self.file), expected, "The suffix chooses the format.")
        if self.input == "only" and self.show:
            raise OptionError("show: the input alone is not shown, got input=only. Expected maps. Leave one of them out.")


def _options(kind: Any, prefix: str = "") -> Iterator[tuple[str, Field[Any]]]:
    """Give the full name and the field of each option, in order."""
    for each in fields(kind):
        if "check" in each.metadata:
            yield prefix + each.name, each
        elif isinstance(each.default_factory, type) and is_dataclass(each.default_factory):
            yield from _options(each.default_factory, f"{prefix}{each.name}.")


def defaults(kind: type = Options) -> dict[str, Any]:
    """Return option name -> default as a user would write it."""
    return {key: each.metadata["default"] for key, each in _options(kind)}


def known_keys(kind: type = Options) -> list[str]:
    """Return all option names: ``data.dir``, ``layers``, ``batch_size`` ..."""
    return list(defaults(kind))


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by full names, ``data.size``, as nested ones."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        group, _, last = key.rpartition(".")
        (found.setdefault(group, {}) if group else found)[last] = value
    return found


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by their full names: ``data.size`` -> 224."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return found


CHOICES: dict[str, tuple[str, ...]] = {
    key: each.metadata["check"].values for key, each in _options(Options) if isinstance(each.metadata["check"], OneOf)
}


def check_value(key: str, value: Any, kind: type = Options, module: str = "pipeline.run") -> Any:
    """Return the checked value of one option.

    Args:
        key: Full name.
        value: Plain.
        kind: Class of the option.
        module: Whose ``--help`` lists it.

    Raises:
        OptionError: It is not a right one.
    """
    check = dict(_options(kind))[key].metadata["check"]
    try:
        return check(value)
    except Invalid as error:
        near = nearest(str(value), error.allowed) if error.allowed else ""
        is_near = near and near != ", ".join(error.allowed)
        hint = f"Did you mean {near}?" if is_near else f"Run `python -m {module} --help` for all options."
        raise OptionError(f"{key}: not a valid value, got {value!r}. Expected {error.rule}. {hint}") from None


def unknown_key(key: str, kind: type = Options, module: str = "pipeline.run") -> OptionError:
    """Return the error for an option that does not exist.

    Args:
        key: As given.
        kind: Class of the options that exist.
        module: Whose ``--help`` lists them.
    """
    keys = known_keys(kind)
    successor = REPLACED.get(key)
    if successor in keys:
        return OptionError(
            f"{key}: {successor} replaces this option, got {key!r}. Expected one of: "
            f"{', '.join(f'{successor}={value}' for value in CHOICES[successor])}. Leave it out, or write one of these."
        )
    last_words = {known.rsplit(".", 1)[-1]: known for known in keys}
    # "resize" alone means data.resize; "dta.size" is near data.size as a whole.
    near = last_words.get(key) or nearest(key, keys)
    return OptionError(
        f"{key}: there is no such option, got {key!r}. Expected one of: {near}. Run `python -m {module} --help` for all."
    )


def check(kind: type[T], values: Mapping[str, Any], module: str) -> T:
    """Return plain values, as Hydra composes them, as checked options.

    Args:
        kind: Class of the options.
        values: Nested as its groups are.
        module: Whose options they are.

    Raises:
        OptionError: The first value that is wrong, what was expected, and where to look.
    """
    given, known = flat(values), known_keys(kind)
    for key in given:
        if key not in known:
            raise unknown_key(key, kind, module)
    for key in known:
        if key not in given:
            raise OptionError(f"{key}: the option was removed, got none. Expected a value. Leave out `~{key}`.")
    if "run" in known and (given["run"] in (None, "") or "\0" in str(given["run"])):
        raise OptionError(
            f"run: no run was named, got {given['run']!r}. Expected a run folder. Run e.g. `python -m {module} "
            "run=outputs/imgs-vgg19`."
        )
    checked = nested({key: check_value(key, value, kind, module) for key, value in given.items()})
    for each in fields(kind):  # type: ignore[arg-type]
        if is_dataclass(each.default_factory):
            checked[each.name] = each.default_factory(**checked[each.name])
    return kind(**checked)


def to_yaml(values: Mapping[str, Any]) -> str:
    """Return nested plain values as they are stored with a run."""
    import yaml

    return str(yaml.safe_dump(dict(values), allow_unicode=True, sort_keys=False))


def check_options(values: Mapping[str, Any]) -> Options:
    """Return the options of an extraction, checked; ``values`` are nested and plain.

    Raises:
        OptionError: A value is wrong, or no layer is meant, or the size is too small for one.
    """
    return replace(check(Options, values, "pipeline.run"), given=flat(values))


def tar_folder(tars: Sequence[str]) -> str:
    """Return the absolute folder that all these tar files are below, whichever files there are: what no pattern is part of.

    Args:
        tars: As of :attr:`DataOptions.tar`.
    """

    def folder_of(name: str) -> str:
        match = _PATTERN.search(name)
        return name if names_a_folder(name) else os.path.dirname(name[: match.start()] + "x" if match else name)

    return os.path.commonpath([folder_of(os.path.abspath(os.path.expanduser(name))) for name in tars])


def names_a_folder(name: str) -> bool:
    """Tell whether one of :attr:`DataOptions.tar` is a folder; by its name alone, so that it is the same from everywhere."""
    return not _PATTERN.search(name) and TAR_SUFFIX not in os.path.basename(os.path.normpath(name)).lower()
