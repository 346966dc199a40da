"""Where things are, as typed: paths and addresses, checked. Opens nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import OptionError
from .storage.address import Address, is_address, require_reachable, to_address
from .storage.mirror import mirror_of, scratch_for
from .storage.remote_path import RemotePath, expanded


def check_place(key: str, value: Any) -> Path | Address | None:
    """Gives the path or the address that an option names; None if it names none.

    Args:
        key: The option.
        value: As given; Hydra reads 2024 as a number, as a path it is a folder's name.

    Raises:
        OptionError: It is no text, or an address that nothing here can reach.
    """
    text = None if value is None else _text(key, value)
    if text is None or not is_address(text):
        return None if text is None else expanded(text)
    address = to_address(text)
    if isinstance(address, Address):
        require_reachable(key, address)
    return address


def check_scratch(value: Any, directory: Any) -> Path | None:
    """Gives the folder in which files for an address are made; None: one in the system's folder for temporary files.

    Args:
        value: ``output.scratch``.
        directory: ``output.dir``.

    Raises:
        OptionError: It is no folder of this machine, or of no use.
    """
    if value is None:
        return None
    text = _text("output.scratch", value)
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


def run_folder(directory: Path | Address, name: str, scratch: Path | None, mark: str) -> Path:
    """Gives the folder of a run; at an address, what stands for it.

    Args:
        directory: That the run folders are in.
        name: Of the run.
        scratch: As :func:`check_scratch` gives it.
        mark: Of one of several processes that make the run together; "" of the only one.
    """
    place = directory / name
    return place if isinstance(place, Path) else RemotePath(mirror_of(place, scratch_for(place, scratch, mark)))


def _text(key: str, value: Any) -> str:
    text = str(value)
    if not text or "\0" in text:
        raise OptionError(
            f"{key}: not a valid value, got {value!r}. Expected a path. Run `python -m pipeline.run --help` for all options."
        )
    return text
