"""The engine of one process: this one."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import Options
from ..estimate import raw_bytes
from ..machine import usable_cores
from ..making import make_shards
from ..network.weights import Weights
from ..records import ImageStatus, RunSpec
from ..signals import leaving_at_once
from ..stages import make_stages
from ..store.run_folder import RunFolder
from ..store.writer import Writer
from .engine import News


class LocalEngine:
    """Makes shards in this process, those of one part after the other.

    Args:
        options: Of the run.
        spec: The run.
        weights: Of the network.

    Raises:
        OptionError: The device asked for is not there.
    """

    def __init__(self, options: Options, spec: RunSpec, weights: Weights) -> None:
        self._spec = spec
        self._threads = options.runtime.workers or usable_cores()
        with leaving_at_once():
            self._stages = make_stages(options, spec, weights)

    def make(self, run_folder: RunFolder, news: News) -> None:
        """Make what is missing.

        Raises:
            PipelineError: What stopped it.
        """
        made = news.made
        made.device = self._stages.device.kind
        for part, missing in run_folder.parts():
            writer = Writer(run_folder.path, part, missing, self._threads, digests=run_folder.digests())
            before = made.bytes_raw, made.bytes_stored

            def done(statuses: Sequence[ImageStatus], writer: Writer = writer, before: tuple[int, int] = before) -> None:
                news.progress.count(len(statuses), [status for status in statuses if status.error])
                stored = before[0] + writer.bytes_raw, before[1] + writer.bytes_stored
                news.forecast.look(len(statuses), raw_bytes(self._spec, statuses), *stored)

            make_shards(writer, part, missing, self._stages, self._threads, news.watch, done)
            made.add(writer)
