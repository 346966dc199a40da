"""From checked options to a finished run: makes the stages, joins them, runs the loop, writes index and report."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm.contrib.logging import logging_redirect_tqdm

from .config import Options
from .errors import DatasetError, StoreError
from .extract import extract
from .images import manifest as manifests
from .journal import LOGGER as _log
from .journal import to_file, to_terminal
from .network.layers import CLASSIFIER_BLOCK, resolve_layers
from .network.weights import Weights, load_weights
from .plan import plan_run, versions
from .progress import Progress
from .records import FAILED, Manifest, RunSpec
from .report import Report, Stopwatch, count_causes, peak_memory_bytes, words_for_bytes
from .schema import AUTO
from .stages import make_stages
from .store import disk, folder, format
from .store.index import build_index
from .store.reader import open_run
from .store.writer import Writer

UNTRAINED = (
    "weights: random, so these features are untrained and mean nothing. For trained ones use network.weights=imagenet "
    "(downloads Keras' file once) or network.weights=FILE.mat"
)


def run(options: Options, config_yaml: str) -> Report:
    """Does a whole run.

    Args:
        options: Checked.
        config_yaml: The same as the user's configuration, to be stored.

    Raises:
        PipelineError: What stopped it; finished shards are kept.
    """
    watch = Stopwatch()
    with to_terminal():
        layers = resolve_layers(options.network.name, options.layers)
        with watch.stage("list"):
            manifest = _list_images(options)
        with watch.stage("start"):
            weights = _load_weights(options, needs_classifier=layers[-1].block == CLASSIFIER_BLOCK)
        spec = plan_run(options, manifest, weights, layers, config_yaml)
        with folder.open_folder(options.folder, spec, options.output.existing) as run_folder, to_file(options.folder / "run.log"):
            _preflight(options, spec, run_folder)
            _write_text(options.folder / "config.yaml", config_yaml)
            rows_now, writer, seconds_flowing, device = _extract_missing(options, spec, weights, run_folder, watch)
            with watch.stage("finish"):
                if rows_now or not _index_is_whole(options.folder, spec):
                    build_index(options.folder, spec)
                with open_run(options.folder) as finished:
                    errors = finished.images["error"]
            causes = count_causes(errors)
            report = Report(
                folder=str(options.folder),
                index=str(options.folder / format.INDEX_NAME),
                device=device,
                network=options.network.name,
                weights=str(spec.attributes["weights"]),
                layers={feature.layer.name: feature.shape for feature in spec.features},
                rows=len(manifest),
                failed=sum(causes.values()),
                causes=causes,
                skipped=manifest.skipped,
                rows_now=rows_now,
                seconds_by_stage=watch.seconds(),
                images_per_second=rows_now / seconds_flowing if rows_now else 0.0,
                threads_seconds={"encode": writer.encode_seconds, "write": writer.write_seconds} if writer else {},
                bytes_raw=writer.bytes_raw if writer else 0,
                bytes_stored=writer.bytes_stored if writer else 0,
                peak_memory_bytes=peak_memory_bytes(),
                versions=versions(),
            )
            _write_text(options.folder / "report.json", report.json())
            for line in report.summary().splitlines():
                _log.info(line)
    if report.failed == report.rows:
        raise DatasetError(
            f"{manifest.root}: all {report.rows} images failed, got e.g. {errors[0]!r}. Expected at least one that can be read. "
            f"See /images/error in {report.index}."
        )
    return report


def _list_images(options: Options) -> Manifest:
    if options.data.list is not None:
        manifest = manifests.read_list(options.data.list, options.data.dir)
    else:
        assert options.data.dir is not None
        manifest = manifests.list_folder(options.data.dir)
    skipped = ", ".join(f"{count} {reason}" for reason, count in sorted(manifest.skipped.items()))
    _log.info("images: %d under %s%s", len(manifest), manifest.root, f"; skipped: {skipped}" if skipped else "")
    return manifest


def _load_weights(options: Options, needs_classifier: bool) -> Weights:
    weights = load_weights(
        options.network.name,
        options.network.weights,
        seed=options.network.seed,
        classifier=needs_classifier,
        progress=sys.stderr.isatty(),
        log=_log.info,
    )
    if options.network.pool_padding != AUTO:
        weights = replace(weights, pool_padding=options.network.pool_padding)
    if options.network.weights == "random":
        _log.info(UNTRAINED)
    else:
        _log.info("weights: %s; conv1_1 says: %s", weights.source, weights.recognised)
    return weights


def _preflight(options: Options, spec: RunSpec, run_folder: folder.RunFolder) -> None:
    """Says what will be written, before the first image is read.

    Raises:
        StoreError: It cannot fit on the disk.
    """
    for feature in spec.features:
        if feature.shape is None:
            _log.info(
                "layer: %s, %d channels, one value for %d px", feature.layer.name, feature.layer.channels, feature.layer.stride_px
            )
        else:
            size = words_for_bytes(format.row_bytes([feature], spec.dtype))
            _log.info("layer: %s, %s %s, %s an image", feature.layer.name, " x ".join(map(str, feature.shape)), spec.dtype, size)
    rows = sum(shard.rows for shard in run_folder.missing)
    if run_folder.finished:
        _log.info("resume: %d of %d shards are finished, %d images are left", len(run_folder.finished), len(spec.shards()), rows)
    if not rows:
        return
    free, needed = disk.free_bytes(options.folder), folder.expected_bytes(spec, run_folder.missing)
    words = "a size that depends on the images" if needed is None else f"{words_for_bytes(needed)} before compression"
    _log.info(
        "output: %d images, %s, in %d shards under %s; %s free",
        *(rows, words, len(run_folder.missing), options.folder, words_for_bytes(free)),
    )
    if needed is not None and needed > free:
        text = f"{options.folder}: the features may not fit, got {words_for_bytes(free)} free for {words_for_bytes(needed)}"
        if spec.compression == "none":
            raise StoreError(f"{text}. Expected room for all, since output.compression=none. Use gzip, float16 or another disk.")
        _log.warning("%s before compression. Finished shards are kept if the disk fills up.", text)


def _extract_missing(
    options: Options, spec: RunSpec, weights: Weights, run_folder: folder.RunFolder, watch: Stopwatch
) -> tuple[int, Writer | None, float, str]:
    """Makes the missing shards; gives the rows done, the writer, the seconds from the first batch on, and the device's kind."""
    if not run_folder.missing:
        return 0, None, 0.0, "none"
    with watch.stage("start"):
        stages = make_stages(options, spec, weights)
    workers = options.runtime.workers or os.cpu_count() or 1
    indices = np.concatenate([np.arange(shard.first, shard.stop) for shard in run_folder.missing])
    rows, failed_before = len(spec.manifest), _failed_before(options.folder, spec, run_folder)
    began = time.monotonic()
    with ExitStack() as stack:
        writer = Writer(options.folder, spec, run_folder.missing, workers)
        # Last in, first out: reading stops before what is unfinished is dropped.
        stack.push(lambda kind, error, trace: writer.abort() if kind else None)
        progress = Progress(rows, rows - len(indices), failed_before, options.data.max_failed_fraction)
        stack.enter_context(progress)
        stack.enter_context(logging_redirect_tqdm([_log]))
        batches = stack.enter_context(closing(stages.load(spec.manifest, indices, workers)))
        extract(batches, stages.preprocess, stages.network, writer, watch, progress, asynchronous=stages.device.kind == "gpu")
        with watch.stage("finish"):
            writer.close()
    return len(indices), writer, time.monotonic() - began, stages.device.kind


def _failed_before(path: Path, spec: RunSpec, run_folder: folder.RunFolder) -> int:
    failed = 0
    for shard in spec.shards():
        if shard.number in run_folder.finished:
            with open_run(path / format.SHARD_FOLDER / shard.file_name) as found:
                failed += int((found.images["status"] == FAILED).sum())
    return failed


def _index_is_whole(path: Path, spec: RunSpec) -> bool:
    if not (path / format.INDEX_NAME).is_file():
        return False
    try:
        with open_run(path / format.INDEX_NAME) as found:
            return bool(found.attributes["run_digest"] == spec.digest)
    except StoreError:
        return False


def _write_text(path: Path, text: str) -> None:
    try:
        disk.partial_path(path).write_text(text, encoding="utf-8")
        disk.publish(path)
    except OSError as error:
        raise disk.write_error(path, error) from error
