"""One run from checked options to the index: list, plan, open the folder, make what is missing, write index and reports."""

from __future__ import annotations

import gc
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .config import AUTO, Options, flat, parse_config
from .dry_run import dry_run
from .errors import ImageError, StoreError, system_errors_in_one_line
from .extract import Engine, open_local
from .formatting import count_causes, counted, words_for_bytes
from .images.reading import read_image
from .machine import peak_memory_bytes
from .network import load_tensorflow
from .network.architectures import CLASSIFIER_BLOCK, foreign_names
from .network.keras_models import KERAS, AnyWeights, load_keras
from .network.weights import load_weights
from .pca import compute_sample, with_transforms
from .plan import list_images, plan_run, versions
from .progress import LOGGER, Made, Progress, Stopwatch, can_draw, log_to_file, log_to_terminal, refuse_failures
from .records import LayerSpec, Manifest, RunSpec
from .report import Report, render_page
from .sharding import ShardSpec
from .signals import clearing, leaving_at_once
from .storage import read_ahead
from .store import disk, format
from .store.damage import read_file
from .store.digests import Digests
from .store.index_file import build_index
from .store.reader import open_run
from .store.run_folder import RunFolder, open_folder

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
    with log_to_terminal(quiet) as kept_lines, system_errors_in_one_line(), ExitStack() as stack:
        open_engine = open_local
        if options.engine.name == "ray":
            from .ray_engine import open_ray, require_ray

            require_ray()
            open_engine = open_ray
        if options.network.name == KERAS:
            with watch.stage("start"), leaving_at_once():
                _claim_gpu(options)
                # Which is checked already of the others.
                options.features()
        elif foreign := foreign_names(options.network.name, [word.partition(":")[0] for word in options.layers]):
            LOGGER.info("layers: %s", ", ".join(f"{theirs} is {ours} here" for theirs, ours in foreign.items()))
        with watch.stage("list"):
            manifest = list_images(options.data)
        with watch.stage("start"):
            weights = _load_weights(options, [feature.layer for feature in options.features(rows=len(manifest))])
        planned = plan_run(options, manifest, weights)
        opened = open_folder(options.folder, planned, options.output.existing, options.part, preview=options.dry_run)
        run_folder = stack.enter_context(opened)
        # With what an earlier run has made of it: the rows before those that are added, what was left to choose.
        failed = check_finished(run_folder)
        say_plan(run_folder)
        engine = None
        with with_transforms(options.reduction, run_folder, partial(compute_sample, options, run_folder.spec, weights)):
            if options.dry_run:
                dry_run(options, run_folder, weights)
                return None
            if run_folder.missing:
                with watch.stage("start"):
                    engine = stack.enter_context(open_engine(options, weights, run_folder))
            # From here on nothing but the disk can refuse the run.
            run_folder.prepare()
        log = run_folder.path / format.marked(format.LOG_NAME, options.part.mark if options.part else "")
        stack.enter_context(log_to_file(log, kept_lines))
        stack.enter_context(clearing(run_folder.drop_partial_files))
        made = make_missing(run_folder, engine, failed, watch)
        if options.part is not None:
            return finish_share(run_folder, made, watch)
        return finish_run(run_folder.path, run_folder.spec, made, watch)


def _claim_gpu(options: Options) -> None:
    """Take the GPU of this process before Keras computes anything on all of them; workers take their own."""
    load_tensorflow()
    from .network.device import claim_gpu

    is_driver = options.engine.name != "local" and not options.dry_run
    claim_gpu("cpu" if is_driver else options.runtime.device, options.part.number - 1 if options.part else 0)


def _load_weights(options: Options, layers: Sequence[LayerSpec]) -> AnyWeights:
    network = options.network
    if network.weights == "random":
        LOGGER.info(UNTRAINED)
    if network.model is not None:
        assert options.data.size is not None
        model = network.model, network.weights, network.preprocess
        with leaving_at_once():
            return load_keras(*model, size_px=options.data.size, layers=layers, seed=network.seed, log=LOGGER.info)
    classifier = layers[-1].block == CLASSIFIER_BLOCK
    weights = load_weights(
        network.name, network.weights, seed=network.seed, classifier=classifier, progress=can_draw(), log=LOGGER.info
    )
    if network.weights != "random":
        LOGGER.info("weights: %s; conv1_1 says: %s", weights.source, weights.recognised)
    if network.kernel_order == "whio":
        # It reproduces scripts that swap the first two axes by mistake.
        weights = replace(weights, kernels={name: kernel.transpose(1, 0, 2, 3) for name, kernel in weights.kernels.items()})
    return weights if network.pool_padding == AUTO else replace(weights, pool_padding=network.pool_padding)


