"""Several jobs from one command line: Hydra's ``--multirun``, in this process or through one of its launchers.

A job may run in another process, on another machine: what ends it must come back as an exception that says it all in one line,
and not as the end of whatever process it ran in. Loads Hydra late.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from . import signals
from .command_line import MULTIRUN
from .errors import PipelineError

# A launcher that starts jobs elsewhere keeps what they are given, say and give back in a folder that all machines see.
_ELSEWHERE, _ELSEWHERE_FOLDER = "hydra/launcher=submitit", ".submitit"


def is_one_of_several() -> bool:
    """Tells whether this is a job of several."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def own_mistake(error: Exception) -> PipelineError:
    """Prints the traceback of a mistake of the program's own where the job runs, and gives the line that goes back."""
    traceback.print_exception(error)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return PipelineError(f"job: a mistake of the program's own, got {text}. Expected none. Its traceback is in the job's output.")


def lost_job(error: BaseException) -> PipelineError:
    """Gives the one line for a job whose process has ended without a result."""
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return PipelineError(
        f"multirun: a job has ended without a result, got {text}. Expected one of each. See its own output, where the launcher "
        f"keeps it, then run the same command again: finished shards are kept."
    )


@contextmanager
def without_leftovers(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Gives the command line so that Hydra leaves nothing behind of several jobs, unless it is told where.

    Hydra writes ``multirun.yaml`` into the folder in which jobs are to have theirs; ours have none. What submitit keeps of jobs
    is worth keeping, all of it in the hidden folder where it is anyway.
    """
    if not MULTIRUN & {*arguments} or any("hydra.sweep.dir=" in argument for argument in arguments):
        yield [*arguments]
    elif any(argument.startswith(_ELSEWHERE) for argument in arguments):
        is_told = any("hydra.launcher.submitit_folder=" in argument for argument in arguments)
        logs = [] if is_told else [f"hydra.launcher.submitit_folder={_ELSEWHERE_FOLDER}/%j"]
        yield [*arguments, f"hydra.sweep.dir={_ELSEWHERE_FOLDER}", *logs]
    else:
        with (
            tempfile.TemporaryDirectory(prefix="deep-features-") as folder,
            signals.clearing(lambda: _clear(folder)),
        ):
            yield [*arguments, f'hydra.sweep.dir="{Path(folder).as_posix()}"']


def _clear(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    # Joblib's workers outlive whoever started them, for minutes. What they are at is dropped by whoever goes on with it.
    executor = getattr(sys.modules.get("joblib.externals.loky.reusable_executor"), "_executor", None)
    for worker in [*getattr(executor, "_processes", ())]:
        with suppress(OSError):
            os.kill(worker, signal.SIGTERM)
