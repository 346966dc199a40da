"""The end of a run: the index over all shards, the reports, and whether too much has failed.

A process that makes a share of a run ends it only if all shards are there then; the others leave it to the one that comes last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import DatasetError, StoreError
from .journal import LOGGER as _log
from .machine import peak_memory_bytes
from .plan import versions
from .progress import refuse_failures
from .publishing import look_at_reports, write_part_report
from .records import RunSpec
from .report import Report, Stopwatch, count_causes
from .store import format
from .store.damage import UnreadableError
from .store.digests import Digests
from .store.index_file import build_index
from .store.reader import open_run
from .store.remote import settle
from .store.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class Made:
    """What a process has made of a run, and how fast.

    Attributes:
        device: Where the network ran; ``none`` where there was nothing to make.
        rows: Of the shards that were made.
        rows_added: Those of them whose images came after the run had begun.
        images_per_second: From the first batch asked for to the last shard finished.
        threads_seconds: Seconds of background threads by work, summed over threads.
        bytes_raw: Features before encoding.
        bytes_stored: As stored.
        peak_memory_bytes: Of the process that took most, where others made it.
    """

    device: str = "none"
    rows: int = 0
    rows_added: int = 0
    images_per_second: float = 0.0
    threads_seconds: Mapping[str, float] = field(default_factory=dict)
    bytes_raw: int = 0
    bytes_stored: int = 0
    peak_memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Ending:
    """What a run's end needs to know besides the run.

    Attributes:
        made: By this process.
        watch: Of this process.
        options: As they were given, name -> value.
        max_failed_fraction: More of all rows may not have failed.
    """

    made: Made
    watch: Stopwatch
    options: Mapping[str, Any]
    max_failed_fraction: float


def finish_share(run_folder: RunFolder, ending: Ending, errors_before: Sequence[str]) -> Report:
    """Ends the run if all shards are there; says how many are not, else.

    Args:
        run_folder: Of a share, all of whose shards are finished.
        ending: See there.
        errors_before: Why rows failed of those of its shards that had been finished before.

    Raises:
        PipelineError: As of :func:`finish_run`.
    """
    folder, spec, share = run_folder.path, run_folder.spec, run_folder.share
    assert share is not None
    # From the shards, whoever has made them: the loop here, or workers elsewhere.
    errors = [*errors_before]
    for shard in run_folder.missing:
        with open_run(folder / format.shard_path(shard.file_name)) as made:
            errors += [error for error in made.images["error"] if error]
    report = _report(folder, spec, ending, sum(shard.rows for shard in run_folder.own), errors, part=str(share))
    write_part_report(folder, share, report, is_new=bool(ending.made.rows))
    settle(folder)
    with run_folder.alone():
        lacking = run_folder.lacking()
        if not lacking and not run_folder.is_extended():
            run_folder.gather_digests()
            return finish_run(folder, spec, ending, index_is_whole(folder, spec), part=str(share))
    for line in report.summary().splitlines():
        _log.info(line)
    if lacking:
        _log.info(
            "index: %d of %d shards are not there yet; the part that finishes last writes it", len(lacking), len(spec.shards())
        )
    else:
        _log.info("index: the run has been extended meanwhile; the part that finishes the extension last writes it")
    return report


def finish_run(folder: Path, spec: RunSpec, ending: Ending, is_indexed: bool, part: str = "") -> Report:
    """Writes the index and the reports of a run all of whose shards are there; says what was done.

    Args:
        folder: The run folder, held.
        spec: The run.
        ending: See there.
        is_indexed: Whether the index is there already, and right.
        part: Of this process, ``3/8``.

    Raises:
        StoreError: A shard is missing, damaged or of another run; the disk refuses.
        DatasetError: All images have failed, or more than may.
    """
    with ending.watch.stage("finish"):
        if not is_indexed:
            build_index(folder, spec)
        reports = look_at_reports(folder, spec, is_unchanged=is_indexed and (not ending.made.rows or bool(part)))
    report = _report(folder, spec, ending, len(spec.manifest), reports.errors, part, is_indexed=True)
    reports.write(report)
    settle(folder)
    for line in report.summary().splitlines():
        _log.info(line)
    if report.failed == report.rows:
        raise DatasetError(
            f"{spec.manifest.root}: all {report.rows} images failed, got e.g. {reports.errors[0]!r}. Expected at least one that "
            f"can be read. See /images/error in {report.index}."
        )
    refuse_failures(report.failed, report.rows, ending.max_failed_fraction, next(iter(reports.errors), ""))
    return report


def index_is_whole(folder: Path, spec: RunSpec) -> bool:
    """Tells whether the index is there, as it was written, and of this run.

    Raises:
        UnreadableError: It is in use, or the system does not let us read it, so that it must not be written anew.
    """
    path = folder / format.INDEX_NAME
    if not path.is_file():
        return False
    try:
        with open_run(path) as found:
            return bool(found.attributes["run_digest"] == spec.digest) and Digests(folder).agrees(path.name)
    except UnreadableError:
        raise
    except StoreError:
        return False


def _report(
    folder: Path, spec: RunSpec, ending: Ending, rows: int, errors: Sequence[str], part: str = "", is_indexed: bool = False
) -> Report:
    made = ending.made
    return Report(
        folder=str(folder),
        index=str(folder / format.INDEX_NAME) if is_indexed else "",
        device=made.device,
        network=spec.identity["network"],
        weights=str(spec.attributes["weights"]),
        layers={feature.layer.name: feature.shape for feature in spec.features},
        run_digest=spec.digest,
        rows=rows,
        failed=len(errors),
        causes=count_causes(errors),
        skipped=spec.manifest.skipped,
        rows_now=made.rows,
        rows_added=made.rows_added,
        seconds_by_stage=ending.watch.seconds(),
        images_per_second=made.images_per_second,
        threads_seconds=made.threads_seconds,
        bytes_raw=made.bytes_raw,
        bytes_stored=made.bytes_stored,
        peak_memory_bytes=max(made.peak_memory_bytes, peak_memory_bytes()),
        versions=versions(),
        options=ending.options,
        part=part,
    )