def say_plan(run_folder: RunFolder) -> None:
    """Say what will be written, before the first image is read."""
    spec, own, missing, share = run_folder.spec, run_folder.own, run_folder.missing, run_folder.share
    for feature in spec.features:
        if feature.shape is None:
            size = f"{feature.channels} channels, one value for {feature.layer.stride_px} px"
        else:
            row_bytes = format.row_bytes([feature], spec.dtype)
            size = f"{' x '.join(map(str, feature.shape))} {spec.dtype}, {words_for_bytes(row_bytes)} an image"
        LOGGER.info("layer: %s, %s", feature.name, size)
    rows = count_rows(missing)
    if share is not None:
        LOGGER.info("part: %s, %d of %s, %d images", share, len(own), counted(len(spec.shards()), "shard"), count_rows(own))
    if added := count_rows(shard for shard in missing if shard.part):
        LOGGER.info("extend: %s after the %d of the run", counted(added, "new image"), spec.parts[0].stop)
    if run_folder.finished:
        LOGGER.info("resume: %d of %d shards are finished, %d images are left", len(run_folder.finished), len(own), rows)
    if not rows:
        return
    is_native = any(feature.shape is None for feature in spec.features)
    all_bytes = words_for_bytes(rows * format.row_bytes(spec.features, spec.dtype))
    size = "a size that depends on the images" if is_native else f"{all_bytes} before compression"
    shards, free = counted(len(missing), "shard"), words_for_bytes(disk.free_bytes(run_folder.path))
    LOGGER.info("output: %d images, %s, in %s under %s; %s free", rows, size, shards, run_folder.path, free)


def make_missing(run_folder: RunFolder, engine: Engine | None, failed: int, watch: Stopwatch) -> Made:
    """Write ``config.yaml``, and have an engine make the missing shards; ``failed``: rows of the finished ones."""
    path, spec = run_folder.path, run_folder.spec
    with run_folder.alone():
        # Of parts the first one that comes writes it: to the others it may be the run's already.
        if (engine is not None and run_folder.share is None) or not Digests(path).agrees("config.yaml"):
            write_text(path / "config.yaml", str(spec.attributes["config"]))
    if engine is None:
        return Made()
    rows, began = count_rows(run_folder.missing), time.monotonic()
    before = count_rows(run_folder.own) - rows
    with Progress(spec, rows, before, failed, _options(spec).get(MOST_FAILED, 1.0)) as progress:
        made = engine(progress, watch)
    made.rows_now, made.rows_added = rows, count_rows(shard for shard in run_folder.missing if shard.part)
    made.images_per_second = rows / (time.monotonic() - began)
    return made


def _options(spec: RunSpec) -> dict[str, Any]:
    """Return the options that are stored with a run, by their full names."""
    return flat(parse_config(str(spec.attributes.get("config", ""))))


def check_finished(run_folder: RunFolder) -> int:
    """Hold the finished shards to the images as they are now, and return how many rows of them failed.

    A shard that has a failed row whose image can be read now, or is another one, is made again; by a share of the run it is kept.

    Raises:
        StoreError: An image of which there are features has changed since.
    """
    spec, keys, share = run_folder.spec, run_folder.spec.manifest.keys, run_folder.share
    failed, mended, again, others = 0, list[int](), list[ShardSpec](), set[str]()
    finished = [shard for shard in run_folder.own if shard in run_folder.finished]
    paths = read_ahead(run_folder.path / format.shard_path(shard.file_name) for shard in finished)
    for shard, path in zip(finished, paths, strict=True):
        with open_run(path) as found:
            errors, root = found.images["error"].tolist(), str(found.attributes.get("data_root"))
            changed = changed_rows(spec.manifest, shard, found.images, str(found.attributes.get("created")), root)
            if good := [row for row in changed if not errors[row - shard.first]]:
                raise StoreError(
                    f"{run_folder.path}: an image has changed since its features were made, got another content of "
                    f"{keys[good[0]]!r}. Expected the images of {root!r} as they were. Use another name=..., or "
                    "output.existing=replace to start again."
                )
            if changed and share is None:
                mended += changed
                again.append(shard)
                continue
            failed += sum(map(bool, errors))
            for name, text in spec.attributes.items():
                if name.startswith(("version_", "compression")) and found.attributes.get(name, text) != text:
                    others.add(f"{name.removeprefix('version_')} {found.attributes[name]}, now {text}")
    if again:
        said = counted(len(mended), "image"), keys[mended[0]], counted(len(again), "shard")
        LOGGER.info("resume: %s failed before, and can be read now or changed, e.g. %r; %s made again", *said)
        run_folder.make_again(again)
    if others and run_folder.missing:
        LOGGER.warning("resume: finished shards were made with %s", "; ".join(sorted(others)))
    return failed


