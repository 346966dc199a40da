"""Options of the command that draws, in typed, checked form. As :mod:`pipeline.config`, it loads nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import check_layers, unknown_key
from .errors import OptionError, nearest
from .schema import ONLY, SCALES, PlotSchema, known_keys
from .storage.remote_path import place

SUFFIXES = (".png", ".pdf", ".svg")
LEAST_DPI, MOST_DPI = 20, 1200
# More than any layer has.
MOST_CHANNELS = 2**20


@dataclass(frozen=True, slots=True)
class Choice:
    """What of a run is to be drawn, and how.

    Attributes:
        run: A run folder, its index or a shard.
        images: Keys and rows, negative ones from the end; none: the first image that is ok.
        layers: Words as of ``layers=``.
        channel: Of each layer, unless it is a mosaic.
        channels: Those of a mosaic: a range, of which a layer may have fewer, or a list; None: all, or no mosaic.
        most_active: A mosaic of so many channels; None: not chosen so.
        is_shared: Whether all maps of a sheet have one scale.
        colormap: Its name.
        with_input: Whether the picture that the network saw stands beside.
        input_only: Whether it is all that is wanted.
        is_exact: Whether all of each layer is read, however little of it will be seen.
        file: Path with ``{run}``, ``{image}``, ``{layer}`` to be replaced; None: the usual one.
        dpi: Pixels an inch.
        in_window: Whether to show it too.
    """

    run: Path
    images: tuple[int | str, ...]
    layers: tuple[str, ...]
    channel: int
    channels: range | tuple[int, ...] | None
    most_active: int | None
    is_shared: bool
    colormap: str
    with_input: bool
    input_only: bool
    is_exact: bool
    file: str | None
    dpi: int
    in_window: bool

    @property
    def is_mosaic(self) -> bool:
        """Whether channels of each layer are wanted, a sheet a layer."""
        return self.channels is not None or self.most_active is not None


def check_plot(values: Mapping[str, Any], module: str) -> Choice:
    """Turns plain values, as Hydra composes them, into checked options.

    Args:
        values: Like :class:`~pipeline.schema.PlotSchema`.
        module: Whose ``--help`` lists them.

    Raises:
        OptionError: One is missing, unknown, of another type, or excludes another.
    """
    for key in values:
        if key not in known_keys(PlotSchema()):
            raise unknown_key(key, PlotSchema(), module)
    run = values["run"]
    if run is None or not str(run) or "\0" in str(run):
        raise OptionError(
            f"run: no run was named, got {run!r}. Expected a run folder, its features.h5 or a shard. "
            f"Run e.g. `python -m pipeline.plot run=outputs/imgs-vgg19`."
        )
    if values["scale"] not in SCALES:
        raise _wrong("scale", values["scale"], f"one of: {', '.join(SCALES)}", SCALES)
    with_input = values["input"]
    if not isinstance(with_input, bool) and with_input != ONLY:
        raise _wrong("input", with_input, f"true, false or {ONLY}")
    for key in ("exact", "show"):
        if not isinstance(values[key], bool):
            raise _wrong(key, values[key], "true or false")
    if not isinstance(values["colormap"], str):
        raise _wrong("colormap", values["colormap"], "the name of one of Matplotlib's colour maps")
    channels, most_active = _channels(values["channels"])
    channel = _whole("channel", values["channel"], 0, MOST_CHANNELS)
    if channel and (channels is not None or most_active is not None):
        raise OptionError(
            f"channel: one channel and several exclude each other, got channel={channel} and channels={values['channels']}. "
            f"Expected one of the two. Leave one out."
        )
    file = _file(values["file"], with_input == ONLY)
    if with_input == ONLY and values["show"]:
        raise OptionError("show: the input alone is written and not shown, got input=only. Expected maps. Leave one of them out.")
    return Choice(
        run=place("run", str(run)),
        images=_images(values["image"], values["images"]),
        layers=check_layers(values["layers"]),
        channel=channel,
        channels=channels,
        most_active=most_active,
        is_shared=values["scale"] == "shared",
        colormap=values["colormap"],
        with_input=with_input is not False,
        input_only=with_input == ONLY,
        is_exact=values["exact"],
        file=file,
        dpi=_whole("dpi", values["dpi"], LEAST_DPI, MOST_DPI),
        in_window=values["show"],
    )


def _images(one: Any, several: Any) -> tuple[int | str, ...]:
    if one is not None and several is not None:
        raise OptionError(
            f"image: one image and several exclude each other, got {one!r} and {several!r}. Expected one. Leave one out."
        )
    wanted = [several] if isinstance(several, (str, int)) else several
    if several is None:
        wanted = [] if one is None else [one]
    elif not isinstance(wanted, Sequence) or not wanted:
        raise _wrong("images", several, "a list of keys and rows, e.g. images=[3,cats/tom.jpg]")
    for name in wanted:
        if isinstance(name, bool) or not isinstance(name, (str, int)) or name == "":
            raise _wrong("image" if several is None else "images", name, "a key as cats/tom.jpg, or a row as 3")
    # image= comes as text, whatever it looks like.
    return tuple(int(name) if isinstance(name, str) and re.fullmatch(r"-?[0-9]{1,12}", name) else name for name in wanted)


def _channels(value: Any) -> tuple[range | tuple[int, ...] | None, int | None]:
    """Gives the channels, of which a layer may have fewer where they are a range; and how many of the most active ones."""
    rule = "a number of channels, a list as [0,5,9], or active:64"
    if value is None:
        return None, None
    if isinstance(value, str) and (active := re.fullmatch(r"active:([0-9]{1,9})", value)) and int(active[1]):
        return None, int(active[1])
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return range(value), None
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        numbers = tuple(_whole("channels", number, 0, MOST_CHANNELS) for number in value)
        if len(set(numbers)) == len(numbers):
            return numbers, None
        rule = "each channel once"
    raise _wrong("channels", value, rule)


def _file(value: Any, is_input: bool) -> str | None:
    if value is None:
        return None
    text, suffixes = str(value), SUFFIXES[:1] if is_input else SUFFIXES
    if "\0" in text or Path(text).suffix.lower() not in suffixes:
        why = " of the input alone" if is_input else ""
        raise OptionError(
            f"file: not the name of a picture{why}, got {text!r}. Expected one that ends in {', '.join(suffixes)}. "
            f"The suffix chooses the format."
        )
    return str(_expanded(text))


def _whole(key: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _wrong(key, value, f"a whole number from {least} to {most}")
    return value


def _wrong(key: str, value: Any, rule: str, allowed: Sequence[str] = ()) -> OptionError:
    near = nearest(str(value), allowed) if allowed else ""
    hint = f"Did you mean {near}?" if near and ", " not in near else "Run `python -m pipeline.plot --help` for all options."
    return OptionError(f"{key}: not a valid value, got {value!r}. Expected {rule}. {hint}")


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~ and the name of nobody
        return Path(text)
