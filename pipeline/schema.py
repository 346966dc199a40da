"""The options' names, defaults and choices, as Hydra composes them; :mod:`pipeline.config` checks the values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .network.layers import NETWORKS

AUTO = "auto"
CHOICES: dict[str, tuple[str, ...]] = {
    "data.resize": ("squash", "crop", "pad"),
    "data.interpolation": ("nearest", "bilinear", "bicubic", "lanczos"),
    "data.decode": ("exact", "fast"),
    "network.name": tuple(sorted(NETWORKS)),
    "network.pooling": ("max", "avg"),
    "network.pool_padding": (AUTO, "same", "valid"),
    "network.kernel_order": ("hwio", "whio"),
    "output.dtype": ("float32", "float16"),
    "output.compression": ("gzip", "none"),
    "output.existing": ("resume", "extend", "replace", "fail"),
    "engine.name": ("local", "ray"),
    "runtime.device": (AUTO, "cpu", "gpu"),
    "runtime.backend": (AUTO, "tensorflow", "winograd"),
    "runtime.precision": ("float32", "tf32", "bfloat16"),
}
# Of the command that draws.
SCALES = ("own", "shared")
ONLY = "only"


@dataclass
class DataSchema:
    """Keys of ``data``. Values are checked by :func:`pipeline.config.check_options`, so that every message has one form."""

    dir: Any = None
    list: Any = None
    tar: Any = None
    tfds: Any = None
    split: Any = None
    size: Any = 224
    resize: Any = "squash"
    interpolation: Any = "bilinear"
    decode: Any = "exact"
    label: Any = "folder"
    max_failed_fraction: Any = 1.0


@dataclass
class NetworkSchema:
    """Keys of ``network``, a group of files in ``conf/network``."""

    name: Any = "vgg19"
    weights: Any = "imagenet"
    pooling: Any = "max"
    pool_padding: Any = AUTO
    kernel_order: Any = "hwio"
    seed: Any = 0


@dataclass
class OutputSchema:
    """Keys of ``output``."""

    dir: Any = "outputs"
    scratch: Any = None
    dtype: Any = "float32"
    compression: Any = "gzip"
    images_per_shard: Any = AUTO
    existing: Any = "resume"


@dataclass
class EngineSchema:
    """Keys of ``engine``, a group of files in ``conf/engine``."""

    name: Any = "local"
    address: Any = None
    workers: Any = AUTO
    gpus_per_worker: Any = AUTO
    cpus_per_worker: Any = AUTO


@dataclass
class RuntimeSchema:
    """Keys of ``runtime``."""

    device: Any = AUTO
    backend: Any = AUTO
    precision: Any = "float32"
    workers: Any = AUTO


@dataclass
class Schema:
    """All keys and their defaults; a key that is not here is an error."""

    data: DataSchema = field(default_factory=DataSchema)
    layers: Any = field(default_factory=lambda: ["relu4_1"])
    batch_size: Any = AUTO
    network: NetworkSchema = field(default_factory=NetworkSchema)
    output: OutputSchema = field(default_factory=OutputSchema)
    name: Any = None
    part: Any = None
    dry_run: Any = False
    engine: EngineSchema = field(default_factory=EngineSchema)
    runtime: RuntimeSchema = field(default_factory=RuntimeSchema)


@dataclass
class VerifySchema:
    """All keys of ``python -m pipeline.verify`` and their defaults."""

    run: Any = None
    repair: Any = False


@dataclass
class IndexSchema:
    """All keys of ``python -m pipeline.index`` and their defaults."""

    run: Any = None


@dataclass
class ShowSchema:
    """All keys of ``python -m pipeline.show`` and their defaults."""

    run: Any = None
    json: Any = False


@dataclass
class PlotSchema:
    """All keys of ``python -m pipeline.plot`` and their defaults."""

    run: Any = None
    image: Any = None
    images: Any = None
    layers: Any = "all"
    channel: Any = 0
    channels: Any = None
    scale: Any = "own"
    colormap: Any = "gray"
    input: Any = True
    exact: Any = False
    file: Any = None
    dpi: Any = 100
    show: Any = False


def defaults(schema: Any = None, prefix: str = "") -> dict[str, Any]:
    """Gives option name -> default."""
    values: dict[str, Any] = {}
    for key, value in vars(schema if schema is not None else Schema()).items():
        values |= defaults(value, f"{prefix}{key}.") if hasattr(value, "__dataclass_fields__") else {prefix + key: value}
    return values


def known_keys(schema: Any = None, prefix: str = "") -> list[str]:
    """Gives all option names: ``data.dir``, ``layers``, ``batch_size`` ..."""
    return list(defaults(schema, prefix))
