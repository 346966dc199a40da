"""``python -m pipeline.verify``. Is a run whole and unchanged? Exit code 0 only if it is; loads no TensorFlow."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path

from . import cli
from .errors import StoreError, printable
from .formatting import counted
from .machine import usable_cores

WHEN_STOPPED = "the run folder holds what it held, but for damaged files that repair=true had removed. Run the command again."


def verify(folder: Path, repair: bool) -> None:
    """Check a run, print what is wrong with it, and remove that if asked to.

    Raises:
        StoreError: The run is not whole, or not as it was written, or not all of it can be read.
    """
    from .store import format
    from .store.lock import Hold
    from .store.verification import repair as remove_damaged
    from .store.verification import require_run, verify_folder

    if folder.name == format.INDEX_NAME and not folder.is_dir():
        folder = folder.parent
    require_run(folder)
    with ExitStack() as stack:
        if repair:
            stack.callback(Hold(folder).release)
        result = verify_folder(folder, usable_cores())
        for error in chain(*result.findings.values()):
            print(printable(str(error)))
        outcome = counted(result.count, "finding") if result.count else "whole and unchanged"
        print(f"checked: {counted(result.files, 'file')}, {counted(result.rows, 'row')}: {outcome}", flush=True)
        if result.unread:
            raise StoreError(
                f"{folder}: not all of the run could be read, got {counted(len(result.unread), 'file')} in use or unreadable, "
                f"{result.unread[0]} among them. Expected none. Nothing was removed. Do what is said above, then verify again."
            )
        if result.count:
            for name in remove_damaged(result) if repair else ():
                print(f"removed: {name}", flush=True)
            advice = "Run" if repair else "Verify with repair=true, then run"
            raise StoreError(
                f"{folder}: the run is not whole and unchanged, got {outcome}. Expected none. {advice} the extraction again: it "
                "makes what is missing."
            )


main = partial(cli.start, "pipeline.verify", lambda options: verify(options.run, options.repair), when_stopped=WHEN_STOPPED)

if __name__ == "__main__":
    main()
