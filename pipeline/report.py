"""What a run did: seconds by stage, counts, the bottleneck; as words for people and as ``report.json``."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from .storage.address import is_address

Item = TypeVar("Item")

# Stages of the loop in order, and what a user can do where most of the time goes there.
STAGES: dict[str, str] = {
    "list": "listing the images",
    "start": "loading TensorFlow and the weights",
    "read": "waiting for images (on a CPU resized too): faster disk, more runtime.workers; at a fixed size data.decode=fast",
    "network": "resizing on a GPU and the network itself: a GPU, an earlier layer, a smaller data.size",
    "store": "waiting for features to be encoded and written: faster disk, more runtime.workers, output.dtype=float16",
    "finish": "finishing shards and writing the index",
    "other": "everything else",
}

# Of ``report.json``, which has some kilobytes: a stranger's may have gigabytes.
MOST_REPORT_BYTES = 4 << 20


class Stopwatch:
    """Splits the wall time of one thread into stages; they add up to the whole, what no stage claims is ``other``.

    A stage entered inside another stops the outer one's clock.
    """

    def __init__(self) -> None:
        self._began = self._last = time.perf_counter()
        self._stack = ["other"]
        self._seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the time inside the ``with`` block for this stage."""
        self._turn()
        self._stack.append(name)
        try:
            yield
        finally:
            self._turn()
            self._stack.pop()

    def over(self, items: Iterable[Item], name: str) -> Iterator[Item]:
        """Gives the items, counting the time it takes to get each for this stage."""
        iterator = iter(items)
        while True:
            with self.stage(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def divide(self, name: str, shares: Mapping[str, float]) -> None:
        """Gives the time of one stage to others, in proportion: it was spent waiting for those who were at these."""
        self._turn()
        whole, total = self._seconds[name], sum(shares.values())
        if total > 0:
            self._seconds[name] = 0.0
            for stage, share in shares.items():
                self._seconds[stage] += whole * share / total

    def seconds(self) -> dict[str, float]:
        """Gives the seconds of every stage so far."""
        self._turn()
        return dict(self._seconds)

    def _turn(self) -> None:
        now = time.perf_counter()
        self._seconds[self._stack[-1]] += now - self._last
        self._last = now


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did, in numbers.

    Attributes:
        folder: Where the results are.
        index: File to open; "" where it is left to another process.
        device: ``cpu`` or ``gpu``.
        network: Its name.
        weights: What they are.
        layers: Name -> shape of a row, None at native size.
        run_digest: Of the run, as in its files.
        rows: Rows of the manifest.
        failed: Rows that failed, in this run and in what it resumed.
        causes: First words of the reasons -> rows.
        skipped: Files passed over while listing: reason -> how many.
        rows_now: Rows done by this run; the others were finished before and kept.
        rows_added: Those of ``rows_now`` whose images came after the run had begun: ``output.existing=extend``.
        seconds_by_stage: Wall time of the main thread by what it did or waited for; they add up to ``seconds``.
        images_per_second: ``rows_now`` over the time from the first batch asked for to the last shard finished.
        threads_seconds: Seconds of background threads by work, summed over threads.
        bytes_raw: Features of this run before encoding.
        bytes_stored: As stored.
        peak_memory_bytes: Largest resident size of any process of the run; 0 where the system does not tell.
        versions: Of this program and the libraries.
        options: Every option as it was set or is by default, name -> value.
        part: ``3/8`` where this process made a share of the run only: rates, bytes, memory and seconds are its own; "" else.
    """

    folder: str
    index: str
    device: str
    network: str
    weights: str
    layers: Mapping[str, tuple[int, int, int] | None]
    run_digest: str
    rows: int
    failed: int
    causes: Mapping[str, int]
    skipped: Mapping[str, int]
    rows_now: int
    rows_added: int
    seconds_by_stage: Mapping[str, float]
    images_per_second: float
    threads_seconds: Mapping[str, float]
    bytes_raw: int
    bytes_stored: int
    peak_memory_bytes: int
    versions: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    part: str = ""

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Gives the report that :meth:`json` was made of, or that of an earlier version of the program.

        Raises:
            ValueError: It is no JSON, or something of it has another type, or a number that no run has.
            TypeError: It is not that of a report; also KeyError and RecursionError.
        """
        content = json.loads(text)
        report = cls(**{part.name: content[part.name] for part in fields(cls) if part.name in content})
        for part in fields(cls):
            value = getattr(report, part.name)
            if not _FITS[str(part.type)](value):
                raise ValueError(f"{part.name} of another type: {str(value)[:100]}")
        shapes = {name: None if shape is None else (shape[0], shape[1], shape[2]) for name, shape in report.layers.items()}
        return replace(report, layers=shapes)

    @property
    def seconds(self) -> float:
        """Wall time."""
        return sum(self.seconds_by_stage.values())

    @property
    def page(self) -> str:
        """The page that shows it."""
        # Of an address Path would make a path.
        return f"{self.folder}/report.html" if is_address(self.folder) else str(Path(self.folder, "report.html"))

    @property
    def bottleneck(self) -> str:
        """Stage of the loop that took longest once images were flowing."""
        flowing = ("read", "network", "store")
        # That of an earlier version may lack one.
        return max(flowing, key=lambda name: self.seconds_by_stage.get(name, 0.0))

    def json(self) -> str:
        """Gives the report as JSON text."""
        content = {**asdict(self), "seconds": self.seconds, "bottleneck": self.bottleneck}
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    def summary(self) -> str:
        """Gives the report as a screenful of words."""
        of_it = "rows are those of the run, all else is" if self.index else "all of it is"
        lines = [f"part       {self.part}; {of_it} of this part alone"] if self.part else []
        lines += [f"rows       {self.rows} ({self.rows - self.failed} ok, {self.failed} failed)"]
        lines += [f"             {count:6d} {cause}" for cause, count in sorted(self.causes.items(), key=lambda item: -item[1])]
        if self.rows_now < self.rows:
            before = "an earlier run" if not self.part or not self.index else "other parts or an earlier run"
            lines.append(f"             {self.rows - self.rows_now:6d} finished by {before}")
        if self.rows_added:
            lines.append(f"             {self.rows_added:6d} added to it")
        if self.skipped:
            lines.append("skipped    " + ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items())))
        if self.rows_now:
            ratio = f", {self.bytes_stored / self.bytes_raw:.0%} of raw" if self.bytes_raw else ""
            lines.append(f"rate       {self.images_per_second:.2f} images/s on the {self.device}")
            lines.append(f"stored     {words_for_bytes(self.bytes_stored)}{ratio}")
            lines.append(f"memory     {words_for_bytes(self.peak_memory_bytes)} at the peak")
        parts = [f"{name} {seconds:.1f}" for name, seconds in self.seconds_by_stage.items() if seconds >= 0.05]
        lines.append(f"seconds    {self.seconds:.1f} = " + " + ".join(parts))
        if self.rows_now:
            lines.append(f"limit      {self.bottleneck}: {STAGES[self.bottleneck]}")
        if not self.index:
            return "\n".join(lines)
        lines.append(f"results    {self.index}")
        lines.append(f"page       {self.page}")
        first = next(iter(self.layers))
        lines.append(f'open       from pipeline import open_run; run = open_run("{self.folder}"); run["{first}"][0]')
        return "\n".join(lines)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    # NaN is not below anything. What a run counts and measures fits into 63 bits, and what does not cannot be divided.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and _is_number(value)


