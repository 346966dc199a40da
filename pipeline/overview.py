"""What a run holds, in words: a screenful for people, and JSON for scripts."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .command_line import argument, command_again, differing_options
from .errors import printable
from .report import count_causes, words_for_bytes

if TYPE_CHECKING:
    from .store.holdings import Holdings, LayerHolding

# The width of the words before each line.
LABEL = 11
# Causes and damaged files that are named.
NAMED = 10
# Of what is given as JSON.
DEEPEST = 20
# What every run has another value of, or what another line says.
_NOT_SHOWN = ("data.dir", "data.list", "data.tar", "data.tfds", "data.split", "layers", "name", "output.dir", "output.existing")
# Columns of the table of layers that go first where the terminal is narrow, and last.
_DROPPED = ("dtype", "raw", "of raw", "output", "stored")


class Overview:
    """All that is known of a run.

    Args:
        holdings: What its files say.
        config: The options that made it, nested; nothing of a run whose files do not tell.
        report: Of ``report.json``; nothing where there is none.
    """

    def __init__(self, holdings: Holdings, config: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        self._held = holdings
        self._config = config
        self._report = report

    @property
    def command(self) -> str:
        """What makes the run again, for a shell; "" where nothing tells."""
        if not self._config:
            return ""
        path = self._held.path
        # A shard lies in the folder of shards of its run.
        folder = path if path.is_dir() else path.absolute().parent.parent
        return command_again(self._config, folder, str(self._held.attributes.get("data_root", "")))

    @property
    def differing(self) -> dict[str, Any]:
        """Options that are not as they are by default."""
        return differing_options(self._config)

    def json(self) -> str:
        """Gives everything as JSON text."""
        held = self._held
        content = {
            "path": str(held.path),
            "state": held.state,
            "first_row": held.first_row,
            "rows": held.rows,
            "rows_finished": held.rows_finished,
            "rows_failed": len(held.errors),
            "causes": count_causes(held.errors),
            "shards": held.shards_planned,
            "shards_finished": held.shards_finished,
            "images_per_shard": held.images_per_shard,
            "parts": held.parts,
            "layers": [
                {
                    "name": layer.name,
                    "shape": layer.shape,
                    "dtype": layer.dtype,
                    "channels": layer.channels,
                    "stride_px": layer.stride_px,
                    "bytes_raw": layer.raw_bytes,
                    "bytes_stored": layer.stored_bytes,
                }
                for layer in held.layers
            ],
            "bytes_are_estimated": held.is_sampled,
            "unreadable": held.unreadable,
            "identity": held.identity,
            "attributes": {name: _plain(value) for name, value in held.attributes.items() if name not in ("config", "identity")},
            "options": _plain(self._config),
            "differing_options": _plain(self.differing),
            "command": self.command,
            "report": _plain(self._report) or None,
        }
        return json.dumps(content, indent=2, ensure_ascii=False)

    def text(self, width: int | None) -> str:
        """Gives a screenful.

        Args:
            width: Columns of the terminal; None: lines are as long as they need to be.
        """
        lines: list[str] = []
        for label, text in self._facts():
            lines += _wrapped(label, text, width)
            if label == "shards":
                lines += _layer_lines(self._held.layers, self._held.is_sampled, width)
        # Last and unbroken, to be copied.
        if self.command:
            lines.append("command".ljust(LABEL) + self.command)
        return "\n".join(lines)

    def _facts(self) -> Iterator[tuple[str, str]]:
        held, attributes, identity = self._held, self._held.attributes, self._held.identity
        created = f", made {_when(str(attributes['created']))}" if "created" in attributes else ""
        yield "run", f"{held.path}: {held.state}{created}"
        yield from self._rows()
        yield "shards", self._shards()
        if held.unreadable:
            yield "damaged", f"{_some(held.unreadable)}; say python -m pipeline.verify run=... for all that is wrong"
        yield "network", ", ".join([identity.get("network", str(attributes.get("network", ""))), *_network_words(identity)])
        if "weights" in attributes:
            yield "weights", str(attributes["weights"])
        if digest := attributes.get("weights_sha256", identity.get("network.weights")):
            yield "", f"SHA-256 {digest}"
        if "data_root" in attributes:
            yield "images", str(attributes["data_root"])
        if "preprocess" in attributes:
            values = np.ravel(attributes.get("mean_pixel", ())).tolist()
            mean = ", ".join(f"{value:g}" if isinstance(value, (int, float)) else str(value) for value in values)
            yield "input", f"{attributes['preprocess']} ({mean})"
        differing = [argument(name, value) for name, value in self.differing.items() if name not in _NOT_SHOWN]
        if self._config:
            yield "options", " ".join(map(printable, differing)) or "all others as by default"
        versions = [f"{name.removeprefix('version_')} {text}" for name, text in attributes.items() if name.startswith("version_")]
        if versions:
            yield "versions", ", ".join(versions)
        if self._report.get("rows_now"):
            rate, seconds = float(self._report["images_per_second"]), float(self._report["seconds"])
            yield (
                "rate",
                f"{self._report['rows_now']} rows in {seconds:.1f} s, {rate:.2f} images/s on the {self._report['device']}",
            )

    def _rows(self) -> Iterator[tuple[str, str]]:
        held, failed = self._held, len(self._held.errors)
        good = held.rows_finished - failed
        unfinished = held.rows - held.rows_finished
        rows = f"{held.first_row} to {held.first_row + held.rows - 1}, " if held.shards_planned == 1 and held.first_row else ""
        left = f", {unfinished} not finished" if unfinished else ""
        yield "rows", f"{rows}{held.rows} ({good} ok, {failed} failed{left})"
        causes = sorted(count_causes(held.errors).items(), key=lambda item: (-item[1], item[0]))
        for cause, count in causes[:NAMED]:
            yield "", f"{count:6d} {cause}"
        if len(causes) > NAMED:
            yield "", f"{sum(count for _, count in causes[NAMED:]):6d} for {len(causes) - NAMED} other causes"

    def _shards(self) -> str:
        held = self._held
        step = f"{held.images_per_shard} rows each"
        if held.path.is_file() and held.shards_planned == 1 and held.state != "finished":
            return f"this one; of a run of {held.attributes['rows']} rows, {step}"
        parts = f", {len(held.parts)} parts: {' + '.join(map(str, held.parts))} rows" if len(held.parts) > 1 else ""
        return f"{held.shards_finished} of {held.shards_planned}, {step}{parts}"


def _network_words(identity: Mapping[str, str]) -> list[str]:
    words = {
        "network.pooling": "{} pooling",
        "network.pool_padding": "padding {}",
        "network.kernel_order": "kernels {}",
        "runtime.backend": "backend {}",
        "runtime.precision": "{} products",
    }
    return [text.format(identity[name]) for name, text in words.items() if name in identity]


def _layer_lines(layers: Sequence[LayerHolding], is_sampled: bool, width: int | None) -> list[str]:
    about = "about " if is_sampled else ""
    heading = {
        "layer": "",
        "output": "output",
        "dtype": "dtype",
        "raw": f"{about}raw",
        "stored": f"{about}stored",
        "of raw": "of raw",
    }
    rows = [heading, *(_layer_row(layer.name, layer) for layer in layers)]
    if len(layers) > 1:
        raw, stored = sum(layer.raw_bytes for layer in layers), sum(layer.stored_bytes for layer in layers)
        rows.append({"layer": "all", "output": "", "dtype": "", **_size_cells(raw, stored)})
    columns = [*heading]
    for dropped in (None, *_DROPPED):
        columns = [name for name in columns if name != dropped]
        widths = {name: max(len(row[name]) for row in rows) for name in columns}
        if width is None or LABEL + sum(widths.values()) + 2 * (len(columns) - 1) <= width:
            break
    lines = []
    for number, row in enumerate(rows):
        cells = [
            row[name].ljust(widths[name]) if name in ("layer", "output", "dtype") else row[name].rjust(widths[name])
            for name in columns
        ]
        lines.append(("layers" if not number else "").ljust(LABEL) + "  ".join(cells).rstrip())
    return lines


def _layer_row(name: str, layer: LayerHolding) -> dict[str, str]:
    shape = " x ".join(map(str, layer.shape)) if layer.shape else f"native, {layer.channels} channels" if layer.channels else "-"
    return {
        "layer": printable(name),
        "output": shape,
        "dtype": printable(layer.dtype),
        **_size_cells(layer.raw_bytes, layer.stored_bytes),
    }


def _size_cells(raw: int, stored: int) -> dict[str, str]:
    ratio = f"{stored / raw:.0%}" if raw else "-"
    return {"raw": words_for_bytes(raw), "stored": words_for_bytes(stored), "of raw": ratio}


def _wrapped(label: str, text: str, width: int | None) -> list[str]:
    text = printable(text)
    if width is None or LABEL + len(text) <= width:
        return [label.ljust(LABEL) + text]
    parts = textwrap.wrap(text, max(20, width - LABEL), break_on_hyphens=False, break_long_words=False)
    return [(label if not number else "").ljust(LABEL) + part for number, part in enumerate(parts)]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _when(created: str) -> str:
    return created.replace("T", " ").replace("+00:00", " UTC")


def _plain(value: Any, depth: int = 0) -> Any:
    """Gives what JSON has a word for; what is nested more deeply than anything of this program's is left out."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (Mapping, list, tuple, set)) and depth > DEEPEST:
        return "..."
    if isinstance(value, Mapping):
        return {str(name): _plain(part, depth + 1) for name, part in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(part, depth + 1) for part in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