def changed_rows(manifest: Manifest, shard: ShardSpec, images: Mapping[str, NDArray[Any]], created: str, root: str) -> list[int]:
    """Return the rows of a finished shard whose images can be read and have another content now than ``images`` say.

    Read again are local images that failed, and those that were written after the shard was ``created`` (ISO 8601) or have
    another size; all if it was made from another folder, ``root``, or the clock has been set back since.
    """
    finished_seconds = -math.inf
    with suppress(ValueError, OverflowError, OSError):
        seconds = datetime.fromisoformat(created).timestamp()
        if seconds <= time.time() and root == manifest.root:
            finished_seconds = seconds
    changed, columns = [], (images[name].tolist() for name in ("error", "bytes", "sha256"))
    for row, error, size_bytes, digest in zip(range(shard.first, shard.stop), *columns, strict=True):
        record = manifest[row]
        if error and record.source is not None:
            # To ask a storage for each image that it has lost may take hours.
            continue
        # An image that cannot be read now is no reason to doubt its features.
        with suppress(OSError, ImageError):
            if record.source is None:
                # Not by way of a Path: thousands are asked a second.
                there = os.stat(record.path)  # noqa: PTH116
                is_old = there.st_mtime < finished_seconds and there.st_size == size_bytes
            else:
                is_old = record.source.modified_seconds(record) < finished_seconds
            if (error or not is_old) and hashlib.sha256(read_image(record)).hexdigest() != digest:
                changed.append(row)
    return changed


def finish_share(run_folder: RunFolder, made: Made, watch: Stopwatch) -> Report:
    """End the run as :func:`finish_run` if all shards are there, those of other processes too; else say how many are not."""
    path, spec, share = run_folder.path, run_folder.spec, run_folder.share
    assert share is not None
    errors = [error for shard in run_folder.own for error in _errors(path / format.shard_path(shard.file_name))]
    report = _report(path, spec, made, watch, count_rows(run_folder.own), errors, str(share))
    own = path / format.marked(REPORT, share.mark)
    # Where nothing was made, what it took when something was is worth more.
    if made.rows_now or not own.exists():
        write_text(own, report.json(), has_line=False)
    with run_folder.alone():
        lacking = run_folder.lacking()
        if not lacking and not run_folder.is_extended():
            run_folder.gather_digests()
            return finish_run(path, spec, made, watch, part=str(share))
    LOGGER.info("%s", report.summary())
    is_left = f"{len(lacking)} of {len(spec.shards())} shards are not there yet"
    LOGGER.info("index: %s; the part that finishes last writes it", is_left if lacking else "the run has been extended meanwhile")
    return report


def finish_run(path: Path, spec: RunSpec, made: Made, watch: Stopwatch, *, part: str = "") -> Report:
    """Write the index and the reports of a run all of whose shards are there; say what was done, by this ``part`` of it or alone.

    Raises:
        StoreError: A shard is missing, damaged or of another run; the disk refuses.
        DatasetError: Too many images have failed.
    """
    index = path / format.INDEX_NAME
    with watch.stage("finish"):
        # It is there if there was nothing to make, or another part has written it.
        is_indexed = Digests(path).agrees(index.name)
        if is_indexed:
            with open_run(index) as found:
                is_indexed = bool(found.attributes["run_digest"] == spec.digest)
        if not is_indexed:
            build_index(path, spec)
        errors = _errors(path)
    report = _report(path, spec, made, watch, len(spec.manifest), errors, part, str(index))
    write_reports(path, spec, report, is_unchanged=is_indexed)
    LOGGER.info("%s", report.summary())
    if errors:
        refuse_failures(len(errors), report.rows, report.options.get(MOST_FAILED, 1.0), errors[0])
    return report


def _errors(path: Path) -> list[str]:
    """Return why rows of a run or a shard failed."""
    with open_run(path) as run:
        return [error for error in run.images["error"] if error]


def _report(
    path: Path, spec: RunSpec, made: Made, watch: Stopwatch, rows: int, errors: Sequence[str], part: str, index: str = ""
) -> Report:
    made.peak_memory_bytes = max(made.peak_memory_bytes, peak_memory_bytes())
    return Report(
        **asdict(made),
        folder=str(path),
        index=index,
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
    """Write ``report.html`` and ``report.json`` of a finished run.

    Those that are there stay where nothing was left to do (``is_unchanged``): what it took to do something is worth more.
    """
    if is_unchanged and all(map(Digests(path).agrees, (REPORT, PAGE))):
        # A power cut after the index leaves those of the run as it was before it was extended, or images could be read again.
        there = json.loads(read_file(path / REPORT))
        if (there["run_digest"], there["failed"]) == (report.run_digest, report.failed):
            return
    with open_run(path) as run:
        write_text(path / PAGE, render_page(report, run, spec.manifest))
    # Last: where it is that of the run, so is the page.
    write_text(path / REPORT, report.json())


def write_text(path: Path, text: str, *, has_line: bool = True) -> None:
    """Write a file of a run folder, whole or not at all, and its line in ``SHA256SUMS`` if it has one."""
    # A folder's name need not be UTF-8; the escapes are those of JSON and YAML too.
    content = text.encode("utf-8", "backslashreplace")
    disk.write_file(path, content, Digests(path.parent).publish if has_line else disk.publish)


def count_rows(shards: Iterable[ShardSpec]) -> int:
    """Return how many rows shards hold."""
    return sum(shard.rows for shard in shards)
