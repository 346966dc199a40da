"""What a run did: seconds by stage, counts, the bottleneck; as words for people and as ``report.json``."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from .formatting import words_for_bytes

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


class Stopwatch:
    """Splits the wall time of one thread into stages; they add up to the whole, what no stage claims is ``other``.

    A stage entered inside another stops the outer one's clock.
    """

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._stack = ["other"]
        self._seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time inside the ``with`` block for this stage."""
        self._turn()
        self._stack.append(name)
        try:
            yield
        finally:
            self._turn()
            self._stack.pop()

    def over(self, items: Iterable[Item], name: str) -> Iterator[Item]:
        """Yield the items, counting the time it takes to get each for this stage."""
        iterator = iter(items)
        while True:
            with self.stage(name):
                found = list(itertools.islice(iterator, 1))
            if not found:
                return
            yield found.pop()

    def divide(self, name: str, shares: Mapping[str, float]) -> None:
        """Give the time of one stage to others, in proportion: it was spent waiting for workers that were at these."""
        self._turn()
        whole, total = self._seconds[name], sum(shares.values())
        if total > 0:
            self._seconds[name] = 0.0
            for stage, share in shares.items():
                self._seconds[stage] += whole * share / total

    def seconds(self) -> dict[str, float]:
        """Return the seconds of every stage so far."""
        self._turn()
        return dict(self._seconds)

    def _turn(self) -> None:
        now = time.perf_counter()
        self._seconds[self._stack[-1]] += now - self._last
        self._last = now


@dataclass(slots=True)
class Made:
    """What was made of a run, by this process or by its workers.

    Attributes:
        device: ``cpu`` or ``gpu``; ``none`` where there was nothing to make.
        bytes_raw: Activations before compression.
        bytes_stored: The same, after.
        encode_seconds: Of background threads, summed.
        write_seconds: Likewise.
        peak_memory_bytes: Largest resident size of any process; 0 where the system does not tell.
        rows_now: Rows of the shards that were made; the others of the run were finished before and kept.
        rows_added: Those of them whose images came after the run had begun: ``output.existing=extend``.
        images_per_second: ``rows_now`` over the time from the first batch asked for to the last shard finished.
    """

    device: str = "none"
    bytes_raw: int = 0
    bytes_stored: int = 0
    encode_seconds: float = 0.0
    write_seconds: float = 0.0
    peak_memory_bytes: int = 0
    rows_now: int = 0
    rows_added: int = 0
    images_per_second: float = 0.0

    def add(self, other: Any) -> None:
        """Add the bytes and seconds of something else that was made, or of a writer."""
        for name in ("bytes_raw", "bytes_stored", "encode_seconds", "write_seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(slots=True, kw_only=True)
class Report(Made):
    """What a run did, in numbers.

    Attributes:
        folder: Where the results are.
        index: File to open; "" where it is left to another process.
        network: Its name.
        weights: What they are.
        layers: Name -> shape of a row, None at native size.
        run_digest: Of the run, as in its files.
        rows: Rows of the manifest.
        failed: Rows that failed, in this run and in what it resumed.
        causes: First words of the reasons -> rows.
        skipped: Files passed over while listing: reason -> how many.
        seconds_by_stage: Wall time of the main thread by what it did or waited for; they add up to ``seconds``.
        versions: Of this program and the libraries.
        options: Every option as it was set or is by default, name -> value.
        part: ``3/8`` where this process made a share of the run only: rates, bytes, memory and seconds are its own; "" else.
    """

    folder: str
    index: str
    network: str
    weights: str
    layers: Mapping[str, tuple[int, int, int] | None]
    run_digest: str
    rows: int
    failed: int
    causes: Mapping[str, int]
    skipped: Mapping[str, int]
    seconds_by_stage: Mapping[str, float]
    versions: Mapping[str, str]
    options: Mapping[str, Any]
    part: str

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Return the report that :meth:`json` was made of.

        Raises:
            ValueError: It is no JSON.
            TypeError: It is not that of a report; also KeyError and AttributeError.
        """
        content = json.loads(text)
        content["layers"] = {name: shape and tuple(shape) for name, shape in content["layers"].items()}
        return cls(**{part.name: content[part.name] for part in fields(cls)})

    @property
    def seconds(self) -> float:
        """Wall time."""
        return sum(self.seconds_by_stage.values())

    @property
    def bottleneck(self) -> str:
        """Stage of the loop that took longest once images were flowing; "" where none were."""
        return max(("read", "network", "store"), key=lambda name: self.seconds_by_stage.get(name, 0.0)) if self.rows_now else ""

    def json(self) -> str:
        """Return the report as JSON text."""
        content = {**asdict(self), "seconds": self.seconds, "bottleneck": self.bottleneck}
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    def numbers(self) -> dict[str, str]:
        """Return what was done, title -> words: lines of the log, and boxes of the page."""
        found = {}
        if self.part:
            found["part"] = (
                f"{self.part}; {'rows are those of the run, all else is' if self.index else 'all of it is'} of this part alone"
            )
        found["rows"] = f"{self.rows} ({self.rows - self.failed} ok, {self.failed} failed)"
        if self.rows_now < self.rows:
            before = "other parts or an earlier run" if self.part and self.index else "an earlier run"
            found["kept"] = f"{self.rows - self.rows_now} finished by {before}"
        if self.rows_added:
            found["new"] = f"{self.rows_added} added to it"
        if self.rows_now:
            found["rate"] = f"{self.images_per_second:.2f} images/s on the {self.device}"
            ratio = f", {self.bytes_stored / self.bytes_raw:.0%} of raw" if self.bytes_raw else ""
            found["stored"] = f"{words_for_bytes(self.bytes_stored)}{ratio}"
            found["memory"] = f"{words_for_bytes(self.peak_memory_bytes)} at the peak"
        return found

    def summary(self) -> str:
        """Return the report as a screenful of words."""
        lines = []
        for title, text in self.numbers().items():
            lines.append(f"{title:11}{text}")
            if title == "rows":
                lines += [f"             {count:6d} {cause}" for cause, count in Counter(self.causes).most_common()]
        if self.skipped:
            lines.append("skipped    " + ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items())))
        parts = [f"{name} {seconds:.1f}" for name, seconds in self.seconds_by_stage.items() if seconds >= 0.05]
        lines.append(f"seconds    {self.seconds:.1f} = " + " + ".join(parts))
        if self.bottleneck:
            lines.append(f"limit      {self.bottleneck}: {STAGES[self.bottleneck]}")
        if self.index:
            lines.append(f"results    {self.index}")
            # An address is no Path.
            lines.append(f"page       {self.index.removesuffix('features.h5')}report.html")
            first = next(iter(self.layers))
            lines.append(f'open       from pipeline import open_run; run = open_run("{self.folder}"); run["{first}"][0]')
        return "\n".join(lines)


def count_causes(errors: Iterable[str]) -> dict[str, int]:
    """Count failed rows by the words before the colon of their reason."""
    return dict(Counter(error.split(":", 1)[0] for error in errors if error))
