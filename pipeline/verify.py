"""``python -m pipeline.verify``. Is a run whole and unchanged? Exit code 0 only if it is; loads no TensorFlow."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from . import cli, signals
from .errors import StoreError, printable
from .formatting import counted, words_for_bytes
from .machine import usable_cores

if TYPE_CHECKING:
    from .config import VerifyOptions
    from .store.verification import VerifyResult

# Findings that are printed.
LINES = 100
WHEN_STOPPED = "the run folder holds what it held, but for damaged files that repair=true had removed. Run the command again."


def verify(folder: Path, repair: bool) -> None:
    """Check a run, print what is wrong with it, and remove that if asked to.

    Raises:
        StoreError: The run is not whole, or not as it was written, or not all of it can be read.
    """
    from tqdm import tqdm

    from .store import format
    from .store.lock import Hold
    from .store.verification import repair as remove_damaged
    from .store.verification import require_run, verify_folder

    if folder.name == format.INDEX_NAME and not folder.is_dir():
        folder = folder.parent
    require_run(folder, images=False)  # for its refusals
    with ExitStack() as stack:
        if repair:
            stack.callback(Hold(folder).release)
        with tqdm(unit="B", unit_scale=True, disable=not sys.stderr.isatty(), leave=False) as bar:

            def advance(done_bytes: int, total_bytes: int) -> None:
                bar.total = total_bytes
                bar.update(done_bytes)

            result = verify_folder(folder, usable_cores(), advance)
        lines = [str(error) for findings in result.findings.values() for error in findings][:LINES]
        lines += [f"... and {result.count - len(lines)} more"] * (result.count > len(lines))
        print(*map(printable, lines), summary(result), sep="\n", flush=True)
        if not result.count:
            return
        if result.unread:
            names = ", ".join(result.unread[:3]) + ", ..." * (len(result.unread) > 3)
            raise StoreError(
                f"{folder}: not all of the run could be read, got {len(result.unread)} file(s) in use or unreadable: {names}. "
                f"Expected none. Nothing was removed. Do what is said of them above, then verify again."
            )
        again = f"run the extraction again (python -m pipeline.run with the options in {folder}/config.yaml): "
        again += "it makes what is missing."
        advice = "Verify with repair=true, or remove what is named, then"
        if repair:
            for name in remove_damaged(result):
                print(f"removed: {name}")
            print(f"next: {again}", flush=True)
            advice = "What could be removed has been;"
        found = counted(result.count, "finding")
        raise StoreError(f"{folder}: the run is not whole and unchanged, got {found}. Expected none. {advice} {again}")


def summary(result: VerifyResult) -> str:
    """Return the last line: what was checked, and what came of it."""
    outcome = counted(result.count, "finding") if result.count else "whole and unchanged"
    return f"checked: {result.files} files ({words_for_bytes(result.file_bytes)}), {result.rows} rows: {outcome}"


def _verify(options: VerifyOptions) -> None:
    signals.raise_in_main_thread()
    verify(options.run, options.repair)


def main() -> None:
    """Run the command; leave with 0 for a whole run, 1 for damage, 2 for a wrong option, 130 for Ctrl-C, 143 for SIGTERM."""
    cli.start("pipeline.verify", _verify, when_stopped=WHEN_STOPPED)


if __name__ == "__main__":
    main()
