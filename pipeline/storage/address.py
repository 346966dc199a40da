"""What an address is, told by its text alone: ``<protocol>://<the rest>``. Loads no fsspec until there is one."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import OptionError, nearest

# Of two letters or more, so that no drive of Windows is one.
_FORM = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
# The protocols whose package an extra of this program installs.
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_LOCAL = ("file", "local")


@dataclass(frozen=True, slots=True)
class Address:
    """A place that fsspec can reach.

    Attributes:
        text: ``s3://bucket/folder``, without a slash at its end.
    """

    text: str

    @property
    def protocol(self) -> str:
        """What stands before ``://``, in small letters."""
        return self.text.partition("://")[0].lower()

    @property
    def name(self) -> str:
        """The last part; of a bucket alone, the bucket."""
        return self.text.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The last part without its extension."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The extension of the last part."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> Address:
        """The place above; that of a bucket is itself."""
        before, _, rest = self.text.partition("://")
        return Address(f"{before}://{rest.rpartition('/')[0]}") if "/" in rest else self

    def __truediv__(self, name: str) -> Address:
        return Address(f"{self.text}/{name}")

    def __str__(self) -> str:
        return self.text


def is_address(text: str) -> bool:
    """Tells an address from a path."""
    return _FORM.fullmatch(text) is not None


def to_address(text: str) -> Address | Path:
    """Gives the address that a text is; of ``file://`` the path, which is this machine's own.

    Args:
        text: One that :func:`is_address` takes for an address.
    """
    found = _FORM.fullmatch(text)
    assert found, text
    if found[1].lower() in _LOCAL:
        return Path(found[2] or "/")
    return Address(f"{found[1]}://{found[2].rstrip('/')}")


def require_reachable(key: str, address: Address) -> None:
    """Makes sure that something installed can reach an address of this kind; opens no connection.

    Args:
        key: The option, for the message.
        address: What was given.

    Raises:
        OptionError: It is of an unknown kind, its package is not installed, or it names no place.
    """
    protocol, got = address.protocol, f"got {address.text!r}"
    extra = EXTRAS.get(protocol)
    install = f"pip install 'deep-feature-pipeline[{extra}]'"
    if importlib.util.find_spec("fsspec") is None:
        raise OptionError(
            f"{key}: nothing here reads addresses, {got}. Expected the package fsspec. "
            f"{install if extra else 'pip install fsspec'}."
        )
    from fsspec.registry import known_implementations, registry

    if protocol not in registry and protocol not in known_implementations:
        known = [*dict.fromkeys(["s3", "gs", *known_implementations, *registry])]
        near = nearest(protocol, known)
        near = near if len(near) < 40 else "s3, gs"
        raise OptionError(
            f"{key}: an address of an unknown kind, {got}. Expected e.g. {near} before ://. "
            "Correct it, or install the package that adds it to fsspec."
        )
    if protocol not in registry:
        package = known_implementations[protocol]["class"].partition(".")[0]
        if importlib.util.find_spec(package) is None:
            remedy = install if extra else f"pip install {package}"
            raise OptionError(f"{key}: the package for {protocol}:// is not installed, {got}. Expected {package}. {remedy}.")
    if not address.text.partition("://")[2].strip("/"):
        raise OptionError(f"{key}: names no place, {got}. Expected e.g. {protocol}://bucket/folder. Complete it.")
