"""Where the index finds each row: its virtual sources and links, held to the shard plan without opening a shard."""

from __future__ import annotations

from collections.abc import Iterator

import h5py

from ..records import OK, ShardSpec
from . import format
from .tables import Column


def wrong_sources(
    node: h5py.Dataset | h5py.Group, layer: str, plan: tuple[ShardSpec, ...], statuses: Column | None
) -> Iterator[str]:
    """Gives what of a layer in the index does not lead to the rows that it should.

    Args:
        node: ``/features/<layer>`` of the index.
        layer: Its name.
        plan: All shards.
        statuses: (N,) of all rows; None where they cannot be read, and links are not checked.
    """
    if isinstance(node, h5py.Group):
        if statuses is not None:
            yield from _wrong_links(node, layer, plan, statuses)
        return
    if not node.is_virtual:
        yield "no virtual dataset"
        return
    found = {}
    for source in node.virtual_sources():
        # The whole of the source: HDF5 keeps no shape of it then.
        is_whole = source.src_space.get_select_type() == h5py.h5s.SEL_ALL
        bounds = source.vspace.get_select_bounds()
        found[source.file_name] = (source.dset_name, is_whole, source.vspace.get_select_npoints(), *bounds)
    row = node.shape[1:]
    for shard in plan:
        last = (shard.stop - 1, *(side - 1 for side in row))
        points = shard.rows * row[0] * row[1] * row[2]
        got = found.pop(format.shard_path(shard.file_name), None)
        if got is None:
            yield f"no source for rows {shard.first} to {shard.stop - 1}"
        elif got != (f"features/{layer}", True, points, (shard.first, 0, 0, 0), last):
            yield f"a source {got[0]!r} of {shard.file_name} for rows {got[3][0]} to {got[4][0]}"
    for name in sorted(found):
        yield f"a source {name!r}, which is no shard of the run"


def _wrong_links(node: h5py.Group, layer: str, plan: tuple[ShardSpec, ...], statuses: Column) -> Iterator[str]:
    expected = {
        format.native_name(index): (format.shard_path(shard.file_name), f"/features/{layer}/{format.native_name(index)}")
        for shard in plan
        for index in range(shard.first, shard.stop)
        if statuses[index] == OK
    }
    there = set(node)
    for name, (file_name, inner) in expected.items():
        if name not in there:
            yield f"no link for row {int(name)}"
            continue
        link = node.get(name, getlink=True)
        if not isinstance(link, h5py.ExternalLink) or (link.filename, link.path) != (file_name, inner):
            yield f"a wrong link for row {int(name)}: {getattr(link, 'filename', link)!r}, {getattr(link, 'path', None)!r}"
    for name in sorted(there - expected.keys()):
        yield f"a link {name!r} of no row that is ok"
