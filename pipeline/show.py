"""``python -m pipeline.show``: what a run holds, in a screenful or as JSON. Reads no feature and loads no TensorFlow."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import cli
from .cli import command_again, differing_options
from .config import parse_config
from .errors import StoreError, printable
from .formatting import count_causes, text_table, words_for_bytes, words_for_device

if TYPE_CHECKING:
    from .config import ShowOptions

# Causes of failure and damaged files that are named.
NAMED = 10
LABEL_WIDTH = 11


def overview(path: Path) -> dict[str, Any]:
    """Return what is known of a run, as ``json=true`` prints it.

    Args:
        path: A run folder, finished or not, its ``features.h5``, or a shard of it.

    Raises:
        StoreError: There is no run.
    """
    from .store.run_summary import summarise_run

    found = summarise_run(path)
    folder, attributes, errors = found["path"], found["attributes"], found.pop("errors")
    options = parse_config(str(attributes.get("config") or _read_text(folder / "config.yaml")))
    report = None
    with suppress(ValueError):
        report = json.loads(_read_text(folder / "report.json"))
    return {
        **found,
        "path": str(folder),
        "rows_failed": len(errors),
        "causes": count_causes(errors),
        "attributes": {name: value for name, value in attributes.items() if name not in ("config", "identity")},
        "options": options,
        "differing_options": differing_options(options),
        "command": command_again(options, folder) if options else "",
        "report": report,
    }


def _read_text(path: Path) -> str:
    """Return a file of a run folder; "" if it is not there, or not as it was written."""
    from .store.damage import read_file

    try:
        return read_file(path).decode()
    except (StoreError, ValueError):
        return ""


def as_text(found: Mapping[str, Any]) -> str:
    """Return a screenful of words.

    Args:
        found: As of :func:`overview`.
    """
    return "\n".join(label.ljust(LABEL_WIDTH) + printable(text) for label, text in _facts(found))


def _facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (label, text) of each line."""
    attributes, identity, report = found["attributes"], found["identity"], found["report"] or {}
    made = f", made {attributes['created']}".replace("T", " ").replace("+00:00", " UTC") if attributes else ""
    yield "run", f"{found['path']}: {found['state']}{made}"
    rows, finished, failed = found["rows"], found["rows_finished"], found["rows_failed"]
    unfinished = f", {rows - finished} not finished" if rows > finished else ""
    yield "rows", f"{rows} ({finished - failed} ok, {failed} failed{unfinished})"
    causes = Counter(found["causes"]).most_common()
    for cause, count in causes[:NAMED]:
        yield "", f"{count:6d} {cause}"
    if len(causes) > NAMED:
        yield "", f"{sum(count for _, count in causes[NAMED:]):6d} for {len(causes) - NAMED} other causes"
    parts = f", {len(found['parts'])} parts: {' + '.join(map(str, found['parts']))} rows" if len(found["parts"]) > 1 else ""
    yield "shards", f"{found['shards_finished']} of {found['shards']}, {found['images_per_shard']} rows each{parts}"
    yield from zip_longest(["layers"], _layer_table(found["layers"]).splitlines(), fillvalue="")
    raw = sum(layer["bytes_raw"] or 0 for layer in found["layers"])
    share = f", {found['bytes_stored'] / raw:.0%} of raw" if raw and all(layer["shape"] for layer in found["layers"]) else ""
    yield "stored", words_for_bytes(found["bytes_stored"]) + share
    if damaged := found["unreadable"]:
        more = f" and {len(damaged) - NAMED} more" if len(damaged) > NAMED else ""
        yield "damaged", f"{', '.join(damaged[:NAMED])}{more}; say python -m pipeline.verify run=... for all that is wrong"
    settings = [name for name in identity if name.startswith(("network.", "runtime.")) and name != "network.weights"]
    yield "network", " ".join([identity["network"], *(f"{name.partition('.')[2]}={identity[name]}" for name in settings)])
    if source := identity.get("reduced from"):
        yield "reduced", f"from the stored features of run {source[:16]}..., not by an extraction"
    # Without a finished shard there are no attributes.
    colours = [attributes[name] for name in ("mean_pixel", "scale_pixel") if name in attributes]
    values = "; ".join(", ".join(f"{value:g}" for value in colour) for colour in colours)
    versions = [f"{name.removeprefix('version_')} {text}" for name, text in attributes.items() if name.startswith("version_")]
    digest = attributes.get("weights_sha256", identity.get("network.weights"))
    rate = f"{report['rows_now']} rows in {report['seconds']:.1f} s" if report.get("rows_now") else ""
    lines = {
        "weights": attributes.get("weights"),
        "": digest and f"SHA-256 {digest}",
        "images": attributes.get("data_root"),
        "input": attributes.get("preprocess") and f"{attributes['preprocess']} ({values})",
        "versions": ", ".join(versions),
        "device": words_for_device(attributes),
        "rate": rate and f"{rate}, {report['images_per_second']:.2f} images/s on the {report['device']}",
        # Last, to be copied.
        "command": found["command"],
    }
    yield from ((label, str(text)) for label, text in lines.items() if text)


def _layer_table(layers: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for layer in layers:
        native = f"native, {layer['channels']} channels" if layer["channels"] else "-"
        shape, raw = " x ".join(map(str, layer["shape"] or ())), layer["bytes_raw"]
        rows.append((layer["name"], shape or native, layer["dtype"], "-" if raw is None else words_for_bytes(raw)))
    return text_table(("", "output", "dtype", "raw"), rows, 3)


def _show(options: ShowOptions) -> None:
    found = overview(options.run)
    print(json.dumps(found, indent=2, ensure_ascii=False, default=_plain) if options.json else as_text(found), flush=True)


def _plain(value: Any) -> Any:
    """Return what JSON does not know, as it knows it: attributes of an HDF5 file, dates among a user's options."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return value if isinstance(value, (list, int, float, str)) else str(value)


def main() -> None:
    """Say what a run holds; leave with exit code 1 where there is none, 2 for a wrong option."""
    cli.start("pipeline.show", _show, when_stopped="nothing was changed.")


if __name__ == "__main__":
    main()
