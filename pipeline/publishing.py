"""``report.json`` and ``report.html`` of a finished run: when and how they are written."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .errors import StoreError
from .records import RunSpec, Share
from .report import MOST_REPORT_BYTES, Report
from .report_page import Sample, page_values, render, take_samples
from .store import disk, format
from .store.digests import Digests
from .store.file_checks import read_small
from .store.reader import open_run

REPORT, PAGE = "report.json", "report.html"


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
                write_text(self.folder / PAGE, render(page_values(told, run, self.samples, self.sampled_layers)))


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
