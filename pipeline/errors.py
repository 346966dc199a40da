"""What can go wrong, by name. Every error a user can meet is one of these, and reads as one line.

The form is ``<where>: <what happened>, got <value>. Expected <rule or list>. <What to do.>``
Commands print the line on stderr and leave with :attr:`PipelineError.exit_code`; nothing else prints a traceback.
A bad *image* is not an error: it is a row whose :class:`~pipeline.records.ImageStatus` says why it failed.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class PipelineError(Exception):
    """An error with a line for the user."""

    exit_code = 1


class OptionError(PipelineError):
    """A wrong option: an unknown key, an unknown value, a wrong type, options that exclude each other."""

    exit_code = 2


class DatasetError(PipelineError):
    """The images cannot be listed, there are none, or too many of them fail."""


class WeightsError(PipelineError):
    """A weights file is missing, damaged, of another network or of a format that is not read."""


class ImageError(ValueError):
    """One image cannot be used: its row fails with this text, ``<word>: <reason>``, and the run goes on."""


class NetworkError(PipelineError):
    """The network cannot run on this input, or gave values that cannot be stored."""


class DeviceMemoryError(NetworkError):
    """The device's memory does not hold what was asked of it."""


class StoreError(PipelineError):
    """A run folder, shard or index cannot be written or read, or does not belong to this run."""


class EngineError(PipelineError):
    """Workers cannot be started or reached, see something else than this process, or do not live through a shard."""


class LockedError(StoreError):
    """Another live process is writing the same run folder."""


@contextmanager
def system_errors_in_one_line() -> Iterator[None]:
    """Turn what the system refuses in the block, where nobody has foreseen it, into one line; but for a pipe that is closed."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        got = errno.errorcode.get(error.errno or 0, type(error).__name__)
        raise PipelineError(
            f"{error.filename or 'system'}: {error.strerror or error}, got {got}. Expected a system that answers. Check the "
            "disk, the network and the limits, then run the same command again: what is finished is kept."
        ) from error


def printable(text: str, most: int | None = None) -> str:
    """Return a text, or so many characters of it, on one line, and nothing that a terminal would obey."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text[:most])


def nearest(wrong: str, known: Iterable[str]) -> str:
    """Return the known names nearest to a wrong one, ``"relu4_1, relu4_2"``, three at most; all where none is near."""
    names = list(known)
    return ", ".join(difflib.get_close_matches(wrong, names) or names)
