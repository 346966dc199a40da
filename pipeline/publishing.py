"""``report.json`` and ``report.html`` of a finished run: when they are written, and what the page says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .command_line import command_again
from .errors import StoreError
from .pages.contents import Cause, Contents, LayerFacts, Sample, Stage
from .pages.page import render
from .pages.words import share
from .records import RunSpec, Share
from .report import MOST_REPORT_BYTES, STAGES, Report, words_for_bytes
from .samples import take_samples
from .schema import defaults
from .store import disk, format
from .store.digests import Digests
from .store.reader import Run, open_run, place_of
from .store.regular import read_small

REPORT, PAGE = "report.json", "report.html"
# Of failures; a run may have a million, each with a cause of its own.
CAUSES = 12
EXAMPLES = 12

UNTRAINED = "Untrained weights, network.weights=random: these features mean nothing."


@dataclass(frozen=True, slots=True)
class Reports:
    """The reports of a run folder, and what of them is to be written.

    Attributes:
        folder: The run folder.
        report: Whether ``report.json`` is to be written: something was done, or it is not there, or not of this run.
        page: Whether ``report.html`` is.
        errors: Why images failed, over all rows.
        samples: For the page.
        sampled_layers: Likewise.
    """

    folder: Path
    report: bool
    page: bool
    errors: tuple[str, ...]
    samples: tuple[Sample, ...]
    sampled_layers: tuple[str, ...]

    def write(self, report: Report) -> None:
        """Writes what is to be written.

        Args:
            report: Of what was just done. Where that was nothing, the page says what is in ``report.json``: what the run took
                when it did something.

        Raises:
            StoreError: The disk refuses; a shard is damaged.
        """
        digests = Digests(self.folder)
        if self.report:
            # First: a kill in between must leave no page of another state of the run.
            _remove(self.folder / PAGE, digests)
            write_text(self.folder / REPORT, report.json())
        if self.page:
            told = report if self.report else stored_report(self.folder) or report
            with open_run(self.folder) as run:
                write_text(self.folder / PAGE, render(_contents(told, run, self.samples, self.sampled_layers)))


def look_at_reports(folder: Path, spec: RunSpec, is_unchanged: bool) -> Reports:
    """Says what is to be written, and reads what the page will show; the run is finished and indexed.

    Args:
        folder: The run folder.
        spec: The run.
        is_unchanged: Whether nothing was made, neither shards nor index. What the run took when it did something is worth more
            than that this time there was nothing to do.
    """
    digests = Digests(folder)
    stored = stored_report(folder)
    is_reported = is_unchanged and digests.agrees(REPORT) and stored is not None and stored.run_digest == spec.digest
    is_shown = is_reported and digests.agrees(PAGE) and not disk.partial_path(folder / PAGE).exists()
    with open_run(folder) as run:
        errors = tuple(error for error in run.images["error"] if error)
        samples, layers = ((), ()) if is_shown else take_samples(run, spec.manifest)
    return Reports(folder, not is_reported, not is_shown, errors, samples, layers)


def stored_report(folder: Path) -> Report | None:
    """Gives what ``report.json`` says; None where it is missing, partly written or none of this program's."""
    path = folder / REPORT
    if disk.partial_path(path).exists():
        return None
    try:
        return Report.from_json(read_small(path, MOST_REPORT_BYTES).decode())
    except (StoreError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def write_part_report(folder: Path, share: Share, report: Report, is_new: bool) -> None:
    """Writes the report of a process that makes a share of the run, beside the others; it has no line in ``SHA256SUMS``.

    Args:
        folder: The run folder.
        share: Of the process.
        report: Of what it has done.
        is_new: Whether that was something: else what it took when it did something is worth more.

    Raises:
        StoreError: The disk refuses.
    """
    path = folder / format.report_name(share.mark)
    if path.exists() and not is_new:
        return
    try:
        disk.partial_path(path).write_text(report.json(), encoding="utf-8", errors="backslashreplace")
        disk.publish(path)
    except OSError as error:
        with suppress(OSError):
            disk.partial_path(path).unlink()
        raise disk.write_error(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Writes a file of a run folder, whole or not at all, and its line in ``SHA256SUMS``.

    Raises:
        StoreError: The disk refuses.
    """
    try:
        # A folder's name need not be UTF-8; the escapes are those of JSON and YAML too.
        disk.partial_path(path).write_text(text, encoding="utf-8", errors="backslashreplace")
        Digests(path.parent).publish(path)
    except BaseException as error:  # Ctrl-C too
        with suppress(OSError):
            disk.partial_path(path).unlink()
        if isinstance(error, OSError):
            raise disk.write_error(path, error) from error
        raise


def _remove(path: Path, digests: Digests) -> None:
    try:
        digests.drop([path.name])
    except OSError as error:
        raise disk.write_error(digests.path, error) from error
    disk.remove(path)


def option_text(value: Any) -> str:
    """Gives the value of an option as the command line takes it."""
    if value is None:
        return "null"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(option_text, value))}]"
    return str(value)


def _nested(options: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in options.items():
        *groups, last = name.split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return nested


def _contents(report: Report, run: Run, samples: tuple[Sample, ...], sampled_layers: tuple[str, ...]) -> Contents:
    attributes, known = run.attributes, defaults()
    texts = {name: option_text(value) for name, value in report.options.items()}
    folder = place_of(report.folder)
    again = command_again(_nested(report.options), folder, str(attributes["data_root"])) if texts else ""
    changed = {name: (text, option_text(known.get(name))) for name, text in texts.items() if text != option_text(known.get(name))}
    return Contents(
        name=folder.name,
        network=report.network,
        command=again,
        warning=UNTRAINED if str(attributes["weights"]).startswith("random") else "",
        changed=changed,
        unchanged={name: text for name, text in texts.items() if name not in changed},
        facts={
            "images from": str(attributes["data_root"]),
            "network": report.network,
            "weights": report.weights,
            "SHA-256 of weights": str(attributes["weights_sha256"]),
            "input": str(attributes["preprocess"]),
            "mean colour": ", ".join(f"{value:.3f}" for value in attributes["mean_pixel"].tolist()),
            "values": f"{run[run.layers[0]].dtype}, compression {attributes['compression']}",
            "shards": str(len(run.shards)),
            "run digest": str(attributes["run_digest"]),
            "written": str(attributes["created"]),
        },
        versions=report.versions,
        rows=report.rows,
        failed=report.failed,
        causes=_causes(run) if report.failed else (),
        skipped=report.skipped,
        figures=_figures(report),
        stages=tuple(
            Stage(name, seconds, *(part.strip() for part in f"{STAGES[name]}:".split(":")[:2]))
            for name, seconds in report.seconds_by_stage.items()
            if name in STAGES
        ),
        bottleneck=report.bottleneck if report.rows_now else "",
        threads_seconds=report.threads_seconds,
        layers=tuple(LayerFacts(name, report.layers.get(name), run[name].channels, run.statistics[name]) for name in run.layers),
        samples=samples,
        sampled_layers=sampled_layers,
    )


def _figures(report: Report) -> dict[str, str]:
    figures = {"images": f"{report.rows:,}", "failed": f"{report.failed:,}"}
    if report.part:
        figures["part, of which all else is"] = report.part
    elif report.rows_now < report.rows:
        figures["done before"] = f"{report.rows - report.rows_now:,}"
    if report.rows_added:
        figures["added"] = f"{report.rows_added:,}"
    if report.rows_now:
        figures["rate"] = f"{report.images_per_second:.1f} images/s"
        figures["stored"] = words_for_bytes(report.bytes_stored)
        if report.bytes_raw:
            figures["compressed to"] = share(report.bytes_stored / report.bytes_raw)
        figures["device"] = report.device
    figures["wall time"] = words_for_seconds(report.seconds)
    figures["peak memory"] = words_for_bytes(report.peak_memory_bytes)
    return figures


def words_for_seconds(seconds: float) -> str:
    """Gives ``4.2 s``, ``3 min 5 s``, ``7 h 20 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _causes(run: Run) -> tuple[Cause, ...]:
    counts: Counter[str] = Counter()
    examples: dict[str, list[tuple[str, str]]] = {}
    for key, error in zip(run.images["key"], run.images["error"], strict=True):
        if error:
            word = str(error).split(":", 1)[0]
            counts[word] += 1
            if counts[word] <= EXAMPLES:
                examples.setdefault(word, []).append((str(key), str(error)))
    frequent = counts.most_common()
    causes = [Cause(word, count, tuple(examples[word])) for word, count in frequent[:CAUSES]]
    if len(frequent) > CAUSES:
        causes.append(Cause("for other causes", sum(count for _, count in frequent[CAUSES:]), ()))
    return tuple(causes)
