"""``python -m pipeline.show``: what a run holds, in a screenful or as JSON. Reads no feature and loads no TensorFlow."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import cli
from .cli import command_again, differing_options
from .config import parse_config
from .errors import StoreError, printable
from .formatting import count_causes, text_table, words_for_bytes, words_for_device

if TYPE_CHECKING:
    from .config import ShowOptions
    from .sharding import ShardSpec
    from .store.run_contents import RunContents

LABEL_WIDTH = 11
# Damaged files that are named.
NAMED = 10


def overview(path: Path) -> dict[str, Any]:
    """Return what is known of a run, finished or not, of its folder, its ``features.h5`` or a shard, as ``json=true`` prints it.

    Returns:
        ``path`` of the folder; ``state``: in words; ``rows`` as planned, ``rows_finished``: those in finished shards,
        ``rows_failed`` of these, ``causes``: first words of the reasons -> rows; ``shards`` as planned, ``shards_finished``,
        ``images_per_shard``; ``parts``: rows of each; ``layers`` in network order: ``name``, ``shape`` (h, w, c) or (d,) of a
        row, None at native size or where no file tells, ``dtype`` as stored, ``channels`` and ``stride_px``, 0 where no file
        tells, ``bytes_raw``: activations of the good images in finished shards, None without a shape; ``bytes_stored``: finished
        shards as they lie on the disk; ``attributes`` of the root, none without a finished shard; ``identity``: all that can
        change a number, option -> value; ``unreadable``: names of files that are damaged or no files; ``options`` as stored,
        ``differing_options``: those that are not as by default; ``command`` that makes the run again; ``report``: the last one.

    Raises:
        StoreError: There is no run, or its manifest is damaged; the system does not let us read.
    """
    from .store import format

    contents = _read_contents(path)
    folder, plan, identity, rows = contents.path, contents.plan, contents.planned[-1].identity, contents.planned[-1].part.stop
    finished = [shard for shard in plan if shard.file_name in contents.shards]
    attributes, layers, indexed, errors, unreadable = _read_files(contents, finished)
    state = "finished" if indexed == rows else "an extension is not finished" if indexed else "not finished"
    if any(shard.stop <= indexed and shard not in finished for shard in plan):
        state = "shards are missing"
    failed = [*filter(None, errors)]
    unknown = {"shape": None, "dtype": identity["output.dtype"], "channels": 0, "stride_px": 0}
    told = [{"name": name, **layers.get(name, unknown)} for name in identity["layers"].split(",")]
    for layer in told:
        values = (len(errors) - len(failed)) * math.prod(layer["shape"] or ())
        layer["bytes_raw"] = values * format.ITEMSIZE_BYTES[layer["dtype"]] if layer["shape"] else None
    options = parse_config(str(attributes.get("config") or _read_text(folder / "config.yaml")))
    report = None
    with suppress(ValueError):
        report = json.loads(_read_text(folder / format.REPORT_NAME))
    return {
        "path": str(folder),
        "state": state,
        "rows": rows,
        "rows_finished": sum(shard.rows for shard in finished),
        "rows_failed": len(failed),
        "causes": count_causes(failed),
        "shards": len(plan),
        "shards_finished": len(finished),
        "images_per_shard": int(identity["output.images_per_shard"]),
        "parts": [sum(shard.rows for shard in of_part) for _, of_part in groupby(plan, lambda shard: shard.part)],
        "layers": told,
        "bytes_stored": sum((folder / format.shard_path(shard.file_name)).stat().st_size for shard in finished),
        "attributes": {name: value for name, value in attributes.items() if name not in ("config", "identity")},
        "identity": identity,
        "unreadable": unreadable,
        "options": options,
        "differing_options": differing_options(options),
        "command": command_again(options, folder) if options else "",
        "report": report,
    }


def _read_contents(path: Path) -> RunContents:
    """Return what the run folder holds that this is, or that this file is of; its first manifest is whole."""
    from .store import damage, format
    from .store.run_contents import read_run_contents

    with damage.reading(path, ""):  # a name too long, a folder that is another user's
        if not path.exists():
            raise damage.no_such_run(path)
        folder = path
        if not path.is_dir():
            # What the caller has named is followed; what lies in a run folder is not.
            path = path.resolve() if path.is_symlink() else path
            folder = path.parent.parent if format.SHARD_NAME.fullmatch(path.name) else path.parent
        contents = read_run_contents(folder, images=False)
    if contents.planned:
        return contents
    if contents.files:
        raise damage.damaged(folder / format.manifest_name(0), "the manifest", "none that agrees with its own digest")
    raise damage.no_run(folder)


def _read_files(
    contents: RunContents, finished: Sequence[ShardSpec]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]], int, list[str], list[str]]:
    """Return what the index tells, and the finished shards that it does not know.

    Returns:
        Attributes; layers by name; how many rows the index has; why each row of a finished shard failed, "" for the good ones;
        names of files that are damaged or no files.
    """
    from .store import damage, format

    unreadable = [*contents.special, *(name for name, manifest in contents.manifests.items() if manifest is None)]
    attributes, layers, known, errors = dict[str, Any](), dict[str, dict[str, Any]](), list[str](), list[str]()
    if format.INDEX_NAME in contents.files:
        try:
            attributes, layers, known = _read_file(contents.path / format.INDEX_NAME)
        except damage.DamagedError:
            unreadable.append(format.INDEX_NAME)
    for shard in finished:
        name = format.shard_path(shard.file_name)
        if shard.stop <= len(known):
            errors += known[shard.first : shard.stop]
            continue
        try:
            of_shard, its_layers, its_errors = _read_file(contents.path / name)
        except (damage.DamagedError, damage.ForeignError):
            unreadable.append(name)
        else:
            attributes, layers = attributes or of_shard, layers or its_layers
            errors += its_errors
    return attributes, layers, len(known), errors, unreadable


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]], list[str]]:
    """Return what a shard or the index tells: attributes, layers by name, and why each row failed, "" for the good ones."""
    from .store import damage, tables

    with tables.open_file(path) as file, damage.reading(path, "the tree"):
        layers = {}
        for name in tables.layer_names(file):
            node = damage.own_node(file["features"], name)
            # At native size it is a group.
            shape = [int(side) for side in node.shape[1:]] if hasattr(node, "shape") else None
            numbers = {key: int(node.attrs[key]) for key in ("channels", "stride_px")}
            layers[name] = {"shape": shape, "dtype": str(node.attrs["dtype"]), **numbers}
        return dict(file.attrs), layers, tables.read_column(file, path, "error").tolist()


def _read_text(path: Path) -> str:
    """Return a file of a run folder; "" if it is not there, or not as it was written."""
    from .store.damage import read_file

    try:
        return read_file(path).decode()
    except (StoreError, ValueError):
        return ""


def as_text(found: Mapping[str, Any]) -> str:
    """Return what :func:`overview` has found as a screenful of words."""
    return "\n".join(label.ljust(LABEL_WIDTH) + printable(str(text)) for label, text in _lines(found) if text)


def _lines(found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (label, text) of each line; one without a text is left out."""
    attributes, identity, report = found["attributes"], found["identity"], found["report"] or {}
    made = f", made {attributes['created']}".replace("T", " ").replace("+00:00", " UTC") if attributes else ""
    yield "run", f"{found['path']}: {found['state']}{made}"
    rows, finished, failed = found["rows"], found["rows_finished"], found["rows_failed"]
    unfinished = f", {rows - finished} not finished" if rows > finished else ""
    yield "rows", f"{rows} ({finished - failed} ok, {failed} failed{unfinished})"
    for cause, count in Counter(found["causes"]).most_common():
        yield "", f"{count:6d} {cause}"
    parts = f", {len(found['parts'])} parts: {' + '.join(map(str, found['parts']))} rows" if len(found["parts"]) > 1 else ""
    yield "shards", f"{found['shards_finished']} of {found['shards']}, {found['images_per_shard']} rows each{parts}"
    cells = []
    for layer in found["layers"]:
        native = f"native, {layer['channels']} channels" if layer["channels"] else "-"
        raw = "-" if layer["bytes_raw"] is None else words_for_bytes(layer["bytes_raw"])
        cells.append((layer["name"], " x ".join(map(str, layer["shape"] or ())) or native, layer["dtype"], raw))
    yield from zip_longest(["layers"], text_table(("", "output", "dtype", "raw"), cells, 3).splitlines(), fillvalue="")
    raw_bytes = sum(layer["bytes_raw"] or 0 for layer in found["layers"])
    is_known = raw_bytes and all(layer["shape"] for layer in found["layers"])
    share = f", {found['bytes_stored'] / raw_bytes:.0%} of raw" if is_known else ""
    yield "stored", words_for_bytes(found["bytes_stored"]) + share
    damaged = ", ".join(found["unreadable"][:NAMED])
    yield "damaged", damaged and f"{damaged}; say python -m pipeline.verify run=... for all that is wrong"
    settings = [name for name in identity if name.startswith(("network.", "runtime.")) and name != "network.weights"]
    yield "network", " ".join([identity["network"], *(f"{name.partition('.')[2]}={identity[name]}" for name in settings)])
    source = identity.get("reduced from")
    yield "reduced", source and f"from the stored features of run {source[:16]}..., not by an extraction"
    # Without a finished shard there are no attributes.
    yield "weights", attributes.get("weights")
    digest = attributes.get("weights_sha256", identity.get("network.weights"))
    yield "", digest and f"SHA-256 {digest}"
    yield "images", attributes.get("data_root")
    colours = [attributes[name] for name in ("mean_pixel", "scale_pixel") if name in attributes]
    values = "; ".join(", ".join(f"{value:g}" for value in colour) for colour in colours)
    yield "input", "preprocess" in attributes and f"{attributes['preprocess']} ({values})"
    versions = [f"{name.removeprefix('version_')} {text}" for name, text in attributes.items() if name.startswith("version_")]
    yield "versions", ", ".join(versions)
    yield "device", words_for_device(attributes)
    if report.get("rows_now"):
        rate = f"{report['images_per_second']:.2f} images/s on the {report['device']}"
        yield "rate", f"{report['rows_now']} rows in {report['seconds']:.1f} s, {rate}"
    # Last, to be copied.
    yield "command", found["command"]


def _show(options: ShowOptions) -> None:
    def plain(value: Any) -> Any:
        """Return an attribute of an HDF5 file, or a date among a user's options, as JSON has it."""
        return value.tolist() if hasattr(value, "tolist") else str(value)

    found = overview(options.run)
    print(json.dumps(found, indent=2, ensure_ascii=False, default=plain) if options.json else as_text(found), flush=True)


main = partial(cli.start, "pipeline.show", _show, when_stopped="nothing was changed.")

if __name__ == "__main__":
    main()