def _is_shape(value: Any) -> bool:
    return value is None or (isinstance(value, (list, tuple)) and len(value) == 3 and all(map(_is_whole, value)))


def _is_option(value: Any) -> bool:
    values = value if isinstance(value, (list, tuple)) else [value]
    return all(part is None or isinstance(part, (bool, int, float, str)) for part in values)


def _is_mapping(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Mapping) and all(map(_is_text, value)) and all(map(fits, value.values()))


# Type of a field of a report -> whether a value is one.
_FITS: dict[str, Callable[[Any], bool]] = {
    "str": _is_text,
    "int": _is_whole,
    "float": _is_number,
    "Mapping[str, int]": _is_mapping(_is_whole),
    "Mapping[str, float]": _is_mapping(_is_number),
    "Mapping[str, str]": _is_mapping(_is_text),
    "Mapping[str, tuple[int, int, int] | None]": _is_mapping(_is_shape),
    "Mapping[str, Any]": _is_mapping(_is_option),
}


def count_causes(errors: Iterable[str]) -> dict[str, int]:
    """Counts failed rows by the words before the colon of their reason."""
    return dict(Counter(error.split(":", 1)[0] for error in errors if error))


def words_for_bytes(count: float) -> str:
    """Gives ``1.6 MB``, ``3.2 TB``: decimal units, as disks are sold."""
    if count < 1000:
        return f"{count:.0f} B"
    units = ("kB", "MB", "GB", "TB", "PB")
    power = min(len(units), int(math.log(count, 1000)))
    return f"{count / 1000**power:.1f} {units[power - 1]}"
