"""The images of a run, from wherever the options say that they are: the first stage, handed to the room that it is in."""

from __future__ import annotations

from .data_source import DataSource, tar_folder
from .journal import LOGGER as _log
from .network.start import load_tensorflow
from .records import Manifest
from .storage.address import Address


def list_images(source: DataSource) -> Manifest:
    """Lists the images, and says how many there are.

    Raises:
        DatasetError: They cannot be listed, or there are none.
    """
    manifest = _listed(source)
    skipped = ", ".join(f"{count} {reason}" for reason, count in sorted(manifest.skipped.items()))
    _log.info("images: %d under %s%s", len(manifest), manifest.root, f"; skipped: {skipped}" if skipped else "")
    return manifest


def _listed(source: DataSource) -> Manifest:
    # Late: each needs libraries that the others do without.
    if source.tar is not None:
        from .images.tar import list_tars

        return list_tars(source.tar, tar_folder(source.tar), _warn)
    if source.tfds is not None:
        from .images.tfds_set import find_set, list_set, sets_folder

        assert not isinstance(source.dir, Address)
        # Before anything is loaded.
        find_set(source.tfds, sets_folder(source.dir))
        load_tensorflow()
        return list_set(source.tfds, source.split, source.dir)
    if source.list is not None:
        from .images.addressed_list import read_addressed_list

        return read_addressed_list(source.list, source.dir, _warn)
    assert source.dir is not None
    if isinstance(source.dir, Address):
        from .images.remote import list_address

        return list_address(source.dir)
    from .images.manifest import list_folder

    return list_folder(source.dir)


def _warn(line: str) -> None:
    _log.warning("images: %s", line)
