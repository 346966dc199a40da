"""Options in the typed, checked form in which the rest of the program gets them; what is wrong with those that are not right.

Loads neither Hydra nor TensorFlow, so that a wrong option is answered at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .data_source import DataSource, check_source
from .errors import OptionError, nearest
from .network.layers import WINOGRAD
from .schema import AUTO, CHOICES, EngineSchema, defaults, known_keys
from .sharding import Share
from .storage.address import Address, is_address, require_reachable, to_address
from .storage.mirror import mirror_of, scratch_for
from .storage.remote_path import RemotePath, expanded

# A larger side is a slip of the keyboard: one image of it would need 17 GB for conv1_1 alone.
LARGEST_SIDE_PX = 8192
# A larger batch is one too: it is only what is read ahead.
LARGEST_BATCH = 65536
# Source: numpy.random.PCG64 takes any non-negative integer; 64 bits are what a seed needs.
LARGEST_SEED = 2**64 - 1
# Of a cluster. An address of version 6 stands in brackets.
_ADDRESS = re.compile(r"(?:ray://)?(?:[\w.-]+|\[[0-9a-fA-F:]+\]):(\d{1,5})", re.ASCII)
# Of a process beside others that write the same folder.
EXISTING_OF_PARTS = ("resume", "extend")
# What network.weights may say besides the path of a file.
WEIGHTS = ("imagenet", "matconvnet", "random")
# Options of earlier versions, in full and by their last word, and what replaces them.
REPLACED = dict.fromkeys(("runtime.convolution", "convolution"), "runtime.backend")


@dataclass(frozen=True, slots=True)
class DataOptions:
    """Which images, and how they are brought to size. ``size_px`` is (height, width), or None for native size."""

    source: DataSource
    size_px: tuple[int, int] | None
    resize: str
    interpolation: str
    decode: str
    label: str
    max_failed_fraction: float


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """Which network, with which weights."""

    name: str
    weights: str
    pooling: str
    pool_padding: str
    kernel_order: str
    seed: int


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """Where results go and how they are stored.

    ``images_per_shard`` None: from the bytes of an image. ``scratch`` None: of an address, in the system's temporary folder.
    """

    dir: Path | Address
    scratch: Path | None
    dtype: str
    compression: str
    images_per_shard: int | None
    existing: str


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """How this machine does it; changes no number beyond the tolerances of the contract. ``workers`` None: all cores.

    ``device`` is ``cpu`` where the backend was chosen and computes on nothing else.
    """

    device: str
    backend: str
    precision: str
    workers: int | None


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Which processes make the shards; changes no number beyond what another machine changes.

    None: of ``address``, a cluster for this run alone; of the others, as the resources of the cluster allow.
    """

    name: str = "local"
    address: str | None = None
    workers: int | None = None
    gpus_per_worker: float | None = None
    cpus_per_worker: int | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """Everything a user can set, checked. ``batch_size`` None: chosen by device. ``name`` is the run folder's.

    ``share`` None: all of the run. ``given`` has every option as it was set or is by default, name -> plain value, for people.
    """

    data: DataOptions
    layers: tuple[str, ...]
    batch_size: int | None
    network: NetworkOptions
    output: OutputOptions
    name: str
    runtime: RuntimeOptions
    share: Share | None = None
    engine: EngineOptions = field(default_factory=EngineOptions)
    dry_run: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The run folder; at an address, what stands for it."""
        mark = "" if self.share is None else self.share.mark
        return _run_folder(self.output.dir, self.name, self.output.scratch, mark)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Gives nested values by their full names: ``data.size`` -> 224."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return found


def unknown_key(key: str, schema: Any = None, module: str = "pipeline.run") -> OptionError:
    """Makes the error for an option that does not exist.

    Args:
        key: As given.
        schema: Holds the options that exist; None: those of the extraction.
        module: Whose ``--help`` lists them.
    """
    keys = known_keys(schema)
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


def check_options(values: Mapping[str, Any]) -> Options:
    """Turns plain values, as Hydra composes them, into checked options.

    Args:
        values: Nested like :class:`Schema`.

    Raises:
        OptionError: The first value that is wrong, what was expected, and where to look.
    """
    given, known = flat(values), known_keys()
    for key in given:
        if key not in known:
            raise unknown_key(key)
    for key in known:
        if key not in given:
            raise OptionError(f"{key}: the option was removed, got none. Expected a value. Leave out `~{key}`.")
    data, network, output, runtime = (values[group] for group in ("data", "network", "output", "runtime"))
    for key in CHOICES:
        group, name = key.split(".")
        check_choice(key, values[group][name])
    source = check_source(data, _place("data.dir", data["dir"]), _place("data.list", data["list"]))
    fraction = data["max_failed_fraction"]
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0.0 <= fraction <= 1.0:
        raise _wrong("data.max_failed_fraction", fraction, "a number from 0 to 1")
    device = _device(runtime["device"], runtime["backend"])
    options = Options(
        data=DataOptions(
            source=source,
            size_px=check_size(data["size"]),
            resize=data["resize"],
            interpolation=data["interpolation"],
            decode=data["decode"],
            label=_text("data.label", data["label"], "folder, parent, or the name of a column"),
            max_failed_fraction=float(fraction),
        ),
        layers=check_layers(values["layers"]),
        batch_size=_count("batch_size", values["batch_size"], LARGEST_BATCH),
        network=NetworkOptions(
            name=network["name"],
            weights=_weights(network["weights"]),
            pooling=network["pooling"],
            pool_padding=network["pool_padding"],
            kernel_order=network["kernel_order"],
            seed=_seed(network["seed"]),
        ),
        output=OutputOptions(
            dir=_place("output.dir", output["dir"]) or Path("outputs"),
            scratch=_scratch(output["scratch"], output["dir"]),
            dtype=output["dtype"],
            compression=output["compression"],
            images_per_shard=_count("output.images_per_shard", output["images_per_shard"], 2**31),
            existing=output["existing"],
        ),
        name=_name(values["name"], source.name, network["name"]),
        runtime=RuntimeOptions(
            device=device,
            backend=runtime["backend"],
            precision=runtime["precision"],
            workers=_count("runtime.workers", runtime["workers"], 1024),
        ),
        share=_share(values["part"]),
        engine=_check_engine(values["engine"], device),
        dry_run=_switch("dry_run", values["dry_run"]),
        given=given,
    )
    if options.data.size_px is None and options.data.decode == "fast":
        raise OptionError(
            "data.decode: nothing can be reduced at native size, got fast. Expected exact, or a data.size. Set one of them."
        )
    if options.share is not None and options.output.existing not in EXISTING_OF_PARTS:
        raise OptionError(
            f"output.existing: a part cannot tell what was there from what other parts make, got {options.output.existing} with "
            f"part={options.share}. Expected {' or '.join(EXISTING_OF_PARTS)}. Use another name=..., or remove the folder first."
        )
    if options.share is not None and options.engine.name != "local":
        raise OptionError(
            f"part: engine={options.engine.name} shares the shards among its workers itself, got part={options.share}. Expected "
            "null, or engine=local. Leave one of them out."
        )
    if options.engine.name != "local" and isinstance(options.output.dir, Address):
        raise OptionError(
            f"output.dir: workers of engine={options.engine.name} write files, got {str(options.output.dir)!r}. Expected "
            "a folder on storage that all nodes share. Choose one, or leave engine out: parts (part=k/n) write to an address too."
        )
    for key, place in (("data.dir", source.dir), ("data.list", source.list)):
        if options.engine.name != "local" and isinstance(place, Address) and place.protocol == "memory":
            raise OptionError(
                f"{key}: workers do not see what this process has in memory, got {str(place)!r} with engine="
                f"{options.engine.name}. Expected a folder, or an address that all nodes reach. Choose one, or engine=local."
            )
    if options.runtime.device == "cpu" and options.runtime.precision != "float32":
        raise OptionError(
            f"runtime.precision: a CPU computes in float32, got {options.runtime.precision}. Expected float32, or a GPU. "
            "Leave it out, or use runtime.device=gpu."
        )
    return options


def check_choice(key: str, value: Any) -> str:
    """Gives the value of an option that has a fixed set of them.

    Raises:
        OptionError: It is none of them.
    """
    if value not in CHOICES[key]:
        raise _wrong(key, value, f"one of: {', '.join(CHOICES[key])}", CHOICES[key])
    return str(value)


def check_size(value: Any) -> tuple[int, int] | None:
    """Gives (height, width) in px for ``data.size``: one side, a pair, or null.

    Raises:
        OptionError: It is none of them.
    """
    if value is None:
        return None
    sides = [value, value] if isinstance(value, int) else value
    if (
        not isinstance(sides, Sequence)
        or isinstance(sides, str)
        or len(sides) != 2
        or any(isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= LARGEST_SIDE_PX for side in sides)
    ):
        raise _wrong("data.size", value, f"a side from 1 to {LARGEST_SIDE_PX} px, [height,width], or null for native size")
    return int(sides[0]), int(sides[1])


def check_layers(value: Any) -> tuple[str, ...]:
    """Gives the words of ``layers``; one word without brackets is a list of one.

    Raises:
        OptionError: It is no list of words.
    """
    words = [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value
    if not isinstance(words, Sequence) or not words or not all(isinstance(word, str) for word in words):
        raise _wrong("layers", value, "a list of names, patterns, blocks or all, e.g. layers=[relu4_1,block5]")
    return tuple(words)


def _switch(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(key, value, "true or false")
    return value


def _share(value: Any) -> Share | None:
    share = Share.of_text(value) if isinstance(value, str) else None
    if value is not None and share is None:
        raise _wrong("part", value, "k/n with k from 1 to n, e.g. part=3/8, or null for the whole run")
    return share


def _device(device: str, backend: str) -> str:
    """Return ``runtime.device``: the CPU where the backend asked for computes on nothing else."""
    if backend != WINOGRAD:
        return device
    if device == "gpu":
        raise OptionError(
            "runtime.backend: this one computes on a CPU, got winograd with runtime.device=gpu. Expected auto or tensorflow on a "
            "GPU. Leave one of them out."
        )
    return "cpu"


def _seed(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_SEED:
        raise _wrong("network.seed", value, f"a whole number from 0 to {LARGEST_SEED}")
    return value


def _text(key: str, value: Any, rule: str) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise _wrong(key, value, rule)
    return value


def _weights(value: Any) -> str:
    text = _text("network.weights", value, f"{', '.join(WEIGHTS)} or a file")
    if text not in WEIGHTS and not expanded(text).exists():
        raise _wrong("network.weights", text, f"one of: {', '.join(WEIGHTS)}, or a file that exists", WEIGHTS)
    return text if text in WEIGHTS else str(expanded(text))


def _name(value: Any, dataset: str, network: str) -> str:
    if value is None:
        return f"{dataset or 'images'}-{network}"
    name = _text("name", str(value), "the name of a folder")
    if name in (".", "..") or any(mark in name for mark in "/\\:"):
        raise _wrong("name", value, "the name of one folder, without / \\ or :")
    return name


def _check_engine(engine: Mapping[str, Any], device: str) -> EngineOptions:
    """Gives the options of the engine, checked.

    Args:
        engine: Nested like :class:`pipeline.schema.EngineSchema`.
        device: ``runtime.device``, checked.

    Raises:
        OptionError: A value is wrong, or set in vain.
    """
    if engine["name"] == "local":
        unset = defaults(EngineSchema(), "engine.")
        for name, value in engine.items():
            key = f"engine.{name}"
            if name != "name" and value != unset[key]:
                raise OptionError(
                    f"{key}: the local engine is one process on this machine, got {value!r}. Expected the default, or another "
                    "engine. Add engine=ray."
                )
        return EngineOptions()
    gpus = engine["gpus_per_worker"]
    if gpus != AUTO and (isinstance(gpus, bool) or not isinstance(gpus, (int, float)) or not 0 <= gpus <= 1):
        raise _wrong("engine.gpus_per_worker", gpus, "auto, 1, 0 or a share between them: a worker uses one GPU at most")
    gpus = None if gpus == AUTO else float(gpus)
    if gpus is not None and device != AUTO and (device == "gpu") != (gpus > 0):
        raise OptionError(
            f"engine.gpus_per_worker: workers compute on the {device}, got {gpus:g}. Expected {'more than ' * (not gpus)}0. "
            "Leave it or runtime.device out."
        )
    return EngineOptions(
        name=engine["name"],
        address=_cluster_address(engine["address"]),
        workers=_count("engine.workers", engine["workers"], 100_000),
        gpus_per_worker=gpus,
        cpus_per_worker=_count("engine.cpus_per_worker", engine["cpus_per_worker"], 1024),
    )


def _cluster_address(value: Any) -> str | None:
    if value is None:
        return None
    if value == AUTO:
        return AUTO
    found = _ADDRESS.fullmatch(value) if isinstance(value, str) else None
    if found is None or not 0 < int(found[1]) < 65536:
        raise _wrong("engine.address", value, "null, auto, host:port or ray://host:port")
    return str(value)


def _wrong(key: str, value: Any, rule: str, allowed: Sequence[str] = ()) -> OptionError:
    """Gives the error for a value that is not a right one.

    Args:
        key: The option.
        value: As given.
        rule: What it must be.
        allowed: All right values, where they can be counted.
    """
    near = nearest(str(value), allowed) if allowed else ""
    is_near = near and near != ", ".join(allowed)
    hint = f"Did you mean {near}?" if is_near else "Run `python -m pipeline.run --help` for all options."
    return OptionError(f"{key}: not a valid value, got {value!r}. Expected {rule}. {hint}")


def _count(key: str, value: Any, largest: int) -> int | None:
    """Gives a whole number from 1; None for ``auto``.

    Raises:
        OptionError: It is neither, or larger than the largest.
    """
    if value == AUTO:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        raise _wrong(key, value, f"auto or a whole number from 1 to {largest}")
    return value


def _place(key: str, value: Any) -> Path | Address | None:
    """Gives the path or the address that an option names; None if it names none.

    Args:
        key: The option.
        value: As given; Hydra reads 2024 as a number, as a path it is a folder's name.

    Raises:
        OptionError: It is no text, or an address that nothing here can reach.
    """
    text = None if value is None else _text(key, str(value), "a path")
    if text is None or not is_address(text):
        return None if text is None else expanded(text)
    address = to_address(text)
    if isinstance(address, Address):
        require_reachable(key, address)
    return address


def _scratch(value: Any, directory: Any) -> Path | None:
    """Gives the folder in which files for an address are made; None: one in the system's folder for temporary files.

    Args:
        value: ``output.scratch``.
        directory: ``output.dir``.

    Raises:
        OptionError: It is no folder of this machine, or of no use.
    """
    if value is None:
        return None
    text = _text("output.scratch", str(value), "a path")
    if is_address(text):
        raise OptionError(
            f"output.scratch: not a folder of this machine, got {text!r}. Expected a path. "
            "Files are made there before they are sent."
        )
    if not is_address(str(directory)):
        raise OptionError(
            f"output.scratch: nothing is made there, got {text!r}. Expected it with an address, e.g. "
            "output.dir=s3://bucket/outputs. Leave it out: a folder of this machine needs none."
        )
    return expanded(text)


def _run_folder(directory: Path | Address, name: str, scratch: Path | None, mark: str) -> Path:
    """Gives the folder of a run; at an address, what stands for it.

    Args:
        directory: That the run folders are in.
        name: Of the run.
        scratch: As :func:`_scratch` gives it.
        mark: Of one of several processes that make the run together; "" of the only one.
    """
    place = directory / name
    return place if isinstance(place, Path) else RemotePath(mirror_of(place, scratch_for(place, scratch, mark)))
