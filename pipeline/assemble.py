"""From checked options to a finished run: makes the stages, joins them, runs the loop, and has it ended."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from .config import AUTO, Options
from .engines.engine import Engine, News, open_engine, refuse_engine
from .errors import StoreError
from .estimate import Forecast
from .finishing import Ending, Made, finish_run, finish_share, index_is_whole
from .freshness import refuse_changed_images
from .image_list import list_images
from .journal import LOGGER as _log
from .journal import can_draw, to_file, to_terminal
from .network.layers import CLASSIFIER_BLOCK, foreign_names, resolve_layers
from .network.weights import Weights, load_weights
from .plan import plan_run
from .progress import Progress
from .publishing import write_text
from .records import RunSpec
from .rehearsal import rehearse
from .report import Report, Stopwatch, words_for_bytes
from .signals import clearing, leaving_at_once
from .stages import make_stages
from .store import disk, format
from .store.digests import Digests
from .store.reader import open_run
from .store.remote import ahead
from .store.run_folder import RunFolder, expected_bytes, open_folder, preview_folder

UNTRAINED = (
    "weights: random, so these features are untrained and mean nothing. For trained ones use network.weights=imagenet "
    "(downloads Keras' file once) or network.weights=FILE.mat"
)


def run(options: Options, config_yaml: str, *, quiet: bool = False) -> Report | None:
    """Does a whole run; of a dry one, says what it would make and take, and gives nothing.

    Args:
        options: Checked.
        config_yaml: The same as the user's configuration, to be stored.
        quiet: Whether only warnings go to the terminal.

    Raises:
        PipelineError: What stopped it; finished shards are kept.
    """
    watch = Stopwatch()
    with to_terminal(quiet) as kept_lines:
        refuse_engine(options)
        layers = resolve_layers(options.network.name, options.layers)
        if foreign := foreign_names(options.network.name, options.layers):
            _log.info("layers: %s", ", ".join(f"{theirs} is {ours} here" for theirs, ours in foreign.items()))
        with watch.stage("list"):
            manifest = list_images(options.data)
        with watch.stage("start"):
            weights = _load_weights(options, needs_classifier=layers[-1].block == CLASSIFIER_BLOCK)
        spec = plan_run(options, manifest, weights, layers, config_yaml)
        opening = preview_folder if options.dry_run else open_folder
        with opening(options.folder, spec, options.output.existing, options.share) as run_folder:
            # With what an earlier run has made of it: the rows before those that are added, what was left to choose.
            spec = run_folder.spec
            _preflight(options, spec, run_folder)
            if options.dry_run:
                _rehearse(options, spec, run_folder, weights)
                return None
            with ExitStack() as stack:
                engine = None
                if run_folder.missing:
                    with watch.stage("start"):
                        engine = stack.enter_context(open_engine(options, spec, weights, run_folder))
                # From here on nothing but the disk can refuse the run.
                run_folder.make_room()
                log = options.folder / format.log_name(options.share.mark if options.share else "")
                stack.enter_context(to_file(log, kept_lines))
                stack.enter_context(clearing(run_folder.drop_partial_files))
                report = _make_missing(options, spec, run_folder, engine, watch)
    return report


def _load_weights(options: Options, needs_classifier: bool) -> Weights:
    weights = load_weights(
        options.network.name,
        options.network.weights,
        seed=options.network.seed,
        classifier=needs_classifier,
        progress=can_draw(),
        log=_log.info,
    )
    if options.network.pool_padding != AUTO:
        weights = replace(weights, pool_padding=options.network.pool_padding)
    if options.network.weights == "random":
        _log.info(UNTRAINED)
    else:
        _log.info("weights: %s; conv1_1 says: %s", weights.source, weights.recognised)
    return weights


def _preflight(options: Options, spec: RunSpec, run_folder: RunFolder) -> None:
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
    if options.share is not None:
        own = sum(shard.rows for shard in run_folder.own)
        _log.info("part: %s, %d of %s, %d images", options.share, len(run_folder.own), _counted(len(spec.shards()), "shard"), own)
    if run_folder.added:
        _log.info("extend: %s after the %d of the run", _counted(run_folder.added, "new image"), spec.first_row)
    if len(run_folder.removed):
        _log.warning("extend: %s", _removed_words(spec, run_folder))
    if run_folder.finished:
        _log.info("resume: %d of %d shards are finished, %d images are left", len(run_folder.finished), len(run_folder.own), rows)
    if not rows:
        return
    needed = expected_bytes(spec, run_folder.missing)
    if not disk.holds_all(options.folder):
        _say_scratch(options, spec, run_folder, rows)
        return
    free = disk.free_bytes(options.folder) + sum(path.stat().st_size for path in run_folder.replaced)
    words = "a size that depends on the images" if needed is None else f"{words_for_bytes(needed)} before compression"
    _log.info(
        "output: %d images, %s, in %s under %s; %s free",
        *(rows, words, _counted(len(run_folder.missing), "shard"), options.folder, words_for_bytes(free)),
    )
    if needed is not None and needed > free:
        text = f"{options.folder}: the features may not fit, got {words_for_bytes(free)} free for {words_for_bytes(needed)}"
        if spec.compression == "none":
            raise StoreError(f"{text}. Expected room for all, since output.compression=none. Use gzip, float16 or another disk.")
        _log.warning("%s before compression. Finished shards are kept if the disk fills up.", text)


def _say_scratch(options: Options, spec: RunSpec, run_folder: RunFolder, rows: int) -> None:
    """Says what will be sent to an address, and what of it will lie in scratch at a time.

    Raises:
        StoreError: That cannot fit on the disk.
    """
    needed, free = expected_bytes(spec, run_folder.missing), disk.free_bytes(options.folder)
    scratch = disk.scratch_of(options.folder)
    most = expected_bytes(spec, run_folder.missing[: disk.SHARDS_IN_SCRATCH])
    _log.info(
        "output: %d images, %s, in %s to %s; made in %s, at most %d shards at a time, %s free",
        rows,
        "a size that depends on the images" if needed is None else f"{words_for_bytes(needed)} before compression",
        *(_counted(len(run_folder.missing), "shard"), options.folder, scratch, disk.SHARDS_IN_SCRATCH, words_for_bytes(free)),
    )
    if most is not None and most > free:
        text = f"{scratch}: shards on their way may not fit, got {words_for_bytes(free)} free for at most {words_for_bytes(most)}"
        if spec.compression == "none":
            raise StoreError(f"{text}. Expected room for them. Use another disk with output.scratch=..., gzip or float16.")
        _log.warning("%s before compression. Another disk is chosen by output.scratch=...", text)


def _rehearse(options: Options, spec: RunSpec, run_folder: RunFolder, weights: Weights) -> None:
    stages = None
    if run_folder.missing:
        with leaving_at_once():
            stages = make_stages(options, spec, weights)
    _look_at_finished(options.folder, spec, run_folder)
    if stages is None:
        _log.info("estimate: all %d rows are finished, nothing is left to make", sum(shard.rows for shard in run_folder.own))
    else:
        if options.engine.name != "local":
            _log.info("dry run: the sample is made by this process alone, and so the estimate is for it")
        rehearse(spec, run_folder, stages, options.runtime.workers, options.data.max_failed_fraction)
    _log.info("dry run: nothing was written. Leave out dry_run=true to extract.")


def _make_missing(options: Options, spec: RunSpec, run_folder: RunFolder, engine: Engine | None, watch: Stopwatch) -> Report:
    """Makes the missing shards and the index; says and stores what was done."""
    errors = _look_at_finished(options.folder, spec, run_folder)
    with run_folder.alone():
        is_there = Digests(options.folder).agrees("config.yaml")
        # Of parts the first one that comes writes it: to the others it may be the run's already.
        if not is_there or (engine is not None and options.share is None):
            write_text(options.folder / "config.yaml", str(spec.attributes["config"]))
    made = Made()
    if engine is not None:
        began = time.monotonic()
        of_all = sum(shard.rows for shard in run_folder.own)
        rows = sum(shard.rows for shard in run_folder.missing)
        failed_fraction = options.data.max_failed_fraction
        with Progress(spec.manifest.keys, of_all - rows, errors, failed_fraction, of_all) as progress:
            news = News(progress, Forecast(options.folder, spec, rows), watch)
            engine.make(run_folder, news)
        made = Made(
            device=news.made.device,
            rows=rows,
            rows_added=sum(shard.rows for shard in run_folder.missing if shard.part),
            images_per_second=rows / (time.monotonic() - began),
            threads_seconds={"encode": news.made.encode_seconds, "write": news.made.write_seconds},
            bytes_raw=news.made.bytes_raw,
            bytes_stored=news.made.bytes_stored,
            peak_memory_bytes=news.made.peak_memory_bytes,
        )
    # The options of the run, whoever has made which part of it.
    ending = Ending(made, watch, {**options.given, "part": None}, options.data.max_failed_fraction)
    if options.share is not None:
        return finish_share(run_folder, ending, errors)
    return finish_run(options.folder, spec, ending, engine is None and index_is_whole(options.folder, spec))


def _look_at_finished(path: Path, spec: RunSpec, run_folder: RunFolder) -> list[str]:
    """Gives why rows of the finished shards failed; says where other libraries or another compression have made them.

    Raises:
        StoreError: An image has changed since.
    """
    errors: list[str] = []
    others: set[str] = set()
    finished = [shard for shard in run_folder.own if shard in run_folder.finished]
    for shard, shard_path in zip(finished, ahead(path / format.shard_path(shard.file_name) for shard in finished), strict=True):
        with open_run(shard_path) as found:
            created, root = str(found.attributes.get("created")), str(found.attributes.get("data_root"))
            refuse_changed_images(path, spec.manifest, shard, found.images["sha256"].tolist(), created, root)
            errors += [error for error in found.images["error"] if error]
            compression = found.attributes.get("compression", spec.compression)
            if compression != spec.compression:
                others.add(f"compression {compression}, now {spec.compression}")
            for name, text in spec.attributes.items():
                if name.startswith("version_") and name in found.attributes and found.attributes[name] != text:
                    others.add(f"{name.removeprefix('version_')} {found.attributes[name]}, now {text}")
    if others and run_folder.missing:
        _log.warning("resume: finished shards were made with %s", "; ".join(sorted(others)))
    return errors


def _removed_words(spec: RunSpec, run_folder: RunFolder) -> str:
    """Says what comes of the rows whose images are no longer there."""
    removed = run_folder.removed
    lost = sum(int(((removed >= shard.first) & (removed < shard.stop)).sum()) for shard in run_folder.missing)
    words = f"{_counted(len(removed), 'image')} of the run no longer there, e.g. {spec.manifest.keys[int(removed[0])]!r}: "
    words += f"{_counted(len(removed) - lost, 'finished row')} kept"
    return f"{words}, {lost} not finished will fail" if lost else words


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
