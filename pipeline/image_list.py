"""The images of a run, from wherever the options say that they are: the first stage."""

from __future__ import annotations

import posixpath
from dataclasses import replace
from functools import partial
from itertools import zip_longest

from .config import DataOptions, tar_folder
from .errors import OptionError
from .network import load_tensorflow
from .progress import LOGGER as _log
from .records import Manifest, digest_images
from .storage import RemotePath

_warn = partial(_log.warning, "images: %s")


def list_images(source: DataOptions) -> Manifest:
    """List the images, and say how many there are.

    Raises:
        DatasetError: They cannot be listed, or there are none.
        OptionError: There is no such column.
    """
    manifest = with_labels(_listed(source), source.label)
    skipped = ", ".join(f"{count} {reason}" for reason, count in sorted(manifest.skipped.items()))
    _log.info("images: %d under %s%s", len(manifest), manifest.root, f"; skipped: {skipped}" if skipped else "")
    return manifest


def _listed(source: DataOptions) -> Manifest:
    # Late: each needs libraries that the others do without.
    if source.tar is not None:
        from .images.tar import list_tars

        return list_tars(source.tar, tar_folder(source.tar), _warn)
    if source.tfds is not None:
        from .images.tfds import find_set, list_set, sets_folder

        assert not isinstance(source.dir, RemotePath)
        # Before anything is loaded.
        find_set(source.tfds, sets_folder(source.dir))
        load_tensorflow()
        return list_set(source.tfds, source.split, source.dir)
    if source.list is not None:
        from .images.lists import read_list, refuse_all_missing

        manifest = read_list(source.list, source.dir, _warn)
        refuse_all_missing(manifest, source.list)
        return manifest
    from .images.folder import list_address, list_folder

    assert source.dir is not None
    if isinstance(source.dir, RemotePath):
        return list_address(source.dir)
    return list_folder(source.dir)


def with_labels(manifest: Manifest, label: str) -> Manifest:
    """Return the images with the labels of their source (``folder``), of the last folder of each key (``parent``) or of a column.

    Raises:
        OptionError: There is no such column.
    """
    if label == "folder":
        return manifest
    if label == "parent":
        # What the keys of a tar file may begin with is no folder of images.
        tars = manifest.metadata.get("tar", ()) if manifest.source is not None and manifest.source.kind == "tar" else ()
        names = [key.removeprefix(f"{tar}/") for key, tar in zip_longest(manifest.keys, tars, fillvalue="")]
        labels = tuple(posixpath.basename(posixpath.dirname(name)) for name in names)
    elif label in manifest.metadata:
        labels = tuple(manifest.metadata[label])
    else:
        columns = "".join(f", {name}" for name in sorted(manifest.metadata)[:20])
        raise OptionError(
            f"data.label: there is no such column, got {label!r}. Expected one of: folder, parent{columns}. A column "
            "called label is used unasked."
        )
    digest = digest_images(manifest.keys, labels, manifest.file_bytes, manifest.metadata)
    return replace(manifest, labels=labels, digest=digest)
