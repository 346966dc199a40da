"""One run from checked options to the index: list, plan, open the folder, make what is missing, write index and reports."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict, fields, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from .config import AUTO, Options, flat, parse_config
from .dry_run import free_bytes, run_sample
from .engines import Engine, open_local
from .errors import ImageError, StoreError, system_errors_in_one_line
from .extract import make_stages
from .formatting import count_causes, counted, words_for_bytes
from .image_list import list_images
from .images.reading import read_image
from .machine import peak_memory_bytes
from .network import load_tensorflow
from .network.architectures import CLASSIFIER_BLOCK, foreign_names
from .network.keras_models import KERAS, KerasWeights, load_keras
from .network.known_weights import Weights
from .network.weights import load_weights
from .plan import plan_run, versions
from .progress import LOGGER as _log
from .progress import Made, Progress, Stopwatch, can_draw, log_to_file, log_to_terminal, refuse_failed_run
from .records import LayerSpec, Manifest, RunSpec
from .report import Report, render_page
from .sharding import ShardSpec
from .signals import clearing, leaving_at_once
from .storage import read_ahead
from .store import disk, format
from .store.damage import UnreadableError, read_file
from .store.digests import Digests
from .store.index_file import build_index
from .store.reader import open_run
from .store.run_folder import RunFolder, open_folder
from .transforms import compute_sample, with_transforms, write_transforms

REPORT, PAGE = format.REPORT_NAME, "report.html"
MOST_FAILED = "data.max_failed_fraction"
UNTRAINED = (
    "weights: random, so these features are untrained and mean nothing. For trained ones use network.weights=imagenet "
    "(downloads Keras' file once) or network.weights=FILE.mat"
)


def run(options: Options, *, quiet: bool = False) -> Report | None:
    """Do a whole run; of a dry one, say what it would make and take, and return None.

    Raises:
        PipelineError: What stopped it; finished shards are kept.
    """
    if "tensorflow" in sys.modules:
        # An earlier run of this process: its network, gigabytes, and TensorFlow's functions of it keep one another.
        gc.collect()
    watch = Stopwatch()
    with log_to_terminal(quiet) as kept_lines, system_errors_in_one_line():
        open_engine = open_local
        if options.engine.name == "ray":
            from .engines.ray import open_ray, require_ray

            require_ray()
            open_engine = open_ray
        words = [word.partition(":")[0] for word in options.layers]
        if options.network.name == KERAS:
            with watch.stage("start"), leaving_at_once():
                _claim_gpu(options)
                # Which is checked already of the others.
                options.features()
        elif foreign := foreign_names(options.network.name, words):
            _log.info("layers: %s", ", ".join(f"{theirs} is {ours} here" for theirs, ours in foreign.items()))
        with watch.stage("list"):
            manifest = list_images(options.data)
        with watch.stage("start"):
            weights = _load_weights(options, [feature.layer for feature in options.features(rows=len(manifest))])
        planned = plan_run(options, manifest, weights)
        with ExitStack() as stack:
            opened = open_folder(options.folder, planned, options.output.existing, options.part, preview=options.dry_run)
            run_folder = stack.enter_context(opened)
            # With what an earlier run has made of it: the rows before those that are added, what was left to choose.
            if options.part is None:
                _try_again(run_folder)
            say_plan(run_folder)
            if options.dry_run:
                _dry_run(options, run_folder, weights)
                return None
            engine = None
            with _with_transforms(options, run_folder, weights) as transforms:
                if run_folder.missing:
                    with watch.stage("start"):
                        engine = stack.enter_context(open_engine(options, weights, run_folder))
                # From here on nothing but the disk can refuse the run.
                run_folder.prepare()
                if transforms:
                    write_transforms(run_folder, transforms)
            log = run_folder.path / format.marked(format.LOG_NAME, options.part.mark if options.part else "")
            stack.enter_context(log_to_file(log, kept_lines))
            stack.enter_context(clearing(run_folder.drop_partial_files))
            made = make_missing(run_folder, engine, _check_finished(run_folder), watch)
            if options.part is not None:
                return finish_share(run_folder, made, watch)
            return finish_run(run_folder.path, run_folder.spec, made, watch)


def _claim_gpu(options: Options) -> None:
    """Take the GPU of this process before Keras computes anything on all of them; workers take their own."""
    load_tensorflow()
    from .network.device import claim_gpu

    is_driver = options.engine.name != "local" and not options.dry_run
    claim_gpu("cpu" if is_driver else options.runtime.device, options.part.number - 1 if options.part else 0)


def _load_weights(options: Options, layers: Sequence[LayerSpec]) -> Weights | KerasWeights:
    network = options.network
    if network.weights == "random":
        _log.info(UNTRAINED)
    if network.model is not None:
        model = network.model, network.weights, network.preprocess
        with leaving_at_once():
            return load_keras(*model, size_px=options.data.size, layers=layers, seed=network.seed, log=_log.info)
    weights = load_weights(
        *(network.name, network.weights),
        seed=network.seed,
        classifier=layers[-1].block == CLASSIFIER_BLOCK,
        progress=can_draw(),
        log=_log.info,
    )
    if network.weights != "random":
        _log.info("weights: %s; conv1_1 says: %s", weights.source, weights.recognised)
    return weights if network.pool_padding == AUTO else replace(weights, pool_padding=network.pool_padding)


def _with_transforms(options: Options, run_folder: RunFolder, weights: Weights | KerasWeights) -> AbstractContextManager[bytes]:
    return with_transforms(options.reduction, run_folder, partial(compute_sample, options, run_folder.spec, weights))


def _try_again(run_folder: RunFolder) -> None:
    """Have the finished shards made again that lack a local image whose file has come, can be read or is another one now."""
    manifest = run_folder.spec.manifest

    def is_mended(row: int, sha256: str) -> bool:
        try:
            # To ask a storage for each image that it has lost may take hours.
            return manifest[row].source is None and hashlib.sha256(read_image(manifest[row])).hexdigest() != sha256
        except (OSError, ImageError):
            return False

    found = {shard: [row for row, read in rows.items() if is_mended(row, read)] for shard, rows in run_folder.failed.items()}
    found = {shard: rows for shard, rows in found.items() if rows}
    if found:
        rows = [row for rows in found.values() for row in rows]
        _log.info(
            "resume: %s failed before, and can be read now or changed, e.g. %r; %s made again",
            counted(len(rows), "image"),
            manifest.keys[rows[0]],
            counted(len(found), "shard"),
        )
        run_folder.make_again(found)


def say_plan(run_folder: RunFolder) -> None:
    """Say what will be written, before the first image is read.

    Raises:
        StoreError: It cannot fit on the disk.
    """
    spec, own, missing, share = run_folder.spec, run_folder.own, run_folder.missing, run_folder.share
    for feature in spec.features:
        if feature.shape is None:
            size = f"{feature.channels} channels, one value for {feature.layer.stride_px} px"
        else:
            size_bytes = words_for_bytes(format.row_bytes([feature], spec.dtype))
            size = f"{' x '.join(map(str, feature.shape))} {spec.dtype}, {size_bytes} an image"
        _log.info("layer: %s, %s", feature.name, size)
    rows = count_rows(missing)
    if share is not None:
        _log.info("part: %s, %d of %s, %d images", share, len(own), counted(len(spec.shards()), "shard"), count_rows(own))
    if run_folder.added:
        _log.info("extend: %s after the %d of the run", counted(run_folder.added, "new image"), spec.first_row)
    if len(gone := run_folder.removed):
        words = f"{counted(len(gone), 'image')} of the run no longer there, e.g. {spec.manifest.keys[int(gone[0])]!r}"
        _log.warning("extend: %s: finished rows are kept, others will fail", words)
    if run_folder.finished:
        _log.info("resume: %d of %d shards are finished, %d images are left", len(run_folder.finished), len(own), rows)
    if not rows:
        return
    is_native = any(feature.shape is None for feature in spec.features)
    all_bytes = None if is_native else rows * format.row_bytes(spec.features, spec.dtype)
    free, place = free_bytes(run_folder), disk.scratch_of(run_folder.path)
    size = "a size that depends on the images" if all_bytes is None else f"{words_for_bytes(all_bytes)} before compression"
    shards = counted(len(missing), "shard")
    _log.info("output: %d images, %s, in %s under %s; %s free", rows, size, shards, run_folder.path, words_for_bytes(free))
    # Of a run at an address this machine's disk has only what is being made.
    is_here = place == run_folder.path
    if is_here and spec.compression == "none" and all_bytes is not None and all_bytes > free:
        raise StoreError(
            f"{place}: the features do not fit, got {words_for_bytes(free)} free for {words_for_bytes(all_bytes)}. Expected "
            "enough for all. Use output.compression=gzip, float16 or another disk."
        )


def _dry_run(options: Options, run_folder: RunFolder, weights: Weights | KerasWeights) -> None:
    _check_finished(run_folder)
    if not run_folder.missing:
        _log.info("estimate: all %d rows are finished, nothing is left to make", count_rows(run_folder.own))
    else:
        if options.engine.name != "local":
            _log.info("dry run: the sample is made by this process alone, and so the estimate is for it")
        with _with_transforms(options, run_folder, weights), leaving_at_once():
            stages = make_stages(options, run_folder.spec, weights)
        run_sample(options, run_folder, stages)
    _log.info("dry run: nothing was written. Leave out dry_run=true to extract.")


def make_missing(run_folder: RunFolder, engine: Engine | None, errors: Sequence[str], watch: Stopwatch) -> Made:
    """Write ``config.yaml``, and have an engine make the missing shards; ``errors``: why rows of the finished ones failed."""
    path, spec = run_folder.path, run_folder.spec
    with run_folder.alone():
        # Of parts the first one that comes writes it: to the others it may be the run's already.
        if (engine is not None and run_folder.share is None) or not Digests(path).agrees("config.yaml"):
            write_text(path / "config.yaml", str(spec.attributes["config"]))
    if engine is None:
        return Made()
    rows, began = count_rows(run_folder.missing), time.monotonic()
    before = count_rows(run_folder.own) - rows
    with Progress(spec, rows, before, errors, _options(spec).get(MOST_FAILED, 1.0)) as progress:
        made = engine(progress, watch)
    made.rows_now, made.rows_added = rows, count_rows(shard for shard in run_folder.missing if shard.part)
    made.images_per_second = rows / (time.monotonic() - began)
    return made


def _options(spec: RunSpec) -> dict[str, Any]:
    """Return the options that are stored with a run, by their full names."""
    return flat(parse_config(str(spec.attributes.get("config", ""))))


def _check_finished(run_folder: RunFolder) -> list[str]:
    """Return why rows of the finished shards failed; say where other libraries or another compression have made them.

    Raises:
        StoreError: An image has changed since.
    """
    path, spec = run_folder.path, run_folder.spec
    errors: list[str] = []
    others: set[str] = set()
    finished = [shard for shard in run_folder.own if shard in run_folder.finished]
    paths = read_ahead(path / format.shard_path(shard.file_name) for shard in finished)
    for shard, shard_path in zip(finished, paths, strict=True):
        with open_run(shard_path) as found:
            created, root = str(found.attributes.get("created")), str(found.attributes.get("data_root"))
            refuse_changed_images(path, spec.manifest, shard, found.images["sha256"].tolist(), created, root)
            errors += [error for error in found.images["error"] if error]
            for name, text in {"compression": spec.compression, **spec.attributes}.items():
                if name.startswith(("version_", "compression")) and found.attributes.get(name, text) != text:
                    others.add(f"{name.removeprefix('version_')} {found.attributes[name]}, now {text}")
    if others and run_folder.missing:
        _log.warning("resume: finished shards were made with %s", "; ".join(sorted(others)))
    return errors


def refuse_changed_images(
    path: Path, manifest: Manifest, shard: ShardSpec, sha256: Sequence[str], created: str, root: str
) -> None:
    """Read again the images of a finished shard that may have changed since, and refuse to go on where one has.

    Those that were written after the shard was ``created`` (ISO 8601), or all if it was made from another folder, ``root``;
    where the clock has been set back since, nobody can say what was written after it. ``sha256``: of the files as they were
    read, hex; "" where they could not be.

    Raises:
        StoreError: An image has another content than the features were made from.
    """
    finished_seconds = 0.0  # before all images, if that cannot be read or is still to come
    with suppress(ValueError, OverflowError, OSError):
        seconds = datetime.fromisoformat(created).timestamp()
        finished_seconds = seconds if seconds <= time.time() else 0.0
    for index, digest in zip(range(shard.first, shard.stop), sha256, strict=True):
        record = manifest[index]
        try:
            # Not by way of a Path: thousands are asked a second.
            written = os.stat(record.path).st_mtime if record.source is None else record.source.modified_seconds(record)  # noqa: PTH116
            if root == manifest.root and written < finished_seconds:
                continue
            found = hashlib.sha256(read_image(record)).hexdigest() if digest else ""
        except (OSError, ImageError):
            # Its features are there; that it cannot be read now is no reason to doubt them.
            continue
        if found != digest:
            raise StoreError(
                f"{path}: an image has changed since its features were made, got another content of {manifest.keys[index]!r}. "
                f"Expected the images of {root!r} as they were. Use another name=..., or output.existing=replace to start again."
            )


def finish_share(run_folder: RunFolder, made: Made, watch: Stopwatch) -> Report:
    """End the run as :func:`finish_run` if all shards are there, those of other processes too; else say how many are not."""
    path, spec, share = run_folder.path, run_folder.spec, run_folder.share
    assert share is not None
    errors: list[str] = []
    for shard in run_folder.own:
        with open_run(path / format.shard_path(shard.file_name)) as found:
            errors += [error for error in found.images["error"] if error]
    report = _report(path, spec, made, watch, count_rows(run_folder.own), errors, part=str(share))
    own = path / format.marked(REPORT, share.mark)
    if made.rows_now or not own.exists():
        # It has no line in SHA256SUMS. Where nothing was made, what it took when something was is worth more.
        write_text(own, report.json(), disk.publish)
    with run_folder.alone():
        lacking = run_folder.lacking()
        if not lacking and not run_folder.is_extended():
            run_folder.gather_digests()
            return finish_run(path, spec, made, watch, part=str(share))
    _log.info("%s", report.summary())
    is_left = f"{len(lacking)} of {len(spec.shards())} shards are not there yet"
    _log.info("index: %s; the part that finishes last writes it", is_left if lacking else "the run has been extended meanwhile")
    return report


def finish_run(path: Path, spec: RunSpec, made: Made, watch: Stopwatch, *, part: str = "") -> Report:
    """Write the index and the reports of a run all of whose shards are there; say what was done, by this ``part`` of it or alone.

    Raises:
        StoreError: A shard is missing, damaged or of another run; the disk refuses.
        DatasetError: All images have failed, or more than may.
    """
    with watch.stage("finish"):
        # Another part may have written it meanwhile.
        is_indexed = (bool(part) or not made.rows_now) and index_is_whole(path, spec)
        if not is_indexed:
            build_index(path, spec)
        with open_run(path) as run:
            errors = [error for error in run.images["error"] if error]
    report = _report(path, spec, made, watch, len(spec.manifest), errors, part, is_indexed=True)
    write_reports(path, spec, report, is_unchanged=is_indexed)
    _log.info("%s", report.summary())
    refuse_failed_run(spec.manifest.root, errors, report.rows, report.options.get(MOST_FAILED, 1.0))
    return report


def index_is_whole(path: Path, spec: RunSpec) -> bool:
    """Return whether the index is there, as it was written, and of this run.

    Raises:
        UnreadableError: It is in use, or the system does not let us read it, so that it must not be written anew.
    """
    index = path / format.INDEX_NAME
    if not index.is_file():
        return False
    try:
        with open_run(index) as found:
            return bool(found.attributes["run_digest"] == spec.digest) and Digests(path).agrees(index.name)
    except UnreadableError:
        raise
    except StoreError:
        return False


def _report(
    path: Path,
    spec: RunSpec,
    made: Made,
    watch: Stopwatch,
    rows: int,
    errors: Sequence[str],
    part: str,
    *,
    is_indexed: bool = False,
) -> Report:
    made.peak_memory_bytes = max(made.peak_memory_bytes, peak_memory_bytes())
    return Report(
        **asdict(made),
        folder=str(path),
        index=str(path / format.INDEX_NAME) if is_indexed else "",
        network=spec.identity["network"],
        weights=str(spec.attributes["weights"]),
        layers={feature.name: feature.shape for feature in spec.features},
        run_digest=spec.digest,
        rows=rows,
        failed=len(errors),
        causes=count_causes(errors),
        skipped=spec.manifest.skipped,
        seconds_by_stage=watch.seconds(),
        versions=versions(),
        options=_options(spec),
        part=part,
    )


def write_reports(path: Path, spec: RunSpec, report: Report, *, is_unchanged: bool) -> None:
    """Write ``report.json`` and ``report.html`` of a finished run.

    What the run took when it did something is worth more than that nothing was left to do: then (``is_unchanged``) a report
    that is there stays, and the page says what is in it.

    Raises:
        StoreError: The disk refuses; a shard is damaged.
    """
    digests = Digests(path)
    stored = _stored_report(path) if is_unchanged and digests.agrees(REPORT) else None
    # A power cut after the index leaves the report of the run as it was before it was extended, or images could be read again.
    if stored is None or (stored.run_digest, stored.failed) != (report.run_digest, report.failed):
        stored = None
        # The page first: a kill in between must leave none of another state of the run.
        digests.drop([PAGE])
        disk.remove(path / PAGE)
        write_text(path / REPORT, report.json())
    elif digests.agrees(PAGE):
        return
    report = stored or report
    with open_run(path) as run:
        write_text(path / PAGE, render_page(report, run, spec.manifest))


def _stored_report(path: Path) -> Report | None:
    """Return what ``report.json`` says; None where it is of another version of this program."""
    try:
        content = json.loads(read_file(path / REPORT))
        return Report(**{each.name: content[each.name] for each in fields(Report)})
    except (ValueError, KeyError, TypeError):
        return None


def write_text(path: Path, text: str, publish: Callable[[Path], object] | None = None) -> None:
    """Write a file of a run folder, whole or not at all, and its line in ``SHA256SUMS`` unless it is published otherwise."""
    # A folder's name need not be UTF-8; the escapes are those of JSON and YAML too.
    disk.write_file(path, text.encode("utf-8", "backslashreplace"), publish or Digests(path.parent).publish)


def count_rows(shards: Iterable[ShardSpec]) -> int:
    """Return how many rows shards hold."""
    return sum(shard.rows for shard in shards)
