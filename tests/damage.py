"""Bytes of a stored run to damage, by what lies there."""

from __future__ import annotations

from pathlib import Path

import h5py

from pipeline.store.digests import Digests


def flip(path: Path, place: int, bits: int = 0x10) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= bits
    path.write_bytes(content)


def chunk_place(path: Path, layer: str, row: int) -> int:
    """Return where the middle of the chunk lies that holds a row of a shard."""
    with h5py.File(path) as file:
        node = file["features"][layer]
        if isinstance(node, h5py.Group):
            info = node[sorted(node)[row]].id.get_chunk_info(0)
        else:
            info = node.id.get_chunk_info_by_coord((row - row % node.chunks[0], 0, 0, 0))
    return int(info.byte_offset + info.size // 2)


def write_companions(folder: Path) -> None:
    """Writes the files that a run has beside its data."""
    for name, text in (("config.yaml", "data:\n  size: 224\n"), ("report.json", '{\n  "rows": 10\n}\n')):
        (folder / f"{name}.partial").write_text(text)
        Digests(folder).publish(folder / name)
